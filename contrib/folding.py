"""Folds an adapter into its base: W + scale * B.A for every module it touches, every other tensor as it is.

Without torch, one tensor in memory at a time; the shards of the base stay as they are cut. Knows no release. Law: with a
zero vector and the base's own types every tensor has the base's bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np

from contrib import tensorfile
from contrib.adapters import AdapterSpec, Vector, factors
from contrib.errors import WrongModel
from contrib.models import Progress
from contrib.weights import Tensor, read_header, read_json, tensors

DTYPES: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_CHUNK: Final = 8 << 20
COMPANIONS: Final = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt",
)  # fmt: skip


def fold(
    base: Path,
    spec: AdapterSpec,
    vector: Vector,
    out: Path,
    *,
    dtype: str | None = None,
    on_progress: Progress = lambda _stage, _part: None,
) -> None:
    """Write the merged model into the folder `out`: weights, configuration, tokenizer.

    Args:
        base: the base model's folder.
        spec: the adapter's shape.
        vector: float32 [coordinates], B of every module.
        out: an empty folder.
        dtype: of all float tensors: float32, bfloat16 or float16; None: each as in the base.
        on_progress: told after each tensor.

    Raises:
        BadModel: the base cannot be read, or holds a type that cannot be merged.
        BadAdapter: vector and base do not fit together.
    """
    found = tensors(base)
    parts = {module: (a, b) for module, a, b in factors(base, spec, vector)}
    total, done = sum(t.length for t in found.values()) or 1, 0
    for file, group in groupby(sorted(found.values(), key=lambda t: (t.file.name, t.start)), key=lambda t: t.file):
        shard = list(group)
        plan = [(t.name, _type(t, dtype, t.name.removesuffix(".weight") in parts), t.shape) for t in shard]

        def data(shard: list[Tensor] = shard, plan: tensorfile.Plan = plan) -> Iterator[bytes]:
            nonlocal done
            for tensor, (_, kind, _) in zip(shard, plan, strict=True):
                factor = parts.get(tensor.name.removesuffix(".weight"))
                if factor is not None:
                    a, b = factor
                    change = np.float32(spec.scale) * (b @ a)  # [out, in]
                    yield tensorfile.to_bytes(tensorfile.read_floats(tensor) + change, kind)
                elif kind != tensor.dtype:
                    yield tensorfile.to_bytes(tensorfile.read_floats(tensor), kind)
                else:
                    yield from _raw(tensor)
                done += tensor.length
                on_progress("merging", done / total)

        tensorfile.write(out / file.name, plan, data(), metadata={"format": "pt"})
    _companions(base, found, out, dtype)


def _companions(base: Path, found: Mapping[str, Tensor], out: Path, dtype: str | None) -> None:
    if (base / "model.safetensors.index.json").is_file():
        size = sum(t.length for file in out.glob("*.safetensors") for t in read_header(file))
        weight_map = {name: tensor.file.name for name, tensor in sorted(found.items())}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    config = read_json(base / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)


def _type(tensor: Tensor, dtype: str | None, touched: bool) -> str:
    if tensor.dtype in tensorfile.FLOATS:
        return DTYPES[dtype] if dtype is not None else tensor.dtype
    if touched:
        raise WrongModel(
            f"couldn't merge into tensor {tensor.name}: its type is {tensor.dtype}; export as peft instead"
        )
    return tensor.dtype


def _raw(tensor: Tensor) -> Iterator[bytes]:
    left = tensor.length
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                return  # `tensorfile.write` counts
            left -= len(piece)
            yield piece
