"""`fishernet storage`: what lies on the disk and why; `fishernet storage prune` drops what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here, printable

if TYPE_CHECKING:
    from rich.console import Console

_WORDS = {
    "vote": "under vote",
    "own": "own, not released yet",
    "pending": "pending",
    "release": "releases that are kept",
    "fresh": "just come",
    "history": "former epochs",
    "superseded": "left out on request",
    "stale": "stale, never released",
    "refused": "refused",
    "unknown": "named by nothing",
}
_KEPT = ("vote", "own", "pending", "release", "fresh")


@click.group(invoke_without_command=True)
@click.pass_context
@accepts_common
def storage(ctx: click.Context) -> None:
    """Show what lies in the blob folder, why it is kept, and what would go for want of room.

    The room is set in node.toml: [storage] quota_mib (MiB of blobs, 0 = no limit), min_free_mib (MiB of the disk to leave free),
    keep_releases, history. What a vote, a pending contribution or a release that is served needs is never dropped.
    """
    if ctx.invoked_subcommand is None:
        invocation = here()
        invocation.answer(invocation.ask("storage.show"), _shown)


@storage.command()
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would be dropped.")
@click.option("--rare", is_flag=True, help="Drop also what no other member is known to hold: then nobody may have it.")
@accepts_common
def prune(dry: bool, rare: bool) -> None:
    """Drop everything that may go, whatever the quota: refused, stale, superseded and damaged blobs, and those of former epochs.

    A running node first asks the other members what they hold, and keeps what it cannot find at anybody.
    """
    invocation = here()
    invocation.answer(invocation.ask("storage.prune", dry=dry, rare=rare), _pruned)


def _shown(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import cell, table

    rows = [
        {"why": _WORDS.get(why, why), "blobs": each["blobs"], "size": _size(each["bytes"]), "goes": _goes(why)}
        for why, each in result["by"].items()
    ]
    columns = [("why", cell("why")), ("blobs", cell("blobs")), ("size", cell("size")), ("dropped", cell("goes"))]
    table(out, "blobs", rows, columns, empty="no blobs are here yet")
    quota = f" of {_size(result['quota'])}" if result["quota"] else ", no quota"
    click.echo(f"used {_size(result['used'])}{quota}; free on the disk {_size(result['free'])}")
    if result["drop"]:
        click.echo(f"would go now: {len(result['drop'])} blobs, {_size(result['freed'])}")
    damaged = result["damaged"]
    if damaged["blobs"]:
        click.echo(f"damaged on the disk and put aside: {damaged['blobs']} blobs, {_size(damaged['bytes'])}")
    click.echo(f"history is {'fetched' if result['history'] else 'not fetched'}")
    for each in result["findings"]:
        click.echo(f"{each['severity']}: {printable(each['text'])}\n  {printable(each['cure'])}")


def _pruned(out: Console, result: dict[str, Any]) -> None:
    verb = "dropped" if result["dropped"] else "would drop"
    click.echo(f"{verb} {len(result['drop'])} blobs, {_size(result['freed'])}")
    left = result["droppable"] - result["freed"]
    if left:
        why = (
            "no other member is known to hold them" if result["asked"] else "nobody could be asked who else holds them"
        )
        click.echo(f"kept {_size(left)} that might go: {why} (--rare drops them)")


def _goes(why: str) -> str:
    return "never" if why in _KEPT else "for want of room"


def _size(count: int) -> str:
    if count < 1 << 20:
        return f"{count / 1024:.1f} KiB"
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"
