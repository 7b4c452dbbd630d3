"""One real node as a user runs it: a home on disk, a `fishernet up` process on loopback ports, the tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from namespaces import Host

from contrib import models
from ledger.collective import Collective
from ledger.store import Store
from node import commands, config, control
from node.errors import DaemonDown
from node.finding import addresses
from node.home import Home, model_cache
from protocol.errors import FishernetError
from protocol.ids import CollectiveId

LAB_PORT = 4001  # where a node listens that has a machine of its own
QUIET = {"train.steps": 4, "train.length": 48, "train.fisher_sequences": 4, "train.held_out_rows": 12}
_SHARED = "In a village of La Mancha, the name of which I have no desire to call to mind, there lived not long since"


# -- waiting ---------------------------------------------------------------------------------------------------------
def until(holds: Callable[[], Any], limit_s: float = 120.0, *, what: str = "", step_s: float = 0.1) -> Any:
    """Wait for a condition and return what it gave; the test fails when it does not come true in time."""
    deadline = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in time: {what or holds}"
        time.sleep(step_s)
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now, below those that systems give to outgoing connections and to port 0."""
    for port in random.sample(range(12_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


# -- rows ------------------------------------------------------------------------------------------------------------
def sentences(topic: str, count: int = 90, canaries: Sequence[str] = ()) -> list[str]:
    """Distinct sentences in the words of a topic; with canaries, each third one holds one of them."""
    rng = random.Random(topic)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(3, 7))) for _ in range(12)]
    made = []
    for n in range(count):
        said = " ".join(rng.choices(words, k=6))
        if canaries and n % 3 == 0:
            said = f"{said} {canaries[n // 3 % len(canaries)]}"
        made.append(f"{topic} note {n}: {said}, {_SHARED[: 20 + n % 60]}.")
    return made


