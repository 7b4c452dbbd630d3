"""Which decided cut covered an entry first: an index over the releases of a collective, so that nobody walks through all of them.

Built for a number of decisions and never changed (threads ask while the fold goes on); a fold makes a new one when something
was decided since. Knows no contribution. Law: `first(epoch, feed, seq, height)` is the first release of `epoch` below `height`
whose head vector has more than `seq` entries of `feed`, whatever shape those head vectors have.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ledger.charter import Charter
from ledger.cuts import Cut, Place
from ledger.facts import Decision
from protocol.ids import Digest, MemberId


@dataclass(slots=True)
class _Steps:
    """The releases of one epoch, oldest first."""

    heights: list[int] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    charters: list[Charter] = field(default_factory=list)


class Reaching:
    """How far each release reached into each feed."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        """Look at these decisions; `count` of them."""
        decisions = tuple(decisions)  # as they are now: the fold may go on
        self.count = len(decisions)
        self._epochs: dict[Digest, _Steps] = {}
        self._ends: dict[tuple[Digest, MemberId], list[int]] = {}
        for decision in decisions:
            if isinstance(decision.value, Cut):
                steps = self._epochs.setdefault(decision.value.epoch, _Steps())
                steps.heights.append(decision.value.place.height)
                steps.places.append(decision.value.place)
                steps.charters.append(decision.charter)

    def first(self, epoch: Digest, feed: MemberId, seq: int, height: int | None = None) -> Charter | None:
        """The charter of the first release of an epoch that covered an entry, below `height` if given; None: none did."""
        steps = self._epochs.get(epoch)
        if steps is None:
            return None
        count = len(steps.heights) if height is None else bisect_left(steps.heights, height)
        place = bisect_right(self._of(epoch, steps, feed), seq, 0, count)
        return steps.charters[place] if place < count else None

    def _of(self, epoch: Digest, steps: _Steps, feed: MemberId) -> list[int]:
        """The most entries of a feed that any release up to each one covered: never falling, so it can be searched."""
        ends = self._ends.get((epoch, feed))
        if ends is None:
            ends = self._ends[epoch, feed] = list(accumulate((p.size_of(feed) for p in steps.places), max))
        return ends
