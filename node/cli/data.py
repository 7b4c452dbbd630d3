"""`fishernet data`: add | list | show. Rows stay in this node's store; the ledger gets counts and commitments."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.options import accepts_common, here, progress_console, table_of
from protocol.errors import Refused

_FORMATS = click.Choice(["jsonl", "csv", "parquet", "text", "document"])  # contrib.readers.FORMATS, not imported here


@click.group()
@accepts_common
def data() -> None:
    """Add private rows and list data sets; rows never leave this node."""


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, metavar="NAME", help="Which data set the rows belong to.")
@click.option("--format", "format_", type=_FORMATS, help="Format of the file.  [default: by its suffix]")
@click.option("--text-field", metavar="FIELD", help="Field that holds a plain text.  [default: text]")
@click.option("--prompt-field", metavar="FIELD", help="Field that holds a prompt.  [default: prompt]")
@click.option("--completion-field", metavar="FIELD", help="Field that holds its completion.  [default: completion]")
@click.option(
    "--held-out", type=click.FloatRange(0, 1), help="Part kept for measuring, never trained on.  [default: 0.1]"
)
@click.option("--append", "if_exists", flag_value="append", help="Add to a data set that is there.")
@click.option("--replace", "if_exists", flag_value="replace", help="Put these rows in its place.")
@accepts_common
def add(
    path: Path,
    dataset: str,
    format_: str | None,
    text_field: str | None,
    prompt_field: str | None,
    completion_field: str | None,
    held_out: float | None,
    if_exists: str | None,
) -> None:
    """Read a JSONL, CSV, Parquet or text file into the node's own store and commit to its rows in the ledger.

    A row is a `text`, a `prompt` with its `completion`, or chat `messages`. Equal rows count once. A file with one bad
    row is refused whole, and the message names the line.
    """
    from node.cli import render
    from node.cli.progress import working

    invocation = here()
    with working(f"reading {path.name}", progress_console()):
        result = invocation.ask(
            "data.add",
            path=str(path.expanduser().absolute()),
            dataset=dataset,
            format=format_,
            text_field=text_field,
            prompt_field=prompt_field,
            completion_field=completion_field,
            held_out_ppm=None if held_out is None else round(held_out * 1_000_000),
            if_exists=if_exists,
        )
    invocation.answer(result, render.dataset)


@data.command("list")
@accepts_common
def list_() -> None:
    """List the data sets with their counts and commitments."""
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("data.list"), render.datasets)


@data.command()
@click.argument("dataset", metavar="NAME")
@accepts_common
def show(dataset: str) -> None:
    """Show the counts and commitments of one data set in full."""
    from node.cli import render
    from node.config import nearest

    invocation = here()
    found = {str(each["name"]): each for each in table_of(invocation.ask("data.list")).get("datasets", [])}
    if dataset not in found:
        near = nearest(dataset, list(found))
        known = f"did you mean {near}?" if near else f"known are: {', '.join(found) or 'none'}"
        raise Refused(f"couldn't show data set {dataset}: there is none of this name; {known}")
    invocation.answer(found[dataset], render.dataset)
