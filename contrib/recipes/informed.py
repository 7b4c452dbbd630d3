"""Recipes that need more than registers: Fisher diagonals, Gram matrices, the means of earlier cuts.

What they need comes in `Extra`, from members that agreed to share it; a charter cannot ask for them. Invariant: given the
same bytes of it they give the same bytes: elementwise IEEE 754 in ascending order of members, no library's matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from contrib.recipes.exact import Mask, Units, by_block
from contrib.recipes.means import damped
from contrib.recipes.recipe import Matrix, Recipe, Sent, Vector
from protocol.ids import MemberId
from protocol.sparse import UNIT_BITS

_UNIT = float(2**UNIT_BITS)


def _fisher(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    least = parameters["floor"] / 1000
    fishers = [_fisher_of(sent, member) for member in sent.members]
    scales = [math.fsum(own.tolist()) / sent.coordinates or 1.0 for own in fishers]  # an exact sum, rounded once

    def kernel(at: slice, units: Units, present: Mask) -> Vector:
        top, below = np.zeros(units.shape[1]), np.zeros(units.shape[1])
        for i, weight in enumerate(sent.weights):
            trust = float(weight) * (fishers[i][at].astype(np.float64) / scales[i] + least) * present[i]
            top += trust * units[i].astype(np.float64)
            below += trust
        return _rounded(top / np.where(below > 0, below, 1.0))

    return by_block(sent, kernel)


def _fisher_of(sent: Sent, member: MemberId) -> npt.NDArray[np.float32]:
    own = (sent.extra.fishers or {}).get(member)
    if own is None or own.shape != (sent.coordinates,) or not bool((np.isfinite(own) & (own >= 0)).all()):
        raise MergeRefused(
            f"couldn't merge: member {member[:8]} shares no Fisher diagonal of {sent.coordinates} values"
        )
    return own


def _rounded(units: npt.NDArray[np.float64]) -> Vector:
    return (units / _UNIT + 0.0).astype(np.float32) + np.float32(0.0)  # + 0.0: no negative zero


def _regmean(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    shapes = sent.extra.shapes
    if sum(out * rank for out, rank in shapes) != sent.coordinates:
        raise MergeRefused("couldn't merge: the modules' shapes do not add up to the adapter's coordinates")
    grams = [_grams_of(sent, member, parameters) for member in sent.members]
    merged, start = np.zeros(sent.coordinates), 0
    for module, (out, rank) in enumerate(shapes if sent.members else ()):
        at, start = slice(start, start + out * rank), start + out * rank
        left, right = np.zeros((rank, rank)), np.zeros((rank, out))
        for register, weight, own in zip(sent.registers, sent.weights, grams, strict=True):
            heavy = own[module] * float(weight)
            left += heavy
            right += _product(heavy, register.units[at].reshape(out, rank).T.astype(np.float64))
        merged[at] = _solved(left, right).T.reshape(-1)
    return _rounded(merged)


def _grams_of(sent: Sent, member: MemberId, parameters: Mapping[str, int]) -> list[Matrix]:
    """The member's Gram matrices with their other diagonals shrunk (section 3.3 of the paper) and a small ridge."""
    own = (sent.extra.grams or {}).get(member, ())
    shapes = sent.extra.shapes
    if len(own) != len(shapes) or not all(
        g.shape == (rank, rank) and bool(np.isfinite(g).all()) for g, (_, rank) in zip(own, shapes, strict=True)
    ):
        raise MergeRefused(f"couldn't merge: member {member[:8]} shares no Gram matrix of each module")
    out = []
    for g in own:
        shrunk = g.astype(np.float64) * (parameters["others"] / 1000)
        diagonal = np.diagonal(g).astype(np.float64)
        mean = math.fsum(diagonal.tolist()) / len(g) or 1.0
        np.fill_diagonal(shrunk, diagonal + mean * (parameters["ridge"] / 1_000_000))
        out.append(shrunk)
    return out


def _product(left: Matrix, right: Matrix) -> Matrix:
    """The matrix product, summed in ascending order of the index."""
    out = np.zeros((len(left), right.shape[1]))
    for k in range(len(right)):
        out += left[:, k, None] * right[k][None, :]
    return out


def _solved(left: Matrix, right: Matrix) -> Matrix:
    """X with left @ X = right by elimination without exchange of rows, which a positive definite `left` does not need."""
    left, right, rank = left.copy(), right.copy(), len(left)
    for k in range(rank):
        if not left[k, k] > 0:
            raise MergeRefused(
                "couldn't merge: the Gram matrices of a module are not positive definite; raise the ridge"
            )
        factor = left[k + 1 :, k] / left[k, k]
        left[k + 1 :] -= factor[:, None] * left[k][None, :]
        right[k + 1 :] -= factor[:, None] * right[k][None, :]
    for k in reversed(range(rank)):
        for j in range(k + 1, rank):
            right[k] -= left[k, j] * right[j]
        right[k] /= left[k, k]
    return right


def _outer_nesterov(sent: Sent, parameters: Mapping[str, int]) -> Vector:
    momentum, rate = parameters["momentum"] / 1000, parameters["rate"] / 1000
    means = [*(sent.extra.previous or ()), damped(sent, parameters["quarters"])]
    if any(mean.shape != (sent.coordinates,) or not bool(np.isfinite(mean).all()) for mean in means):
        raise MergeRefused("couldn't merge: an earlier mean does not fit the adapter's coordinates")
    view, speed, before = (np.zeros(sent.coordinates) for _ in range(3))
    for mean in means:
        now = mean.astype(np.float64)
        step = now - before
        speed = momentum * speed + step
        view = view + rate * (momentum * speed + step)
        before = now
    return (view + 0.0).astype(np.float32) + np.float32(0.0)


RECIPES = (
    Recipe(
        name="fisher-mean/1",
        about="mean weighted by each member's Fisher diagonal, scaled to mean 1, plus `floor` permille",
        paper="Matena and Raffel 2022, Merging Models with Fisher-Weighted Averaging (arXiv:2111.09832)",
        absent="not sent is not counted",
        breakdown="none: a member states its own Fisher, and a large one takes a coordinate over",
        merge=_fisher,
        parameters={"floor": 1},
        bounds={"floor": (0, 1_000_000)},
        needs=frozenset({"fishers"}),
    ),
    Recipe(
        name="regmean/1",
        about="least squares on the members' activations: (sum G)^-1 sum G B, given as Gram matrices [rank, rank] of A x",
        paper="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights, RegMean (arXiv:2212.09849)",
        absent="not sent is a zero",
        breakdown="none: a large Gram matrix decides alone",
        merge=_regmean,
        parameters={"others": 900, "ridge": 1},
        bounds={"others": (0, 1000), "ridge": (0, 1_000_000)},
        needs=frozenset({"grams"}),
    ),
    Recipe(
        name="outer-nesterov/1",
        about="Nesterov momentum on the changes of the (damped, `quarters`) mean from cut to cut",
        paper="Douillard et al. 2023, DiLoCo (arXiv:2311.08105)",
        absent="as in contributor-mean/1, or damped-mean/1 of the same quarters",
        breakdown="none; what came in once goes on moving the view for some cuts",
        merge=_outer_nesterov,
        equal="rate / 1000 * (1 + momentum / 1000) times themselves at the first cut",
        parameters={"momentum": 900, "rate": 700, "quarters": 0},
        bounds={"momentum": (0, 999), "rate": (1, 4000), "quarters": (0, 4)},
        needs=frozenset({"previous"}),
    ),
)
