"""Blobs on disk, each named by its SHA-256: put, read back verified, resume half-fetched ones, forget.

    blobs/<digest>        written here only, whole and verified before it gets this name; needs no trust, may be lost
    blobs/<digest>.part   what a fetch has so far; hashed again before it is used (`.map` beside it: see `node.syncing.pieces`)
    blobs/<digest>.bad    what the disk damaged, for whoever looks into that: a few, never read here, erased with the blob
Knows nothing of peers or of what a blob means. Invariant: no bytes get the name of a digest that is not theirs, and what
`read` returns has the digest that was asked for, whatever happened to the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from node.errors_network import BlobCorrupt, BlobMissing, BlobTooLarge, DiskFull
from node.files import room
from node.syncing.pieces import OnePiece, Pieces, count_of
from protocol.ids import Digest, as_hex, digest

READ = 256 * 1024
MAX_PARTS = 32  # half-fetched files kept for resuming
MAX_BAD, MAX_BAD_BYTES = 8, 64 << 20  # damaged files kept, and their bytes together
FRESH_BYTES = 2 << 20  # of blobs that have just come, in memory for whoever reads them next


class BlobStore:
    """The blobs of one home. Methods touch the disk: call the large ones from a thread."""

    def __init__(self, folder: Path) -> None:
        """Open the folder (made when missing) and clear what a crash left behind."""
        self._folder, self._prefix = folder, f"{folder}{os.sep}"
        self._drawn, self._numbers = secrets.token_hex(4), itertools.count()  # for names of temporary files
        self._fresh: dict[Digest, bytes] = {}
        self._fresh_lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        self._bound_damaged()

    def path(self, name: Digest) -> Path:
        """Where the blob lies or would lie.

        Raises:
            Malformed: not a digest.
        """
        return self._folder / as_hex(name, "blob digest")

    def has(self, name: Digest) -> bool:
        """Whether the blob is here."""
        return os.path.isfile(
            f"{self._prefix}{as_hex(name, 'blob digest')}"
        )  # asked all the time: a Path costs five times that

    def size(self, name: Digest) -> int | None:
        """Its bytes; None when it is not here."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def digests(self) -> list[Digest]:
        """Every blob here, ascending."""
        return sorted(Digest(item.name) for item in self._folder.iterdir() if len(item.name) == 64)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._folder

    def listing(self) -> list[tuple[Digest, int, int]]:
        """Every blob here with its bytes and the time (ms since 1970) it came, ascending."""
        found = []
        with os.scandir(self._folder) as items:
            for item in items:
                if len(item.name) == 64:
                    with contextlib.suppress(FileNotFoundError):
                        facts = item.stat()
                        found.append((Digest(item.name), facts.st_size, facts.st_mtime_ns // 1_000_000))
        return sorted(found)

    def put(self, data: bytes) -> Digest:
        """Store `data` under its digest. Law: `read(put(data)) == data`.

        Raises:
            DiskFull: no room; nothing is left behind.
        """
        name = digest(data)
        if self.has(name):
            os.utime(self.path(name))  # it has just come, again
            return name
        self._store(name, data, settle=True)
        return name

    def take(self, name: Digest, data: bytes) -> Path:
        """Store what a peer gave as the blob `name`; it may be lost in a power cut, and is fetched again then.

        Raises:
            BlobCorrupt: the bytes have another digest.
            DiskFull: no room; nothing is left behind.
        """
        if digest(data) != name:
            raise BlobCorrupt(f"couldn't take blob {name[:12]}: the bytes have another digest")
        if not self.has(name):
            self._store(name, data, settle=False)
            self._keep_fresh(name, data)
        return self.path(name)

    def _store(self, name: Digest, data: bytes, *, settle: bool) -> None:
        """Whole and on disk first, then the name. In plain calls: with `Path` they cost as much again as the disk."""
        temporary = f"{self._prefix}.{name}.{self._drawn}{next(self._numbers)}.tmp"
        with room(f"store blob {name[:12]}"):
            try:
                with open(temporary, "xb", buffering=0) as file:
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                os.replace(temporary, f"{self._prefix}{name}")
                if settle:
                    self._settle()
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def _keep_fresh(self, name: Digest, data: bytes) -> None:
        """What a peer gave is checked at once: it need not be read and hashed again for that. The oldest go first."""
        with self._fresh_lock:
            self._fresh[name] = data
            while sum(map(len, self._fresh.values())) > FRESH_BYTES:
                del self._fresh[next(iter(self._fresh))]

    def _take_fresh(self, name: Digest) -> bytes | None:
        with self._fresh_lock:
            return self._fresh.pop(name, None)

    def read(self, name: Digest, max_bytes: int) -> bytes:
        """The blob, verified; one that has just come is given once as it came.

        Raises:
            BlobMissing: it is not here.
            BlobTooLarge: more than `max_bytes`; nothing was read.
            BlobCorrupt: the disk gave other bytes; the file is put aside, so that it is fetched again.
        """
        fresh = self._take_fresh(name)
        if fresh is not None and len(fresh) <= max_bytes and self.has(name):
            return fresh
        path = self.path(name)
        try:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise BlobMissing(f"couldn't read blob {name[:12]}: it is not here") from None
        if len(data) > max_bytes:
            raise BlobTooLarge(f"couldn't read blob {name[:12]}: more than {max_bytes} bytes")
        if digest(data) != name:
            with contextlib.suppress(FileNotFoundError):  # another reader was first
                path.replace(path.with_suffix(".bad"))
            self._bound_damaged()
            raise BlobCorrupt(f"couldn't read blob {name[:12]}: the file is damaged and was put aside")
        return data

    def chunk(self, name: Digest, offset: int, limit: int = READ) -> bytes:
        """Up to `limit` raw bytes from `offset` on, unverified: whoever gets them checks the digest.

        Raises:
            BlobMissing: it is not here.
        """
        try:
            with self.path(name).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            raise BlobMissing(f"couldn't read blob {name[:12]}: it is not here") from None

    def remove(self, name: Digest) -> bool:
        """Forget the blob, what was fetched of it and what was damaged; whether it was here."""
        found = self.has(name)
        self._take_fresh(name)
        self.path(name).unlink(missing_ok=True)
        self.path(name).with_suffix(".bad").unlink(missing_ok=True)
        self._part(name).unlink(missing_ok=True)
        self._part(name).with_suffix(".map").unlink(missing_ok=True)
        return found

    def damaged(self) -> tuple[int, int]:
        """How many damaged files were put aside, and their bytes."""
        sizes = [size for _, size, _ in self._damaged()]
        return len(sizes), sum(sizes)

    def drop_damaged(self) -> None:
        """Remove what was put aside."""
        for _, _, path in self._damaged():
            path.unlink(missing_ok=True)

    def partial(self, name: Digest, size: int) -> Partial:
        """Go on fetching a blob of `size` bytes where an earlier try ended.

        Raises:
            DiskFull, Malformed.
        """
        self._prune(keep=self._part(name))
        with room(f"fetch blob {name[:12]}"):
            return Partial(self, name, size)

    def pieces(self, name: Digest, size: int) -> Pieces | OnePiece:
        """Fetch a blob of `size` bytes in pieces that come in any order, or go on where an earlier try ended.

        Raises:
            DiskFull, Malformed.
        """
        if count_of(size) == 1:
            return OnePiece(self, name, size)
        self._prune(keep=self._part(name))
        with room(f"fetch blob {name[:12]}"):
            return Pieces(self, name, size)

    def _part(self, name: Digest) -> Path:
        path = self.path(name)
        return path.with_name(f"{path.name}.part")

    def _prune(self, keep: Path) -> None:
        parts = sorted((p for p in self._folder.glob("*.part") if p != keep), key=_changed)
        for old in parts[: max(0, len(parts) + 1 - MAX_PARTS)]:
            old.unlink(missing_ok=True)
            old.with_suffix(".map").unlink(missing_ok=True)

    def _damaged(self) -> list[tuple[int, int, Path]]:
        """When they were put aside, bytes, path; the newest first."""
        found = []
        for path in self._folder.glob("*.bad"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                found.append((facts.st_ctime_ns, facts.st_size, path))
        return sorted(found, reverse=True)

    def _bound_damaged(self) -> None:
        total = 0
        for number, (_, size, path) in enumerate(self._damaged(), 1):
            total += size
            if number > MAX_BAD or total > MAX_BAD_BYTES:
                path.unlink(missing_ok=True)

    def _publish(self, temporary: Path, name: Digest, *, settle: bool) -> None:
        """Whole and on disk first, then the name; then the folder, where the name must outlive a power cut (`settle`)."""
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._name(temporary, name, settle=settle)

    def _name(self, temporary: Path, name: Digest, *, settle: bool) -> None:
        temporary.replace(self.path(name))
        if settle:
            self._settle()

    def _settle(self) -> None:
        """From now on the names that were given outlive a power cut."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Partial:
    """A blob on its way: `write` what comes, then `finish`; leaving the block before keeps the part for the next try."""

    def __init__(self, store: BlobStore, name: Digest, size: int) -> None:
        """Hash what an earlier try left; a part that is too long starts anew."""
        self._store, self._name, self._size = store, name, size
        self._path = store._part(name)
        self._hash = hashlib.sha256()
        self.offset = 0
        self._file: BinaryIO = self._path.open("a+b")
        self._file.seek(0)
        while data := self._file.read(READ):
            self._hash.update(data)
            self.offset += len(data)
        if self.offset > size:
            self.restart()

    @property
    def left(self) -> int:
        """Bytes that are still missing."""
        return self._size - self.offset

    def restart(self) -> None:
        """Throw away what there is."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes) -> None:
        """Append what came.

        Raises:
            BlobTooLarge: more than the blob has.
            DiskFull: no room; the part is given up.
        """
        if len(data) > self.left:
            raise BlobTooLarge(f"couldn't fetch blob {self._name[:12]}: more than its {self._size} bytes came")
        try:
            with room(f"fetch blob {self._name[:12]}"):
                self._file.write(data)
                self._file.flush()
        except DiskFull:
            self._path.unlink(missing_ok=True)
            raise
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> Path:
        """Give the blob its name.

        Raises:
            BlobCorrupt: these are not the bytes of the digest; the part is gone.
            BlobMissing: it is not whole yet.
            DiskFull: no room.
        """
        if self.left:
            raise BlobMissing(f"couldn't finish blob {self._name[:12]}: {self.left} bytes are missing")
        if self._hash.hexdigest() != self._name:
            self.restart()
            self._path.unlink(missing_ok=True)
            raise BlobCorrupt(f"couldn't take blob {self._name[:12]}: the bytes have another digest")
        with room(f"store blob {self._name[:12]}"):
            self._store._publish(self._path, self._name, settle=True)
        return self._store.path(self._name)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
