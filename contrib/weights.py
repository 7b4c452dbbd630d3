"""Reads what a model folder holds, without torch: safetensors headers, and the digest that names a base model.

Knows nothing of networks, caches or training. Invariant: nothing is believed before it is checked against the file's
length, and only safetensors are read, never a pickle. The digest covers what decides a model's behaviour: every tensor
(name, dtype, shape, bytes), config, tokenizer and chat template, not how tensors are spread over files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from contrib.errors import CorruptModel, UnsafeModel, WrongModel
from protocol.canon import Json
from protocol.ids import Digest, digest_of

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MAX_TEXT_BYTES = 256 << 20
_CHUNK = 8 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
# Keys that say who saved the model and how it is loaded, not what it computes.
_VOLATILE = frozenset({"transformers_version", "dtype", "torch_dtype", "use_cache"})

Watch = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Where one tensor lies: `length` bytes at `start` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    length: int


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the model in `folder` by name, from the headers alone.

    Raises:
        WrongModel: no model lies there.
        UnsafeModel: the weights come as pickle only.
        CorruptModel: a file is truncated, a header is wrong, or the shard index does not fit the shards.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            raise CorruptModel(f"couldn't read {index}: it has no weight_map")
        names = sorted(set(weight_map.values()))
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise CorruptModel(f"couldn't read {index}: a shard's name is not a safetensors file beside it")
    elif (folder / "model.safetensors").is_file():
        weight_map, names = None, ["model.safetensors"]
    else:
        raise _no_weights(folder)
    found: dict[str, Tensor] = {}
    for name in names:
        for tensor in read_header(folder / name):
            if tensor.name in found:
                raise CorruptModel(f"couldn't read {folder / name}: tensor {tensor.name} stands in two shards")
            found[tensor.name] = tensor
    if weight_map is not None and set(weight_map) != set(found):
        raise CorruptModel(f"couldn't read {index}: it names other tensors than the shards hold")
    return found


def read_header(file: Path) -> list[Tensor]:
    """The tensors of one safetensors file; the header must account for every byte of it.

    Raises:
        CorruptModel: truncated, or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CorruptModel(f"couldn't read {file}: truncated, or not a safetensors file; fetch it again")
            raw = stream.read(length)
    except OSError as e:
        raise CorruptModel(f"couldn't read {file}: {e.strerror}") from e
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        found = [_tensor(file, 8 + length, name, entry) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CorruptModel(f"couldn't read {file}: its header is not one of safetensors") from e
    at = 8 + length
    for tensor in sorted(found, key=lambda t: (t.start, t.length)):
        if tensor.start != at:
            raise CorruptModel(f"couldn't read {file}: the tensors overlap or leave holes")
        at += tensor.length
    if at != size:
        raise CorruptModel(f"couldn't read {file}: {size} bytes where the header tells {at}; fetch it again")
    return found


def base_digest(folder: Path, *, on_progress: Watch = lambda _: None) -> Digest:
    """The digest that names a base model: SHA-256 of a canonical manifest of tensors, config, tokenizer and template.

    Raises:
        BadModel: as `tensors`, or config or tokenizer are missing or unreadable.
    """
    found = tensors(folder)
    total, done = sum(tensor.length for tensor in found.values()) or 1, 0
    rows: list[list[str | list[int]]] = []
    for name in sorted(found):
        tensor = found[name]
        rows.append([name, tensor.dtype, list(tensor.shape), _hash_range(tensor)])
        done += tensor.length
        on_progress(done / total)
    template = folder / "chat_template.jinja"
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    text = template.read_text("utf-8") if template.is_file() else settings.get("chat_template")
    manifest: Json = {
        "v": 1,
        "tensors": rows,
        "config": _hash_value(_lasting(read_json(folder / "config.json"))),
        "tokenizer": _hash_value({**read_json(folder / "tokenizer.json"), "truncation": None, "padding": None}),
        "chat_template": _hash_value(text),
    }
    return digest_of(manifest, max_bytes=MAX_TEXT_BYTES)


def read_json(file: Path) -> dict[str, object]:
    """The object in a JSON file of a model folder.

    Raises:
        WrongModel: there is no such file.
        CorruptModel: it does not hold a JSON object.
    """
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise CorruptModel(f"couldn't read {file}: over {MAX_TEXT_BYTES >> 20} MiB of JSON")
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise WrongModel(f"couldn't use the model in {file.parent}: no {file.name}{_advice(file.name)}") from None
    except OSError as e:
        raise CorruptModel(f"couldn't read {file}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise CorruptModel(f"couldn't read {file}: not JSON; fetch it again") from e
    if not isinstance(value, dict):
        raise CorruptModel(f"couldn't read {file}: a JSON object is expected")
    return value


def _tensor(file: Path, data_start: int, name: str, entry: Mapping[str, object]) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise TypeError
    if not all(isinstance(n, int) and n >= 0 for n in [*shape, *offsets]):
        raise TypeError
    length = offsets[1] - offsets[0]
    if length * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), file=file, start=data_start + offsets[0], length=length)


def _hash_range(tensor: Tensor) -> str:
    hashed, left = hashlib.sha256(), tensor.length
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            while left:
                piece = stream.read(min(left, _CHUNK))
                if not piece:
                    raise CorruptModel(f"couldn't read {tensor.file}: truncated; fetch it again")
                hashed.update(piece)
                left -= len(piece)
    except OSError as e:
        raise CorruptModel(f"couldn't read {tensor.file}: {os.strerror(e.errno or 0)}") from e
    return hashed.hexdigest()


def _lasting(value: object) -> object:
    # Without what only tells who saved the model; floats in six digits, for a saver may or may not widen a float32.
    if isinstance(value, Mapping):
        kept = {str(key): _lasting(part) for key, part in value.items() if part is not None}
        return {key: part for key, part in kept.items() if key not in _VOLATILE and not key.startswith("_")}
    if isinstance(value, list):
        return [_lasting(part) for part in value]
    return f"{value:.6g}" if isinstance(value, float) else value


def _hash_value(value: object) -> str:
    # Not `canon`: model configs hold floats. Sorted keys and Python's shortest float text are the same everywhere.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _no_weights(folder: Path) -> WrongModel | UnsafeModel:
    if not folder.is_dir():
        return WrongModel(f"couldn't use the model in {folder}: there is no such folder")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        return UnsafeModel(
            f"couldn't use the model in {folder}: its weights are in {pickles[0]}, which can run code when it is read; "
            "load it where you trust it and call save_pretrained(..., safe_serialization=True)"
        )
    return WrongModel(f"couldn't use the model in {folder}: it has no model.safetensors")


def _advice(name: str) -> str:
    if name == "tokenizer.json":
        return "; make it with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return ""
