"""What a member still has to say: how the residual, new learning and what was sent go together.

With e the residual, l = theta - view what a run has learnt, s the decoded update and k the share that is kept,

    wanted = k * e + l        e' = wanted - s                                     (error feedback, arXiv 1901.09847)

so sent + left = learnt + k * residual: at k = 1 nothing is ever given up, below it exactly (1 - k) * e is, at each turn, and
nothing else. Why one gives anything up: a run from the view does not know of e, so what waited is learnt again. A run that
covers a share a of the way to the member's own optimum leaves e = t * a * (optimum - view) at a coordinate that waited for
t turns, more than the whole way after 1 / a of them; with k it settles at a / (1 - k) of the way, the whole of it at
k = 1 - a. Knows no selection, quantisation, disk or network. Invariant: a function of its arguments; the state is e alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from contrib.errors import SelectionRefused
from contrib.updates import Vector
from protocol.sparse import SparseUpdate

_WHOLE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """The residual rule: `keep_permille` of what waited is still wanted at the next turn.

    Raises:
        SelectionRefused: a share that is not 0 to 1000.
    """

    keep_permille: int = _WHOLE

    def __post_init__(self) -> None:
        """Refuse a share that would grow the residual or turn it round."""
        if not 0 <= self.keep_permille <= _WHOLE:
            raise SelectionRefused(
                f"couldn't keep {self.keep_permille} permille of a residual: 0 to {_WHOLE} are possible"
            )

    def wanted(self, residual: Vector, learnt: Vector) -> Vector:
        """What an update is made of [P]: new learning and the share of the residual [P] that is kept.

        Raises:
            SelectionRefused: vectors of different shape.
        """
        if residual.shape != learnt.shape:
            raise SelectionRefused("couldn't add what was learnt to the residual: they have different shapes")
        if self.keep_permille == _WHOLE:
            return (residual + learnt).astype(np.float32)
        kept = residual.astype(np.float64) * (self.keep_permille / _WHOLE)
        return (kept + learnt).astype(np.float32)

    @staticmethod
    def left(wanted: Vector, update: SparseUpdate) -> Vector:
        """The residual [P] after `update` was taken out of `wanted`: the same bits where nothing was sent."""
        left = wanted.copy()
        left[update.indices] -= update.values()
        return left


DEFAULT: Final = Feedback()
