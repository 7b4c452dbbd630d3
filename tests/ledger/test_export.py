"""Exports: what was written is verified by readers that know the published formats only, and wrong lines are not exported."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from ledger import checkpoint, export
from ledger.checkpoint import Head
from ledger.entry import MAX_LINE
from ledger.errors import StoreBroken
from ledger.store import Draft, Store
from protocol import keys, notes
from protocol.ids import CollectiveId
from protocol.merkle import leaf_hash, root_of

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
LOG_KEY = notes.read_key(checkpoint.verifier_key(COLLECTIVE, MEMBER))
SIZE = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("export") / "ledger.db") as opened:
        for count in (1, 254, 1, 256, SIZE - 512):
            drafts = [Draft(type="test.event", body={"n": n}, salt=bytes(16)) for n in range(count)]
            opened.append_all(KEY, COLLECTIVE, drafts, now_ms=5)
        yield opened


def lines(store: Store, size: int) -> Iterator[bytes]:
    return islice((line for rows in store.raw_chunks(COLLECTIVE, MEMBER) for _, line, _ in rows), size)


def head_of(store: Store, size: int) -> Head:
    held = list(lines(store, size))
    return checkpoint.make(KEY, COLLECTIVE, MEMBER, size, root_of([leaf_hash(x) for x in held]).hex())  # type: ignore[arg-type]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_anybody_recomputes_the_root_from_the_json_lines_in_ten_lines(store: Store, tmp_path: Path) -> None:
    head = head_of(store, SIZE)
    written = export.jsonl(lines(store, SIZE), head, head.note, tmp_path)
    data = (tmp_path / f"{MEMBER}.jsonl").read_bytes()
    assert written == len(data)
    row = [sha(b"\0" + line) for line in data.splitlines()]
    while len(row) > 1:  # the last hash of an odd row goes up as it is: the same tree as RFC 6962's
        row = [sha(b"\1" + row[n] + row[n + 1]) if n + 1 < len(row) else row[n] for n in range(0, len(row), 2)]
    text = notes.read((tmp_path / f"{MEMBER}.checkpoint").read_bytes(), LOG_KEY)
    assert text.splitlines()[1:] == [str(SIZE), base64.b64encode(row[0]).decode()]


class StaticLog:
    """A client of c2sp.org/tlog-tiles: it knows a verifier key and fetches files by the paths of that page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        origin, size, root = notes.read((folder / "checkpoint").read_bytes(), LOG_KEY).splitlines()
        assert origin == LOG_KEY.name
        self.size, self.root = int(size), base64.b64decode(root)
        self.fetched = {"checkpoint"}

    def fetch(self, level: str, number: int, width: int) -> bytes:
        x, rest = divmod(number, 1000)
        name = f"x{x:03d}/{rest:03d}" if x else f"{rest:03d}"
        path = f"tile/{level}/{name}" + (f".p/{width}" if width < 256 else "")
        self.fetched.add(path)
        return (self.folder / path).read_bytes()

    def width(self, level: int, number: int) -> int:
        return min(256, (self.size >> 8 * level) - 256 * number)

    def node(self, level: int, index: int) -> bytes:
        """The root of the perfect subtree (level, index), from the tile that holds it or its children."""
        at = index << level % 8
        number = at // 256
        tile = self.fetch(str(level // 8), number, self.width(level // 8, number))
        row = [tile[n : n + 32] for n in range(0, len(tile), 32)][at % 256 : at % 256 + (1 << level % 8)]
        assert len(row) == 1 << level % 8
        while len(row) > 1:
            row = [sha(b"\1" + left + right) for left, right in zip(row[::2], row[1::2], strict=True)]
        return row[0]

    def root_from_tiles(self) -> bytes:
        peaks, begin = [], 0
        for level in reversed(range(self.size.bit_length())):
            if self.size >> level & 1:
                peaks.append(self.node(level, begin >> level))
                begin += 1 << level
        root = peaks.pop()
        while peaks:
            root = sha(b"\1" + peaks.pop() + root)
        return root

    def entries(self) -> list[bytes]:
        found = []
        for number in range((self.size + 255) // 256):
            bundle = self.fetch("entries", number, self.width(0, number))
            while bundle:
                end = 2 + int.from_bytes(bundle[:2], "big")
                found.append(bundle[2:end])
                bundle = bundle[end:]
        return found


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513, SIZE])
def test_a_client_of_static_logs_verifies_the_export(store: Store, tmp_path: Path, size: int) -> None:
    head = head_of(store, size)
    files = export.tiles(lines(store, size), head, head.note, tmp_path)
    log = StaticLog(tmp_path / MEMBER)
    assert log.root_from_tiles() == log.root == bytes.fromhex(head.root)
    entries = log.entries()
    assert entries == list(lines(store, size))
    for index, line in enumerate(entries):
        assert log.node(0, index) == sha(b"\0" + line)
    for index in range(size >> 8):
        assert log.node(8, index) == root_of([sha(b"\0" + line) for line in entries[index * 256 : index * 256 + 256]])
    found = {str(path.relative_to(log.folder)) for path in log.folder.rglob("*") if path.is_file()}
    assert found == log.fetched  # every file is one that the client knows of, and there is no other
    assert len(found) == files


@pytest.mark.parametrize(
    ("number", "width", "path"),
    [
        (0, 256, "tile/0/000"),
        (5, 7, "tile/0/005.p/7"),
        (999, 256, "tile/0/999"),
        (1000, 256, "tile/0/x001/000"),
        (1234067, 256, "tile/0/x001/x234/067"),
        (1234067, 8, "tile/0/x001/x234/067.p/8"),
    ],
)
def test_tiles_lie_where_the_published_layout_says(number: int, width: int, path: str) -> None:
    assert export.path("0", number, width) == path


def test_levels_grow_as_the_tree_does(tmp_path: Path) -> None:
    """65,537 leaves: three levels of tiles, the third with one hash."""
    leaves = [b"%d" % n for n in range(65_537)]
    head = checkpoint.make(KEY, COLLECTIVE, MEMBER, 65_537, root_of([leaf_hash(x) for x in leaves]).hex())  # type: ignore[arg-type]
    export.tiles(iter(leaves), head, head.note, tmp_path)
    log = StaticLog(tmp_path / MEMBER)
    assert log.root_from_tiles() == log.root
    assert log.fetch("2", 0, 1) == root_of([leaf_hash(x) for x in leaves[:65_536]])


@pytest.mark.parametrize("kind", [export.jsonl, export.tiles])
def test_lines_that_do_not_have_the_signed_root_get_no_checkpoint(store: Store, tmp_path: Path, kind) -> None:
    head, held = head_of(store, 300), list(lines(store, 300))
    for wrong in (
        held[:-1],
        [*held[:-1], held[0]],
        [held[0].replace(b'"ts":5', b'"ts":6'), *held[1:]],
        [b"x" * (MAX_LINE + 1)],
    ):
        with pytest.raises(StoreBroken):
            kind(iter(wrong), head, head.note, tmp_path)
    assert not list(tmp_path.rglob("*checkpoint"))


def test_a_damaged_stored_tree_does_not_get_into_an_export(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        store.append_all(KEY, COLLECTIVE, [Draft(type="t", body={}, salt=bytes(16))] * 300, now_ms=0)
    outside = sqlite3.connect(tmp_path / "ledger.db")
    for table, column in (("nodes", "hash"), ("tiles", "hashes")):
        outside.execute(f"DROP TRIGGER {table}_update")
        outside.execute(f"UPDATE {table} SET {column} = zeroblob(length({column}))")  # noqa: S608
    outside.commit()
    outside.close()
    with Store.open(tmp_path / "ledger.db", writer=False) as store:
        head = checkpoint.parse(store.heads(COLLECTIVE)[0].note)
        export.tiles(lines(store, 300), head, head.note, tmp_path)
    assert StaticLog(tmp_path / MEMBER).root_from_tiles() == bytes.fromhex(head.root)
