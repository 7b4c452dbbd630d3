"""Recipes that need more than registers: Fisher, Gram matrices, earlier means, losses."""

import numpy as np
import pytest
from cuts_to_merge import MEMBERS, SHAPES, P, cuts, extra, register
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import recipes
from contrib.errors import MergeRefused
from contrib.recipes import Extra

EXTRA = extra(3)
MEAN = "contributor-mean/1"


def merge(text, registers, weights, more):
    return recipes.merge(text, registers, weights, len(weights), P, extra=more)


@given(cut=cuts())
@settings(max_examples=8)
def test_fisher_weighs_every_sender_by_its_scaled_diagonal(cut):
    registers, weights = cut
    trust = {
        m: weights[m] * (EXTRA.fishers[m] / EXTRA.fishers[m].mean(dtype=np.float64) + 0.001) * (r.counts > 0)
        for m, r in registers.items()
    }
    top = sum(trust[m] * r.units / 2**24 for m, r in registers.items())
    below = sum(trust.values())
    want = np.divide(top, below, out=np.zeros(P), where=below > 0)
    size = max((np.abs(r.units).max() for r in registers.values()), default=0) / 2**24
    assert np.allclose(merge("fisher-mean/1", registers, weights, EXTRA), want, rtol=1e-6, atol=1e-6 * size)


def test_equal_fishers_are_the_contributor_mean():
    rng = np.random.default_rng(0)
    registers = {m: register(rng.integers(-(2**20), 2**20, P) * (rng.random(P) < 0.5)) for m in MEMBERS}
    weights = dict.fromkeys(MEMBERS, 1)
    same = Extra(fishers={m: np.full(P, 7.0, dtype=np.float32) for m in MEMBERS})
    assert np.allclose(
        merge("fisher-mean/1", registers, weights, same), merge(MEAN, registers, weights, same), rtol=1e-6
    )


