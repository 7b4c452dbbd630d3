"""The form of a backup: one tar file of `manifest.json`, then the files that it names, each with its size and SHA-256.

    manifest.json   who, when, how long the own feed was, which files; authenticated by `seal.json` when there are keys
    keys.sealed     every key file under a passphrase (`node.keys.keybackup`), if wanted
    ledger.db rows.db node.toml served.json run/addresses.json run/bans.json blobs/<digest>
    seal.json       HMAC-SHA-256 of the manifest under the same passphrase
Everything is hostile until it is checked: names are from a fixed list, sizes are bounded by the manifest, a file counts once its
digest is right. Without a passphrase the file is trusted as the home itself is: whoever may write it may write the node.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import BackupError
from node.keys import pkcs8
from protocol.ids import CollectiveId, MemberId

MANIFEST: Final = "manifest.json"
KEYS: Final = "keys.sealed"
SEAL: Final = "seal.json"
FILES: Final = (
    "ledger.db",
    "rows.db",
    "rows-withheld.db",
    "node.toml",
    "served.json",
    "run/addresses.json",
    "run/bans.json",
)
_BLOB: Final = re.compile(r"blobs/[0-9a-f]{64}\Z")
_KIND: Final = "fishernet-backup/1"
_MAX_MANIFEST: Final = 32 << 20
_MAX_SMALL: Final = 1 << 20
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a backup."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup is: `made` in ms since 1970, `own_size` entries of the member's feed, `listen` where the node listened."""

    member: MemberId
    collective: CollectiveId | None
    name: str
    made: int
    own_size: int
    versions: Mapping[str, str]
    listen: tuple[str, ...]
    files: Mapping[str, Entry]

    def to_bytes(self) -> bytes:
        """The manifest as it stands in the file."""
        return json.dumps({"kind": _KIND, **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"


def parse(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BackupError: it is none of ours, or names what no backup holds.
    """
    try:
        value = json.loads(data)
        if value.pop("kind") != _KIND:
            raise BackupError("couldn't read backup: it was made by another version")
        files = {
            str(name): Entry(size=_count(e["size"]), sha256=_hex(e["sha256"])) for name, e in value["files"].items()
        }
        found = Manifest(
            member=MemberId(_hex(value["member"])),
            collective=None if value["collective"] is None else CollectiveId(_hex(value["collective"])),
            name=str(value["name"])[:64],
            made=_count(value["made"]),
            own_size=_count(value["own_size"]),
            versions={str(k)[:64]: str(v)[:64] for k, v in value["versions"].items()},
            listen=tuple(str(each)[:256] for each in value["listen"][:16]),
            files=files,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BackupError("couldn't read backup: its manifest is damaged") from None
    for name in files:
        if name not in {*FILES, KEYS} and not _BLOB.match(name):
            raise BackupError(f"couldn't read backup: it names {name[:60]!r}, which is no file of a home")
    if "node.toml" not in files or "ledger.db" not in files:
        raise BackupError("couldn't read backup: ledger or configuration is missing")
    return found


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError("no count")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.match(value):
        raise ValueError("no digest")
    return value


# -- writing -----------------------------------------------------------------------------------------------------------
def write(out: Path, manifest: Manifest, files: Mapping[str, Path], passphrase: str | None) -> None:
    """Write a backup of `files` to `out` (mode 0600); it is there whole or not at all.

    Raises:
        OSError: no room, or not writable; nothing is left.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _put(tar, MANIFEST, manifest.to_bytes())
                for name in manifest.files:
                    with files[name].open("rb") as file:
                        tar.addfile(_info(name, manifest.files[name].size), file)
                if passphrase:
                    _put(tar, SEAL, _seal(manifest.to_bytes(), passphrase, os.urandom(16)))
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def entry(path: Path) -> Entry:
    """Size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(size=file.tell(), sha256=digest)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_info(name, len(data)), io.BytesIO(data))


def _seal(manifest: bytes, passphrase: str, salt: bytes) -> bytes:
    mac = hmac.new(pkcs8.stretch(passphrase, salt), _KIND.encode() + manifest, "sha256")
    return json.dumps({"salt": salt.hex(), "mac": mac.hexdigest()}).encode()


# -- reading -----------------------------------------------------------------------------------------------------------
def look(file: Path) -> Manifest:
    """The manifest of a backup; nothing else is read (raises BackupError)."""
    with _opened(file) as tar:
        return parse(_first(tar))


def unpack(file: Path, into: Path, passphrase: str | None) -> Manifest:
    """Write the files of a backup into the empty folder `into`, each checked; returns the manifest.

    Raises:
        BackupError: not a backup, damaged, or changed by somebody without the passphrase.
        OSError: no room.
    """
    with _opened(file) as tar:
        data = _first(tar)
        manifest = parse(data)
        seal, missing = b"", dict(manifest.files)
        while (info := tar.next()) is not None:
            if info.name == SEAL and info.isreg() and info.size <= _MAX_SMALL:
                seal = _content(tar, info).read(info.size)
                continue
            wanted = missing.pop(info.name, None)
            if wanted is None or not info.isreg() or info.size != wanted.size:
                raise BackupError(f"couldn't read backup: {info.name[:60]!r} is not what the manifest says")
            _take(_content(tar, info), into / info.name, wanted, info.name)
    if missing:
        raise BackupError(f"couldn't read backup: {min(missing)} is missing; the file was cut off")
    if KEYS in manifest.files and passphrase is not None:
        _check_seal(data, seal, passphrase)
    return manifest


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, mode="r:") as tar:
            yield tar
    except tarfile.TarError as e:
        raise BackupError(f"couldn't read backup {file}: {e}") from None


def _first(tar: tarfile.TarFile) -> bytes:
    info = tar.next()
    if info is None or info.name != MANIFEST or not info.isreg() or info.size > _MAX_MANIFEST:
        raise BackupError("couldn't read backup: it does not begin with a manifest")
    return bytes(_content(tar, info).read(info.size))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    content = tar.extractfile(info)
    if content is None:
        raise BackupError(f"couldn't read backup: {info.name[:60]!r} is no file")
    return content


def _take(source: Any, path: Path, wanted: Entry, name: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), wanted.size
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while left and (chunk := source.read(min(_CHUNK, left))):
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
        out.flush()
        os.fsync(out.fileno())
    if left or digest.hexdigest() != wanted.sha256:
        raise BackupError(f"couldn't read backup: {name} is damaged", hint="use another copy of the backup")


def _check_seal(manifest: bytes, seal: bytes, passphrase: str) -> None:
    try:
        value = json.loads(seal)
        salt, mac = bytes.fromhex(value["salt"]), str(value["mac"])
    except (ValueError, KeyError, TypeError):
        raise BackupError("couldn't read backup: its seal is missing or damaged") from None
    if not hmac.compare_digest(mac, json.loads(_seal(manifest, passphrase, salt))["mac"]):
        raise BackupError("couldn't open backup: wrong passphrase, or somebody has changed the file")
