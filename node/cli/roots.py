"""Commands that stand alone: init, up, status, log, audit, observe, train, measure, demo, completion, version."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from node.cli import completing
from node.cli.options import accepts_common, here, progress_console, secret
from protocol.canon import Json


@click.command()
@click.option("--name", help="A name for people.  [default: the name of this machine]")
@click.option("--model", default="", shell_complete=completing.models, help="Base model by name or digest.")
@click.option(
    "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Start from this TOML file."
)
@click.option("--passphrase", "ask_passphrase", is_flag=True, help="Ask for a passphrase that locks the ledger key.")
@click.option("--post-quantum", is_flag=True, help="Cosign other members' heads with ML-DSA-44 too.")
@accepts_common
def init(name: str | None, model: str, config_file: Path | None, ask_passphrase: bool, post_quantum: bool) -> None:
    """Make a node: keys, configuration and an empty ledger.

    The ledger key is the node's seat in a collective. Keep a backup (fishernet key backup), and move DIR/recovery.pem
    offline: it takes the seat back when the ledger key is lost or stolen.
    """
    import socket

    from node import config
    from node.home import Home
    from node.keys import identity

    invocation = here()
    passphrase = invocation.passphrase()
    if ask_passphrase and passphrase is None:
        passphrase = secret(
            "New passphrase",
            confirm=True,
            instead="--passphrase-file FILE, or FISHERNET_PASSPHRASE, without --passphrase",
        )
    if config_file is not None:
        config.load(config_file)
        toml = config_file.read_text(encoding="utf-8")
    else:
        toml = config.template(name=name or config.as_name(socket.gethostname()), model=model)
    home = Home.init(invocation.home_path, passphrase=passphrase, toml=toml)
    if config_file is not None:
        for key, value in (("name", name), ("model", model)):
            if value:
                config.update(home.config_file, "node", key, value)
    if post_quantum:
        config.update(home.config_file, "ledger", "post_quantum", True)
        identity.add_post_quantum(home, passphrase)
    me = identity.load(home, passphrase)
    locked = identity.is_locked(home)
    result: dict[str, Json] = {
        "home": str(home.path),
        "name": home.read_config().node.name,
        "member": me.member,
        "peer": me.peer,
        "locked": locked,
        "recovery_file": str(home.recovery_file),
    }
    if invocation.json:
        invocation.answer(result, lambda out, value: None)
        return
    click.echo(f"made node {result['name']!r} in {home.path}")
    click.echo(f"member {me.member}")
    if not locked:
        click.echo(f"the ledger key is not locked: who can read {home.ledger_key} is this member")
    click.echo(f"RECOVERY KEY in {home.recovery_file}: move it offline now; whoever has it can take this node's seat,")
    click.echo("             and without it a lost or stolen ledger key costs the seat")
    click.echo(f"next: fishernet model add {home.read_config().node.model or 'smollm2-135m'}")
    click.echo(f"      fishernet data add FILE --dataset NAME --home {home.path}")
    click.echo(f"      fishernet collective create --name NAME --home {home.path}   (or: collective join)")
    click.echo(f"      fishernet up --home {home.path}")


@click.command()
@click.option(
    "--accept-fork-risk", is_flag=True, help="Write although no peer says how long this node's feed was; logged."
)
@accepts_common
def up(accept_fork_risk: bool) -> int:
    """Run the node until SIGTERM or Ctrl-C; what it does is told by status, log and the API."""
    invocation = here()
    home = invocation.home()
    home.read_config()
    passphrase = invocation.passphrase(home)
    home.unlock(passphrase)  # a wrong passphrase is said before anything starts
    os.environ.pop("FISHERNET_PASSPHRASE", None)  # so that no child process inherits it
    from node import up

    up.main(home, passphrase, accept_fork_risk=accept_fork_risk)
    return 0


@click.command()
@accepts_common
def status() -> None:
    """Show peers, heads, epoch, view, releases and last errors."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("status"), render.status)


