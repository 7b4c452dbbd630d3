"""Kills, torn logs, full disks, old backups, second processes: what was acknowledged is there, or its loss is said.

A store alone cannot tell that its tail is gone: SQLite opens a torn log as a shorter history without a word. Which losses
only the other members can notice stands in the name of the test.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ledger import audit
from ledger.collective import Collective
from ledger.compliance.facts import Facts
from ledger.compliance.signs import links
from ledger.entry import Record
from ledger.errors import FeedBehind, FeedFrozen, ForkSeen, StoreBroken
from ledger.store import Draft, Store
from protocol import keys
from protocol.ids import CollectiveId

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
APPENDER = Path(__file__).with_name("appender.py")
ROOT = Path(__file__).parents[2]


def appender(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(APPENDER), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def grow(store: Store, count: int, mark: str = "") -> list[Record]:
    return [
        store.append(KEY, COLLECTIVE, "test.event", {"n": n, "mark": mark}, now_ms=n, salt=bytes(16))
        for n in range(count)
    ]


def note(store: Store) -> bytes:
    return store.heads(COLLECTIVE, MEMBER)[0].note


# Kills


def kill_rounds(path: Path, rounds: int, seed: int) -> int:
    """Start, let append, kill -9, over and over; each start must have all that was acknowledged. The number of entries."""
    chance, acknowledged = random.Random(seed), -1
    for _ in range(rounds):
        process = appender(str(path))
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        printed = (first + process.stdout.read()).split(b"\n")[:-1]
        said = process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        process.wait()
        assert printed, f"the appender died before it was killed: {said.decode()}"
        assert int(printed[0]) > acknowledged  # it went on after what was acknowledged before
        acknowledged = int(printed[-1])
    with Store.open(path) as store:
        head = store.head(COLLECTIVE, MEMBER)
        assert head is not None
        assert head.size > acknowledged
        assert head.size == int.from_bytes(store.get_state("count") or b"", "big")  # state moves with the entries
        assert audit.integrity(store, COLLECTIVE) == []
        return head.size


def test_kill_9_loses_no_acknowledged_entry(tmp_path: Path) -> None:
    kill_rounds(tmp_path / "ledger.db", 25, seed=9)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_kills_lose_no_acknowledged_entry(tmp_path: Path) -> None:
    assert kill_rounds(tmp_path / "ledger.db", 1000, seed=10) > 10_000


# A log that is torn, bent or gone


def copied(source: Path, target: Path, *, with_log: bool = True) -> Path:
    """The bytes of a ledger as they lie on the disk while its writer runs."""
    target.mkdir()
    for name in ("ledger.db", "ledger.db-wal") if with_log else ("ledger.db",):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target / "ledger.db"


def check_is_an_honest_prefix(path: Path, written: list[Record], remembered: bytes) -> int:
    """What opens is a prefix that verifies; with another member's memory of the head the node refuses to go on."""
    with Store.open(path) as store:
        held = store.records(COLLECTIVE, MEMBER, 0, 1000)
        assert held == written[: len(held)]
        assert audit.integrity(store, COLLECTIVE) == []
        if len(held) < len(written):
            store.append_foreign(COLLECTIVE, MEMBER, [], remembered)
            assert [f.code for f in audit.integrity(store, COLLECTIVE)] == ["tail-missing"]
            with pytest.raises(FeedBehind, match=f"{len(written)} entries of this feed were signed before; fetch them"):
                grow(store, 1, "a fork in the making")
            store.append_foreign(COLLECTIVE, MEMBER, written[len(held) :], None)
        grow(store, 1)
        assert audit.integrity(store, COLLECTIVE) == []
        return len(held)


@pytest.mark.parametrize("how", ["torn", "flipped", "gone"])
def test_a_lost_tail_of_the_log_is_noticed_by_the_memory_of_other_members_only(tmp_path: Path, how: str) -> None:
    chance = random.Random(how)
    (tmp_path / "home").mkdir()
    with Store.open(tmp_path / "home" / "ledger.db") as store:
        store.put_state("first", b"1")
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        written = grow(store, 40)
        remembered = note(store)
        lost = 0
        for turn in range(12 if how != "gone" else 1):
            path = copied(tmp_path / "home", tmp_path / f"{how}{turn}", with_log=how != "gone")
            if how != "gone":
                log = bytearray((path.parent / "ledger.db-wal").read_bytes())
                place = chance.randrange(32, len(log.rstrip(b"\0")))  # what follows is room that was laid out
                if how == "torn":
                    del log[place:]
                else:
                    log[place] ^= 1 << chance.randrange(8)
                (path.parent / "ledger.db-wal").write_bytes(bytes(log))
            lost += check_is_an_honest_prefix(path, written, remembered) < len(written)
    assert lost  # the damage was real


def test_no_page_of_the_file_can_be_lost_without_a_word(tmp_path: Path) -> None:
    """Each page is zeroed in turn: it is said, or everything that was written is still read (an empty table's page)."""
    path = tmp_path / "ledger.db"
    with Store.open(path) as store:
        written = grow(store, 70)
        note(store)
        heads = store.raw_heads(COLLECTIVE, MEMBER)
    whole, said = path.read_bytes(), 0
    for at in range(4096, len(whole), 4096):
        path.write_bytes(whole[:at] + bytes(4096) + whole[at + 4096 :])
        try:
            with Store.open(path, writer=False) as store:
                found = audit.integrity(store, COLLECTIVE)
                assert found or (store.records(COLLECTIVE, MEMBER), store.raw_heads(COLLECTIVE, MEMBER)) == (
                    written,
                    heads,
                )
        except StoreBroken:
            found = ["said when it was opened or read"]
        said += bool(found)
    assert said > len(whole) // 4096 // 2


