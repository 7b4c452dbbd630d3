"""Trains B of the adapter on a member's own sequences, starting from a view.

Knows nothing of files, ledgers or other members. Invariant: same model, sequences, view, settings, moments, machine and
thread count give the same vector; nothing but B changes; a loss that is not finite ends the run with an error, never with
a vector. A run may be watched (`contrib.tuning`): then it ends when the watched loss has stopped falling, and gives the
iterate at which it was lowest.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from contrib import adapters, tuning
from contrib.adapters import Vector
from contrib.encoding import Codec, Encoded, encode
from contrib.errors import BadAdapter, BadJob, Diverged, NothingToLearn
from contrib.learner import Learner, token_losses
from contrib.permit import Permit
from contrib.rows import Row, RowStore
from contrib.tuning import Point

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
OnStep = Callable[[int, float], None]  # steps done, loss of the last one in nats per token

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_SHORT_ROW = 8  # tokens; rows on average are longer, so this many rows per sequence are always enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one local run trains; the defaults are the measured ones for r=16 on SmolLM2-135M (see contrib/LOG.md)."""

    steps: int = 10
    batch: int = 4  # sequences in a step
    length: int = 64  # most tokens in a sequence
    lr: float = 4e-3
    warmup: int = 5  # steps of linear warmup, at most half of all; constant afterwards
    clip: float = 1.0  # norm of the gradient
    seed: int = 0
    fisher_sequences: int = 16  # 0: Adam's mean of squared gradients stands for the Fisher diagonal

    def __post_init__(self) -> None:
        """Refuse what would not train or never end."""
        limits = {"steps": (1, 100_000), "batch": (1, 1024), "length": (8, 8192), "fisher_sequences": (0, 4096)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise BadJob(f"couldn't take settings: {name} must be {least} to {most}")
        if self.warmup < 0 or not (0 <= self.lr < 1 and self.clip > 0):
            raise BadJob("couldn't take settings: warmup from 0, lr from 0 to 1, clip over 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """What Adam knows after `steps` steps: means [P] of gradients and of their squares. They never leave the node."""

    mean: Vector
    square: Vector
    steps: int

    def fisher(self) -> Vector:
        """The Fisher diagonal [P] as Adam saw it: its mean of squared gradients, without the bias of its beginning.

        "Fishers for free" (Li, Dangel, Tam, Raffel 2025, arXiv 2507.18807); it costs no pass over the rows. Gradients are those
        of clipped batch means, so it orders coordinates and is no Fisher in size.
        """
        return (self.square / (1 - _BETAS[1] ** self.steps)).astype(np.float32)

    def fits(self, coordinates: int) -> bool:
        """Whether a run of so many coordinates may go on from here."""
        shaped = self.mean.shape == self.square.shape == (coordinates,) and self.steps >= 1
        return shaped and bool(
            np.isfinite(self.mean).all() and np.isfinite(self.square).all() and self.square.min() >= 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a run is watched by: a loss on rows that it does not learn from, measured after every so many steps."""

    measure: Callable[[], float]  # nats per token of what the model holds now
    every: int
    patience: int  # measurements without a new lowest loss after which the run ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gave: B [P] and Adam's moments after `steps` steps, and the tokens that counted until then.

    `losses` are those of every step that was made, `curve` the watched ones, that of the view first.
    """

    theta: Vector
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    steps: int
    moments: Moments
    curve: tuple[Point, ...] = ()


def train(
    learner: Learner,
    sequences: Sequence[Encoded],
    view: Vector | None,
    settings: Settings,
    *,
    moments: Moments | None = None,
    watch: Watch | None = None,
    in_order: bool = False,
    on_step: OnStep = lambda _step, _loss: None,
) -> Trained:
    """Train B from `view` (None: from zero) with Adam, linear warmup and gradient clipping.

    Every sequence is used once before any is used again, in an order drawn by the seed, or `in_order` as they come. With the
    `moments` of an earlier run Adam goes on from them, and there is no warmup: it bridges the steps in which they mean nothing.

    Raises:
        NothingToLearn: there are no sequences.
        Diverged: loss or gradient is infinite or NaN.
        BadAdapter: the view, or the moments, do not fit.
    """
    import torch

    if not sequences:
        raise NothingToLearn("couldn't train: the rows give no sequence of tokens")
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    learner.use(view)
    parameters = adapters.trainable(learner.model)
    optimizer = Adam(parameters, moments)
    losses: list[float] = []
    curve = [Point(step=0, loss=watch.measure())] if watch else []
    best: tuple[int, int, Vector, Moments] | None = None
    tokens = 0
    warmup = 1 if moments else max(1, min(settings.warmup, settings.steps // 2))
    for step, group in enumerate(_batches(sequences, settings, in_order), 1):
        nats, counted = token_losses(learner, group)
        loss = nats.sum() / counted.sum()
        learner.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        losses.append(loss.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(norm.item())):
            raise Diverged(
                f"couldn't train: the loss is {losses[-1]} at step {step}; use a smaller lr than {settings.lr}"
            )
        optimizer.step(settings.lr * min(1.0, step / warmup))
        tokens += int(counted.sum())
        on_step(step, losses[-1])
        if watch and (step % watch.every == 0 or step == settings.steps):
            curve.append(Point(step=step, loss=watch.measure()))
            if tuning.lowest(curve).step == step:
                best = step, tokens, adapters.read_b(learner.model), optimizer.moments()
            if tuning.has_stopped(curve, watch.patience):
                break
    learner.model.zero_grad()
    if best is None:
        best = len(losses), tokens, adapters.read_b(learner.model), optimizer.moments()
    steps, tokens, theta, left = best
    return Trained(
        theta=theta,
        losses=tuple(losses),
        tokens=tokens,
        seconds=time.monotonic() - began,
        steps=steps,
        moments=left,
        curve=tuple(curve),
    )


class Adam:
    """Adam (arXiv 1412.6980) without weight decay: the very sums of `torch.optim.AdamW`, whose first use loads a compiler."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], moments: Moments | None = None) -> None:
        """Start at nothing, or go on from `moments` (raises BadAdapter when they are of another shape)."""
        import torch

        self._parameters = [(part, torch.zeros_like(part), torch.zeros_like(part)) for part in parameters]
        self._steps = 0
        if moments is not None:
            if not moments.fits(sum(part.numel() for part in parameters)):
                raise BadAdapter("couldn't go on training: the kept moments are of another adapter")
            self._steps = moments.steps
            for place, flat in ((1, moments.mean), (2, moments.square)):
                adapters.fill([entry[place] for entry in self._parameters], flat)

    def step(self, lr: float) -> None:
        """Move every parameter along its gradient."""
        import torch

        self._steps += 1
        first, second = 1 - _BETAS[0] ** self._steps, 1 - _BETAS[1] ** self._steps
        with torch.no_grad():
            for part, mean, square in self._parameters:
                if part.grad is None:
                    continue
                mean.lerp_(part.grad, 1 - _BETAS[0])
                square.mul_(_BETAS[1]).addcmul_(part.grad, part.grad, value=1 - _BETAS[1])
                part.addcdiv_(mean, (square.sqrt() / math.sqrt(second)).add_(_EPSILON), value=-lr / first)

    def moments(self) -> Moments:
        """What is known now, as a value."""
        means, squares = zip(*((mean, square) for _, mean, square in self._parameters), strict=True)
        return Moments(mean=adapters.flatten(list(means)), square=adapters.flatten(list(squares)), steps=self._steps)


def packed(moments: Moments) -> Vector:
    """Moments as one vector [2 P + 1]: the means, the means of squares, the steps (exact up to 2^24, and no more are told)."""
    steps = np.array([min(moments.steps, 1 << 24)], dtype=np.float32)
    return np.concatenate([moments.mean, moments.square, steps])


def unpacked(vector: object, coordinates: int) -> Moments | None:
    """What `packed` gave, or None when it is not the moments of so many coordinates."""
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (2 * coordinates + 1,):
        return None
    if not np.isfinite(vector).all():
        return None
    mean, square, steps = np.split(vector, [coordinates, 2 * coordinates])
    found = Moments(mean=mean, square=square, steps=int(steps[0]))
    return found if found.fits(coordinates) else None


def draw(
    store: RowStore,
    datasets: Sequence[str],
    codec: Codec,
    settings: Settings,
    permits: Mapping[str, Permit],
    *,
    spare: bool = False,
) -> list[Encoded]:
    """The sequences of one run, drawn by the seed from the permitted training rows of the data sets, each by its share.

    With `spare` the rows that runs are tuned on (`tuning.is_tuning`) are left out.

    Raises:
        NotPermitted: a data set without a permit that covers training on it now.
        UnknownDataset: the store has no data set of a name.
        NothingToLearn: none of the rows gives a sequence.
    """
    wanted = max(settings.steps * settings.batch, settings.fisher_sequences)
    rows = drawn_rows(store, datasets, permits, seed=settings.seed, most=max(1, wanted * settings.length // _SHORT_ROW))
    if spare:
        rows = [row for row in rows if not tuning.is_tuning(row.split_key())]
    found = list(itertools.islice(encode(rows, codec, length=settings.length), wanted))
    if not found:
        raise NothingToLearn(f"couldn't train: data sets {', '.join(datasets) or '(none)'} give no sequence of tokens")
    return found


def drawn_rows(
    store: RowStore, datasets: Sequence[str], permits: Mapping[str, Permit], *, seed: int, most: int
) -> list[Row]:
    """About `most` permitted training rows, each data set by its share, in the order that the seed gives."""
    sizes = {name: store.count(name, permit=permits.get(name)) for name in datasets}
    total = max(1, sum(sizes.values()))
    rows: list[Row] = []
    for name, size in sizes.items():
        share = -(-most * size // total)
        rows += store.rows(name, permit=permits.get(name), limit=share, seed=seed)
    random.Random(seed).shuffle(rows)  # noqa: S311 - a reproducible order, not a secret
    return rows


def _batches(sequences: Sequence[Encoded], settings: Settings, in_order: bool) -> Iterator[list[Encoded]]:
    endless = itertools.cycle(sequences) if in_order else _shuffled(sequences, settings.seed)
    for _ in range(settings.steps):
        yield list(itertools.islice(endless, settings.batch))


def _shuffled(items: Sequence[T], seed: int) -> Iterator[T]:
    rng = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
    while True:
        order = list(items)
        rng.shuffle(order)
        yield from order
