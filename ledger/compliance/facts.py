"""Fills an in-memory database with what verified feeds say, so that rules are plain SQL over it.

Takes records whose signatures, places and commitments were checked (`ledger.audit`), and the fold for what was decided. Knows
no blobs, no clock and no rule: what was recomputed elsewhere comes in as rows. Law: the same set of entries gives the same
facts, in whatever order the feeds come. A body that does not read is left out here; the fold flags it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ledger import events, forgetting, rules
from ledger.collective import Collective
from ledger.compliance.past import Causality
from ledger.compliance.privacy import signs
from ledger.cuts import Cut
from ledger.entry import Body, Record
from ledger.facts import Decision
from ledger.seen import Link
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

_Body = Mapping[str, Any]
_Place = tuple[EventId, MemberId, int]
_FOLDER = Path(__file__).parent
_MINUTE, _DAY = 60_000, 86_400_000
GRACE: Final = {
    "clock": 10 * _MINUTE,  # two honest clocks may differ by this
    "silence": 30 * _MINUTE,  # three heartbeats
    "answer": _DAY,  # a contribution is recorded by somebody, an allowed access happens
    "acceptance": 7 * _DAY,  # a grant to another member is accepted
    "removal": _DAY,  # after a deadline: the release without a contribution is made and served
}
"""What an honest but slow member may take (ms) before something that is missing is told."""

_COMPARED: Final = frozenset(
    {
        "access.decided", "contribution.published", "data.used", "erasure.requested", "grant.issued", "grant.narrowed",
        "grant.revoked", "model.served", "release.proposed",
    }
)  # fmt: skip
"""Types whose causal past some rule asks for."""


_MADE: Final = (_FOLDER / "made.sql").read_text(encoding="utf-8")
_SEEN_ELSEWHERE: Final = (
    "INSERT INTO lacking SELECT s.of, max(s.at) + 1 FROM seen s GROUP BY s.of"
    " HAVING max(s.at) >= coalesce((SELECT max(seq) + 1 FROM entries e WHERE e.member = s.of), 0)"
)


def empty() -> sqlite3.Connection:
    """A database in memory with the tables and the views, and nothing in them."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    for script in ("tables.sql", "views.sql"):
        database.executescript((_FOLDER / script).read_text(encoding="utf-8"))
    return database


