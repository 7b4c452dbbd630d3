"""The RFC 6962 tree against its recursive definition and against published vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BadProof
from protocol.merkle import (
    EMPTY_ROOT,
    Frontier,
    Nodes,
    Place,
    consistency,
    inclusion,
    leaf_hash,
    node_hash,
    root_at,
    root_of,
    verify_consistency,
    verify_inclusion,
)

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


def vector_files(shared: Path, kind: str) -> list[Path]:
    found = sorted((shared / "transparency-dev-merkle" / "testdata" / kind).rglob("*.json"))
    assert found, kind
    return found


def hashes(items: Sequence[str] | None) -> list[bytes]:
    return [base64.b64decode(item) for item in items or ()]


def accepts(check: Callable[[], None]) -> bool:
    try:
        check()
    except BadProof:
        return False
    return True


def test_every_published_inclusion_vector_is_judged_as_it_says(shared: Path) -> None:
    verdicts = []
    for path in vector_files(shared, "inclusion"):
        case = json.loads(path.read_text("utf-8"))
        leaf, root = hashes([case["leafHash"] or "", case["root"] or ""])
        proof = hashes(case["proof"])
        holds = accepts(lambda: verify_inclusion(case["leafIdx"], case["treeSize"], leaf, proof, root))  # noqa: B023
        assert holds is not case["wantErr"], path
        verdicts.append(holds)
        if holds and case["treeSize"] <= len(LEAVES) and leaf in LEAVES:
            assert (LEAVES[case["leafIdx"]], root_of(LEAVES[: case["treeSize"]])) == (leaf, root)
            assert inclusion(case["leafIdx"], case["treeSize"], source(LEAVES)) == proof
    assert (verdicts.count(True), verdicts.count(False)) == (6, 92)


def test_every_published_consistency_vector_is_judged_as_it_says(shared: Path) -> None:
    verdicts = []
    for path in vector_files(shared, "consistency"):
        case = json.loads(path.read_text("utf-8"))
        first, second = hashes([case["root1"] or "", case["root2"] or ""])
        proof = hashes(case["proof"])
        holds = accepts(lambda: verify_consistency(case["size1"], case["size2"], first, second, proof))  # noqa: B023
        assert holds is not case["wantErr"], path
        verdicts.append(holds)
        if holds and case["size2"] <= len(LEAVES):
            assert consistency(case["size1"], case["size2"], source(LEAVES)) == proof
    assert (verdicts.count(True), verdicts.count(False)) == (6, 92)


# Laws


def source(leaves: Sequence[bytes]) -> Nodes:
    """Nodes from the recursive definition, one call for all of them."""

    def nodes(places: Sequence[Place]) -> list[bytes]:
        found = []
        for level, index in places:
            part = leaves[index << level : (index + 1) << level]
            assert len(part) == 1 << level, "a node that is not complete was asked for"
            found.append(defined_root(part))
        return found

    return nodes


def tree(size: int) -> list[bytes]:
    return [leaf_hash(n.to_bytes(4, "big")) for n in range(size)]


SIZES = st.integers(1, 130)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_extending_gives_the_tree_of_single_appends_and_each_inner_node_once(steps: list[int]) -> None:
    leaves = tree(sum(steps))
    grown, single, done = Frontier(), Frontier(), []
    for step in steps:
        part = leaves[grown.size : grown.size + step]
        done += grown.extend(part)
        for leaf in part:
            single.append(leaf)
        assert (grown.size, grown.peaks) == (single.size, single.peaks)
    size = len(leaves)
    places = [(level, index) for level in range(1, size.bit_length()) for index in range(size >> level)]
    nodes = [((level, index), hash) for level, first, row in done for index, hash in enumerate(row, first)]
    assert sorted(place for place, _ in nodes) == places
    assert all(hash == source(leaves)([place])[0] for place, hash in nodes)
    assert Frontier.stored(size, source(leaves)).peaks == grown.peaks
    assert root_at(size, source(leaves)) == defined_root(leaves)


@settings(max_examples=300, deadline=None)
@given(SIZES, st.data())
def test_a_built_inclusion_proof_verifies_and_no_changed_one_does(size: int, data: st.DataObject) -> None:
    leaves, index = tree(size), data.draw(st.integers(0, size - 1))
    proof, root = inclusion(index, size, source(leaves)), defined_root(leaves)
    verify_inclusion(index, size, leaves[index], proof, root)
    flip = data.draw(st.integers(0, len(proof) * 32 * 8)) if proof else 0
    changed = list(proof)
    if proof and flip < len(proof) * 256:
        changed[flip // 256] = flipped(changed[flip // 256], flip % 256)
    else:
        changed.append(root)
    for bad in (
        changed,
        proof[:-1],
        [*proof, leaves[0]],
        [leaves[0], *proof],
        proof[::-1],
        [item[:31] for item in proof],
    ):
        if bad != proof:
            with pytest.raises(BadProof):
                verify_inclusion(index, size, leaves[index], bad, root)
    other = data.draw(st.integers(0, size + 3))
    if other != index:
        with pytest.raises(BadProof):
            verify_inclusion(other, size, leaves[index], proof, root)
    for place, count in ((-1, size), (size, size), (0, 0), (index, 0)):
        with pytest.raises(BadProof):
            verify_inclusion(place, count, leaves[index], proof, root)
    with pytest.raises(BadProof):
        inclusion(size, size, source(leaves))


@settings(max_examples=300, deadline=None)
@given(SIZES, st.data())
def test_a_built_consistency_proof_verifies_and_no_changed_one_does(new: int, data: st.DataObject) -> None:
    leaves, old = tree(new), data.draw(st.integers(1, new))
    proof = consistency(old, new, source(leaves))
    first, second = defined_root(leaves[:old]), defined_root(leaves)
    verify_consistency(old, new, first, second, proof)
    bad = [[*proof, first], proof[:-1], [first, *proof], [item[:31] for item in proof]]
    bad += [[*proof[:n], flipped(item, 7), *proof[n + 1 :]] for n, item in enumerate(proof)]
    for changed in bad:
        if changed != proof:
            with pytest.raises(BadProof):
                verify_consistency(old, new, first, second, changed)
    for roots in ((flipped(first, 3), second), (first, flipped(second, 3)), (first, b""), (b"", second)):
        with pytest.raises(BadProof):
            verify_consistency(old, new, *roots, proof)
    for sizes in ((0, new), (0, 0), (new + 1, new), (-1, new)):
        with pytest.raises(BadProof):
            verify_consistency(*sizes, first, second, proof)
        with pytest.raises(BadProof):
            consistency(*sizes, source(leaves))


def flipped(item: bytes, bit: int) -> bytes:
    return bytes(byte ^ (1 << bit % 8 if n == bit // 8 else 0) for n, byte in enumerate(item))


def test_leaf_hash_of_the_published_go_record(shared: Path) -> None:
    tlog = json.loads((shared / "golang-mod" / "note_tlog_vectors.json").read_text("utf-8"))["tlog"]
    assert leaf_hash(tlog["record"].encode()) == base64.b64decode(tlog["record_hash"])
    tree_of_one = root_of([leaf_hash(tlog["record"].encode())])
    name, size, root, rest = tlog["format_tree"].split("\n")  # a tree of another size that has this very hash
    assert (name, int(size), base64.b64decode(root), rest) == ("go.sum database tree", 123456789012, tree_of_one, "")


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
