"""`fishernet key`: show | rotate | revoke | propose | backup | restore | api. A seat belongs to a key; so keys change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.api_keys import api
from node.cli.options import Invocation, accepts_common, backup_passphrase, here
from protocol.canon import Json
from protocol.ids import CollectiveId

if TYPE_CHECKING:
    from rich.console import Console

    from ledger.collective import Collective
    from node.home import Home


@click.group()
@accepts_common
def key() -> None:
    """Show, change, revoke, back up and restore the keys of this node."""


key.add_command(api)


@key.command()
@accepts_common
def show() -> None:
    """Show the public names of this node's keys, and whether other keys wait for its seat."""
    from node.collective import succeeding

    invocation = here()
    home = invocation.home()
    with _reading(home) as (collective, fold):
        _answer(invocation, succeeding.facts(home, collective, fold))


@key.command()
@accepts_common
def rotate() -> None:
    """Give this node's seat to a new key; both keys sign. The node goes on with the old one until it is decided."""
    from node.collective import succeeding
    from node.keys import identity

    invocation = here()
    home = invocation.home()
    passphrase = invocation.passphrase(home)
    old = identity.load(home, passphrase)
    heir = succeeding.prepare(home, passphrase, fresh_recovery=False)
    with _reading(home) as (_, fold):
        said = succeeding.state(_needed(fold), old.key, heir, old.member)
    done = invocation.ask("key.propose", statement=said.to_json())
    steps = "leave the node running until `fishernet key show` names the new key's seat, then stop and start it"
    _answer(invocation, {**dict(done), "next": heir.member, "then": steps})  # type: ignore[arg-type]


@key.command()
@click.option(
    "--recovery",
    "recovery_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The recovery.pem that `fishernet init` made.",
)
@click.option("--member", help="The key to revoke.  [default: this node's]")
@click.option("--size", type=click.IntRange(0), help="How many of its entries stay trusted.  [default: all held here]")
@accepts_common
def revoke(recovery_file: Path, member: str | None, size: int | None) -> None:
    """Take the seat from a lost or stolen key, with the recovery key, and give it to a new one.

    Writes a statement to hand to any member, who runs `fishernet key propose FILE`. It outranks whatever a thief asks for.
    """
    from node.collective import succeeding
    from node.keys import identity
    from protocol.ids import MemberId, as_hex

    invocation = here()
    home = invocation.home()
    passphrase = invocation.passphrase(home)
    owner = identity.read_key(recovery_file, passphrase)
    heir = succeeding.prepare(home, passphrase, fresh_recovery=True)
    mine = identity.member_of(home)
    old = MemberId(as_hex(member, "member id")) if member else mine
    with _reading(home) as (_, fold):
        said = succeeding.state(_needed(fold), owner, heir, old, size)
    file = succeeding.written(home, said)
    steps = (
        f"hand {file.name} to any member: fishernet key propose {file.name}; once decided, start this node again, then move "
        "the new recovery.pem offline and destroy the old one"
    )
    _answer(invocation, {"member": old, "next": heir.member, "size": said.size, "file": str(file), "then": steps})


@key.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@accepts_common
def propose(file: Path) -> None:
    """Ask the collective for the succession in FILE, for this node or for another member. It needs no approvals."""
    from node.errors import IdentityError

    invocation = here()
    try:
        statement: Json = json.loads(file.read_bytes()[: 64 * 1024])
    except ValueError:
        raise IdentityError(f"couldn't read {file}: not a statement of succession") from None
    _answer(invocation, invocation.ask("key.propose", statement=statement))


@key.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@accepts_common
def backup(file: Path) -> None:
    """Write all keys of this node into one encrypted FILE. Passphrase: $FISHERNET_BACKUP_PASSPHRASE, else it is asked for."""
    from node.errors import IdentityError
    from node.files import write_new
    from node.keys import identity, keybackup

    invocation = here()
    home = invocation.home()
    member = identity.member_of(home)
    if file.exists():
        raise IdentityError(f"couldn't back up keys: {file} exists and is never overwritten")
    data = keybackup.seal(home, backup_passphrase(confirm=True))
    write_new(file.absolute(), data, mode=0o600)
    steps = "keep it, and its passphrase elsewhere: both together are this member"
    _answer(invocation, {"member": member, "file": str(file), "bytes": len(data), "then": steps})


@key.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="A name for people, if the home is made anew.")
@accepts_common
def restore(file: Path, name: str | None) -> None:
    """Write the keys of a backup into the home, which is made if there is none; a ledger key there is never overwritten."""
    from node import config
    from node.home import Home
    from node.keys import identity, keybackup

    invocation = here()
    files = keybackup.open_(file.read_bytes(), backup_passphrase(confirm=False))
    if not (invocation.home_path / "node.toml").exists():
        Home.init(invocation.home_path, passphrase=None, toml=config.template(name=name or "node"), keys=False)
    home = Home.open(invocation.home_path)
    keybackup.restore(home, files)
    steps = "the first start asks other members how long this node's feed is before it writes: fishernet collective join, then up"
    _answer(invocation, {"member": identity.member_of(home), "home": str(home.path), "then": steps})


def _needed(fold: Collective | None) -> Collective:
    from node.errors import NoCollective

    if fold is None or not fold.known:
        raise NoCollective("couldn't give seat away: this node has no collective, or its charter is not here yet")
    return fold


@contextlib.contextmanager
def _reading(home: Home) -> Iterator[tuple[CollectiveId, Collective | None]]:
    """The collective of a home as its ledger stands, while the daemon may go on writing."""
    from node import session

    with session.reading(home) as found:
        yield CollectiveId(found.config.node.collective), found.seat.fold if found.seat else None


def _answer(invocation: Invocation, result: Json) -> None:
    invocation.answer(result, _shown)


def _shown(out: Console, result: Any) -> None:
    from node.cli.render import facts, text

    steps = result.get("then")
    pairs = [
        (name, text(value)) for name, value in result.items() if name not in {"then", "seat"} and value is not None
    ]
    facts(out, pairs)
    if steps:
        out.print(f"[bold]next:[/] {text(steps)}")
