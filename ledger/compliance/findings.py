"""Runs the rules over the facts: each row of a view becomes a finding with its evidence and a sentence.

Pure reading; knows no store. Invariant: a finding names an entry that is in the facts, and its evidence can be looked up.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ledger.compliance.facts import Facts
from ledger.compliance.rules import RULES, Rule
from protocol.ids import EventId, MemberId

_SHORT: Final = frozenset({"grant", "model", "signed"})
_WHO: Final = frozenset({"who", "owner"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that was broken at an entry. `case` says how; `evidence` are event ids and digests, the entry's own first."""

    rule: Rule
    case: str
    severity: str
    member: MemberId
    seq: int
    event: EventId
    evidence: tuple[str, ...]
    text: str


def find(facts: Facts) -> Iterator[Finding]:
    """Every finding of every rule, by rule, member and entry."""
    names = dict(facts.database.execute("SELECT member, name FROM seats ORDER BY height").fetchall())
    for rule in RULES.values():
        sql = f"SELECT what, member, seq, event, evidence, facts FROM {rule.id} ORDER BY member, seq, what, facts"  # noqa: S608
        for what, member, seq, event, evidence, known in facts.database.execute(sql):
            case = rule.cases[what]
            yield Finding(
                rule=rule,
                case=what,
                severity=case.severity,
                member=member,
                seq=seq,
                event=event,
                evidence=tuple(dict.fromkeys(_flat(json.loads(evidence)))),
                text=case.text.format_map({"member": _name(names, member), **_said(json.loads(known), names)}),
            )


def records(facts: Facts) -> list[dict[str, Any]]:
    """The records of processing activities (GDPR article 30), one for each data set that was described."""
    database = facts.database
    found = database.execute("SELECT * FROM records ORDER BY controller, member, dataset")
    columns = [column[0] for column in found.description]
    lists = {"tags", "columns", "purposes", "recipients", "recipient_roles", "activities", "rows"}
    return [
        {
            name: json.loads(value) if name in lists and value is not None else value
            for name, value in zip(columns, row, strict=True)
        }
        for row in found
    ]


def moment(facts: Facts) -> int:
    """The time (ms) at which these facts stand; deadlines are measured against it, never against the auditor's clock."""
    row: sqlite3.Row | tuple[int] = facts.database.execute("SELECT as_of FROM moment").fetchone()
    return int(row[0])


def timeline(facts: Facts, bins: int, marked: Iterable[str]) -> dict[str, Any]:
    """How many entries of which type each member wrote when, in `bins` parts of the time, and where `marked` events lie.

    A pause of more than a thirtieth of the whole time is drawn that long and listed in `pauses` as [bin, ms].
    """
    database = facts.database
    names = dict(database.execute("SELECT member, name FROM seats ORDER BY height").fetchall())
    times = [row[0] for row in database.execute("SELECT DISTINCT ts FROM entries ORDER BY ts")]
    longest = max(1, (times[-1] - times[0]) // 30) if times else 1
    at, places, long = 0, {}, []
    for before, ts in zip(times[:1] + times, times, strict=False):
        if ts - before > longest:
            long.append((at + longest // 2, ts - before))
        at += min(ts - before, longest)
        places[ts] = at
    width = -(-(at + 1) // bins)
    counts: Counter[tuple[str, int, str]] = Counter()
    for member, ts, type_ in database.execute("SELECT member, ts, type FROM entries"):
        counts[member, places[ts] // width, type_] += 1
    lanes: dict[str, dict[str, Any]] = {}
    for (member, place, type_), count in sorted(counts.items()):
        lane = lanes.setdefault(member, {"member": member, "name": _name(names, member), "marks": []})
        lane["marks"].append([place, type_, count])
    found = {}
    for event in marked:
        row = database.execute("SELECT ts FROM entries WHERE event = ?", (event,)).fetchone()
        if row:
            found[event] = places[row[0]] // width
    return {
        "first": times[0] if times else 0,
        "last": times[-1] if times else 0,
        "bins": bins,
        "lanes": list(lanes.values()),
        "places": found,
        "pauses": [[place // width, ms] for place, ms in long],
    }


def _said(known: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """What a sentence names, in a form for people: times, short ids, names."""
    said = {}
    for key, value in known.items():
        if key.endswith("_ms"):
            said[key.removesuffix("_ms")] = "never" if value is None else _time(value)
        elif key.endswith("_micro"):
            said[key.removesuffix("_micro")] = f"{value / 1_000_000:g}"
        elif key == "dataset" and value[64:65] == "/":
            said[key] = f"{value[65:]} of {_name(names, value[:64])}"
        elif key in _WHO:
            said[key] = _name(names, str(value))
        elif key in _SHORT:
            said[key] = str(value)[:12]
        else:
            said[key] = "none" if value in {None, ""} else str(value)
    return said


def _name(names: Mapping[str, str], member: str) -> str:
    return names.get(member) or member[:12]


def _time(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def _flat(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        elif value is not None:
            yield str(value)
