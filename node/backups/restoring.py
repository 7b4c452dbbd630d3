"""Puts a backup back: into a new home, or into one of the same member that is damaged or is to go back.

Everything is unpacked and checked in a folder of its own first; then files change places, what was there is kept aside. Without
`replace`, whatever is here and whole stays: a feed only grows, so the ledger that goes further is the better one. An older ledger
is safe too, since every start asks the others for the head of the own feed before it writes. A running node is given the folder
and takes it at its next start. Invariant: a refused or interrupted restore leaves the home as it was; keys are never overwritten.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ledger.schema import ProcessLock
from ledger.store import Store
from node import config
from node.backups import archive
from node.backups.archive import KEYS, Manifest
from node.errors import BackupError, ConfigError
from node.files import room, write_new
from node.home import Home
from node.keys import identity, keybackup
from protocol.canon import Json
from protocol.errors import FishernetError

log = logging.getLogger("fishernet.restoring")
_STAGED: Final = "restore"  # in the home: a checked backup that the next start takes
_PLAN: Final = "plan.json"
_PROBE_S: Final = 1.0
_GREETING: Final = b"/multistream/1.0.0\n"


@dataclass(slots=True, kw_only=True)
class Restored:
    """What became of each file, and what the operator has to know."""

    member: str
    made: int
    own_size: int
    taken: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # name -> why
    aside: str = ""  # the folder with what was there before
    waits: bool = False  # for the restart of a running node
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        """For `cli.backup`."""
        return {
            "member": self.member,
            "made": self.made,
            "own_size": self.own_size,
            "taken": list(self.taken),
            "kept": dict(self.kept),
            "aside": self.aside,
            "waits": self.waits,
            "warnings": list(self.warnings),
        }


def restore(file: Path, path: Path, *, passphrase: str | None, replace: bool, running: bool) -> Restored:
    """Put the backup `file` into the home at `path`, which is made if there is none.

    With `replace` its files are taken also where whole ones are here. `running`: a daemon works there; the files wait in the
    home for its next start, and `Restored.waits` says so if there are any.

    Raises:
        BackupError: not a backup, damaged, of another member, or the folder holds something else.
        WrongPassphrase, IdentityError: its keys cannot be opened.
        HomeBusy, StoreLocked: a command or a daemon works on the home.
        DiskFull: no room; the home is as it was.
    """
    path = path.expanduser().absolute()
    there = (path / "node.toml").is_file()
    if not there and path.exists() and any(path.iterdir()):
        raise BackupError(
            f"couldn't restore into {path}: no node lives there, and it is not empty", hint="name another --home"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with room("restore backup"), tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        fresh = Path(folder)
        manifest = archive.unpack(file, fresh, passphrase)
        keys = _keys(fresh, manifest, passphrase)
        _check(fresh, manifest)
        done = Restored(member=manifest.member, made=manifest.made, own_size=manifest.own_size)
        done.warnings += _warnings(manifest, here=there, running=running, keys=bool(keys))
        if not there:
            _new(path, fresh, manifest, keys, done)
            return done
        home = Home.open(path)
        mine = identity.member_of(home)
        if mine != manifest.member:
            raise BackupError(
                f"couldn't restore: the backup is of member {manifest.member[:12]}, this home of {mine[:12]}",
                hint="restore into a directory of its own: --home DIR",
            )
        names = _wanted(home, manifest, replace, done)
        if names and running:
            _stage(home, fresh, names)
            done.waits, done.taken = True, names
        elif names:
            with home.lock():
                _stage(home, fresh, names)  # so that the next start ends what is interrupted here
                took = take_staged(home)
            if took is not None:
                done.taken, done.aside = took.taken, took.aside
        return done


def take_staged(home: Home) -> Restored | None:
    """Take what a restore left for this start, if anything; the caller holds the home's lock."""
    folder = home.path / _STAGED
    try:
        names = [str(name) for name in json.loads((folder / _PLAN).read_bytes())]
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)  # it was cut short before it was whole
        return None
    done = Restored(member=identity.member_of(home), made=0, own_size=0)
    _swap(home, folder, [name for name in names if (folder / name).is_file()], done)
    shutil.rmtree(folder, ignore_errors=True)
    log.warning("event=restored files=%s aside=%s", ",".join(done.taken), Path(done.aside).name or "-")
    return done


# -- what is in it -------------------------------------------------------------------------------------------------------
def _keys(fresh: Path, manifest: Manifest, passphrase: str | None) -> dict[str, bytes]:
    if KEYS not in manifest.files or passphrase is None:
        return {}
    return keybackup.open_((fresh / KEYS).read_bytes(), passphrase)


def _check(fresh: Path, manifest: Manifest) -> None:
    """See that the copies are what they are to be: a configuration, and whole databases with the feed that is named."""
    config.load(fresh / "node.toml")
    for name in ("ledger.db", "rows.db"):
        if name in manifest.files and (damage := _damage(fresh / name)):
            raise BackupError(f"couldn't read backup: {name} is damaged ({damage})")
    if _own_size(fresh / "ledger.db", manifest) != manifest.own_size:
        raise BackupError("couldn't read backup: its ledger holds another feed than the manifest says")


