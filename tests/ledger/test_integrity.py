"""The audit of what is stored: every tampering that hashes can see is found, at its place, and nothing else is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import audit, checkpoint, entry
from ledger.audit import Finding
from ledger.errors import ForkSeen, StoreBroken
from ledger.reading import BODIES, LINES
from ledger.store import Draft, Store
from ledger.tree import INSERT_NODE, INSERT_TILE, GrowingTree, node_rows, place_of, tile_rows
from protocol import keys
from protocol.ids import ZERO, CollectiveId, Digest, digest
from protocol.merkle import leaf_hash

KEY, OTHER = keys.SigningKey(b"\x01" * 32), keys.SigningKey(b"\x02" * 32)
MEMBER, STRANGER = keys.member_id(KEY), keys.member_id(OTHER)
COLLECTIVE, SECOND = CollectiveId("cc" * 32), CollectiveId("dd" * 32)
SIZE = 64  # a tile of the tree is full


def write(store: Store, key: keys.SigningKey, collective: CollectiveId, count: int, mark: str = "") -> None:
    """Entries with a signed head after each of them."""
    for n in range(count):
        store.append(key, collective, "test.event", {"n": n, "mark": mark}, now_ms=n, salt=bytes([n]) * 16)
        store.heads(collective)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feed 1 is MEMBER's, feed 2 STRANGER's, feed 3 MEMBER's in another collective."""
    path = tmp_path_factory.mktemp("honest") / "ledger.db"
    with Store.open(path) as store:
        write(store, KEY, COLLECTIVE, SIZE)
        write(store, OTHER, COLLECTIVE, SIZE)
        write(store, KEY, SECOND, SIZE)
    return path


