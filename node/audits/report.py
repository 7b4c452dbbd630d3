"""The audit as one HTML file that can be sent by mail and read anywhere: no script, no font, no picture from outside.

Takes the answer of `node.audits.auditing` (shape: cli/render_audit.py) and nothing else. Every text in it is foreign and is
escaped; a policy in the page forbids scripts and any connection. Invariant: the same answer gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

from ledger.compliance.rules import RULES

Answer: TypeAlias = Mapping[str, Any]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_VERDICTS: Final = {
    "clean": ("Clean", "Every feed that is here is what its author signed, every release is what its contributions give, and "
              "no compliance rule was broken."),
    "findings": ("Findings", "Something is not as it should be. Each finding below says what, who wrote it, how it is proven, "
                 "and what to do."),
    "could-not-check": ("Could not check everything", "Nothing wrong was found in what is here, but something that is needed "
                        "is not here. This is not a clean result."),
}  # fmt: skip
_MATTERS: Final = (
    ("grant", "permissions", ("grant.", "data.described", "egress.")),
    ("data", "access to data", ("data.", "access.")),
    ("erase", "erasure", ("erasure.",)),
    ("model", "contributions and models", ("contribution.", "model.")),
    ("vote", "votes and releases", ("vote.", "release.", "gate.", "amendment.", "charter.")),
    ("witness", "witnessing and heartbeats", ("head.", "node.alive")),
    ("other", "keys and others", ("",)),
)
_LEFT, _WIDTH, _LANE, _TOP = 130, 1000, 34, 10


def html(answer: Answer) -> str:
    """The whole page."""
    name = answer.get("name") or str(answer.get("collective", ""))[:12]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    parts = [
        _heading(answer, str(name)),
        _findings(answer),
        _unchecked(answer.get("unchecked") or []),
        _timeline(answer),
        _releases(answer.get("releases") or []),
        _feeds(answer.get("feeds") or []),
        _records(answer.get("records") or [], _names(answer)),
        _rules(answer),
        _FOOTER,
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Audit of {_safe(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


_FOOTER: Final = (
    "<footer><p>How to check this report: copy the ledger and the blobs of any member, and run <code>fishernet audit</code> on "
    "the copy. It needs no key and no network, and trusts signatures and hashes only. An entry is named by its member, its "
    "number in that member's feed and the id of its event; <code>fishernet prove</code> writes a proof for one.</p></footer>"
)


# -- parts ---------------------------------------------------------------------------------------------------------------
def _heading(answer: Answer, name: str) -> str:
    verdict = str(answer.get("verdict"))
    title, sentence = _VERDICTS.get(verdict, _VERDICTS["could-not-check"])
    found = answer.get("findings") or []
    releases = answer.get("releases") or []
    numbers = [
        (len(answer.get("feeds") or []), "feeds"),
        (sum(f.get("size") or 0 for f in answer.get("feeds") or []), "entries"),
        (f"{sum(bool(r.get('recomputed')) for r in releases)} / {len(releases)}", "releases recomputed"),
        *((sum(f.get("severity") == s for f in found), f"{s}s") for s in ("error", "warning", "notice")),
    ]
    cells = "".join(f"<li><b>{_safe(value)}</b>{_safe(label)}</li>" for value, label in numbers)
    mark = verdict if verdict in _VERDICTS else "could-not-check"
    return (
        f"<h1>Audit of {_safe(name)}</h1>\n"
        f'<p class="meta">Collective <code>{_safe(answer.get("collective"))}</code><br>'
        f"The record stands at {_when(answer.get('as_of'))}.</p>\n"
        f'<div class="verdict {mark}"><strong>{title}</strong>{sentence}</div>\n<ul class="numbers">{cells}</ul>'
    )


def _findings(answer: Answer) -> str:
    found = answer.get("findings") or []
    if not found:
        return ""
    names = _names(answer)
    return "<h2>Findings</h2>\n" + "\n".join(_finding(each, names) for each in found)


def _finding(each: Answer, names: Mapping[str, str]) -> str:
    severity = str(each.get("severity"))
    mark = severity if severity in {"error", "warning", "notice"} else "notice"
    rule = RULES.get(str(each.get("id")))
    title = rule.title if rule else str(each.get("id")).replace("-", " ").capitalize()
    member = each.get("member")
    place = ""
    if member:
        seq = "" if each.get("seq") is None else f", entry {_safe(each['seq'])}"
        place = f'<p class="meta">{_safe(names.get(str(member), ""))} <code>{_safe(member)}</code>{seq}</p>'
    advice = f"<p><b>What to do:</b> {_safe(each['advice'])}</p>" if each.get("advice") else ""
    evidence = "".join(f"<li><code>{_safe(e)}</code></li>" for e in each.get("evidence") or [])
    proof = f"<details><summary>Evidence</summary><ul>{evidence}</ul></details>" if evidence else ""
    case = f" <span class='soft'>({_safe(each['case'])})</span>" if each.get("case") else ""
    return (
        f'<div class="card finding {mark}"><h3><span class="badge {mark}">{_safe(each.get("id"))} {mark}</span>'
        f"{_safe(title)}{case}</h3>"
        f"<p>{_safe(each.get('text'))}</p>{advice}{place}{proof}</div>"
    )


def _unchecked(texts: Sequence[object]) -> str:
    if not texts:
        return ""
    return (
        '<h2>Not checked</h2>\n<div class="card"><ul>' + "".join(f"<li>{_safe(t)}</li>" for t in texts) + "</ul></div>"
    )


def _timeline(answer: Answer) -> str:
    line = answer.get("timeline")
    if not line or not line.get("lanes"):
        return ""
    lanes, bins = line["lanes"], line["bins"]
    step = (_WIDTH - _LEFT - 10) / bins
    height = _TOP + _LANE * len(lanes) + 26
    highest = max((n for lane in lanes for n in _heights(lane).values()), default=1)
    marks = _marked(answer, line)
    drawn = []
    for number, lane in enumerate(lanes):
        top = _TOP + number * _LANE
        drawn.append(
            f'<rect class="lane" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 10}" height="{_LANE - 8}" rx="4"/>'
        )
        name = lane.get("name") or lane["member"][:12]
        drawn.append(
            f'<text class="name" x="{_LEFT - 10}" y="{top + 17}" text-anchor="end">{_safe(_cut(str(name), 15))}</text>'
        )
        drawn += _bars(lane, top, step, highest)
    for number, lane in enumerate(lanes):
        top = _TOP + number * _LANE + _LANE - 8
        for place, severity, title in marks.get(lane["member"], []):
            x = _LEFT + (place + 0.5) * step
            points = f"{x - 6:.1f},{top + 5} {x + 6:.1f},{top + 5} {x:.1f},{top - 6}"
            drawn.append(f'<polygon class="mark-{severity}" points="{points}"><title>{_safe(title)}</title></polygon>')
    base = _TOP + _LANE * len(lanes) + 14
    for place, ms in line.get("pauses") or []:
        x = _LEFT + (place + 0.5) * step
        drawn.append(
            f'<line class="pause" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base - 20}">'
            f"<title>{_long(ms)} without entries</title></line>"
        )
    drawn.append(f'<text x="{_LEFT}" y="{base}">{_when(line.get("first"))}</text>')
    drawn.append(f'<text x="{_WIDTH - 10}" y="{base}" text-anchor="end">{_when(line.get("last"))}</text>')
    legend = "".join(
        f'<li><svg viewBox="0 0 11 11" aria-hidden="true"><rect class="{css}" width="11" height="11" rx="2"/></svg>{label}</li>'
        for css, label, _ in _MATTERS
    )
    legend += "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><polygon class="mark-{s}" points="0,11 12,11 6,0"/></svg>{label}</li>'
        for s, label in (("error", "an error"), ("warning", "a warning"))
    )
    if line.get("pauses"):
        legend += (
            '<li><svg viewBox="0 0 12 12" aria-hidden="true"><line class="pause" x1="6" x2="6" y1="0" y2="12"/></svg>'
            "a pause, drawn shorter than it was</li>"
        )
    return (
        f'<h2>What was written when</h2>\n<div class="card"><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Entries of every member over time">{"".join(drawn)}</svg><ul class="legend">{legend}</ul></div>'
    )


def _bars(lane: Answer, top: int, step: float, highest: int) -> Iterable[str]:
    """A bar for each matter in each bin, stacked from the bottom of the lane."""
    room = _LANE - 12
    filled: dict[int, float] = {}
    for css, label, _ in _MATTERS:
        counts: dict[int, int] = {}
        for place, type_, count in lane["marks"]:
            if _matter(str(type_)) == css:
                counts[place] = counts.get(place, 0) + count
        for place, count in sorted(counts.items()):
            tall = max(2.0, room * count / highest)
            below = filled.get(place, 0.0)
            filled[place] = below + tall
            x, y = _LEFT + place * step, top + _LANE - 9 - below - tall
            yield (
                f'<rect class="{css}" x="{x:.1f}" y="{max(y, top):.1f}" width="{max(step - 0.6, 1.6):.1f}" height="{tall:.1f}">'
                f"<title>{count} {label}</title></rect>"
            )


def _heights(lane: Answer) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, _type, count in lane["marks"]:
        found[place] = found.get(place, 0) + count
    return found


def _marked(answer: Answer, line: Answer) -> dict[str, list[tuple[int, str, str]]]:
    """Per member: the bin, severity and title of every error and warning at one of its entries."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for each in answer.get("findings") or []:
        place = line["places"].get(each.get("event"))
        if place is not None and each.get("severity") in {"error", "warning"}:
            title = f"{each.get('id')}: {each.get('text')}"
            found.setdefault(str(each.get("member")), []).append((place, str(each["severity"]), title))
    return found


