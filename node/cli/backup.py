"""`fishernet backup` and `fishernet restore`: a whole node in one file, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import accepts_common, backup_passphrase, here, printable
from protocol.canon import Json

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--keys/--no-keys", default=True, show_default=True, help="With every key of the node, under a passphrase."
)
@click.option("--blobs", is_flag=True, help="With the contributions held here; other members have them too.")
@accepts_common
def backup(file: Path, keys: bool, blobs: bool) -> None:
    """Copy the node into FILE: ledger, private rows, configuration, keys. It may run meanwhile and is not held up.

    Passphrase of the backup: $FISHERNET_BACKUP_PASSPHRASE, else it is asked for; it locks the keys, and whoever changes the
    file without it is found out. The rows are in the file as they are in the home: sealed if the home has a passphrase, else
    readable. Room is needed for two copies for a moment. An old backup is a good backup: a restored node gets its own feed back
    from the other members before it writes.
    """
    from node.backups import making

    invocation = here()
    home = invocation.home()
    made = making.make(home, file, passphrase=backup_passphrase(confirm=True) if keys else None, blobs=blobs)
    result: dict[str, Json] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "member": made.member,
        "made": made.made,
        "own_size": made.own_size,
        "files": len(made.files),
        "keys": keys,
        "sealed_rows": home.rows_key.exists(),
    }
    invocation.answer(result, _made)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--replace", is_flag=True, help="Take the backup's files also where whole ones are; those are kept aside."
)
@accepts_common
def restore(file: Path, replace: bool) -> None:
    """Put the node in FILE into the home: a new directory, or the same member's home, running or not.

    In a home that is there, only what is missing or damaged is replaced, unless --replace is given; keys never are. A running
    node takes the files by starting anew. Stop the node that the backup was made of before another one runs with its keys.
    """
    from node import commands, control
    from node.backups import archive, restoring
    from node.home import Home

    invocation = here()
    path = invocation.home_path
    there = (path / "node.toml").is_file()
    running = there and control.is_up(Home.open(path))
    locked = not there and archive.KEYS in archive.look(file).files
    passphrase = backup_passphrase(confirm=False) if locked else os.environ.get("FISHERNET_BACKUP_PASSPHRASE")
    done = restoring.restore(file, path, passphrase=passphrase, replace=replace, running=running)
    if done.waits:
        commands.run(Home.open(path), "restart", {}, passphrase=lambda: None)
    invocation.answer(done.to_json(), _restored)


def _made(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import size

    click.echo(
        f"{result['file']}: {size(result['bytes'])}, {result['files']} files, {result['own_size']} entries of its own"
    )
    if not result["keys"]:
        click.echo(
            "without keys: keep `fishernet key backup` beside it; without them nobody can write into its feed again"
        )
    if not result["sealed_rows"]:
        click.echo("the private rows in it are readable: keep it as safe as the node")


def _restored(out: Console, result: dict[str, Any]) -> None:
    from node.cli.render import moment

    if result["taken"]:
        when = ", as the node starts anew" if result["waits"] else ""
        click.echo(f"restored from {moment(result['made'])}{when}: {', '.join(result['taken'][:8])}")
    else:
        click.echo("nothing was restored: everything here is whole (--replace takes the backup all the same)")
    for name, why in result["kept"].items():
        click.echo(f"kept {name}: {why}")
    if result["aside"]:
        click.echo(f"what was here lies in {printable(result['aside'])}")
    for warning in result["warnings"]:
        click.echo(f"warning: {printable(warning)}", err=True)
    if not result["waits"]:
        click.echo("next: fishernet up; it asks the other members how long its feed is before it writes")
