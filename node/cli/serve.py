"""`fishernet serve`: exported releases behind the OpenAI API, on a machine that is no node."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.options import accepts_common, here, progress_console

if TYPE_CHECKING:
    from contrib.models import Model
    from node.serving.replica import Replica


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of the engine."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="bfloat16 is about twice as fast; auto keeps what the base is stored in.",
)
@click.option("--rows", type=click.IntRange(1, 1024), default=16, show_default=True, help="Answers at the same time.")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="The base model.  [default: found in the model cache by its digest]",
)
@click.option("--api-key", "keys", multiple=True, metavar="KEY", help="Ask for this bearer key. May be repeated.")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keys, one a line; unlike --api-key not shown to other users of this machine.",
)
@accepts_common
def serve(
    folder: Path,
    host: str,
    port: int,
    threads: int,
    precision: str,
    rows: int,
    base: Path | None,
    keys: tuple[str, ...],
    api_key_file: Path | None,
) -> None:
    """Serve what fishernet export made: FOLDER is one export, or holds several and is watched for new ones.

    Needs no home, ledger, keys or peers. Digests are checked before anything is served. Names: base, latest, release-N, a
    digest, NAME@DIGEST. A new export in FOLDER becomes latest within seconds; requests under way end on what they began with.
    """
    import asyncio

    from node.cli.progress import staged
    from node.home import model_cache
    from node.logs import Logs
    from node.sections import Log
    from node.serving import replica
    from node.serving.models import Load

    invocation = here()
    given = [*keys, *(_lines(api_key_file) if api_key_file else [])]
    if any(len(key) < 8 for key in given):
        raise click.UsageError("an API key has at least 8 characters")
    Logs(folder).turn(Log())
    with staged(progress_console()) as on_progress:
        on_progress("checking the exports", 0.0)
        first = replica.open_first(folder)
        found = replica.find_base(first, base, model_cache(), on_progress=on_progress)
    if not given and not _is_local(host):
        click.echo(f"warning: everybody who reaches {host} may ask; set --api-key", err=True)
    load = Load(threads=threads, rows=rows, dtype=None if precision == "auto" else precision)
    wanted = replica.Wanted(folder=folder, host=host, port=port, load=load, api_keys=tuple(given), base=base)

    def ready(bound: int, running: Replica) -> None:
        _tell(invocation.json, f"http://{_shown(host)}:{bound}/v1", found, running, keyed=bool(given))

    asyncio.run(replica.run(wanted, first, found, on_ready=ready))


def _tell(machine: bool, url: str, base: Model, running: Replica, *, keyed: bool) -> None:
    releases = [{"name": f"release-{e.number}", "digest": e.release, "folder": str(e.folder)} for e in running.served]
    if machine:
        told = {"url": url, "pid": os.getpid(), "base": base.digest, "releases": releases}
        print(json.dumps(told), flush=True)
        return
    for each in releases:
        print(f"serving {each['name']} {each['digest']}")
    print(f"ready: {url}")
    key = " -H 'authorization: Bearer KEY'" if keyed else ""
    body = '{"model": "latest", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}'
    print(f"try: curl -s {url}/chat/completions -H 'content-type: application/json'{key} -d '{body}'")
    print(f"     fishernet chat --url {url}", flush=True)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what a client dials, not what is listened on
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
