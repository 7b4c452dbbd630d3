"""`fishernet conflicts`: where the members of a release agree and disagree, for people and as JSON. Needs no torch and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.options import accepts_common, here, printable, reads_folder

_WORST = 8  # modules that are shown to people; --json has them all


@click.command()
@click.argument("release", metavar="[RELEASE]", default="latest")
@reads_folder
@accepts_common
def conflicts(release: str, folder: Path | None, collective: str | None) -> int:
    """Show where the members of RELEASE (latest, release-3, 3, or a digest) pull in different directions.

    For each member: how it points against the others (a bearing below zero is what attackers show), its size, and at how
    many coordinates it alone decides. For each module: the share of coordinates whose senders disagree on the sign.
    """
    from node.audits import conflicts as audit
    from node.audits.record import only_collective
    from node.home import Home
    from protocol.ids import CollectiveId, as_hex

    invocation = here()
    home = Home(path=folder.absolute()) if folder is not None else invocation.home()
    known = collective or (home.read_config().node.collective if folder is None else "")
    chosen = CollectiveId(as_hex(known, "collective id")) if known else only_collective(home.ledger_db)
    invocation.answer(audit.run(home.ledger_db, home.blobs, chosen, release).to_json(), _show)
    return 0


def _show(_out: object, told: dict[str, Any]) -> None:
    whole, *modules = told["modules"]
    click.echo(f"release {told['number']}, merged by {told['recipe']}")
    click.echo(f"{'member':<20} {'bearing':>8} {'norm':>9} {'alone at':>9}")
    lone = told["senders"]["lone"]
    for member, norm in zip(told["members"], whole["norm_micro"], strict=True):
        mark = "  points against the others" if member["opposed"] else ""
        bearing, alone = member["bearing_permille"] / 1000, lone.get(member["id"], 0)
        click.echo(f"{printable(member['name']):<20} {bearing:>8.3f} {norm / 1e6:>9.3f} {alone:>9,}{mark}")
    counts = ", ".join(f"{n} by {sent}" for sent, n in enumerate(whole["senders"]) if n)
    click.echo(f"coordinates by how many sent them: {counts}")
    click.echo(f"part of the merged norm that one sender alone decides: {told['senders']['lone_ppm'] / 10_000:.1f} %")
    if not modules:
        click.echo("the base model is not on this machine: no figures by module")
        return
    click.echo(f"{'module (most contested first)':<44} {'signs differ':>12} {'cancelled':>10}")
    ranked = sorted(modules, key=lambda part: (-(part["contested_permille"] or 0), part["module"]))
    for part in ranked[:_WORST]:
        click.echo(
            f"{printable(part['module'])[-44:]:<44} {_percent(part['contested_permille']):>12} "
            f"{_percent(part['lost_permille']):>10}"
        )


def _percent(permille: int | None) -> str:
    return "-" if permille is None else f"{permille / 10:.1f} %"
