"""What `fishernet audit` does beside the audit itself: which form the answer takes, where it goes, and the exit code.

Knows no rule. Invariant: the exit code says the verdict whatever the form; a report is written whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from node.cli import render_audit
from node.cli.options import Invocation, table_of
from protocol.canon import Json

_CODES: Final = {"clean": 0, "findings": 1}  # any other verdict: it could not be checked
_ENDINGS: Final = {".html": "html", ".htm": "html", ".json": "json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of `fishernet audit`."""

    format: str | None
    out: Path | None
    strict: bool
    records: bool


def audit(invocation: Invocation, wanted: Wanted) -> int:
    """Audit, show or write the answer; returns the exit code."""
    form = wanted.format or (_ENDINGS.get(wanted.out.suffix.lower(), "terminal") if wanted.out else None)
    form = form or ("json" if invocation.json else "terminal")
    if wanted.records and form == "html":
        raise click.UsageError("--records goes to the terminal or to JSON; the HTML report contains them")
    result = table_of(invocation.ask("audit", strict=wanted.strict or None, report=form == "html" or None))
    shown: Json = {"records": result.get("records")} if wanted.records else result
    show = render_audit.records if wanted.records else render_audit.audit
    if form == "terminal" and wanted.out is None:
        invocation.answer(shown, show)
        return code_of(result)
    if form == "html":
        from node.audits.report import html

        text = html(result)
    elif form == "json":
        text = json.dumps(shown, ensure_ascii=False, indent=1) + "\n"
    else:
        text = render_audit.plain(show, table_of(shown))
    _write(wanted.out, text)
    if wanted.out is not None and not invocation.json:
        click.echo(f"{result.get('verdict')}: the report is in {wanted.out}")
    return code_of(result)


def list_rules(invocation: Invocation) -> int:
    """Show every compliance rule."""
    from node.audits import auditing

    invocation.answer(auditing.rules(), render_audit.rules)
    return 0


def code_of(result: Json) -> int:
    """0 clean, 1 findings, 2 could not check."""
    return _CODES.get(str(table_of(result).get("verdict")), 2)


def _write(path: Path | None, text: str) -> None:
    if path is None:
        click.echo(text, nl=False)
        return
    from node.files import write_new

    write_new(path, text.encode("utf-8"))
