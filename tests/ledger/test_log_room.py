"""The log is laid out ahead: commits do not lengthen the file, and zeros never lie over what was written."""

from __future__ import annotations

import sqlite3
from itertools import pairwise
from pathlib import Path

import disks
import pytest

from ledger import audit
from ledger.store import Draft, Store
from protocol import keys
from protocol.ids import CollectiveId

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
LEAST, MOST = 1 << 18, 1 << 20
FRAME = 24 + 4096


def grow(store: Store, count: int, padding: int = 700) -> None:
    for number in range(count):
        draft = Draft(type="test.event", body={"number": number, "padding": "x" * padding}, salt=bytes(16))
        store.append_all(KEY, COLLECTIVE, [draft], now_ms=number)


def written(log: Path) -> int:
    """Bytes of the log up to the last that is not zero."""
    return len(log.read_bytes().rstrip(b"\0"))


def count(store: Store) -> int:
    return len(store.records(COLLECTIVE, MEMBER, 0, 100_000))


def test_commits_find_their_room_laid_out_and_lengthen_nothing(tmp_path: Path) -> None:
    log, sizes = tmp_path / "ledger.db-wal", list[int]()
    with Store.open(tmp_path / "ledger.db") as store:
        for _ in range(700):
            grow(store, 1)
            sizes.append(log.stat().st_size)
            if len(sizes) % 100 == 0:
                assert written(log) <= sizes[-1]
        steps = [(before, after - before) for before, after in pairwise(sizes) if after != before]
        assert 3 <= len(steps) <= 6
        assert all(step == min(max(before, LEAST), MOST) for before, step in steps)
        assert audit.integrity(store, COLLECTIVE) == []


def test_a_log_that_is_merged_and_used_again_is_not_laid_out_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "ledger.db-wal"
    with Store.open(tmp_path / "ledger.db") as store:
        for _ in range(26):  # 26 MB of frames, over 1.5 logs
            grow(store, 30, padding=30_000)
        whole = log.stat().st_size
        assert whole < 4100 * FRAME
        grow(store, 100)
        assert log.stat().st_size == whole
        assert audit.integrity(store, COLLECTIVE) == []


def test_a_log_cut_by_somebody_else_is_laid_out_anew(tmp_path: Path) -> None:
    log = tmp_path / "ledger.db-wal"
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 300)
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert log.stat().st_size == 0
        grow(store, 300)
        assert log.stat().st_size - written(log) > 15 * FRAME
        assert written(log) > 300 * 1000
        assert count(store) == 600
        assert audit.integrity(store, COLLECTIVE) == []


def test_what_another_program_writes_to_the_log_is_not_covered(tmp_path: Path) -> None:
    """We are the only writer by contract; somebody with the SQLite shell is not bound by it."""
    with Store.open(tmp_path / "ledger.db") as store:
        grow(store, 3)
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        for turn in range(40):  # of many pages each, so that the end of the room is passed by either
            other.execute("INSERT INTO state VALUES (?, ?)", (f"other {turn}", bytes([turn]) * 70_000))
            grow(store, 3)
        other.close()
        for turn in range(40):
            assert store.get_state(f"other {turn}") == bytes([turn]) * 70_000
        assert count(store) == 123
        assert audit.integrity(store, COLLECTIVE) == []


def test_a_log_copied_at_any_moment_opens_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        for turn in range(8):
            grow(store, 1 + 31 * turn)
            held = count(store)
            for name in ("ledger.db", "ledger.db-wal"):
                (tmp_path / f"copy{turn}{name}").write_bytes((tmp_path / name).read_bytes())
            (tmp_path / f"copy{turn}ledger.db-wal").rename(tmp_path / f"copy{turn}.db-wal")
            (tmp_path / f"copy{turn}ledger.db").rename(tmp_path / f"copy{turn}.db")
            with Store.open(tmp_path / f"copy{turn}.db") as copy:
                assert count(copy) == held
                assert audit.integrity(copy, COLLECTIVE) == []


def test_without_room_on_the_disk_nothing_is_laid_out_and_commits_go_on(tmp_path: Path) -> None:
    disk = disks.small(tmp_path, 3)
    try:
        log = disk.path / "ledger.db-wal"
        with Store.open(disk.path / "ledger.db") as store:
            disk.fill(leave=50)  # less than is laid out at once
            grow(store, 20)
            assert log.stat().st_size < LEAST
            assert log.stat().st_size == pytest.approx(written(log), abs=FRAME)
            assert count(store) == 20
            disk.free()
            grow(store, 20)
            assert audit.integrity(store, COLLECTIVE) == []
    finally:
        disk.close()
