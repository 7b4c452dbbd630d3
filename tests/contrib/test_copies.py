"""Copies of updates: found however they are disguised, and never among members that learnt by themselves."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import copies
from protocol import sparse
from protocol.sparse import SparseUpdate

P = 4096


def update(indices: npt.NDArray[np.int64], values: npt.NDArray[np.float64], bits: int = 8) -> SparseUpdate:
    data = sparse.encode(
        coordinates=P, indices=indices.astype(np.uint32), values=values.astype(np.float32), bits=bits, block=64
    )
    return sparse.decode(data, coordinates=P, max_sent=P)


@functools.cache
def learnt(seed: int, *, common: float = 0.3, sent: int = 800) -> SparseUpdate:
    """What one of several members sends: places that matter to all are likelier, values agree as far as `common`."""
    shared, own = np.random.default_rng(0), np.random.default_rng(100 + seed)
    salience = shared.exponential(size=P) * own.exponential(size=P)
    at = np.sort(np.argsort(-salience)[:sent])
    return update(at, (common * shared.normal(size=P) + own.normal(size=P))[at])


def test_two_members_that_learnt_by_themselves_are_no_copies_of_each_other() -> None:
    made = [learnt(seed) for seed in range(5)]
    found = [copies.compare(one, other) for one in made for other in made if one is not other]
    assert max(like.overlap_permille for like in found) > 200, "they do choose like places"
    assert not any(like.copied for like in found)


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0, -1.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_copy_is_found_scaled_turned_round_and_requantised(factor: float, bits: int) -> None:
    original = learnt(1)
    again = update(original.indices.astype(np.int64), factor * original.values().astype(np.float64), bits)
    assert copies.is_copy(again, original)
    assert copies.is_copy(original, again)


@pytest.mark.parametrize(("kept", "noise", "found"), [(0.8, 0.1, True), (0.9, 0.3, True), (0.4, 0.1, False)])
def test_a_copy_stays_one_until_most_of_it_is_something_else(kept: float, noise: float, found: bool) -> None:
    original, rng = learnt(1), np.random.default_rng(9)
    at = np.sort(rng.permutation(original.sent)[: int(kept * original.sent)])
    places = original.indices[at].astype(np.int64)
    others = np.setdiff1d(np.arange(P), original.indices)
    fresh = rng.choice(others, size=original.sent - len(at), replace=False)
    values = original.values()[at] * (1 + noise * rng.normal(size=len(at)))
    everywhere = np.zeros(P)
    everywhere[places], everywhere[fresh] = values, rng.normal(size=len(fresh))
    changed = update(np.flatnonzero(everywhere), everywhere[np.flatnonzero(everywhere)])
    assert copies.is_copy(changed, original) is found


def test_small_updates_that_agree_by_chance_are_no_copies() -> None:
    few = update(np.arange(copies.LEAST - 1), np.ones(copies.LEAST - 1))
    assert not copies.is_copy(few, few)
    enough = update(np.arange(copies.LEAST), np.ones(copies.LEAST))
    assert copies.is_copy(enough, enough)


def test_dense_updates_share_all_places_and_only_their_values_tell() -> None:
    rng = np.random.default_rng(3)
    one, other = (update(np.arange(P), rng.normal(size=P)) for _ in range(2))
    assert copies.compare(one, other).overlap_permille > 980
    assert not copies.is_copy(one, other)


@settings(max_examples=25, deadline=None)
@given(seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)), largest=st.sampled_from([1.0, 1e-3, 65000.0]))
def test_comparing_is_symmetric_and_exact_at_any_size(seeds: tuple[int, int], largest: float) -> None:
    one, other = (learnt(seed) for seed in seeds)
    factor = largest * 2**24 / int(np.abs(one.units).max())
    units = np.rint(one.units * factor).astype(np.int64)
    grown = SparseUpdate(coordinates=P, indices=one.indices, units=units, bits=8, block=64)
    forth, back = copies.compare(grown, other), copies.compare(other, grown)
    assert (forth.shared, forth.either, forth.product) == (back.shared, back.either, back.product)
    assert forth.squares == back.squares[::-1]
    assert forth.product**2 <= forth.squares[0] * forth.squares[1], "Cauchy-Schwarz holds exactly for integers"
    assert copies.is_copy(grown, other) == (seeds[0] == seeds[1])
