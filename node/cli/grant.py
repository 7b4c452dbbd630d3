"""`fishernet grant`: issue | narrow | revoke | accept | list | check. Every change is a signed event at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from node.cli.options import accepts_common, here
from protocol.canon import Json

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])
_ACTIONS = click.Choice(["train", "evaluate", "label", "serve"])
_ROLES = click.Choice(["contributor", "endorser", "auditor"])
_STATES = {"active": "green", "not-yet": "yellow"}


def _terms(function: F) -> F:
    """The options that say what a grant allows."""
    for option in reversed(
        (
            click.option("--action", "actions", multiple=True, type=_ACTIONS, help="What may be done; repeat it."),
            click.option("--purpose", "purposes", multiple=True, metavar="CODE", help="What for; repeat it."),
            click.option("--member", "members", multiple=True, metavar="ID|NAME", help="Who may; repeat it."),
            click.option("--role", "roles", multiple=True, type=_ROLES, help="Whoever has this role may; repeat it."),
            click.option(
                "--column", "--columns", "columns", multiple=True, metavar="NAME", help="Only this column; repeat it."
            ),
            click.option(
                "--tag", "tags_all", multiple=True, metavar="TAG", help="Only rows that carry this tag; repeat it."
            ),
            click.option(
                "--not-tag", "tags_none", multiple=True, metavar="TAG", help="No row that carries this tag; repeat it."
            ),
            click.option(
                "--from",
                "from_",
                metavar="WHEN",
                help="Not before: 2027-01-31, 2027-01-31T12:00+01:00, or 12h from now.",
            ),
            click.option(
                "--until", metavar="WHEN", help="The first moment it no longer holds: as --from, or 30d from now."
            ),
            click.option("--uses", type=click.IntRange(1), help="How many runs may use it."),
            click.option(
                "--epsilon", type=click.FloatRange(0), help="Privacy budget of all runs; needs runs that state theirs."
            ),
            click.option("--depth", type=click.IntRange(0, 8), help="How often it may be handed on."),
        )
    ):
        function = option(function)
    return function


def _given(options: Mapping[str, Any]) -> dict[str, Json]:
    """What was typed, without what was not."""
    found = {("from" if k == "from_" else k): list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {key: value for key, value in found.items() if value not in (None, [], "")}


@click.group()
@accepts_common
def grant() -> None:
    """Say who may use which data for what, and end it."""


@grant.command()
@click.argument("dataset", required=False)
@_terms
@click.option("--parent", metavar="GRANT", help="Hand on this grant to us; what is not named is as there.")
@click.option("--basis", help="Legal basis, for the records of processing.")
@accepts_common
def issue(**options: Any) -> None:
    """Grant the use of DATASET.

    Without options: every action, for the purpose of this node's runs, by this node itself, without end.
    """
    invocation = here()
    invocation.answer(invocation.ask("grant.issue", **_given(options)), _one)


@grant.command()
@click.argument("grant_id", metavar="GRANT")
@_terms
@accepts_common
def narrow(grant_id: str, **options: Any) -> None:
    """Take something away from GRANT (its id, or the first 8 digits): only what is narrower is taken."""
    invocation = here()
    invocation.answer(invocation.ask("grant.narrow", grant=grant_id, **_given(options)), _one)


@grant.command()
@click.argument("grant_id", metavar="GRANT")
@click.option("--reason", metavar="CODE", help="Why, as a code.  [default: withdrawn]")
@accepts_common
def revoke(grant_id: str, reason: str | None) -> None:
    """End GRANT and every grant below it: the next run is refused."""
    invocation = here()
    invocation.answer(invocation.ask("grant.revoke", grant=grant_id, reason=reason), _one)


@grant.command()
@click.argument("grant_id", metavar="GRANT")
@accepts_common
def accept(grant_id: str) -> None:
    """Write that this node took note of GRANT, which is for it."""
    invocation = here()
    invocation.answer(invocation.ask("grant.accept", grant=grant_id), _one)


@grant.command("list")
@click.argument("dataset", required=False)
@click.option("--all", "all_", is_flag=True, help="Those that have ended too.")
@accepts_common
def list_(dataset: str | None, all_: bool) -> None:
    """List the grants on DATASET, or on every data set."""
    invocation = here()
    invocation.answer(invocation.ask("grant.list", dataset=dataset, all=all_ or None), _many)


@grant.command()
@click.argument("dataset")
@click.option("--action", type=_ACTIONS, help="What is to be done.  [default: train]")
@click.option("--purpose", metavar="CODE", help="What for.  [default: [train] purpose of the configuration]")
@click.option("--member", metavar="ID|NAME", help="Who.  [default: this node]")
@click.option("--column", "columns", multiple=True, metavar="NAME", help="A column that is needed; repeat it.")
@click.option("--epsilon", type=click.FloatRange(0), help="Privacy budget that would be spent.")
@accepts_common
def check(**options: Any) -> None:
    """Explain how a request on DATASET (or OWNER/DATASET) would be decided now. Exit code 1 when it would be refused.

    Nothing is accessed and nothing is written.
    """
    invocation = here()
    result = invocation.ask("grant.check", **_given(options))
    invocation.answer(result, _verdict)
    if isinstance(result, dict) and result.get("verdict") != "allow":
        raise click.exceptions.Exit(1)


# -- for people --------------------------------------------------------------------------------------------------------
def _one(out: Console, result: Mapping[str, Any]) -> None:
    if result.get("text"):
        out.print(f"[green]ok[/] {_plain(result['text'])}")
    for label, value in _facts(result):
        out.print(f"[dim]{label:<10}[/] {value}")


def _many(out: Console, result: Mapping[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    grants = result.get("grants") or []
    if grants:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for label in (
            "grant",
            "data set",
            "by",
            "for",
            "actions",
            "purposes",
            "rows and columns",
            "until",
            "uses",
            "state",
        ):
            table.add_column(label, overflow="fold")
        for each in grants:
            facts = dict(_facts(each))
            keys = ("grant", "data set", "by", "for", "actions", "purposes", "selects", "until", "uses", "state")
            table.add_row(*(facts[key] for key in keys))
        out.print(table)
    else:
        out.print("[dim]no grants[/]")
    if result.get("hidden"):
        out.print(f"[dim]{result['hidden']} ended: fishernet grant list --all[/]")


def _verdict(out: Console, result: Mapping[str, Any]) -> None:
    colour = "green" if result["verdict"] == "allow" else "red"
    reasons = f": {', '.join(result['reasons'])}" if result["reasons"] else ""
    out.print(f"[{colour}]{result['verdict']}[/]{_plain(reasons)}")
    for each in result["grants"]:
        facts = dict(_facts(each))
        out.print(
            f"[dim]by[/] {facts['by']} [dim]for[/] {facts['for']} [dim]grant[/] {facts['grant']} {facts['state']}"
        )
        for label in ("actions", "purposes", "selects", "from", "until", "uses", "budget"):
            out.print(f"   [dim]{label:<9}[/] {facts[label]}")


def _facts(view: Mapping[str, Any]) -> list[tuple[str, str]]:
    from node.cli.render import brief, moment

    selector, audience = view["selector"], view["audience"]
    rows = [f"tag {tag}" for tag in selector["tags_all"]] + [f"not {tag}" for tag in selector["tags_none"]]
    columns = (
        "all columns" if selector["columns"] is None else "columns " + ", ".join(selector["columns"]) or "no columns"
    )
    used = f"{view['used']} of {view['uses']}" if view["uses"] is not None else f"{view['used']}"
    budget = view["epsilon_micro"]
    state = str(view["state"])
    return [
        ("grant", brief(view["grant"])),
        ("data set", _plain(view["dataset"])),
        ("by", _plain(view.get("issuer_name") or view["issuer"][:12])),
        ("for", _plain(", ".join([*view["names"], *(f"every {role}" for role in audience["roles"])]) or "nobody")),
        ("actions", _plain(", ".join(view["actions"]) or "none")),
        ("purposes", _plain(", ".join(view["purposes"]) or "none")),
        ("selects", _plain("; ".join([columns, *rows]))),
        ("from", moment(view["not_before"]) if view["not_before"] else "always"),
        ("until", moment(view["expires"]) if view["expires"] is not None else "revoked"),
        ("uses", used),
        ("budget", "any" if budget is None else f"epsilon {view['spent_micro'] / 1e6:g} of {budget / 1e6:g}"),
        ("depth", str(view["depth"])),
        ("state", f"[{_STATES.get(state, 'red')}]{state}[/]"),
    ]


def _plain(value: object) -> str:
    from node.cli.render import text

    return text(value)
