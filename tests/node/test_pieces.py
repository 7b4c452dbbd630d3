"""Promises of a blob in pieces: any order, any interruption, a spoilt or forged note of what is there; the digest decides."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from node.errors_network import BlobCorrupt, BlobMissing, BlobTooLarge
from node.syncing.blobs import MAX_PARTS, BlobStore
from node.syncing.pieces import PIECE
from protocol.ids import PeerId, digest

DATA = random.Random(1).randbytes(5 * PIECE + 77)
NAME, SIZE = digest(DATA), len(DATA)
ADA, BOB = PeerId("12D3Ada"), PeerId("12D3Bob")


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def piece(index, data=DATA):
    return data[index * PIECE : (index + 1) * PIECE]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_in_any_order_over_any_number_of_tries_make_the_blob(store, seed):
    order = random.Random(seed).sample(range(6), 6)
    for index in order:
        with store.pieces(NAME, SIZE) as pieces:
            assert pieces.put(index, piece(index), ADA)
            assert not pieces.put(index, piece(index), BOB), "it is there"
            if index != order[-1]:
                with pytest.raises(BlobMissing):
                    pieces.finish()
            else:
                pieces.finish()
    assert store.read(NAME, SIZE) == DATA
    assert [item.name for item in store.folder.iterdir()] == [NAME]


def test_who_gave_what_is_known_after_a_restart(store):
    with store.pieces(NAME, SIZE) as pieces:
        pieces.put(3, piece(3), ADA)
        pieces.put(0, piece(0), BOB)
    with store.pieces(NAME, SIZE) as pieces:
        assert pieces.givers() == {0: BOB, 3: ADA}
        assert pieces.missing() == [1, 2, 4, 5]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note[:-3],  # a crash cut the last line
        lambda note: note.replace(b" 12D3Ada", b" 12D3Ada\n7 0 x\n\xff\xff\n99999 00000000 12D3Ada"),
        lambda note: note + b"4 00000000 12D3Ada\n",  # claims a piece that never came
        lambda note: note[:10],
        lambda _note: b"",
        lambda _note: b"\0" * 100_000,
    ],
)
def test_spoilt_note_costs_pieces_and_never_the_truth(store, spoil):
    with store.pieces(NAME, SIZE) as pieces:
        for index in (0, 2):
            pieces.put(index, piece(index), ADA)
    note = store.path(NAME).with_name(f"{NAME}.map")
    note.write_bytes(spoil(note.read_bytes()))
    with store.pieces(NAME, SIZE) as pieces:
        assert {1, 3, 4, 5} <= set(pieces.missing())
        for index in pieces.missing():
            pieces.put(index, piece(index), BOB)
        pieces.finish()
    assert store.read(NAME, SIZE) == DATA


def test_piece_that_a_power_cut_took_back_counts_as_missing(store):
    with store.pieces(NAME, SIZE) as pieces:
        for index in range(6):
            pieces.put(index, piece(index), ADA)
    with store.path(NAME).with_name(f"{NAME}.part").open("r+b") as part:
        part.seek(2 * PIECE)
        part.write(bytes(4096))
    with store.pieces(NAME, SIZE) as pieces:
        assert pieces.missing() == [2]


def test_wrong_bytes_never_get_the_name_and_stay_for_whoever_finds_the_liar(store):
    with store.pieces(NAME, SIZE) as pieces:
        for index in range(6):
            pieces.put(index, piece(index) if index != 4 else bytes(PIECE), ADA if index != 4 else BOB)
        with pytest.raises(BlobCorrupt):
            pieces.finish()
        assert not store.has(NAME)
        assert pieces.damaged() == []
        pieces.put(4, piece(4), ADA, again=True)
        pieces.finish()
    assert store.read(NAME, SIZE) == DATA


def test_what_is_no_piece_of_the_blob_is_refused(store):
    with store.pieces(NAME, SIZE) as pieces:
        for index, data in ((0, b"short"), (6, b"x"), (-1, piece(0)), (5, piece(0))):
            with pytest.raises(BlobTooLarge):
                pieces.put(index, data, ADA)


def test_event_with_another_size_starts_anew_and_parts_are_bounded(store):
    with store.pieces(NAME, SIZE) as pieces:
        pieces.put(0, piece(0), ADA)
    with store.pieces(NAME, SIZE + 1) as pieces:
        assert 0 in pieces.missing()
    for n in range(MAX_PARTS + 5):
        with store.pieces(digest(b"%d" % n), SIZE) as pieces:
            pieces.put(0, piece(0), ADA)
    assert len(list(store.folder.glob("*.part"))) <= MAX_PARTS
    assert len(list(store.folder.glob("*.map"))) <= MAX_PARTS
    store.remove(digest(b"%d" % n))
    assert not list(store.folder.glob(f"{digest(b'%d' % n)}*"))


def test_part_of_an_older_version_is_started_anew(store):
    store.path(NAME).with_name(f"{NAME}.part").write_bytes(bytes(3 * PIECE))
    with store.pieces(NAME, SIZE) as pieces:
        assert len(pieces.missing()) == 6


def test_full_disk_is_said_and_gives_the_room_back(tmp_path):
    script = f"""
import resource, signal
from pathlib import Path
from node.syncing.blobs import BlobStore
from node.syncing.pieces import PIECE
from node.errors_network import DiskFull
from protocol.ids import digest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = BlobStore(Path({str(tmp_path)!r}))
kept = store.put(b"kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (PIECE + 1000, PIECE + 1000))
data = bytes(3 * PIECE)
with store.pieces(digest(data), len(data)) as pieces:
    pieces.put(0, data[:PIECE], "12D3Ada")
    try:
        pieces.put(2, data[:PIECE], "12D3Ada")
    except DiskFull as e:
        print(e.code)
    print(pieces.put(1, data[:PIECE], "12D3Ada"))
assert [p.name for p in Path({str(tmp_path)!r}).iterdir()] == [kept]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split()) == (0, ["disk-full", "False"]), done.stderr