def _damage(path: Path) -> str:
    """What is wrong with a database; "" when it is whole."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as e:
        return str(e)
    return "" if found == "ok" else found


def _own_size(ledger: Path, manifest: Manifest) -> int:
    if manifest.collective is None:
        return 0
    with Store.open(ledger, writer=False) as store:
        head = store.head(manifest.collective, manifest.member)
        return head.size if head else 0


def _warnings(manifest: Manifest, *, here: bool, running: bool, keys: bool) -> list[str]:
    """What may go wrong after this restore, said before it does."""
    said = []
    if not (here or keys):
        said.append(
            "the backup has no keys (or no passphrase was given): fishernet key restore FILE before the first start"
        )
    answering = [] if running else [address for address in manifest.listen if _answers(address)]
    if answering:
        said.append(
            f"a node answers at {answering[0]}, where the node of this backup listened: stop it before you start this one. "
            "Two nodes with one key fork their feed, and a forked feed is frozen for ever"
        )
    elif not here:
        said.append(
            "make sure that the node this backup was made of never runs again: two nodes with one key fork their feed"
        )
    return said


def _answers(listen: str) -> bool:
    """Whether a libp2p node greets us at an address of the backup (its own machine, when it listened everywhere)."""
    parts = listen.split("/")
    if len(parts) != 5 or parts[1] not in {"ip4", "ip6", "dns", "dns4", "dns6"} or not parts[4].isdigit():
        return False
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts[2], parts[2])  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((host, int(parts[4])), timeout=_PROBE_S) as probe:
            probe.settimeout(_PROBE_S)
            return _GREETING in probe.recv(64)
    except (OSError, ValueError, OverflowError):
        return False


# -- putting it in its place ---------------------------------------------------------------------------------------------
def _new(path: Path, fresh: Path, manifest: Manifest, keys: dict[str, bytes], done: Restored) -> None:
    """A home of its own; node.toml comes last, as its presence says that the home is whole."""
    path.mkdir(mode=0o700, exist_ok=True)
    home = Home(path=path)
    try:
        for folder in (home.keys, home.blobs, home.runs, home.views, home.run):
            folder.mkdir(mode=0o700, exist_ok=True)
        if keys:
            keybackup.restore(home, keys)
            if identity.member_of(home) != manifest.member:
                raise BackupError("couldn't restore: the keys in the backup are those of another member")
            done.taken.append("keys")
        for name in sorted(set(manifest.files) - {KEYS}, key=lambda n: n == "node.toml"):
            (fresh / name).replace(path / name)
            done.taken.append(name)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _wanted(home: Home, manifest: Manifest, replace: bool, done: Restored) -> list[str]:
    """The files to take; why each other one stays is noted."""
    names = []
    for name in sorted(set(manifest.files) - {KEYS}):
        why = "" if replace and not name.startswith("blobs/") else _better(home, manifest, name)
        if why:
            if not name.startswith("blobs/"):
                done.kept[name] = why
        else:
            names.append(name)
    if KEYS in manifest.files:
        done.kept["keys"] = "keys of a home are never overwritten"
    return names


def _better(home: Home, manifest: Manifest, name: str) -> str:
    """Why the file that is here should stay; "" when the one of the backup should take its place."""
    path = home.path / name
    if not path.exists():
        return ""
    if name.endswith(".db") and _damage(path):
        return ""
    if name == "ledger.db":
        try:
            held = _own_size(path, manifest)
        except FishernetError:
            return ""
        return "" if held < manifest.own_size else f"whole, and goes as far or further ({held} entries of our own)"
    if name == "node.toml":
        try:
            home.read_config()
        except ConfigError:
            return ""
    return "here and whole"


def _stage(home: Home, fresh: Path, names: list[str]) -> None:
    folder = home.path / _STAGED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name in names:
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (fresh / name).replace(folder / name)
    write_new(folder / _PLAN, json.dumps(names).encode(), mode=0o600)  # last: now it is whole


def _swap(home: Home, source: Path, names: list[str], done: Restored) -> None:
    """Put files in place and those that were there aside, databases with their logs."""
    lock = ProcessLock(home.ledger_db.with_name(home.ledger_db.name + ".lock"))
    aside = home.path / f"replaced-{time.time_ns() // 1_000_000}"
    try:
        for name in names:
            path = home.path / name
            for old in (path, *(Path(f"{path}{rest}") for rest in ("-wal", "-shm") if name.endswith(".db"))):
                if old.exists():
                    kept = aside / old.relative_to(home.path)
                    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    old.replace(kept)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            (source / name).replace(path)
            done.taken.append(name)
    finally:
        lock.release()
    if aside.exists():
        done.aside = str(aside)
