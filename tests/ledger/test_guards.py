"""Seat belts of the ledger file: what our connection may not do, other programs' locks, erasing bodies for ever."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import audit, schema
from ledger.errors import EraseUnfinished, StoreBroken, StoreBusy
from ledger.store import Draft, Store
from protocol import keys
from protocol.errors import Malformed, Retry
from protocol.ids import CollectiveId, MemberId

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
SECRET = "the row about somebody"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ledger.db") as opened:
        yield opened


def grow(store: Store, count: int = 3, kind: str = "test.event", body: object = None) -> None:
    drafts = [
        Draft(type=kind, body={"n": n} if body is None else body, salt=os.urandom(16))  # type: ignore[arg-type]
        for n in range(count)
    ]
    store.append_all(KEY, COLLECTIVE, drafts, now_ms=0)


# The connection of the node

REFUSED = r"not authorized|prohibited|authorization denied|may not be modified"
DENIED = [
    "DROP TABLE entries",
    "DROP TRIGGER entries_update",
    "ALTER TABLE entries RENAME TO x",
    "ALTER TABLE heads ADD COLUMN x",
    "UPDATE entries SET line = x'00'",
    "UPDATE nodes SET hash = x'00'",
    "DELETE FROM heads",
    "UPDATE entries SET salt = NULL, data = NULL",
    "UPDATE tiles SET hashes = x'00'",
    "DELETE FROM erased",
    "CREATE TABLE x (y)",
    "CREATE TRIGGER x BEFORE INSERT ON entries BEGIN SELECT 1; END",
    "CREATE TEMP TRIGGER x BEFORE INSERT ON main.entries BEGIN SELECT RAISE(IGNORE); END",
    "CREATE VIEW x AS SELECT 1",
    "CREATE INDEX x ON heads (root)",
    "PRAGMA writable_schema = ON",
    "PRAGMA recursive_triggers = OFF",
    "PRAGMA ignore_check_constraints = ON",
    "PRAGMA synchronous = OFF",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA user_version = 9",
    "PRAGMA schema_version = 9",
    "PRAGMA secure_delete = OFF",
    "UPDATE sqlite_master SET sql = ''",
    "ATTACH ':memory:' AS other",
    "VACUUM",
    "REINDEX",
    "SELECT load_extension('x')",
]


@pytest.mark.parametrize("sql", DENIED)
def test_our_own_connection_may_only_read_and_insert(store: Store, sql: str) -> None:
    grow(store)
    before = list(store._connection.iterdump())
    with pytest.raises(sqlite3.DatabaseError, match=REFUSED):
        store._connection.execute(sql).fetchall()
    assert list(store._connection.iterdump()) == before
    grow(store)
    store.put_state("a", b"1")
    store.put_state("a", b"2")  # the one table whose rows are replaced
    assert audit.integrity(store, COLLECTIVE) == []


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("entries", "place, line, leaf, salt, data"),
        ("tiles", "place, hashes"),
        ("nodes", "feed, level, idx, hash"),
        ("heads", "feed, size, root, signature"),
    ],
)
def test_a_replacing_insert_is_stopped_by_triggers_that_cannot_be_dropped(
    store: Store, table: str, columns: str
) -> None:
    grow(store, 64)
    store.heads(COLLECTIVE)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store._connection.execute(
            f"INSERT OR REPLACE INTO {table} ({columns}) SELECT {columns} FROM {table} LIMIT 1"  # noqa: S608
        )
    assert audit.integrity(store, COLLECTIVE) == []


# Other programs


def test_a_short_write_lock_of_another_program_is_waited_for(tmp_path: Path, store: Store) -> None:
    grow(store)
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.4, lambda: other.execute("COMMIT"))
    timer.start()
    grow(store)
    timer.join()
    other.close()
    assert len(store.records(COLLECTIVE, MEMBER)) == 6


def test_a_long_write_lock_of_another_program_passes_and_nothing_is_lost(tmp_path: Path, store: Store) -> None:
    grow(store)
    store._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match=r"another program is writing to the database; nothing was written, close it"):
        grow(store)
    assert issubclass(StoreBusy, Retry)
    other.execute("ROLLBACK")
    other.close()
    grow(store)
    assert len(store.records(COLLECTIVE, MEMBER)) == 6
    assert audit.integrity(store, COLLECTIVE) == []


@pytest.mark.parametrize("version", [(3, 7, 0), (3, 40, 1), (3, 51, 2)])
def test_a_known_bad_sqlite_is_named_with_why_it_is_safe_here(version: tuple[int, ...]) -> None:
    text = schema.sqlite_warning(version)
    assert text is not None
    assert ".".join(map(str, version)) in text
    assert "the only writer of its ledger, which makes it safe" in text


@pytest.mark.parametrize("version", [(3, 6, 23), (3, 51, 3), (3, 52, 0), (4, 0, 0)])
def test_a_sqlite_without_the_fault_gives_no_warning(version: tuple[int, ...]) -> None:
    assert schema.sqlite_warning(version) is None


def test_the_warning_of_a_store_is_that_of_its_library(store: Store) -> None:
    assert store.sqlite_warning() == schema.sqlite_warning(sqlite3.sqlite_version_info)


# Erasing


def raw(folder: Path) -> bytes:
    """Every byte of the database and its companions."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("ledger.db*")))


