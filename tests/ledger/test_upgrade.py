"""A ledger of version 2 (line, body and tree nodes in rows of their own) is brought up to date when a writer opens it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from ledger import audit, schema
from ledger.errors import StoreBroken
from ledger.store import Draft, Store
from protocol import keys
from protocol.ids import CollectiveId
from protocol.merkle import Frontier, inclusion, root_of, verify_inclusion

KEYS = [keys.SigningKey(bytes([n]) * 32) for n in (1, 2)]
FIRST, SECOND = map(keys.member_id, KEYS)
COLLECTIVE = CollectiveId("cc" * 32)
SIZES = {FIRST: 200, SECOND: 5}
OLD_TABLES = (
    "CREATE TABLE entries (feed INTEGER NOT NULL, seq INTEGER NOT NULL, line BLOB NOT NULL, leaf BLOB NOT NULL,"
    " PRIMARY KEY (feed, seq)) STRICT",
    "CREATE TABLE nodes (feed INTEGER NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL,"
    " PRIMARY KEY (feed, level, idx)) STRICT, WITHOUT ROWID",
    "CREATE TABLE bodies (feed INTEGER NOT NULL, seq INTEGER NOT NULL, salt BLOB NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (feed, seq)) STRICT",
)


def contents(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        found = list(database.iterdump())
    database.close()
    return found


@pytest.fixture
def now(tmp_path: Path) -> Path:
    """A ledger of two feeds with an erased body, a kept state and heads, as this program writes it."""
    with Store.open(tmp_path / "ledger.db") as store:
        for key, size in zip(KEYS, SIZES.values(), strict=True):
            drafts = [Draft(type="data.used", body={"n": n}, salt=os.urandom(16)) for n in range(size)]
            store.append_all(key, COLLECTIVE, drafts, now_ms=0, state={"kept": b"1"})
        store.heads(COLLECTIVE)
        store.erase_bodies(COLLECTIVE, [(FIRST, 3)])
    return tmp_path / "ledger.db"


@pytest.fixture
def before(now: Path) -> Path:
    """The same ledger as version 2 wrote it."""
    path = now.with_name("old.db")
    path.write_bytes(now.read_bytes())
    database = sqlite3.connect(path)
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    rows = database.execute("SELECT feed, seq, line, leaf, salt, data FROM entries ORDER BY feed, seq").fetchall()
    for table in ("entries", "tiles", "nodes"):
        database.execute(f"DROP TABLE {table}")
    for text in OLD_TABLES:
        database.execute(text)
    for feed, seq, line, leaf, salt, data in rows:
        database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (feed, seq, line, leaf))
        if salt is not None:
            database.execute("INSERT INTO bodies VALUES (?, ?, ?, ?)", (feed, seq, salt, data))
    for feed in (1, 2):
        for level, first, hashes in Frontier().extend([row[3] for row in rows if row[0] == feed]):
            for idx, hash in enumerate(hashes, first):
                database.execute("INSERT INTO nodes VALUES (?, ?, ?, ?)", (feed, level, idx, hash))
    for table in ("entries", "bodies", "nodes"):
        database.execute(f"CREATE TRIGGER {table}_update BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'x'); END")
    database.execute("PRAGMA user_version = 2")
    database.commit()
    database.close()
    return path


def test_an_older_ledger_is_brought_up_to_date_and_holds_what_it_held(now: Path, before: Path) -> None:
    Store.open(before).close()
    assert contents(before) == contents(now)  # rows, triggers, everything
    with Store.open(before) as store:
        (finding,) = audit.integrity(store, COLLECTIVE)
        assert (finding.code, finding.seq) == ("body-erased", 3)
        for key, member in zip(KEYS, SIZES, strict=True):
            store.append(key, COLLECTIVE, "test.event", {}, now_ms=1, salt=bytes(16))
            leaves = [bytes.fromhex(r.entry.leaf) for r in store.records(COLLECTIVE, member, 0, 1000)]
            assert len(leaves) == SIZES[member] + 1
            nodes = store.tree(COLLECTIVE, member).nodes
            for index in range(0, len(leaves), 7):
                path = inclusion(index, len(leaves), nodes)
                verify_inclusion(index, len(leaves), leaves[index], path, root_of(leaves))


def test_a_reader_of_an_older_ledger_is_told_what_brings_it_up_to_date(before: Path) -> None:
    whole = before.read_bytes()
    with pytest.raises(StoreBroken, match="version 2, this program knows 3; start the node once, it brings the ledger"):
        Store.open(before, writer=False)
    assert before.read_bytes() == whole


def test_an_upgrade_that_stops_leaves_the_older_ledger_as_it_was(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(before)

    def stop(_database: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(schema, "_protect", stop)  # the last step
        with pytest.raises(KeyboardInterrupt):
            Store.open(before)
    assert contents(before) == whole
    Store.open(before).close()
    with Store.open(before, writer=False) as store:
        assert len(store.records(COLLECTIVE, FIRST, 0, 1000)) == SIZES[FIRST]


def test_damage_in_an_older_ledger_is_found_after_the_upgrade_as_before(before: Path) -> None:
    database = sqlite3.connect(before)
    database.execute("DROP TRIGGER entries_update")
    database.execute(
        "UPDATE entries SET line = CAST(replace(CAST(line AS TEXT), '\"ts\":0', '\"ts\":9') AS BLOB) WHERE feed = 1 AND seq = 9"
    )
    database.execute("DELETE FROM entries WHERE feed = 2 AND seq = 2")
    database.commit()
    database.close()
    with Store.open(before) as store:
        found = {(f.code, f.member, f.seq) for f in audit.integrity(store, COLLECTIVE)}
        assert {("leaf-mismatch", FIRST, 9), ("bad-signature", FIRST, 9), ("gap", SECOND, 2)} <= found
        store.sign_with(KEYS[0], COLLECTIVE)
        with pytest.raises(StoreBroken, match="its stored tree has not the root that was signed"):
            store.heads(COLLECTIVE)
