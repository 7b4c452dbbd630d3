"""The hard checks: each refuses what it is for, in order of cost, and everybody gets the same answer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import key
from seats import Sitter, Table, salted, without

from contrib import updates
from ledger.charter import Charter
from ledger.collective import Contribution
from node.collective import gate
from node.collective.gate import Accept, Reject
from protocol import sparse
from protocol.errors import Malformed
from protocol.ids import digest
from protocol.keys import member_id

VALUES = {3: 0.5, 9: -0.25, 40: 1.0}


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sitter]:
    table = Table(tmp_path_factory.mktemp("gate"))
    yield table["ada"]
    table.close()


def published(sitter: Sitter, blob: bytes, **fields: Any) -> Contribution:
    """The event of a blob, without writing it down."""
    source = next(iter(sitter.fold.sources.values()))
    event = Contribution(
        source=replace(source, member=sitter.id),
        epoch=sitter.fold.charter.epoch_id,
        number=1,
        blob=digest(blob),
        size=len(blob),
    )
    return replace(event, **fields)


def answer(sitter: Sitter, blob: bytes, charter: Charter | None = None, **fields: Any) -> Accept | Reject:
    return gate.examine(sitter.collective, charter or sitter.fold.charter, published(sitter, blob, **fields), blob)


def code(found: Accept | Reject) -> str:
    assert isinstance(found, Reject), "it was accepted"
    assert found.text.startswith("couldn't accept contribution: ")
    return found.code


def test_an_honest_contribution_is_accepted_with_what_it_sends(ada: Sitter) -> None:
    found = answer(ada, ada.blob(VALUES))
    assert isinstance(found, Accept)
    assert found.update.indices.tolist() == sorted(VALUES)
    assert found.update.values() == pytest.approx([0.5, -0.25, 1.0], abs=0.01)


# -- what the event says ------------------------------------------------------------------------------------------------
def test_a_blob_over_the_limit_is_refused_before_it_is_fetched(ada: Sitter) -> None:
    blob, charter = ada.blob(VALUES), ada.fold.charter
    big = published(ada, blob, size=charter.gate.max_blob_bytes + 1)
    found = gate.oversized(charter, big)
    assert found is not None
    assert code(found) == code(gate.examine(ada.collective, charter, big, b"")) == "too-large"
    assert gate.oversized(charter, published(ada, blob, size=charter.gate.max_blob_bytes)) is None


def test_other_bytes_than_were_published_are_refused(ada: Sitter) -> None:
    blob = ada.blob(VALUES)
    for other in (blob + b"\0", blob[:-1], b"", blob[:-1] + bytes([blob[-1] ^ 1])):
        event = published(ada, blob)
        assert code(gate.examine(ada.collective, ada.fold.charter, event, other)) == "wrong-blob"
    assert code(answer(ada, blob, size=len(blob) + 1)) == "wrong-blob"


# -- the blob and its card ----------------------------------------------------------------------------------------------
def test_bytes_that_are_no_contribution_are_refused(ada: Sitter) -> None:
    blob = ada.blob(VALUES)
    assert code(answer(ada, b"x" * 200)) == "malformed"
    assert code(answer(ada, blob[:40])) == "malformed"
    assert code(answer(ada, blob + b"\0")) == "malformed"
    header = struct.pack("<4sBII", b"FNCB", 1, 1 << 20, 0)
    assert code(answer(ada, header + blob[len(header) :])) == "too-large"


def test_a_signature_that_does_not_hold_is_refused(ada: Sitter) -> None:
    blob = ada.blob(VALUES)
    for place in (len(blob) - 1, len(blob) - 65, 200):
        bent = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
        assert code(answer(ada, bent)) in {"bad-signature", "malformed", "bad-key", "not-canonical"}
    assert code(answer(ada, blob[:-1] + bytes([blob[-1] ^ 1]))) == "bad-signature"


def test_a_contribution_of_another_member_or_collective_is_refused(ada: Sitter) -> None:
    bob = member_id(key("bob"))
    assert code(answer(ada, ada.blob(VALUES, member=bob, sign=key("bob")))) == "wrong-member"
    assert code(answer(ada, ada.blob(VALUES, collective=digest(b"other")))) == "wrong-member"


def test_another_epoch_base_or_number_is_refused(ada: Sitter) -> None:
    assert code(answer(ada, ada.blob(VALUES, epoch=digest(b"other")))) == "wrong-epoch"
    assert code(answer(ada, ada.blob(VALUES), epoch=digest(b"other"))) == "wrong-epoch"
    assert code(answer(ada, ada.blob(VALUES, base=digest(b"other")))) == "wrong-base"
    assert code(answer(ada, ada.blob(VALUES, number=2))) == "wrong-number"
    assert code(answer(ada, ada.blob(VALUES), number=2)) == "wrong-number"


# -- the update ------------------------------------------------------------------------------------------------------
def test_more_coordinates_than_the_density_allows_are_refused(ada: Sitter) -> None:
    most = updates.most_sent(64, ada.fold.charter.update.density_ppm)
    assert isinstance(answer(ada, ada.blob(dict.fromkeys(range(most), 0.5))), Accept)
    assert code(answer(ada, ada.blob(dict.fromkeys(range(most + 1), 0.5)))) == "density"
    assert code(answer(ada, ada.blob(VALUES, density_ppm=200_001))) == "density"
    hidden = ada.blob(dict.fromkeys(range(most + 1), 0.5), sent=most)
    assert code(answer(ada, hidden)) in {"too-large", "malformed", "density"}


def test_an_update_that_sends_nothing_is_refused(ada: Sitter) -> None:
    assert code(answer(ada, ada.blob({}))) == "empty"


def test_a_norm_over_the_cap_is_refused_whatever_the_card_says(ada: Sitter) -> None:
    blob = ada.blob(VALUES)
    found = answer(ada, blob)
    assert isinstance(found, Accept)
    norm = updates.norm_micro(found.update)
    assert isinstance(answer(ada, blob, without(ada.fold.charter, norm_cap_micro=norm + 1)), Accept)
    tight = without(ada.fold.charter, norm_cap_micro=norm - 1)
    assert code(answer(ada, blob, tight)) == "norm"
    assert code(answer(ada, ada.blob(VALUES, norm_micro=0), tight)) == "norm"


def test_a_card_that_lies_about_count_or_norm_is_refused(ada: Sitter) -> None:
    assert code(answer(ada, ada.blob(VALUES, sent=4))) == "card"
    assert code(answer(ada, ada.blob(VALUES, norm_micro=1))) == "card"


def test_another_number_of_coordinates_bits_or_block_is_refused(ada: Sitter) -> None:
    assert code(answer(ada, ada.blob(VALUES, coordinates=65))) == "coordinates"
    assert code(answer(ada, ada.blob(VALUES, value_bits=4))) == "value-bits"

    def coded(**other: int) -> bytes:
        shape = {"coordinates": 64, "bits": 8, "block": 16, **other}
        return sparse.encode(indices=np.array([1], dtype=np.uint32), values=np.array([0.5], dtype=np.float32), **shape)

    assert isinstance(answer(ada, ada.blob({}, data=coded())), Accept)
    assert code(answer(ada, ada.blob({}, data=coded(bits=4)))) == "value-bits"
    assert code(answer(ada, ada.blob({}, data=coded(block=32)))) == "block"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_cannot_be_expressed(ada: Sitter, value: float) -> None:
    with pytest.raises(Malformed):
        ada.blob({1: value})


# -- the order and the law ----------------------------------------------------------------------------------------------
def test_the_cheaper_check_answers_first(ada: Sitter) -> None:
    """One contribution with every fault; each is repaired in turn, and the next one shows."""
    charter, bob = ada.fold.charter, member_id(key("bob"))
    tight, other = without(charter, norm_cap_micro=1), digest(b"other")
    many = dict.fromkeys(range(20), 0.5)
    card: dict[str, Any] = {
        "member": bob, "sign": key("bob"), "epoch": other, "base": other, "number": 7, "coordinates": 65, "value_bits": 4
    }  # fmt: skip
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("wrong-member", ("member", "sign")),
        ("wrong-epoch", ("epoch",)),
        ("wrong-base", ("base",)),
        ("wrong-number", ("number",)),
        ("coordinates", ("coordinates",)),
        ("value-bits", ("value_bits",)),
    ]
    wrong = published(ada, b"", size=1 << 30)
    assert code(gate.examine(ada.collective, tight, wrong, b"x")) == "too-large"
    assert code(gate.examine(ada.collective, tight, replace(wrong, size=9), b"x" * 9)) == "wrong-blob"
    assert code(answer(ada, b"x" * 100, tight)) == "malformed"
    for expected, repaired in steps:
        assert code(answer(ada, ada.blob(many, **card), tight)) == expected
        card = {k: v for k, v in card.items() if k not in repaired}
    assert code(answer(ada, ada.blob(many), tight)) == "density"
    assert code(answer(ada, ada.blob(VALUES, sent=4), tight)) == "norm"
    assert code(answer(ada, ada.blob(VALUES, sent=4))) == "card"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_get_an_answer_and_always_the_same(ada: Sitter, data: st.DataObject) -> None:
    blob = bytearray(ada.blob(salted("fuzz")))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(blob) - 1), st.integers(0, 255)), max_size=3)):
        blob[place] = value
    bent = bytes(blob)
    found, again = answer(ada, bent), answer(ada, bent)
    if isinstance(found, Reject):
        assert found == again
    else:
        assert bent == ada.blob(salted("fuzz")), "nothing but the signed bytes is accepted"


def test_every_node_gives_the_same_answer(tmp_path: Path) -> None:
    table = Table(tmp_path)
    good, bad = table["ada"].publish(VALUES), table["ada"].publish(blob=table["ada"].blob(VALUES, number=9))
    table.deliver()
    for sitter in table:
        (first, second) = (sitter.replay.examine(c) for c in (good, bad))
        assert isinstance(first, Accept)
        assert isinstance(second, Reject)
        assert second.code == "wrong-number"
    table.close()
