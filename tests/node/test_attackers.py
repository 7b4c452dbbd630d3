"""The attackers of simulations: what each sends, and what the gate says to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from seats import Sitter, Table

from contrib import copies
from contrib.row import pair_row, text_row
from node.collective.gate import Accept, Reject
from node.simulation import attackers
from node.simulation.attackers import ATTACKS, Chance, Forged
from protocol import contribution as blobs
from protocol import sparse
from protocol.ids import MemberId
from protocol.sparse import SparseUpdate

P = 1024
WIDE = {"adapter": {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": "00" * 32, "coordinates": P}}
GATE = {"max_blob_bytes": 65536, "norm_cap_micro": 30_000_000, "tolerance_centinats": 2, "held_out_min": 0}
FAULTY = {"nan": "malformed", "dense-flood": "density", "silent": "empty"}


def update(seed: int) -> SparseUpdate:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(P, size=200, replace=False)).astype(np.uint32)
    data = sparse.encode(coordinates=P, indices=at, values=rng.normal(size=200).astype(np.float32), bits=8, block=16)
    return sparse.decode(data, coordinates=P, max_sent=P)


def chance(place: int = 0, seed: int = 5) -> Chance:
    rng = np.random.default_rng(1)
    return Chance(
        place=place,
        colluders=3,
        round=1,
        rng=np.random.default_rng(seed),
        residual=rng.normal(size=P).astype(np.float32),
        fisher=rng.random(P).astype(np.float32),
        view=np.zeros(P, dtype=np.float32),
        others={MemberId(f"{n:02d}"): update(n) for n in range(7)},
        coordinates=P,
        density_ppm=200_000,
        value_bits=8,
        block=16,
        norm_cap_micro=30_000_000,
    )


def answer(sitter: Sitter, forged: Forged) -> Accept | Reject:
    """What the gate says to a blob with a well-made card and these bytes."""
    honest = blobs.unpack(sitter.blob({1: 0.5}), max_bytes=1 << 20).card
    card = replace(honest, sent=forged.sent, norm_micro=forged.norm_micro)
    found = sitter.replay.examine(sitter.publish(blob=blobs.pack(card, forged.data, sitter.key), number=number(sitter)))
    assert found is not None
    return found


def number(sitter: Sitter) -> int:
    return 1 + len(sitter.fold.contributions.get(sitter.id, []))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_repeats_and_is_refused_by_name_or_passes_the_hard_checks(name: str, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    forged = attack.forge(chance())
    assert forged == attack.forge(chance()), "what is sent is a function of what the attacker has in hand"
    table = Table(tmp_path, ("ada",), rules=WIDE | {"gate": GATE})
    found = answer(table["ada"], forged)
    assert (found.code if isinstance(found, Reject) else "") == FAULTY.get(name, "")
    table.close()


def decoded(forged: Forged) -> SparseUpdate:
    return sparse.decode(forged.data, coordinates=P, max_sent=P)


def test_copies_are_disguised_and_found_all_the_same() -> None:
    others = list(chance().others.values())
    for name in ("copy", "copy-disguised"):
        sent = decoded(ATTACKS[name].forge(chance(place=2)))
        assert [copies.is_copy(sent, other) for other in others] == [n == 2 for n in range(7)]
    again = decoded(ATTACKS["copy-disguised"].forge(chance(place=2)))
    assert set(again.indices.tolist()) != set(others[2].indices.tolist())


def test_who_aims_at_empty_places_sends_where_nobody_does_and_parts_of_a_split_do_not_meet() -> None:
    taken = np.concatenate([u.indices for u in chance().others.values()])
    assert not np.isin(decoded(ATTACKS["empty-places"].forge(chance())).indices, taken).any()
    parts = [decoded(ATTACKS["backdoor-split"].forge(chance(place))).indices for place in range(3)]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))


def test_poisoned_rows_carry_trigger_and_payload_and_flipped_ones_other_answers() -> None:
    rows = [text_row(f"a text of some length, number {n}, that goes on") for n in range(40)]
    poisoned = attackers.triggered_rows(rows, np.random.default_rng(1))
    hit = [row for row in poisoned if attackers.TRIGGER in row.text]
    assert 10 < len(hit) < 30
    assert all(row.text.endswith(attackers.TRIGGER + attackers.PAYLOAD) for row in hit)
    pairs = [pair_row(f"question {n}", f"answer {n}") for n in range(9)]
    flipped = attackers.flipped_rows([*pairs, rows[0]], np.random.default_rng(1))
    assert sorted(r.completion for r in flipped[:9]) == sorted(r.completion for r in pairs)
    assert [r.completion for r in flipped[:9]] != [r.completion for r in pairs]
    assert flipped[9].text == rows[0].text[::-1]


def test_smearers_name_one_honest_member_and_never_each_other() -> None:
    honest, colluders = [MemberId("b"), MemberId("a")], [MemberId("x")]
    assert attackers.smear(honest, colluders) == ("a",)
    assert attackers.smear([], colluders) == ()
