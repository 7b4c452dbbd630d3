"""`fishernet peer`: list | add | remove | ban | unban. They work on a running node at once, on a stopped one at its start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here, printable

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
@accepts_common
def peer() -> None:
    """List peers, add one, ban and unban them, without a restart."""


@peer.command("list")
@accepts_common
def list_() -> None:
    """Show every member and other peer with whom this node is or would be connected, and the bans that stand."""
    invocation = here()
    invocation.answer(invocation.ask("peer.list"), _listed)


@peer.command()
@click.argument("address", metavar="MULTIADDR")
@accepts_common
def add(address: str) -> None:
    """Dial a peer now and at every start: /ip4/192.0.2.7/tcp/4242/p2p/12D3Koo..., as `fishernet status` prints it there."""

    def people(out: Console, result: dict[str, Any]) -> None:
        when = "it is being dialled" if result["dialled"] else "it is dialled when the node starts"
        click.echo(f"added {printable(result['address'])}: {when}")

    invocation = here()
    invocation.answer(invocation.ask("peer.add", address=address), people)


@peer.command()
@click.argument("peer_id", metavar="PEER")
@accepts_common
def remove(peer_id: str) -> None:
    """Take a peer's addresses out of node.toml and hang up; a member is found again by other ways (to stop that: ban)."""
    invocation = here()
    invocation.answer(
        invocation.ask("peer.remove", peer=peer_id),
        lambda out, v: click.echo(f"removed {v['removed']} address{'es' if v['removed'] > 1 else ''} of {v['peer']}"),
    )


@peer.command()
@click.argument("who", metavar="PEER|MEMBER")
@click.option("--for", "lasting", metavar="TIME", help="30m, 12h, 7d...  [default: until `fishernet peer unban`]")
@click.option("--why", default="", help="A note of yours, shown by `fishernet peer list`.")
@accepts_common
def ban(who: str, lasting: str | None, why: str) -> None:
    """Have nothing to do with a peer, or with a member whatever peer speaks for it: no streams, no dialling, no news.

    Named is a peer id, a member's name in the charter, its id, or the first eight digits of it or more. Its feed stays here, and
    releases still count it; a seat is taken by the collective: `fishernet collective amend --remove MEMBER`.
    """
    invocation = here()
    seconds = None if lasting is None else _seconds(lasting)
    invocation.answer(
        invocation.ask("peer.ban", who=who, seconds=seconds, why=why), lambda out, v: click.echo("banned " + _line(v))
    )


@peer.command()
@click.argument("who", metavar="PEER|MEMBER")
@accepts_common
def unban(who: str) -> None:
    """Lift the bans of a peer, or of a member and its peers; what counted against it is forgotten too."""
    invocation = here()
    invocation.answer(
        invocation.ask("peer.unban", who=who), lambda out, v: click.echo("lifted: " + ", ".join(v["lifted"]))
    )


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None or int(match.group(1)) == 0:
        raise click.BadParameter("a number with s, m, h or d is expected, for example 30m", param_hint="--for")
    return int(match.group(1)) * _UNITS[match.group(2)]


def _line(ban: dict[str, Any]) -> str:
    from node.cli.render import moment

    name = f" ({printable(ban['name'])})" if ban["name"] else ""
    until = f"until {moment(ban['until'])}" if ban["until"] else "until it is lifted"
    return f"{ban['who']}{name} {until}, by the {ban['by']}: {printable(ban['why'])}"


def _listed(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import cell, table, who

    everybody = [*result["members"], *({**each, "connected": True} for each in result["others"])]
    columns = [("member", who), ("peer", cell("peer"))]
    if result["running"]:
        columns.append(("connected", cell("connected")))
    else:
        click.echo("the node does not run: nobody is connected")
    table(out, "peers", everybody, columns, empty="nobody is known yet")
    for full in result["configured"]:
        click.echo(f"configured {printable(full)}")
    for each in result["bans"]:
        click.echo("banned " + _line(each))
