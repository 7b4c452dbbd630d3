"""Disks that are full or stop taking writes: nothing acknowledged is lost, nothing half stands, it is said, and it goes on.

On real small disks where this process may mount some, and everywhere with a database that may not grow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import disks
import pytest
from disks import Disk

from ledger import audit
from ledger.entry import Record
from ledger.errors import EraseUnfinished, StoreBroken, StoreFull
from ledger.store import Draft, Store
from protocol import keys
from protocol.ids import CollectiveId

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
FULL = "the disk is full; nothing was written, free some space"
Fill = Callable[[Store], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = disks.small(tmp_path, 3)
    yield found
    found.close()


def draft(number: int, kind: str = "test.event", padding: int = 700) -> Draft:
    return Draft(type=kind, body={"number": number, "padding": "x" * padding}, salt=bytes(16))


def grow(store: Store, count: int, kind: str = "test.event") -> list[Record]:
    return [store.append_all(KEY, COLLECTIVE, [draft(n, kind)], now_ms=n)[0] for n in range(count)]


def grow_until_full(store: Store, batch: int = 1) -> list[Record]:
    """Append until there is no room, as a node would: what is returned was acknowledged."""
    written: list[Record] = []
    for number in itertools.count():
        try:
            drafts = [draft(number) for _ in range(batch)]
            count = {"count": (len(written) + batch).to_bytes(8, "big")}
            written += store.append_all(KEY, COLLECTIVE, drafts, now_ms=number, state=count)
        except StoreFull as e:
            assert str(e) == f"couldn't append test.event: {FULL}"  # noqa: PT017
            return written
    raise AssertionError


def check_holds(store: Store, written: list[Record]) -> None:
    """Exactly what was acknowledged stands there: no entry lost, none half, the state with them, one clean chain."""
    assert store.records(COLLECTIVE, MEMBER, 0, 100_000) == written
    assert int.from_bytes(store.get_state("count") or b"", "big") == len(written)
    assert audit.integrity(store, COLLECTIVE) == []


def recount(store: Store, written: list[Record], padding: int = 700) -> list[Record]:
    """One more entry, with the state row that `check_holds` expects."""
    count = {"count": (len(written) + 1).to_bytes(8, "big")}
    return [*written, *store.append_all(KEY, COLLECTIVE, [draft(0, padding=padding)], now_ms=0, state=count)]


# A full disk


@pytest.mark.parametrize("batch", [1, 40])
def test_a_full_disk_takes_nothing_half_and_goes_on_when_there_is_room(disk: Disk, batch: int) -> None:
    path = disk.path / "ledger.db"
    with Store.open(path) as store:
        disk.fill(leave=100)
        written = grow_until_full(store, batch)
        assert written
        for _ in range(3):  # asking again changes nothing
            with pytest.raises(StoreFull, match=FULL):
                store.append_all(KEY, COLLECTIVE, [draft(n) for n in range(60)], now_ms=0)
        check_holds(store, written)
    with Store.open(path, writer=False) as store:  # the same after a stop, and while it is still full
        check_holds(store, written)
    disk.free()
    with Store.open(path) as store:
        written = recount(store, written)
        check_holds(store, written)


def test_a_log_that_cannot_be_merged_into_a_full_disk_loses_nothing(disk: Disk) -> None:
    with Store.open(disk.path / "ledger.db") as store:
        disk.fill(leave=200)
        written = grow_until_full(store)
        with pytest.raises(Exception, match="full"):
            store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        check_holds(store, written)
        disk.free()
        assert store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        written = recount(store, written)
        check_holds(store, written)


def test_a_log_that_merges_by_itself_into_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """SQLite merges at 16 MB by itself, after a commit: where it cannot, that commit stands all the same."""
    disk = disks.small(tmp_path, 48)  # the log and, once it is merged, nearly the same again
    path, log = disk.path / "ledger.db", disk.path / "ledger.db-wal"
    try:
        with Store.open(path) as store:
            written: list[Record] = []
            while log.stat().st_size < 15 << 20:
                written = recount(store, written, padding=30_000)
            disk.fill(leave=700)  # room for the rest of the log, none for the file
            with pytest.raises(StoreFull):  # noqa: PT012
                while True:
                    written = recount(store, written, padding=30_000)
            assert log.stat().st_size > 4000 * 4096  # the merge was tried
            check_holds(store, written)
            disk.free()
            for _ in range(3):
                written = recount(store, written)
            check_holds(store, written)
        assert not log.exists()
        with Store.open(path) as store:
            check_holds(store, written)
    finally:
        disk.close()


@pytest.mark.parametrize("leave", [0, 2, 5, 9])
def test_a_ledger_that_has_no_room_to_open_says_so_and_is_whole(disk: Disk, leave: int) -> None:
    path = disk.path / "ledger.db"
    with Store.open(path) as store:
        written = recount(store, [])
    disk.fill(leave)
    with pytest.raises(StoreFull, match=FULL), Store.open(path) as store:
        store.append_all(KEY, COLLECTIVE, [draft(n) for n in range(20)], now_ms=0)
    disk.free()
    with Store.open(path) as store:
        check_holds(store, written)
        check_holds(store, recount(store, written))


def test_a_ledger_that_could_not_be_made_can_be_made_later(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(StoreFull, match=f"couldn't open ledger ledger.db: {FULL}"):
        Store.open(disk.path / "ledger.db")
    disk.free()
    with Store.open(disk.path / "ledger.db") as store:
        check_holds(store, recount(store, []))


@pytest.mark.parametrize("leave", [0, 12, 24, 36, 48])
def test_an_erasure_on_a_full_disk_is_finished_later_even_by_another_process(disk: Disk, leave: int) -> None:
    path, mark = disk.path / "ledger.db", b"x" * 700
    with Store.open(path) as store:
        grow(store, 100, "data.used")
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        disk.fill(leave)
        everything = [(MEMBER, n) for n in range(100)]
        with pytest.raises((StoreFull, EraseUnfinished), match="the disk is full") as caught:
            store.erase_bodies(COLLECTIVE, everything, vacuum=True)
        left = sum(record.body is not None for record in store.records(COLLECTIVE, MEMBER))
        assert left == (0 if caught.type is EraseUnfinished else 100)  # all or none
        assert {f.code for f in audit.integrity(store, COLLECTIVE)} <= audit.NOTICES
    disk.free()
    rewritten: list[str] = []
    with Store.open(path) as store:
        store._connection.set_trace_callback(rewritten.append)
        store.erase_bodies(COLLECTIVE, everything, vacuum=left > 0)
        assert "VACUUM" in rewritten  # also when the bodies had been deleted before the stop
        rewritten.clear()
        store.erase_bodies(COLLECTIVE, everything)
        assert "VACUUM" not in rewritten
        assert {f.code for f in audit.integrity(store, COLLECTIVE)} <= audit.NOTICES
        for name in ("ledger.db", "ledger.db-wal"):
            assert mark not in (disk.path / name).read_bytes()


def test_a_database_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    """The same promise where nothing can be mounted."""
    with Store.open(tmp_path / "ledger.db") as store:
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 40}")
        written = grow_until_full(store, 3)
        assert written
        check_holds(store, written)
        store._connection.execute("PRAGMA max_page_count = 1000000")
        check_holds(store, recount(store, written))


# A disk that stops taking writes


def test_a_disk_that_turns_read_only_in_mid_run_stops_the_writer_with_its_reason_and_loses_nothing(
    tmp_path: Path,
) -> None:
    disk = disks.failing(tmp_path, 8)
    path = disk.path / "ledger.db"
    try:
        with Store.open(path) as store:
            written = recount(store, recount(store, []))
            disk.fail()
            for doing in (
                lambda: store.append_all(KEY, COLLECTIVE, [draft(0)], now_ms=0),
                lambda: store.put_state("x", b"1"),
                lambda: store.erase_bodies(COLLECTIVE, [], vacuum=True),
            ):
                with pytest.raises(StoreBroken, match="the file system is read-only; nothing was written"):
                    doing()  # type: ignore[no-untyped-call]
            check_holds(store, written)
        with pytest.raises(StoreBroken, match=r"couldn't open ledger .*: the file system is read-only"):
            Store.open(path)
        with Store.open(path, writer=False) as store:  # who only reads can go on
            check_holds(store, written)
    finally:
        disk.close()
