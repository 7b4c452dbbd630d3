"""Promises of the blob store: a name is a digest, whatever the disk, a peer or a crash does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors_network import BlobCorrupt, BlobMissing, BlobTooLarge
from node.syncing import blobs
from node.syncing.blobs import FRESH_BYTES, MAX_BAD, MAX_PARTS, BlobStore
from protocol.errors import Malformed
from protocol.ids import Digest, digest

DATA = bytes(range(256)) * 4000
NAME = digest(DATA)


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def test_what_was_put_is_read_back(store):
    assert store.put(DATA) == NAME == store.put(DATA)
    assert store.read(NAME, len(DATA)) == DATA
    assert store.size(NAME) == len(DATA)
    assert store.digests() == [NAME]
    assert b"".join((store.chunk(NAME, 0, 1000), store.chunk(NAME, 1000, len(DATA)))) == DATA


def test_too_large_blob_is_not_read(store):
    store.put(DATA)
    with pytest.raises(BlobTooLarge):
        store.read(NAME, len(DATA) - 1)


def test_damaged_blob_is_never_returned_and_can_come_again(store):
    store.put(DATA)
    store.path(NAME).write_bytes(b"X" + DATA[1:])
    with pytest.raises(BlobCorrupt):
        store.read(NAME, len(DATA))
    assert not store.has(NAME)
    store.put(DATA)
    assert store.read(NAME, len(DATA)) == DATA


def test_damaged_blobs_are_kept_for_a_look_but_few_of_them_and_none_that_is_to_be_forgotten(store, monkeypatch):
    def damage(data: bytes) -> Digest:
        name = store.put(data)
        store.path(name).write_bytes(b"X" + data[1:])
        with pytest.raises(BlobCorrupt):
            store.read(name, len(data))
        return name

    names = [damage(b"%02d" % n * 500) for n in range(MAX_BAD + 3)]
    assert store.damaged() == (MAX_BAD, MAX_BAD * 1000)
    assert store.digests() == []
    monkeypatch.setattr(blobs, "MAX_BAD_BYTES", 3500)
    assert BlobStore(store.folder).damaged() == (3, 3000)
    for name in names[:-1]:
        assert not store.remove(name)
    assert store.damaged()[0] <= 1
    damage(b"once more")
    store.drop_damaged()
    assert store.damaged() == (0, 0)


def test_missing_blob_is_said_to_be_missing(store):
    assert store.size(NAME) is None
    for call in (lambda: store.read(NAME, 10), lambda: store.chunk(NAME, 0)):
        with pytest.raises(BlobMissing):
            call()
    assert not store.remove(NAME)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "a" * 63, "a" * 65, "/" + "a" * 63])
def test_only_a_digest_is_a_name(store, name):
    for call in (store.path, store.has, store.size, store.remove):
        with pytest.raises(Malformed):
            call(Digest(name))


def test_interrupted_fetch_goes_on_where_it_ended(store):
    with store.partial(NAME, len(DATA)) as part:
        part.write(DATA[:300_000])
    with store.partial(NAME, len(DATA)) as part:
        assert part.offset == 300_000
        part.write(DATA[300_000:])
        assert part.finish() == store.path(NAME)
    assert store.read(NAME, len(DATA)) == DATA
    assert not list(store.path(NAME).parent.glob("*.part"))


def test_bytes_of_another_digest_never_get_the_name(store):
    with store.partial(NAME, len(DATA)) as part:
        part.write(DATA[:-1] + b"!")
        with pytest.raises(BlobCorrupt):
            part.finish()
    assert not store.has(NAME)
    with store.partial(NAME, len(DATA)) as part:
        assert part.offset == 0


def test_more_than_the_stated_size_is_refused(store):
    with store.partial(NAME, 10) as part:
        with pytest.raises(BlobTooLarge):
            part.write(b"x" * 11)
        part.write(b"x" * 9)
        with pytest.raises(BlobMissing):
            part.finish()
    with store.partial(NAME, 5) as part:  # an event with another size: what there is cannot be right
        assert part.offset == 0


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(1, 500), max_size=6))
def test_any_cutting_gives_the_same_blob(tmp_path_factory, data, cuts):
    store, at = BlobStore(tmp_path_factory.mktemp("cuts")), 0
    for cut in (*cuts, len(data)):
        with store.partial(digest(data), len(data)) as part:
            assert part.offset == at
            part.write(data[at : at + cut])
            at = part.offset
    with store.partial(digest(data), len(data)) as part:
        part.finish()
    assert store.read(digest(data), 2000) == data


def test_half_fetched_blobs_are_bounded(store):
    for n in range(MAX_PARTS + 10):
        with store.partial(digest(b"%d" % n), 10) as part:
            part.write(b"x")
    assert len(list(store.path(NAME).parent.glob("*.part"))) <= MAX_PARTS + 1


def test_what_a_crash_left_is_cleared(store):
    leftover = store.path(NAME).with_name(f".{NAME}.0011.tmp")
    leftover.write_bytes(b"half")
    BlobStore(store.path(NAME).parent)
    assert not leftover.exists()


def test_full_disk_is_said_and_loses_nothing(tmp_path):
    script = f"""
import resource, signal
from pathlib import Path
from node.syncing.blobs import BlobStore
from node.errors_network import DiskFull
from protocol.ids import digest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = BlobStore(Path({str(tmp_path)!r}))
kept = store.put(b"kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for fill in (lambda: store.put(b"x" * 5000), lambda: fetch()):
    def fetch():
        with store.partial(digest(b"x" * 5000), 5000) as part:
            part.write(b"x" * 5000)
            part.finish()
    try:
        fill()
    except DiskFull as e:
        print(e.code)
assert store.read(kept, 10) == b"kept"
assert [p.name for p in Path({str(tmp_path)!r}).iterdir()] == [kept]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split()) == (0, ["disk-full", "disk-full"]), done.stderr


def test_blob_that_has_just_come_is_given_once_as_it_came_and_then_as_the_disk_has_it(store):
    store.take(NAME, DATA).write_bytes(b"damaged")
    assert store.read(NAME, len(DATA)) == DATA
    with pytest.raises(BlobCorrupt):
        store.read(NAME, len(DATA))
    store.take(NAME, DATA)
    with pytest.raises(BlobTooLarge):
        store.read(NAME, len(DATA) - 1)
    store.remove(NAME)
    store.take(NAME, DATA)
    store.remove(NAME)
    with pytest.raises(BlobMissing):
        store.read(NAME, len(DATA))


def test_blobs_that_have_just_come_take_little_memory_however_many_come(store):
    many = [bytes([n]) * (FRESH_BYTES // 4) for n in range(9)]
    for data in [*many, bytes(FRESH_BYTES + 1)]:
        store.take(digest(data), data)
        assert sum(map(len, store._fresh.values())) <= FRESH_BYTES
    assert all(store.read(digest(data), len(data)) == data for data in many)
