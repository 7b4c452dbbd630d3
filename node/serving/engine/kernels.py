"""Builds `kernels.cpp` at first use, loads it, and runs the forward pass with it.

The library goes into the user's cache under the digest of the source, the processor's flags and the compiler, written
beside and renamed; it may be deleted at any time. Without a compiler, or when building fails, `load` says so once and gives
None: the pass then runs in torch, slower, with the same answers up to rounding.

Invariant: what a call of the library reads and writes is kept alive here while it runs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contrib.llama_config import Config
from node.serving.engine.cache import PAGE, Storage
from node.serving.engine.model import Weights, sites
from node.serving.engine.ops import Batch
from node.serving.engine.pool import Pool

SOURCE = Path(__file__).with_name("kernels.cpp")
SOURCES = (SOURCE, *(SOURCE.with_name(name) for name in ("vectors.h", "linear.h", "attend.h", "bgmv.h")))
OPTIONS = ("-O2", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
BUILD_SECONDS = 300
PAD = 32  # elements; what a row of inputs is rounded up to
TALL = 32  # tokens; room for inputs is rounded up to

log = logging.getLogger("fishernet.engine")


# -- the library -----------------------------------------------------------------------------------------------------
class Heads(ctypes.Structure):
    """Counts of heads."""

    _fields_ = (("q", c_int64), ("kv", c_int64), ("dim", c_int64))


class Rotary(ctypes.Structure):
    """Tables [context, dim / 2]."""

    _fields_ = (("cosine", c_void_p), ("sine", c_void_p))


class Tokens(ctypes.Structure):
    """The tokens of a call."""

    _fields_ = (
        ("n", c_int64),
        ("positions", c_void_p),
        ("places", c_void_p),
        ("lists", c_void_p),
        ("pages", c_void_p),
        ("slots", c_void_p),
    )


class Layer(ctypes.Structure):
    """Addresses of one layer's weights and pages."""

    _fields_ = tuple(
        (name, c_void_p)
        for name in ("before_attention", "qkv", "bias", "o", "before_mlp", "gate_up", "down", "keys", "values")
    )


class SiteTable(ctypes.Structure):
    """One site: the table of slots, and the widths."""

    _fields_ = (("slots", c_void_p), ("width", c_int64), ("parts", c_int64), ("outs", c_int64 * 3))


class Model(ctypes.Structure):
    """All of a model."""

    _fields_ = (
        ("layers", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("pad", c_int64),
        ("adapters", c_int64),
        ("heads", Heads),
        ("eps", c_float),
        ("threads", c_int32),
        ("rotary", Rotary),
        ("layer", c_void_p),
        ("sites", c_void_p),
        ("norm", c_void_p),
    )


class Room(ctypes.Structure):
    """Scratch memory of a pass."""

    _fields_ = (("x", c_void_p), ("y", c_void_p), ("q", c_void_p), ("h", c_void_p), ("ldh", c_int64))


_WHOLE, _AT = c_int64, c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "fn_threads": (c_int,),
    "fn_pack": (c_int, _AT, _AT, _WHOLE, _WHOLE, _WHOLE),
    "fn_linear": (c_int, _AT, _WHOLE, _AT, _WHOLE, _WHOLE, _AT, _WHOLE, _WHOLE, _AT, c_int),
    "fn_rms": (c_int, _AT, _WHOLE, _AT, _AT, _WHOLE, _WHOLE, c_float),
    "fn_gate": (c_int, _AT, _WHOLE, _AT, _WHOLE, _WHOLE),
    "fn_attend": (c_int, _AT, _WHOLE, _AT, _AT, _AT, _AT, _AT, _AT, _AT),
    "fn_bgmv": (c_int, _AT, _WHOLE, _AT, _WHOLE, _WHOLE, _AT, _AT, _WHOLE),
    "fn_forward": (c_int, _AT, _AT, _AT),
}


@functools.cache
def load() -> ctypes.CDLL | None:
    """The kernels, built if this machine has not built them yet; None when it can't."""
    try:
        return open_library(build(_cache()))
    except (OSError, subprocess.SubprocessError) as e:
        cause = str(getattr(e, "stderr", "") or e).strip().splitlines()
        log.warning("event=kernels-not-built effect=slower-answers cause=%s", cause[0] if cause else type(e).__name__)
        return None