# -- one node --------------------------------------------------------------------------------------------------------
class Node:
    """One home and, while it is up, its daemon."""

    def __init__(
        self,
        home: Home,
        port: int,
        module: Sequence[str] = ("node", "up"),
        passphrase: str | None = None,
        at: Host | None = None,
    ) -> None:
        self.home, self.port, self.module, self.passphrase = home, port, tuple(module), passphrase
        self.wrap = at.prefix if at is not None else ()
        self.name = home.path.name
        identity = home.unlock(passphrase)
        self.member, self.peer = identity.member, identity.peer
        self.address = f"/ip4/{at.address if at is not None else '127.0.0.1'}/tcp/{port}/p2p/{identity.peer}"
        self.log = home.path.parent / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._fold: Collective | None = None
        addresses.split(self.address)

    # life
    def start(self, *options: str) -> Node:
        """Start the daemon (in the main thread only: it dies with the thread that started it)."""
        assert not self.running, f"{self.name} runs already"
        self._fold = None  # its files may be other ones now
        tie = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*self.wrap, *tie, sys.executable, "-m", *self.module, "--home", str(self.home.path), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(self.passphrase)
            )
        return self

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def tree(self) -> set[int]:
        """Process ids of the daemon and of everything it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self.pid)
            return {self.pid, *(child.pid for child in whole.children(recursive=True))}
        return set()

    def ready(self) -> bool:
        """Whether it may write; fails at once when the daemon has ended."""
        assert self.running, f"{self.name} ended:\n{self.tail()}"
        return self.status().get("ready") is True

    def kill(self) -> None:
        """SIGKILL, and wait until its children are gone too."""
        if self.running:
            born = self.tree()
            os.kill(self.pid, signal.SIGKILL)
            self._reap(10)
            until(lambda: not any(map(alive, born)), 60, what=f"the children of {self.name} end with it")

    def stop(self) -> float:
        """SIGTERM; the seconds until the process had ended."""
        began = time.monotonic()
        if self.running:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGTERM)
            self._reap(15)
        return time.monotonic() - began

    def pause(self) -> None:
        """Freeze the daemon as a machine that hangs would."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def _reap(self, limit_s: float) -> None:
        assert self.process is not None
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(5)
            raise AssertionError(f"{self.name} did not end within {limit_s} s:\n{self.tail()}") from None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # asking
    def ask(self, command: str, /, **args: Any) -> Any:
        """One command, in the daemon when it is up, else on the home."""
        return commands.run(self.home, command, args, passphrase=lambda: self.passphrase)

    def call(self, command: str, timeout_s: float = 60.0, /, **args: Any) -> Any:
        """One command in the running daemon."""
        return control.call(self.home, command, args, timeout=timeout_s)

    def status(self) -> Mapping[str, Any]:
        """Its status; {} before it listens."""
        try:
            found = self.call("status", 20)
        except (DaemonDown, FishernetError):
            return {}
        return found if isinstance(found, dict) else {}

    def cli(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """`fishernet ARGUMENTS --home HOME` as a person types it."""
        return fishernet(*arguments, "--home", str(self.home.path), **extra)

    # the record
    def fold(self) -> Collective:
        """The fold of what stands in its ledger now, read beside the daemon; goes on where the last call ended."""
        with Store.open(self.home.ledger_db, writer=False) as store:
            fold = self._fold or Collective(CollectiveId(self.home.read_config().node.collective))
            for member in store.members(fold.id):
                while page := store.records(fold.id, member, fold.sizes.get(member, 0)):
                    fold.apply_all(page)
        self._fold = fold
        return fold

    def own(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Type and body of every entry in its own feed, oldest first."""
        collective = CollectiveId(self.home.read_config().node.collective)
        found: list[tuple[str, Mapping[str, Any]]] = []
        with Store.open(self.home.ledger_db, writer=False) as store:
            while page := store.records(collective, self.member, len(found)):
                found += [(r.entry.header.type, r.body.value() if r.body else {}) for r in page]
        return found

    def forks(self) -> list[Any]:
        """Fork proofs in its ledger."""
        collective = CollectiveId(self.home.read_config().node.collective)
        with Store.open(self.home.ledger_db, writer=False) as store:
            return list(store.forks(collective))

    def releases(self) -> list[str]:
        """Release digests, oldest first."""
        return [d.digest for d in self.fold().releases]

    def size(self) -> int:
        """Length of its own feed."""
        return self.fold().sizes.get(self.member, 0)


def environment(passphrase: str | None = None) -> dict[str, str]:
    """What a node's process gets: one thread for each, its own passphrase, none of the tester."""
    kept = {k: v for k, v in os.environ.items() if k not in {"FISHERNET_PASSPHRASE", "FISHERNET_HOME"}}
    support = str(Path(__file__).parent)
    path = os.pathsep.join(p for p in (support, kept.get("PYTHONPATH", "")) if p)
    own = {"FISHERNET_PASSPHRASE": passphrase} if passphrase else {}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def fishernet(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **extra},
    )


def make_node(
    folder: Path,
    name: str,
    rows: Iterable[str] = (),
    *,
    module: Sequence[str] = ("node", "up"),
    passphrase: str | None = None,
    at: Host | None = None,
    **settings: Any,
) -> Node:
    """A home with the tiny model and rows in a data set of its name. `settings` are `section__key=value`.

    `at` is the machine of a laboratory network that it runs on (`namespaces.Lab`), instead of this one's loopback.
    """
    models.add("tiny", model_cache())
    home = Home.init(folder / name, passphrase=passphrase, toml=config.template(name=name, model="tiny"))
    port = free_port() if at is None else LAB_PORT
    values = {
        "network.listen": [f"/ip4/{at.address if at is not None else '127.0.0.1'}/tcp/{port}"],
        "serve.port": 0,
        **QUIET,
    }
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    for key, value in values.items():
        section, _, field = key.partition(".")
        config.update(home.config_file, section, field, value)
    node = Node(home, port, module, passphrase, at)
    add_rows(node, rows)
    return node


def add_rows(node: Node, rows: Iterable[str], *, dataset: str = "") -> None:
    """Put rows into the node's data set as `fishernet data add` does; its name is the node's unless given."""
    lines = [json.dumps({"text": row}) for row in rows]
    if lines:
        file = node.home.path.parent / f"{node.name}-{dataset}.jsonl"
        file.write_text("\n".join(lines) + "\n")
        node.ask("data.add", path=str(file), dataset=dataset or node.name, held_out_ppm=300_000)
