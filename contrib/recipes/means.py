"""Means: what was sent, divided by the weight of who sent it, of everybody, or by something between.

All weigh members by the charter, never by what a sender claims, so they are the weighted means of federated averaging.
Invariant: each result is one exact sum over one divisor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from contrib.errors import MergeRefused
from contrib.recipes.exact import Floats, Mask, Units, by_block, divided, quotient, total, weight_of
from contrib.recipes.recipe import Recipe, Sent, Vector

_FEDAVG = (
    "McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data (arXiv:1602.05629)"
)
_LONE = "none: what one member alone sent is all its own; only the norm cap and the leave-one-out measurement stand before it"


def damped(sent: Sent, quarters: int) -> Vector:
    """Divide by V^((4-q)/4) * W^(q/4), from square roots alone."""
    whole = float(sent.total)

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        own = np.maximum(weight_of(present, sent.weights), 1)
        middle: Floats = np.sqrt((own * sent.total).astype(np.float64))
        divisor = (
            own.astype(np.float64),
            np.sqrt(own.astype(np.float64) * middle),
            middle,
            np.sqrt(whole * middle),
            np.full(len(own), whole),
        )[quarters]
        return divided(total(units, sent.weights), divisor)

    return by_block(sent, kernel)


def _contributors(sent: Sent, _parameters: Mapping[str, int]) -> Vector:
    return damped(sent, 0)


def _between(sent: Sent, _parameters: Mapping[str, int]) -> Vector:
    return damped(sent, 2)


def _members(sent: Sent, _parameters: Mapping[str, int]) -> Vector:
    return damped(sent, 4)


def _quarters(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    return damped(sent, parameters["quarters"])


def _floored(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    return floored(sent, [1] * len(sent.members), parameters["floor"])


def floored(sent: Sent, shares: list[int], floor: int, one: int = 1) -> Vector:
    """Sum of w * share * u over `one` times the larger of V and `floor` permille of a typical member's weight, W / n.

    A divisor is at most W. In exact integers, with s = 1000 n: f64(sum(w share u)) * s / f64(one * max(s V, least) * 2^24).

    Raises:
        MergeRefused: weights far beyond those of a charter.
    """
    scale, least = floor_of(sent, floor, one)
    factors = [w * s for w, s in zip(sent.weights, shares, strict=True)]

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        divisor = one * np.maximum(scale * weight_of(present, sent.weights), least)
        return quotient(total(units, factors) * float(scale), divisor)

    return by_block(sent, kernel)


def floor_of(sent: Sent, floor: int, one: int) -> tuple[int, int]:
    """The scale 1000 n and the least divisor, min(floor, 1000 n) * W, of `floored`."""
    scale = 1000 * len(sent.everybody)
    if one * scale * sent.total >= 2**62:
        raise MergeRefused("couldn't merge: the weights are too large for this recipe")
    return scale, min(floor, scale) * sent.total


def _counted(sent: Sent, _parameters: Mapping[str, int]) -> Vector:
    bound = sum(
        w * int(r.counts.max(initial=0)) * max(int(r.units.max(initial=0)), -int(r.units.min(initial=0)))
        for w, r in zip(sent.weights, sent.registers, strict=True)
    )
    if bound >= 2**63:
        raise MergeRefused("couldn't merge: counts and values of a register are too large for count-mean/1")

    def kernel(at: slice, units: Units, _present: Mask) -> Vector:
        counts = np.stack([r.counts[at] for r in sent.registers]).astype(np.int64)
        return quotient(total(units * counts, sent.weights), weight_of_counts(counts, sent.weights))

    return by_block(sent, kernel)


def weight_of_counts(counts: Units, weights: tuple[int, ...]) -> Units:
    """The sum of weight * count, per coordinate [B]."""
    sums = np.zeros(counts.shape[1], dtype=np.int64)
    for row, weight in zip(counts, weights, strict=True):
        sums += row * weight
    return sums


RECIPES = (
    Recipe(
        name="contributor-mean/1",
        about="weighted mean over the members that sent the coordinate",
        paper=f"{_FEDAVG}, over the senders of each coordinate",
        absent="not sent is not counted",
        breakdown=_LONE,
        merge=_contributors,
    ),
    Recipe(
        name="sqrt-mean/1",
        about="weighted sum over sqrt(senders' weight * everybody's weight)",
        paper=f"{_FEDAVG}; the divisor between senders and members is our own",
        absent="shrinks the value by the square root of the share that sent it",
        breakdown="none; what one of n sent alone weighs 1/sqrt(n) of it",
        merge=_between,
    ),
    Recipe(
        name="member-mean/1",
        about="weighted mean over all members",
        paper=_FEDAVG,
        absent="not sent is a zero",
        breakdown="none; what one of n sent alone weighs 1/n of it",
        merge=_members,
    ),
    Recipe(
        name="damped-mean/1",
        about="divisor between senders (quarters=0) and members (quarters=4); 2 is sqrt-mean",
        paper=f"{_FEDAVG}; the divisor between senders and members is our own",
        absent="shrinks the value by a power of the share that sent it",
        breakdown="none; what one of n sent alone weighs n^(-quarters/4) of it",
        parameters={"quarters": 1},
        bounds={"quarters": (0, 4)},
        merge=_quarters,
    ),
    Recipe(
        name="floored-mean/1",
        about="contributor mean that never divides by less than `floor` permille of a member's weight",
        paper=f"{_FEDAVG}; the cap on coordinates with a single sender is our own",
        absent="not sent is not counted, but fewer senders than `floor` count as `floor`",
        breakdown="one member alone moves a coordinate by 1000/floor of what it sent; colluders as many as the floor are free",
        parameters={"floor": 2000},
        bounds={"floor": (1000, 256_000)},
        merge=_floored,
    ),
    Recipe(
        name="count-mean/1",
        about="mean weighted by how often a member sent the coordinate, the trace that its Fisher left",
        paper="after Matena and Raffel 2022 (arXiv:2111.09832); the counts stand in for the Fisher that nobody sends",
        absent="not sent is not counted",
        breakdown="none, and a member that sends a coordinate more often weighs more in it",
        merge=_counted,
    ),
)
