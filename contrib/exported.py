"""Reads an exported PEFT folder back and checks it against its card, without ledger or torch.

What is shown: the files are those of the card; the card's cut has the release digest; the adapter's B is the model that
the cut names and its A is the one that the seed gives. What is not: that a quorum decided the cut. That stands in the
members' feeds; a folder by itself can only be signed by somebody (`model.sig`). Nothing in it is ever executed.

Invariant: what `read` returns has the digests it says it has.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from contrib import tensorfile
from contrib.adapters import AdapterSpec, Vector, frozen_a
from contrib.errors import BadAdapter, BadExport, CorruptModel
from contrib.exporting import ADAPTER, CARD, PREFIX, VERSION
from contrib.merging import model_digest
from contrib.weights import Tensor, read_header
from protocol.canon import Json
from protocol.errors import Malformed
from protocol.ids import Digest, as_hex, digest_of

MAX_CARD: Final = 8 << 20
_CHUNK: Final = 8 << 20
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """One checked release in a folder. `vector` is float32 [coordinates]: B of `modules`, (name, width in, width out)."""

    folder: Path
    release: Digest
    number: int
    collective: str
    model: Digest
    base: Digest
    base_name: str
    spec: AdapterSpec
    head: str  # the exporting node's ledger head
    modules: tuple[tuple[str, int, int], ...]
    vector: Vector


def is_export(folder: Path) -> bool:
    """Whether an export lies in the folder; it may be a damaged one."""
    return (folder / CARD).is_file()


def read(folder: Path) -> Exported:
    """Read and check the PEFT export in `folder`.

    Raises:
        BadExport: it is none, or not what its card says; the message names what differs.
    """
    card = _card(folder)
    if card.get("v") != VERSION or card.get("format") != "peft":
        found = f"version {card.get('v')!r} of format {card.get('format')!r}"
        raise BadExport(f"couldn't use {folder}: it is {found}, where an export with --format peft is expected")
    try:
        cut, base, ledger = _object(card, "cut"), _object(card, "base"), _object(card, "ledger")
        release = Digest(as_hex(card.get("release"), "release"))
        model, spec = Digest(as_hex(cut.get("model"), "model")), AdapterSpec.parse(card.get("adapter"))
        number, collective = cut.get("number"), as_hex(cut.get("collective"), "collective")
        base_digest, head = Digest(as_hex(base.get("digest"), "base")), as_hex(ledger.get("head"), "head")
        same = digest_of(cut) == release
    except (Malformed, BadAdapter, BadExport) as e:
        raise BadExport(f"couldn't use {folder}: its {CARD} is not one that we write: {e}") from e
    if not same or card.get("model") != model or type(number) is not int or card.get("number") != number:
        raise BadExport(f"couldn't use {folder}: its {CARD} contradicts itself: the cut is not release {release[:12]}")
    _check_files(folder, _object(card, "files"))
    try:
        modules, vector = _adapter(folder, spec)
    except CorruptModel as e:
        raise BadExport(str(e)) from e
    if model_digest(vector) != model:
        raise BadExport(f"couldn't use {folder}: its adapter is not model {model[:12]} of the release")
    return Exported(
        folder=folder,
        release=release,
        number=number,
        collective=collective,
        model=model,
        base=base_digest,
        base_name=str(base.get("name"))[:200],
        spec=spec,
        head=head,
        modules=modules,
        vector=vector,
    )


def _card(folder: Path) -> dict[str, Json]:
    try:
        with (folder / CARD).open("rb") as file:
            data = file.read(MAX_CARD + 1)
        value = json.loads(data) if len(data) <= MAX_CARD else None
    except FileNotFoundError:
        raise BadExport(f"couldn't use {folder}: it has no {CARD}; make one with: fishernet export") from None
    except OSError as e:
        raise BadExport(f"couldn't read {folder / CARD}: {e.strerror}") from e
    except (ValueError, RecursionError):
        raise BadExport(f"couldn't read {folder / CARD}: it is not JSON") from None
    if not isinstance(value, dict):
        raise BadExport(f"couldn't read {folder / CARD}: an object of at most {MAX_CARD} bytes is expected")
    return value


def _object(card: dict[str, Json], key: str) -> dict[str, Json]:
    value = card.get(key)
    if not isinstance(value, dict):
        raise BadExport(f"{key} is missing")
    return value


def _check_files(folder: Path, files: dict[str, Json]) -> None:
    if ADAPTER not in files:
        raise BadExport(f"couldn't use {folder}: its {CARD} names no {ADAPTER}")
    for name, said in files.items():
        if Path(name).name != name:
            raise BadExport(f"couldn't use {folder}: {name[:80]!r} is not the name of a file in it")
        hashed = hashlib.sha256()
        try:
            with (folder / name).open("rb") as file:
                while piece := file.read(_CHUNK):
                    hashed.update(piece)
        except OSError as e:
            raise BadExport(f"couldn't read {folder / name}: {e.strerror}") from e
        if hashed.hexdigest() != said:
            raise BadExport(f"couldn't use {folder}: {name} was changed after the export; export it again")


def _adapter(folder: Path, spec: AdapterSpec) -> tuple[tuple[tuple[str, int, int], ...], Vector]:
    """The modules and the flat vector of the adapter file; its A must be the one of the seed."""
    found = {tensor.name: tensor for tensor in read_header(folder / ADAPTER)}
    names = sorted(n.removeprefix(PREFIX).removesuffix(_B) for n in found if n.endswith(_B))
    if not names or set(found) != {f"{PREFIX}{name}{end}" for name in names for end in (_A, _B)}:
        raise BadExport(f"couldn't use {folder}: {ADAPTER} holds other tensors than A and B of each module")
    modules, parts = [], []
    for name in names:
        a, b = found[f"{PREFIX}{name}{_A}"], found[f"{PREFIX}{name}{_B}"]
        if not (_fits(a, 0, spec.rank) and _fits(b, 1, spec.rank)):
            raise BadExport(f"couldn't use {folder}: {name} is not of rank {spec.rank} in float32")
        wide, out = a.shape[1], b.shape[0]
        if tensorfile.read_floats(a).tobytes() != frozen_a(spec.seed, name, spec.rank, wide).tobytes():
            raise BadExport(f"couldn't use {folder}: A of {name} is not the one that the seed gives")
        modules.append((name, wide, out))
        parts.append(tensorfile.read_floats(b).reshape(-1))
    vector = np.concatenate(parts)
    if not np.isfinite(vector).all():
        raise BadExport(f"couldn't use {folder}: the adapter holds infinities or NaN")
    return tuple(modules), vector


def _fits(tensor: Tensor, axis: int, rank: int) -> bool:
    return tensor.dtype == "F32" and len(tensor.shape) == 2 and tensor.shape[axis] == rank
