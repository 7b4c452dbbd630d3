"""`fishernet key api`: add | list | revoke. The keys by which applications ask this node's models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here
from protocol.canon import Json

if TYPE_CHECKING:
    from rich.console import Console

    from node.home import Home
    from node.serving.access.keyfile import ApiKey


@click.group()
@accepts_common
def api() -> None:
    """Make, list and end the keys by which applications ask this node's models."""


@api.command()
@click.option("--label", default="", metavar="TEXT", help="Whose key it is, for people; stays on this node.")
@click.option("--purpose", "purposes", multiple=True, metavar="CODE", help="What answers may be used for; repeat it.")
@click.option(
    "--model", "models", multiple=True, metavar="PATTERN", help="base, latest, release-*; repeat it.  [default: *]"
)
@click.option("--requests", type=click.IntRange(1), metavar="N", help="Requests a minute.")
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Tokens a minute, of prompts and answers.")
@click.option("--until", metavar="WHEN", help="When it ends: 2027-01-31, or 30d from now.")
@click.option(
    "--grant", "grants", multiple=True, metavar="GRANT", help="Rest on this grant with the action serve; repeat it."
)
@accepts_common
def add(**options: Any) -> None:
    """Make a key and print it, once. Until the first one is made, every application may ask."""
    from node.collective.seat import now_ms
    from node.data.granting import moment
    from node.serving.access.keyfile import KeyFile, made

    invocation, now = here(), now_ms()
    home = invocation.home()
    key, secret = made(
        now=now,
        label=options["label"],
        purposes=options["purposes"],
        models=options["models"],
        requests_per_minute=options["requests"],
        tokens_per_minute=options["tokens"],
        expires=moment(options["until"], now=now) if options["until"] else None,
        grants=_found(home, options["grants"], options["purposes"], now),
    )
    KeyFile(home.api_keys).add(key)
    invocation.answer({**_shown(key, now), "key": secret, "then": "keep the key: it is shown only now"}, _one)


@api.command("list")
@click.option("--all", "all_", is_flag=True, help="Those that have ended too.")
@accepts_common
def list_(all_: bool) -> None:
    """List the keys; the keys themselves are nowhere."""
    from node.collective.seat import now_ms
    from node.serving.access.keyfile import KeyFile

    invocation, now = here(), now_ms()
    keys = [_shown(key, now) for key in KeyFile(invocation.home().api_keys).all()]
    found: list[Json] = [key for key in keys if all_ or key["state"] == "holds"]
    invocation.answer({"keys": found}, _many)


@api.command()
@click.argument("name", metavar="ID|LABEL")
@accepts_common
def revoke(name: str) -> None:
    """End a key: the next request by it is refused, in the running node too."""
    from node.collective.seat import now_ms
    from node.serving.access.keyfile import KeyFile

    invocation, now = here(), now_ms()
    invocation.answer(_shown(KeyFile(invocation.home().api_keys).revoke(name, now), now), _one)


def _found(home: Home, wanted: tuple[str, ...], purposes: tuple[str, ...], now: int) -> list[str]:
    """The full ids of grants that a key may rest on now (raises NotAllowed for one that does not allow it)."""
    if not wanted:
        return []
    from node import session
    from node.errors import NotAllowed
    from node.serving.access.grants import against

    with session.reading(home) as reading:
        seat = reading.need_seat()
        found = []
        for each in wanted:
            ids = [id_ for id_ in seat.book.grants if id_.startswith(each)]
            if len(each) < 8 or len(ids) != 1:
                cause = f"{len(ids)} grants have this id"
                raise NotAllowed(f"couldn't rest on grant {each[:16]}: {cause}", hint="fishernet grant list")
            for purpose in purposes:
                if reasons := against(seat.book, seat.past(), seat.me, (ids[0],), purpose, now):
                    cause = f"it does not allow to serve for {purpose} ({', '.join(reasons)})"
                    raise NotAllowed(f"couldn't rest on grant {each[:16]}: {cause}")
            found.append(str(ids[0]))
        return found


def _shown(key: ApiKey, now: int) -> dict[str, Json]:
    return {
        "id": key.id,
        "label": key.label,
        "state": key.ended(now) or "holds",
        "purposes": list(key.purposes),
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "created": key.created,
        "expires": key.expires,
        "grants": list(key.grants),
    }


# -- for people --------------------------------------------------------------------------------------------------------
def _one(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import facts, moment, text

    times = {name: moment(result[name]) for name in ("created", "expires") if result[name] is not None}
    shown = {
        **{name: value for name, value in result.items() if value not in (None, [], "") and name != "then"},
        **times,
    }
    facts(out, [(name, ", ".join(value) if isinstance(value, list) else text(value)) for name, value in shown.items()])
    if result.get("then"):
        out.print(f"[bold]next:[/] {text(result['then'])}")


def _many(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import cell, moment, table, text

    def joined(name: str) -> Any:
        return lambda row: text(", ".join(row[name]))

    columns = [
        ("id", cell("id")),
        ("label", cell("label")),
        ("state", cell("state")),
        ("purposes", joined("purposes")),
        ("models", joined("models")),
        ("until", lambda row: moment(row["expires"]) if row["expires"] else "-"),
    ]
    table(out, "API keys", result["keys"], columns, empty="no key: every application may ask")
