"""`fishernet fork`: list | export | check. A proof convicts whoever signed it, and anybody can check it without a node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here, reading

if TYPE_CHECKING:
    from rich.console import Console

    from ledger.forks import Fork
    from protocol.canon import Json


@click.group()
@accepts_common
def fork() -> None:
    """Show, export and check proofs that a member signed two histories of its feed."""


@fork.command("list")
@accepts_common
def list_() -> None:
    """List the members whose feeds are frozen here, and why."""
    from node import session

    invocation = here()
    with session.reading(invocation.home()) as found:
        seat = found.need_seat()
        proofs: list[Json] = [_facts(f) for f in seat.store.forks(seat.collective)]
    invocation.answer({"forks": proofs}, _listed)


@fork.command()
@click.argument("member", metavar="MEMBER")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: fork-MEMBER.json]"
)
@accepts_common
def export(member: str, out: Path | None) -> None:
    """Write the proof against MEMBER (its id or the first digits of it) into a file."""
    from ledger import forks
    from node import session
    from node.errors import NotAllowed
    from node.files import write_new

    invocation = here()
    with session.reading(invocation.home()) as found:
        seat = found.need_seat()
        matching = [f for f in seat.store.forks(seat.collective) if f.member.startswith(member)]
        if len(member) < 8 or len(matching) != 1:
            raise NotAllowed(
                f"couldn't export proof against {member[:12]}: {len(matching)} are here", hint="fishernet fork list"
            )
        proof = matching[0]
        if not forks.self_contained(proof):
            feed = list(seat.store.raw(seat.collective, proof.member))[: proof.at]
            proof = forks.completed(proof, [row.leaf for row in feed], [row.line for row in feed])
    forks.verify(proof)
    path = (out or Path(f"fork-{proof.member[:12]}.json")).absolute()
    write_new(path, forks.encode(proof))
    invocation.answer({**_facts(proof), "file": str(path)}, _one)


@fork.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@accepts_common
def check(file: Path) -> None:
    """Check the proof in FILE: no node, no network, nothing to trust but the accused's own signatures."""
    from ledger import forks

    invocation = here()
    with file.open("rb") as opened, reading(file, "a proof of a fork"):
        proof = forks.decode(opened.read(2 * forks.MAX_PROOF + 1))
    forks.verify(proof)
    invocation.answer({**_facts(proof), "valid": True}, _one)


def _facts(proof: Fork) -> dict[str, Json]:
    return {"member": proof.member, "collective": proof.collective, "kind": proof.kind, "at": proof.at}


_WORDS = {
    "entries": "signed two different entries {at}",
    "chain": "signed an entry {at} that does not follow its own entry before",
    "heads": "signed two heads of size {at} with different roots",
    "root": "signed a head of size {at} that its own entries contradict",
}


def _listed(out: Console, result: Any) -> None:
    if not result["forks"]:
        out.print("no feed here was proven forked")
    for each in result["forks"]:
        _one(out, each)


def _one(out: Console, result: Any) -> None:
    from node.cli.render import text

    what = _WORDS[result["kind"]].format(at=result["at"])
    out.print(f"member {text(result['member'])} {what} (collective {text(result['collective'][:12])})")
    if result.get("valid"):
        out.print("[bold red]the proof is valid[/]: this member signed two histories")
    if result.get("file"):
        out.print(f"written to {text(result['file'])}; anybody checks it with: fishernet fork check FILE")