@pytest.fixture
def ledger(honest: Path, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "ledger.db"
    shutil.copy(honest, copy)
    yield copy
    with Store.open(honest, writer=False) as store:  # the honest twin has no finding
        assert audit.integrity(store, COLLECTIVE) == audit.integrity(store, SECOND) == []


def tamper(path: Path, *statements: str) -> None:
    """What somebody with a database tool can do: take the triggers away, change, put them back."""
    database = sqlite3.connect(path)
    triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    for _, sql in triggers:
        database.execute(sql)
    database.commit()
    database.close()


def findings(path: Path, collective: CollectiveId = COLLECTIVE) -> list[Finding]:
    with Store.open(path, writer=False) as store:
        return audit.integrity(store, collective)


def line_of(path: Path, feed: int, seq: int) -> bytes:
    database = sqlite3.connect(path)
    line = database.execute("SELECT line FROM entries WHERE feed = ? AND seq = ?", (feed, seq)).fetchone()[0]
    database.close()
    return bytes(line)


def hexed(data: bytes) -> str:
    return f"x'{data.hex()}'"


def put_line(line: bytes, feed: int, seq: int) -> str:
    """The careful attacker changes the stored leaf hash too."""
    values = f"line = {hexed(line)}, leaf = {hexed(leaf_hash(line))}"
    return f"UPDATE entries SET {values} WHERE feed = {feed} AND seq = {seq}"  # noqa: S608


def edited_line(path: Path) -> list[str]:
    return [put_line(line_of(path, 1, 3).replace(b'"ts":3', b'"ts":4'), 1, 3)]


def respaced_line(path: Path) -> list[str]:
    return [put_line(line_of(path, 1, 3).replace(b'"ts":3', b'"ts": 3'), 1, 3)]


def swapped(path: Path) -> list[str]:
    return [put_line(line_of(path, 1, 4), 1, 3), put_line(line_of(path, 1, 3), 1, 4)]


def repeated(path: Path) -> list[str]:
    return [put_line(line_of(path, 1, 2), 1, 3)]


def from_another_feed(path: Path) -> list[str]:
    return [put_line(line_of(path, 2, 3), 1, 3)]


def from_another_collective(path: Path) -> list[str]:
    return [put_line(line_of(path, 3, 3), 1, 3)]


TAMPERINGS: dict[str, tuple[Callable[[Path], list[str]], str, int]] = {
    "a line is edited": (edited_line, "bad-signature", 3),
    "a line is spelled otherwise": (respaced_line, "not-canonical", 3),
    "a line is emptied": (lambda _: [put_line(b"", 1, 3)], "malformed", 3),
    "two lines are swapped": (swapped, "wrong-place", 3),
    "a line is repeated": (repeated, "wrong-place", 3),
    "a line comes from another feed": (from_another_feed, "wrong-feed", 3),
    "a line comes from another collective": (from_another_collective, "wrong-feed", 3),
    "an entry is deleted": (lambda _: ["DELETE FROM entries WHERE feed = 1 AND seq = 3"], "gap", 3),
    "the first entry is deleted": (lambda _: ["DELETE FROM entries WHERE feed = 1 AND seq = 0"], "gap", 0),
    "the tail is deleted": (lambda _: ["DELETE FROM entries WHERE feed = 1 AND seq > 4"], "tail-missing", 5),
    "all entries are deleted": (lambda _: ["DELETE FROM entries WHERE feed = 1"], "tail-missing", 0),
    "a leaf hash is edited": (
        lambda _: ["UPDATE entries SET leaf = zeroblob(32) WHERE feed = 1 AND seq = 3"],
        "leaf-mismatch",
        3,
    ),
    "a body is edited": (
        lambda _: ["UPDATE entries SET data = CAST('{}' AS BLOB) WHERE feed = 1 AND seq = 3"],
        "bad-commitment",
        3,
    ),
    "a salt is edited": (
        lambda _: ["UPDATE entries SET salt = zeroblob(16) WHERE feed = 1 AND seq = 3"],
        "bad-commitment",
        3,
    ),
    "a salt is cut": (
        lambda _: ["UPDATE entries SET salt = zeroblob(3) WHERE feed = 1 AND seq = 3"],
        "malformed",
        3,
    ),
    "a body is deleted": (
        lambda _: ["UPDATE entries SET salt = NULL, data = NULL WHERE feed = 1 AND seq = 3"],
        "body-missing",
        3,
    ),
    "a head's signature is edited": (
        lambda _: ["UPDATE heads SET signature = zeroblob(64) WHERE feed = 1 AND size = 4"],
        "bad-head",
        3,
    ),
    "a head's root is edited": (
        lambda _: ["UPDATE heads SET root = zeroblob(32) WHERE feed = 1 AND size = 4"],
        "bad-head",
        3,
    ),
    "a head's root is cut": (
        lambda _: ["UPDATE heads SET root = zeroblob(3) WHERE feed = 1 AND size = 4"],
        "bad-head",
        3,
    ),
    "a node of the tree is edited": (
        lambda _: [
            "UPDATE tiles SET hashes = CAST(substr(hashes, 1, 96 * 32) || zeroblob(32) || substr(hashes, 97 * 32 + 1) AS BLOB)"
            " WHERE feed = 1 AND number = 0"
        ],
        "node-mismatch",
        3,
    ),
    "a leaf in the tree is edited": (
        lambda _: [
            "UPDATE tiles SET hashes = CAST(zeroblob(32) || substr(hashes, 33) AS BLOB) WHERE feed = 1 AND number = 0"
        ],
        "node-mismatch",
        0,
    ),
    "a tile of the tree is cut": (
        lambda _: ["UPDATE tiles SET hashes = substr(hashes, 1, 125 * 32) WHERE feed = 1 AND number = 0"],
        "node-mismatch",
        63,
    ),
    "a tile of the tree is too long": (
        lambda _: ["UPDATE tiles SET hashes = CAST(hashes || zeroblob(32) AS BLOB) WHERE feed = 1 AND number = 0"],
        "node-mismatch",
        63,
    ),
    "a tile of the tree is deleted": (lambda _: ["DELETE FROM tiles WHERE feed = 1"], "node-mismatch", 63),
    "a tile of the tree is invented": (
        lambda _: ["INSERT INTO tiles (place, hashes) VALUES ((1 << 40) + 9, zeroblob(4032))"],
        "node-mismatch",
        -1,
    ),
    "a high node of the tree is edited": (
        lambda _: ["UPDATE nodes SET hash = zeroblob(32) WHERE feed = 1 AND level = 6 AND idx = 0"],
        "node-mismatch",
        63,
    ),
    "a high node of the tree is deleted": (
        lambda _: ["DELETE FROM nodes WHERE feed = 1 AND level = 6 AND idx = 0"],
        "node-mismatch",
        63,
    ),
    "a node of the tree is invented": (
        lambda _: ["INSERT INTO nodes VALUES (1, 1, 9, zeroblob(32))"],
        "node-mismatch",
        -1,
    ),
    "the feed is deleted from the table of feeds": (lambda _: ["DELETE FROM feeds WHERE id = 1"], "feed-missing", -1),
    "an invented fork proof": (lambda _: ["INSERT INTO forks VALUES (1, zeroblob(9))"], "bad-proof", -1),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_at_its_place(ledger: Path, name: str) -> None:
    make, code, seq = TAMPERINGS[name]
    tamper(ledger, *make(ledger))
    found = findings(ledger)
    assert (found[0].code, found[0].member, found[0].seq) == (code, MEMBER, None if seq < 0 else seq)
    assert {f.member for f in found} == {MEMBER}
    assert all(f.seq is None or f.seq >= seq for f in found)
    assert findings(ledger, SECOND) == []


@pytest.mark.parametrize("name", TAMPERINGS)
def test_checkpoint_mode_finds_what_no_signature_and_no_body_is_needed_for(ledger: Path, name: str) -> None:
    make, code, seq = TAMPERINGS[name]
    tamper(ledger, *make(ledger))
    with Store.open(ledger, writer=False) as store:
        found = audit.integrity(store, COLLECTIVE, mode="checkpoint")
    if any(part in name for part in ("body", "salt", "head")):  # no bodies are read, and no head but the largest
        assert found == []
    else:
        assert (found[0].code, found[0].seq) == (code, None if seq < 0 else seq)


def unsigned_tail(path: Path) -> int:
    """The last line of feed 1 gets a wrong signature, its leaf and the tree with it; the chain still holds."""
    line = bytearray(line_of(path, 1, SIZE - 1))
    line[-20] ^= 1
    leaves = [leaf_hash(line_of(path, 1, seq)) for seq in range(SIZE - 1)] + [leaf_hash(bytes(line))]
    ((_, tile),), (node,) = GrowingTree().extend(leaves)
    changed = (
        f"UPDATE tiles SET hashes = {hexed(tile)} WHERE feed = 1",  # noqa: S608
        f"UPDATE nodes SET hash = {hexed(node.hashes[0])} WHERE feed = 1",  # noqa: S608
    )
    tamper(path, put_line(bytes(line), 1, SIZE - 1), *changed)
    return SIZE - 1


@pytest.mark.parametrize(
    "without",
    ["", f"DELETE FROM heads WHERE feed = 1 AND size = {SIZE}", "DELETE FROM heads WHERE feed = 1"],  # noqa: S608
)
def test_checkpoint_mode_verifies_the_lines_for_which_no_head_vouches(ledger: Path, without: str) -> None:
    tamper(ledger, *filter(None, [without]))
    with Store.open(ledger, writer=False) as store:
        assert audit.integrity(store, COLLECTIVE, mode="checkpoint") == []
    seq = unsigned_tail(ledger)
    with Store.open(ledger, writer=False) as store:
        for mode in ("full", "checkpoint"):
            found = audit.integrity(store, COLLECTIVE, mode=mode)  # type: ignore[arg-type]
            assert (found[0].code, found[0].seq) == ("bad-signature", seq)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_finding(ledger: Path, threads: int) -> None:
    tamper(ledger, *edited_line(ledger), "UPDATE heads SET signature = zeroblob(64) WHERE size = 5")
    with Store.open(ledger, writer=False) as store:
        assert audit.integrity(store, COLLECTIVE, threads=threads) == audit.integrity(store, COLLECTIVE)


LONG, UNSIGNED = 4 * LINES + 150, [0, LINES - 1, LINES, 2 * LINES + 130, 4 * LINES + 149]  # more chunks than wait


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long feed in which nothing is wrong but some signatures: the chain, the leaves and the tree are those of its lines."""
    path = tmp_path_factory.mktemp("unsigned") / "ledger.db"
    with Store.open(path) as store:
        store.append(OTHER, COLLECTIVE, "test.event", {}, now_ms=0, salt=bytes(16))
    rows, leaves, prev = [], [], ZERO
    for seq in range(LONG):
        line = entry.make(
            KEY, collective=COLLECTIVE, seq=seq, prev=prev, ts=seq, type="test.event", seen=(), body={}, salt=bytes(16)
        ).entry.line  # fmt: skip
        if seq in UNSIGNED:
            line = line[:-20] + (b"A" if line[-20:-19] != b"A" else b"B") + line[-19:]
        leaves.append(leaf_hash(line))
        prev = Digest(leaves[-1].hex())
        rows.append((place_of(9, seq), line, leaves[-1], bytes(16), b"{}"))
    grown = GrowingTree().extend(leaves)
    database = sqlite3.connect(path)
    database.execute("INSERT INTO feeds VALUES (9, ?, ?)", (COLLECTIVE, MEMBER))
    database.executemany("INSERT INTO entries (place, line, leaf, salt, data) VALUES (?, ?, ?, ?, ?)", rows)
    database.executemany(INSERT_TILE, tile_rows(9, grown.tiles))
    database.executemany(INSERT_NODE, node_rows(9, grown.nodes))
    database.commit()
    database.close()
    return path


@pytest.mark.parametrize(("mode", "threads"), [("full", 1), ("lines", 2), ("checkpoint", 1)])
def test_each_wrong_signature_of_a_long_feed_is_found_and_nothing_else(
    unsigned: Path, mode: audit.Mode, threads: int
) -> None:
    with Store.open(unsigned, writer=False) as store:
        found = list(audit.feed_integrity(store, COLLECTIVE, MEMBER, mode=mode, threads=threads))
    assert [(f.code, f.seq) for f in found] == [("bad-signature", seq) for seq in UNSIGNED]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_read_before_the_damage_keeps_its_findings(unsigned: Path, tmp_path: Path, threads: int) -> None:
    damaged = tmp_path / "ledger.db"
    shutil.copy(unsigned, damaged)
    tamper(damaged, "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = replace(sql, ' STRICT', '')")
    tamper(damaged, f"UPDATE entries SET line = 'text' WHERE feed = 9 AND seq = {2 * LINES + 5}")  # noqa: S608
    with Store.open(damaged, writer=False) as store:
        found = list(audit.feed_integrity(store, COLLECTIVE, MEMBER, mode="lines", threads=threads))
    before = [("bad-signature", seq) for seq in UNSIGNED if seq < 2 * LINES]
    assert [(f.code, f.seq) for f in found] == [*before, ("store-broken", None)]


def test_a_finding_names_the_event(ledger: Path) -> None:
    with Store.open(ledger, writer=False) as store:
        event = store.records(COLLECTIVE, MEMBER)[3].entry.event
    tamper(ledger, "UPDATE entries SET data = zeroblob(9) WHERE feed = 1 AND seq = 3")
    (finding,) = findings(ledger)
    assert (finding.code, finding.seq, finding.event) == ("bad-commitment", 3, event)


def test_a_history_rewritten_by_its_author_contradicts_the_signed_heads(ledger: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "rewritten.db") as store:
        write(store, KEY, COLLECTIVE, SIZE, mark="rewritten")
    tamper(
        ledger,
        f"ATTACH '{tmp_path / 'rewritten.db'}' AS r",
        "DELETE FROM entries WHERE feed = 1",
        "INSERT INTO entries (place, line, leaf, salt, data) SELECT place, line, leaf, salt, data FROM r.entries WHERE feed = 1",
        "DELETE FROM tiles WHERE feed = 1",
        "INSERT INTO tiles (place, hashes) SELECT place, hashes FROM r.tiles WHERE feed = 1",
        "DELETE FROM nodes WHERE feed = 1",
        "INSERT INTO nodes SELECT * FROM r.nodes WHERE feed = 1",
    )
    found = findings(ledger)
    assert [(f.code, f.seq) for f in found] == [("root-mismatch", n) for n in range(SIZE)]


def test_a_head_beyond_the_entries_shows_a_lost_tail(ledger: Path, honest: Path, tmp_path: Path) -> None:
    """A torn write-ahead log opens as a shorter history without a word; another member's memory of the head tells."""
    with Store.open(honest, writer=False) as store:
        remembered = next(h for h in store.heads(COLLECTIVE) if h.member == MEMBER)
    tamper(
        ledger,
        "DELETE FROM entries WHERE feed = 1 AND seq >= 5",
        "DELETE FROM heads WHERE feed = 1 AND size > 5",
        "DELETE FROM tiles WHERE feed = 1",
        "DELETE FROM nodes WHERE feed = 1",
    )
    assert findings(ledger) == []
    with Store.open(ledger) as store:
        store.append_foreign(COLLECTIVE, MEMBER, [], remembered.note)
    assert [(f.code, f.seq) for f in findings(ledger)] == [("tail-missing", 5)]


def test_a_proven_fork_is_reported_with_its_place(ledger: Path, tmp_path: Path) -> None:
    lie = checkpoint.make(KEY, COLLECTIVE, MEMBER, 5, digest(b"another history"))
    with Store.open(ledger) as store, pytest.raises(ForkSeen):
        store.append_foreign(COLLECTIVE, MEMBER, [], lie.note)
    assert [(f.code, f.seq) for f in findings(ledger)] == [("fork", 5)]


def test_damage_that_sqlite_does_not_notice_is_found(ledger: Path) -> None:
    line = line_of(ledger, 1, 3)
    raw = ledger.read_bytes()
    assert raw.count(line) == 1
    ledger.write_bytes(raw.replace(line, line.replace(b'"ts":3', b'"ts":9')))
    database = sqlite3.connect(ledger)
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    database.close()
    assert ("bad-signature", 3) in [(f.code, f.seq) for f in findings(ledger)]


def test_a_damaged_file_is_a_finding_and_not_a_crash(ledger: Path) -> None:
    raw = bytearray(ledger.read_bytes())
    for place in range(4096, len(raw), 4096):
        raw[place : place + 200] = os.urandom(200)
    ledger.write_bytes(bytes(raw))
    try:
        found = findings(ledger)
    except StoreBroken:
        return
    assert found


def test_reading_a_damaged_line_points_to_the_audit(ledger: Path) -> None:
    tamper(ledger, put_line(b"{}", 1, 3))
    with Store.open(ledger, writer=False) as store, pytest.raises(StoreBroken, match=r"entry 3 .* run the audit"):
        store.records(COLLECTIVE, MEMBER)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["line", "leaf"]), st.integers(0, SIZE - 1), st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_of_an_entry_is_found(
    tmp_path_factory: pytest.TempPathFactory, column: str, seq: int, place: int, change: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "one-byte.db"
    if not path.exists():
        with Store.open(path) as store:
            write(store, KEY, COLLECTIVE, SIZE)
    database = sqlite3.connect(path)
    where = f"WHERE feed = 1 AND seq = {seq}"
    before = bytes(database.execute(f"SELECT {column} FROM entries {where}").fetchone()[0])  # noqa: S608
    database.close()
    after = bytearray(before)
    after[place % len(after)] ^= change
    tamper(path, f"UPDATE entries SET {column} = {hexed(bytes(after))} {where}")  # noqa: S608
    found = findings(path)
    tamper(path, f"UPDATE entries SET {column} = {hexed(before)} {where}")  # noqa: S608
    assert found
    assert found[0].seq == seq
    assert findings(path) == []


def test_the_audit_needs_no_torch_and_no_network() -> None:
    code = "import ledger.audit, ledger.store, sys; print([m for m in ('torch', 'hivemind', 'libp2p') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("mode", ["full", "lines", "checkpoint"])
@pytest.mark.parametrize("column", ["line as text", "line as nothing", "leaf", "data"])
def test_a_bit_that_makes_another_type_of_a_column_is_a_finding_and_no_crash(
    ledger: Path, column: str, mode: audit.Mode
) -> None:
    with Store.open(ledger, writer=False) as store:
        line = store.line(COLLECTIVE, MEMBER, 9)
    raw = bytearray(ledger.read_bytes())
    width = 12 + 2 * len(line)  # SQLite's record format: the type of a blob; text of that length is one more
    kind = bytes([0x80 | width >> 7, width & 0x7F])
    at = raw.rindex(kind, 0, raw.index(line))
    match column:
        case "line as text":
            raw[at + 1] ^= 1
        case "line as nothing":
            raw[at : at + 2] = b"\x80\x00"
        case "leaf":
            raw[at + 2] ^= 1
        case "data":
            raw[at + 4] ^= 1
    ledger.write_bytes(raw)
    with Store.open(ledger, writer=False) as store:
        found = audit.integrity(store, COLLECTIVE, mode=mode)
        assert {f.code for f in found} <= {"store-broken"}
        assert found or (column == "data" and mode != "full")  # those modes read no bodies
        if found:
            with pytest.raises(StoreBroken):
                store.records(COLLECTIVE, MEMBER)


def test_bodies_are_read_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    """A stored body may have 768 KiB, and a thousand of them come from one hostile member."""
    with Store.open(tmp_path / "ledger.db") as store:
        body = {"padding": "x" * 700_000}
        drafts = [Draft(type="test.event", body=body, salt=bytes(16)) for _ in range(60)]
        store.append_all(KEY, COLLECTIVE, drafts, now_ms=1)
        chunks = list(store.raw_chunks(COLLECTIVE, MEMBER, bodies=True))
        assert [row[0] for rows in chunks for row in rows] == list(range(60))
        assert max(sum(len(row[4]) for row in rows) for rows in chunks) < BODIES + 16 * (1 << 20)
        assert len(chunks) > 1
        assert audit.integrity(store, COLLECTIVE) == []
