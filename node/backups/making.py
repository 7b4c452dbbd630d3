"""Makes a backup of a home beside the running daemon: SQLite's online backup of ledger and rows, and the small files.

Needs no key, no daemon and no lock. The ledger is copied before the rows, so that rows may only be newer than what it commits
to: new ones are committed to at the next start, and forgotten ones are gone already. Left out, as a start makes them again: runs
and views; a run that was finished and not published is trained again. Invariant: a copy that does not check is no backup.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path

from ledger.errors import StoreBroken
from ledger.schema import guard
from ledger.store import Store
from node.backups import archive
from node.backups.archive import FILES, KEYS, Manifest
from node.errors import BackupError
from node.files import room
from node.home import Home
from node.keys import identity, keybackup
from protocol.ids import CollectiveId

_COPIED = ("ledger.db", "rows.db", "rows-withheld.db")


def make(home: Home, out: Path, *, passphrase: str | None, blobs: bool) -> Manifest:
    """Write a backup of `home` to `out`: with all keys under `passphrase` if there is one, with the blobs if wanted.

    Raises:
        BackupError: `out` exists, or a copy is damaged. DiskFull: no room; nothing is left.
        IdentityError: a key file cannot be read.
    """
    if out.exists():
        raise BackupError(f"couldn't back up to {out}: the file exists and is never overwritten")
    with room("make backup"), tempfile.TemporaryDirectory(prefix=".fishernet-", dir=out.absolute().parent) as folder:
        copies, files = Path(folder), dict[str, Path]()
        for name in FILES:
            if (home.path / name).exists():
                files[name] = home.path / name
                if name in _COPIED:
                    files[name] = copies / name
                    _copy(home.path / name, copies / name)
                else:  # it may be replaced while we read it
                    files[name] = copies / name
                    files[name].parent.mkdir(exist_ok=True)
                    files[name].write_bytes((home.path / name).read_bytes())
        if passphrase is not None:
            files[KEYS] = copies / KEYS
            files[KEYS].write_bytes(keybackup.seal(home, passphrase))
        if blobs:
            files |= {f"blobs/{f.name}": f for f in sorted(home.blobs.iterdir()) if len(f.name) == 64}
        manifest = _manifest(home, files)
        archive.write(out.absolute(), manifest, files, passphrase)
        return manifest


def _manifest(home: Home, files: dict[str, Path]) -> Manifest:
    config, member = home.read_config(), identity.member_of(home)
    collective = CollectiveId(config.node.collective) if config.node.collective else None
    own_size = 0
    if collective is not None:
        with Store.open(files["ledger.db"], writer=False) as store:
            head = store.head(collective, member)
            own_size = head.size if head else 0
    return Manifest(
        member=member,
        collective=collective,
        name=config.node.name,
        made=time.time_ns() // 1_000_000,
        own_size=own_size,
        versions={"fishernet": metadata.version("fishernet"), "python": sys.version.split()[0]},
        listen=config.network.listen,
        files={name: archive.entry(path) for name, path in files.items()},
    )


def _copy(source: Path, target: Path) -> None:
    """One consistent state of a database that somebody may be writing to, checked."""
    address = f"{source.absolute().as_uri()}?mode=ro"
    with (
        guard(f"copy {source.name}"),
        closing(sqlite3.connect(address, uri=True, timeout=10)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        found = new.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreBroken(f"couldn't back up {source.name}: it is damaged ({found}); see fishernet doctor")
