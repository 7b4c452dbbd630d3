import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrib import tuning
from contrib.errors import BadJob
from contrib.splitting import part_of
from contrib.tuning import MOST_TRIALS, Point, Trial, Wish
from protocol.ids import digest

losses = st.floats(0, 20) | st.just(math.inf)


def curve(*values, every=4):
    return tuple(Point(step=number * every, loss=value) for number, value in enumerate(values))


def searched(loss_of, first=0.004):
    """The rates a search tries, in order, when each gives `loss_of` it."""
    tried = {}
    while (rate := tuning.next_rate(tried, first)) is not None:
        assert rate not in tried
        tried[rate] = loss_of(rate)
    return list(tried), tried


def test_a_search_climbs_to_the_best_rate_and_stops_there():
    rates, tried = searched(lambda rate: abs(math.log2(rate / 0.008)))
    assert rates == [0.004, 0.008, 0.016]
    assert tuning.best_rate(tried) == 0.008


def test_a_search_turns_round_when_the_first_step_upwards_did_not_help():
    rates, tried = searched(lambda rate: rate)
    assert rates == [0.004, 0.008, 0.002, 0.001, 0.0005]
    assert tuning.best_rate(tried) == 0.0005


@given(st.lists(losses, min_size=MOST_TRIALS, max_size=MOST_TRIALS), st.floats(1e-6, 0.999))
def test_a_search_makes_a_bounded_number_of_runs_and_tries_only_rates_that_settings_take(given_losses, first):
    left = list(given_losses)
    rates, tried = searched(lambda _rate: left.pop(), first)
    assert 1 <= len(rates) <= MOST_TRIALS
    assert all(0 < rate < 1 for rate in rates)
    assert tried[tuning.best_rate(tried)] == min(tried.values())


def test_of_equally_good_rates_the_smallest_is_taken():
    assert tuning.best_rate({0.008: 1.0, 0.004: 1.0, 0.016: 1.0}) == 0.004


@given(st.lists(losses, min_size=2, max_size=12), st.integers(1, 4))
def test_a_run_stops_only_after_as_many_measurements_without_a_new_lowest_loss_as_patience_says(values, patience):
    points = curve(*values)
    best = min(range(len(values)), key=lambda place: (values[place], place))
    assert tuning.has_stopped(points, patience) == (len(values) - 1 - best >= patience)


@given(st.lists(losses, min_size=2, max_size=12))
def test_the_iterate_that_is_kept_is_the_earliest_of_the_lowest_and_never_the_view_itself(values):
    kept = tuning.lowest(curve(*values))
    assert kept.step >= 4
    assert kept.loss == min(values[1:])
    assert all(value > kept.loss for value in values[1 : kept.step // 4])


def test_steps_are_enough_when_those_that_follow_win_less_than_half_as_much_each():
    assert tuning.enough_steps(curve(4.0, 3.0, 2.0, 1.0)) == 12  # as good as ever
    assert (
        tuning.enough_steps(curve(4.0, 3.0, 2.9, 2.8)) == 8
    )  # 1.1 in 8 steps against 1.0 in 4; 1.2 in 12 is too little
    assert tuning.enough_steps(curve(4.0, 3.9, 3.0, 2.0)) == 12  # a slow beginning is no reason to end
    assert tuning.enough_steps(curve(4.0, 4.2, 4.1, 4.3)) == 8  # nothing gained: where least was lost


@given(st.lists(st.floats(0, 20), min_size=2, max_size=8))
def test_enough_steps_are_steps_that_were_measured(values):
    assert tuning.enough_steps(curve(*values)) in {point.step for point in curve(*values)[1:]}


def test_a_choice_takes_from_the_trials_only_what_was_wished():
    trials = [Trial(lr=0.004, curve=curve(4.0, 3.0)), Trial(lr=0.008, curve=curve(4.0, 2.0)), Trial(lr=0.016, curve=())]
    both = tuning.choose(trials, Wish(rate=True, steps=True), lr=0.004, steps=10)
    assert (both.lr, both.steps, len(both.trials)) == (0.008, 4, 3)
    rate = tuning.choose(trials, Wish(rate=True), lr=0.004, steps=10)
    assert (rate.lr, rate.steps) == (0.008, 10)
    steps = tuning.choose(trials[:1], Wish(steps=True), lr=0.003, steps=10)
    assert (steps.lr, steps.steps) == (0.003, 4)


def test_the_rate_for_a_mean_over_members_grows_with_their_square_root():
    trials = [Trial(lr=0.004, curve=curve(4.0, 3.0))]
    assert tuning.choose(trials, Wish(rate=True, members=9), lr=0.004, steps=10).lr == pytest.approx(0.012)
    assert (
        tuning.choose(trials, Wish(steps=True, members=9), lr=0.004, steps=10).lr == 0.004
    )  # a given rate is left alone
    with pytest.raises(BadJob):
        Wish(members=0)


def test_a_search_in_which_every_rate_diverged_is_refused():
    with pytest.raises(BadJob, match=r"diverged at the learning rates 0.004, 0.002"):
        tuning.choose([Trial(lr=0.004, curve=()), Trial(lr=0.002, curve=())], Wish(rate=True), lr=0.004, steps=10)


def test_tuning_rows_are_about_an_eighth_and_chosen_apart_from_held_out_ones():
    keys = [digest(str(n).encode()) for n in range(4000)]
    for part in ("train", "held_out"):
        those = [key for key in keys if part_of(key, 300_000) == part]
        assert abs(sum(map(tuning.is_tuning, those)) / len(those) - 1 / tuning.SHARE) < 0.03


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 16, 1000])
def test_a_run_is_measured_a_few_times_whatever_its_length(steps):
    assert 1 <= steps / tuning.every(steps) <= tuning.CHECKS


@pytest.mark.parametrize("sequences", [0, 3, 1025, -1])
def test_tuning_on_too_little_or_too_much_is_refused(sequences):
    with pytest.raises(BadJob):
        Wish(sequences=sequences)
