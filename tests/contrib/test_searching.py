from dataclasses import replace

import numpy as np
import pytest
from permits import to_measure, to_train

from contrib import evaluation, learner, models, searching, training, tuning
from contrib.adapters import AdapterSpec
from contrib.errors import BadAdapter, NotPermitted
from contrib.rows import RowStore, text_row
from contrib.training import Moments, Settings, Watch
from contrib.tuning import Wish

SPEC = AdapterSpec(rank=2, alpha=4, targets=("q_proj",), seed="0a" * 32)
QUICK = Settings(steps=4, batch=2, length=32, lr=2e-2, warmup=2, fisher_sequences=0)
PERMITS = {"hands": to_train("hands")}


@pytest.fixture(scope="module")
def tiny():
    import torch

    torch.set_num_threads(1)
    return learner.load(models.tiny_folder(), SPEC, bf16=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with RowStore.open(tmp_path_factory.mktemp("rows") / "rows.db") as opened:
        opened.add("hands", [text_row(f"Bone <{n}> of the left hand is short.") for n in range(240)], 300_000)
        yield opened


@pytest.fixture(scope="module")
def measured(tiny, store):
    return searching.tuning_sequences(store, ["hands"], tiny.codec, QUICK, PERMITS, Wish(sequences=6))


@pytest.fixture(scope="module")
def sequences(tiny, store):
    return training.draw(store, ["hands"], tiny.codec, QUICK, PERMITS, spare=True)


def everything(store, tiny, settings=QUICK, **more):
    return b"".join(
        bytes(t for t in s.ids if t < 256)
        for s in training.draw(store, ["hands"], tiny.codec, settings, PERMITS, **more)
    )


def named(text):
    return {part.split(b">")[0] for part in text.split(b"<")[1:]}


def test_no_row_is_both_tuned_on_and_learnt_from_and_held_out_rows_are_neither(tiny, store):
    long = replace(QUICK, steps=500)
    tuned = searching.tuning_sequences(store, ["hands"], tiny.codec, QUICK, PERMITS, Wish(sequences=1024))
    tuned_on = named(b"".join(bytes(t for t in s.ids if t < 256) for s in tuned))
    learnt = named(everything(store, tiny, long, spare=True))
    judged = {
        row.text.encode().split(b"<")[1].split(b">")[0]
        for row in store.rows("hands", "held_out", permit=to_measure("hands"))
    }
    assert len(tuned_on) > 10
    assert len(judged) > 10
    assert not tuned_on & learnt
    assert not (tuned_on | learnt) & judged
    assert named(everything(store, tiny, long)) == tuned_on | learnt  # without tuning all of them are learnt from


def test_tuning_rows_are_the_same_for_every_run_and_are_read_by_the_permit_to_train(tiny, store, measured):
    again = searching.tuning_sequences(store, ["hands"], tiny.codec, replace(QUICK, seed=7), PERMITS, Wish(sequences=6))
    assert again == measured
    with pytest.raises(NotPermitted):
        searching.tuning_sequences(store, ["hands"], tiny.codec, QUICK, {"hands": to_measure("hands")}, Wish())


def test_a_search_is_repeatable_bounded_and_leaves_nothing_behind(tiny, sequences, measured):
    told = []
    wish = Wish(rate=True)
    one = searching.search(
        tiny, sequences, measured, None, QUICK, wish, on_trial=lambda number, trial: told.append((number, trial))
    )
    assert [trial for _, trial in told] == list(one.trials)
    assert 3 <= len(one.trials) <= tuning.MOST_TRIALS
    assert one.lr == tuning.best_rate({trial.lr: trial.loss for trial in one.trials})
    assert one.steps == QUICK.steps
    after = training.train(tiny, sequences, None, QUICK)
    assert searching.search(tiny, sequences, measured, None, QUICK, wish) == one
    assert training.train(tiny, sequences, None, QUICK).theta.tobytes() == after.theta.tobytes()


def test_a_rate_at_which_training_diverges_has_only_lost(tiny, sequences, measured):
    huge = np.full(tiny.coordinates, 3e38, np.float32)  # every run from here diverges
    trials = []
    with pytest.raises(Exception, match="every run diverged"):
        searching.search(
            tiny, sequences, measured, huge, QUICK, Wish(rate=True), on_trial=lambda _n, trial: trials.append(trial)
        )
    assert len(trials) <= tuning.MOST_TRIALS


def test_a_run_that_gets_worse_is_ended_and_gives_its_best_iterate(tiny, sequences):
    told = iter([5.0, 3.0, 4.0, 4.5, 1.0])
    watched = training.train(
        tiny, sequences, None, replace(QUICK, steps=40), watch=Watch(measure=lambda: next(told), every=2, patience=2)
    )
    assert [(point.step, point.loss) for point in watched.curve] == [(0, 5.0), (2, 3.0), (4, 4.0), (6, 4.5)]
    assert (watched.steps, len(watched.losses)) == (2, 6)
    short = training.train(
        tiny, sequences, None, replace(QUICK, steps=40), watch=Watch(measure=lambda: 0.0, every=2, patience=1)
    )
    assert watched.theta.tobytes() == short.theta.tobytes()  # the very iterate after two steps
    assert watched.moments.mean.tobytes() == short.moments.mean.tobytes()
    assert watched.tokens == short.tokens


def test_watching_a_run_does_not_change_it(tiny, sequences, measured):
    alone = training.train(tiny, sequences, None, QUICK)
    watched = training.train(tiny, sequences, None, QUICK, watch=searching.watch(tiny, measured, QUICK.steps))
    assert alone.losses == watched.losses
    assert watched.theta.tobytes() == alone.theta.tobytes()  # it fell to the end, so the last iterate is the best one
    assert watched.curve[-1].loss == evaluation.mean_loss(tiny, measured)


def test_runs_that_keep_moments_are_one_long_run_cut_in_two(tiny, sequences):
    constant = replace(QUICK, warmup=0, steps=2)
    first = training.train(tiny, sequences[:4], None, constant)
    second = training.train(tiny, sequences[:4], first.theta, constant, moments=first.moments)
    whole = training.train(tiny, sequences[:4], None, replace(constant, steps=4))
    anew = training.train(tiny, sequences[:4], first.theta, constant)
    assert second.moments.steps == whole.moments.steps == 4
    # The second half sees the sequences in the order of a first one: the two agree in what does not depend on order.
    assert np.array_equal(first.moments.fisher() > 0, whole.moments.fisher() > 0)
    assert np.abs(second.theta - whole.theta).max() < np.abs(anew.theta - whole.theta).max()


def test_moments_of_another_shape_or_that_are_damaged_are_not_gone_on_from(tiny, sequences):
    p = tiny.coordinates
    good = Moments(mean=np.zeros(p, np.float32), square=np.ones(p, np.float32), steps=3)
    data = training.packed(good)
    found = training.unpacked(data, p)
    assert found is not None
    assert (found.steps, found.square.tobytes()) == (3, good.square.tobytes())
    bad = data.copy()
    bad[p] = np.nan
    negative = data.copy()
    negative[p] = -1.0
    for other in (data[1:], data.astype(np.float64), bad, negative, data * 0, data.reshape(1, -1), None, "x"):
        assert training.unpacked(other, p) is None
    with pytest.raises(BadAdapter):
        training.train(tiny, sequences, None, QUICK, moments=replace(good, mean=np.zeros(p - 1, np.float32)))


def test_what_adam_saw_orders_coordinates_as_the_squared_gradients_do(tiny, sequences):
    still = training.train(tiny, sequences, None, replace(QUICK, lr=0.0, steps=1))
    felt = still.moments.fisher()
    assert felt.shape == (tiny.coordinates,)
    gradient = still.moments.mean / np.float32(0.1)  # after one step the mean is a tenth of the gradient
    assert np.allclose(felt, np.square(gradient), rtol=1e-3, atol=1e-12)
