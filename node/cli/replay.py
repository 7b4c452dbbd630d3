"""`fishernet replay`: recompute one release from a home, or from a folder that an observer fetched. Needs no torch and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.options import accepts_common, here, printable, reads_folder
from protocol.canon import Json

_SIGNS = {True: "ok", False: "WRONG", None: "could not check"}


@click.command()
@click.argument("release", metavar="RELEASE")
@reads_folder
@click.option(
    "--log", "log_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the replay log."
)
@accepts_common
def replay(release: str, folder: Path | None, collective: str | None, log_file: Path | None) -> int:
    """Recompute RELEASE (latest, release-3, 3, or a digest) from feeds and blobs, byte for byte, and say each step.

    Ends with 0 when every register and the model have the digests that were decided, 1 when one has not or a step is wrong, 2
    when it could not be recomputed, for example because a blob was erased at its author's word.
    """
    from node.audits import replaying
    from node.audits.record import only_collective
    from node.files import write_new
    from node.home import Home
    from protocol.ids import CollectiveId, as_hex

    invocation = here()
    home = Home(path=folder.absolute()) if folder is not None else invocation.home()
    known = collective or (home.read_config().node.collective if folder is None else "")
    chosen = CollectiveId(as_hex(known, "collective id")) if known else only_collective(home.ledger_db)
    done = replaying.run(home.ledger_db, home.blobs, chosen, release)
    if log_file is not None:
        write_new(log_file.absolute(), replaying.log_bytes(done.log), mode=0o644)
    invocation.answer(done.to_json(), _show)
    return {"clean": 0, "findings": 1}.get(done.verdict, 2)


def _show(_out: object, told: dict[str, Any]) -> None:
    click.echo(f"release {told['number']} of height {told['height']}: {told['release']}")
    for step in told["steps"]:
        click.echo(f"  {_SIGNS[step['holds']]:<15} {step['step']}: {printable(step['text'])}")
        for detail in step["details"]:
            click.echo(f"  {'':<15}   {printable(detail)}")
    click.echo(_words(told["verdict"], told["number"]))


def _words(verdict: str, number: Json) -> str:
    if verdict == "clean":
        return f"release {number} was recomputed byte for byte"
    if verdict == "findings":
        return f"release {number} is NOT what its contributions give, or a step before it is wrong (see above)"
    return f"release {number} could not be recomputed (see above)"
