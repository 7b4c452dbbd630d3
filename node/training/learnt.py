"""Vectors that a run leaves behind, as files and as bytes of the ledger's state: learnt but not published, and learnt alone.

Their names in the state stand in `node.data.residual`, which needs no numpy. Law: `unpack(pack(epoch, size, v), epoch, len(v))`
gives `size` and `v`, and nothing for another epoch or another number of coordinates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ledger.charter import Charter
from node.collective.replay import Vector
from node.data.residual import HEAD
from node.errors import NotAllowed
from protocol.ids import Digest


def pack(epoch: Digest, size: int, vector: Vector) -> bytes:
    """The bytes of a vector [coordinates] of this epoch that belongs to a feed of `size` entries."""
    return HEAD.pack(bytes.fromhex(epoch), size, len(vector)) + vector.astype("<f4").tobytes()


def unpack(saved: bytes | None, epoch: Digest, coordinates: int) -> tuple[int, Vector] | None:
    """Feed size and vector [coordinates] of what was saved in this epoch; None: nothing was, or in another one."""
    if saved is None:
        return None
    when, size, count = HEAD.unpack_from(saved)
    if when.hex() != epoch or count != coordinates:
        return None
    return size, np.frombuffer(saved, dtype="<f4", offset=HEAD.size).astype(np.float32)


def load(path: Path, charter: Charter) -> Vector:
    """A vector [coordinates] that the worker has written (raises NotAllowed: it is none of this charter's)."""
    vector = np.load(path, allow_pickle=False)
    if vector.dtype != np.float32 or vector.shape != (charter.adapter.coordinates,):
        raise NotAllowed(f"couldn't use {path.name}: not a vector of this epoch")
    return np.asarray(vector, dtype=np.float32)
