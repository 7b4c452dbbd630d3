"""Whether the blobs are here from which everybody else's view is made: a run that begins without them begins a step behind.

Why a newcomer needs every blob that this epoch's releases took: a register is the sum of all contributions of its member in
the epoch, and the newest release is merged from registers, so it is made of all of them (of former epochs nothing is needed).
A voter also looks at each again: for copies, and because nothing is called right that was not recomputed here. To train, the
vector of the release alone would do, and its digest is decided; but no peer hands out a vector, and what is pending could not
be added to it without the registers.

Knows no peers: somebody else fetches. Invariant: what was found whole once is not looked for again until another release is the
newest one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ledger.collective import Collective
from node.collective.pace import Pace
from node.syncing.blobs import BlobStore
from protocol.ids import Digest

_STALLED_S: Final = 20.0  # how long a run waits for blobs of the newest release of which none comes
_LOOK_S: Final = 0.1


class Readiness:
    """The newest release of one collective at this node."""

    def __init__(self, fold: Collective, blobs: BlobStore) -> None:
        self._fold, self._blobs = fold, blobs
        self._whole: Digest | None = None  # the model of the newest release whose blobs were all here

    def lacking(self) -> int:
        """How many blobs of the newest release are not here yet."""
        cut = self._fold.current_cut()
        if cut is None or cut.model == self._whole:
            return 0
        lacking = sum(not self._blobs.has(c.blob) for taken in self._fold.in_cut(cut).values() for c in taken)
        self._whole = self._whole if lacking else cut.model
        return lacking

    async def wait(self) -> int:
        """Wait as long as blobs come; how many are lacking still."""
        pace = Pace(_STALLED_S)
        while (lacking := self.lacking()) and pace.moving(lacking):
            await asyncio.sleep(_LOOK_S)
        return lacking
