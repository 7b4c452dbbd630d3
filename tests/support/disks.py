"""Real small disks: one that gets full, one that turns read-only under open files. Needs the right to mount, else skips.

The mounts live in a mount namespace of this test process alone and vanish with it, however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

_NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
_PAGE: Final = 4096


@functools.cache
def _refusal() -> str:
    """Why nothing can be mounted here; "" once this process has mounts of its own."""
    if not hasattr(ctypes.CDLL(None), "unshare") or os.geteuid() != 0:
        return "mounting small disks needs Linux and root"
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        return f"this process may not have mounts of its own: {os.strerror(ctypes.get_errno())}"
    return _tried("mount", "--make-rprivate", "/")


def _tried(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"mounting is refused: {done.stderr.strip()}"


class Disk:
    """A mounted file system of a few megabytes."""

    def __init__(self, path: Path, *mount: str) -> None:
        self.path = path
        path.mkdir()
        if reason := _refusal() or _tried("mount", *mount, str(path)):
            pytest.skip(reason)

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` pages of 4096 bytes."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_PAGE))
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
            file.truncate(file.tell() - leave * _PAGE)

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def fail(self) -> None:
        """What the kernel does with a disk that it no longer trusts: read-only, files that are open for writing included."""
        assert _tried("mount", "-o", "remount,abort", str(self.path)) == ""

    def close(self) -> None:
        _tried("umount", "--lazy", str(self.path))


def small(folder: Path, megabytes: int) -> Disk:
    return Disk(folder / "disk", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs")


def failing(folder: Path, megabytes: int) -> Disk:
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no program here makes a file system")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    return Disk(folder / "disk", "-o", "loop,errors=remount-ro", str(image))
