"""Means for sparse registers under attack: every member's length is bounded, and so is what one member does alone.

Invariant: what a hostile member adds to the merged vector is bounded by the length of the median member, whatever it
sends, while fewer than half of those that sent are hostile; where it sent alone, by a part of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import numpy as np

from contrib.errors import MergeRefused
from contrib.recipes.coordinates import trimmed
from contrib.recipes.exact import ONE, Mask, Units, by_block, lower_median, quotient, square, total, weight_of
from contrib.recipes.means import floor_of, floored
from contrib.recipes.recipe import Recipe, Sent, Vector


def lengths(sent: Sent, rms: int) -> list[int]:
    """The L2 norm of each register, floored, in 2^-24; with `rms` the root mean square of what was sent, in 2^-34."""
    squares = [square(register.units) for register in sent.registers]
    if not rms:
        return [isqrt(one) for one in squares]
    sums = [int(register.counts.sum(dtype=np.int64)) for register in sent.registers]
    return [isqrt((one << 20) // count) for one, count in zip(squares, sums, strict=True)]


def shares(sent: Sent, clip: int, rms: int) -> list[int]:
    """By which factor, of 2^20, each register is shortened to `clip` permille of the lower median length."""
    found = lengths(sent, rms)
    reach = clip * lower_median(found) if found else 0
    return [ONE if 1000 * length <= reach else ONE * reach // (1000 * length) for length in found]


def _clipped(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    own = shares(sent, parameters["clip"], parameters["rms"])
    factors = [w * s for w, s in zip(sent.weights, own, strict=True)]

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        return quotient(total(units, factors), ONE * weight_of(present, sent.weights))

    return by_block(sent, kernel)


def _guarded(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    own = shares(sent, parameters["clip"], parameters["rms"])
    if not parameters["cut"]:
        return floored(sent, own, parameters["floor"], ONE)
    if any(s * max(int(r.units.max()), -int(r.units.min())) >= 2**63 for s, r in zip(own, sent.registers, strict=True)):
        raise MergeRefused("couldn't merge: the values of most registers are too large for guarded-mean/1 with a cut")
    scale, least = floor_of(sent, parameters["floor"], ONE)
    factors = [w * s for w, s in zip(sent.weights, own, strict=True)]
    column = np.array(own, dtype=np.int64)[:, None]

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        kept = trimmed(units * column, present, parameters["cut"])
        divisor = ONE * np.maximum(scale * weight_of(kept, sent.weights), least)
        return quotient(total(units * kept, factors) * float(scale), divisor)

    return by_block(sent, kernel)


_CLIP = "Sun et al. 2019, Can You Really Backdoor Federated Learning? (arXiv:1911.07963), to the median length"
_LENGTH = {"clip": (1, 100_000), "rms": (0, 1)}

RECIPES = (
    Recipe(
        name="clipped-mean/1",
        about="contributor mean of registers shortened to `clip` permille of the median length (rms=1: length per value sent)",
        paper=_CLIP,
        absent="not sent is not counted, and has no length",
        breakdown=(
            "below half of the members: a long register is cut to the median one's length, but points where it wants, and a "
            "coordinate that it alone sent is all its own"
        ),
        merge=_clipped,
        parameters={"clip": 1000, "rms": 0},
        bounds=_LENGTH,
    ),
    Recipe(
        name="guarded-mean/1",
        about="clipped-mean and floored-mean in one, and a trimmed mean (`cut` permille) where enough members sent",
        paper=f"{_CLIP}; Yin et al. 2018 (arXiv:1803.01498) where `cut` takes a value; the floor is our own",
        absent="not sent is not counted, but fewer senders than `floor` permille of a member count as that",
        breakdown=(
            "below half of the members: one hostile one adds at most clip / floor of the median length where nobody else sent, "
            "colluders that send the same coordinates add up"
        ),
        merge=_guarded,
        parameters={"clip": 1000, "cut": 0, "floor": 2000, "rms": 0},
        bounds={**_LENGTH, "cut": (0, 499), "floor": (1000, 256_000)},
    ),
)
