"""Trains B of the adapter on a member's own sequences, starting from a view.

Knows nothing of files, ledgers or other members. Invariant: same model, sequences, view, settings, machine and thread
count give the same vector; nothing but B changes; a loss that is not finite ends the run with an error, never with a
vector.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from contrib import adapters
from contrib.adapters import Vector
from contrib.encoding import Codec, Encoded, encode
from contrib.errors import BadJob, Diverged, NothingToLearn
from contrib.learner import Learner, token_losses
from contrib.permit import Permit
from contrib.rows import Row, RowStore

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
    fisher_sequences: int = 16

    def __post_init__(self) -> None:
        """Refuse what would not train or never end."""
        limits = {"steps": 100_000, "batch": 1024, "length": 8192, "fisher_sequences": 4096}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise BadJob(f"couldn't take settings: {name} must be 1 to {most}")
        if self.length < 8 or self.warmup < 0 or not (0 <= self.lr < 1 and self.clip > 0):
            raise BadJob("couldn't take settings: length from 8, warmup from 0, lr from 0 to 1, clip over 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gave: B [P], the loss of every step, tokens that counted."""

    theta: Vector
    losses: tuple[float, ...]
    tokens: int
    seconds: float


def train(
    learner: Learner,
    sequences: Sequence[Encoded],
    view: Vector | None,
    settings: Settings,
    *,
    on_step: OnStep = lambda _step, _loss: None,
) -> Trained:
    """Train B from `view` (None: from zero) with Adam, linear warmup and gradient clipping.

    Every sequence is used once before any is used again.

    Raises:
        NothingToLearn: there are no sequences.
        Diverged: loss or gradient is infinite or NaN.
        BadAdapter: the view does not fit.
    """
    import torch

    if not sequences:
        raise NothingToLearn("couldn't train: the rows give no sequence of tokens")
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    learner.use(view)
    parameters = adapters.trainable(learner.model)
    optimizer = Adam(parameters)
    losses: list[float] = []
    tokens = 0
    warmup = max(1, min(settings.warmup, settings.steps // 2))
    for step, group in enumerate(_batches(sequences, settings), 1):
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
    learner.model.zero_grad()
    theta = adapters.read_b(learner.model)
    return Trained(theta=theta, losses=tuple(losses), tokens=tokens, seconds=time.monotonic() - began)


class Adam:
    """Adam (arXiv 1412.6980) without weight decay: the very sums of `torch.optim.AdamW`, whose first use loads a compiler."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        import torch

        self._parameters = [(part, torch.zeros_like(part), torch.zeros_like(part)) for part in parameters]
        self._steps = 0

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


def draw(
    store: RowStore, datasets: Sequence[str], codec: Codec, settings: Settings, permits: Mapping[str, Permit]
) -> list[Encoded]:
    """The sequences of one run, drawn by the seed from the permitted training rows of the data sets, each by its share.

    Raises:
        NotPermitted: a data set without a permit that covers training on it now.
        UnknownDataset: the store has no data set of a name.
        NothingToLearn: none of the rows gives a sequence.
    """
    wanted = max(settings.steps * settings.batch, settings.fisher_sequences)
    most = max(1, wanted * settings.length // _SHORT_ROW)
    sizes = {name: store.count(name, permit=permits.get(name)) for name in datasets}
    total = max(1, sum(sizes.values()))
    rows: list[Row] = []
    for name, size in sizes.items():
        share = -(-most * size // total)
        rows += store.rows(name, permit=permits.get(name), limit=share, seed=settings.seed)
    random.Random(settings.seed).shuffle(rows)  # noqa: S311 - a reproducible order, not a secret
    found = list(itertools.islice(encode(rows, codec, length=settings.length), wanted))
    if not found:
        raise NothingToLearn(f"couldn't train: data sets {', '.join(datasets) or '(none)'} give no sequence of tokens")
    return found


def _batches(sequences: Sequence[Encoded], settings: Settings) -> Iterator[list[Encoded]]:
    endless = _shuffled(sequences, settings.seed)
    for _ in range(settings.steps):
        yield list(itertools.islice(endless, settings.batch))


def _shuffled(items: Sequence[T], seed: int) -> Iterator[T]:
    rng = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
    while True:
        order = list(items)
        rng.shuffle(order)
        yield from order
