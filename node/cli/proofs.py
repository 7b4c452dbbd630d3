"""`fishernet prove`, `verify-proof` and `ledger export`: what strangers check without this node.

`verify-proof` needs no home, no ledger and no network: PyNaCl and the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here, printable
from protocol.canon import Json

if TYPE_CHECKING:
    from node.home import Home
    from protocol.ids import CollectiveId


@click.command()
@click.argument("event", metavar="EVENT")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write the proof.  [default: EVENT.tlog-proof here]",
)
@accepts_common
def prove(event: str, out: Path | None) -> None:
    """Write a proof that an event stands in its author's feed, which anybody can verify offline.

    EVENT is an event id or its first digits (8 or more). The file (C2SP tlog-proof) holds the entry, the hashes from it to
    the root, and the signed head with the cosignatures of witnesses; it holds no body.
    """
    from node.audits import proving
    from node.files import write_new

    invocation = here()
    home = invocation.home()
    made = proving.prove(home.ledger_db, _collective(home.read_config().node.collective), event)
    target = out or Path(f"{made.event[:16]}.tlog-proof")
    write_new(target.absolute(), made.data, mode=0o644)
    invocation.answer({**made.told, "file": str(target)}, _show_made)


@click.command("verify-proof")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--vkey",
    "vkeys",
    multiple=True,
    metavar="KEY",
    help="A verifier key that must have signed: of the feed (name+id+base64), or of a witness. May be repeated.",
)
@accepts_common
def verify_proof(file: Path, vkeys: tuple[str, ...]) -> None:
    """Verify a .tlog-proof file offline, with PyNaCl alone. Ends with 1 when it does not hold.

    Without --vkey it shows that the member named in the file signed the event and the head; whether that is the member you
    mean is for you to know. With the feed's verifier key (prove prints it) that is checked too.
    """
    from ledger import proofs

    with file.open("rb") as opened:
        data = opened.read(proofs.MAX_FILE + 1)
    proven = proofs.verify(proofs.decode(data), vkeys)
    header = proven.entry.header
    told: dict[str, Json] = {
        "holds": True,
        "event": proven.entry.event,
        "type": header.type,
        "ts": header.ts,
        "collective": header.collective,
        "member": header.member,
        "seq": header.seq,
        "size": proven.head.size,
        "root": proven.head.root,
        "cosigned_by": [c.witness for c in proven.cosignatures],
        "other_signatures": proven.signature_lines - 1 - len(proven.cosignatures),
    }
    here().answer(told, _show_proven)


@click.group()
@accepts_common
def ledger() -> None:
    """Hand the ledger to other programs."""


@ledger.command("export")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "tiles"]),
    required=True,
    help="jsonl: the leaves, a line each. tiles: a static transparency log (C2SP tlog-tiles).",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="PATH", help="Into this folder."
)
@click.option("--member", metavar="ID", help="Only the feed of this member (id or its first 8 digits).  [default: all]")
@accepts_common
def export_(format_: str, out: Path, member: str | None) -> None:
    """Write every feed, up to its newest signed head, for tools that are not ours.

    Lines hold headers and signatures only: no body, so nothing that may have to be erased leaves the node this way.
    """
    from node.audits import proving

    invocation = here()
    home = invocation.home()
    collective = _collective(home.read_config().node.collective)
    only = proving.member_named(home.ledger_db, collective, member) if member else None
    feeds = proving.write_export(home.ledger_db, collective, "tiles" if format_ == "tiles" else "jsonl", out, only)
    invocation.answer({"format": format_, "path": str(out), "feeds": feeds}, _show_export)


def collective_of(home: Home) -> CollectiveId:
    """The collective that a home belongs to (raises NoCollective)."""
    return _collective(home.read_config().node.collective)


def _collective(collective: str) -> CollectiveId:
    from node.errors import NoCollective
    from protocol.ids import CollectiveId, as_hex

    if not collective:
        raise NoCollective("couldn't read the ledger: this node has no collective")
    return CollectiveId(as_hex(collective, "collective id"))


def _show_made(_out: object, told: Any) -> None:
    click.echo(
        f"wrote {told['file']}: entry {told['seq']} of {told['member'][:12]} under the head of size {told['size']}"
    )
    click.echo(
        f"cosigned by {len(told['witnesses'])} witnesses" if told["witnesses"] else "no witness has cosigned that head"
    )
    click.echo(f"verify it anywhere: fishernet verify-proof {told['file']} --vkey {told['vkey']}")
    for key in told["witnesses"]:
        click.echo(f"  and, for a witness: --vkey {key}")


def _show_proven(_out: object, told: Any) -> None:
    click.echo(f"the proof holds: event {told['event']}")
    click.echo(f"  type {printable(told['type'])}, entry {told['seq']} of member {told['member']}")
    click.echo(f"  in collective {told['collective']}")
    click.echo(f"  under the signed head of size {told['size']}, root {told['root']}")
    for witness in told["cosigned_by"]:
        click.echo(f"  cosigned by {witness}")
    if told["other_signatures"]:
        click.echo(f"  {told['other_signatures']} signature lines of keys that were not named were not checked")


def _show_export(_out: object, told: Any) -> None:
    for feed in told["feeds"]:
        click.echo(f"{feed['path']}: {feed['size']} entries, root {feed['root']}")
        click.echo(f"  verifier key {feed['vkey']}")