def open_library(path: Path) -> ctypes.CDLL:
    """A built library, with the types of its functions. Raises OSError: it can't be loaded."""
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = None
    library.fn_begin.restype = c_char_p
    library.instructions = library.fn_begin().decode()  # type: ignore[attr-defined]
    return library


def build(folder: Path, *, compiler: str | None = None, more: Sequence[str] = ()) -> Path:
    """The shared library in `folder`, compiled if it isn't there; `more` are further options of the compiler.

    Raises:
        OSError: no compiler, or the folder can't be written.
        SubprocessError: the compiler fails.
    """
    compiler = compiler or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    asked = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
    texts = [source.read_text() for source in SOURCES]
    stamp = hashlib.sha256("\0".join([*texts, *OPTIONS, *more, asked.stdout, _processor()]).encode())
    target = folder / f"kernels-{stamp.hexdigest()[:24]}.so"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / target.name
            command = [compiler, *OPTIONS, *more, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
            made.replace(target)
    return target


def _cache() -> Path:
    if chosen := os.environ.get("FISHERNET_CACHE"):
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fishernet" / "kernels"


def _processor() -> str:
    """What the compiler's -march=native looks at."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *sorted(set(kept))])


def fit(config: Config) -> bool:
    """Whether the kernels cover these widths."""
    widths = (config.hidden, config.intermediate, config.head_dim, config.heads * config.head_dim)
    return all(width % 16 == 0 for width in widths)


# -- tensors for it --------------------------------------------------------------------------------------------------
class Packed:
    """A matrix [out, in] in the kernels' order; the original is not kept."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor) -> None:
        self._library = library
        self.out, inner = weight.shape
        self.wide = -(-inner // PAD) * PAD
        self.bf16 = weight.dtype == torch.bfloat16
        self.tensor = torch.empty(-(-self.out // 64) * 64 * self.wide, dtype=weight.dtype)
        weight = weight.contiguous()
        library.fn_pack(self.bf16, self.tensor.data_ptr(), weight.data_ptr(), self.out, inner, self.wide)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[n, in] -> float32 [n, out]."""
        y = torch.empty(len(x), self.out)
        padded = inputs(x, self.wide)
        self._library.fn_linear(
            self.bf16, y.data_ptr(), self.out, padded.data_ptr(), padded.stride(0), len(x), self.tensor.data_ptr(),
            self.out, self.wide, None if bias is None else bias.data_ptr(), 0,
        )  # fmt: skip
        return y


def inputs(x: Tensor, wide: int) -> Tensor:
    """Give x [n, in] zeros up to `wide`, and rows up to what the kernels read at a time."""
    room = torch.zeros(-(-len(x) // TALL) * TALL, wide + PAD, dtype=x.dtype)  # no power of two between two rows
    room[: len(x), : x.shape[1]] = x
    return room


class SlotTable:
    """What `bgmv` knows of the adapters at one site: a row for each slot, filled at activation."""

    def __init__(self, slots: int, width: int, outs: tuple[int, ...]) -> None:
        self.rows = np.zeros((slots + 1, 8), dtype=np.int64)  # a, b, rank, parts, width of the parts, the parts
        self._outs = outs
        self.head = SiteTable(self.rows.ctypes.data, width, len(outs), (c_int64 * 3)(*outs))

    def put(self, slot: int, pair: Any) -> None:
        """Fill the row of a slot; None: the adapter has nothing here."""
        self.rows[slot] = 0
        if pair is not None:
            wide = sum(self._outs[j] for j in pair.parts)
            row = [pair.a.data_ptr(), pair.b.data_ptr(), pair.b.shape[1], len(pair.parts), wide, *pair.parts]
            self.rows[slot, : len(row)] = row


def tokens_of(batch: Batch) -> tuple[Tokens, list[np.ndarray[Any, Any]]]:
    """A batch as the kernels read it, and the arrays that must live as long."""
    counts = [s.count for s in batch.segments]
    used = [-(-(s.start + s.count) // PAGE) for s in batch.segments]
    arrays: list[np.ndarray[Any, Any]] = [
        np.array(batch.positions, dtype=np.int64),
        np.array(batch.places, dtype=np.int64),
        np.repeat(np.cumsum([0, *used[:-1]], dtype=np.int64), counts),  # where a token's list of pages begins
        np.array([p for s, u in zip(batch.segments, used, strict=True) for p in s.pages[:u]], dtype=np.int32),
        np.repeat(np.array([s.slot for s in batch.segments], dtype=np.int32), counts),
    ]
    return Tokens(len(batch.ids), *(array.ctypes.data for array in arrays)), arrays


# -- the pass --------------------------------------------------------------------------------------------------------
class NativePass:
    """The pass over all layers in one call; see `node.serving.engine.ops.TorchPass` for what it computes."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: Config,
        weights: Weights,
        rotary: tuple[Tensor, Tensor],
        storage: Storage,
        pool: Pool,
    ) -> None:
        self.name = str(library.instructions)
        self._library, self._config, self._pool = library, config, pool
        self._embedding = weights.embedding
        self._bf16 = weights.embedding.dtype == torch.bfloat16
        self._head = Packed(library, weights.head)
        self._sites = {site.name: SlotTable(pool.slots, site.width, site.outs) for site in sites(config)}
        self._heads = (SiteTable * len(self._sites))(*(table.head for table in self._sites.values()))
        self._kept: list[Any] = [rotary, storage, weights.norm]
        self._layers = (Layer * config.layers)(*(self._layer(n, weights, storage) for n in range(config.layers)))
        self._model = Model(
            layers=config.layers,
            hidden=config.hidden,
            intermediate=config.intermediate,
            pad=PAD,
            heads=Heads(config.heads, config.kv_heads, config.head_dim),
            eps=config.eps,
            rotary=Rotary(*(table.data_ptr() for table in rotary)),
            layer=ctypes.addressof(self._layers),
            sites=ctypes.addressof(self._heads),
            norm=weights.norm.data_ptr(),
        )
        pool.watch(self._activated)
        self._rooms = 0

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states [n, hidden], normed, in the model's dtype; valid until the next call."""
        config, n = self._config, len(batch.ids)
        self._make_room(n)
        x = F.embedding(torch.tensor(batch.ids), self._embedding).float()
        tokens, alive = tokens_of(batch)
        room = Room(x.data_ptr(), self._y.data_ptr(), self._q.data_ptr(), self._h.data_ptr(), self._h.stride(0))
        self._model.adapters = any(s.slot for s in batch.segments)
        self._library.fn_threads(torch.get_num_threads())
        self._library.fn_forward(
            self._bf16, ctypes.addressof(self._model), ctypes.addressof(tokens), ctypes.addressof(room)
        )
        del alive
        return self._h[:n, : config.hidden]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [n, vocabulary] of hidden states."""
        return self._head(hidden)

    def _make_room(self, n: int) -> None:
        if n <= self._rooms:
            return
        config, q = self._config, self._config.heads * self._config.head_dim
        self._rooms = -(-n // TALL) * TALL
        wide = max(config.hidden, q, config.intermediate)
        self._y = torch.empty(self._rooms, max(2 * config.intermediate, q + 2 * config.kv_heads * config.head_dim))
        self._q = torch.empty(self._rooms, q)
        self._h = torch.zeros(self._rooms, -(-wide // PAD) * PAD + PAD, dtype=self._embedding.dtype)

    def _activated(self, slot: int) -> None:
        for name, table in self._sites.items():
            table.put(slot, self._pool.pair(slot, name))

    def _layer(self, number: int, weights: Weights, storage: Storage) -> Layer:
        layer = weights.layers[number]
        packed = {name: Packed(self._library, getattr(layer, name)) for name in ("qkv", "o", "gate_up", "down")}
        bias = None if layer.qkv_bias is None else layer.qkv_bias.float()
        self._kept += [packed, bias, layer.before_attention, layer.before_mlp]
        return Layer(
            before_attention=layer.before_attention.data_ptr(),
            before_mlp=layer.before_mlp.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            keys=storage.keys[number].data_ptr(),
            values=storage.values[number].data_ptr(),
            **{name: matrix.tensor.data_ptr() for name, matrix in packed.items()},
        )
