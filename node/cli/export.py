"""`fishernet export`: a release as a folder for other programs. Works with or without a running daemon; needs no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.options import accepts_common, here, printable, progress_console


@click.command()
@click.argument("release")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["peft", "merged", "gguf-lora"]),
    default="peft",
    show_default=True,
    help="peft: for PEFT, vLLM, LoRAX and fishernet serve. merged: whole weights. gguf-lora: for llama.cpp.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="FOLDER",
    help="The folder to make.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of merged weights.  [default: as in the base]",
)
@click.option(
    "--sign",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign with OpenSSF model-signing and this EC private key (PEM); refused when it is not installed.",
)
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@accepts_common
def export(release: str, format_: str, out: Path, dtype: str | None, sign: Path | None, force: bool) -> None:
    """Write a release for other programs. RELEASE is latest, release-3, 3, or a digest (8 digits are enough).

    The model is recomputed from the contributions in this home and must have the digest that the quorum decided. The folder
    says where it comes from (README.md, fishernet.json); nothing private is in it. An existing folder is not touched.
    """
    from contrib.exporting import Wanted
    from node import session as sessions
    from node.cli.progress import staged
    from node.serving import exports

    if dtype is not None and format_ != "merged":
        raise click.UsageError("--dtype is for --format merged")
    invocation = here()
    wanted = Wanted(format=format_, out=out, dtype=dtype, force=force)
    with sessions.reading(invocation.home()) as session, staged(progress_console()) as on_progress:
        told = exports.export(session, release, wanted, sign=sign, on_progress=on_progress)
    invocation.answer(told, _show)


def _show(_out: object, told: Any) -> None:
    click.echo(f"wrote {told['path']}: {told['name']} as {told['format']}, {told['bytes'] / 1e6:.1f} MB")
    click.echo(f"release {told['release']}")
    click.echo(f"model   {told['model']}")
    click.echo(f"licence {printable(told['licence'])}")
    if "successor" in told:
        click.echo(f"RETIRES something in it was forgotten: use release {told['successor'][:12]}, which is without it")
    if told["signature"]:
        click.echo(f"signed  {told['signature']} (OpenSSF model-signing)")
    else:
        click.echo("signed  not: --sign KEY signs it with OpenSSF model-signing")
    if told["format"] == "peft":
        click.echo(f"serve it anywhere: fishernet serve {told['path']}")
