"""Network namespaces by name: making processes run in one, finding who runs there, and removing what a killed test left.

Names begin with `fnlab-PID-START-`: the process that made them and when it started, so that only those whose maker is gone are
swept. Knows no hosts and links (see `namespaces`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

MADE = Path("/run/netns")
PREFIX = "fnlab"
_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def sweep() -> list[str]:
    """Remove the namespaces, and processes in them, of tests that were killed; their names."""
    left = [name for name in existing() if not lives(name)]
    remove(left)
    return left


def existing() -> list[str]:
    return sorted(p.name for p in MADE.glob(f"{PREFIX}-*")) if MADE.is_dir() else []


def lives(namespace: str) -> bool:
    """Whether the process that made a namespace still runs."""
    _, pid, began, *_ = namespace.split("-")
    return start_of(int(pid)) == began


def own_prefix() -> str:
    return f"{PREFIX}-{os.getpid()}-{start_of(os.getpid())}"


def start_of(pid: int) -> str:
    """When a process started, in ticks of this boot; "" when there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def remove(namespaces: Sequence[str]) -> None:
    """End every process in these namespaces, then delete them."""
    deadline = time.monotonic() + 10
    while pids := [pid for name in namespaces for pid in pids_in(name) if pid != os.getpid()]:
        assert time.monotonic() < deadline, f"these processes don't end: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in namespaces:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def pids_in(namespace: str) -> list[int]:
    """Processes in a namespace that are more than a line in their parent's book."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def inside(namespace: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={MADE / namespace}")


def tied() -> tuple[str, ...]:
    """Words that make a process die with the thread that started it."""
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


def enter(namespace: int) -> None:
    if _libc.setns(namespace, _NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"couldn't enter a network namespace: {os.strerror(number)}")


def run(command: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"couldn't run {' '.join(command)}: {done.stderr.strip()[:400]}\n{text or ''}")
