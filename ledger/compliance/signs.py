"""What the feeds show about each other beside the compliance rules: contradictions, gaps, clocks, weak salts, secrets.

Pure reading of the facts. Invariant: what may still be on its way is never called a fault, and never called clean.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ledger.compliance.facts import Facts
from ledger.seen import SKEW_MS, contradictions
from protocol.canon import MAX_INT
from protocol.ids import EventId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One thing that was noticed at an entry; `unchecked`: it does not say what is wrong, only that something is not here."""

    id: str
    severity: str
    member: MemberId
    seq: int
    event: EventId
    evidence: tuple[str, ...]
    text: str
    unchecked: bool = False


_QUERIES: Final = {
    "time-in-the-future": (
        "warning",
        "SELECT member, seq, event, json_array(event), 'it claims a time ' || ((ts - first) / 1000) || ' s after another member"
        " had witnessed it' FROM (SELECT e.*, (SELECT c.time FROM earliest c WHERE c.of = e.member AND c.size > e.seq"
        " ORDER BY c.size LIMIT 1) AS first FROM entries e), grace WHERE ts > first + clock",
    ),
    "withheld": (
        "warning",
        "SELECT member, seq, event, json_array(event), 'its content is not here, and no request to erase it is on record'"
        " FROM entries WHERE NOT held AND type IN ('data.used', 'access.decided')"
        " AND event NOT IN (SELECT x.entry FROM erased_entries x JOIN erasures r ON r.event = x.request"
        " WHERE r.member = entries.member) AND NOT EXISTS (SELECT 1 FROM lacking)",
    ),
    "salt-reused": (
        "warning",
        "SELECT e.member, e.seq, e.event, json_array(e.event, o.event), 'its content is salted like that of another entry'"
        " FROM salts s JOIN salts b USING (salt) JOIN entries e ON e.event = s.event JOIN entries o ON o.event = b.event"
        " WHERE (o.member, o.seq) < (e.member, e.seq) GROUP BY e.event"
        " UNION ALL SELECT e.member, e.seq, e.event, json_array(e.event), 'its content is not salted' FROM salts s"
        " JOIN entries e USING (event) WHERE s.salt = zeroblob(16)",
    ),
    "secret-in-feed": (
        "error",
        "SELECT member, seq, event, json_array(event), text FROM marks WHERE id = 'secret-in-feed'",
    ),
    "personal-data": (
        "warning",
        "SELECT member, seq, event, json_array(event), text FROM marks WHERE id = 'personal-data'",
    ),
}
_SEVERITIES: Final = {
    "seen-branch": "error",
    "seen-missing": "notice",
    "seen-backwards": "warning",
    "seen-stranger": "warning",
    "seen-later": "warning",
    "ts-backwards": "notice",
    "ts-future": "warning",
}


def signs(facts: Facts) -> Iterator[Sign]:
    """Everything noticed in contents, cosignatures and salts."""
    for id_, (severity, sql) in _QUERIES.items():
        for member, seq, event, evidence, text in facts.database.execute(sql + " ORDER BY 1, 2"):
            found = tuple(json.loads(evidence))
            yield Sign(id=id_, severity=severity, member=member, seq=seq, event=event, evidence=found, text=text)


def links(
    facts: Facts, members: Collection[MemberId] | None, longest: Mapping[MemberId, int], now_ms: int | None
) -> Iterator[Sign]:
    """What the links between feeds contradict (`ledger.seen`); `now_ms` is the auditor's clock, None to ask none.

    An entry that somebody saw and that is not here is told once for its feed, and is a notice while it may still be on its
    way. A clock that was put right by less than two honest clocks may differ is nothing.
    """
    (as_of,) = facts.database.execute("SELECT as_of FROM moment").fetchone()
    found = contradictions(facts.links, now_ms=MAX_INT if now_ms is None else now_ms, members=members, longest=longest)
    furthest = {c.about: c for c in sorted(found, key=lambda c: c.at) if c.code == "seen-missing"}
    for each in found:
        feed = facts.links[each.author]
        ts = feed[each.seq].header.ts
        if each.code == "ts-backwards" and feed[each.at].header.ts - ts <= SKEW_MS:
            continue
        if each.code == "seen-missing" and furthest[each.about] is not each:
            continue
        events = [facts.event_at(each.author, each.seq), facts.event_at(each.about, each.at)]
        yield Sign(
            id=each.code,
            severity=_SEVERITIES[each.code],
            member=each.author,
            seq=each.seq,
            event=EventId(events[0] or ""),
            evidence=tuple(dict.fromkeys(e for e in events if e)),
            text=each.text,
            unchecked=each.code == "seen-missing" and as_of - ts > SKEW_MS,
        )
