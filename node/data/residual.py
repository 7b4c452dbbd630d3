"""The names and the head of what a member keeps of its training: learnt but not published, and its first run alone.

Both are float32 vectors in the ledger's state, saved with the entry that they belong to; `node.training.rounds` reads and
writes them. Knows no vector: whoever has to throw them away needs no numpy.
"""

from __future__ import annotations

import struct
from typing import Final

STATE: Final = "residual"
FIRST: Final = "first-own"
HEAD: Final = struct.Struct("<32sQI")  # epoch, feed size that the state belongs to, coordinates


def nothing() -> dict[str, bytes]:
    """The state of a member that has nothing left to send; it belongs to no epoch, so every epoch starts from zero."""
    empty = HEAD.pack(bytes(32), 0, 0)
    return {STATE: empty, FIRST: empty}
