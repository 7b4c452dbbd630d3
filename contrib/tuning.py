"""What to tune a local run by: which rows, which learning rates are tried, how many steps are enough, when to stop.

Pure decisions: no torch, no rows in hand, no clock; `contrib.searching` trains what is decided here. Invariants: the rows that
runs are tuned on are training rows, chosen by their own digest, and never held-out ones: those judge, and a judge that was
used for tuning flatters. A search ends after at most `MOST_TRIALS` runs, and depends on losses alone, so equal inputs
choose equally. A run is judged by the lowest loss it reached, because that iterate is the one that is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from contrib.errors import BadJob
from protocol.ids import Digest

SHARE: Final = 8  # one training row of so many is kept for tuning, where runs are tuned
LEAST_SEQUENCES: Final = 4  # with fewer to measure on nothing is tuned
MOST_TRIALS: Final = 5
MOST_STEPS: Final = 16  # of a trial when the number of steps is searched for
MOST_RATE: Final = 0.5
FACTOR: Final = 2.0  # between the rates that are tried
CHECKS: Final = 4  # measurements of a run that may stop early
PATIENCE: Final = 2  # measurements without a new lowest loss after which a run ends
WORTH: Final = 0.5  # steps go on while they win at least this share of the best gain per step

_DOMAIN: Final = b"fishernet/tuning/v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The loss on the tuning rows, in nats per token, after so many steps of a run; step 0 is the view."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be chosen, on how many sequences, for a mean over how many members; with neither, only when to stop."""

    rate: bool = False
    steps: bool = False
    sequences: int = 16
    members: int = 1

    def __post_init__(self) -> None:
        """Refuse what would measure nothing or never end."""
        if not LEAST_SEQUENCES <= self.sequences <= 1024:
            raise BadJob(f"couldn't tune: sequences must be {LEAST_SEQUENCES} to 1024")
        if not 1 <= self.members <= 4096:
            raise BadJob("couldn't tune: members must be 1 to 4096")

    @property
    def searches(self) -> bool:
        """Whether trials are needed."""
        return self.rate or self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run that was made to learn what a rate gives; without a curve it diverged."""

    lr: float
    curve: tuple[Point, ...]

    @property
    def loss(self) -> float:
        """The lowest loss after training; infinite when it diverged."""
        return lowest(self.curve).loss if len(self.curve) > 1 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a search chose, and the trials it chose from."""

    lr: float
    steps: int
    trials: tuple[Trial, ...]


def is_tuning(split_key: Digest) -> bool:
    """Whether the training row with this split key is kept for tuning; equal questions always are together."""
    drawn = hashlib.sha256(_DOMAIN + bytes.fromhex(split_key)).digest()
    return int.from_bytes(drawn[:8], "big") % SHARE == 0


def every(steps: int) -> int:
    """How many steps lie between two measurements of a run of `steps`."""
    return max(1, -(-steps // CHECKS))


def next_rate(tried: Mapping[float, float], first: float) -> float | None:
    """The rate to try next, given the loss of each that was tried; None when the best one is known, or enough were tried.

    Climbs from `first` by factors of two: upwards while that helps, and downwards if the first step upwards did not.
    Law: never a rate twice, never one from 1 on, at most `MOST_TRIALS` in all.
    """
    if not tried:
        return first
    if len(tried) >= MOST_TRIALS:
        return None
    best = best_rate(tried)
    for rate in (best * FACTOR, best / FACTOR):
        if rate < 1 and not any(math.isclose(rate, known, rel_tol=1e-6) for known in tried):
            return rate
    return None


def best_rate(tried: Mapping[float, float]) -> float:
    """The rate with the lowest loss; of equal ones the smallest, which overshoots least when others' updates are added."""
    return min(tried, key=lambda rate: (tried[rate], rate))


def lowest(curve: Sequence[Point]) -> Point:
    """The point of the lowest loss after at least one step; of equal ones the earliest."""
    return min(curve[1:], key=lambda point: (point.loss, point.step))


def has_stopped(curve: Sequence[Point], patience: int = PATIENCE) -> bool:
    """Whether the last `patience` measurements brought no new lowest loss (that of the view counts as one to beat)."""
    if len(curve) <= patience:
        return False
    return min(p.loss for p in curve[-patience:]) >= min(p.loss for p in curve[:-patience])


def enough_steps(curve: Sequence[Point]) -> int:
    """After how many steps a run of this curve should end.

    More and shorter rounds learn more than few long ones (contrib/LOG.md), so a run goes on only while the gain per step is at
    least `WORTH` of its best: the most steps for which that holds, or those of the lowest loss when nothing was gained.
    """
    start, after = curve[0].loss, curve[1:]
    gains = {point.step: (start - point.loss) / point.step for point in after}
    best = max(gains.values())
    if best <= 0:
        return lowest(curve).step
    return max(step for step, gain in gains.items() if gain >= WORTH * best)


def choose(trials: Sequence[Trial], wish: Wish, *, lr: float, steps: int) -> Choice:
    """What the trials say; `lr` and `steps` stand for what was not to be chosen.

    The best rate of one member alone is too small for a mean over n: it has the noise of n times the rows, and Adam's rate grows
    with the square root of those (Malladi et al. 2022, arXiv 2205.10287; measured: contrib/LOG.md).

    Raises:
        BadJob: every rate that was tried diverged.
    """
    finite = {trial.lr: trial.loss for trial in trials if math.isfinite(trial.loss)}
    if not finite:
        tried = ", ".join(f"{trial.lr:g}" for trial in trials)
        raise BadJob(f"couldn't tune: every run diverged at the learning rates {tried}; set a smaller one")
    chosen = next(trial for trial in trials if trial.lr == best_rate(finite))
    return Choice(
        lr=min(MOST_RATE, chosen.lr * math.sqrt(wish.members)) if wish.rate else lr,
        steps=enough_steps(chosen.curve) if wish.steps else steps,
        trials=tuple(trials),
    )
