"""Choosing what to send, and the hard checks of what is received.

Knows no torch, keys, charter or ledger. Invariants: a choice is a function of its arguments alone (ties go to the lower
index); a verdict can be recomputed by anyone who has the contribution and the charter's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from contrib.errors import SelectionRefused
from protocol import sparse
from protocol.card import SELECTIONS, Contribution
from protocol.errors import Malformed
from protocol.sparse import SparseUpdate

RULES = SELECTIONS
DEFAULT_RULE = "fisher-r2"
ROW_RULE = "root-fisher-rows"
ROW_RULES = ("fisher-r2-rows", ROW_RULE)
ROW = 16  # coordinates; the codec's grid has the same rows, and at rank 16 a row is one output neuron of a module

Vector: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The contribution passed every hard check; this is its update."""

    update: SparseUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The contribution fails a hard check: a stable code, and the same in words."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An update ready to be signed: its bytes, what they decode to, and its norm."""

    data: bytes
    update: SparseUpdate
    norm_micro: int


def most_sent(coordinates: int, density_ppm: int) -> int:
    """The most coordinates an update may send: the density's share, rounded up."""
    return min(coordinates, -(-coordinates * density_ppm // 1_000_000))


def rule_for(value_bits: int) -> str:
    """The rule a member chooses by when values have so many bits: signs alone pay in whole rows (contrib/LOG.md)."""
    return ROW_RULE if value_bits == 1 else DEFAULT_RULE


def block_for(value_bits: int) -> int:
    """Values that share a scale when a charter does not say: one bit is a sign, so each row has its own magnitude."""
    return ROW if value_bits == 1 else 256


def select(
    fisher: Vector, residual: Vector, density_ppm: int, rule: str = DEFAULT_RULE, *, seed: int = 0
) -> npt.NDArray[np.uint32]:
    """Return the coordinates to send [k], ascending: the most salient ones, never one whose residual is zero.

    `fisher-r2` is the expected loss change of leaving a coordinate out, F*r^2 with the diagonal empirical Fisher
    (Optimal Brain Damage, LeCun et al. 1990). `fisher-r2-rows` takes whole rows of `ROW` coordinates, as many as fit:
    those where a sign for each coordinate and one magnitude for all of them remove most of it. `root-fisher-rows` weighs
    with sqrt(F), between the loss and the plain square. The others
    exist to be compared with these; `random` alone uses `seed`.

    Args:
        fisher: diagonal empirical Fisher [P], not negative.
        residual: learnt but not yet published [P].
        density_ppm: the most to choose, in millionths of P (rounded up).
        rule: one of `RULES`.
        seed: of `random`.

    Raises:
        SelectionRefused: an unknown rule, vectors of different shape, or a value that is not finite.
    """
    if fisher.ndim != 1 or fisher.shape != residual.shape:
        raise SelectionRefused("couldn't choose coordinates: Fisher and residual have different shapes")
    if not (bool(np.isfinite(residual).all()) and bool(np.isfinite(fisher).all()) and bool((fisher >= 0).all())):
        raise SelectionRefused("couldn't choose coordinates: a value is not finite; train again at a lower rate")
    candidates = np.flatnonzero(residual)
    if rule in ROW_RULES:
        weights = np.sqrt(fisher) if rule == ROW_RULE else fisher
        return _top_rows(weights, residual, candidates, most_sent(len(residual), density_ppm)).astype(np.uint32)
    saliency = _saliency(rule, fisher[candidates].astype(np.float64), residual[candidates].astype(np.float64), seed)
    return candidates[_top(saliency, most_sent(len(residual), density_ppm))].astype(np.uint32)


def _saliency(
    rule: str, fisher: npt.NDArray[np.float64], residual: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.float64]:
    if rule == "fisher-r2":
        return fisher * np.square(residual)
    if rule == "magnitude":
        return np.abs(residual)
    if rule == "fisher":
        return fisher
    if rule == "random":
        return np.random.default_rng(seed).random(len(residual))
    raise SelectionRefused(f"couldn't choose coordinates: unknown rule {rule!r}, use one of {', '.join(RULES)}")


def _top(saliency: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.int64]:
    """Positions of the `most` largest values, ascending; of equal ones the lower positions."""
    if len(saliency) <= most:
        return np.arange(len(saliency), dtype=np.int64)
    if most == 0:
        return np.zeros(0, dtype=np.int64)
    threshold = np.partition(saliency, len(saliency) - most)[len(saliency) - most]
    chosen = saliency > threshold
    level = np.flatnonzero(saliency == threshold)
    chosen[level[: most - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


def _top_rows(weights: Vector, residual: Vector, candidates: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """All candidates of the best rows (of equal ones the lower) up to the first that would be too many; ascending.

    No row is cut short, or the blocks of scales behind it would stand across rows; only if the best row alone is too
    long, its first `most` are taken.
    """
    if not len(candidates):
        return candidates
    rows = candidates // ROW
    order = np.argsort(-row_saliency(weights, residual), kind="stable")
    lengths = np.bincount(rows, minlength=len(order))
    order = order[lengths[order] > 0]
    fits = int(np.searchsorted(np.cumsum(lengths[order]), most, side="right"))
    if not fits:
        candidates = candidates[rows == order[0]]
        return candidates[:most]
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[order[:fits]] = True
    candidates = candidates[chosen[rows]]
    return candidates


def row_saliency(weights: Vector, residual: Vector) -> npt.NDArray[np.float64]:
    """What a row's signs and its best single magnitude remove of sum w*r^2 [ceil(P / ROW)]: (sum w|r|)^2 / sum w.

    It is the maximum over s of sum w*r^2 - sum w*(|r| - s)^2, at s = sum w|r| / sum w.
    """
    starts = np.arange(0, len(weights), ROW)
    exact = weights.astype(np.float64)
    moved = np.add.reduceat(exact * np.abs(residual.astype(np.float64)), starts)
    total = np.add.reduceat(exact, starts)
    return np.divide(np.square(moved), total, out=np.zeros(len(starts)), where=total > 0)


def flattened(indices: npt.NDArray[np.uint32], values: Vector) -> Vector:
    """`values` [k] with one magnitude for all that stand in one row, the mean of theirs; signs stay.

    One bit a value says a sign and nothing else, so that this is what a row of them can say (signSGD with a scale,
    Karimireddy et al. 2019, arXiv 1901.09847); a codec that is given it leaves no coordinate out.
    """
    if not len(indices):
        return values
    sizes = np.abs(values.astype(np.float64))
    starts = np.flatnonzero(np.diff(indices // ROW, prepend=-1))
    counts = np.diff(starts, append=len(indices))
    means = np.add.reduceat(sizes, starts) / counts
    return np.copysign(np.repeat(means, counts), values).astype(np.float32)


def squared_norm(update: SparseUpdate) -> int:
    """The sum of the squared units: an exact integer, however large."""
    size = np.abs(update.units)
    if int(size.max(initial=0)) ** 2 * len(size) < 2**63:
        return int(np.dot(size, size))
    limbs = [(size >> (16 * place)) & 0xFFFF for place in range(3)]  # units are below 2^47, see sparse.MAX_UNITS
    return sum(int(np.dot(low, high)) << (16 * (i + j)) for i, low in enumerate(limbs) for j, high in enumerate(limbs))


def norm_micro(update: SparseUpdate) -> int:
    """The Euclidean norm in millionths, rounded down exactly."""
    return _in_micro(squared_norm(update))


def _in_micro(square: int) -> int:
    return math.isqrt(square * 10**12 >> 2 * sparse.UNIT_BITS)


def make(
    fisher: Vector,
    residual: Vector,
    *,
    density_ppm: int,
    value_bits: int,
    block: int,
    rule: str = DEFAULT_RULE,
    seed: int = 0,
) -> Made:
    """Select, quantise and encode one update of `residual` [P].

    What was published is `update.values()`, not the residual at these coordinates: the sender subtracts the former. Whole
    rows at one bit a value are `flattened` first.

    Raises:
        SelectionRefused: as `select`.
        Malformed: a value is too large for the format.
    """
    indices = select(fisher, residual, density_ppm, rule, seed=seed)
    values = residual[indices]
    if rule in ROW_RULES and value_bits == 1:
        values = flattened(indices, values)
    data = sparse.encode(coordinates=len(residual), indices=indices, values=values, bits=value_bits, block=block)
    update = sparse.decode(data, coordinates=len(residual), max_sent=len(indices))
    return Made(data=data, update=update, norm_micro=norm_micro(update))


def check(
    contribution: Contribution, *, coordinates: int, value_bits: int, density_ppm: int, norm_cap_micro: int
) -> Accept | Reject:
    """Decide the hard checks of a signed contribution against the charter, the cheapest first.

    The caller has checked member, epoch and base already; the soft verdict (own held-out loss) comes afterwards.
    """
    card = contribution.card
    most = most_sent(coordinates, density_ppm)
    if card.coordinates != coordinates:
        return _no("coordinates", f"made for {card.coordinates} coordinates, the epoch has {coordinates}")
    if card.value_bits != value_bits:
        return _no("value-bits", f"values of {card.value_bits} bits, the charter says {value_bits}")
    if card.density_ppm > density_ppm or card.sent > most:
        return _no("density", f"{card.sent} coordinates sent, the charter allows {most}")
    if card.sent == 0:
        return _no("empty", "nothing is sent")
    if card.norm_micro > norm_cap_micro:
        return _no("norm", f"a norm of {card.norm_micro} millionths, the cap is {norm_cap_micro}")
    try:
        update = sparse.decode(contribution.update, coordinates=coordinates, max_sent=most)
    except Malformed as e:
        return _no(e.code, str(e).removeprefix("couldn't decode update: "))
    if update.bits != value_bits:
        return _no("value-bits", f"values of {update.bits} bits, the charter says {value_bits}")
    square = squared_norm(update)
    if square * 10**12 > norm_cap_micro**2 << 2 * sparse.UNIT_BITS:
        return _no("norm", f"a norm of {_in_micro(square)} millionths, the cap is {norm_cap_micro}")
    if update.sent != card.sent or _in_micro(square) != card.norm_micro:
        return _no("card", "the card's count or norm is not the update's")
    return Accept(update=update)


def _no(code: str, cause: str) -> Reject:
    return Reject(code=code, text=f"couldn't accept contribution: {cause}")
