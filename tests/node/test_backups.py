"""Promises of backups: whole and consistent beside a writer, checked in every byte, never worse than what is there."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from circle import Circle, make_circle

from contrib.rows import text_row
from ledger import events
from ledger.entry import Record
from ledger.store import Store
from node import session as sessions
from node.backups import archive, making, restoring
from node.backups.archive import Manifest
from node.daemon import Daemon
from node.data import recovering, residual
from node.errors import AppendPaused, BackupError, HomeBusy, WrongPassphrase
from node.home import Home
from node.keys import identity
from protocol.errors import FishernetError
from protocol.ids import Digest

WORD = "a long passphrase"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Circle, Path]]:
    """A circle, and a backup of ada with keys and the rows of one data set; tests copy, none changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FISHERNET_PASSPHRASE", raising=False)
        folder = tmp_path_factory.mktemp("made")
        circle = make_circle(folder)
        ada = circle.homes["ada"]
        add_rows(ada, "notes", ["one", "two", "three", "four"])
        (ada.blobs / ("ab" * 32)).write_bytes(b"blob")
        file = folder / "ada.backup"
        making.make(ada, file, passphrase=WORD, blobs=True)
        restored(file, folder / "whole")
        yield circle, file


def copy_of(made: tuple[Circle, Path], path: Path) -> Home:
    """ada's home as it is after a restore from her backup (opening its keys each time would cost a second)."""
    shutil.copytree(made[1].parent / "whole", path)
    return Home.open(path)


