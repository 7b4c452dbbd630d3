"""The laws of every recipe, and its text."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from cuts_to_merge import ALL, MEMBERS, SHAPES, P, cuts, drawn, extra, register, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import merging, recipes
from contrib.errors import MergeRefused
from contrib.merging import Register
from contrib.recipes import Extra

every = pytest.mark.parametrize("name", ALL)
EXTRA = extra()
DRAWN = {"dare/1", "dare-ties/1", "della/1"}  # by the register's digest: what is turned round is thinned elsewhere


def merge(text, registers, weights, more=EXTRA, coordinates=P):
    return recipes.merge(text, registers, weights, len(weights), coordinates, extra=more)


@every
@given(cut=cuts(), data=st.data(), order=st.randoms())
@settings(max_examples=5)
def test_a_merge_is_a_function_of_the_set_alone(name, cut, data, order):
    registers, weights = cut
    text = texts(recipes.RECIPES[name], data.draw)
    assert recipes.parse(text).text == text
    first = merge(text, registers, weights)
    shuffled, seats = list(registers.items()), list(weights.items())
    order.shuffle(shuffled)
    order.shuffle(seats)
    assert merge(text, dict(shuffled), dict(seats)).tobytes() == first.tobytes()
    spoke = {m: r for m, r in registers.items() if r.counts.any()}
    assert merge(text, spoke, weights).tobytes() == first.tobytes()  # who sent nothing is as one who is not there
    assert first.dtype == np.float32
    assert first.shape == (P,)
    assert np.isfinite(first).all()
    assert not np.signbit(first[first == 0]).any()


@every
def test_merging_twice_gives_the_same_bytes_and_changes_no_register(name):
    registers = {m: register(np.arange(P) * (i + 1) << 18) for i, m in enumerate(MEMBERS)}
    before = {m: merging.register_digest(r) for m, r in registers.items()}
    weights = dict.fromkeys(MEMBERS, 2)
    assert merge(name, registers, weights).tobytes() == merge(name, registers, weights).tobytes()
    assert {m: merging.register_digest(r) for m, r in registers.items()} == before


@every
def test_nothing_merges_to_nothing(name):
    empty = {m: merging.empty(P) for m in MEMBERS[:2]}
    more = Extra(losses=EXTRA.losses, grams=EXTRA.grams, shapes=SHAPES, previous=(), fishers=EXTRA.fishers)
    for registers in ({}, empty):
        assert merge(name, registers, dict.fromkeys(MEMBERS, 1), more).tobytes() == bytes(4 * P)


def image(name, value, registers, weights):
    """What registers that all hold `value` merge to; None where only the direction is promised."""
    parameters = recipes.RECIPES[name].parameters
    if name == "task-arithmetic/1":
        return value * (parameters["scale"] / 1000 * len(weights))
    if name == "ties/1":
        kept = np.argsort(-np.abs(value), kind="stable")[: P * parameters["keep"] // 1000]
        return np.where(np.isin(np.arange(P), kept), value, 0)
    if name == "outer-nesterov/1":
        return value * ((1 + parameters["momentum"] / 1000) * parameters["rate"] / 1000)
    return None if name in {"lorahub/1", *DRAWN} else value


@every
@given(seed=st.integers(0, 2**32), seats=st.integers(1, 6), weights=st.lists(st.integers(1, 9), min_size=6, max_size=6))
@settings(max_examples=5)
def test_equal_registers_merge_to_what_they_hold_or_to_the_stated_image(name, seed, seats, weights):
    rng = np.random.default_rng(seed)
    units = rng.integers(1, 2**23, P) * rng.choice([-1, 1], P) * (rng.random(P) < 0.7)
    if not units.any():
        units[0] = 1
    value = units / 2**24
    members = MEMBERS[:seats]
    registers, weights = dict.fromkeys(members, register(units)), dict(zip(members, weights, strict=False))
    more = Extra(losses=EXTRA.losses, grams=EXTRA.grams, shapes=SHAPES, previous=(), fishers=EXTRA.fishers)
    got = merge(name, registers, weights, more)
    want = image(name, value, registers, weights)
    assert (want is value) == (recipes.RECIPES[name].equal == "themselves")
    if want is None:  # thinned at random, or multiplied by one share: nothing turns round, nothing new appears
        ratio = got[units != 0] / value[units != 0]
        assert (got[units == 0] == 0).all()
        if name == "lorahub/1":
            assert np.allclose(ratio, ratio[0], rtol=1e-5)
            assert abs(ratio[0]) <= 1.5001
        else:  # of n members that hold it k keep it, each raised by at most 1 / (1 - 0.6)
            assert ((ratio >= 0) & (ratio <= 2.5001)).all()
    elif name in {"fisher-mean/1", "regmean/1"}:
        assert np.allclose(got, want, rtol=1e-5, atol=1e-9)
    elif name in {"task-arithmetic/1", "outer-nesterov/1"}:
        assert np.allclose(got, want, rtol=3e-7, atol=0)
    else:
        assert got.tolist() == np.float32(want).tolist()


@pytest.mark.parametrize("name", [name for name in ALL if name not in DRAWN])
@pytest.mark.parametrize("bits", [1, 20])
def test_a_recipe_favours_no_sign(name, bits):
    rng = np.random.default_rng(bits)
    registers, weights = {m: drawn(rng, P, bits, 0.6) for m in MEMBERS[:4]}, dict.fromkeys(MEMBERS[:5], 1)
    turned = {m: register(-r.units, r.counts) for m, r in registers.items()}
    more = Extra(
        losses=lambda v: float(np.abs(v).sum()), grams=EXTRA.grams, shapes=SHAPES, previous=(), fishers=EXTRA.fishers
    )
    assert (merge(name, turned, weights, more) == -merge(name, registers, weights, more)).all()


@pytest.mark.parametrize("name", ["dare/1:drop=900", "della/1:drop=700"])
def test_random_thinning_keeps_the_mean(name):
    """Over 20,000 coordinates of the same value the merge is that value but for chance; DELLA's zeros lower its mean."""
    value, count = 2**20, 20_000
    registers = {m: register(np.full(count, value)) for m in MEMBERS[:4]}
    got = recipes.merge(name, registers, dict.fromkeys(MEMBERS[:4], 1), 4, count) / (value / 2**24)
    if name.startswith("dare"):
        assert abs(got.mean() - 1) < 0.05
        assert set(np.round(got, 3).tolist()) <= {0, 2.5, 5, 7.5, 10}
    else:  # a mean over those that kept it; where all dropped it there is none
        assert abs((got == 0).mean() - 0.7**4) < 0.03
        assert ((got == 0) | ((got >= 2.4) & (got <= 5.1))).all()


