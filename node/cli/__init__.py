"""The command line: `fishernet [--home DIR] [--json] COMMAND`.

    options.py     what every command accepts: --home, --json, --passphrase-file, -v; output for people or for programs
    completing.py  what a shell offers for a word that is being typed
    roots.py       init, up, status, log, audit, observe, train, measure, demo, completion, version
    collective.py  collective create | show | invite | approve | join | amend | requests
    data.py        data add | list | show          model.py   model add | list
    settings.py    config show | check | set | reload
    storage.py     storage | storage prune
    doctor.py      doctor
    backup.py      backup | restore
    peer.py        peer list | add | remove | ban | unban
    key.py         key show | rotate | revoke | propose | backup | restore       api_keys.py   key api add | list | revoke
    grant.py       grant issue | narrow | revoke | accept | list | check
    proofs.py      prove, verify-proof, ledger export
    replay.py      replay          forget.py   forget        bundles.py  verify-bundle   bundle.py  bundle export | import | show
    export.py      export          serve.py   serve          chat.py   chat          simulate.py   simulate
    recipes.py     recipes         conflicts.py   conflicts
    render.py      results as tables for people

Commands are named here with their one-line help and imported when called, so that `--help` answers at once. With `--json`
the result of a command is one JSON value on stdout and an error one JSON value on stderr; both are the same values that
`node.commands.run` and the daemon's control socket give, in the shapes that `render.py` lists.
Exit codes: 0 done; 1 refused, or an audit with findings; 2 wrong usage, or it could not be done or checked now.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from node.cli.options import accepts_common, printable, wants_json, wants_traceback
from protocol.errors import FishernetError, Refused

_COMMANDS: Mapping[str, tuple[str, str, str]] = {  # in the order of a first session
    "init": ("roots", "init", "Make a node: keys, configuration and an empty ledger."),
    "model": ("model", "model", "Get base models and list them."),
    "data": ("data", "data", "Add private rows and list data sets; rows never leave this node."),
    "grant": ("grant", "grant", "Say who may use which data for what, and end it."),
    "collective": ("collective", "collective", "Create, join and change a collective."),
    "up": ("roots", "up", "Run the node until it is stopped."),
    "status": ("roots", "status", "Show peers, heads, epoch, view, releases and last errors."),
    "train": ("roots", "train", "Train once now and publish what was learnt."),
    "measure": ("roots", "measure", "Measure base, own adapter and every release on held-out rows."),
    "bundle": ("bundle", "bundle", "Carry feeds and blobs by file between members that have no link."),
    "storage": ("storage", "storage", "Show what lies on the disk and why, and drop what may go."),
    "peer": ("peer", "peer", "List peers, add one, ban and unban them, without a restart."),
    "key": ("key", "key", "Show, rotate, revoke, back up and restore this node's keys; make API keys."),
    "fork": ("fork", "fork", "Show, export and check proofs that a member signed two histories."),
    "log": ("roots", "log", "Show releases with who contributed and what each voter measured."),
    "chat": ("chat", "chat", "Talk to a served model from the terminal."),
    "export": ("export", "export", "Write a release for PEFT, vLLM, LoRAX, transformers or llama.cpp."),
    "serve": ("serve", "serve", "Serve exported releases alone, without a ledger, keys or peers."),
    "audit": ("roots", "audit", "Verify every feed this node holds and recompute every release."),
    "replay": ("replay", "replay", "Recompute one release byte for byte, and say each step."),
    "conflicts": ("conflicts", "conflicts", "Show where the members of a release pull in different directions."),
    "forget": ("forget", "forget", "Have contributions left out of later releases, and prove it."),
    "verify-bundle": ("bundles", "verify_bundle", "Verify a proof that something was forgotten; needs no node."),
    "prove": ("proofs", "prove", "Write a proof that an event was signed and recorded, for anybody."),
    "verify-proof": ("proofs", "verify_proof", "Verify such a proof offline; needs no node."),
    "ledger": ("proofs", "ledger", "Export the ledger for other programs."),
    "observe": ("roots", "observe", "Fetch a collective from outside and audit it, without being a node."),
    "recipes": ("recipes", "recipes", "List the ways contributions can be merged, or show one."),
    "config": ("settings", "config", "Show, check and change the configuration."),
    "simulate": ("simulate", "simulate", "Simulate a whole collective: votes, merges, churn, loss, attackers."),
    "demo": ("roots", "demo", "Let three nodes on this machine improve one model together."),
    "backup": ("backup", "backup", "Copy a node into one file, also while it runs."),
    "restore": ("backup", "restore", "Put a copy back: into a new home, or where files are damaged."),
    "doctor": ("doctor", "doctor", "Look for what may be wrong, and name cause and cure."),
    "completion": ("roots", "completion", "Print the completion script of a shell."),
    "version": ("roots", "version", "Print versions."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        found = getattr(importlib.import_module(f"node.cli.{module}"), attribute)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _COMMANDS:
            near = difflib.get_close_matches(name, list(_COMMANDS), n=1)
            raise click.UsageError(f"no command {name!r}" + (f", did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


_EPILOG = """\b
A first session:  fishernet demo
A node:           fishernet init
                  fishernet model add smollm2-135m
                  fishernet data add notes.jsonl --dataset notes
                  fishernet collective create --name ours --model smollm2-135m
                  fishernet up
