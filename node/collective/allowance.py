"""What the contributions of one member may have a cut leave out: what is left out stays in every later cut of the epoch.

A cut has to fit into one entry. So each member has a share of the exclusions for faults and copies, and one of those that voters
prove; of all entries that newly prove them there is only so much room in a cut. A feed is not covered beyond the contribution
that would take more, and waits. What was released before cannot wait, it does harm: half of what voters prove, and of the room,
is kept for it, so no flood of new contributions keeps old ones in. What is beyond that half too is left out by decision
(`ledger.forgetting`). Knows no blob and no vote. Invariant: a cut whose new exclusions were all admitted here fits into one
entry, with as many members as a charter takes.
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
        """Begin with what the cut before leaves out: it stays; the verdicts that prove it are named there and not again."""
        before = fold.current_cut()
        self._share = rules.share(fold)
        self._caused, self._refused = Counter[MemberId](), Counter[MemberId]()
        self._proofs = 0  # bytes
        for exclusion in before.excluded if before else ():
            if exclusion.reason != rules.FORGOTTEN:
                counted = self._refused if exclusion.reason == rules.REFUSED else self._caused
                counted[fold.sources[exclusion.event].member] += 1

    def admits(self, member: MemberId, exclusion: Exclusion, *, released: bool = False) -> bool:
        """Whether one more contribution of a member may be left out; what is admitted is counted.

        `released`: the release before has it. What is new may take half of what voters prove, what was released the rest too.
        """
        if exclusion.reason != rules.REFUSED:
            fits = self._caused[member] < self._share
            self._caused[member] += fits
            return fits
        each, most, room = max(self._share, _REFUSED_EACH), MAX_REFUSED // 2, ROOM // 2
        if released:
            each, most, room = 2 * each, MAX_REFUSED, ROOM
        proofs = self._proofs + EVIDENCE * max(0, len(exclusion.evidence) - 1)
        if self._refused[member] >= each or self._refused.total() >= most or proofs > room:
            return False
        self._refused[member] += 1
        self._proofs = proofs
        return True
