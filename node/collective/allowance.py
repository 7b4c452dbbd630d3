"""What the contributions of one member may have a cut leave out: what is left out stays in every later cut of the epoch.

A cut has to fit into one entry. So each member has a share of the exclusions for faults and copies, and one of those that voters
prove; of all entries that prove them there is only so much room. A feed is not covered beyond the contribution that would take
more, and waits. Knows no blob and no vote. Invariant: a cut whose new exclusions were all admitted here fits into one entry, with
as many members as a charter takes.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ledger import rules
from ledger.collective import Collective
from ledger.cuts import MAX_LIST, Exclusion
from ledger.entry import MAX_BODY
from protocol.ids import MemberId

EVIDENCE: Final = 67  # bytes of one id in a list
# Bytes of evidence beyond the first entry of each exclusion; the lists themselves take the rest.
ROOM: Final = MAX_BODY // 3
# By voters, in one cut: half of a list is for faults and copies, a quarter for decisions.
MAX_REFUSED: Final = MAX_LIST // 4
_REFUSED_EACH: Final = 16  # of one member at least: refusing it again at every height would cost an attempt each time


class Allowance:
    """What one cut after the newest one may newly leave out."""

    def __init__(self, fold: Collective) -> None:
        """Begin with what the cut before leaves out: it stays."""
        before = fold.current_cut()
        self._share = rules.share(fold)
        self._caused, self._refused = Counter[MemberId](), Counter[MemberId]()
        self._room = ROOM
        for exclusion in before.excluded if before else ():
            if exclusion.reason != rules.FORGOTTEN:
                self._counted(exclusion)[fold.sources[exclusion.event].member] += 1
            self._room -= _proof(exclusion)

    def admits(self, member: MemberId, exclusion: Exclusion) -> bool:
        """Whether one more contribution of a member may be left out; what is admitted is counted."""
        counted, refused = self._counted(exclusion), exclusion.reason == rules.REFUSED
        share = max(self._share, _REFUSED_EACH) if refused else self._share
        full = refused and counted.total() >= MAX_REFUSED
        if full or counted[member] >= share or _proof(exclusion) > self._room:
            return False
        counted[member] += 1
        self._room -= _proof(exclusion)
        return True

    def _counted(self, exclusion: Exclusion) -> Counter[MemberId]:
        return self._refused if exclusion.reason == rules.REFUSED else self._caused


def _proof(exclusion: Exclusion) -> int:
    return EVIDENCE * max(0, len(exclusion.evidence) - 1)
