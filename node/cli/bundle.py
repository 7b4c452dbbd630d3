"""`fishernet bundle`: export | import | show. Feeds and blobs by file, for members that have no link."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import Invocation, accepts_common, here, printable

if TYPE_CHECKING:
    from node.home import Home
    from protocol.canon import Json

_FILE = click.Path(dir_okay=False, path_type=Path)
_THERE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
@accepts_common
def bundle() -> None:
    """Carry feeds and blobs by file between members that have no link."""


@bundle.command()
@click.argument("file", type=_FILE)
@click.option(
    "--since",
    metavar="WHAT",
    help="Only what came after: the number of a release, an earlier bundle (a file), or `known`: what the readers named with "
    "--to have shown in their feeds to hold.  [default: everything]",
)
@click.option("--feeds-only", is_flag=True, help="Leave out the blobs of contributions.")
@click.option(
    "--to",
    "readers",
    multiple=True,
    metavar="MEMBER",
    help="Seal it for this member (name, id, or the first 8 digits of it); repeat it.  [default: not sealed]",
)
@accepts_common
def export(file: Path, since: str | None, feeds_only: bool, readers: tuple[str, ...]) -> None:
    """Write feeds and blobs of the collective into FILE, for `fishernet bundle import` at another member.

    A bundle holds members' data: what a stranger never gets from a node. Without --to whoever gets FILE can read it. Blobs go
    only to whom the egress policy of this node lets them out to. FILE is replaced when the bundle is whole.
    """
    invocation = here()
    earlier = Path(since) if since else None
    if since and not since.isdecimal() and since != "known":
        if earlier is None or not earlier.is_file():
            raise click.UsageError(f"--since {since}: not a release number, not `known`, and no such file")
        since = str(earlier.absolute())
    with _progress(invocation) as told:
        made = _ask(
            invocation, told, "bundle.export",
            out=str(file.absolute()), since=since, feeds_only=feeds_only or None, to=list(readers) or None,
        )  # fmt: skip
    invocation.answer(made, _made)


@bundle.command("import")
@click.argument("file", type=_THERE)
@accepts_common
def import_(file: Path) -> int:
    """Take in what FILE holds, with the same checks as from a peer; on a running node or a stopped one.

    It may be repeated: what is here already is passed over. Ends with 1 when something in it was refused or a member is
    convicted of two histories, with 2 when it ends early, leaves a gap to what is held here, or brings more of a feed than may
    come at once.
    """
    invocation = here()
    with _progress(invocation) as told:
        taken = _ask(invocation, told, "bundle.import", file=str(file.absolute()))
    invocation.answer(taken, _taken)
    found: Any = taken
    later = found["gaps"] or found["held_back"] or not found["whole"]
    return 1 if found["refused"] or found["forks"] else 2 if later else 0


@bundle.command()
@click.argument("file", type=_THERE)
@accepts_common
def show(file: Path) -> None:
    """Say who made FILE, for whom, and how far it reaches; nothing is taken in."""
    invocation = here()
    invocation.answer(invocation.ask("bundle.show", file=str(file.absolute())), lambda _out, told: _header(told))


# -- asking ------------------------------------------------------------------------------------------------------------
def _ask(invocation: Invocation, told: Callable[[str, float], None], name: str, **args: Json) -> Json:
    from node import commands

    home = invocation.home()
    given = {key: value for key, value in args.items() if value is not None}
    return commands.run(home, name, given, passphrase=lambda: invocation.passphrase(home), told=told)


@contextlib.contextmanager
def _progress(invocation: Invocation) -> Iterator[Callable[[str, float], None]]:
    """A bar over what is done here, or over what the daemon says that it does."""
    from rich.console import Console

    from node.cli.progress import staged

    out = Console(stderr=True)
    if invocation.json or not out.is_terminal:
        yield lambda _stage, _part: None
        return
    with staged(out) as show_:
        show_("starting", 0.0)
        threading.Thread(target=_followed, args=(invocation.home(), show_), daemon=True).start()
        yield show_


def _followed(home: Home, show_: Callable[[str, float], None]) -> None:
    from node import control
    from protocol.errors import Retry

    with contextlib.suppress(Retry):  # no daemon: it is done here
        for event in control.follow(home):
            stage, part = event.get("stage"), event.get("part")
            if event.get("kind") == "progress" and isinstance(stage, str) and isinstance(part, int):
                show_(stage, part / 1000)


# -- for people --------------------------------------------------------------------------------------------------------
def _header(told: Any) -> None:
    made = datetime.fromtimestamp(told["made"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"made by {printable(told['maker_name'])} ({told['maker'][:12]}) at {made}")
    click.echo(
        f"collective {told['collective'][:12]}, {told['feeds']} feeds, entries {told['from']} to {told['upto']} in all"
    )
    if told["sealed"]:
        click.echo(f"sealed: only {', '.join(map(printable, told['readers']))} can read it")
    else:
        click.echo("not sealed: whoever has the file can read it; it holds members' data")


def _made(_out: object, told: Any) -> None:
    _header(told)
    click.echo(
        f"wrote {printable(told['file'])}: {told['entries']} entries, {told['blobs']} blobs, {told['bytes']} bytes"
    )
    if told["missing_blobs"]:
        click.echo(f"{told['missing_blobs']} blobs are not here and not in it")


def _taken(_out: object, told: Any) -> None:
    _header(told)
    click.echo(f"took {told['entries']} entries ({told['repeated']} were here) and {told['blobs']} blobs")
    if told["passed_blobs"]:
        click.echo(f"passed over {told['passed_blobs']} blobs that no contribution here asks for")
    if told["no_room"]:
        click.echo(f"passed over {told['no_room']} blobs of former epochs for want of room: fishernet storage")
    for member in told["forks"]:
        click.echo(f"member {member[:12]} signed two histories: its feed is frozen (fishernet fork list)")
    for what, why in told["refused"]:
        click.echo(f"refused {what[:12]}: {printable(why)}")
    for member, held in told["gaps"].items():
        click.echo(
            f"gap in the feed of {member[:12]}: {held} entries are here, the bundle goes on later; get an earlier one"
        )
    for member in told["held_back"]:
        click.echo(
            f"the feed of {member[:12]} grew faster than [limits] allow: the rest waits, import it again later "
            "(or allow more: fishernet config set limits.feed_entries_per_day NUMBER)"
        )
    if told["strangers"]:
        click.echo(f"passed over {told['strangers']} feeds of strangers")
    if not told["whole"]:
        click.echo(f"{printable(told['cut'])}; copy it again and import it again")
    if told["lacking_blobs"]:
        click.echo(f"{told['lacking_blobs']} blobs of contributions are still missing here")
