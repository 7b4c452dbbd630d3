"""What the contributions of one member may have a cut leave out: what is left out stays in every later cut of the epoch.

A cut has to fit into one entry. So each member has a share of its exclusions, and of the entries that prove them there is only so
much room; a feed is not covered beyond the contribution that would take more, and waits. Knows no blob and no vote.
Invariant: a cut whose new exclusions were all admitted here fits into one entry, with as many members as a charter takes.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ledger import rules
from ledger.collective import Collective
from ledger.cuts import Exclusion
from ledger.entry import MAX_BODY
from protocol.ids import MemberId

EVIDENCE: Final = 67  # bytes of one id in a list
ROOM: Final = MAX_BODY // 3  # bytes of evidence beyond the first entry of each exclusion; the lists themselves take the rest


class Allowance:
    """What one cut after the newest one may newly leave out."""

    def __init__(self, fold: Collective) -> None:
        """Begin with what the cut before leaves out: it stays."""
        before = fold.current_cut()
        left_out = before.excluded if before else ()
        self._share = rules.share(fold)
        self._caused = Counter(fold.sources[x.event].member for x in left_out if x.reason != rules.FORGOTTEN)
        self._room = ROOM - sum(map(_proof, left_out))

    def admits(self, member: MemberId, exclusion: Exclusion) -> bool:
        """Whether one more contribution of a member may be left out; what is admitted is counted."""
        if self._caused[member] >= self._share or not self.proves(exclusion):
            return False
        self._caused[member] += 1
        return True

    def proves(self, exclusion: Exclusion) -> bool:
        """Whether there is room for the evidence; then it is counted."""
        left = self._room - _proof(exclusion)
        if left < 0:
            return False
        self._room = left
        return True


def _proof(exclusion: Exclusion) -> int:
    return EVIDENCE * max(0, len(exclusion.evidence) - 1)