def _releases(releases: Sequence[Answer]) -> str:
    rows = []
    for each in releases:
        if each.get("superseded"):
            state = '<span class="badge">superseded, can\'t be recomputed</span>'
        elif not each.get("recomputed"):
            state = '<span class="badge warning">not recomputed</span>'
        elif each.get("matches"):
            state = '<span class="badge good">recomputed, the same</span>'
        else:
            state = '<span class="badge error">recomputed, different</span>'
        rows.append(
            [_safe(each.get("number")), _safe(each.get("height")), f"<code>{_safe(each.get('digest'))}</code>", state]
        )
    return _section("Releases", ["release", "height", "digest", "from its contributions"], rows)


def _feeds(feeds: Sequence[Answer]) -> str:
    rows = [
        [
            _safe(f.get("name")) or "-",
            f"<code>{_safe(f.get('member'))}</code>",
            _safe(f.get("size")),
            f"<code>{_safe(f.get('root'))}</code>",
        ]
        for f in feeds
    ]
    return _section("Feeds", ["member", "id", "entries", "signed root"], rows)


def _records(records: Sequence[Answer], names: Mapping[str, str]) -> str:
    rows = []
    for each in records:
        to = [names.get(m) or str(m)[:12] for m in each.get("recipients") or []] + (each.get("recipient_roles") or [])
        days = each.get("retention_days")
        kept = f"{days} days" if days is not None else "not stated"
        span = f"{_when(each.get('first_ms'))} to {_when(each.get('last_ms'))}" if each.get("first_ms") else "never"
        rows.append(
            [
                f"<b>{_safe(each.get('dataset'))}</b><br>{_safe(each.get('controller'))}",
                _listed(each.get("purposes")),
                _listed([*(each.get("tags") or []), *(each.get("columns") or [])]),
                _listed(to),
                _safe(each.get("basis") or "not stated"),
                _safe(kept),
                f"{_safe(each.get('uses'))} uses, {_safe(each.get('denied'))} refused, {_safe(each.get('erasures'))} erasures<br>"
                f"<span class='soft'>{span}</span>",
            ]
        )
    columns = ["data set, controller", "purposes", "categories", "recipients", "legal basis", "kept for", "activity"]
    return _section("Records of processing activities (GDPR article 30)", columns, rows)


