"""Promises of forgetting: rows and salts are gone from every byte of the files, and what they stood behind is known."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from permits import to_measure, to_train

from contrib import rows_file
from contrib.errors import RowsBusy, RowsDamaged, RowsOutdated, UnknownDataset
from contrib.row import Row, pair_row, text_row
from contrib.rows import RowStore
from protocol.merkle import EMPTY_ROOT

CANARY = b"forget-me-7f3a"
KEY = bytes(range(32))
LONG = "x" * 3000  # rows over several pages: overflow pages are freed as well


def rows(*numbers: int, subject: str = "Ada Canary") -> list[Row]:
    return [replace(text_row(f"{CANARY.decode()} {n} {LONG}"), subject=subject) for n in numbers]


def others(*numbers: int) -> list[Row]:
    return [replace(text_row(f"keep me {n} {LONG}"), subject="Bob") for n in numbers]


def salts(path: Path) -> list[bytes]:
    db = sqlite3.connect(path)
    found = [row[0] for row in db.execute("SELECT salt FROM rows WHERE CAST(content AS TEXT) LIKE '%forget-me%'")]
    db.close()
    return found


def raw(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(path.name + "*")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.db"


def sloppy(store: RowStore, ids: tuple[int, ...]) -> None:
    """What `forget` would be without care: a plain DELETE in a connection with SQLite's defaults."""
    store._db.execute("PRAGMA secure_delete = OFF")
    with rows_file.transaction(store._db.conn):
        for number in ids:
            store._db.execute("DELETE FROM rows WHERE id = ?", [number])
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def careful(store: RowStore, ids: tuple[int, ...]) -> None:
    store.forget("d", ids)


@pytest.mark.parametrize(("how", "left"), [(careful, False), (sloppy, True)])
def test_forgotten_rows_and_salts_stand_in_no_byte_of_the_files(
    path: Path, how: Callable[[RowStore, tuple[int, ...]], None], left: bool
) -> None:
    with RowStore.open(path) as store:
        store.add("d", [*others(*range(20)), *rows(*range(20)), *others(*range(20, 40))], 100_000)
        secrets = [CANARY, *salts(path)]
        assert len(secrets) == 21
        assert all(secret in raw(path) for secret in secrets)
        found = store.find("d", subject="Ada Canary")
        assert (len(found.ids), found.train_rows + found.held_out_rows) == (20, 20)
        how(store, found.ids)
        assert store.find("d", subject="Ada Canary").ids == ()
        remain = [secret for secret in secrets if secret in raw(path)]
        assert bool(remain) == left, "the search must be able to fail"
    assert any(secret in raw(path) for secret in secrets) == left


def test_forgotten_rows_of_a_sealed_store_leave_no_ciphertext(path: Path) -> None:
    with RowStore.open(path, key=KEY) as store:
        store.add("d", [*others(*range(5)), *rows(*range(5))], 0)
        found = store.find("d", subject=" Ada Canary ")
        stored = dict(store._db.execute("SELECT id, content FROM rows"))
        contents = [stored[number] for number in found.ids]
        assert all(content[:64] in raw(path) for content in contents)
        store.forget("d", found.ids)
        assert not any(content[:64] in raw(path) for content in contents)
        assert [row.text[:9] for row in store.rows("d", permit=to_train("d"))] == [f"keep me {n}" for n in range(5)]


def test_what_remains_has_a_new_commitment_and_true_counts(path: Path) -> None:
    with RowStore.open(path) as store:
        before = store.add("d", [*rows(*range(20)), *others(*range(20))], 300_000)
        found = store.find("d", subject="Ada Canary")
        after = store.forget("d", found.ids)
        assert after == store.summary("d")
        assert after.train_rows == before.train_rows - found.train_rows
        assert after.held_out_rows == before.held_out_rows - found.held_out_rows
        assert after.train_root != before.train_root
        assert after.characters == sum(row.characters() for row in others(*range(20)))
        assert after == store.forget("d", found.ids), "forgetting again is no error"
        assert {row.text for row in store.rows("d", permit=to_train("d"))} | {
            row.text for row in store.rows("d", "held_out", permit=to_measure("d"))
        } == {row.text for row in others(*range(20))}


def test_a_data_set_may_be_forgotten_to_the_last_row(path: Path) -> None:
    with RowStore.open(path) as store:
        store.add("d", [replace(pair_row(f"q {n}", "a"), subject="Ada") for n in range(5)], 0)
        after = store.forget("d", store.find("d", subject="Ada").ids)
        assert (after.train_rows, after.held_out_rows, after.kind) == (0, 0, "pair")
        assert after.train_root == EMPTY_ROOT.hex()
        with pytest.raises(UnknownDataset):
            store.forget("e", (1,))