LINEAR = [
    "contributor-mean/1",
    "sqrt-mean/1",
    "member-mean/1",
    "damped-mean/1",
    "floored-mean/1",
    "clipped-mean/1:clip=100000",
]


@pytest.mark.parametrize("text", LINEAR)
@given(cut=cuts(dense=True))
@settings(max_examples=4)
def test_merging_b_is_merging_the_products(text, cut):
    """A is shared and frozen, so the mean of all B_i A is (the mean of B_i) A; here in fractions, to the last rounding."""
    registers, weights = cut
    signs = np.random.default_rng(1).choice([-1, 1], (4, 3))  # of a frozen A, [rank, in]
    merged, total, start = merge(text, registers, weights), sum(weights.values()), 0
    largest = max(int(np.abs(r.units).max()) for r in registers.values())
    for out, rank in SHAPES:
        at = slice(start, start + out * rank)
        start += out * rank
        mean = sum(
            weights[m] * (r.units[at].reshape(out, rank) @ signs) for m, r in registers.items()
        )  # [out, in], exact
        product = [[sum(Fraction(float(b)) * int(a) for b, a in zip(row, column, strict=True)) for column in signs.T]
                   for row in merged[at].reshape(out, rank)]  # fmt: skip
        for row, found in zip(mean.tolist(), product, strict=True):
            for exact, got in zip(row, found, strict=True):
                assert abs(got - Fraction(exact, total * 2**24)) <= Fraction(rank * largest, 2**24 * 2**23)


@every
def test_a_recipe_says_what_it_is(name):
    recipe = recipes.RECIPES[name]
    assert recipe.name == name
    assert all((recipe.about, recipe.paper, recipe.absent, recipe.breakdown))
    assert recipe.bounds.keys() == recipe.parameters.keys()
    assert all(low <= recipe.parameters[key] <= high for key, (low, high) in recipe.bounds.items())
    assert recipe.needs <= {"losses", "grams", "previous", "fishers"}
    assert recipe.exact == (recipe.tolerance == 0.0)


@pytest.mark.parametrize("name", [name for name in ALL if recipes.RECIPES[name].needs])
def test_a_recipe_without_what_it_needs_is_refused(name):
    with pytest.raises(MergeRefused, match="needs"):
        merge(name, {MEMBERS[0]: register([1] * P)}, {MEMBERS[0]: 1}, Extra())


@pytest.mark.parametrize(
    "text",
    [
        "", "median", "median/2", "median/0", "median/01", "Median/1", "median/1:", "median/1:zeros", "median/1:zeros=2",
        "median/1:zeros=-1",
        "median/1:zeros=0", "median/1:zeros=01", "median/1:ones=1", "trimmed-mean/1:zeros=1,cut=100",
        "trimmed-mean/1:cut=100,cut=100",
        "trimmed-mean/1:cut=500", "median/1 ", "median/1\n", "median/1:zeros=\u0661",
        "centred-clipping/1:" + "zeros=1," * 8 + "zeros=1",
    ],
)  # fmt: skip
def test_a_text_that_is_not_the_one_of_a_choice_is_refused(text):
    with pytest.raises(MergeRefused):
        recipes.parse(text)


@every
def test_a_choice_has_one_text_and_charters_take_it_if_nothing_more_is_needed(name):
    recipe = recipes.RECIPES[name]
    for key, (low, high) in recipe.bounds.items():
        for value in (low, high):
            text = name if value == recipe.parameters[key] else f"{name}:{key}={value}"
            assert recipes.parse(text).text == text
            assert recipes.parse(text).parameters == {**recipe.parameters, key: value}
    assert recipes.fits_charters(name) == (name in recipes.in_charters()) == (not recipe.needs)


@pytest.mark.parametrize("value", [None, 7, ["median/1"], "outer-nesterov/1", "median/9"])
def test_a_charter_names_what_everybody_can_compute(value):
    assert not recipes.fits_charters(value)
    with pytest.raises(MergeRefused):
        recipes.for_charter(value)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(recipes.in_charters()))
def test_a_large_adapter_is_merged_in_far_less_memory_than_its_registers_take(name):
    coordinates, rng, registers = 2_400_000, np.random.default_rng(0), {}
    for place in range(10):
        counts = (rng.random(coordinates) < 0.2).astype(np.int32)
        registers[f"{place:064x}"] = Register(units=rng.integers(-(2**20), 2**20, coordinates) * counts, counts=counts)
    tracemalloc.start()
    recipes.merge(name, registers, dict.fromkeys(registers, 1), 10, coordinates)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * coordinates * 12 / 2  # about 15 to 110 MB of the registers' 288
