"""The adapter that all members of an epoch share: LoRA whose A is frozen and drawn from a seed, and whose B is learnt.

With A fixed, the update scale*B*A is linear in B: merging, removing and sparsifying B are exact (FFA-LoRA, arXiv
2403.12313). `layout`, `factors` and `frozen_a` need no torch; `attach` is for a PEFT model;
`load_b` and `read_b` work on one and on `contrib.llama`'s.

Invariant: a flat vector holds B of every module in the order of the modules' names, each [out, rank] row by row, and
the bytes of A depend on seed, module name, rank and width only, on every machine (no library's random generator).
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contrib.errors import BadAdapter
from contrib.weights import tensors
from protocol.canon import Json
from protocol.ids import as_hex

if TYPE_CHECKING:
    import torch

Vector = npt.NDArray[np.float32]

ALL_LINEAR = "all-linear"
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|score)$|embed|(^|\.)(wte|wpe)$")
_PREFIX = "base_model.model."
_DOMAIN = b"fishernet/frozen-a/v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """The shape of an adapter, as the charter states it: scale = alpha / rank, `seed` in 64 hex digits."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    seed: str

    def __post_init__(self) -> None:
        """Refuse what no charter may ask for."""
        if not (1 <= self.rank <= 1024 and 1 <= self.alpha <= 65536):
            raise BadAdapter("couldn't take adapter: rank must be 1 to 1024 and alpha 1 to 65536")
        if not self.targets or not all(re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) for name in self.targets):
            raise BadAdapter("couldn't take adapter: targets must name modules, or be all-linear")
        as_hex(self.seed, "adapter seed")

    @property
    def scale(self) -> float:
        """The factor of B.A in the model's weights."""
        return self.alpha / self.rank

    def to_json(self) -> dict[str, Json]:
        """The form that stands in a charter and in a worker's job."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "seed": self.seed}

    @staticmethod
    def parse(value: object) -> AdapterSpec:
        """Read `to_json`'s form; further keys (the charter's `coordinates`) are left alone.

        Raises:
            BadAdapter: a part is missing or of the wrong type.
        """
        try:
            rank, alpha, targets, seed = (value[key] for key in ("rank", "alpha", "targets", "seed"))  # type: ignore[index]
            if not (type(rank) is type(alpha) is int and isinstance(seed, str) and isinstance(targets, list | tuple)):
                raise TypeError
            return AdapterSpec(rank=rank, alpha=alpha, targets=tuple(str(name) for name in targets), seed=seed)
        except (KeyError, TypeError) as e:
            raise BadAdapter("couldn't take adapter: rank, alpha, targets and seed are expected") from e


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The modules an adapter touches, as (name, width in, width out) sorted by name, and the length of its vector."""

    modules: tuple[tuple[str, int, int], ...]
    coordinates: int


def layout(folder: Path, spec: AdapterSpec) -> Layout:
    """Which modules of the model in `folder` the adapter touches, from the safetensors headers alone.

    Raises:
        BadModel: the folder holds no readable model.
        BadAdapter: a target matches no two-dimensional weight.
    """
    shapes = {name.removesuffix(".weight"): t.shape for name, t in tensors(folder).items() if name.endswith(".weight")}
    return layout_of({name: (shape[1], shape[0]) for name, shape in shapes.items() if len(shape) == 2}, spec)


def layout_of(linears: Mapping[str, tuple[int, int]], spec: AdapterSpec) -> Layout:
    """Which of these modules (name -> width in, width out) the adapter touches.

    Raises:
        BadAdapter: a target matches none of them.
    """
    found = [(name, *linears[name]) for name in sorted(linears) if _is_target(name, spec.targets)]
    _check_targets(spec, [name for name, _, _ in found])
    return Layout(modules=tuple(found), coordinates=sum(out * spec.rank for _, _, out in found))


