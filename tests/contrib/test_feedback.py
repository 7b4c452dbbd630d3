"""The residual rule: nothing is lost but what it says, and what waits settles where theory says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contrib import feedback, updates
from contrib.errors import SelectionRefused
from contrib.feedback import Feedback

P = 64
vectors = hnp.arrays(np.float32, P, elements=st.floats(-4, 4, width=16))
fishers = hnp.arrays(np.float32, P, elements=st.floats(0, 4, width=16))
sendings = st.sampled_from([(8, "fisher-r2"), (4, "magnitude"), (1, "root-fisher-rows"), (2, "fisher-r2-rows")])


@given(
    residual=vectors,
    learnt=vectors,
    fisher=fishers,
    how=sendings,
    density=st.integers(1, 1_000_000),
    keep=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=25)
def test_sent_and_left_are_what_was_learnt_and_the_kept_share_of_what_waited(
    residual, learnt, fisher, how, density, keep
):
    rule = Feedback(keep_permille=keep)
    wanted = rule.wanted(residual, learnt)
    exact = residual.astype(np.float64) * (keep / 1000) + learnt
    np.testing.assert_array_equal(wanted, exact.astype(np.float32))
    bits, selector = how
    made = updates.make(fisher, wanted, density_ppm=density, value_bits=bits, block=16, rule=selector)
    left = rule.left(wanted, made.update)
    whole = left.astype(np.float64)
    whole[made.update.indices] += made.update.values()
    scale = np.abs(wanted).astype(np.float64) + np.abs(left)
    assert (np.abs(whole - wanted) <= scale * 2.0**-23).all(), "no more than the rounding of one float32"
    silent = np.setdiff1d(np.arange(P), made.update.indices)
    assert left[silent].tobytes() == wanted[silent].tobytes(), "what was not sent waits with the same bits"


def test_a_whole_residual_is_added_in_float32_as_it_always_was():
    rng = np.random.default_rng(0)
    residual, learnt = rng.standard_normal((2, P)).astype(np.float32)
    assert Feedback().wanted(residual, learnt).tobytes() == (residual + learnt).tobytes()


@settings(max_examples=25)
@given(keep=st.integers(0, 950), learnt=st.floats(-1, 1, width=16))
def test_what_is_never_sent_settles_at_its_share_of_what_is_learnt(keep, learnt):
    rule, residual = Feedback(keep_permille=keep), np.zeros(1, np.float32)
    for _turn in range(200):
        residual = rule.wanted(residual, np.array([learnt], np.float32))
    assert residual[0] == pytest.approx(learnt / (1 - keep / 1000), rel=1e-4, abs=1e-9)


def test_everything_learnt_arrives_when_one_row_is_sent_at_a_time():
    rng = np.random.default_rng(1)
    residual = rng.standard_normal(P).astype(np.float32)
    total, fisher = np.zeros(P), np.ones(P, np.float32)
    first, nothing = residual.copy(), np.zeros(P, np.float32)
    for _turn in range(40):
        wanted = feedback.Feedback().wanted(residual, nothing)
        made = updates.make(fisher, wanted, density_ppm=250_000, value_bits=1, block=16, rule=updates.ROW_RULE)
        total[made.update.indices] += made.update.values()
        residual = feedback.Feedback.left(wanted, made.update)
    assert np.abs(total - first).max() < 0.1 * np.abs(first).max(), (
        "signs with one magnitude, fed back, reach the values"
    )


@pytest.mark.parametrize("keep", [-1, 1001])
def test_a_share_that_would_grow_the_residual_is_refused(keep):
    with pytest.raises(SelectionRefused, match="permille"):
        Feedback(keep_permille=keep)


def test_vectors_of_two_epochs_are_not_added():
    with pytest.raises(SelectionRefused, match="shapes"):
        Feedback().wanted(np.zeros(3, np.float32), np.zeros(4, np.float32))
