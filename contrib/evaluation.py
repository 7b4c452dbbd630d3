"""Measures a view on held-out rows: loss in nats per token, and accuracy where the answers are labels.

Knows nothing of gates or verdicts. Invariant: the sample depends on what the permits show of the held-out rows alone (the
smallest digests first), so every view is measured on the same rows, and a larger sample contains a smaller one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from contrib.adapters import Vector
from contrib.encoding import Encoded, encode, encode_one
from contrib.errors import Diverged, NothingToLearn
from contrib.learner import Learner, token_losses
from contrib.permit import Permit
from contrib.rows import Row, RowStore

LABEL_ROWS = 64  # accuracy costs one sequence per row and label; more rows than this are not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The held-out rows of one measurement; `labels` when their answers are labels."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Mean loss in `nats` per token over `tokens` tokens of `rows` rows; share of right labels, or None."""

    nats: float
    tokens: int
    rows: int
    accuracy: float | None


def sample(store: RowStore, datasets: Sequence[str], max_rows: int, permits: Mapping[str, Permit]) -> list[Sample]:
    """At most `max_rows` permitted held-out rows of the data sets together, smallest digest first; one sample each.

    Labels are those that a permitted row has for its answer: an answer that only other rows give is never tried.

    Raises:
        NotPermitted: a data set without a permit that covers evaluating on it now.
        UnknownDataset: the store has no data set of a name.
        NothingToLearn: no row is held out.
    """
    rows = {name: store.rows(name, "held_out", permit=permits.get(name)) for name in datasets}
    found = ((row.digest(), name, row) for name, shown in rows.items() for row in shown)
    chosen = heapq.nsmallest(max_rows, found, key=lambda entry: entry[:2])
    if not chosen:
        raise NothingToLearn(f"couldn't measure: data sets {', '.join(datasets) or '(none)'} have no held-out rows")
    samples = []
    for name, shown in rows.items():
        mine = tuple(row for _, owner, row in chosen if owner == name)
        if mine:
            given = {row.answer() for row in shown}
            labels = tuple(label for label in store.summary(name).labels or () if label in given)
            samples.append(Sample(rows=mine, labels=labels))
    return samples


def held_out_loss(
    learner: Learner, samples: Sequence[Sample], view: Vector | None, *, length: int = 64, batch: int = 8
) -> Loss:
    """Measure `view` (None: the base model) on the samples.

    Raises:
        NothingToLearn: the rows give no token to predict.
        Diverged: the loss is not finite.
        BadAdapter: the view does not fit.
    """
    learner.use(view)
    nats, tokens = 0.0, 0
    for each in samples:
        for sums, counts in _measured(learner, list(encode(each.rows, learner.codec, length=length)), batch):
            nats += sum(sums)
            tokens += sum(counts)
    if not tokens:
        raise NothingToLearn("couldn't measure: the held-out rows give no token to predict")
    if not math.isfinite(nats):
        raise Diverged("couldn't measure: the loss is infinite or NaN")
    return Loss(
        nats=nats / tokens,
        tokens=tokens,
        rows=sum(len(each.rows) for each in samples),
        accuracy=_accuracy(learner, samples, length, batch),
    )


def mean_loss(learner: Learner, sequences: Sequence[Encoded], *, batch: int = 8) -> float:
    """The loss in nats per token of what is on the model now; a loss that is not finite is infinite.

    Raises:
        NothingToLearn: no token of the sequences counts.
    """
    nats, tokens = 0.0, 0
    for sums, counts in _measured(learner, sequences, batch):
        nats += sum(sums)
        tokens += sum(counts)
    if not tokens:
        raise NothingToLearn("couldn't measure: the rows give no token to predict")
    return nats / tokens if math.isfinite(nats) else math.inf


def _accuracy(learner: Learner, samples: Sequence[Sample], length: int, batch: int) -> float | None:
    """The share of rows whose own answer is the likeliest of the labels (sum over its tokens, end token included)."""
    right = asked = 0
    for each in samples:
        if not each.labels:
            continue
        for row in each.rows[:LABEL_ROWS]:
            tried = [encode_one(row.with_answer(label), learner.codec, length=length) for label in each.labels]
            options = [sequence for sequence in tried if sequence is not None]
            if len(options) < len(each.labels) or row.answer() not in each.labels:
                continue
            scores = [score for sums, _ in _measured(learner, options, batch, ordered=True) for score in sums]
            right += each.labels[scores.index(min(scores))] == row.answer()
            asked += 1
    return right / asked if asked else None


def _measured(
    learner: Learner, sequences: Sequence[Encoded], batch: int, *, ordered: bool = False
) -> Iterator[tuple[list[float], list[int]]]:
    """Sum of losses and number of counted tokens of each sequence, a batch at a time."""
    import torch

    # Sequences of like length share a batch, so that little is padding.
    order = sequences if ordered else sorted(sequences, key=lambda sequence: len(sequence.ids))
    for start in range(0, len(order), batch):
        with torch.no_grad():
            losses, counted = token_losses(learner, order[start : start + batch])
        yield losses.sum(1).double().tolist(), counted.sum(1).tolist()
