"""Adapter vectors on disk: read and checked before anything is served from them.

Invariant: what `read_vector` returns is flat, float32, finite, and what its digest and the charter say it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from contrib.merging import model_digest
from node.errors_serving import BadVector
from protocol.ids import short


def read_vector(path: Path, *, coordinates: int | None = None, digest: str | None = None) -> npt.NDArray[np.float32]:
    """Read the float32 [coordinates] vector in `path` (.npy).

    Raises:
        BadVector: missing, damaged, of another length or type, not finite, or not the one `digest` names.
    """
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise BadVector(f"couldn't read vector {path.name}: {type(e).__name__}") from e
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise BadVector(f"couldn't use vector {path.name}: it is not a flat float32 array")
    if coordinates is not None and len(vector) != coordinates:
        raise BadVector(f"couldn't use vector {path.name}: it has {len(vector)} coordinates, not {coordinates}")
    if not np.isfinite(vector).all():
        raise BadVector(f"couldn't use vector {path.name}: it holds infinities or NaN")
    if digest is not None and model_digest(vector) != digest:
        raise BadVector(f"couldn't use vector {path.name}: its digest is not {short(digest)}...")
    return vector