# A full disk


def test_a_file_that_may_not_grow_stops_the_appender_with_a_reason_and_loses_nothing(tmp_path: Path) -> None:
    process = appender(str(tmp_path / "ledger.db"), str(400_000))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err.decode()
    assert err.startswith((b"store-full: couldn't append", b"store-broken: couldn't append"))
    acknowledged = int(out.split()[-1])
    with Store.open(tmp_path / "ledger.db") as store:
        head = store.head(COLLECTIVE, MEMBER)
        assert head is not None
        assert head.size > acknowledged
        assert audit.integrity(store, COLLECTIVE) == []
        grow(store, 1)
        assert audit.integrity(store, COLLECTIVE) == []


# A clock that jumps


def test_a_clock_that_is_set_back_breaks_no_chain_and_is_named_at_the_entry(tmp_path: Path) -> None:
    """Between two appends, inside a batch it cannot: the time is read once. Order is the chain's, never the clock's."""
    drafts = [Draft(type="test.event", body={"n": n}, salt=bytes(16)) for n in range(3)]
    hour, written, fold = 3_600_000, list[Record](), Collective(COLLECTIVE)
    with Store.open(tmp_path / "ledger.db") as store:
        for now in (2 * hour, hour, hour + 1, 0, 3 * hour):
            written += store.append_all(KEY, COLLECTIVE, drafts, now_ms=now)
        assert store.records(COLLECTIVE, MEMBER) == written
        assert audit.integrity(store, COLLECTIVE) == []
    with Store.open(tmp_path / "ledger.db") as store:
        written += store.append_all(KEY, COLLECTIVE, drafts, now_ms=1)
        assert audit.integrity(store, COLLECTIVE) == []
    facts = Facts()
    facts.add(written)
    facts.settle(fold)
    said = [(s.seq, s.id, s.severity) for s in links(facts, [MEMBER], {}, 9 * hour)]
    assert said == [(at, "ts-backwards", "notice") for at in (3, 9, 15)]


# Two of one


def test_a_second_process_on_one_home_is_kept_out_and_told_who_is_there(tmp_path: Path) -> None:
    first = appender(str(tmp_path / "ledger.db"))
    assert first.stdout is not None
    assert first.stdout.readline()
    second = appender(str(tmp_path / "ledger.db"))
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (3, b"")
    assert f"another daemon or command uses this home (process {first.pid})".encode() in err
    first.kill()
    first.communicate()
    with Store.open(tmp_path / "ledger.db") as store:  # the dead process holds nothing
        assert audit.integrity(store, COLLECTIVE) == []


def test_two_homes_with_one_key_are_convicted_by_any_member_that_sees_both(tmp_path: Path) -> None:
    with Store.open(tmp_path / "mirror.db") as mirror:
        for name in ("first", "second"):
            process = appender(str(tmp_path / f"{name}.db"))
            assert process.stdout is not None
            assert process.stdout.readline()
            process.kill()
            process.communicate()
        with Store.open(tmp_path / "first.db") as first, Store.open(tmp_path / "second.db") as second:
            mirror.append_foreign(COLLECTIVE, MEMBER, first.records(COLLECTIVE, MEMBER), None)
            with pytest.raises(ForkSeen):
                mirror.append_foreign(COLLECTIVE, MEMBER, second.records(COLLECTIVE, MEMBER), None)
        assert [f.code for f in audit.integrity(mirror, COLLECTIVE)] == ["fork"]


def test_an_old_backup_that_appends_is_convicted_by_the_other_members_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Store.open(home / "ledger.db") as store, Store.open(tmp_path / "mirror.db") as mirror:
        grow(store, 5)
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        backup = copied(home, tmp_path / "backup")
        grow(store, 5)
        mirror.append_foreign(COLLECTIVE, MEMBER, store.records(COLLECTIVE, MEMBER), note(store))
        with Store.open(backup) as restored:
            assert audit.integrity(restored, COLLECTIVE) == []  # nothing in it is wrong
            grow(restored, 2, "after the restore")
            assert audit.integrity(restored, COLLECTIVE) == []
            with pytest.raises(ForkSeen) as caught:
                mirror.append_foreign(COLLECTIVE, MEMBER, restored.records(COLLECTIVE, MEMBER, 5), None)
            restored.add_fork(caught.value.fork)  # told, it knows, and stops
            with pytest.raises(FeedFrozen):
                grow(restored, 1)


def test_an_old_backup_that_asks_the_other_members_first_goes_on_without_a_fork(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Store.open(home / "ledger.db") as store, Store.open(tmp_path / "mirror.db") as mirror:
        grow(store, 5)
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        backup = copied(home, tmp_path / "backup")
        grow(store, 5)
        mirror.append_foreign(COLLECTIVE, MEMBER, store.records(COLLECTIVE, MEMBER), note(store))
        with Store.open(backup) as restored:
            restored.append_foreign(COLLECTIVE, MEMBER, [], note(mirror))
            with pytest.raises(FeedBehind):
                restored.append_all(KEY, COLLECTIVE, [Draft(type="t", body={}, salt=bytes(16))], now_ms=0)
            restored.append_foreign(COLLECTIVE, MEMBER, mirror.records(COLLECTIVE, MEMBER, 5), None)
            added = grow(restored, 2)
            mirror.append_foreign(COLLECTIVE, MEMBER, added, note(restored))
            assert mirror.forks(COLLECTIVE) == []
            assert audit.integrity(mirror, COLLECTIVE) == audit.integrity(restored, COLLECTIVE) == []