class Facts:
    """The tables of `tables.sql`, being filled: `add` records, then `settle` once."""

    def __init__(self, database: sqlite3.Connection | None = None) -> None:
        """Fill `database`, an `empty` one that nobody else writes; None: a new one."""
        self.database = empty() if database is None else database
        if not self.database.in_transaction:
            self.database.execute("BEGIN")  # never committed: nothing of it is kept
        self.causality = Causality()
        self.links: dict[MemberId, list[Link]] = {}
        self.decided: list[tuple[_Place, events.AccessDecided]] = []

    def close(self) -> None:
        """Forget everything."""
        self.database.close()

    def add(self, records: Iterable[Record]) -> None:
        """Take the next entries of one feed."""
        for record in records:
            entry = record.entry
            header = entry.header
            self.causality.add(entry, wanted=header.type in _COMPARED)
            row = (entry.event, header.member, header.seq, header.type, header.ts, entry.leaf, record.body is not None)
            self._put("entries", *row)
            self.links.setdefault(header.member, []).append(Link(header=header, leaf=entry.leaf))
            for link in header.seen:
                self._put("seen", entry.event, link.member, link.seq, link.leaf)
            if record.body is not None:
                self._put("salts", record.body.salt, entry.event)
                for sign in signs(header.type, record.body):
                    self._put("marks", entry.event, header.member, header.seq, sign.id, sign.text)
                if header.type in _TAKERS:
                    self._take(record, record.body)

    def settle(self, fold: Collective) -> None:
        """Add what follows from all entries together: charters, decisions, the causal past, the newest time."""
        for past in self.causality.pasts():
            rows = ((past.event, m, past.known.get(m, 0), n) for m, n in past.before.items())
            self.database.executemany("INSERT INTO past VALUES (?, ?, ?, ?)", rows)
        for height, charter in enumerate(fold.charters, 1):
            whole: Any = charter.to_json()
            needed = (whole.get("witness") or {}).get("cosignatures", 0)
            self._put("charters", height, charter.digest, charter.quorum, len(charter.voters), needed)
            for seat in whole["members"]:
                organisation = seat.get("organisation") or seat["name"]
                self._put("seats", height, seat["id"], seat["name"], seat["role"], organisation)
        keys = {row[0] for row in self.database.execute("SELECT member FROM entries UNION SELECT member FROM seats")}
        for member in sorted(keys | fold.ever_members()):
            self._put("who", member, fold.owner(member))
        for decision in fold.releases:
            if isinstance(decision.value, Cut):
                self._release(fold, decision, decision.value)
        for event, told in forgetting.decided(fold, fold.height).items():
            self._put("forgettings", told.proposal, event, max(told.deadline, told.ts), told.height)
        for feed in fold.witnesses.cosigned:
            for item in fold.witnesses.covering(feed, -1):
                source, said = item.source, item.cosignature
                place = (source.event, source.member, source.seq)
                self._put("cosignatures", *place, said.member, said.size, min(said.time, 1 << 43) * 1000)
        for contribution in (c for published in fold.contributions.values() for c in published):
            values = (fold.fate(contribution), contribution.event)
            self.database.execute("UPDATE contributions SET fate = ? WHERE event = ?", values)
        self.database.execute("DELETE FROM contributions WHERE fate IS NULL")  # the fold refused it, and has said why
        self.database.execute(_SEEN_ELSEWHERE)
        for source in fold.withheld:
            self.lacks(source.member, source.seq + 1)
        for statement in _MADE.split(";\n"):
            self.database.execute(statement)
        self._put("grace", *(GRACE[name] for name in ("clock", "silence", "answer", "acceptance", "removal")))
        self._put("moment", self._newest(fold))

    def erased(self) -> set[EventId]:
        """Entries whose bodies their own author asked to have erased."""
        sql = (
            "SELECT x.entry FROM erased_entries x JOIN erasures r ON r.event = x.request"
            " JOIN entries e ON e.event = x.entry AND e.member = r.member"
        )
        return {row[0] for row in self.database.execute(sql)}

    def event_at(self, member: MemberId, seq: int) -> EventId | None:
        """The event of an entry that is here."""
        row = self.database.execute("SELECT event FROM entries WHERE member = ? AND seq = ?", (member, seq)).fetchone()
        return None if row is None else EventId(row[0])

    def first_of(self, type_: str) -> _Place:
        """The first entry of a type, by member id."""
        sql = "SELECT event, member, seq FROM entries WHERE type = ? ORDER BY member, seq LIMIT 1"
        event, member, seq = self.database.execute(sql, (type_,)).fetchone()
        return event, member, seq

    def forgotten(self) -> set[EventId]:
        """Contributions that their own author asked to have removed."""
        sql = (
            "SELECT x.contribution FROM erased_contributions x JOIN erasures e ON e.event = x.request"
            " JOIN contributions c ON c.event = x.contribution AND c.member = e.member"
        )
        return {row[0] for row in self.database.execute(sql)}

    def lacks(self, member: MemberId, size: int) -> None:
        """Entries of a feed up to `size` are known to exist, and are not here."""
        self._put("lacking", member, size)

    def partial(self) -> bool:
        """Whether entries or contents are known to exist that are not here."""
        return self.database.execute("SELECT 1 FROM lacking").fetchone() is not None

    def recomputed(self, decision: EventId, verdict: str, reasons: Iterable[str], policy: Digest | None) -> None:
        """What a decision comes to when its inputs are decided on again, and the egress policy in force then."""
        self._put("recomputed", decision, verdict, _listed(reasons), policy)

    def replayed(self, release: Digest, model: Digest | None, *, matches: bool) -> None:
        """What a release comes to when its blobs are merged again."""
        self._put("replays", release, model, matches)

    def _put(self, table: str, *values: object) -> None:
        marks = ", ".join("?" * len(values))
        self.database.execute(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608 - table names are ours

    def _take(self, record: Record, content: Body) -> None:
        header = record.entry.header
        try:
            body: Any = content.value()
            event = events.parse(header.type, body)
        except Refused:
            return
        place = (record.entry.event, header.member, header.seq)
        if isinstance(event, events.AccessDecided):
            self.decided.append((place, event))
        rows = list(_TAKERS[header.type](place, header.ts, body))
        for table, *values in rows:
            self._put(table, *values)

    def _release(self, fold: Collective, decision: Decision, cut: Cut) -> None:
        source = decision.proposal
        place = (source.event, source.member, source.seq)
        self._put("releases", decision.digest, decision.height, cut.number, cut.parent_release, cut.model, *place)
        before = fold.before(decision.height)
        for contribution in (c for published in fold.in_cut(cut).values() for c in published):
            self._put("covers", decision.digest, contribution.event)
            organisations = fold.witnesses.organisations(contribution, decision.charter, cut.place.size_of)
            self._put("attested", decision.digest, contribution.event, len(organisations))
            for member, event in rules.objections(before, cut.place, contribution.event).items():
                self._put("objections", decision.digest, contribution.event, member, event)

    def _newest(self, fold: Collective) -> int:
        """The time this audit stands at: the second newest last word of a member, so that no single clock moves it."""
        seated = {m.id for charter in fold.charters[-1:] for m in charter.members}
        rows = self.database.execute("SELECT member, max(ts) FROM entries GROUP BY member").fetchall()
        last = sorted((ts for member, ts in rows if member in seated or not seated), reverse=True)
        return int(last[min(1, len(last) - 1)]) if last else 0


def _listed(values: Iterable[Any]) -> str:
    return json.dumps(list(values), ensure_ascii=False)


def _described(place: _Place, _ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    lists = (_listed(b[k]) for k in ("tags", "columns", "purposes"))
    yield "datasets", *place, b["dataset"], *lists, b["retention_days"], b["licence"], b["basis"]


def _committed(place: _Place, _ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    yield "commitments", *place, b["dataset"], b["train_rows"], b["held_out_rows"]


def _terms(place: _Place, issued: EventId, b: _Body) -> tuple[Any, ...]:
    selector, audience = b["selector"], b["audience"]
    columns = None if selector["columns"] is None else _listed(selector["columns"])
    lists = (
        selector["tags_all"],
        selector["tags_none"],
        b["actions"],
        b["purposes"],
        audience["members"],
        audience["roles"],
    )
    limits = (b[k] for k in ("not_before", "expires", "uses", "epsilon_micro", "depth", "parent", "basis", "nonce"))
    return "terms", *place, issued, b["dataset"], columns, *map(_listed, lists), *limits


def _decided(place: _Place, ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    r = b["request"]
    asked = (r["actor"], r["action"], r["dataset"], r["purpose"], _listed(r["columns"]), r["rows"], r["epsilon_micro"])
    yield "decisions", *place, ts, *asked, r["at"], r["run"], b["verdict"], _listed(b["reasons"]), b["policy"]
    for position, grant in enumerate(b["grants"]):
        yield "chains", place[0], position, grant


def _used(place: _Place, ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    yield "uses", *place, ts, *(b[k] for k in ("dataset", "rows", "action", "purpose", "run", "decision"))


def _published(place: _Place, ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    yield "contributions", *place, ts, b["epoch"], b["number"], b["blob"], b["run"], None


def _erasure(place: _Place, ts: int, b: _Body) -> Iterable[tuple[Any, ...]]:
    yield "erasures", *place, ts, b["dataset"], b["scope"], b["rows"], b["deadline"]
    for event in b["contributions"]:
        yield "erased_contributions", place[0], event
    for event in b["entries"]:
        yield "erased_entries", place[0], event


_TAKERS: Final[Mapping[str, Callable[[_Place, int, _Body], Iterable[tuple[Any, ...]]]]] = {
    "data.described": _described,
    "data.committed": _committed,
    "grant.issued": lambda place, _ts, b: [_terms(place, place[0], b)],
    "grant.narrowed": lambda place, _ts, b: [_terms(place, b["grant"], b["terms"])],
    "grant.revoked": lambda place, ts, b: [("revocations", *place, ts, b["grant"], b["reason"])],
    "grant.accepted": lambda place, _ts, b: [("acceptances", *place, b["grant"])],
    "access.decided": _decided,
    "data.used": _used,
    "egress.set": lambda place, _ts, _b: [("egress", *place, None, None)],
    "egress.refused": lambda place, _ts, b: [("egress", *place, b["run"], b["code"])],
    "contribution.published": _published,
    "model.served": lambda place, ts, b: [("served", *place, ts, b["release"], b["model"])],
    "model.withdrawn": lambda place, ts, b: [("withdrawn", *place, ts, b["release"])],
    "erasure.requested": _erasure,
    "erasure.done": lambda place, ts, b: [("confirmations", *place, ts, b["request"], b["bodies"])],
}
