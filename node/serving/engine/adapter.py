"""One adapter version in memory: every A and B it has, in the order the forward pass reads them, in one block.

Made from a flat vector of the collective (A from the charter's seed) or from a PEFT folder. Knows no slots, rows or files
beyond these. The scale alpha / rank stands in B, so applying an adapter is y += B(Ax) (LoRA, arXiv 2106.09685). Versions of
one charter have the same frozen A: it stands in memory once, so each further version costs its B alone.

Invariant: what exists here fits the base model it was made for, is finite, and holds no byte for modules the adapter
leaves alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrib.adapters import AdapterSpec, Vector, frozen_a, layout_of
from contrib.errors import BadAdapter, BadModel
from contrib.merging import model_digest
from contrib.weights import Tensor as TensorAt
from contrib.weights import read_header, read_json
from node.errors_serving import BadVector
from node.serving.engine.model import ModelShape, Site

_MAX_RANK = 1024
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_REFUSED = (
    "use_dora",
    "use_bdlora",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What an adapter adds at one site: `a` [layers, k * rank, in] and `b` [layers, rank, out of the k parts].

    `parts` are the places of the k parts among the site's own; part j reads rows j * rank .. of `a`.
    """

    a: Tensor
    b: Tensor
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostAdapter:
    """An adapter version, ready for a slot. `sites` are views into `blob`, one contiguous block, or have a shared A."""

    digest: str
    rank: int
    sites: Mapping[str, Pair]
    blob: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of its own in memory."""
        return self.blob.numel() * self.blob.element_size()


def from_vector(
    vector: Vector, spec: AdapterSpec, shape: ModelShape, dtype: torch.dtype, *, digest: str | None = None
) -> HostAdapter:
    """The adapter whose B are in `vector` (float32 [coordinates], in the order of `contrib.adapters`).

    Raises:
        BadVector: another length, or not finite.
        BadAdapter: the spec fits no module of the base.
    """
    plan = layout_of({path: (site.width, out) for site in shape.sites for path, out in _paths(site)}, spec)
    if vector.shape != (plan.coordinates,):
        raise BadVector(f"couldn't use vector: it has {vector.size} coordinates, not {plan.coordinates}")
    if not np.isfinite(vector).all():
        raise BadVector("couldn't use vector: it holds infinities or NaN")
    flat, at = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32)), 0
    parts: dict[str, Tensor] = {}
    for path, _, out in plan.modules:
        parts[path] = flat[at : at + out * spec.rank].view(out, spec.rank)
        at += out * spec.rank
    present = _present(shape, frozenset(parts))
    shared = _shared_a(spec, shape, dtype, frozenset(parts))
    blob, sites = _block(shape, present, spec.rank, dtype, shared)
    _fill_b(shape, sites, parts.get, lambda _path: spec.scale)
    return _checked(HostAdapter(digest=digest or model_digest(vector), rank=spec.rank, sites=sites, blob=blob))


def from_peft(folder: Path, shape: ModelShape, dtype: torch.dtype, *, digest: str | None = None) -> HostAdapter:
    """The adapter in a PEFT folder (adapter_config.json and adapter_model.safetensors; a pickle is not read).

    Raises:
        BadAdapter: not LoRA as this engine applies it, another base, another shape, damaged, or not finite.
    """
    try:
        config = read_json(folder / "adapter_config.json")
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise BadAdapter(f"couldn't load adapter: {folder.name} has no adapter_model.safetensors")
        header = read_header(weights)  # checks the length before anything is believed
    except BadModel as e:
        raise BadAdapter(f"couldn't load adapter: {e}") from e
    _check_kind(config)
    matrices, base = _read_matrices(weights, header)
    if shape.base and base and base != shape.base:
        raise BadAdapter(f"couldn't load adapter: it was made for base {base[:12]}..., not {shape.base[:12]}...")
    known = {path: (site.width, out) for site in shape.sites for path, out in _paths(site)}
    modules = sorted({path for path, _ in matrices})
    for path in modules:
        if path not in known:
            raise BadAdapter(
                f"couldn't load adapter: the base has no linear module {path}, or it can't be adapted here"
            )
        _check_shapes(path, matrices.get((path, "A")), matrices.get((path, "B")), *known[path])
    if not modules:
        raise BadAdapter("couldn't load adapter: it adapts no module")
    rank = max(matrices[path, "A"].shape[0] for path in modules)  # smaller ones (rank_pattern) end in zeros

    def scale(path: str) -> float:
        return _scale(config, path, matrices[path, "A"].shape[0]) if (path, "A") in matrices else 1.0

    blob, sites = _block(shape, _present(shape, frozenset(modules)), rank, dtype, None)
    _fill_a(shape, sites, rank, lambda path: matrices.get((path, "A")))
    _fill_b(shape, sites, lambda path: matrices.get((path, "B")), scale)
    return _checked(HostAdapter(digest=digest or _digest_of(config, weights), rank=rank, sites=sites, blob=blob))


Scale = Callable[[str], float]  # of a module's path
Present = Mapping[str, tuple[int, ...]]  # site -> places of its adapted parts


def _present(shape: ModelShape, adapted: frozenset[str]) -> Present:
    def parts(site: Site) -> tuple[int, ...]:
        every = range(site.layers)
        return tuple(j for j, part in enumerate(site.parts) if any(part.format(n) in adapted for n in every))

    return {site.name: parts(site) for site in shape.sites}


def _block(
    shape: ModelShape, present: Present, rank: int, dtype: torch.dtype, shared: Mapping[str, Tensor] | None
) -> tuple[Tensor, dict[str, Pair]]:
    """One block of zeros with room for every B, and for every A that is not shared; and the views into it."""
    sizes: list[tuple[Site, int, int]] = []
    for site in shape.sites:
        if parts := present[site.name]:
            wide_a = 0 if shared else len(parts) * site.width
            sizes.append((site, site.layers * rank * wide_a, site.layers * rank * sum(site.outs[j] for j in parts)))
    total = sum(a + b for _, a, b in sizes)
    blob = torch.zeros(total, dtype=dtype, pin_memory=torch.cuda.is_available())  # copies to a GPU read it directly
    sites: dict[str, Pair] = {}
    at = 0
    for site, in_a, in_b in sizes:
        a = shared[site.name] if shared else blob[at : at + in_a].view(site.layers, -1, site.width)
        b = blob[at + in_a : at + in_a + in_b].view(site.layers, rank, -1)
        sites[site.name] = Pair(a=a, b=b, parts=present[site.name])
        at += in_a + in_b
    return blob, sites


@functools.lru_cache(maxsize=4)
def _shared_a(
    spec: AdapterSpec, shape: ModelShape, dtype: torch.dtype, adapted: frozenset[str]
) -> Mapping[str, Tensor]:
    """The frozen A of a charter at each site, for all its versions."""
    present = _present(shape, adapted)
    only_a = {
        site.name: torch.zeros(site.layers, len(present[site.name]) * spec.rank, site.width, dtype=dtype)
        for site in shape.sites
        if present[site.name]
    }
    width = {path: site.width for site in shape.sites for path, _ in _paths(site)}
    pairs = {name: Pair(a=a, b=a, parts=present[name]) for name, a in only_a.items()}

    def read(path: str) -> Tensor | None:
        return torch.from_numpy(frozen_a(spec.seed, path, spec.rank, width[path])) if path in adapted else None

    _fill_a(shape, pairs, spec.rank, read)
    return only_a


def _fill_a(shape: ModelShape, sites: Mapping[str, Pair], rank: int, read: Callable[[str], Tensor | None]) -> None:
    for site in shape.sites:
        pair = sites.get(site.name)
        for place, j in enumerate(pair.parts if pair else ()):
            if pair:
                found = [read(site.parts[j].format(number)) for number in range(site.layers)]
                _copy(pair.a[:, place * rank : (place + 1) * rank], found)


def _fill_b(shape: ModelShape, sites: Mapping[str, Pair], read: Callable[[str], Tensor | None], scale: Scale) -> None:
    for site in shape.sites:
        pair, column = sites.get(site.name), 0
        for j in pair.parts if pair else ():
            if pair:
                paths = [site.parts[j].format(number) for number in range(site.layers)]
                room = pair.b[:, :, column : column + site.outs[j]].transpose(1, 2)  # [layers, out, rank]
                _copy(room, [read(path) for path in paths], [scale(path) for path in paths])
            column += site.outs[j]


def _copy(room: Tensor, parts: Sequence[Tensor | None], scales: Sequence[float] = (1.0,)) -> None:
    """Scale matrices in float32 into the layers of `room`; those of all layers at once where they are alike."""
    whole = [part for part in parts if part is not None]
    if len(whole) == len(room) and len(set(scales)) == 1 and all(part.shape == room.shape[1:] for part in whole):
        stacked = torch.stack(whole).float()
        scaled = stacked if scales[0] == 1.0 else stacked.mul_(scales[0])
        room.copy_(scaled.to(room.dtype))  # cast first: `room` is transposed, and both at once takes twice as long
        return
    for number, part in enumerate(parts):
        if part is not None:  # of a smaller rank (PEFT's rank_pattern): the rest stays zero
            room[number, : part.shape[0], : part.shape[1]] = part.float() * scales[number % len(scales)]


def _checked(adapter: HostAdapter) -> HostAdapter:
    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(adapter.blob)):  # both are NaN when one number is
        raise BadAdapter("couldn't load adapter: it holds infinities, NaN, or numbers too large for the base's type")
    return adapter


def _paths(site: Site) -> list[tuple[str, int]]:
    return [
        (part.format(number), out)
        for number in range(site.layers)
        for part, out in zip(site.parts, site.outs, strict=True)
    ]


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"couldn't load adapter: its kind is {config.get('peft_type')}, only LORA is applied")
    if found := [name for name in _REFUSED if config.get(name)]:
        raise BadAdapter(f"couldn't load adapter: it uses {', '.join(found)}, which this engine does not apply")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise BadAdapter("couldn't load adapter: it trains biases, which this engine does not apply")
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise BadAdapter(f"couldn't load adapter: rank {rank!r} is not 1 to {_MAX_RANK}")


def _check_shapes(path: str, a: Tensor | None, b: Tensor | None, width: int, out: int) -> None:
    if a is None or b is None:
        raise BadAdapter(f"couldn't load adapter: {path} has only one of A and B")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != width or b.shape[0] != out or a.shape[0] != b.shape[1]:
        raise BadAdapter(
            f"couldn't load adapter: {path} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
            f"where the base takes A (rank, {width}) and B ({out}, rank)"
        )
    if not 1 <= a.shape[0] <= _MAX_RANK:
        raise BadAdapter(f"couldn't load adapter: {path} has rank {a.shape[0]}, not 1 to {_MAX_RANK}")


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):  # as PEFT matches its patterns
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_matrices(weights: Path, header: Sequence[TensorAt]) -> tuple[dict[tuple[str, str], Tensor], str]:
    """All matrices by (module path, "A" or "B"), and the base's digest where the file names it."""
    from safetensors import SafetensorError, safe_open

    matrices: dict[tuple[str, str], Tensor] = {}
    try:
        with safe_open(weights, framework="pt") as opened:
            base = (opened.metadata() or {}).get("fishernet.base", "")
        with weights.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except (SafetensorError, OSError, ValueError) as e:
        raise BadAdapter(f"couldn't load adapter: {weights.name} is damaged: {e}") from e
    for tensor in header:
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            raise BadAdapter(f"couldn't load adapter: tensor {tensor.name} is no A or B of a linear module")
        if tensor.dtype not in _TYPES or not tensor.length:
            raise BadAdapter(f"couldn't load adapter: {tensor.name} has type {tensor.dtype}, or no numbers")
        if tensor.start + tensor.length > len(content):
            raise BadAdapter(f"couldn't load adapter: {weights.name} changed while it was read; try again")
        dtype = _TYPES[tensor.dtype]
        flat = torch.frombuffer(content, dtype=dtype, offset=tensor.start, count=tensor.length // dtype.itemsize)
        matrices[match[1], match[2]] = flat.view(tensor.shape)
    return matrices, base


def _digest_of(config: Mapping[str, Any], weights: Path) -> str:
    state = hashlib.sha256(b"fishernet/peft/v1\0" + json.dumps(config, sort_keys=True).encode())
    state.update(weights.read_bytes())
    return state.hexdigest()
