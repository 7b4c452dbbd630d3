"""A blob on its way in pieces of 256 KiB: they come in any order, from any givers, and outlive a kill or a power cut.

    blobs/<digest>.part   the pieces at their places, holes where nothing came yet
    blobs/<digest>.map    which are there, each with its CRC-32 and who gave it; a line is added after its piece was written
Written here only, needs no trust: when it is opened again every piece is read once, and one whose CRC differs counts as
missing. Knows no peers but their names. Invariant: `finish` gives the name only to the bytes of the digest, and what other
bytes came is kept until the caller says whose fault they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import zlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from node.errors_network import BlobCorrupt, BlobMissing, BlobTooLarge, DiskFull
from node.files import room
from protocol.ids import Digest, PeerId, digest

if TYPE_CHECKING:
    from node.syncing.blobs import BlobStore

PIECE: Final = 256 * 1024
_MAGIC: Final = "fishernet-pieces 1"
_LINE: Final = re.compile(r"(\d{1,9}) ([0-9a-f]{8}) ([0-9A-Za-z]{1,80})\Z")
_LONGEST_LINE: Final = 101


def count_of(size: int) -> int:
    """How many pieces a blob of `size` bytes has; an empty one has one empty piece."""
    return max(1, -(-size // PIECE))


def length_of(index: int, size: int) -> int:
    """The bytes of one piece of a blob of `size` bytes."""
    return min(PIECE, size - index * PIECE)


class OnePiece:
    """A blob of one piece: it is held in memory and touches the disk once, under its name."""

    def __init__(self, store: BlobStore, name: Digest, size: int) -> None:
        """Nothing is here yet."""
        self._store, self.name, self.size = store, name, size
        self._data: bytes | None = None
        self._giver: PeerId | None = None

    def missing(self) -> list[int]:
        """The pieces that have not come."""
        return [0] if self._data is None else []

    def put(self, index: int, data: bytes, giver: PeerId) -> bool:
        """Take the piece; whether it was still missing."""
        if self._data is not None or index:
            return False
        self._data, self._giver = data, giver
        return True

    def givers(self) -> dict[int, PeerId]:
        """Who gave which piece."""
        return {} if self._giver is None else {0: self._giver}

    def drop(self, indexes: list[int]) -> None:
        """Forget these pieces."""
        if indexes:
            self._data = self._giver = None

    def finish(self) -> Path:
        """Give the blob its name (raises BlobCorrupt, BlobMissing, DiskFull)."""
        if self._data is None:
            raise BlobMissing(f"couldn't finish blob {self.name[:12]}: it has not come")
        return self._store.take(self.name, self._data)

    def close(self) -> None:
        """Nothing is open."""


class Pieces:
    """The pieces of one blob of several. Methods touch the disk and may be called from threads, several at a time."""

    def __init__(self, store: BlobStore, name: Digest, size: int) -> None:
        """Take up what an earlier try left; a part of another size starts anew. Use `BlobStore.pieces`."""
        self._store, self.name, self.size = store, name, size
        self._path = store.path(name).with_name(f"{name}.part")
        self._map = self._path.with_suffix(".map")
        self._lock = threading.Lock()
        self._crcs: dict[int, int] = {}
        self._givers: dict[int, PeerId] = {}
        self._rewind()
        claimed = self._read_map()
        if claimed is None:
            self._path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if claimed is None else 0)
        self._notes = os.open(self._map, flags, 0o600)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._open = True
        if claimed is None:
            os.write(self._notes, f"{_MAGIC} {size}\n".encode())
        else:
            os.write(self._notes, b"\n")  # ends a line that a crash cut short
            self._take_up(claimed)

    @property
    def folder(self) -> Path:
        """Where the part lies."""
        return self._path.parent

    @property
    def count(self) -> int:
        """Pieces in all."""
        return count_of(self.size)

    def missing(self) -> list[int]:
        """The pieces that have not come, ascending."""
        return [i for i in range(self.count) if i not in self._crcs]

    def givers(self) -> dict[int, PeerId]:
        """Who gave which piece."""
        return dict(self._givers)

    def put(self, index: int, data: bytes, giver: PeerId, *, again: bool = False) -> bool:
        """Write a piece; whether it was taken: one that is there already stays, unless it came `again` on purpose.

        Raises:
            BlobTooLarge: not a piece of this blob, or not its length.
            DiskFull: no room; all that came is given up.
        """
        if not 0 <= index < self.count or len(data) != length_of(index, self.size):
            raise BlobTooLarge(
                f"couldn't fetch blob {self.name[:12]}: piece {index} of {len(data)} bytes is none of it"
            )
        with self._lock:
            if not self._open or (index in self._crcs and not again):
                return False
            if index < self._hashed:
                self._rewind()
            try:
                with room(f"fetch blob {self.name[:12]}"):
                    _write_at(self._file, data, index * PIECE)
                    crc = zlib.crc32(data)
                    os.write(self._notes, f"{index} {crc:08x} {giver}\n".encode("ascii", "replace"))
            except DiskFull:
                self._discard()
                raise
            self._crcs[index], self._givers[index] = crc, giver
            self._advance(index, data)
            return True

    def read(self, index: int) -> bytes:
        """A piece as it lies on the disk, unverified."""
        return os.pread(self._file, length_of(index, self.size), index * PIECE)

    def damaged(self) -> list[int]:
        """Forget the pieces that the disk does not give back as they came, and name them: nobody else's fault."""
        with self._lock:
            bad = [i for i, known in self._crcs.items() if zlib.crc32(self.read(i)) != known]
            for index in bad:
                del self._crcs[index], self._givers[index]
            if bad:
                self._rewind()
        return bad

    def finish(self) -> Path:
        """Give the blob its name.

        Raises:
            BlobMissing: it is not whole yet.
            BlobCorrupt: these are not the bytes of the digest; every piece stays, for whoever finds the wrong ones.
            DiskFull: no room.
        """
        with self._lock:
            if len(self._crcs) < self.count:
                raise BlobMissing(f"couldn't finish blob {self.name[:12]}: {len(self.missing())} pieces are missing")
            self._advance(-1, b"")
            if self._hash.hexdigest() != self.name:
                raise BlobCorrupt(f"couldn't take blob {self.name[:12]}: the bytes have another digest")
            with room(f"store blob {self.name[:12]}"):
                self._store._publish(self._path, self.name, settle=False)
            self._map.unlink(missing_ok=True)
        return self._store.path(self.name)

    def drop(self, indexes: list[int]) -> None:
        """Forget these pieces: they are asked for again."""
        with self._lock:
            for index in indexes:
                self._crcs.pop(index, None)
                self._givers.pop(index, None)
            self._rewind()

    def discard(self) -> None:
        """Throw away all that came."""
        with self._lock:
            self._discard()

    def close(self) -> None:
        """Let go of the files; what came stays for the next try."""
        with self._lock:
            self._close()

    def __enter__(self) -> Pieces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------
    def _read_map(self) -> dict[int, tuple[int, PeerId]] | None:
        """What the map claims; None when there is nothing to go on with."""
        try:
            with self._map.open("rb") as file:
                text = file.read(2 * self.count * _LONGEST_LINE + 64).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        head, _, rest = text.partition("\n")
        if head != f"{_MAGIC} {self.size}" or not self._path.is_file():
            return None
        found: dict[int, tuple[int, PeerId]] = {}
        for line in rest.split("\n")[:-1]:
            read = _LINE.match(line)
            if read and int(read[1]) < self.count:
                found[int(read[1])] = (int(read[2], 16), PeerId(read[3]))
        return found

    def _take_up(self, claimed: dict[int, tuple[int, PeerId]]) -> None:
        for index in sorted(claimed):
            known, giver = claimed[index]
            data = self.read(index)
            if len(data) == length_of(index, self.size) and zlib.crc32(data) == known:
                self._crcs[index], self._givers[index] = known, giver
                if index == self._hashed:
                    self._advance(index, data)

    def _rewind(self) -> None:
        self._hash, self._hashed = hashlib.sha256(), 0

    def _advance(self, index: int, data: bytes) -> None:
        """Hash on as far as all pieces before are here: the newest from memory, others from the disk."""
        while self._hashed in self._crcs:
            self._hash.update(data if self._hashed == index else self.read(self._hashed))
            self._hashed += 1

    def _discard(self) -> None:
        self._close()
        self._crcs.clear()
        self._givers.clear()
        self._path.unlink(missing_ok=True)
        self._map.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._open:
            self._open = False
            for handle in (self._file, self._notes):
                with contextlib.suppress(OSError):
                    os.close(handle)


def fingerprint(data: bytes) -> Digest:
    """What two givers' versions of a piece are compared by: nobody can make another piece that has it."""
    return digest(data)


def _write_at(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done
