"""The store: appends are whole or not at all, foreign pages are verified before they are kept, forks are convicted."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger import audit, checkpoint, entry, forks
from ledger.entry import Body, Record, Seen
from ledger.errors import (
    BadChain,
    BadCommitment,
    FeedBehind,
    FeedFrozen,
    ForkSeen,
    StoreBroken,
    StoreFull,
    StoreLocked,
)
from ledger.pages import MAX_PAGE
from ledger.store import Store
from protocol import keys
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import ZERO, CollectiveId, Digest, digest
from protocol.merkle import root_of

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
OTHER = keys.SigningKey(b"\x02" * 32)
COLLECTIVE = CollectiveId("cc" * 32)


def grow(store: Store, count: int, *, key: keys.SigningKey = KEY, mark: str = "") -> list[Record]:
    return [
        store.append(key, COLLECTIVE, "test.event", {"n": n, "mark": mark}, now_ms=n, salt=bytes(16))
        for n in range(count)
    ]


def note(store: Store, member: str = MEMBER) -> bytes:
    return next(head.note for head in store.heads(COLLECTIVE) if head.member == member)


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "mine.db") as store:
        yield store


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "theirs.db") as store:
        yield store


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Store]:
    """A second store that writes with the same key as `mine`: what a restored backup does."""
    with Store.open(tmp_path / "twin.db") as store:
        yield store


# Appending


def test_append_makes_a_signed_chain_whose_head_is_signed_when_it_is_asked_for(mine: Store) -> None:
    assert mine.head(COLLECTIVE, MEMBER) is None
    records = grow(mine, 10)
    assert mine.records(COLLECTIVE, MEMBER) == records
    assert [r.entry.header.seq for r in records] == list(range(10))
    assert [r.entry.header.prev for r in records] == [ZERO, *(r.entry.leaf for r in records[:-1])]
    head = mine.head(COLLECTIVE, MEMBER)
    assert mine.raw_heads(COLLECTIVE, MEMBER) == []
    signed = checkpoint.parse(note(mine))
    assert head is not None
    assert head.leaf == records[-1].entry.leaf
    assert (head.size, head.root) == (signed.size, signed.root)
    assert signed.root == root_of([bytes.fromhex(r.entry.leaf) for r in records]).hex()
    assert note(mine) == signed.note
    assert [size for size, _, _ in mine.raw_heads(COLLECTIVE, MEMBER)] == [
        10
    ]  # stored before anybody hears of it, once


def test_a_head_is_signed_after_256_entries_and_at_the_end_unasked(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 255)
        assert store.raw_heads(COLLECTIVE, MEMBER) == []
        grow(store, 2)
        assert [size for size, _, _ in store.raw_heads(COLLECTIVE, MEMBER)] == [256]
    with Store.open(tmp_path / "ledger.db") as store:
        assert [size for size, _, _ in store.raw_heads(COLLECTIVE, MEMBER)] == [256, 257]
        assert audit.integrity(store, COLLECTIVE) == []


def test_a_stop_before_a_head_was_signed_gives_the_same_head_afterwards(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 70)
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (tmp_path / "killed.db").write_bytes((tmp_path / "ledger.db").read_bytes())
        said = note(store)
    with Store.open(tmp_path / "killed.db") as store:
        assert store.heads(COLLECTIVE) == []  # nothing is signed without the key
        store.sign_with(KEY, COLLECTIVE)
        assert note(store) == said
        grow(store, 1)
        assert [h.size for h in store.heads(COLLECTIVE)] == [71]
        assert audit.integrity(store, COLLECTIVE) == []


def test_a_full_disk_keeps_the_head_from_being_signed_and_not_the_older_one_from_being_told(mine: Store) -> None:
    grow(mine, 2)
    older = note(mine)
    grow(mine, 1)
    pages = mine._connection.execute("PRAGMA page_count").fetchone()[0]
    mine.put_state("filler", bytes(4096 - 200))
    mine._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    while True:
        try:
            mine.put_state(os.urandom(8).hex(), bytes(100))
        except StoreFull:
            break
    told = note(mine)
    assert told in {older, checkpoint.make(KEY, COLLECTIVE, MEMBER, 3, mine.head(COLLECTIVE, MEMBER).root).note}  # type: ignore[union-attr]
    mine._connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert [h.size for h in mine.heads(COLLECTIVE)] == [3]


def test_a_feed_goes_on_after_reopening(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 3)
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 3)
        assert audit.integrity(store, COLLECTIVE) == []
        assert len(store.records(COLLECTIVE, MEMBER)) == 6
        assert [r.entry.header.seq for r in store.records(COLLECTIVE, MEMBER, 2, 3)] == [2, 3, 4]
        assert store.records(COLLECTIVE, MEMBER, 6) == []


def test_collectives_and_members_are_kept_apart(mine: Store) -> None:
    second = CollectiveId("dd" * 32)
    grow(mine, 2)
    grow(mine, 1, key=OTHER)
    mine.append(KEY, second, "test.event", {}, now_ms=0, salt=bytes(16))
    assert mine.collectives() == [COLLECTIVE, second]
    assert mine.members(COLLECTIVE) == sorted([MEMBER, keys.member_id(OTHER)])
    assert mine.members(second) == [MEMBER]
    assert [h.size for h in mine.heads(second)] == [1]
    assert {h.member: h.size for h in mine.heads(COLLECTIVE)} == {MEMBER: 2, keys.member_id(OTHER): 1}
    assert [h.size for h in mine.heads(COLLECTIVE, MEMBER)] == [2]


def test_seen_heads_and_state_are_stored_with_the_entry(mine: Store) -> None:
    seen = Seen(member=keys.member_id(OTHER), seq=4, leaf=Digest("ab" * 32))
    record = mine.append(
        KEY, COLLECTIVE, "test.event", {}, now_ms=1, salt=bytes(16), seen=[seen], state={"run": b"1", "left": b""}
    )
    assert record.entry.header.seen == (seen,)
    assert (mine.get_state("run"), mine.get_state("left"), mine.get_state("none")) == (b"1", b"", None)
    mine.put_state("run", b"2")
    assert mine.get_state("run") == b"2"


def test_a_refused_append_leaves_nothing_behind(mine: Store) -> None:
    grow(mine, 1)
    for body, kind in (({"x": 1.5}, "test.event"), ({"x": "y" * entry.MAX_BODY}, "test.event"), ({}, "Bad Type")):
        with pytest.raises(Malformed):
            mine.append(KEY, COLLECTIVE, kind, body, now_ms=0, salt=bytes(16), state={"a": b"1"})  # type: ignore[arg-type]
    with pytest.raises(Malformed):
        mine.append(OTHER, CollectiveId("nonsense"), "test.event", {}, now_ms=0, salt=bytes(16))
    assert mine.get_state("a") is None
    assert mine.collectives() == [COLLECTIVE]
    grow(mine, 1)
    assert audit.integrity(mine, COLLECTIVE) == []


def test_a_full_disk_stops_the_append_and_nothing_else(mine: Store) -> None:
    taken = grow(mine, 5)

    def fill() -> None:
        for _ in range(500):
            taken.extend(grow(mine, 1))

    pages = mine._database.execute("PRAGMA page_count").fetchone()[0]
    mine._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull, match=r"couldn't append test\.event: the disk is full; nothing was written"):
        fill()
    with pytest.raises(StoreFull):
        mine.put_state("big", bytes(100_000))
    assert mine.records(COLLECTIVE, MEMBER, 0, 1000) == taken
    assert audit.integrity(mine, COLLECTIVE) == []
    mine._database.execute("PRAGMA max_page_count = 1000000")
    taken += grow(mine, 3)
    assert mine.records(COLLECTIVE, MEMBER, 0, 1000) == taken
    assert audit.integrity(mine, COLLECTIVE) == []


def test_threads_share_a_store(mine: Store) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as e:  # noqa: BLE001
            errors.append(e)

    def look() -> None:
        for _ in range(30):
            head = mine.head(COLLECTIVE, MEMBER)
            if head is not None:
                assert len(mine.records(COLLECTIVE, MEMBER, 0, head.size)) == head.size

    works: list[Callable[[], object]] = [lambda: grow(mine, 15), lambda: grow(mine, 15), look, look]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [r.entry.header.seq for r in mine.records(COLLECTIVE, MEMBER)] == list(range(30))
    assert audit.integrity(mine, COLLECTIVE) == []


# Opening


def test_a_second_writer_is_kept_out_and_readers_are_not(tmp_path: Path, mine: Store) -> None:
    grow(mine, 2)
    with pytest.raises(StoreLocked, match=rf"another daemon or command uses this home \(process {os.getpid()}\)"):
        Store.open(tmp_path / "mine.db")
    with Store.open(tmp_path / "mine.db", writer=False) as reader:
        assert reader.head(COLLECTIVE, MEMBER) == mine.head(COLLECTIVE, MEMBER)
        grow(mine, 2)
        assert reader.head(COLLECTIVE, MEMBER) == mine.head(COLLECTIVE, MEMBER)
        assert audit.integrity(reader, COLLECTIVE) == []
        for write in (
            lambda: reader.put_state("a", b""),
            lambda: grow(reader, 1),
            lambda: reader.append_foreign(COLLECTIVE, MEMBER, [], note(mine)),
        ):
            with pytest.raises(StoreBroken, match="open for reading only"):
                write()
    mine.close()
    Store.open(tmp_path / "mine.db").close()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreBroken):
        Store.open(tmp_path / "missing.db", writer=False)
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(StoreBroken):
        Store.open(tmp_path / "missing" / "ledger.db")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 40)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name, version in (("older.db", 1), ("newer.db", 99)):
        Store.open(tmp_path / name).close()
        outside = sqlite3.connect(tmp_path / name)
        outside.execute(f"PRAGMA user_version = {version}")
        outside.close()
    for name in ("text.db", "other.db", "older.db", "newer.db"):
        for writer in (True, False):
            with pytest.raises(StoreBroken, match=f"couldn't open ledger {name}"):
                Store.open(tmp_path / name, writer=writer)


def test_the_file_is_private_and_durable(tmp_path: Path, mine: Store) -> None:
    assert (tmp_path / "mine.db").stat().st_mode & 0o077 == 0
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("recursive_triggers", 1)):
        assert mine._database.execute(f"PRAGMA {pragma}").fetchone()[0] == value


CHANGES = [
    "UPDATE nodes SET hash = zeroblob(32)",
    "DELETE FROM nodes",
    "INSERT OR REPLACE INTO nodes SELECT feed, level, idx, zeroblob(32) FROM nodes",
    "INSERT INTO nodes VALUES (1, 6, 9, zeroblob(32))",
    "INSERT INTO nodes VALUES (1, 1, 9, zeroblob(32))",
    "INSERT INTO nodes VALUES (1, 0, 0, zeroblob(32))",
    "UPDATE tiles SET hashes = zeroblob(4032)",
    "DELETE FROM tiles",
    "INSERT OR REPLACE INTO tiles (place, hashes) SELECT place, zeroblob(4032) FROM tiles",
    "INSERT INTO tiles (place, hashes) SELECT max(place) + 1, zeroblob(4032) FROM tiles",
    "INSERT INTO tiles (place, hashes) VALUES (1 << 40, zeroblob(32))",
    "INSERT INTO erased VALUES (1, 0)",
    "INSERT INTO erased VALUES (1, 99)",
    "UPDATE entries SET line = x'00'",
    "UPDATE entries SET data = x'00'",
    "UPDATE entries SET salt = NULL, data = NULL",
    "UPDATE entries SET place = place + 1000",
    "UPDATE heads SET root = x'00'",
    "UPDATE feeds SET member = 'x'",
    "UPDATE forks SET proof = x'00'",
    "DELETE FROM entries",
    "DELETE FROM heads",
    "DELETE FROM feeds",
    "DELETE FROM forks",
    "INSERT OR REPLACE INTO entries (place, line, leaf) SELECT place, x'00', leaf FROM entries",
    "REPLACE INTO entries (place, line, leaf) SELECT place + 1, line, leaf FROM entries",
    "INSERT INTO entries (place, line, leaf) SELECT max(place) + 2, line, leaf FROM entries WHERE feed = 1",
    "INSERT INTO entries (place, line, leaf) VALUES (99 << 40, x'00', x'00')",
    "INSERT INTO entries (place, line, leaf, data) SELECT max(place) + 1, line, leaf, data FROM entries WHERE feed = 1",
    "INSERT OR REPLACE INTO entries (place, line, leaf, salt, data) SELECT place, line, leaf, salt, x'00' FROM entries",
    "INSERT OR REPLACE INTO heads SELECT feed, size, x'00', signature FROM heads",
    "INSERT OR REPLACE INTO feeds SELECT id, collective, 'x' FROM feeds",
    "INSERT OR REPLACE INTO feeds SELECT id + 7, collective, member FROM feeds",
    "INSERT OR REPLACE INTO forks SELECT feed, x'00' FROM forks",
    "INSERT OR IGNORE INTO entries (place, line, leaf) SELECT place, x'00', leaf FROM entries",
]


@pytest.mark.parametrize("sql", CHANGES)
def test_triggers_refuse_to_change_what_was_written(tmp_path: Path, mine: Store, twin: Store, sql: str) -> None:
    grow(mine, 64)
    note(mine)
    grow(twin, 3, mark="other")
    with pytest.raises(ForkSeen):
        mine.append_foreign(COLLECTIVE, MEMBER, twin.records(COLLECTIVE, MEMBER), None)
    mine.close()
    outside = sqlite3.connect(tmp_path / "mine.db")  # recursive_triggers is off here, as in any other program
    before = list(outside.iterdump())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        outside.execute(sql)
    outside.commit()
    assert list(outside.iterdump()) == before
    outside.close()


# Foreign pages


def test_a_foreign_feed_is_taken_page_by_page(mine: Store, theirs: Store) -> None:
    records = grow(theirs, 10)
    final = note(theirs)
    assert mine.append_foreign(COLLECTIVE, MEMBER, records[:4], final) == records[:4]  # the head is ahead of the page
    assert [h.size for h in mine.heads(COLLECTIVE)] == [10]
    assert mine.append_foreign(COLLECTIVE, MEMBER, records[2:7], None) == records[4:7]  # some are repeated
    assert mine.append_foreign(COLLECTIVE, MEMBER, records[7:], final) == records[7:]
    assert mine.append_foreign(COLLECTIVE, MEMBER, records, final) == []
    assert mine.head(COLLECTIVE, MEMBER) == theirs.head(COLLECTIVE, MEMBER)
    assert mine.heads(COLLECTIVE) == theirs.heads(COLLECTIVE)
    assert mine.records(COLLECTIVE, MEMBER) == records
    assert audit.integrity(mine, COLLECTIVE) == []


def test_an_older_head_that_fits_is_kept_beside_the_newer(mine: Store, theirs: Store) -> None:
    grow(theirs, 2)
    older = note(theirs)
    grow(theirs, 3)
    mine.append_foreign(COLLECTIVE, MEMBER, theirs.records(COLLECTIVE, MEMBER), note(theirs))
    mine.append_foreign(COLLECTIVE, MEMBER, [], older)
    mine.append_foreign(COLLECTIVE, MEMBER, [], older)
    assert [h.size for h in mine.heads(COLLECTIVE)] == [5]
    assert [size for size, _, _ in mine.raw_heads(COLLECTIVE, MEMBER)] == [2, 5]


def test_a_record_without_body_is_kept_and_flagged(mine: Store, theirs: Store) -> None:
    records = grow(theirs, 3)
    erased = replace(records[1], body=None)
    mine.append_foreign(COLLECTIVE, MEMBER, [records[0], erased, records[2]], note(theirs))
    assert mine.records(COLLECTIVE, MEMBER) == [records[0], erased, records[2]]
    (finding,) = audit.integrity(mine, COLLECTIVE)
    assert (finding.code, finding.seq, finding.event) == ("body-missing", 1, records[1].entry.event)
    assert finding.code in audit.NOTICES


def resign(record: Record, **changes: object) -> Record:
    header = record.entry.header
    values = {
        "collective": header.collective, "seq": header.seq, "prev": header.prev, "ts": header.ts, "type": header.type,
        "seen": header.seen, "body": {"n": 0}, "salt": bytes(16),
    }  # fmt: skip
    return entry.make(KEY, **(values | changes))  # type: ignore[arg-type]


def spoil(kind: str, records: list[Record]) -> list[Record]:
    middle, body = records[3], records[3].body
    assert body is not None
    line = middle.entry.line
    spoilt = {
        "body": replace(middle, body=Body(salt=body.salt, data=b'{"n":4}')),
        "salt": replace(middle, body=Body(salt=bytes(range(16)), data=body.data)),
        "signature": replace(middle, entry=replace(middle.entry, line=line[:-9] + b"AAAA" + line[-5:])),
        "header": replace(middle, entry=replace(middle.entry, header=replace(middle.entry.header, ts=99))),
        "leaf": replace(middle, entry=replace(middle.entry, leaf=Digest("ab" * 32))),
        "garbage": replace(middle, entry=replace(middle.entry, line=b"{}")),
        "collective": resign(middle, collective=CollectiveId("ee" * 32)),
    }
    if kind in spoilt:
        return [*records[:3], spoilt[kind], *records[4:]]
    return {
        "gap": records[:3] + records[4:],
        "twice": [*records[:4], *records[3:]],
        "order": [*records[:3], records[4], records[3]],
        "future": records[1:],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("body", BadCommitment),
        ("salt", BadCommitment),
        ("signature", (BadSignature, Malformed)),
        ("header", Malformed),
        ("leaf", Malformed),
        ("garbage", Malformed),
        ("collective", BadChain),
        ("gap", BadChain),
        ("twice", BadChain),
        ("order", BadChain),
        ("future", BadChain),
    ],
)
def test_a_page_with_one_bad_record_is_refused_whole(
    mine: Store, theirs: Store, kind: str, error: type[Exception]
) -> None:
    records = grow(theirs, 6)
    with pytest.raises(error):
        mine.append_foreign(COLLECTIVE, MEMBER, spoil(kind, records), note(theirs))
    assert mine.collectives() == []
    assert mine.forks(COLLECTIVE) == []
    assert mine.append_foreign(COLLECTIVE, MEMBER, records, note(theirs)) == records


def test_a_page_of_another_feed_or_with_its_head_is_refused(mine: Store, theirs: Store) -> None:
    records, other = grow(theirs, 2), grow(theirs, 2, key=OTHER)
    with pytest.raises(BadChain):
        mine.append_foreign(COLLECTIVE, MEMBER, other, None)
    with pytest.raises(BadChain):
        mine.append_foreign(COLLECTIVE, MEMBER, records, note(theirs, keys.member_id(OTHER)))
    with pytest.raises(Malformed):
        mine.append_foreign(COLLECTIVE, MEMBER, records, b"garbage")
    with pytest.raises(TooLarge):
        mine.append_foreign(COLLECTIVE, MEMBER, records * (MAX_PAGE // 2 + 1), None)
    assert mine.collectives() == []


# Forks


def fork_of(mine: Store, twin: Store, kind: str) -> tuple[list[Record], bytes | None]:
    """What `twin` (same key, other history) shows to a `mine` that holds five entries and their head."""
    if kind == "entries":
        return grow(twin, 5, mark="twin"), None
    if kind == "chain":  # the page begins where ours ends, on another history
        return grow(twin, 7, mark="twin")[5:], None
    if kind == "heads":
        grow(twin, 5, mark="twin")
        return [], note(twin)
    grow(twin, 3, mark="twin")  # a head of a size for which we hold entries, but no head
    return [], note(twin)


@pytest.mark.parametrize("kind", ["entries", "chain", "heads", "root"])
def test_a_fork_is_convicted_frozen_and_its_proof_travels(mine: Store, theirs: Store, twin: Store, kind: str) -> None:
    honest = grow(theirs, 5)
    mine.append_foreign(COLLECTIVE, MEMBER, honest, note(theirs))
    records, head = fork_of(mine, twin, kind)
    with pytest.raises(ForkSeen) as caught:
        mine.append_foreign(COLLECTIVE, MEMBER, records, head)
    fork = caught.value.fork
    assert fork.kind == kind
    assert mine.forks(COLLECTIVE) == [fork]
    assert forks.decode(forks.encode(fork)) == fork
    forks.verify(fork, [bytes.fromhex(r.entry.leaf) for r in honest])
    assert mine.records(COLLECTIVE, MEMBER) == honest
    for page in (records, honest, []):
        with pytest.raises(FeedFrozen):
            mine.append_foreign(COLLECTIVE, MEMBER, page, None)
    assert [f.code for f in audit.integrity(mine, COLLECTIVE)] == ["fork"]

    theirs.add_fork(fork)  # the proof convinces the author's own store
    theirs.add_fork(fork)
    with pytest.raises(FeedFrozen):
        grow(theirs, 1)
    assert theirs.forks(COLLECTIVE) == [fork]


def test_a_head_that_the_page_contradicts_is_a_fork(mine: Store, theirs: Store) -> None:
    records = grow(theirs, 6)
    lie = checkpoint.make(KEY, COLLECTIVE, MEMBER, 4, digest(b"another root")).note
    mine.append_foreign(COLLECTIVE, MEMBER, records[:2], lie)  # still ahead: nobody can tell
    with pytest.raises(ForkSeen) as caught:
        mine.append_foreign(COLLECTIVE, MEMBER, records[2:], None)
    assert (caught.value.fork.kind, caught.value.fork.at) == ("root", 4)
    forks.verify(caught.value.fork, [bytes.fromhex(r.entry.leaf) for r in records[:2]])
    assert len(mine.records(COLLECTIVE, MEMBER)) == 2


def test_two_histories_inside_one_page_are_a_fork(mine: Store, theirs: Store, twin: Store) -> None:
    page = grow(theirs, 3) + grow(twin, 5, mark="twin")[3:]
    with pytest.raises(ForkSeen) as caught:
        mine.append_foreign(COLLECTIVE, MEMBER, page, None)
    assert (caught.value.fork.kind, caught.value.fork.at) == ("chain", 3)
    forks.verify(caught.value.fork)
    assert mine.records(COLLECTIVE, MEMBER) == []


def test_the_same_event_signed_again_is_a_fork(mine: Store, theirs: Store) -> None:
    records = grow(theirs, 2)
    mine.append_foreign(COLLECTIVE, MEMBER, records, None)
    with pytest.raises(ForkSeen):
        mine.append_foreign(COLLECTIVE, MEMBER, [records[0], resign(records[1], ts=7)], None)


def test_forged_proofs_convict_nobody(mine: Store, theirs: Store, twin: Store) -> None:
    honest, other = grow(theirs, 5), grow(twin, 5, mark="twin")
    stranger = grow(theirs, 5, key=OTHER)
    mine.append_foreign(COLLECTIVE, MEMBER, honest, note(theirs))
    base = forks.Fork(
        kind="entries", collective=COLLECTIVE, member=MEMBER, at=2, evidence=(honest[2].entry.line, other[2].entry.line)
    )
    forks.verify(base)
    same_note = (note(theirs), note(theirs))
    lines = tuple(r.entry.line for r in honest)
    bad = [
        replace(base, at=3),
        replace(base, member=keys.member_id(OTHER)),
        replace(base, collective=CollectiveId("ee" * 32)),
        replace(base, evidence=(honest[2].entry.line,) * 2),
        replace(base, evidence=(honest[2].entry.line, stranger[2].entry.line)),
        replace(base, evidence=(honest[2].entry.line, honest[3].entry.line)),
        replace(base, evidence=(*base.evidence, other[3].entry.line)),
        replace(base, kind="chain", at=3, evidence=(honest[2].entry.line, honest[3].entry.line)),
        replace(base, kind="chain", at=4, evidence=(honest[2].entry.line, other[4].entry.line)),
        replace(base, kind="heads", at=5, evidence=same_note),
        replace(base, kind="heads", at=5, evidence=(note(theirs), note(theirs, keys.member_id(OTHER)))),
        replace(base, kind="root", at=5, evidence=(note(theirs), *lines)),
        replace(base, kind="root", at=5, evidence=(note(theirs), *lines[1:], stranger[4].entry.line)),
        replace(base, kind="root", at=5, evidence=(note(theirs), *lines[::-1])),
        replace(base, evidence=(honest[2].entry.line, b"garbage")),
    ]
    for fork in bad:
        with pytest.raises((Malformed, BadSignature)):
            mine.add_fork(fork)
    assert mine.forks(COLLECTIVE) == []
    for data in (b"{}", b"garbage", forks.encode(base).replace(b"entries", b"rumours"), forks.encode(base)[:-1]):
        with pytest.raises(Malformed):
            forks.decode(data)


# Recovery


def test_a_restored_backup_fetches_its_feed_before_it_appends(mine: Store, theirs: Store, twin: Store) -> None:
    records = grow(mine, 5)
    theirs.append_foreign(COLLECTIVE, MEMBER, records, note(mine))
    twin.append_foreign(COLLECTIVE, MEMBER, records[:2], None)  # the backup: two entries
    twin.append_foreign(COLLECTIVE, MEMBER, [], note(theirs))  # a member's memory: five were signed
    with pytest.raises(FeedBehind, match="5 entries of this feed were signed before"):
        grow(twin, 1)
    twin.append_foreign(COLLECTIVE, MEMBER, theirs.records(COLLECTIVE, MEMBER, 2), None)
    added = grow(twin, 1)
    theirs.append_foreign(COLLECTIVE, MEMBER, added, note(twin))
    assert theirs.forks(COLLECTIVE) == []


def test_a_restored_backup_that_appends_is_convicted(mine: Store, theirs: Store, twin: Store) -> None:
    records = grow(mine, 5)
    theirs.append_foreign(COLLECTIVE, MEMBER, records, note(mine))
    twin.append_foreign(COLLECTIVE, MEMBER, records[:2], None)
    grow(twin, 6, mark="after the restore")
    with pytest.raises(ForkSeen) as caught:
        theirs.append_foreign(COLLECTIVE, MEMBER, twin.records(COLLECTIVE, MEMBER, 5), note(twin))
    assert caught.value.fork.kind == "chain"


class FeedMachine(RuleBasedStateMachine):
    """A writer and a mirror over any interleaving of appends, pages and heads: the mirror is always an honest prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.writer = Store.open(Path(self.folder.name) / "writer.db")
        self.mirror = Store.open(Path(self.folder.name) / "mirror.db")
        self.notes: list[bytes] = []

    def teardown(self) -> None:
        self.writer.close()
        self.mirror.close()
        self.folder.cleanup()

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        grow(self.writer, count)
        self.notes.append(note(self.writer))

    @rule(back=st.integers(0, 3), limit=st.integers(0, 5), pick=st.integers(0, 100))
    def pull(self, back: int, limit: int, pick: int) -> None:
        head = self.mirror.head(COLLECTIVE, MEMBER)
        start = max(0, (0 if head is None else head.size) - back)
        chosen = self.notes[pick % len(self.notes)] if self.notes and pick < 80 else None
        self.mirror.append_foreign(COLLECTIVE, MEMBER, self.writer.records(COLLECTIVE, MEMBER, start, limit), chosen)

    @invariant()
    def the_mirror_holds_a_prefix(self) -> None:
        held = self.mirror.records(COLLECTIVE, MEMBER)
        assert held == self.writer.records(COLLECTIVE, MEMBER)[: len(held)]
        codes = {f.code for f in audit.integrity(self.mirror, COLLECTIVE)}
        assert codes <= {"tail-missing"}
        assert audit.integrity(self.writer, COLLECTIVE) == []


TestFeedMachine = FeedMachine.TestCase
TestFeedMachine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