def digest_of(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def add_rows(home: Home, dataset: str, texts: list[str]) -> None:
    with sessions.writing(home, None) as session:
        with session.rows() as rows:
            rows.add(dataset, [text_row(text) for text in texts], held_out_ppm=250_000)
        session.commit_data()


def own_size(home: Home) -> int:
    with sessions.reading(home) as session:
        return session.need_seat().fold.sizes[session.member]


def write(home: Home, count: int = 1) -> None:
    with sessions.writing(home, None) as session:
        for _ in range(count):
            session.need_seat().append(events.NodeStarted(versions={}, fork_risk_accepted=False))


def restored(file: Path, path: Path, **given: Any) -> restoring.Restored:
    return restoring.restore(file, path, **{"passphrase": WORD, "replace": False, "running": False, **given})


def test_a_backup_becomes_the_same_node_in_another_place(made: tuple[Circle, Path], tmp_path: Path) -> None:
    circle, file = made
    ada = circle.homes["ada"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    done = restored(file, tmp_path / "new")
    home = Home.open(tmp_path / "new")
    assert {"keys", "ledger.db", "rows.db", "node.toml", "blobs/" + "ab" * 32} <= set(done.taken)
    assert identity.load(home, None).member == identity.member_of(ada)
    assert own_size(home) == done.own_size == own_size(ada)
    assert home.config_file.read_bytes() == ada.config_file.read_bytes()
    with sessions.writing(home, None) as session, session.rows(read_only=True) as rows:
        assert [each.name for each in rows.datasets()] == ["notes"]
        assert session.commit_data() == [], "the rows are those that the feed commits to"
    for path in (home.path, home.keys):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert any("never runs again" in warning for warning in done.warnings)


def test_a_backup_is_one_moment_of_a_ledger_that_is_written_to_meanwhile(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    circle, _ = made
    home, ended = circle.homes["bob"], threading.Event()

    def go_on() -> None:
        with sessions.writing(home, None) as session:
            while not ended.is_set():
                session.need_seat().append(events.NodeStarted(versions={}, fork_risk_accepted=False))

    writer = threading.Thread(target=go_on, daemon=True)
    writer.start()
    try:
        sizes = []
        for number in range(3):
            before = own_size(home)
            found = making.make(home, tmp_path / f"{number}.backup", passphrase=None, blobs=False)
            assert before <= found.own_size <= own_size(home)
            sizes.append(found.own_size)
    finally:
        ended.set()
        writer.join(30)
    done = restored(tmp_path / "2.backup", tmp_path / "new", passphrase=None)
    with Store.open(tmp_path / "new" / "ledger.db", writer=False) as store:
        bob = identity.member_of(home)
        head = store.head(circle.collective, bob)
        assert head is not None
        assert head.size == sizes[2]
        assert len(store.records(circle.collective, bob, 0, 100_000)) == sizes[2]
    assert any("key restore" in warning for warning in done.warnings)
    assert list(tmp_path.glob(".*")) == [], "nothing else is left"


def test_what_is_whole_stays_and_what_is_damaged_or_missing_is_taken(made: tuple[Circle, Path], tmp_path: Path) -> None:
    _, file = made
    home = copy_of(made, tmp_path / "new")
    write(home, 3)
    size = own_size(home)
    (home.blobs / ("ab" * 32)).unlink()
    with home.rows_db.open("r+b") as rows:
        rows.seek(4096)
        rows.write(os.urandom(8192))
    done = restored(file, home.path, passphrase=None)
    assert set(done.taken) == {"rows.db", "blobs/" + "ab" * 32}
    assert "goes as far or further" in done.kept["ledger.db"]
    assert own_size(home) == size, "no entry of our own is taken back"
    with sessions.writing(home, None) as session, session.rows(read_only=True) as store:
        assert [each.train_rows + each.held_out_rows for each in store.datasets()] == [4]
    assert (Path(done.aside) / "rows.db").exists()

    done = restored(file, home.path, passphrase=None, replace=True)
    assert {"ledger.db", "node.toml", "rows.db"} <= set(done.taken)
    assert own_size(home) == done.own_size < size
    assert "keys" in done.kept
    with closing(sqlite3.connect(Path(done.aside) / "ledger.db")) as old:
        assert old.execute("SELECT count(*) FROM entries").fetchone()[0] > 0, "what was here is still there"


def test_a_restore_that_was_interrupted_is_ended_by_the_next_start(made: tuple[Circle, Path], tmp_path: Path) -> None:
    _, file = made
    home = copy_of(made, tmp_path / "new")
    write(home, 2)
    done = restored(file, home.path, passphrase=None, replace=True, running=True)
    assert done.waits
    assert own_size(home) == done.own_size + 2, "a running node's files are not touched"
    taken = Path(home.path / "restore" / "ledger.db")
    home.ledger_db.rename(home.path / "moved.db")  # a stop between the two moves of a file
    assert taken.exists()
    took = restoring.take_staged(home)
    assert took is not None
    assert "ledger.db" in took.taken
    assert own_size(home) == done.own_size
    assert restoring.take_staged(home) is None


def test_a_home_of_another_member_or_with_something_else_in_it_or_in_use_is_left_alone(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    circle, file = made
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(BackupError, match="not empty"):
        restored(file, tmp_path / "full", passphrase=None)
    with pytest.raises(BackupError, match="is of member"):
        restored(file, circle.homes["cyd"].path, passphrase=None)
    home = copy_of(made, tmp_path / "new")
    with home.lock(), pytest.raises(HomeBusy):
        restored(file, home.path, passphrase=None, replace=True)
    with pytest.raises(BackupError, match="never overwritten"):
        making.make(home, file, passphrase=None, blobs=False)


def rewritten(file: Path, out: Path, change: Any) -> Path:
    """A copy of a tar file with `change(name, data)` in the place of each member; None leaves it out."""
    with tarfile.open(file) as old, tarfile.open(out, "w") as new:
        for info in old:
            content = old.extractfile(info)
            data = change(info.name, content.read() if content else b"")
            for name, each in data if isinstance(data, list) else [(info.name, data)]:
                if each is not None:
                    copy = tarfile.TarInfo(name)
                    copy.size = len(each)
                    new.addfile(copy, io.BytesIO(each))
    return out


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda n, d: d[:-1] + b"x" if n == "ledger.db" else d, "damaged"),
        (lambda n, d: None if n == "rows.db" else d, "missing|not what"),
        (lambda n, d: d + b" " if n == "node.toml" else d, "not what"),
        (lambda n, d: [(n, d), ("../evil", b"x")] if n == "node.toml" else d, "not what"),
        (
            lambda n, d: d.replace(b'"own_size": ', b'"own_size": 1') if n == "manifest.json" else d,
            "somebody has changed",
        ),
        (lambda n, d: None if n == "seal.json" else d, "seal is missing"),
        (
            lambda n, d: d.replace(b'"rows.db"', b'"../r.db"') if n == "manifest.json" else d,
            "no file of a home",
        ),
        (lambda n, d: None if n == "manifest.json" else d, "begin with a manifest"),
        (lambda n, d: b"{" if n == "manifest.json" else d, "manifest is damaged"),
    ],
)
def test_every_change_of_the_file_is_found_out_and_leaves_nothing(
    made: tuple[Circle, Path], tmp_path: Path, change: Any, cause: str
) -> None:
    _, file = made
    word = WORD if "seal" in cause or "somebody" in cause else None
    with pytest.raises(BackupError, match=cause):
        restored(rewritten(file, tmp_path / "changed.backup", change), tmp_path / "new", passphrase=word)
    assert [p.name for p in tmp_path.iterdir()] == ["changed.backup"]


def test_a_file_that_is_cut_off_is_no_backup_and_a_wrong_passphrase_opens_none(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    _, file = made
    data = file.read_bytes()
    for size in (0, 300, 5000, len(data) // 2, len(data) - 12_000):
        (tmp_path / "cut.backup").write_bytes(data[:size])
        with pytest.raises(BackupError):
            restored(tmp_path / "cut.backup", tmp_path / "new", passphrase=None)
    with pytest.raises((BackupError, WrongPassphrase), match="wrong passphrase"):
        restored(file, tmp_path / "new", passphrase="another one")
    assert not (tmp_path / "new").exists()


def test_a_node_that_still_answers_where_the_backup_listened_is_warned_about(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    circle, _ = made
    home = circle.homes["cyd"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = home.config_file.read_text()
        home.config_file.write_text(text.replace("/ip4/0.0.0.0/tcp/4242", f"/ip4/0.0.0.0/tcp/{port}"))
        try:
            making.make(home, tmp_path / "cyd.backup", passphrase=None, blobs=False)
        finally:
            home.config_file.write_text(text)

        def greet() -> None:
            with server.accept()[0] as peer:
                peer.sendall(b"\x13/multistream/1.0.0\n")

        first = threading.Thread(target=greet, daemon=True)
        first.start()
        done = restored(tmp_path / "cyd.backup", tmp_path / "second", passphrase=None)
        first.join(10)
    assert any(f"answers at /ip4/0.0.0.0/tcp/{port}" in warning and "fork" in warning for warning in done.warnings)


def test_a_manifest_is_read_as_it_was_written(made: tuple[Circle, Path]) -> None:
    _, file = made
    found = archive.look(file)
    assert isinstance(found, Manifest)
    assert archive.parse(found.to_bytes()) == found


# -- after a restore -----------------------------------------------------------------------------------------------------
def published(number: int, run: str) -> events.Published:
    return events.Published(epoch=digest_of("epoch"), number=number, blob=digest_of(run), size=9, run=run)


def restored_pair(made: tuple[Circle, Path], tmp_path: Path, *later: Any) -> tuple[Home, int]:
    """ada restored from her old backup, then given back what she wrote after it; returns how long the restored feed was."""
    circle, _ = made
    first = copy_of(made, tmp_path / "first")
    with sessions.writing(first, None) as session:
        for event in later:
            session.need_seat().append(event)
    home = copy_of(made, tmp_path / "second")
    held = own_size(home)
    with sessions.writing(first, None) as source, sessions.writing(home, None) as session:
        head = source.store.heads(circle.collective, source.member)[0]
        page = source.store.records(circle.collective, source.member, held)
        fresh = session.store.append_foreign(circle.collective, source.member, page, head.note)
        session.need_seat().receive(source.member, fresh)
        session.store.put_state(residual.STATE, b"old residual")
        session.store.put_state(residual.FIRST, b"first")
    return home, held


def test_the_residual_of_an_old_backup_is_dropped_and_its_runs_are_not_published_again(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    home, held = restored_pair(made, tmp_path, published(1, "run-5"), published(2, "run-7"))
    with sessions.writing(home, None) as session:
        assert recovering.settle(session, held) == []
        state = session.store.get_state
        assert state(residual.STATE) == residual.nothing()[residual.STATE]
        assert state(residual.STATE + ".run") == b"run-7"
        assert state(residual.FIRST) == b"first"
        assert home.rows_db.exists()
        session.store.put_state(residual.STATE, b"new")
        assert recovering.settle(session, own_size(home)) == []
        assert state(residual.STATE) == b"new", "a feed that was whole changes nothing"
        recovering.note(session.store, own_size(home) - 1)
        recovering.note(session.store, own_size(home))
    with sessions.writing(home, None) as session:
        recovering.settle(session, own_size(home))
        assert session.store.get_state(residual.STATE) != b"new", "what came back before a stop is seen to after it"
        session.store.put_state(residual.STATE, b"new")
        recovering.settle(session, own_size(home))
        assert session.store.get_state(residual.STATE) == b"new", "once"


def test_a_node_that_may_write_and_gets_own_entries_that_it_did_not_write_writes_nothing_more(
    made: tuple[Circle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    twin, home = (copy_of(made, tmp_path / name) for name in ("twin", "home"))
    with sessions.writing(twin, None) as session:
        for _ in range(2):
            session.need_seat().append(events.NodeAlive())
        collective, me = session.need_seat().collective, session.member
        (head,) = session.store.heads(collective, me)
        pages = [[record] for record in session.store.records(collective, me, head.size - 2)]
    with sessions.writing(home, None) as session:
        seat = session.need_seat()

        def taken(page: list[Record]) -> str | None:
            recovering.receive(session, me, session.store.append_foreign(collective, me, page, head.note))
            return seat.paused

        Daemon(session)
        assert seat.paused, "it has not asked yet how long its feed is"
        asking = seat.paused
        assert taken(pages[0]) == asking, "so they come back because it asked"
        seat.pause(None)
        assert "another node writes with this node's key" in (taken(pages[1]) or "")
        with pytest.raises(AppendPaused):
            seat.append(events.NodeAlive())


def test_rows_that_were_forgotten_after_the_backup_do_not_come_back_with_it(
    made: tuple[Circle, Path], tmp_path: Path
) -> None:
    erased = events.ErasureRequested(
        dataset="notes", scope="row", rows=1, request=digest_of("request"), contributions=(), entries=(), deadline=1
    )
    fewer = events.DataCommitted(
        dataset="notes", train_rows=3, held_out_rows=0, train_root=digest_of("fewer"), held_out_root=digest_of("none")
    )
    home, held = restored_pair(made, tmp_path, fewer, erased)
    with sessions.writing(home, None) as session:
        assert recovering.settle(session, held) == ["notes"]
        assert not home.rows_db.exists()
        assert home.withheld_rows.exists()
        assert session.store.get_state(residual.FIRST) == residual.nothing()[residual.FIRST]
        assert session.commit_data() == [], "and the old rows are not committed to again"


def test_rows_that_were_not_restored_stay_where_they_are(made: tuple[Circle, Path], tmp_path: Path) -> None:
    circle, _ = made
    with sessions.reading(circle.homes["ada"]) as session:
        known = session.need_seat().fold.data[session.member]["notes"]
    erased = events.ErasureRequested(
        dataset="notes", scope="row", rows=1, request=digest_of("request"), contributions=(), entries=(), deadline=1
    )
    home, held = restored_pair(made, tmp_path, erased)
    with sessions.writing(home, None) as session:
        assert session.need_seat().fold.data[session.member]["notes"] == known
        assert recovering.settle(session, held) == [], "they are those of the last commitment"
        assert home.rows_db.exists()


def test_a_copy_of_a_damaged_ledger_is_no_backup(made: tuple[Circle, Path], tmp_path: Path) -> None:
    home = copy_of(made, tmp_path / "new")
    with home.ledger_db.open("r+b") as ledger:
        ledger.seek(3 * 4096)
        ledger.write(os.urandom(8192))
    with pytest.raises(FishernetError, match=r"damaged|malformed"):
        making.make(home, tmp_path / "bad.backup", passphrase=None, blobs=False)
    assert not (tmp_path / "bad.backup").exists()