def frozen_a(seed: str, name: str, rank: int, width: int) -> Vector:
    """The frozen A of one module: [rank, width] of +-1/sqrt(width).

    The signs are the bits, lowest of each byte first, of SHAKE-256("fishernet/frozen-a/v1", a zero byte, the seed's 32
    bytes, rank and width in 4 bytes each big-endian, the module's name in UTF-8); a 1 means plus; row by row.
    """
    source = _DOMAIN + bytes.fromhex(as_hex(seed, "adapter seed")) + rank.to_bytes(4, "big") + width.to_bytes(4, "big")
    stream = hashlib.shake_256(source + name.encode("utf-8")).digest((rank * width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little")[: rank * width]
    entry = np.float32(1.0 / math.sqrt(width))
    return np.where(bits == 1, entry, -entry).astype(np.float32).reshape(rank, width)


def factors(folder: Path, spec: AdapterSpec, vector: Vector) -> list[tuple[str, Vector, Vector]]:
    """Each module's name, A [rank, in] and B [out, rank], without torch; the change of its weight is scale * B.A.

    Raises:
        BadModel: the folder holds no readable model.
        BadAdapter: a target matches nothing, or the vector has another length, or holds infinities or NaN.
    """
    shape = layout(folder, spec)
    if vector.shape != (shape.coordinates,):
        raise BadAdapter(f"couldn't use adapter: {vector.size} coordinates where the model takes {shape.coordinates}")
    if not np.isfinite(vector).all():
        raise BadAdapter("couldn't use adapter: it holds infinities or NaN")
    found, at = [], 0
    for name, wide, out in shape.modules:
        b = vector[at : at + out * spec.rank].reshape(out, spec.rank)
        found.append((name, frozen_a(spec.seed, name, spec.rank, wide), b))
        at += out * spec.rank
    return found


def attach(model: Any, spec: AdapterSpec, *, name: str = "default") -> Any:
    """Put an adapter on a transformers model (or a further one, `name`, on a PEFT model): A from the seed, B zero.

    Only B is left trainable. Returns the PEFT model.

    Raises:
        BadAdapter: a target matches no linear module.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from torch import nn

    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    head = bare.get_output_embeddings()
    found = []
    for path, module in bare.named_modules():
        plain = path.removesuffix(".base_layer")  # of a module that already carries an adapter
        if isinstance(module, nn.Linear) and module is not head and _is_target(plain, spec.targets):
            found.append(plain)
    _check_targets(spec, found)
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=found, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 for a renamed attribute
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            peft = model
        else:
            peft = get_peft_model(model, config, adapter_name=name)
    reset(peft, spec, name=name)
    return peft


def reset(model: Any, spec: AdapterSpec, *, name: str = "default") -> None:
    """Set adapter `name` to its beginning: A from the seed, and frozen; B zero."""
    import torch

    with torch.no_grad():
        for path, part in _parts(model, "lora_A", name):
            part.copy_(torch.from_numpy(frozen_a(spec.seed, path, part.shape[0], part.shape[1])))
            part.requires_grad_(False)
        for _, part in _parts(model, "lora_B", name):
            part.zero_()


def load_b(model: Any, vector: Vector, *, name: str = "default") -> None:
    """Set every B of adapter `name` from a flat vector.

    Raises:
        BadAdapter: the vector has another length, or holds infinities or NaN.
    """
    parts = _parts(model, "lora_B", name)
    expected = sum(part.numel() for _, part in parts)
    if vector.shape != (expected,):
        raise BadAdapter(f"couldn't load adapter: {vector.size} coordinates where the model takes {expected}")
    if not np.isfinite(vector).all():
        raise BadAdapter("couldn't load adapter: it holds infinities or NaN")
    fill([part for _, part in parts], vector)


def fill(parts: Sequence[torch.Tensor], vector: Vector) -> None:
    """Set tensors from one flat vector of as many numbers: what `flatten` undoes."""
    import torch

    flat, at = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32)), 0
    with torch.no_grad():
        for part in parts:
            part.copy_(flat[at : at + part.numel()].view_as(part))
            at += part.numel()


def read_b(model: Any, *, name: str = "default") -> Vector:
    """The flat vector of adapter `name`: what `load_b` takes."""
    return flatten([part for _, part in _parts(model, "lora_B", name)])


def trainable(model: Any, *, name: str = "default") -> list[torch.nn.Parameter]:
    """The B parameters in the order of the flat vector."""
    return [part for _, part in _parts(model, "lora_B", name)]


def modules(model: Any, *, name: str = "default") -> list[tuple[str, int, int]]:
    """The modules of an attached adapter in the form of `Layout.modules`."""
    wide = {path: part.shape[1] for path, part in _parts(model, "lora_A", name)}
    return [(path, wide[path], part.shape[0]) for path, part in _parts(model, "lora_B", name)]


def flatten(parts: list[Any]) -> Vector:
    """Tensors in the order of `trainable` as one float32 vector."""
    flat: list[Vector] = [part.detach().to("cpu", copy=True).float().numpy().reshape(-1) for part in parts]
    return np.concatenate(flat)


def _is_target(path: str, targets: tuple[str, ...]) -> bool:
    if ALL_LINEAR in targets:
        return _HEADS.search(path) is None
    return any(path == target or path.endswith("." + target) for target in targets)


def _check_targets(spec: AdapterSpec, found: list[str]) -> None:
    for target in spec.targets:
        if not any(_is_target(path, (target,)) for path in found):
            raise BadAdapter(f"couldn't place adapter: the model has no linear module named {target}")


def _parts(model: Any, kind: str, name: str) -> list[tuple[str, Any]]:
    ending = f".{kind}.{name}.weight"
    found = [
        (path.removeprefix(_PREFIX).removesuffix(ending), part)
        for path, part in model.named_parameters()
        if path.endswith(ending)
    ]
    if not found:
        raise BadAdapter(f"couldn't find adapter {name}: the model does not carry it")
    return sorted(found, key=lambda pair: pair[0])