"""


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@accepts_common
def root() -> None:
    """Improve one foundation model together, without a server and without showing each other the data."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command; every expected failure becomes text on stderr and an exit code."""
    machine = wants_json(arguments)
    try:
        code = root.main(list(arguments), prog_name="fishernet", standalone_mode=False)
    except click.ClickException as e:
        ctx = getattr(e, "ctx", None)
        hint = f"see: {ctx.command_path} --help" if ctx else ""
        message = " ".join(e.format_message().split())  # click puts choices on lines of their own, behind tabs
        return _fail({"code": "usage", "kind": "usage", "message": message, "hint": hint}, machine, 2)
    except click.Abort:
        return _fail({"code": "interrupted", "kind": "retry", "message": "interrupted", "hint": ""}, machine, 130)
    except FishernetError as e:
        from node.control import error_json

        if wants_traceback(arguments):
            traceback.print_exc()
        return _fail({k: str(v) for k, v in error_json(e).items()}, machine, 1 if isinstance(e, Refused) else 2)
    except ModuleNotFoundError as e:
        return _fail(_missing(e), machine, 2)
    except OSError as e:
        what = f" {e.filename}" if e.filename else ""
        message = f"couldn't use{what or ' the system'}: {e.strerror or e}"
        return _fail({"code": "system", "kind": "retry", "message": message, "hint": ""}, machine, 2)
    return code if isinstance(code, int) else 0


def _missing(error: ModuleNotFoundError) -> dict[str, str]:
    if (error.name or "").split(".")[0] in {"node", "protocol", "ledger", "contrib"}:
        raise error  # a broken installation is not an answer but a fault: show where
    extra = "audit" if error.name in {"libp2p", "trio", "multiaddr"} else "node"
    message = f"couldn't run this command: {error.name} is not installed"
    return {"code": "not-installed", "kind": "fatal", "message": message, "hint": f"pip install 'fishernet[{extra}]'"}


def _fail(error: Mapping[str, str], machine: bool, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        if machine:
            print(json.dumps({"error": error}), file=sys.stderr)
        else:
            red, bold, plain = ("\x1b[31m", "\x1b[1m", "\x1b[0m") if _colours() else ("", "", "")
            print(f"{red}error:{plain} {printable(error['message'])}", file=sys.stderr)
            if error["hint"]:
                print(f"{bold}hint:{plain}  {printable(error['hint'])}", file=sys.stderr)
    return code


def _colours() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
