"""Finds out who lied when a blob from several donors is not the blob: one of them is asked for what the others gave.

Its versions of those pieces lie beside the part, in a file without a name, until the digest says whether they are right. Then
whoever gave another version of a piece lied; or else the one who was asked did, for all of it is its word now. Knows no stream
and blames nobody itself. Invariant: what is in the part is overwritten only by pieces that are proven right.
"""

from __future__ import annotations

import hashlib
import os
import tempfile

from node.files import room
from node.syncing.claims import MOST
from node.syncing.pieces import PIECE, Pieces, fingerprint, length_of
from protocol.ids import PeerId


class Settling:
    """One look at one part. Methods that touch the disk may be called from a thread, one at a time."""

    def __init__(self, sink: Pieces) -> None:
        """Open the file beside the part (raises DiskFull)."""
        self._sink = sink
        self._givers = sink.givers()
        with room(f"fetch blob {sink.name[:12]}"):
            self._file = tempfile.TemporaryFile(dir=sink.folder)  # noqa: SIM115 - closed by `close`
        self._other: set[int] = set()

    def runs(self, peer: PeerId) -> list[tuple[int, int]]:
        """The pieces, as runs (first, last + 1), that others than `peer` gave."""
        found: list[tuple[int, int]] = []
        for index in range(self._sink.count):
            if self._givers.get(index) == peer:
                continue
            if found and found[-1][1] == index and index - found[-1][0] < MOST:
                found[-1] = (found[-1][0], index + 1)
            else:
                found.append((index, index + 1))
        return found

    def compare(self, index: int, data: bytes) -> bool:
        """Whether this version of a piece is the one that is here; another one is kept beside it (raises DiskFull)."""
        if fingerprint(data) == fingerprint(self._sink.read(index)):
            return True
        with room(f"fetch blob {self._sink.name[:12]}"):
            self._file.seek(index * PIECE)
            self._file.write(data)
            self._file.flush()
        self._other.add(index)
        return False

    def right(self) -> bool:
        """Whether the blob is the blob with the other versions in it."""
        found = hashlib.sha256()
        for index in range(self._sink.count):
            found.update(self._version(index))
        return found.hexdigest() == self._sink.name

    def contradicted(self) -> set[PeerId]:
        """Who gave a piece of which there is another version."""
        return {self._givers[index] for index in self._other if index in self._givers}

    def adopt(self, peer: PeerId) -> None:
        """Put the other versions, proven right, into the part as given by `peer` (raises DiskFull)."""
        for index in sorted(self._other):
            self._sink.put(index, self._version(index), peer, again=True)
        self._other.clear()

    def restart(self) -> None:
        """Forget the other versions: whoever gave them did not give them all."""
        self._other.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _version(self, index: int) -> bytes:
        if index not in self._other:
            return self._sink.read(index)
        return os.pread(self._file.fileno(), length_of(index, self._sink.size), index * PIECE)
