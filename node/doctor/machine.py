"""Checks of the machine: disk, memory, processor, SQLite, installed packages, and on request the package index.

Each takes what it looks at and returns findings; nothing is changed but a file of a few bytes that is written and removed.
Knows no collective.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Final

from ledger.schema import sqlite_warning
from node.doctor.finding import Finding, fail, ok, warn

_LOW: Final = (1 << 30, 5 << 30)  # bytes free: fail, warn
_SLOW_FSYNC_S: Final = 0.1
_MEMORY: Final = 1 << 30
_INDEX_S: Final = 4.0
_LOCK: Final = Path(__file__).parents[2] / "requirements.lock"


def disk(home: Path) -> list[Finding]:
    """Room, and what a durable write costs (every entry of the ledger is one)."""
    free, gib = shutil.disk_usage(home).free, 1 << 30
    cure = f"df -h {home}; fishernet storage show"
    text = f"{free / gib:.1f} GiB free"
    found = [
        fail("disk", text, cure) if free < _LOW[0] else warn("disk", text, cure) if free < _LOW[1] else ok("disk", text)
    ]
    probe = home / f".doctor-{os.getpid()}"
    try:
        began = time.perf_counter()
        with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"fishernet")
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
    except OSError as e:
        return [
            *found,
            fail("disk write", f"couldn't write into {home}: {e.strerror}", f"mount | grep {home}; ls -ld {home}"),
        ]
    finally:
        probe.unlink(missing_ok=True)
    text = f"a durable write takes {1000 * seconds:.1f} ms"
    slow = "each entry of the ledger waits for one: a local SSD is better than a network file system"
    return [
        *found,
        warn("disk write", f"{text}; {slow}", f"df -T {home}") if seconds > _SLOW_FSYNC_S else ok("disk write", text),
    ]


def sqlite() -> list[Finding]:
    """The library that keeps the ledger."""
    import sqlite3

    said = sqlite_warning()
    text = f"SQLite {sqlite3.sqlite_version}"
    return [warn("sqlite", said, "use a Python with SQLite 3.51.3 or later")] if said else [ok("sqlite", text)]


def processor(info: Path = Path("/proc/cpuinfo")) -> list[Finding]:
    """What the processor's instructions mean for torch."""
    try:
        flags = set(next(line for line in info.read_text().splitlines() if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return [warn("processor", f"{platform.machine()}: its instructions are not known here", "lscpu")]
    if "amx_bf16" in flags:
        return [ok("processor", "AMX and AVX-512: bfloat16 is fastest (serve.precision = bfloat16)")]
    if "avx512_bf16" in flags:
        return [ok("processor", "AVX-512 with bfloat16: bfloat16 is about twice as fast as float32")]
    if "avx512f" in flags:
        return [ok("processor", "AVX-512 without bfloat16: float32 is fast, bfloat16 is emulated")]
    if "avx2" in flags:
        return [ok("processor", "AVX2: training and answers work, at half of what AVX-512 gives or less")]
    return [
        warn(
            "processor",
            "neither AVX2 nor AVX-512: torch is many times slower here",
            "fishernet config set train.auto false",
        )
    ]


def memory(info: Path = Path("/proc/meminfo")) -> list[Finding]:
    """What is left of it."""
    try:
        pairs = dict(re.findall(r"^(\w+):\s+(\d+) kB", info.read_text(), flags=re.MULTILINE))
        free, whole = int(pairs["MemAvailable"]) * 1024, int(pairs["MemTotal"]) * 1024
    except (OSError, KeyError, ValueError):
        return [warn("memory", "not known here", "free -h")]
    text = f"{free / (1 << 30):.1f} of {whole / (1 << 30):.1f} GiB available"
    return [warn("memory", text, "free -h; ps aux --sort=-rss | head") if free < _MEMORY else ok("memory", text)]


def packages(lock: Path = _LOCK) -> list[Finding]:
    """Whether what is installed is what was tested."""
    if not lock.is_file():
        return [ok("packages", f"fishernet {metadata.version('fishernet')}, Python {platform.python_version()}")]
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", lock.read_text(), flags=re.MULTILINE))
    other = []
    for name, version in pinned.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
        if found.split("+")[0] != version.split("+")[0]:
            other.append(f"{name} {found} instead of {version}")
    if not other:
        return [ok("packages", f"{len(pinned)} pinned versions, Python {platform.python_version()}")]
    text = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
    return [warn("packages", f"not the tested versions: {text}", f"{sys.executable} -m pip install -r {lock}")]


def index() -> list[Finding]:
    """Whether pip, as it is configured here, reaches its package index (base models come from there)."""
    asked = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--timeout", "2", "--retries", "0"]
    try:
        done = subprocess.run(
            [*asked, "index", "versions", "pip"],
            capture_output=True,
            text=True,
            timeout=_INDEX_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return [warn("package index", f"no answer within {_INDEX_S:.0f} s", f"{sys.executable} -m pip config list")]
    if done.returncode == 0:
        return [ok("package index", "pip reaches it")]
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip failed")
    return [warn("package index", f"pip doesn't reach it: {last[:200]}", f"{sys.executable} -m pip config list")]
