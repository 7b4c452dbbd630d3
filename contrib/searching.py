"""The short search for a learning rate and a number of steps: a few runs from the view, measured on rows kept for it.

`contrib.tuning` decides, `contrib.training` trains. Knows no ledger and no held-out rows: the store is read by the training
permit alone. Invariant: equal rows, permits, view, settings and moments give the same choice, and nothing of a trial is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from contrib import evaluation, training, tuning
from contrib.adapters import Vector
from contrib.encoding import Codec, Encoded, encode
from contrib.errors import Diverged
from contrib.learner import Learner
from contrib.permit import Permit
from contrib.rows import RowStore
from contrib.training import Moments, OnStep, Settings, Watch
from contrib.tuning import Choice, Trial, Wish

OnTrial = Callable[[int, Trial], None]  # its number from 1, what it gave

_ROWS = 4096  # training rows looked at for tuning rows, at most


def tuning_sequences(
    store: RowStore,
    datasets: Sequence[str],
    codec: Codec,
    settings: Settings,
    permits: Mapping[str, Permit],
    wish: Wish,
) -> list[Encoded]:
    """At most `wish.sequences` sequences of the training rows that no tuned run learns from; the seed of a run changes none.

    Raises:
        NotPermitted: a data set without a permit that covers training on it now.
        UnknownDataset: the store has no data set of a name.
    """
    rows = training.drawn_rows(store, datasets, permits, seed=0, most=_ROWS)
    kept = [row for row in rows if tuning.is_tuning(row.split_key())]
    return list(itertools.islice(encode(kept, codec, length=settings.length), wish.sequences))


def watch(learner: Learner, measured: Sequence[Encoded], steps: int) -> Watch:
    """What ends a run of `steps` early: the loss on `measured`, a few times in the run."""
    return Watch(
        measure=lambda: evaluation.mean_loss(learner, measured), every=tuning.every(steps), patience=tuning.PATIENCE
    )


def search(
    learner: Learner,
    sequences: Sequence[Encoded],
    measured: Sequence[Encoded],
    view: Vector | None,
    settings: Settings,
    wish: Wish,
    *,
    moments: Moments | None = None,
    on_step: OnStep = lambda _step, _loss: None,
    on_trial: OnTrial = lambda _number, _trial: None,
) -> Choice:
    """Choose what `wish` asks for by trial runs on `sequences`, each measured on `measured`, and starting at `settings.lr`.

    Raises:
        BadJob: every rate that was tried diverged.
        NothingToLearn: there are no sequences.
    """
    steps = tuning.MOST_STEPS if wish.steps else settings.steps
    trials: list[Trial] = []
    while True:
        tried = {trial.lr: trial.loss for trial in trials}
        lr = tuning.next_rate(tried, settings.lr) if wish.rate or not trials else None
        if lr is None:
            return tuning.choose(trials, wish, lr=settings.lr, steps=settings.steps)
        tried_settings = dataclasses.replace(settings, lr=lr, steps=steps)
        curve: tuple[tuning.Point, ...] = ()
        try:
            run = training.train(
                learner,
                sequences,
                view,
                tried_settings,
                moments=moments,
                watch=watch(learner, measured, steps),
                on_step=on_step,
            )
            curve = run.curve
        except Diverged:
            pass  # a rate that diverges is a rate that lost: the trial says so by having no curve
        trials.append(Trial(lr=lr, curve=curve))
        on_trial(len(trials), trials[-1])
