"""Results of the audit for people: the verdict first, then what was found, then what was looked at.

Knows the shapes below and nothing else; a missing key shows as a dash. Texts are foreign: each is made safe for a terminal.

    audit    {verdict: clean | findings | could-not-check, collective, name, as_of, feeds: [{member, name, size, root}],
              unchecked: [text], findings: [{id, case, severity: error | warning | notice, member, seq, event,
              evidence: [event or digest], text, advice}],
              releases: [{height, number, digest, model, recomputed, matches, superseded}],
              records: [{member, controller, dataset, tags, columns, purposes, retention_days, licence, basis, recipients,
              recipient_roles, activities, uses, denied, first_ms, last_ms, erasures, rows: [train, held out]}]}
    rules    {rules: [{id, title, promise, advice, severities}]}
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

from rich.console import Console

from node.cli.render import DASH, Column, Result, brief, cell, facts, moment, table, text, who

_SEVERITIES: Final = {"error": "red", "warning": "yellow", "notice": "dim"}
_VERDICTS: Final = {"clean": "green", "findings": "red", "could-not-check": "yellow"}


def audit(out: Console, result: Result) -> None:
    """The verdict first, then every finding with its sentence, its entry and what to do."""
    verdict = str(result.get("verdict"))
    feeds, releases = result.get("feeds") or [], result.get("releases") or []
    found = result.get("findings") or []
    counts = [(n, sum(f.get("severity") == n for f in found)) for n in _SEVERITIES]
    said = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts if count)
    out.print(
        f"[bold {_VERDICTS.get(verdict, 'yellow')}]{verdict}[/]: {len(feeds)} feeds, {len(releases)} releases"
        + (f"; {said}" if said else "")
    )
    for each in found:
        colour = _SEVERITIES.get(str(each.get("severity")), "default")
        case = f" {text(each['case'])}" if each.get("case") else ""
        out.print(f"[{colour}]{text(each.get('severity'))} {text(each.get('id'))}[/]{case}: {text(each.get('text'))}")
        if each.get("member"):
            out.print(f"  [dim]entry[/] {brief(each['member'])} #{text(each.get('seq'))} {brief(each.get('event'))}")
        if each.get("advice"):
            out.print(f"  [dim]{text(each['advice'])}[/]")
    for each in result.get("unchecked") or []:
        out.print(f"[yellow]not checked:[/] {text(each)}")
    table(out, "Feeds", feeds, [("member", who), ("events", cell("size")), ("head", cell("root", brief))])
    table(
        out,
        "Releases",
        releases,
        [
            ("height", cell("height")),
            ("digest", cell("digest")),
            ("recomputed", lambda r: "yes" if r.get("recomputed") else _gone(r)),
            ("matches", cell("matches", lambda v: "[green]yes[/]" if v else "[red]no[/]" if v is False else DASH)),
        ],
    )


def _gone(release: Result) -> str:
    return "superseded" if release.get("superseded") else "[yellow]no[/]"


def rules(out: Console, result: Result) -> None:
    """The compliance rules: what each promises."""
    columns: list[Column] = [("rule", cell("id")), ("is broken by", cell("title")), ("promise", cell("promise"))]
    table(out, "", result.get("rules") or [], columns)


def records(out: Console, result: Result) -> None:
    """The records of processing activities (GDPR article 30), one block for each data set."""
    found = result.get("records") or []
    if not found:
        out.print("[dim]no data set is described in the feeds that are here[/]")
    for each in found:
        out.print(
            f"[bold]{text(each.get('dataset'))}[/] of {text(each.get('controller'))} [dim]{brief(each.get('member'))}[/]"
        )
        to = [*(each.get("recipients") or []), *(each.get("recipient_roles") or [])]
        days, rows = each.get("retention_days"), each.get("rows") or []
        facts(
            out,
            [
                ("purposes", text(", ".join(each.get("purposes") or []))),
                ("categories", text(", ".join([*(each.get("tags") or []), *(each.get("columns") or [])]))),
                ("recipients", text(", ".join(map(str, to)))),
                ("legal basis", text(each.get("basis"))),
                ("licence", text(each.get("licence"))),
                ("retention", f"{text(days)} days" if days is not None else DASH),
                ("rows", text(" to train, ".join(map(str, rows)) + " held out" if rows else None)),
                ("used to", text(", ".join(each.get("activities") or []))),
                ("uses", f"{text(each.get('uses'))}, {text(each.get('denied'))} refused"),
                ("from, to", f"{moment(each.get('first_ms'))}, {moment(each.get('last_ms'))}"),
                ("erasures", text(each.get("erasures"))),
            ],
        )


def plain(show: Callable[[Console, Result], None], result: Result) -> str:
    """The same as plain text, for a file."""
    out = Console(file=io.StringIO(), width=160, highlight=False)
    show(out, result)
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]
