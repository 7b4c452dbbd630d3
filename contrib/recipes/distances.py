"""Rules that look at whole registers: Krum, geometric median, centred clipping, the most similar ones.

They need the dot products of the registers alone, which are exact integers: a centre is a combination of registers with
integer shares, and its distance to each follows from the products. Invariant: no array over coordinates is made before
the shares are decided, and the shares do not depend on the order of members (equals: the lower id).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isqrt
from typing import Final

import numpy as np

from contrib.recipes.exact import ONE, Mask, Units, by_block, gram, lower_median, norms, quotient, total, weight_of
from contrib.recipes.recipe import Recipe, Sent, Vector

_WHOLE: Final = 2**30  # what shares of a centre sum to
_Products = Sequence[Sequence[int]]


def mean_of(sent: Sent, chosen: list[int]) -> Vector:
    """The contributor mean of some of those that sent."""
    part = sent.only(sorted(chosen))

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        return quotient(total(units, part.weights), weight_of(present, part.weights))

    return by_block(part, kernel)


def krum_order(products: _Products, faults: int) -> list[int]:
    """Places of the members, the best score first: the sum of squared distances to the m - f - 2 nearest others."""
    count = len(products)
    near = min(count - 1, max(1, count - faults - 2))
    scores = []
    for i in range(count):
        apart = sorted(products[i][i] + products[j][j] - 2 * products[i][j] for j in range(count) if j != i)
        scores.append(sum(apart[:near]))
    return sorted(range(count), key=lambda i: (scores[i], i))


def _krum(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    order = krum_order(gram(sent), len(sent.members) * parameters["faults"] // 1000)
    return mean_of(sent, order[:1])


def _multi_krum(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    faults = len(sent.members) * parameters["faults"] // 1000
    return mean_of(sent, krum_order(gram(sent), faults)[: len(sent.members) - faults])


def _soup(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    products = gram(sent)
    toward = f"{parameters['toward']:08x}"
    targets = [i for i, m in enumerate(sent.members) if parameters["toward"] and m.startswith(toward)]
    likeness = [_likeness(products, sent.weights, i, targets) for i in range(len(sent.members))]
    order = sorted(range(len(likeness)), key=lambda i: (-likeness[i], i))
    return mean_of(sent, order[: -(-len(order) * parameters["keep"] // 1000)])


def _likeness(products: _Products, weights: Sequence[int], i: int, targets: list[int]) -> Fraction:
    """The cosine times its size, between register i and the weighted sum of the targets, or of all others."""
    towards = targets or [j for j in range(len(weights)) if j != i]
    dot = sum(weights[j] * products[i][j] for j in towards)
    square = sum(weights[j] * weights[k] * products[j][k] for j in towards for k in towards)
    below = products[i][i] * square
    return Fraction(dot * abs(dot), below) if below else Fraction(0)


def apart(products: _Products, shares: Sequence[int], whole: int) -> list[int]:
    """floor(|sum(share * x) - whole * x_i|) for every member i, in units of 2^-24."""
    count = len(shares)
    rows = [sum(shares[j] * products[i][j] for j in range(count)) for i in range(count)]
    square = sum(shares[i] * rows[i] for i in range(count))
    return [isqrt(square - 2 * whole * rows[i] + whole * whole * products[i][i]) for i in range(count)]


def weiszfeld(products: _Products, weights: Sequence[int], rounds: int) -> list[int]:
    """Integer shares, summing to at most 2^30, of the smoothed Weiszfeld steps towards the geometric median.

    A step gives member i the share w_i / max(d_i, nu), d_i its distance to the centre before; nu is a thousandth of the
    registers' lower median norm, at least one unit. The first centre is the mean of registers shortened to that norm: from
    the plain mean a few steps do not come back when somebody is far out, from zero they stay with whoever is short.
    """
    found = norms(products)
    middle = lower_median(found)
    shares = [w * (ONE if n <= middle else ONE * middle // n) for w, n in zip(weights, found, strict=True)]
    whole, smooth = ONE * sum(weights), max(1, middle // 1000)
    for _ in range(rounds):
        reach = [max(d // whole, smooth) for d in apart(products, shares, whole)]
        pulls = [(w << 128) // d for w, d in zip(weights, reach, strict=True)]
        shares = [_WHOLE * pull // sum(pulls) for pull in pulls]
        whole = sum(shares)
    return shares


def _geometric_median(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    if not sent.members:
        return by_block(sent, _nothing)
    shares = weiszfeld(gram(sent), sent.weights, parameters["rounds"])
    return combined(sent, shares, sum(shares) if parameters["zeros"] else None)


def clipped_centre(products: _Products, weights: Sequence[int], rounds: int, radius: int) -> list[int]:
    """Integer shares of 2^30 of the centre: v += sum(w_i * clip(x_i - v)) / sum(w), from v = 0, the epoch's start.

    In each round a difference longer than `radius` permille of the lower median of all differences is cut to that.
    """
    shares, heavy = [0] * len(weights), sum(weights)
    for _ in range(rounds):
        far = apart(products, shares, _WHOLE)
        reach = lower_median(far) * radius // 1000
        pulls = [w * (_WHOLE if d <= reach else _WHOLE * reach // d) for w, d in zip(weights, far, strict=True)]
        left = heavy * _WHOLE - sum(pulls)
        shares = [(b * left + pull * _WHOLE) // (heavy * _WHOLE) for b, pull in zip(shares, pulls, strict=True)]
    return shares


def _centred_clipping(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    if not sent.members:
        return by_block(sent, _nothing)
    shares = clipped_centre(gram(sent), sent.weights, parameters["rounds"], parameters["radius"])
    return combined(sent, shares, _WHOLE if parameters["zeros"] else None)


def combined(sent: Sent, shares: list[int], whole: int | None) -> Vector:
    """Sum of share * u over `whole`, or over the shares of those that sent the coordinate.

    The latter counts as at least the lower median of the shares: who has little weight keeps little where it sent alone.
    """
    least = lower_median(shares)

    def kernel(_at: slice, units: Units, present: Mask) -> Vector:
        own = weight_of(present, shares)
        return quotient(total(units, shares), np.full_like(own, whole) if whole is not None else np.maximum(own, least))

    return by_block(sent, kernel)


def _nothing(_at: slice, units: Units, _present: Mask) -> Vector:
    return np.zeros(units.shape[1], dtype=np.float32)


_DISTANCE = "a zero where distances are measured; not counted where the chosen ones are averaged"
_CENTRE = "a zero where distances are measured; not counted in the mean (zeros=1: a zero there too, as in the paper)"

RECIPES = (
    Recipe(
        name="krum/1",
        about="the one register that is nearest to its neighbours, `faults` permille of them not asked",
        paper="Blanchard et al. 2017, Machine Learning with Adversaries: Krum (arXiv:1703.02757)",
        absent=_DISTANCE,
        breakdown=(
            "needs m >= 2f + 3 and independent honest members of one distribution; registers that share few coordinates are all "
            "equally far, then the shortest one wins, and a hostile member may send a short one"
        ),
        merge=_krum,
        parameters={"faults": 300},
        bounds={"faults": (0, 499)},
    ),
    Recipe(
        name="multi-krum/1",
        about="contributor mean of the m - f registers with the best Krum scores",
        paper="Blanchard et al. 2017, Machine Learning with Adversaries: Krum (arXiv:1703.02757)",
        absent=_DISTANCE,
        breakdown="as krum/1; honest members that learnt something rare are left out with the hostile ones",
        merge=_multi_krum,
        parameters={"faults": 300},
        bounds={"faults": (0, 499)},
    ),
    Recipe(
        name="geometric-median/1",
        about="shares by `rounds` smoothed Weiszfeld steps: who is far from the centre weighs less",
        paper="Pillutla et al. 2022, Robust Aggregation for Federated Learning, RFA (arXiv:1912.13445)",
        absent=_CENTRE,
        breakdown=(
            "withstands less than half of the weight, up to the spread of the honest ones, which on sparse registers is as large "
            "as they are; a long register loses share everywhere, also where it sent alone"
        ),
        merge=_geometric_median,
        parameters={"rounds": 4, "zeros": 0},
        bounds={"rounds": (1, 32), "zeros": (0, 1)},
    ),
    Recipe(
        name="centred-clipping/1",
        about="from zero, `rounds` steps of the mean difference, each cut to `radius` permille of the median one",
        paper="Karimireddy et al. 2021, Learning from History for Byzantine Robust Optimization (arXiv:2012.10333)",
        absent=_CENTRE,
        breakdown="one member moves the centre by at most radius / n a round; colluders add up, short vectors are never cut",
        merge=_centred_clipping,
        parameters={"rounds": 3, "radius": 1000, "zeros": 0},
        bounds={"rounds": (1, 32), "radius": (1, 100_000), "zeros": (0, 1)},
    ),
    Recipe(
        name="adapter-soup/1",
        about="contributor mean of the `keep` permille most similar to the sum of the others, or to the member `toward`",
        paper="Chronopoulou et al. 2023, AdapterSoup (arXiv:2302.07027); by registers, since nobody sees the others' texts",
        absent=_DISTANCE,
        breakdown="leaves out single opponents; colluders that resemble each other are similar too, a rare honest member is not",
        merge=_soup,
        parameters={"keep": 700, "toward": 0},
        bounds={"keep": (1, 1000), "toward": (0, 2**32 - 1)},
    ),
)
