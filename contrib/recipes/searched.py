"""Recipes that are searched for by held-out losses: the greedy soup and LoraHub.

Losses are floats of one machine's model, so another machine may choose other shares. What stays: given the same losses
they give the same bytes, and (their `tolerance`, in nats) a result that one machine found is on another machine, whose
losses differ by at most half the tolerance, no worse by more than the tolerance than what it was to beat there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from contrib.errors import MergeRefused
from contrib.recipes.distances import mean_of
from contrib.recipes.exact import Mask, Units, by_block, quotient, total, weight_of
from contrib.recipes.recipe import Recipe, Sent, Vector

_ONE: Final = 1024  # a share of 1
_MOST: Final = 1536  # the paper's bound, 1.5


def _loss_of(sent: Sent) -> Callable[[Vector], float]:
    losses = sent.extra.losses
    if losses is None:
        raise MergeRefused("couldn't merge: this recipe needs held-out losses")

    def asked(vector: Vector) -> float:
        loss = float(losses(vector))
        return loss if math.isfinite(loss) else math.inf

    return asked


def _model_soup(sent: Sent, _parameters: Mapping[str, int]) -> Vector:
    loss = _loss_of(sent)
    if not sent.members:
        return mean_of(sent, [])
    alone = [loss(mean_of(sent, [i])) for i in range(len(sent.members))]
    order = sorted(range(len(alone)), key=lambda i: (alone[i], i))
    soup, best = order[:1], alone[order[0]]
    for i in order[1:]:
        found = loss(mean_of(sent, [*soup, i]))
        if found <= best:
            soup, best = [*soup, i], found
    return mean_of(sent, soup)


def _lorahub(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    loss, left = _loss_of(sent), parameters["steps"]
    penalty = parameters["penalty"] / 1000
    shares = [_ONE] * len(sent.members)
    if not shares:
        return shared(sent, shares)

    def cost(tried: list[int]) -> float:
        return loss(shared(sent, tried)) + penalty * sum(map(abs, tried)) / (_ONE * len(tried))

    best, stride = cost(shares), _ONE // 2
    while left > 0 and stride > 0:
        before = best
        for i in range(len(shares)):
            for way in (stride, -stride):
                tried = [*shares[:i], max(-_MOST, min(_MOST, shares[i] + way)), *shares[i + 1 :]]
                if left == 0 or tried == shares:
                    continue
                left -= 1
                found = cost(tried)
                if found < best:
                    shares, best = tried, found
                    break
        if best == before:
            stride //= 2
    return shared(sent, shares)


def shared(sent: Sent, shares: list[int]) -> Vector:
    """The contributor mean of registers multiplied by shares of 1024 (negative ones too) [P]."""
    factors = [w * s for w, s in zip(sent.weights, shares, strict=True)]

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        return quotient(total(units, factors), _ONE * weight_of(present, sent.weights)) + np.float32(0.0)

    return by_block(sent, kernel)


RECIPES = (
    Recipe(
        name="model-soup/1",
        about="greedy soup: from the best single register on, a member joins the mean if the loss does not rise",
        paper="Wortsman et al. 2022, Model Soups (arXiv:2203.05482)",
        absent="not sent is not counted",
        breakdown="leaves out what raises the loss on the held-out rows; what these do not show comes in (backdoors)",
        merge=_model_soup,
        needs=frozenset({"losses"}),
        exact=False,
        tolerance=0.001,
    ),
    Recipe(
        name="lorahub/1",
        about="a share in -1.5..1.5 for each register, by gradient-free search of `steps` losses with an L1 penalty",
        paper="Huang et al. 2024, LoraHub (arXiv:2307.13269); pattern search from the mean, not Nevergrad from zero",
        absent="not sent is not counted",
        breakdown="a share near zero or below for what raises the loss on the held-out rows; what these do not show comes in",
        merge=_lorahub,
        equal="one multiple of themselves, of -1.5 to 1.5",
        parameters={"steps": 40, "penalty": 50},
        bounds={"steps": (0, 10_000), "penalty": (0, 10_000)},
        needs=frozenset({"losses"}),
        exact=False,
        tolerance=0.001,
    ),
)