def test_rows_are_found_by_content_subject_or_age_and_by_nothing_else(path: Path) -> None:
    now = [100]
    with RowStore.open(path, clock=lambda: now[0]) as store:
        store.add("d", rows(1, 2, 3), 0)
        now[0] = 200
        store.add("d", [*rows(4), *others(5)], if_exists="append")
        assert store.find("d", digest=rows(2)[0].digest()).ids == (2,)
        assert store.find("d", subject="Ada Canary").ids == (1, 2, 3, 4)
        assert store.find("d", before_ms=200).ids == (1, 2, 3)
        assert store.find("d", subject="Ada Canary", digest=others(5)[0].digest()).ids == ()
        assert store.find("d", subject="ada canary").ids == ()
        assert store.find("d").ids == ()
        assert store.summary("d").oldest_ms == 100
        with pytest.raises(UnknownDataset):
            store.find("e", subject="Ada Canary")


def test_one_content_about_two_people_is_forgotten_for_one_of_them(path: Path) -> None:
    with RowStore.open(path) as store:
        summary = store.add("d", [replace(text_row("I agree"), subject=name) for name in ("Ada", "Bob", "Ada")], 0)
        assert (summary.train_rows, summary.duplicates) == (2, 1)
        store.forget("d", store.find("d", subject="Ada").ids)
        assert store.find("d", subject="Bob").train_rows == 1
        assert store.find("d", digest=text_row("I agree").digest()).train_rows == 1


def test_commitments_that_a_row_stood_behind_are_known(path: Path) -> None:
    with RowStore.open(path) as store:
        first = store.add("d", others(1, 2), 0)
        second = store.add("d", rows(3), if_exists="append")
        third = store.add("d", others(4), if_exists="append")
        assert store.find("d", subject="Ada Canary").roots == {second.train_root, third.train_root}
        assert store.find("d", digest=others(1)[0].digest()).roots == {s.train_root for s in (first, second, third)}
        fourth = store.forget("d", store.find("d", subject="Ada Canary").ids)
        assert store.find("d", subject="Bob").roots == {s.train_root for s in (first, second, third, fourth)}
        fifth = store.add("d", rows(9), if_exists="replace")
        assert store.find("d", subject="Ada Canary").roots == {fifth.train_root}


def test_a_reader_that_holds_the_old_bytes_is_said_and_the_next_call_ends_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contrib.rows_file.BUSY_SECONDS", 0.1)
    with RowStore.open(path) as store:
        store.add("d", [*rows(*range(5)), *others(1)], 0)
        found = store.find("d", subject="Ada Canary")
        with RowStore.open(path, read_only=True) as reader:
            reading = reader._db.execute("SELECT content FROM rows")
            reading.fetchone()
            with pytest.raises(RowsBusy, match="do it again"):
                store.forget("d", found.ids)
            assert store.find("d", subject="Ada Canary").ids == (), "they are gone for whoever asks now"
            assert CANARY in raw(path)
            reading.close()
        store.forget("d", found.ids)
        assert CANARY not in raw(path)


VERSION_1 = """
CREATE TABLE datasets (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, held_out_ppm INTEGER NOT NULL, duplicates INTEGER NOT NULL,
    train_rows INTEGER NOT NULL, held_out_rows INTEGER NOT NULL, characters INTEGER NOT NULL,
    train_root TEXT NOT NULL, held_out_root TEXT NOT NULL, labels TEXT
) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset TEXT NOT NULL, part TEXT NOT NULL, digest TEXT NOT NULL,
    split_key TEXT NOT NULL, salt BLOB NOT NULL, content BLOB NOT NULL, UNIQUE (dataset, digest)
) STRICT;
CREATE INDEX rows_by_part ON rows (dataset, part, id);
CREATE INDEX rows_by_split_key ON rows (split_key);
PRAGMA user_version = 1;
"""


def test_store_of_the_first_version_is_brought_up_to_date_by_a_writer(tmp_path: Path, path: Path) -> None:
    kept = [pair_row(f"q {n}", f"a{n % 2}") for n in range(20)]
    with RowStore.open(tmp_path / "new.db") as store:
        new = store.add("d", kept, 300_000)
        stored = list(store._db.execute("SELECT id, dataset, part, digest, split_key, salt, content FROM rows"))
    old = sqlite3.connect(path)
    old.executescript(VERSION_1)
    old.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", stored)
    roots = (new.train_rows, new.held_out_rows, new.characters, new.train_root, new.held_out_root)
    old.execute("INSERT INTO datasets VALUES ('d', 'pair', 300000, 0, ?, ?, ?, ?, ?, '[\"a0\", \"a1\"]')", roots)
    old.commit()
    old.close()
    with pytest.raises(RowsOutdated):
        RowStore.open(path, read_only=True)
    with RowStore.open(path) as store:
        assert store.summary("d") == replace(new, oldest_ms=None)
        assert len(store.rows("d", permit=to_train("d"))) == new.train_rows
        grown = store.add("d", [*kept, pair_row("new", "a1")], if_exists="append")
        assert (grown.train_rows + grown.held_out_rows, grown.duplicates) == (21, 20)
        assert store.find("d", digest=kept[0].digest()).roots is None, "when it came is not known"
    with RowStore.open(path, read_only=True) as store:
        assert store.datasets() == [grown]


def test_store_of_a_later_version_is_refused(path: Path) -> None:
    RowStore.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 3")
    db.close()
    with pytest.raises(RowsDamaged, match="version"):
        RowStore.open(path)