@pytest.mark.parametrize("vacuum", [False, True])
@pytest.mark.parametrize("length", [1, 3_000])  # inside a page, and over many
def test_an_erased_body_is_in_no_raw_byte_and_the_feed_still_verifies(
    tmp_path: Path, store: Store, *, vacuum: bool, length: int
) -> None:
    for kind in schema.ERASABLE:
        grow(store, 3, kind, {"text": SECRET * length, "kept": False})
    grow(store, 3)
    salts = [r.body.salt for r in store.records(COLLECTIVE, MEMBER, 0, 6) if r.body]
    assert SECRET.encode() in raw(tmp_path)
    assert all(salt in raw(tmp_path) for salt in salts)
    events = [(MEMBER, seq) for seq in range(6)]
    assert store.erase_bodies(COLLECTIVE, events, vacuum=vacuum) == 6
    assert store.erase_bodies(COLLECTIVE, events) == 0
    assert SECRET.encode() not in raw(tmp_path)
    assert not any(salt in raw(tmp_path) for salt in salts)
    assert [(f.code, f.seq) for f in audit.integrity(store, COLLECTIVE)] == [("body-erased", seq) for seq in range(6)]
    assert all(f.code in audit.NOTICES for f in audit.integrity(store, COLLECTIVE))
    assert store.heads(COLLECTIVE)  # checkpoint mode needs one to rely on
    assert audit.integrity(store, COLLECTIVE, mode="checkpoint") == []
    grow(store)
    assert [r.body is None for r in store.records(COLLECTIVE, MEMBER)] == [True] * 6 + [False] * 6


def test_only_bodies_of_the_named_types_may_be_erased_and_all_or_none(store: Store) -> None:
    grow(store, 2, "data.used")
    grow(store, 1, "charter.genesis")
    for events, text in (
        ([(MEMBER, 0), (MEMBER, 2)], "bodies of charter.genesis are kept for ever"),
        ([(MEMBER, 0), (MEMBER, 9)], "the entry is not here"),
        ([(MemberId("ab" * 32), 0)], "the entry is not here"),
    ):
        with pytest.raises(Malformed, match=text):
            store.erase_bodies(COLLECTIVE, events)
    assert all(record.body for record in store.records(COLLECTIVE, MEMBER))
    with pytest.raises(sqlite3.IntegrityError, match="append-only: insert on erased is refused"):
        store._connection.execute("INSERT INTO erased VALUES (1, 2)")


def test_the_file_itself_refuses_to_lose_a_body_that_is_not_marked(tmp_path: Path, store: Store) -> None:
    grow(store, 2, "data.used")
    store.erase_bodies(COLLECTIVE, [(MEMBER, 0)])
    outside = sqlite3.connect(tmp_path / "ledger.db")
    for sql in (
        "UPDATE entries SET salt = NULL, data = NULL WHERE seq = 1",
        "UPDATE entries SET data = NULL WHERE seq = 1",
        "UPDATE entries SET salt = zeroblob(16), data = x'7b7d' WHERE seq = 0",
        "UPDATE entries SET line = x'00', salt = NULL, data = NULL WHERE seq = 0",
        "DELETE FROM entries WHERE seq = 1",
        "DELETE FROM erased",
        "UPDATE erased SET seq = 1",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            outside.execute(sql)
    outside.close()
    with Store.open(tmp_path / "ledger.db", writer=False) as reader, pytest.raises(StoreBroken, match="reading only"):
        reader.erase_bodies(COLLECTIVE, [(MEMBER, 1)])


def test_a_reader_that_holds_the_log_is_named_and_erasing_again_finishes(tmp_path: Path, store: Store) -> None:
    grow(store, 2, "data.used", {"text": SECRET})
    store._connection.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    events = [(MEMBER, 0), (MEMBER, 1)]
    with pytest.raises(EraseUnfinished, match="another program reads the ledger; close it and erase again"):
        store.erase_bodies(COLLECTIVE, events)
    assert SECRET.encode() in raw(tmp_path)
    reader.close()
    assert store.erase_bodies(COLLECTIVE, events) == 0
    assert SECRET.encode() not in raw(tmp_path)
