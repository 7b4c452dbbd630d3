"""The names and the head of what a member keeps of its training: learnt but not published, its first run alone, and moments.

The first two are float32 vectors in the ledger's state, saved with the entry that they belong to; `node.training.learnt` reads
and writes them. What Adam knew at the end of a run lies beside the run and may be lost. Knows no vector: whoever has to throw
them away needs no numpy.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

STATE: Final = "residual"
FIRST: Final = "first-own"
MOMENTS: Final = "moments.npy"  # in the folder of a run, by the worker's hand
HEAD: Final = struct.Struct("<32sQI")  # epoch, feed size that the state belongs to, coordinates


def nothing() -> dict[str, bytes]:
    """The state of a member that has nothing left to send; it belongs to no epoch, so every epoch starts from zero."""
    empty = HEAD.pack(bytes(32), 0, 0)
    return {STATE: empty, FIRST: empty}


def forget_moments(runs: Path) -> None:
    """Delete what Adam knew in every run: it carries a trace of all rows that the epoch's runs were trained on."""
    for file in runs.glob(f"*/{MOMENTS}"):
        file.unlink(missing_ok=True)
