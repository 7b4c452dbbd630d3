"""What recipes do with hostile registers: what the papers promise where everybody sent, and what is left where few did."""

import math

import numpy as np
import pytest
from cuts_to_merge import register
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import recipes
from contrib.errors import MergeRefused

P = 64
TEN = [f"{place:x}" * 64 for place in range(10)]
WEIGHTS = dict.fromkeys(TEN, 1)
UNIT = 2**24


def merge(text, registers, weights=WEIGHTS):
    return recipes.merge(text, registers, weights, len(weights), P).astype(np.float64)


def honest(seed, count=7, density=1.0):
    """Members that agree on a direction, each with noise of its own; values about 0.01."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 0.01, P)
    values = truth + rng.normal(0, 0.003, (count, P))
    sent = rng.random((count, P)) < density
    return {m: register(np.rint(v * UNIT) * s) for m, v, s in zip(TEN, values, sent, strict=False)}, values, truth


def with_hostile(registers, values):
    """Three more members that all send `values` [P]."""
    return {**registers, **dict.fromkeys(TEN[7:], register(np.rint(values * UNIT)))}


def attacks(truth):
    rng = np.random.default_rng(9)
    return {
        "sign flip": -truth,
        "scaled": 100 * truth,
        "flipped and scaled": -100 * truth,
        "noise": rng.normal(0, 1, P),
        "one huge coordinate": np.eye(P)[3] * 1000,
        "nearly nothing": np.eye(P)[3] * 1e-6,
    }


@pytest.mark.parametrize("text", ["median/1", "trimmed-mean/1:cut=300"])
@given(seed=st.integers(0, 2**32), size=st.floats(-1e3, 1e3, allow_nan=False))
@settings(max_examples=8)
def test_where_everybody_sent_median_and_trimmed_mean_stay_between_the_honest_values(text, seed, size):
    registers, values, _ = honest(seed)
    got = merge(text, with_hostile(registers, np.full(P, size)))
    slack = 1 / UNIT
    assert (got >= values.min(axis=0) - slack).all()
    assert (got <= values.max(axis=0) + slack).all()


@pytest.mark.parametrize("text", ["krum/1", "multi-krum/1", "geometric-median/1", "geometric-median/1:zeros=1"])
@pytest.mark.parametrize("attack", sorted(attacks(np.zeros(P)).keys() - {"sign flip"}))
def test_where_everybody_sent_far_registers_move_the_merge_no_further_than_noise_does(text, attack):
    registers, values, truth = honest(1)
    spread = float(np.linalg.norm(values - truth, axis=1).max())
    got = merge(text, with_hostile(registers, attacks(truth)[attack]))
    assert np.linalg.norm(got - truth) <= 1.5 * spread
    if attack != "nearly nothing":
        mean = merge("contributor-mean/1", with_hostile(registers, attacks(truth)[attack]))
        assert np.linalg.norm(mean - truth) > 1.5 * spread


@given(
    seed=st.integers(0, 2**32),
    hostile=st.sampled_from(["scaled", "flipped and scaled", "noise", "one huge coordinate"]),
)
@settings(max_examples=8)
def test_centred_clipping_moves_by_no_more_than_its_radius_a_round(seed, hostile):
    registers, _, truth = honest(seed)
    cut = with_hostile(registers, attacks(truth)[hostile])
    radius = sorted(np.linalg.norm(r.units / UNIT) for r in cut.values())[4]  # the lower median, from zero
    one = merge("centred-clipping/1:rounds=1,zeros=1", cut)
    alone = merge("centred-clipping/1:rounds=1,zeros=1", {m: r for m, r in cut.items() if m in registers})
    assert np.linalg.norm(one) <= radius * 1.001
    assert np.linalg.norm(one - 0.7 * alone) <= 0.3 * radius + 0.7 * np.linalg.norm(alone) + 1e-6
    assert np.linalg.norm(merge("centred-clipping/1:rounds=8", cut) - truth) < np.linalg.norm(truth)


def test_krum_picks_one_of_the_honest_and_multi_krum_leaves_the_hostile_out():
    registers, _, truth = honest(2)
    cut = with_hostile(registers, -3 * truth + 0.5)
    assert any(np.allclose(merge("krum/1", cut), r.units / UNIT, atol=1e-7) for r in registers.values())
    assert np.allclose(merge("multi-krum/1", cut), merge("contributor-mean/1", registers), atol=1e-9)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1, 10, 1000, 100_000]))
@settings(max_examples=8)
def test_a_clipped_mean_owes_a_long_register_no_more_than_the_median_length(seed, size):
    registers, _, truth = honest(seed, density=0.3)
    cut = with_hostile(registers, -size * truth)
    median = sorted(np.linalg.norm(r.units / UNIT) for r in cut.values())[4]
    counts = np.maximum(recipes.sender_counts(cut), 1)
    without = sum(
        r.units / UNIT * min(1, median / max(np.linalg.norm(r.units / UNIT), 1e-12))
        for m, r in cut.items()
        if m in registers
    )
    hostile = merge("clipped-mean/1", cut) * counts - without
    assert np.linalg.norm(hostile) <= 3 * median * 1.001


@given(seed=st.integers(0, 2**32), floor=st.integers(1000, 12_000))
@settings(max_examples=8)
def test_what_one_member_alone_sent_counts_for_a_part_only(seed, floor):
    registers, _, _ = honest(seed, density=0.3)
    empty = int(np.argmin(recipes.sender_counts(registers)))
    cut = {m: register(r.units * (np.arange(P) != empty)) for m, r in registers.items()}
    cut[TEN[7]] = register(np.where(np.arange(P) == empty, UNIT, 0))
    text = recipes.parse("floored-mean/1").recipe.name + (f":floor={floor}" if floor != 2000 else "")
    got = merge(text, cut)
    assert math.isclose(got[empty], 1000 / min(floor, 10_000), rel_tol=1e-6)
    assert merge("contributor-mean/1", cut)[empty] == 1.0
    many = recipes.sender_counts(cut) * 1000 >= floor
    assert np.array_equal(got[many], merge("contributor-mean/1", cut)[many])


def test_coordinate_rules_protect_nothing_where_one_member_alone_sent():
    """Why DESIGN does not build on them: an attacker aims at the empty coordinates of a sparse register."""
    registers, _, _ = honest(4, density=0.1)
    counts = recipes.sender_counts(registers)
    aimed = {**registers, TEN[7]: register(np.where(counts == 0, UNIT, 0))}
    for text in ("median/1", "trimmed-mean/1", "ties/1:keep=1000", "contributor-mean/1"):
        assert (merge(text, aimed)[counts == 0] == 1.0).all()
    for text in ("guarded-mean/1", "guarded-mean/1:cut=300", "clipped-mean/1", "geometric-median/1"):
        assert (np.abs(merge(text, aimed)[counts == 0]) < 0.02).all()
    for text in ("median/1:zeros=1", "trimmed-mean/1:zeros=1"):  # safe, and nearly all that was learnt is gone
        assert (merge(text, aimed)[counts == 0] == 0).all()
        assert np.linalg.norm(merge(text, aimed)) < 0.1 * np.linalg.norm(merge("contributor-mean/1", registers))


def test_colluders_at_the_same_empty_coordinates_pass_the_floor():
    registers, _, _ = honest(4, density=0.1)
    counts = recipes.sender_counts(registers)
    aimed = np.where(counts == 0, 0.001, 0.0)
    got = merge("guarded-mean/1", with_hostile(registers, aimed))
    assert np.allclose(got[counts == 0], 0.001, rtol=1e-3)


def test_a_member_that_contributed_often_is_not_cut_for_it_by_the_length_of_what_it_sends_each_time():
    registers, _, _ = honest(5, density=0.3)
    often = registers[TEN[0]]
    registers[TEN[0]] = register(often.units * 6, often.counts * 6)  # six contributions of the usual size
    plain, rms = merge("clipped-mean/1", registers), merge("clipped-mean/1:rms=1", registers)
    alone = (often.counts > 0) & (recipes.sender_counts(registers) == 1)
    assert alone.any()
    assert (np.abs(rms[alone]) > 1.5 * np.abs(plain[alone])).all()


def test_most_members_far_out_of_range_are_refused_where_it_would_not_be_exact():
    far = {m: register(np.full(P, 2**46)) for m in TEN}
    with pytest.raises(MergeRefused):
        merge("guarded-mean/1:cut=200", far)
    assert np.isfinite(merge("guarded-mean/1", far)).all()


def test_a_task_is_forgotten_by_a_negative_weight():
    registers, _, _ = honest(6, count=3)
    seats = dict.fromkeys(registers, 1)
    whole = merge("task-arithmetic/1:scale=1000", registers, seats)
    minus = merge(f"task-arithmetic/1:minus={int(TEN[1][:8], 16)},scale=1000", registers, seats)
    assert np.allclose(whole - minus, 2 * registers[TEN[1]].units / UNIT, atol=1e-6)


def test_senders_are_counted_and_so_is_what_one_alone_decided():
    cut = {
        TEN[0]: register([1, 1, 0, 0] + [0] * 60),
        TEN[1]: register([1, 0, 2, 0] + [0] * 60),
        TEN[2]: register([0] * P),
    }
    merged = recipes.merge("member-mean/1", cut, dict.fromkeys(cut, 1), 3, P)
    found = recipes.senders(cut, merged)
    assert recipes.sender_counts(cut).tolist()[:4] == [2, 1, 1, 0]
    assert found.coordinates == (61, 2, 1, 0)
    assert found.lone == {TEN[0]: 1, TEN[1]: 1, TEN[2]: 0}
    assert found.lone_ppm == round(1_000_000 * 5 / 9)
    assert recipes.senders({}, merged).coordinates == (64,)
    assert recipes.senders({}, np.zeros(0, dtype=np.float32)).lone_ppm == 0
    with pytest.raises(MergeRefused):
        recipes.senders(cut, merged[:3])
