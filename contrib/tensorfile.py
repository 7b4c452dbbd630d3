"""Writes safetensors files one tensor at a time, in numpy alone, bfloat16 included.

Knows no model. Invariant: a file holds exactly the tensors of its plan, in the plan's order, without holes; what
`contrib.weights.read_header` reads back is the plan. Format: 8 bytes of header length, little-endian; JSON; the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contrib.errors import CorruptModel, WrongModel
from contrib.weights import Tensor

Floats = npt.NDArray[np.float32]
Plan = list[tuple[str, str, tuple[int, ...]]]  # name, safetensors dtype, shape
_ALIGN = 8
FLOATS = ("F32", "F16", "BF16")
_WIDTHS: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1
}  # fmt: skip


def write(path: Path, plan: Plan, parts: Iterable[bytes], *, metadata: Mapping[str, str]) -> None:
    """Write the tensors of `plan`; `parts` are the bytes of each, in the same order, in pieces of any size.

    Raises:
        WrongModel: the parts are not as long as the plan says.
        OSError: the disk is full; the file is not whole then.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape in plan:
        end = at + math.prod(shape) * _width(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    written = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            written += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    if written != at:
        raise WrongModel(f"couldn't write {path.name}: {written} bytes of tensors where the plan has {at}")


def read_floats(tensor: Tensor) -> Floats:
    """The values of one F32, F16 or BF16 tensor as float32 of its shape.

    Raises:
        WrongModel: it is of another type.
        CorruptModel: the file ends before.
    """
    if tensor.dtype not in FLOATS:
        raise WrongModel(f"couldn't read tensor {tensor.name}: {tensor.dtype} is not one of {', '.join(FLOATS)}")
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.length)
    if len(raw) != tensor.length:
        raise CorruptModel(f"couldn't read {tensor.file}: truncated; fetch it again")
    if tensor.dtype == "BF16":
        wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).reshape(tensor.shape)
    return np.frombuffer(raw, dtype="<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32).reshape(tensor.shape)


def to_bytes(values: Floats, dtype: str) -> bytes:
    """Values as F32, F16 or BF16, rounded to nearest, ties to even (IEEE 754).

    Raises:
        WrongModel: another type, or a value that it cannot hold.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "F32":
        return flat.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = flat.astype("<f2")
        if not np.isfinite(half).all():
            raise WrongModel("couldn't write tensor as F16: a value is too large for it; choose float32")
        return half.tobytes()
    if dtype != "BF16":
        raise WrongModel(f"couldn't write tensor as {dtype}: it is not one of {', '.join(FLOATS)}")
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


def _width(dtype: str) -> int:
    if dtype not in _WIDTHS:
        raise WrongModel(f"couldn't write tensor as {dtype}: it is not one of {', '.join(_WIDTHS)}")
    return _WIDTHS[dtype]