@given(cut=cuts(dense=True))
@settings(max_examples=8)
def test_regmean_is_the_least_squares_solution_of_its_paper(cut):
    registers, weights = cut
    got, start = merge("regmean/1:others=1000,ridge=0", registers, weights, EXTRA), 0
    for module, (out, rank) in enumerate(SHAPES):
        at = slice(start, start + out * rank)
        start += out * rank
        left = sum(weights[m] * EXTRA.grams[m][module] for m in registers)
        right = sum(
            weights[m] * EXTRA.grams[m][module] @ (r.units[at].reshape(out, rank).T / 2**24)
            for m, r in registers.items()
        )
        want = np.linalg.solve(left, right).T
        assert np.allclose(got[at].reshape(out, rank), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_regmean_fits_each_member_where_its_activations_are():
    """Two members whose activations do not overlap: the merge keeps each one's columns whole, where a mean halves them."""
    b = {MEMBERS[0]: np.zeros(P), MEMBERS[1]: np.zeros(P)}
    grams = {}
    for place, member in enumerate(b):
        active = np.arange(4) // 2 == place
        grams[member] = tuple(np.diag(active * 1.0) for _ in SHAPES)
        b[member] = np.tile(active, P // 4) * 0.5
    registers = {m: register(np.rint(v * 2**24), np.ones(P)) for m, v in b.items()}
    got = merge("regmean/1", registers, dict.fromkeys(b, 1), Extra(grams=grams, shapes=SHAPES))
    assert np.allclose(got, 0.5, rtol=1e-4)


def test_momentum_zero_at_rate_one_is_the_mean_and_momentum_goes_on():
    rng = np.random.default_rng(0)
    registers = {MEMBERS[0]: register(rng.integers(1, 2**20, P))}
    weights = {MEMBERS[0]: 1}
    mean = merge(MEAN, registers, weights, Extra())
    history = tuple(np.float32(mean * part) for part in (0.25, 0.5, 0.75))
    more = Extra(previous=history)
    assert np.allclose(merge("outer-nesterov/1:momentum=0,rate=1000", registers, weights, more), mean, rtol=1e-6)
    assert (merge("outer-nesterov/1:momentum=500,rate=1000", registers, weights, more) > 1.5 * mean).all()
    damped = merge("damped-mean/1:quarters=2", registers, {**weights, MEMBERS[1]: 3}, Extra())
    got = merge(
        "outer-nesterov/1:momentum=0,quarters=2,rate=1000", registers, {**weights, MEMBERS[1]: 3}, Extra(previous=())
    )
    assert got.tobytes() == damped.tobytes()


def test_outer_momentum_has_the_closed_form_of_nesterovs_steps():
    """A change of the mean at cut s has moved the view at cut t by rate * (1 + mu + ... + mu^(t-s+1)) times itself."""
    rng = np.random.default_rng(2)
    registers = {MEMBERS[0]: register(rng.integers(-(2**20), 2**20, P))}
    history = [rng.normal(0, 0.01, P).astype(np.float32) for _ in range(3)]
    means = [*history, merge(MEAN, registers, {MEMBERS[0]: 1}, Extra())]
    changes = np.diff(np.stack([np.zeros(P), *means]), axis=0)
    reach = [0.7 * sum(0.9**k for k in range(len(means) - s + 1)) for s in range(len(means))]
    got = merge("outer-nesterov/1", registers, {MEMBERS[0]: 1}, Extra(previous=tuple(history)))
    assert np.allclose(got, sum(r * change for r, change in zip(reach, changes, strict=True)), rtol=1e-5, atol=1e-8)


def aimed(target, spoil=0.0):
    """Losses of a model that should hold `target`; `spoil` moves them as another machine's rounding would."""

    def loss(vector):
        wobble = spoil * np.sin(1e4 * float(vector.sum()))
        return float(np.square(vector - target).sum()) + wobble

    return loss


@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
@settings(max_examples=6)
def test_a_searched_merge_is_no_worse_than_what_it_starts_from_on_another_machine_too(seed, count):
    rng = np.random.default_rng(seed)
    target = rng.normal(0, 1, P)
    members = MEMBERS[:count]
    registers = {m: register(np.rint((target * rng.uniform(-1, 2) + rng.normal(0, 0.5, P)) * 2**24)) for m in members}
    weights = dict.fromkeys(members, 1)
    mine, theirs = aimed(target), aimed(target, spoil=0.0005)
    for losses, other in ((mine, mine), (mine, theirs), (theirs, mine)):
        slack = recipes.RECIPES["model-soup/1"].tolerance if losses is not other else 0
        soup = merge("model-soup/1", registers, weights, Extra(losses=losses))
        alone = [merge(MEAN, {m: r}, weights, Extra()) for m, r in registers.items()]
        assert other(soup) <= min(map(other, alone)) + slack
        hub = merge("lorahub/1:penalty=0", registers, weights, Extra(losses=losses))
        assert other(hub) <= other(merge(MEAN, registers, weights, Extra())) + slack


def test_the_greedy_soup_leaves_out_who_spoils_it_and_lorahub_turns_it_round():
    target = np.full(P, 0.25)
    good, bad = register(np.rint(target * 2**24)), register(np.rint(-target * 2**24))
    registers = {MEMBERS[0]: good, MEMBERS[1]: bad, MEMBERS[2]: good}
    weights = dict.fromkeys(registers, 1)
    more = Extra(losses=aimed(target))
    assert np.array_equal(merge("model-soup/1", registers, weights, more), np.float32(target))
    assert aimed(target)(merge("lorahub/1", registers, weights, more)) < 0.1 * aimed(target)(
        merge(MEAN, registers, weights, more)
    )


def test_a_loss_that_is_not_a_number_is_the_worst():
    registers = {m: register(np.full(P, i + 1)) for i, m in enumerate(MEMBERS[:3])}
    weights = dict.fromkeys(registers, 1)
    nowhere = Extra(losses=lambda v: float("nan"))
    assert (
        merge("lorahub/1", registers, weights, nowhere).tobytes() == merge(MEAN, registers, weights, nowhere).tobytes()
    )
    assert np.isfinite(merge("model-soup/1", registers, weights, nowhere)).all()


ONE = {MEMBERS[0]: register([1] * P)}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fisher-mean/1", Extra(fishers={})),
        ("fisher-mean/1", Extra(fishers={MEMBERS[0]: np.ones(P - 1, dtype=np.float32)})),
        ("fisher-mean/1", Extra(fishers={MEMBERS[0]: np.full(P, -1, dtype=np.float32)})),
        ("fisher-mean/1", Extra(fishers={MEMBERS[0]: np.full(P, np.inf, dtype=np.float32)})),
        ("regmean/1", Extra(grams={}, shapes=SHAPES)),
        ("regmean/1", Extra(grams=EXTRA.grams, shapes=SHAPES[:1])),
        ("regmean/1", Extra(grams={MEMBERS[0]: EXTRA.grams[MEMBERS[0]][:1]}, shapes=SHAPES)),
        ("regmean/1", Extra(grams={MEMBERS[0]: tuple(np.full((4, 4), np.nan) for _ in SHAPES)}, shapes=SHAPES)),
        ("regmean/1", Extra(grams={MEMBERS[0]: tuple(-np.eye(4) for _ in SHAPES)}, shapes=SHAPES)),
        ("outer-nesterov/1", Extra(previous=(np.zeros(3, dtype=np.float32),))),
        ("outer-nesterov/1", Extra(previous=(np.full(P, np.nan, dtype=np.float32),))),
    ],
)
def test_what_does_not_fit_the_registers_is_refused(name, more):
    with pytest.raises(MergeRefused):
        merge(name, ONE, {MEMBERS[0]: 1}, more)
