"""Room laid out ahead in SQLite's write-ahead log, so that a commit overwrites blocks which the file has already.

An `fdatasync` that lengthened the file waits for its new length too, which was half of a small commit (benchmarks/RESULTS.md).
So zeros are written behind the log's frames before they are needed. SQLite takes for a frame only what carries its salts and
checksum (https://sqlite.org/fileformat2.html#walformat), which zeros never do: after a crash the log ends before them.
Knows nothing of what is logged. Invariant: no byte that SQLite wrote is touched, as zeros go behind the end of the file only,
while we hold SQLite's write lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

PAGES: Final = 4000  # after so many the log is merged into the database, and used again from its start
_HEADER: Final = 32  # of the log
_FRAME: Final = 24 + 4096
_LEAST: Final = 1 << 18  # bytes laid out at a time: at first as many as there are
_MOST: Final = 1 << 20  # room for about 250 small commits, laid out in 1 to 3 ms
_NEAR: Final = 16  # frames before the end at which more is laid out
_WHOLE: Final = _HEADER + PAGES * _FRAME
_BLANK: Final = bytes(4)  # a frame begins with the number of its page, which is never 0


class LogRoom:
    """Keeps room in the log of the database at `path`, which `connection` alone writes. Not for use by two threads at once."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Open the log; nothing is laid out before the first `ensure`."""
        self._connection = connection
        self._file = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        # Where a frame begins that was blank when it was laid out; None when there is nothing more to do.
        self._mark: int | None = 0

    def ensure(self) -> None:
        """Lay out more when the end is near. Without room on the disk the log stays as it is: a commit says so, if it must.

        Call it outside a transaction. Raises sqlite3.Error when another program holds SQLite's write lock for too long.
        """
        if self._mark is None or os.pread(self._file, len(_BLANK), self._mark) == _BLANK:
            return
        self._connection.execute("BEGIN IMMEDIATE")  # keeps other programs from writing to the log, and from cutting it
        try:
            self._lay_out(os.fstat(self._file).st_size)
        finally:
            self._connection.execute("ROLLBACK")

    def cut(self) -> None:
        """Say that the log was truncated."""
        self._mark = 0

    def close(self) -> None:
        """Close the file; calling twice is harmless. The zeros go with the log when the last connection closes."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lay_out(self, size: int) -> None:
        """Zeros from `size`, the end of the file, on."""
        self._mark = None
        more = min(max(size, _LEAST), _MOST, _WHOLE - size)
        if more <= 0:
            return
        try:
            written = os.pwrite(self._file, bytes(more), size)
            os.fsync(self._file)
        except OSError:
            written = 0
        if written < more:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
        elif size + more < _WHOLE:
            self._mark = _HEADER + ((size + more - _HEADER) // _FRAME - _NEAR) * _FRAME
