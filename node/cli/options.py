"""What every command accepts and how every command answers.

`--home`, `--json`, `--passphrase-file` and `-v` are accepted before and after the command's name; the later one wins.
Invariant: with `--json` nothing but one JSON value goes to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from node.errors import IdentityError, NodeError, PassphraseNeeded
from protocol.canon import Json
from protocol.errors import Malformed

if TYPE_CHECKING:
    from rich.console import Console

    from node.home import Home

F = TypeVar("F", bound=Callable[..., Any])
_KEY = "fishernet."


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The common options of the command that runs now."""

    home_path: Path
    json: bool
    passphrase_file: Path | None

    def home(self) -> Home:
        """The home that was named (raises NotAHome)."""
        from node.home import Home

        return Home.open(self.home_path)

    def passphrase(self, home: Home | None = None) -> str | None:
        """The passphrase: from --passphrase-file, FISHERNET_PASSPHRASE, or typed when `home` is locked; else None."""
        if self.passphrase_file is not None:
            return _read_passphrase(self.passphrase_file)
        if (given := os.environ.get("FISHERNET_PASSPHRASE")) is not None:
            return given or None
        if home is None or not sys.stdin.isatty():
            return None
        from node.keys import identity

        if not identity.is_locked(home):
            return None
        return secret(f"Passphrase of {home.path}", instead="--passphrase-file FILE, or FISHERNET_PASSPHRASE")

    def ask(self, name: str, /, **args: Json) -> Json:
        """Do `name` on the home that was named: in its daemon when it runs, else offline. None arguments are left out."""
        home = self.home()
        from node import commands

        given = {key: value for key, value in args.items() if value is not None}
        return commands.run(home, name, given, passphrase=lambda: self.passphrase(home))

    def answer(self, result: Json, show: Callable[[Console, Any], None]) -> None:
        """Print `result`: as JSON for programs, by `show` for people."""
        if self.json:
            print(json.dumps(result, ensure_ascii=False))
            return
        show(console(), result)


def here() -> Invocation:
    """The common options of the command that runs now, wherever on the line they stood."""
    meta = click.get_current_context().meta
    home = meta.get(_KEY + "home") or os.environ.get("FISHERNET_HOME") or "~/.fishernet"
    file = meta.get(_KEY + "passphrase_file")
    return Invocation(
        home_path=Path(home).expanduser(),
        json=bool(meta.get(_KEY + "json")),
        passphrase_file=Path(file) if file else None,
    )


def accepts_common(function: F) -> F:
    """Give a command the common options; the function itself gets none of them and calls `here`."""
    for option in (
        click.option(
            "-v", "--verbose", count=True, expose_value=False, callback=_keep, help="Say more; -vv even more."
        ),
        click.option(
            "--passphrase-file",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            expose_value=False,
            callback=_keep,
            help="Read the passphrase of the ledger key from FILE. Else: $FISHERNET_PASSPHRASE, else it is asked for.",
        ),
        click.option("--json", is_flag=True, expose_value=False, callback=_keep, help="Print one JSON value."),
        click.option(
            "--home",
            metavar="DIR",
            type=click.Path(file_okay=False),
            expose_value=False,
            callback=_keep,
            help="The node's directory. Else: $FISHERNET_HOME, else ~/.fishernet.",
        ),
    ):
        function = option(function)
    return function


def reads_folder(function: F) -> F:
    """Give a command that reads one collective `folder` and `collective`: where from, if not from the home."""
    which = click.option("--collective", metavar="ID", help="Which one, where the folder holds several.")
    where = click.option(
        "--from",
        "folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="A folder with ledger.db and blobs/, as observe --into leaves it.  [default: the home]",
    )
    return where(which(function))


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors are wanted as JSON; known before the line is parsed, because that may fail too."""
    return "--json" in _options(arguments)


def wants_traceback(arguments: Sequence[str]) -> bool:
    """Whether the way to an error is wanted too; never with --json."""
    given = _options(arguments)
    return not wants_json(arguments) and bool({"-v", "--verbose"} & set(given))


def _options(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def console() -> Console:
    """Where results for people go."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a pipe has no width of its own


def progress_console() -> Console:
    """Where progress goes: stderr, and nothing at all unless it is a terminal."""
    from rich.console import Console

    return Console(stderr=True, quiet=not sys.stderr.isatty())


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:
        ctx.meta[f"{_KEY}{param.name}"] = value


def _read_passphrase(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        cause = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise IdentityError(f"couldn't read passphrase file {path}: {cause}") from None
    passphrase = text.removesuffix("\n").removesuffix("\r")
    if not passphrase or "\n" in passphrase:
        raise IdentityError(f"couldn't use passphrase file {path}: one line with the passphrase is expected")
    return passphrase


def printable(text: str) -> str:
    """`text` without characters that would move the cursor or colour the terminal: parts of it may be foreign."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


@contextlib.contextmanager
def reading(file: Path, what: str) -> Iterator[None]:
    """Say of bytes that are not right in which file they stand, and what was expected there (raises what was raised)."""
    try:
        yield
    except Malformed as e:
        raise type(e)(f"couldn't read {file} as {what}: {str(e).partition(': ')[2]}") from None


def secret(prompt: str, *, confirm: bool = False, instead: str) -> str:
    """What a person types unseen.

    Raises:
        PassphraseNeeded: there is nobody to ask; `instead` says how a program gives it.
    """
    if not sys.stdin.isatty() and not _has_terminal():
        raise PassphraseNeeded(f"couldn't ask for the {prompt.lower()}: there is no terminal", hint=instead)
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def backup_passphrase(*, confirm: bool) -> str:
    """The passphrase of a backup: from FISHERNET_BACKUP_PASSPHRASE, else typed (raises PassphraseNeeded)."""
    given = os.environ.get("FISHERNET_BACKUP_PASSPHRASE")
    if given is not None:
        return given
    return secret("Passphrase of the backup", confirm=confirm, instead="set FISHERNET_BACKUP_PASSPHRASE")


def _has_terminal() -> bool:
    """Whether this process has a terminal, wherever its input comes from: that is where unseen typing is read."""
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False


def table_of(result: Json) -> Mapping[str, Any]:
    """`result` as an object.

    Raises:
        NodeError: it is none; the daemon is of another version.
    """
    if not isinstance(result, dict):
        raise NodeError("couldn't show the answer: an object is expected", hint="restart the daemon after an upgrade")
    return result
