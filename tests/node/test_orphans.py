"""Promise: p2pd does not outlive the daemon, whatever the daemon dies of and whenever, with `setpriv` and without."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from peers import Home, config_of

from node.network.swarm import Swarm
from node.network.tied import tied

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")

MOMENTS_S = (0.0, 0.02, 0.05, 0.1, 0.2, None)  # after the start began; None: once it is up


def daemons(run_dir: Path) -> list[int]:
    """Processes that have to do with these sockets: p2pd, and what becomes it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(run_dir) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def until_gone(run_dir: Path) -> float:
    began = time.monotonic()
    while left := daemons(run_dir):
        assert time.monotonic() - began < 60, f"left behind: {left}"
        time.sleep(0.01)
    return time.monotonic() - began


def doomed(folder: Path, run_dir: Path, moment: float | None, way: str, pathless: bool) -> None:
    """A daemon that dies in some way at some moment."""
    if pathless:
        os.environ["PATH"] = str(folder)
    home = Home(folder, "a")

    def die():
        if way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif way == "segv":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        os._exit(3)

    async def live():
        swarm = Swarm(config_of(home, run_dir))
        task = asyncio.create_task(swarm.run())
        if moment is None:
            await swarm.ready.wait()
        else:
            await asyncio.sleep(moment)
        die()
        await task

    if way == "thread":  # the loop, and with it the fork of p2pd, lives in a thread that is not the first
        loop = threading.Thread(target=asyncio.run, args=(live(),))
        loop.start()
        loop.join()
    asyncio.run(live())


@pytest.fixture
def run_dir():
    folder = Path(tempfile.mkdtemp(prefix="fn-o"))
    yield folder
    for left in folder.glob("*"):
        left.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("way", "pathless"),
    [("kill", False), ("kill", True), ("exit", False), ("thread", False), ("segv", True)],
    ids=["kill", "kill-without-setpriv", "exit", "thread", "segv-without-setpriv"],
)
def test_p2pd_ends_with_the_daemon(tmp_path, run_dir, way, pathless):
    fork, slowest = multiprocessing.get_context("fork"), 0.0
    moments = MOMENTS_S if way == "kill" else MOMENTS_S[3:4]
    for n, moment in enumerate(moments):
        (tmp_path / str(n)).mkdir()
        daemon = fork.Process(target=doomed, args=(tmp_path / str(n), run_dir, moment, way, pathless))
        daemon.start()
        daemon.join(60)
        assert daemon.exitcode not in (None, 0, 1)  # it died as it should, not of a fault of the test
        slowest = max(slowest, until_gone(run_dir))
    print(f"{way}: p2pd gone {slowest * 1000:.0f} ms after the daemon at the latest, {len(moments)} moments")


def test_a_child_whose_parent_died_before_the_signal_was_set_does_not_start(tmp_path, monkeypatch):
    made = tmp_path / "made"
    for path in (os.environ["PATH"], str(tmp_path)):
        monkeypatch.setenv("PATH", path)
        command = tied(["/usr/bin/touch", str(made)])
        stranger = str(os.getpid() + 1)  # who is not its parent
        orphaned = [stranger if part == str(os.getpid()) else part for part in command]
        assert orphaned != command
        assert subprocess.run(orphaned).returncode != 0
        assert not made.exists()
        assert subprocess.run(command).returncode == 0
        made.unlink()
