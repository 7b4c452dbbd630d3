"""Choosing and checking updates: a function of the arguments, and every hard rule has its refusal."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contrib import updates
from contrib.errors import SelectionRefused
from contrib.updates import Accept, Reject
from protocol import sparse
from protocol.card import Card, Contribution
from protocol.ids import digest

P = 1000
CHARTER = {"coordinates": P, "value_bits": 8, "density_ppm": 200_000, "norm_cap_micro": 10_000_000}


def vectors(seed=0, coordinates=P):
    rng = np.random.default_rng(seed)
    fisher = np.square(rng.standard_normal(coordinates)).astype(np.float32)
    return fisher, (rng.standard_normal(coordinates) * 0.01).astype(np.float32)


def made(seed=0, **changes):
    settings_ = {"density_ppm": 200_000, "value_bits": 8, "block": 256} | changes
    return updates.make(*vectors(seed), **settings_)


def contribution(one, **changes):
    values = {name: digest(name.encode()) for name in ("collective", "member", "epoch", "base", "view", "train_root")}
    values |= {
        "held_out_root": digest(b"held out"),
        "number": 1,
        "train_rows": 900,
        "steps": 10,
        "tokens": 2560,
        "epsilon_micro": None,
        "selection": "fisher-r2",
        "density_ppm": 200_000,
        "value_bits": one.update.bits,
        "coordinates": one.update.coordinates,
        "sent": one.update.sent,
        "norm_micro": one.norm_micro,
        "loss_before": 423,
        "loss_after": 378,
        "libraries": {},
    }
    return Contribution(card=Card(**(values | changes)), update=one.data, digest=digest(one.data))


small_floats = hnp.arrays(np.float32, 40, elements=st.floats(0, 4, width=16))
signed_floats = hnp.arrays(np.float32, 40, elements=st.floats(-4, 4, width=16))


@given(fisher=small_floats, residual=signed_floats, density=st.integers(1, 1_000_000))
@settings(deadline=None)
def test_the_most_salient_coordinates_are_chosen_and_ties_go_to_the_lower_index(fisher, residual, density):
    chosen = updates.select(fisher, residual, density)
    score = fisher.astype(np.float64) * np.square(residual.astype(np.float64))
    candidates = [i for i in range(len(residual)) if residual[i] != 0]
    best = sorted(candidates, key=lambda i: (-score[i], i))[: math.ceil(Fraction(density * 40, 1_000_000))]
    assert chosen.tolist() == sorted(best)


@given(fisher=small_floats, residual=signed_floats, density=st.integers(1, 1_000_000))
@settings(deadline=None, max_examples=40)
def test_whole_rows_are_chosen_by_what_signs_and_one_magnitude_remove(fisher, residual, density):
    chosen = set(updates.select(fisher, residual, density, updates.ROW_RULE).tolist())
    most = math.ceil(Fraction(density * 40, 1_000_000))
    rows = [[i for i in range(at, min(at + 16, 40)) if residual[i] != 0] for at in range(0, 40, 16)]
    taken = [len(chosen & set(row)) for row in rows]
    assert len(chosen) == sum(taken) <= most
    if any(n and n < len(row) for n, row in zip(taken, rows, strict=True)):
        assert len(chosen) == most
        assert sum(map(bool, taken)) == 1, "a row is cut only when it alone is too long"
    saliency = updates.row_saliency(np.sqrt(fisher), residual)
    full = [s for s, n, row in zip(saliency, taken, rows, strict=True) if n]
    none = [s for s, n, row in zip(saliency, taken, rows, strict=True) if row and not n]
    assert not full or not none or min(full) >= max(none)


@settings(deadline=None, max_examples=25)
@given(
    fisher=hnp.arrays(np.float32, 16, elements=st.floats(0.125, 4, width=16)),
    residual=signed_floats.map(lambda v: v[:16]),
)
def test_row_saliency_is_the_most_that_one_magnitude_can_remove(fisher, residual):
    weights, sizes = fisher.astype(np.float64), np.abs(residual.astype(np.float64))
    best = float((weights * sizes).sum() / weights.sum())
    removed = [
        float((weights * sizes**2).sum() - (weights * (sizes - size) ** 2).sum())
        for size in (best, 0.9 * best, 1.1 * best)
    ]
    assert updates.row_saliency(fisher, residual)[0] == pytest.approx(removed[0], rel=1e-6, abs=1e-12)
    assert removed[0] >= max(removed)


@settings(deadline=None, max_examples=25)
@given(values=hnp.arrays(np.float32, 40, elements=st.floats(0.0625, 4, width=16) | st.floats(-4, -0.0625, width=16)))
def test_flattened_rows_keep_signs_and_the_sum_of_magnitudes(values):
    at = np.arange(40, dtype=np.uint32)
    flat = updates.flattened(at, values)
    assert (np.signbit(flat) == np.signbit(values)).all()
    for row in range(0, 40, 16):
        part, whole = np.abs(flat[row : row + 16]), np.abs(values[row : row + 16])
        assert len(set(part.tolist())) == 1
        assert float(part.sum()) == pytest.approx(float(whole.sum()), rel=1e-5)


def test_whole_rows_of_signs_are_sent_whole_and_cheaply():
    fisher, residual = vectors(coordinates=16_000)
    sent = updates.make(fisher, residual, density_ppm=250_000, value_bits=1, block=16, rule=updates.ROW_RULE)
    assert sent.update.sent == 4000
    assert set(np.bincount(sent.update.indices // 16).tolist()) == {0, 16}
    odd = updates.make(fisher, residual, density_ppm=250_937, value_bits=1, block=16, rule=updates.ROW_RULE)
    assert odd.update.sent % 16 == 0, "blocks of scales stand on rows"
    scattered = updates.make(fisher, residual, density_ppm=250_000, value_bits=4, block=256)
    assert len(sent.data) < len(scattered.data) / 2


@pytest.mark.parametrize("rule", updates.RULES)
def test_every_rule_is_deterministic_and_never_takes_a_zero_residual(rule):
    fisher, residual = vectors()
    residual[::2] = 0
    first = updates.select(fisher, residual, 300_000, rule, seed=7)
    assert first.tolist() == updates.select(fisher.copy(), residual.copy(), 300_000, rule, seed=7).tolist()
    assert 300 - (7 if rule in updates.ROW_RULES else 0) <= len(first) <= 300, "as many as fit, or whole rows of 8"
    assert (residual[first] != 0).all()
    assert len(updates.select(fisher, residual, 900_000, rule)) == 500


def test_the_rules_choose_by_what_their_names_say():
    fisher = np.array([1.0, 100.0, 4.0], dtype=np.float32)
    residual = np.array([5.0, 0.1, 3.0], dtype=np.float32)
    by_rule = {rule: updates.select(fisher, residual, 333_333, rule).tolist() for rule in updates.RULES}
    assert by_rule["fisher-r2"] == [2]
    assert by_rule["magnitude"] == [0]
    assert by_rule["fisher"] == [1]


def test_random_follows_its_seed():
    fisher, residual = vectors()
    one, same, other = (updates.select(fisher, residual, 50_000, "random", seed=s).tolist() for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("fisher", "residual", "rule"),
    [
        ([1.0], [1.0, 2.0], "fisher-r2"),
        ([1.0], [float("nan")], "fisher-r2"),
        ([float("inf")], [1.0], "fisher-r2"),
        ([-1.0], [1.0], "fisher-r2"),
        ([1.0], [1.0], "best"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(fisher, residual, rule):
    with pytest.raises(SelectionRefused):
        updates.select(np.array(fisher, dtype=np.float32), np.array(residual, dtype=np.float32), 500_000, rule)


def test_an_update_sends_the_residual_up_to_its_steps():
    fisher, residual = vectors()
    one = updates.make(fisher, residual, density_ppm=200_000, value_bits=8, block=256)
    assert one.update.sent <= updates.most_sent(P, 200_000) == 200
    error = np.abs(one.update.values() - residual[one.update.indices])
    assert error.max() <= np.abs(residual).max() / 127 / 2 * 1.01
    assert sparse.decode(one.data, coordinates=P, max_sent=200).units.tolist() == one.update.units.tolist()


def test_nothing_left_to_send_makes_an_empty_update():
    fisher, _ = vectors()
    one = updates.make(fisher, np.zeros(P, dtype=np.float32), density_ppm=200_000, value_bits=8, block=256)
    assert one.update.sent == 0
    assert one.norm_micro == 0


@given(
    units=st.lists(st.integers(-sparse.MAX_UNITS, sparse.MAX_UNITS).filter(bool), min_size=1, max_size=50),
)
@settings(deadline=None)
def test_the_norm_is_exact(units):
    update = sparse.SparseUpdate(
        coordinates=100, indices=np.arange(len(units), dtype=np.uint32), units=np.array(units), bits=8, block=256
    )
    square = sum(unit**2 for unit in units)
    assert updates.squared_norm(update) == square
    norm = updates.norm_micro(update)
    assert norm**2 <= Fraction(square * 10**12, 2**48) < (norm + 1) ** 2


def test_an_honest_contribution_is_accepted():
    one = made()
    verdict = updates.check(contribution(one), **CHARTER)
    assert isinstance(verdict, Accept)
    assert verdict.update.units.tolist() == one.update.units.tolist()


def corrupted(one):
    return dataclasses.replace(contribution(one), update=one.data[:-1])


def halved(one):
    return dataclasses.replace(
        contribution(one), update=updates.make(*vectors(), density_ppm=100_000, value_bits=8, block=256).data
    )


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda one: contribution(one, coordinates=P + 1), "coordinates"),
        (lambda one: contribution(one, value_bits=4), "value-bits"),
        (lambda one: dataclasses.replace(contribution(one), update=made(value_bits=4).data), "value-bits"),
        (lambda one: contribution(one, density_ppm=300_000), "density"),
        (lambda one: contribution(one, sent=201), "density"),
        (lambda one: dataclasses.replace(contribution(one), update=made(density_ppm=300_000).data), "too-large"),
        (lambda one: contribution(one, sent=0), "empty"),
        (lambda one: contribution(one, norm_micro=10_000_001), "norm"),
        (corrupted, "malformed"),
        (halved, "card"),
        (lambda one: contribution(one, sent=one.update.sent - 1), "card"),
        (lambda one: contribution(one, norm_micro=one.norm_micro + 1), "card"),
    ],
)
def test_every_hard_rule_has_its_refusal(build, code):
    verdict = updates.check(build(made()), **CHARTER)
    assert isinstance(verdict, Reject)
    assert verdict.code == code
    assert verdict.text.startswith("couldn't accept contribution: ")


def test_a_lie_about_the_norm_does_not_pass_the_cap():
    one = made()
    liar = contribution(one, norm_micro=1)
    verdict = updates.check(liar, **(CHARTER | {"norm_cap_micro": one.norm_micro}))
    assert isinstance(verdict, Reject)
    assert verdict.code in {"norm", "card"}


def test_the_norm_cap_is_exact_to_the_last_unit():
    data = sparse.encode(
        coordinates=P,
        indices=np.array([3, 4], dtype=np.uint32),
        values=np.array([3.0, 4.0], dtype=np.float32),
        bits=8,
        block=1,
    )
    update = sparse.decode(data, coordinates=P, max_sent=2)
    one = updates.Made(data=data, update=update, norm_micro=updates.norm_micro(update))
    rounded_down = one.norm_micro**2 << 48 != updates.squared_norm(update) * 10**12
    at_cap = updates.check(contribution(one), **(CHARTER | {"norm_cap_micro": one.norm_micro}))
    assert isinstance(at_cap, Reject if rounded_down else Accept)
    assert isinstance(updates.check(contribution(one), **(CHARTER | {"norm_cap_micro": one.norm_micro + 1})), Accept)


def test_every_density_keeps_its_own_limit():
    for density in (1, 50_000, 999_999, 1_000_000):
        assert updates.most_sent(P, density) == math.ceil(Fraction(P * density, 1_000_000))
