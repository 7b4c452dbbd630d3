"""Writes a release for other programs, without torch: a PEFT folder, merged weights, or a GGUF adapter.

    peft        adapter_config.json, adapter_model.safetensors     PEFT, vLLM, LoRAX, `fishernet serve`
    merged      the base with the adapter folded in                whatever loads the base
    gguf-lora   adapter.gguf                                       llama.cpp

Beside them `fishernet.json` says where the model comes from, so that `contrib.exported` can check it, and README.md says
it to people. Knows no ledger: the facts come as a `Card`. Invariant: a folder appears whole, by one rename, or not at
all; the same card and vector give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from contrib import folding, gguf_lora, tensorfile
from contrib.adapters import ALL_LINEAR, AdapterSpec, Vector, factors
from contrib.errors import BadAdapter, ExportExists, NoSpace
from contrib.merging import model_digest
from contrib.models import Model, Progress, sync
from contrib.weights import base_digest, tensors
from protocol.canon import Json
from protocol.ids import Digest, short

FORMATS: Final = ("peft", "merged", "gguf-lora")
CARD: Final = "fishernet.json"
ADAPTER: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
VERSION: Final = 1
SIGNATURE: Final = "model.sig"
_CHUNK: Final = 8 << 20

Finish = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Where a model comes from: what `fishernet.json` states beside format and files."""

    cut: Mapping[str, Json]  # the release, whole: its digest is the release digest
    release: Digest
    spec: AdapterSpec
    base_name: str
    base: Digest
    members: tuple[Mapping[str, Json], ...]  # {"id", "name", "organisation", "role", "contributions"}
    certificate: Mapping[str, Json]  # {"attempt", "quorum", "commits": [{"member", "seq", "event"}]}
    ledger: Mapping[str, Json]  # {"member", "size", "head"}: the exporting node's own feed
    licence: str = "other"

    @property
    def model(self) -> str:
        """The digest of the vector, as the cut states it."""
        return str(self.cut["model"])

    @property
    def name(self) -> str:
        """The release's name."""
        return f"release-{self.cut['number']}"

    def to_json(self, format_: str, files: Mapping[str, str], more: Mapping[str, Json]) -> dict[str, Json]:
        """The object of `fishernet.json`."""
        return {
            "v": VERSION,
            "format": format_,
            "name": self.name,
            "release": self.release,
            "number": self.cut["number"],
            "height": self.cut["height"],
            "collective": self.cut["collective"],
            "model": self.model,
            "base": {"name": self.base_name, "digest": self.base},
            "adapter": self.spec.to_json(),
            "members": [dict(member) for member in self.members],
            "certificate": dict(self.certificate),
            "ledger": dict(self.ledger),
            "licence": self.licence,
            "cut": dict(self.cut),
            "files": dict(files),
            **more,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to write. `dtype` is for merged weights (None: the base's own); `force` replaces an earlier export."""

    format: str
    out: Path
    dtype: str | None = None
    force: bool = False


def write(
    wanted: Wanted,
    card: Card,
    base: Model,
    vector: Vector,
    *,
    on_progress: Progress = lambda _stage, _part: None,
    finish: Finish = lambda _folder: None,
) -> dict[str, Json]:
    """Write the folder `wanted.out` and return the object of its `fishernet.json`.

    `finish` is called with the whole folder before it gets its name: a signature is made there.

    Raises:
        ExportExists: something lies there; with `force`, something that is no earlier export.
        BadAdapter: base, spec and vector do not fit together, or the vector is not the one of the cut.
        BadModel: the base cannot be read, or this format cannot hold it.
        NoSpace: the disk is full; nothing is left behind.
        What `finish` raises; nothing is left behind.
    """
    check_free(wanted.out, force=wanted.force)
    if base.digest != card.base or model_digest(vector) != card.model:
        raise BadAdapter("couldn't export: base or vector are not those of the release")
    with _staged(wanted) as folder:
        more: dict[str, Json] = {}
        match wanted.format:
            case "peft":
                _peft(folder, base.path, card, vector)
            case "merged":
                folding.fold(base.path, card.spec, vector, folder, dtype=wanted.dtype, on_progress=on_progress)
                more = {"merged": base_digest(folder, on_progress=lambda part: on_progress("hashing", part))}
            case _:
                about = {"general.name": card.name, "fishernet.release": card.release, "fishernet.base": card.base}
                gguf_lora.write(base.path, card.spec, vector, folder / "adapter.gguf", about=about)
        (folder / "README.md").write_text(_readme(wanted.format, card, more), encoding="utf-8")
        files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
        told = card.to_json(wanted.format, files, more)
        (folder / CARD).write_text(json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        on_progress("finishing", 1.0)
        finish(folder)
    return told


def check_free(out: Path, *, force: bool) -> None:
    """Whether an export may be written at `out` (raises ExportExists)."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ExportExists(f"couldn't export to {out}: something lies there; choose another folder, or pass --force")
    if not (out / CARD).is_file():
        raise ExportExists(f"couldn't export to {out}: what lies there is no earlier export; choose another folder")


@contextlib.contextmanager
def _staged(wanted: Wanted) -> Iterator[Path]:
    """A folder beside the wanted one that takes its place at the end of the block, and leaves nothing if it fails."""
    out = wanted.out.absolute()
    staging = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    old = staging.with_name(staging.name + ".old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        for file in [*staging.iterdir(), staging]:
            sync(file)
        check_free(out, force=wanted.force)
        if out.exists():
            out.rename(old)
        staging.rename(out)
        sync(out.parent)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"couldn't export to {out}: the disk is full; free some space and export again") from e
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# -- peft ------------------------------------------------------------------------------------------------------------
def _peft(folder: Path, base: Path, card: Card, vector: Vector) -> None:
    parts = factors(base, card.spec, vector)
    named: list[tuple[str, Vector]] = []
    for module, a, b in parts:
        named += [(f"{PREFIX}{module}.lora_A.weight", a), (f"{PREFIX}{module}.lora_B.weight", b)]
    plan: tensorfile.Plan = [(name, "F32", values.shape) for name, values in named]
    data = (np.ascontiguousarray(values, dtype="<f4").tobytes() for _, values in named)
    tensorfile.write(folder / ADAPTER, plan, data, metadata={"format": "pt", "fishernet.base": card.base})
    config = {
        "base_model_name_or_path": card.base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": card.spec.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": card.spec.rank,
        "target_modules": targets(base, card.spec, [module for module, _, _ in parts]),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def targets(base: Path, spec: AdapterSpec, modules: list[str]) -> list[str]:
    """Short names of the modules where they mean exactly these of the model, as every loader understands; else the whole.

    PEFT takes `q_proj` for each module that ends so.
    """
    short_names = sorted({module.rpartition(".")[2] for module in modules})
    weights = [name.removesuffix(".weight") for name, t in tensors(base).items() if len(t.shape) == 2]
    meant = [name for name in weights if name.rpartition(".")[2] in short_names]
    if sorted(meant) == sorted(modules):
        return short_names
    return sorted(modules) if ALL_LINEAR in spec.targets else sorted(spec.targets)


# -- words -----------------------------------------------------------------------------------------------------------
_USE: Final[Mapping[str, str]] = {
    "peft": """\
    from peft import PeftModel
    model = PeftModel.from_pretrained(base_model, "THIS FOLDER")

vLLM: `vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules {name}=THIS FOLDER`; LoRAX: `adapter_id` is this
folder, `adapter_source` "local". Without any of them: `fishernet serve "THIS FOLDER"`.""",
    "merged": """\
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")""",
    "gguf-lora": """\
    llama-server -m BASE.gguf --lora adapter.gguf

BASE.gguf must be the same base model; a quantised one gives nearly the same answers.""",
}


def _readme(format_: str, card: Card, more: Mapping[str, Json]) -> str:
    head: dict[str, Any] = {"license": card.licence, "base_model": card.base_name, "tags": ["fishernet", "lora"]}
    if format_ == "peft":
        head["library_name"] = "peft"
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(head.items())), "---"]
    facts = [
        ("release", f"`{card.release}`"),
        ("number, height", f"{card.cut['number']}, {card.cut['height']}"),
        ("collective", f"`{card.cut['collective']}`"),
        ("model", f"`{card.model}` (digest of the adapter's vector)"),
        ("base", f"{_plain(card.base_name)}, `{card.base}`"),
        ("adapter", f"LoRA, rank {card.spec.rank}, alpha {card.spec.alpha}, A drawn from seed `{card.spec.seed}`"),
        ("recipe", f"{_plain(str(card.cut['recipe']))}"),
        ("exported by", f"member `{card.ledger['member']}`, ledger head `{card.ledger['head']}`"),
        ("licence", _plain(card.licence)),
    ]
    if "merged" in more:
        facts.append(("merged", f"`{more['merged']}` (digest of this model as a base model)"))
    body = [f"# {card.name} of collective {short(str(card.cut['collective']))}", ""]
    body += ["Made by several parties from data that stayed with each of them.", "", "| what | value |", "|---|---|"]
    body += [f"| {what} | {value} |" for what, value in facts]
    body += ["", "| member | organisation | contributions |", "|---|---|---|"]
    for member in card.members:
        who = f"{_plain(str(member['name']))} (`{short(str(member['id']))}`)"
        body.append(f"| {who} | {_plain(str(member['organisation']))} | {member['contributions']} |")
    body += ["", _USE[format_].format(rank=card.spec.rank, name=card.name)]
    body += ["", "`fishernet.json` holds the release cut, the voters' commits and the SHA-256 of every file.", ""]
    return "\n".join([*lines, "", *body])


def _plain(text: str) -> str:
    """Text of others, as it may stand in a table."""
    return "".join(c if c.isprintable() and c not in "|`<>[]\\" else " " for c in text)[:200]


def _sha256(file: Path) -> str:
    hashed = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            hashed.update(piece)
    return hashed.hexdigest()
