"""`fishernet chat`: talk to any OpenAI-style server from the terminal; with text on stdin, one question and one answer."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, here
from protocol.errors import FishernetError

if TYPE_CHECKING:
    from node.serving.client import Answer, Server

_DEFAULT = "http://127.0.0.1:8000/v1"
_HELP = """\
/model NAME   ask another model from now on ("auto" lets the server choose); without NAME, list them
/system TEXT  set the system message; without TEXT, none
/reset        forget the conversation
/quit         leave (also Ctrl-D); Ctrl-C ends one answer"""


@click.command()
@click.option("--url", metavar="URL", help=f"The server.  [default: the running node of --home, else {_DEFAULT}]")
@click.option("--model", default="", metavar="NAME", help="Which model.  [default: latest, or base before a release]")
@click.option("--api-key", metavar="KEY", help="Bearer key.  [default: $FISHERNET_API_KEY]")
@click.option("--system", default="", metavar="TEXT", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="0 takes the likeliest token each time.")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer.")
@click.argument("question", nargs=-1)
@accepts_common
def chat(
    url: str | None, model: str, api_key: str | None, system: str, question: tuple[str, ...], **settings: float | None
) -> int:
    """Talk to a served model. With a QUESTION, or text on stdin, one answer is written and that is all.

    Under each answer stand the model and the digest of the release that gave it.
    """
    from node.serving import client

    invocation = here()
    server = client.Server(url=url or _running(), api_key=api_key or os.environ.get("FISHERNET_API_KEY", ""))
    chosen = {name: value for name, value in settings.items() if value is not None}
    talk = Talk(server=server, model=model or _default(server), system=system, settings=chosen)
    if question or invocation.json or not sys.stdin.isatty():
        text = " ".join(question) or sys.stdin.read().strip()
        if not text:
            raise click.UsageError("there is no question: give it as an argument or on stdin")
        if invocation.json:
            invocation.answer(talk.ask(text, show=None).to_json(), lambda _out, _value: None)
        else:
            _tell(talk.ask(text, show=_write))
        return 0
    return _converse(talk)


@dataclass(slots=True, kw_only=True)
class Talk:
    """One conversation; `ask` adds a question and its answer."""

    server: Server
    model: str
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # further fields of each request
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str, *, show: object) -> Answer:
        """Ask and stream the pieces to `show` (None: nowhere); what came before an interrupt counts as the answer.

        Raises:
            AskRefused, AskFailed: the conversation is then as before.
            KeyboardInterrupt: before anything came; the conversation is then as before.
        """
        from node.serving import client

        question = {"role": "user", "content": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        with client.ask(self.server, self.model, [*first, *self.history, question], settings=self.settings) as (
            answer,
            pieces,
        ):
            try:
                for piece in pieces:
                    if callable(show):
                        show(piece)
            except KeyboardInterrupt:
                if not answer.text:
                    raise
                answer.finish = "cancelled"
        self.history += [question, {"role": "assistant", "content": answer.text}]
        return answer


def _converse(talk: Talk) -> int:
    """Read questions from the terminal until the end."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing and history

    click.echo(f"{talk.server.url}, model {talk.model}; /help tells more, Ctrl-D leaves", err=True)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo("", err=True)
            return 0
        except KeyboardInterrupt:
            click.echo("", err=True)
            continue
        try:
            if line.startswith("/"):
                if not _obey(talk, line):
                    return 0
            elif line:
                _tell(talk.ask(line, show=_write))
        except KeyboardInterrupt:
            click.echo("\n(cancelled)", err=True)
        except FishernetError as e:
            hint = getattr(e, "hint", "")
            click.echo(f"error: {_clean(str(e))}" + (f" ({_clean(hint)})" if hint else ""), err=True)


def _obey(talk: Talk, line: str) -> bool:
    """Carry out a command; False ends the conversation."""
    from node.serving import client

    name, _, rest = line.partition(" ")
    rest = rest.strip()
    match name:
        case "/quit" | "/exit":
            return False
        case "/model" if rest:
            talk.model = rest
            click.echo(f"model {rest}", err=True)
        case "/model" | "/models":
            click.echo("\n".join(_clean(each) for each in client.models(talk.server)), err=True)
        case "/system":
            talk.system = rest
        case "/reset":
            talk.history.clear()
            click.echo("(forgotten)", err=True)
        case "/help":
            click.echo(_HELP, err=True)
        case _:
            click.echo(f"no command {_clean(name)}; /help lists them", err=True)
    return True


def _tell(answer: Answer) -> None:
    """What stands under an answer, on stderr: the answer alone goes to a pipe."""
    click.echo("")
    parts = [_clean(answer.model)]
    if answer.release:
        parts.append(_clean(answer.release[:12]))
    if answer.usage:
        parts.append(f"{answer.usage.get('completion_tokens', 0)} tokens")
    if answer.finish not in ("", "stop"):
        parts.append(_clean(answer.finish))
    if answer.route is not None:
        parts.append(_clean(str(answer.route.get("why", ""))))
    click.echo(click.style("[" + ", ".join(parts) + "]", dim=True), err=True)


def _write(piece: str) -> None:
    """A piece of an answer as it comes; a model must not move the cursor or colour the terminal."""
    click.echo("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece), nl=False)
    sys.stdout.flush()


def _clean(text: str) -> str:
    from node.cli.options import printable

    return printable(text)


def _running() -> str:
    """The API of the running node of the home, if there is one."""
    from node import control
    from node.errors import NotAHome
    from protocol.errors import Retry

    try:
        home = here().home()
        if control.is_up(home):
            status = control.call(home, "status", {})
            serving = status.get("serving") if isinstance(status, dict) else None
            if isinstance(serving, dict) and isinstance(serving.get("url"), str):
                return str(serving["url"])
    except (NotAHome, Retry):
        pass
    return _DEFAULT


def _default(server: Server) -> str:
    """`latest` where the server has it, else its first model."""
    from node.serving import client

    offered = client.models(server)
    return "latest" if "latest" in offered or not offered else offered[0]
