"""`fishernet data`: add | list | show | forget | seal. Rows stay in this node's store; the ledger gets counts and commitments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME", help="Tag of every row, and declared in the ledger.  [repeatable]"
)
@click.option("--tag-field", metavar="FIELD", help="Field with more tags of its row; they stay on this node.")
@click.option(
    "--subject-field", metavar="FIELD", help="Field that says whom the row is about; kept as a keyed hash only."
)
@click.option(
    "--purpose", "purposes", multiple=True, metavar="NAME", help="What it may be for.  [default: model-improvement]"
)
@click.option("--licence", metavar="TEXT", help="Licence of the data.")
@click.option("--retention-days", type=click.IntRange(min=1), metavar="N", help="How long rows may be kept.")
@click.option("--basis", metavar="TEXT", help="Legal basis of the processing.")
@click.option("--no-grant", is_flag=True, help="Grant nothing: this node uses the data after a grant issue only.")
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
    tags: tuple[str, ...],
    tag_field: str | None,
    subject_field: str | None,
    purposes: tuple[str, ...],
    licence: str | None,
    retention_days: int | None,
    basis: str | None,
    no_grant: bool,
    if_exists: str | None,
) -> None:
    """Read a JSONL, CSV, Parquet or text file into the node's own store and commit to its rows in the ledger.

    A row is a `text`, a `prompt` with its `completion`, or chat `messages`. Equal rows count once. A file with one bad
    row is refused whole, and the message names the line. What is declared (tags, purposes, licence, retention, basis) goes
    into the ledger and must not name a person.
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
            tags=list(tags) or None,
            tag_field=tag_field,
            subject_field=subject_field,
            purposes=list(purposes) or None,
            licence=licence,
            retention_days=retention_days,
            basis=basis,
            grant=False if no_grant else None,
        )
    invocation.answer(result, render.dataset)


@data.command("list")
@accepts_common
def list_() -> None:
    """List the data sets with their counts and commitments."""
    from node.cli import render_data

    invocation = here()
    invocation.answer(invocation.ask("data.list"), render_data.datasets)


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


@data.command()
@click.argument("dataset", metavar="[NAME]", required=False)
@click.option(
    "--row", "rows", multiple=True, metavar="DIGEST", help="SHA-256 of a row's canonical bytes.  [repeatable]"
)
@click.option("--row-file", type=click.Path(path_type=Path), help="File with the rows to forget, as they were added.")
@click.option(
    "--subject", metavar="VALUE", help="Whom the rows are about; - asks for it, so that no shell remembers it."
)
@click.option("--expired", is_flag=True, help="Rows that are older than the retention of their data set.")
@click.option("--dry-run", is_flag=True, help="Only say what would be forgotten.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@accepts_common
def forget(
    dataset: str | None,
    rows: tuple[str, ...],
    row_file: Path | None,
    subject: str | None,
    expired: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete rows for ever, and ask everybody who holds the record of their use to erase it.

    Without NAME, in all data sets. Rows and salts are overwritten, the data set gets a new commitment, the contributions that
    were trained on the rows are marked. What a model learnt from them stays in it until it is trained again without them.
    """
    from node.cli import render_data

    invocation = here()
    if subject == "-":
        subject = str(click.prompt("Subject", hide_input=True, err=True))
    wanted: dict[str, Any] = {
        "dataset": dataset,
        "rows": list(rows) or None,
        "row_file": str(row_file.expanduser().absolute()) if row_file else None,
        "subject": subject,
        "expired": expired or None,
    }
    if not yes:
        counted = invocation.ask("data.forget", dry_run=True, **wanted)
        if dry_run:
            invocation.answer(counted, render_data.forgotten)
            return
        if invocation.json or not sys.stdin.isatty():
            raise Refused("couldn't forget rows: nobody can be asked here; say --yes, or --dry-run to look first")
        render_data.forgotten(progress_console(), table_of(counted))
        click.confirm("Forget them? This cannot be undone.", abort=True, err=True)
    invocation.answer(invocation.ask("data.forget", dry_run=dry_run or None, **wanted), render_data.forgotten)


@data.command()
@accepts_common
def seal() -> None:
    """Encrypt the rows of this node at rest, with a key that its passphrase opens.

    A node that was made with a passphrase seals its rows from the start. Names of data sets, counts and dates stay readable.
    """
    from node.cli import render

    invocation = here()
    invocation.answer(invocation.ask("data.seal"), render.done)
