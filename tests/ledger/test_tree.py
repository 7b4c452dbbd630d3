"""The stored tree: whatever way entries come in, every root and proof comes from disk, in one query."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import audit
from ledger.errors import StoreBroken
from ledger.store import Draft, Store
from protocol import keys
from protocol.errors import Malformed
from protocol.ids import CollectiveId
from protocol.merkle import consistency, inclusion, leaf_hash, root_at, root_of, verify_consistency, verify_inclusion

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)


def drafts(count: int, mark: int = 0) -> list[Draft]:
    return [Draft(type="test.event", body={"n": n, "mark": mark}, salt=bytes(16)) for n in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ledger.db") as opened:
        yield opened


def leaves(store: Store) -> list[bytes]:
    return [leaf_hash(line) for rows in store.raw_chunks(COLLECTIVE, MEMBER) for _, line, _ in rows]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_roots_and_proofs_come_from_disk_however_the_entries_came(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], pages: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    with Store.open(folder / "writer.db") as writer, Store.open(folder / "mirror.db") as mirror:
        for mark, count in enumerate(batches):
            writer.append_all(KEY, COLLECTIVE, drafts(count, mark), now_ms=0)
        size, note, at, turn = sum(batches), writer.heads(COLLECTIVE)[0].note, 0, 0
        while at < size:
            step = pages[turn % len(pages)]
            mirror.append_foreign(COLLECTIVE, MEMBER, writer.records(COLLECTIVE, MEMBER, at, step), note)
            at, turn = at + step, turn + 1
        known = leaves(writer)
        for held in (writer, mirror):
            nodes = held.tree(COLLECTIVE, MEMBER, remember=held is mirror).nodes
            assert audit.integrity(held, COLLECTIVE) == audit.integrity(held, COLLECTIVE, mode="checkpoint") == []
            for index in range(size):
                verify_inclusion(index, size, known[index], inclusion(index, size, nodes), root_of(known))
                old, root = index + 1, root_of(known[: index + 1])
                assert root_at(old, nodes) == root
                verify_consistency(old, size, root, root_of(known), consistency(old, size, nodes))


def test_a_batch_has_one_head_and_the_entries_of_single_appends(store: Store, tmp_path: Path) -> None:
    records = store.append_all(KEY, COLLECTIVE, drafts(7), now_ms=3, state={"run": b"1"})
    assert [head.size for head in store.heads(COLLECTIVE)] == [7]
    assert [size for size, _, _ in store.raw_heads(COLLECTIVE, MEMBER)] == [7]
    assert store.get_state("run") == b"1"
    with Store.open(tmp_path / "single.db") as single:
        for draft in drafts(7):
            single.append(KEY, COLLECTIVE, draft.type, draft.body, now_ms=3, salt=draft.salt)
        assert single.records(COLLECTIVE, MEMBER) == records == store.records(COLLECTIVE, MEMBER)
        assert single.heads(COLLECTIVE) == store.heads(COLLECTIVE)


def test_a_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    store.append_all(KEY, COLLECTIVE, drafts(3), now_ms=0)
    bad = [*drafts(3), Draft(type="Bad Type", body={}, salt=bytes(16))]
    for wrong in (bad, []):
        with pytest.raises(Malformed):
            store.append_all(KEY, COLLECTIVE, wrong, now_ms=0, state={"a": b"1"})
    assert store.get_state("a") is None
    assert len(store.records(COLLECTIVE, MEMBER)) == 3
    store.append_all(KEY, COLLECTIVE, drafts(2), now_ms=0)
    assert audit.integrity(store, COLLECTIVE) == []


def test_a_store_goes_on_from_its_nodes_and_reads_no_leaves(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        store.append_all(KEY, COLLECTIVE, drafts(1000), now_ms=0)
    with Store.open(tmp_path / "ledger.db") as store:
        asked: list[str] = []
        store._connection.set_trace_callback(asked.append)
        assert store.head(COLLECTIVE, MEMBER) is not None
        store.append_all(KEY, COLLECTIVE, drafts(1), now_ms=0)
        store._connection.set_trace_callback(None)
        rows = [sql for sql in asked if "SELECT" in sql and "leaf" in sql and "LIMIT" in sql]
        assert rows == []
        assert audit.integrity(store, COLLECTIVE) == []


def test_an_older_head_that_the_stored_tree_contradicts_stops_the_node_too(tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        store.append_all(KEY, COLLECTIVE, drafts(64), now_ms=0)
        store.heads(COLLECTIVE)
        store.append_all(KEY, COLLECTIVE, drafts(3), now_ms=0)
        store._keys.clear()  # a stop before the head of 67 was signed
    outside(tmp_path / "ledger.db", "UPDATE nodes SET hash = zeroblob(32)")
    with Store.open(tmp_path / "ledger.db") as store:
        store.sign_with(KEY, COLLECTIVE)
        with pytest.raises(StoreBroken, match=r"not the root that was signed for size 64; run the audit"):
            store.heads(COLLECTIVE)


def outside(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for name in ("nodes_update", "nodes_delete", "tiles_update", "tiles_delete"):
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def test_a_node_does_not_sign_a_root_of_a_damaged_tree(tmp_path: Path) -> None:
    """Else it would convict itself: two heads of one feed that contradict each other."""
    with Store.open(tmp_path / "ledger.db") as store:
        store.append_all(KEY, COLLECTIVE, drafts(128), now_ms=0)
    outside(tmp_path / "ledger.db", "UPDATE nodes SET hash = zeroblob(32) WHERE level = 7")
    with Store.open(tmp_path / "ledger.db") as store:
        with pytest.raises(
            StoreBroken, match=r"its stored tree has not the root that was signed for size 128; run the audit"
        ):
            store.append_all(KEY, COLLECTIVE, drafts(1), now_ms=0)
        assert [(f.code, f.seq) for f in audit.integrity(store, COLLECTIVE)] == [("node-mismatch", 127)]


@pytest.mark.parametrize(
    ("statement", "seq"),
    [
        ("DELETE FROM nodes WHERE level = 7 AND idx = 0", 127),
        ("DELETE FROM nodes WHERE level = 6 AND idx = 3", 255),
        ("DELETE FROM tiles WHERE number = 2", 191),
        ("UPDATE tiles SET hashes = substr(hashes, 1, 125 * 32) WHERE number = 2", 191),
    ],
)
def test_a_missing_node_is_said_and_not_guessed(tmp_path: Path, statement: str, seq: int) -> None:
    with Store.open(tmp_path / "ledger.db") as store:
        store.append_all(KEY, COLLECTIVE, drafts(256), now_ms=0)
    outside(tmp_path / "ledger.db", statement)
    with Store.open(tmp_path / "ledger.db", writer=False) as store:
        for remember in (False, True):
            with pytest.raises(StoreBroken, match=r"a node is missing; run the audit"):
                inclusion(128, 256, store.tree(COLLECTIVE, MEMBER, remember=remember).nodes)
        assert [(f.code, f.seq) for f in audit.integrity(store, COLLECTIVE)] == [("node-mismatch", seq)]


def test_a_reader_beside_the_writer_sees_its_new_tree(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "ledger.db", writer=False) as reader:
        for count in (1, 5, 64):
            store.append_all(KEY, COLLECTIVE, drafts(count), now_ms=0)
            assert reader.head(COLLECTIVE, MEMBER) == store.head(COLLECTIVE, MEMBER)
            assert reader.tree(COLLECTIVE, MEMBER).size() == len(leaves(store))
