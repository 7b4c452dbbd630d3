"""Writing a file so that a crash leaves the old bytes or the new: temporary name, fsync, rename, fsync of folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from node.errors_network import DiskFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def room(verb: str) -> Iterator[None]:
    """Say it when the disk is full: `couldn't <verb>: ...` (raises DiskFull; other errors pass)."""
    try:
        yield
    except OSError as e:
        if e.errno not in _FULL:
            raise
        cause = "the disk is full" if e.errno == errno.ENOSPC else e.strerror
        raise DiskFull(f"couldn't {verb}: {cause}", hint="free some space; nothing was lost") from None


@contextlib.contextmanager
def writing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file that becomes `path`, with exactly `mode` from the first byte on, when the block ends; replaces what is there.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind then, nor when the block raises.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, as `writing` does (raises what it raises)."""
    with writing(path, mode=mode) as file:
        file.write(data)