@click.command()
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest so many decisions.")
@accepts_common
def log(limit: int | None) -> None:
    """Show releases with who contributed what and the losses that each voter measured (in nats, rounded)."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("log", limit=limit), render.log)


@click.command()
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "json", "html"]),
    help="What to write.  [default: terminal, or by the ending of --out]",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to this file.")
@click.option("--strict", is_flag=True, help="A warning counts as a finding too.")
@click.option("--rules", is_flag=True, help="List the compliance rules instead, and audit nothing.")
@click.option("--records", is_flag=True, help="Show the records of processing activities (GDPR article 30) instead.")
@accepts_common
def audit(format_: str | None, out: Path | None, strict: bool, rules: bool, records: bool) -> int:
    """Verify every feed held here, recompute every release and every decision on access, and check the compliance rules.

    Ends with 0 when clean, 1 with findings, 2 when something could not be checked. The HTML report is one file without
    anything from outside.
    """
    from node.cli import audits

    invocation = here()
    if rules:
        return audits.list_rules(invocation)
    return audits.audit(invocation, audits.Wanted(format=format_, out=out, strict=strict, records=records))


@click.command()
@click.option("--steps", type=click.IntRange(min=1), help="Other than [train] steps.")
@accepts_common
def train(steps: int | None) -> None:
    """Train once now from the current view and publish what was learnt."""
    from node.cli import render_training
    from node.cli.progress import training

    invocation = here()
    with training(invocation.home(), progress_console()):
        result = invocation.ask("train.now", steps=steps)
    invocation.answer(result, render_training.trained)


@click.command()
@accepts_common
def measure() -> None:
    """Measure base, own adapter and every release on this node's held-out rows; the figures stay on this node."""
    from node.cli import render
    from node.cli.progress import working

    invocation = here()
    with working("measuring", progress_console()):
        result = invocation.ask("measure")
    invocation.answer(result, render.losses)


@click.command()
@click.option(
    "--tiny", is_flag=True, help="With the small test model: a quick check; only the texts are downloaded, once."
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("demo-report.json"),
    show_default=True,
    help="Where the numbers go.",
)
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Leave the three homes in this directory."
)
@accepts_common
def demo(tiny: bool, report: Path, keep: Path | None) -> int:
    """Let three nodes on this machine improve one language model together, and audit what they did.

    Each holds other private text; two releases are made, audited from outside, and one answer is served.
    """
    import contextlib

    from node.demo import show

    invocation = here()
    with contextlib.redirect_stdout(sys.stderr if invocation.json else sys.stdout):
        code = int(show.main(tiny=tiny, report=report, keep=keep) or 0)
    if invocation.json and report.is_file():
        click.echo(report.read_text(encoding="utf-8").rstrip("\n"))
    return code


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@accepts_common
def completion(shell: str) -> None:
    """Print the completion script of a shell, for example: eval "$(fishernet completion bash)"."""
    from click.shell_completion import get_completion_class

    from node.cli import root

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    maker = found(root, {}, "fishernet", "_FISHERNET_COMPLETE")
    script = maker.source_template % maker.source_vars()  # source() would look for the shell itself and warn
    invocation = here()
    invocation.answer({"shell": shell, "script": script}, lambda out, value: click.echo(value["script"]))


@click.command()
@accepts_common
def version() -> None:
    """Print versions of Fishernet, Python and the libraries that change numbers."""
    import platform
    from importlib import metadata

    found: dict[str, Json] = {"python": platform.python_version()}
    for package in ("fishernet", "torch", "transformers", "peft", "numpy", "hivemind", "libp2p"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    lines = "\n".join(f"{name} {number or 'not installed'}" for name, number in found.items())
    here().answer(found, lambda out, value: click.echo(lines))


@click.command()
@click.option("--collective", "collective_id", required=True, metavar="ID", help="Which collective.")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), help="Keep what was fetched here, and resume."
)
@click.argument("addresses", nargs=-1, required=True, metavar="MULTIADDR...")
@accepts_common
def observe(collective_id: str, into: Path | None, addresses: tuple[str, ...]) -> int:
    """Fetch all feeds and blobs of a collective from its nodes over another libp2p implementation, and audit them.

    Needs no torch and no Go daemon: pip install 'fishernet[audit]'. The home's transport key introduces the auditor, so its
    own daemon should not run meanwhile; nodes give feeds to members of any role, to others the newest checkpoint only.
    """
    from node.cli import audits, render_audit
    from node.cli.observing import fetch_and_audit

    invocation = here()
    result = fetch_and_audit(invocation, collective_id, into, addresses)
    invocation.answer(result, render_audit.audit)
    return audits.code_of(result)
