"""The RFC 6962 tree against its recursive definition and against published vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash, root_of

# The reference inputs of certificate-transparency implementations; the vectors below are trees over them.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
LEAVES = [leaf_hash(data) for data in INPUTS]


def defined_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(defined_root(leaves[:split]), defined_root(leaves[split:]))


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size:
        raise ValueError("index")
    place, last, root = index, size - 1, leaf
    for item in proof:
        if last == 0:
            raise ValueError("too long")
        if place & 1 or place == last:
            root = node_hash(item, root)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            root = node_hash(root, item)
        place, last = place >> 1, last >> 1
    if last:
        raise ValueError("too short")
    return root


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_growing_tree_has_the_defined_root_at_every_size(items: list[bytes]) -> None:
    leaves = [leaf_hash(item) for item in items]
    tree = Frontier()
    assert tree.root() == EMPTY_ROOT
    for size, leaf in enumerate(leaves, 1):
        tree.append(leaf)
        assert (tree.size, tree.root()) == (size, defined_root(leaves[:size]))
        assert len(tree.peaks) == size.bit_count()
    assert root_of(leaves) == tree.root()


def test_a_copy_grows_apart_from_its_original() -> None:
    tree = Frontier()
    for leaf in LEAVES[:5]:
        tree.append(leaf)
    copy = tree.copy()
    copy.append(LEAVES[5])
    assert tree.root() == root_of(LEAVES[:5])
    assert copy.root() == root_of(LEAVES[:6])


def test_leaves_and_nodes_are_hashed_apart() -> None:
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])


def test_roots_of_published_consistency_vectors(shared: Path) -> None:
    found = 0
    for path in sorted((shared / "transparency-dev-merkle" / "testdata" / "consistency").glob("[0-4]/happy-path.json")):
        case = json.loads(path.read_text("utf-8"))
        for size, root in ((case["size1"], case["root1"]), (case["size2"], case["root2"])):
            if 0 < size <= len(LEAVES):
                assert root_of(LEAVES[:size]) == base64.b64decode(root), path
                found += 1
    assert found >= 6


def test_published_inclusion_vectors_agree_with_our_hashes(shared: Path) -> None:
    good = bad = 0
    for path in sorted((shared / "transparency-dev-merkle" / "testdata" / "inclusion").rglob("*.json")):
        case = json.loads(path.read_text("utf-8"))
        root, leaf = base64.b64decode(case["root"] or ""), base64.b64decode(case["leafHash"] or "")
        proof = [base64.b64decode(item) for item in case["proof"] or []]
        try:
            holds = len(leaf) == 32 and root_from_inclusion(case["leafIdx"], case["treeSize"], leaf, proof) == root
        except ValueError:
            holds = False
        assert holds is not case["wantErr"], path
        if holds and case["treeSize"] <= len(LEAVES) and leaf in LEAVES:
            assert LEAVES[case["leafIdx"]] == leaf
            assert root_of(LEAVES[: case["treeSize"]]) == root
        good, bad = good + holds, bad + (not holds)
    assert good >= 5
    assert bad >= 50


def test_leaf_hash_of_the_published_go_record(shared: Path) -> None:
    tlog = json.loads((shared / "golang-mod" / "note_tlog_vectors.json").read_text("utf-8"))["tlog"]
    assert leaf_hash(tlog["record"].encode()) == base64.b64decode(tlog["record_hash"])


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
