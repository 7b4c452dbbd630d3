"""A fleet of swarm nodes on this machine's loopback: founding, starting, ordering about, and what they cost.

Every node is a process of `swarm_node.py` with its own p2pd. The processes share this machine's cores with nobody but this
one, which sleeps while it measures. Invariant: when the block has ended no process of the fleet is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from contrib import updates
from ledger import charter as charters
from ledger import charter_reading, events
from ledger.charter import Charter, collective_id
from ledger.store import Store
from node import config
from node.collective.charters import PRESETS
from node.collective.seat import Seat
from node.demo.nodes import free_ports
from node.home import Home
from protocol.ids import digest

COORDINATES = 1 << 18
BLOB = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process had used up at one moment: CPU seconds, resident bytes, open files, threads."""

    cpu: float
    rss: int
    files: int
    threads: int


class Node:
    """One home, and its process while the fleet runs."""

    def __init__(self, home: Home, port: int) -> None:
        identity = home.unlock(None)
        self.home, self.port, self.member, self.peer = home, port, identity.member, identity.peer
        self.key = identity.key
        self.p2pd = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{self.peer}"

    @property
    def process(self) -> subprocess.Popen[str]:
        """Its process (raises RuntimeError when it does not run)."""
        if self._process is None:
            raise RuntimeError(f"couldn't use {self.home.path.name}: it does not run")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Start the process; it answers `status` when it listens to orders."""
        program = [sys.executable, str(Path(__file__).with_name("swarm_node.py")), str(self.home.path)]
        tie = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*tie, *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    @property
    def log(self) -> Path:
        return self.home.path.with_suffix(".log")

    def send(self, do: str, **order: Any) -> None:
        """Give an order; `answer` must be called for each."""
        print(json.dumps({"do": do, **order}), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """What it says to the oldest order that was not answered yet."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.home.path.name} ended:\n{self.log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)

    def ask(self, do: str, **order: Any) -> Any:
        """One order and its answer."""
        self.send(do, **order)
        return self.answer()

    def costs(self) -> tuple[Cost, Cost]:
        """Of its Python process and of its p2pd."""
        return cost_of(self.pid), cost_of(self.p2pd)

    def stop(self) -> None:
        """End it: its stdin closes, and what does not go by itself is killed."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(5)
        self._process = None


class Fleet:
    """A collective of `count` nodes, all running and all connected, for the length of a `with` block."""

    def __init__(self, count: int, *, log_level: str = "INFO") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fn-swarm-"))
        os.environ["SWARM_LOG"] = log_level
        ports = free_ports(count)
        self.nodes = [self._make(n, port) for n, port in enumerate(ports)]
        self._found()

    def _make(self, n: int, port: int) -> Node:
        name = f"n{n:02d}"
        home = Home.init(self._folder / name, passphrase=None, toml=config.template(name=name))
        for key, value in (("listen", [f"/ip4/127.0.0.1/tcp/{port}"]), ("peers", [])):
            config.update(home.config_file, "network", key, value)
        return Node(home, port)

    def _found(self) -> None:
        charter = charter_of(self.nodes)
        first, *others = self.nodes
        for node in self.nodes:
            config.update(node.home.config_file, "node", "collective", collective_id(charter))
        for node in others:
            config.update(node.home.config_file, "network", "peers", [first.address])
        with Store.open(first.home.ledger_db) as store:
            seat = Seat(first.home, first.member, store, collective_id(charter), key=first.key)
            seat.append(events.Genesis(charter=charter.to_json()))

    def __enter__(self) -> Fleet:
        try:
            for node in self.nodes:
                node.start()
            self.wait(self._together, 180, "all nodes are connected and hold each other's first entries")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def all(self, do: str, **order: Any) -> list[Any]:
        """The same order to all of them at once; their answers."""
        for node in self.nodes:
            node.send(do, **order)
        return [node.answer() for node in self.nodes]

    def wait(self, holds: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait for something; a fleet that does not get there ends the measurement."""
        deadline = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {limit_s:.0f} s: {what}: {self.all('status')}")
            time.sleep(0.2)

    def costs(self) -> list[tuple[Cost, Cost]]:
        """What each node's Python and p2pd have used so far; a p2pd that was healed counts from its birth."""
        for node, status in zip(self.nodes, self.all("status"), strict=True):
            node.p2pd = status["p2pd"]
        return [node.costs() for node in self.nodes]

    def _together(self) -> bool:
        found = self.all("status")
        others = len(self.nodes) - 1
        whole = {node.member for node in self.nodes}
        return all(f["peers"] >= others and f["bound"] >= len(whole) and f["sizes"] == found[0]["sizes"] for f in found)

    def settled(self) -> bool:
        """Whether nobody waits for anything and all hold the same feeds."""
        found = self.all("status")
        return all(not f["waiting"] and f["sizes"] == found[0]["sizes"] for f in found)


def charter_of(nodes: Sequence[Node]) -> Charter:
    """A charter in which all of them contribute; updates have the form of the preset for local networks."""
    density, bits = PRESETS["lan"]
    seats = [charters.Member(id=n.member, name=n.home.path.name, role="contributor") for n in nodes]
    return charter_reading.parse(
        Charter(
            name="swarm",
            nonce=digest(os.urandom(32)),
            base=charters.Base(name="none", digest=digest(b"no model")),
            adapter=charters.Adapter(
                rank=16, alpha=16, targets=("q_proj",), seed=digest(b"seed"), coordinates=COORDINATES
            ),
            update=charters.Update(density_ppm=density, value_bits=bits, block=updates.block_for(bits)),
            recipe="contributor-mean/1",
            gate=charters.Gate(max_blob_bytes=1 << 20, norm_cap_micro=10**12, tolerance_centinats=2, held_out_min=0),
            release=charters.Release(wait_for=len(nodes), patience_ms=3_600_000, timeout_ms=60_000),
            witness=charters.Witness(cosignatures=0),
            members=tuple(sorted(seats, key=lambda m: m.id)),
            faults=charters.default_faults(len(seats)),
        ).to_json()
    )


def cost_of(pid: int) -> Cost:
    """What a process has used so far."""
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        return Cost(
            cpu=times.user + times.system,
            rss=process.memory_info().rss,
            files=process.num_fds(),
            threads=process.num_threads(),
        )
