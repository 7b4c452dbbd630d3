"""Writes an adapter as the GGUF file that llama.cpp takes with --lora.

The conventions are those of llama.cpp's convert_lora_to_gguf.py: `general.type` "adapter", `adapter.type` "lora", alpha as
the adapter has it (llama.cpp divides by the rank), `<tensor>.lora_a` [rank, in] and `<tensor>.lora_b` [out, rank] in
float32, and for Llama-like models the rows of q and k in llama.cpp's order of the rotary pairs. Knows no release.
Invariant: `read` gives back what `write` was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from contrib.adapters import AdapterSpec, Vector, factors
from contrib.errors import WrongModel
from contrib.weights import read_json

_ARCHITECTURES: Final[Mapping[str, tuple[str, bool]]] = {  # model_type -> GGUF name, whether q and k rows are permuted
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
_HEADS: Final[Mapping[str, str]] = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def write(base: Path, spec: AdapterSpec, vector: Vector, file: Path, *, about: Mapping[str, str]) -> None:
    """Write the adapter of `vector` (float32 [coordinates]) for the model in `base`; `about` goes in as metadata.

    Raises:
        WrongModel: llama.cpp's conventions for this kind of model are not known here.
        BadModel, BadAdapter: base and vector do not fit together.
    """
    import gguf

    config = read_json(base / "config.json")
    kind, permutes = _architecture(config)
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, _count(config, "num_hidden_layers"))
    writer = gguf.GGUFWriter(file, kind)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(spec.alpha))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, text in about.items():
        writer.add_string(key, text)
    for module, a, b in factors(base, spec, vector):
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise WrongModel(f"couldn't export {module} as GGUF: llama.cpp has no name for it")
        heads = _HEADS.get(module.rpartition(".")[2])
        rows = _paired(b, _count(config, heads)) if permutes and heads is not None else b
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(file: Path, base: Path) -> tuple[float, dict[str, tuple[Vector, Vector]]]:
    """Alpha, and by llama.cpp's tensor name A [rank, in] and B [out, rank] with its rows in the base's order again.

    Raises:
        WrongModel: as `write`.
    """
    import gguf

    config = read_json(base / "config.json")
    _, permutes = _architecture(config)
    reader = gguf.GGUFReader(file)
    alpha = float(reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents())
    found = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    parts: dict[str, tuple[Vector, Vector]] = {}
    for name, a in found.items():
        if name.endswith(".lora_a"):
            plain = name.removesuffix(".lora_a")
            b = found[f"{plain}.lora_b"]
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(plain.split(".")[-2])
            parts[plain] = (a, _halved(b, _count(config, heads)) if permutes and heads else b)
    return alpha, parts


def _architecture(config: Mapping[str, object]) -> tuple[str, bool]:
    found = _ARCHITECTURES.get(str(config.get("model_type")))
    if found is None:
        known = ", ".join(_ARCHITECTURES)
        raise WrongModel(f"couldn't export as GGUF: model type {config.get('model_type')!r} is not one of {known}")
    return found


def _count(config: Mapping[str, object], key: str) -> int:
    value = config.get(key, config.get("num_attention_heads"))
    if not isinstance(value, int) or value < 1:
        raise WrongModel(f"couldn't export as GGUF: the model's configuration has no {key}")
    return value


def _paired(b: Vector, heads: int) -> Vector:
    """Rows from halves (x_0.., y_0..) to rotary pairs (x_0, y_0, x_1, ..) inside each head."""
    return b.reshape(heads, 2, len(b) // heads // 2, -1).swapaxes(1, 2).reshape(b.shape)


def _halved(b: Vector, heads: int) -> Vector:
    """The inverse of `_paired`."""
    return b.reshape(heads, len(b) // heads // 2, 2, -1).swapaxes(1, 2).reshape(b.shape)
