"""Rules that look at one coordinate at a time: median and trimmed mean.

Invariant: between the smallest and the largest value sent. Their papers' guarantee needs most members to have sent the
coordinate: on sparse registers most coordinates have one or two senders, and there these rules protect nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from contrib.recipes.exact import Mask, Units, by_block, places, quotient, total, weight_of
from contrib.recipes.recipe import Recipe, Sent, Vector


def _median(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    if parameters["zeros"]:
        sent = sent.with_silent()
    weights = np.array(sent.weights, dtype=np.int64)

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        order = np.argsort(np.where(present, units, np.iinfo(np.int64).max), axis=0, kind="stable")
        running = np.cumsum(weights[order] * np.take_along_axis(present, order, axis=0), axis=0)  # [m, B]
        whole = running[-1]
        low = np.argmax(2 * running >= whole, axis=0)[None, :]
        high = np.argmax(2 * running > whole, axis=0)[None, :]
        ends = np.concatenate([np.take_along_axis(order, low, axis=0), np.take_along_axis(order, high, axis=0)])
        return quotient(total(np.take_along_axis(units, ends, axis=0), (1, 1)), np.where(whole > 0, 2, 0))

    return by_block(sent, kernel)


def _trimmed_mean(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    if parameters["zeros"]:
        sent = sent.with_silent()

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        kept = trimmed(units, present, parameters["cut"])
        return quotient(total(units * kept, sent.weights), weight_of(kept, sent.weights))

    return by_block(sent, kernel)


def trimmed(values: Units, present: Mask, cut: int) -> Mask:
    """What stays [m, B] when floor(senders * cut / 1000) values are taken from either end, equals by member."""
    senders = present.sum(axis=0)
    gone = senders * cut // 1000
    if not gone.any():
        return present
    place = places(values, present)
    kept: Mask = present & (place >= gone) & (place < senders - gone)
    return kept


_ZEROS = "not sent is not counted; with zeros=1 it is a zero, and members that sent nothing have sent zeros"
_DENSE = (
    "withstands fewer than half of a coordinate's senders, so nothing where one or two sent; "
    "with zeros=1 fewer than half of all members, but then what fewer than {} sent is lost"
)

RECIPES = (
    Recipe(
        name="median/1",
        about="weighted median of each coordinate; of two middle values their mean",
        paper="Yin et al. 2018, Byzantine-Robust Distributed Learning (arXiv:1803.01498)",
        absent=_ZEROS,
        breakdown=_DENSE.format("half of them"),
        merge=_median,
        parameters={"zeros": 0},
        bounds={"zeros": (0, 1)},
    ),
    Recipe(
        name="trimmed-mean/1",
        about="weighted mean of each coordinate without the largest and the smallest `cut` permille of its values",
        paper="Yin et al. 2018, Byzantine-Robust Distributed Learning (arXiv:1803.01498)",
        absent=_ZEROS,
        breakdown=_DENSE.format("the cut") + "; per side it withstands as many as are cut",
        merge=_trimmed_mean,
        parameters={"cut": 200, "zeros": 0},
        bounds={"cut": (0, 499), "zeros": (0, 1)},
    ),
)