def _rules(answer: Answer) -> str:
    held = "held" if not answer.get("unchecked") else "held, as far as could be checked"
    broken = {f.get("id") for f in answer.get("findings") or [] if f.get("severity") != "notice"}
    rows = [
        [
            f"<b>{rule.id}</b>",
            f"{_safe(rule.title)}<br><span class='soft'>{_safe(rule.promise)}</span>",
            '<span class="badge error">see above</span>'
            if rule.id in broken
            else f'<span class="badge good">{held}</span>',
        ]
        for rule in RULES.values()
    ]
    return _section("The rules that were checked", ["rule", "is broken by, and what it promises", "result"], rows)


# -- pieces --------------------------------------------------------------------------------------------------------------
def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under a heading; cells are HTML already."""
    if not rows:
        return ""
    head = "".join(f"<th>{_safe(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>{_safe(title)}</h2>\n<div class="card scroll">{table}</div>'


def _matter(type_: str) -> str:
    return next(css for css, _, starts in _MATTERS if type_.startswith(starts))


def _names(answer: Answer) -> dict[str, str]:
    return {str(f.get("member")): str(f.get("name") or "") for f in answer.get("feeds") or []}


def _listed(values: Iterable[object] | None) -> str:
    return ", ".join(_safe(v) for v in values or []) or "not stated"


def _safe(value: object) -> str:
    """Foreign text for a page: escaped, and without characters that hide or turn other text around."""
    text = "" if value is None else str(value)
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def _long(ms: int) -> str:
    return f"{ms / 86_400_000:.1f} days" if ms > 86_400_000 else f"{ms / 3_600_000:.1f} hours"


def _when(ms: object) -> str:
    if not isinstance(ms, int):
        return "-"
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
