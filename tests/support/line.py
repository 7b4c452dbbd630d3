"""Several real nodes as one collective on this machine, and what tests do to them."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from real_node import Node, alive, until

from protocol.errors import FishernetError

CHARTER = {
    "name": "line",
    "held_out_min": 8,
    "tolerance_centinats": 500,  # whether a release is worse for somebody's few rows is not what these tests ask
    "wait_for": 3,
    "patience_ms": 3000,
    "timeout_ms": 4000,
}


# -- what tests do to a node -----------------------------------------------------------------------------------------
def published(node: Node) -> list[Mapping[str, Any]]:
    """The contributions in its own feed, oldest first."""
    return [body for type_, body in node.own() if type_ == "contribution.published"]


def blobs_of(node: Node) -> set[str]:
    """Digests of the blobs it holds."""
    return {file.name for file in node.home.blobs.iterdir() if len(file.name) == 64}


@contextlib.contextmanager
def refused(job: Callable[[], object]) -> Iterator[list[FishernetError]]:
    """Run a call beside the block that is expected to be refused; its error is in the list when the block has ended."""
    errors: list[FishernetError] = []

    def run() -> None:
        try:
            job()
        except FishernetError as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        thread.join(120)
        assert not thread.is_alive()


@contextlib.contextmanager
def writing_blocked(node: Node) -> Iterator[None]:
    """Hold the ledger's write lock, so that the daemon's next append waits, for at most five seconds."""
    with contextlib.closing(sqlite3.connect(node.home.ledger_db, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


# -- several of them -------------------------------------------------------------------------------------------------
class Line:
    """A collective of nodes on this machine. The first founds it; the others know only the first one's address."""

    def __init__(self, nodes: Sequence[Node], collective: str) -> None:
        self.nodes, self.id = list(nodes), collective

    @classmethod
    def found(cls, nodes: Sequence[Node], seats: Mapping[str, str] | None = None, **charter: Any) -> Line:
        """Let the first node found a collective with all of them; `seats` gives roles other than contributor."""
        founder, *others = nodes
        members = [f"{n.member}:{n.name}:{(seats or {}).get(n.name, 'contributor')}" for n in others]
        made = founder.ask("collective.create", members=members, **{**CHARTER, **charter})
        for node in others:
            node.ask("collective.join", collective=made["id"], peers=[founder.address])
        return cls(nodes, str(made["id"]))

    def __getitem__(self, name: str) -> Node:
        return next(n for n in self.nodes if n.name == name)

    def start(self, nodes: Sequence[Node] | None = None) -> Line:
        """Bring nodes up and wait until each may write."""
        chosen = self.nodes if nodes is None else nodes
        for node in chosen:
            node.resume()
            if not node.running:
                node.start()
        for node in chosen:
            until(node.ready, 240, what=f"{node.name} is ready")
        return self

    def stop(self) -> None:
        """End whatever still runs, by its process id."""
        born = set().union(*(n.tree() for n in self.nodes if n.running))
        for node in self.nodes:
            if node.running:
                os.kill(node.pid, signal.SIGCONT)
                os.kill(node.pid, signal.SIGTERM)
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(10)
                if node.running:
                    os.kill(node.pid, signal.SIGKILL)
                    node.process.wait(5)
        until(lambda: not any(map(alive, born)), 10, what=f"no process is left of {sorted(born)}")

    def up(self) -> list[Node]:
        """Those that run."""
        return [n for n in self.nodes if n.running]

    def train(self, nodes: Sequence[Node] | None = None, **args: Any) -> list[Any]:
        """One run and contribution on each, side by side."""
        chosen = self.up() if nodes is None else nodes
        with ThreadPoolExecutor(len(chosen)) as pool:
            return [job.result() for job in [pool.submit(n.call, "train.now", 240, **args) for n in chosen]]

    def release(self, nodes: Sequence[Node] | None = None) -> str:
        """Let nodes train, and wait until the next release stands at each of them; its digest."""
        chosen = self.up() if nodes is None else list(nodes)
        before = max(len(n.releases()) for n in chosen)
        self.train(chosen)
        return self.agree(before + 1, chosen)

    def agree(self, count: int, nodes: Sequence[Node] | None = None) -> str:
        """Wait until each node has `count` releases, the same ones; the digest of the last."""
        chosen = self.up() if nodes is None else list(nodes)

        def same() -> str:
            found = [n.releases() for n in chosen]
            if min(map(len, found)) < count:
                return ""
            assert len({tuple(f[:count]) for f in found}) == 1, f"releases differ: {found}"
            return found[0][count - 1]

        return str(until(same, 300, what=f"release {count} at {', '.join(n.name for n in chosen)}\n" + self.tails()))

    def settle(self) -> None:
        """Wait until nothing is pending and every running node holds the same entries of all feeds."""

        def settled() -> bool:
            folds = [n.fold() for n in self.up()]
            return all(f.sizes == folds[0].sizes and not f.pending() for f in folds)

        until(settled, 240, what="all nodes hold the same and nothing waits\n" + self.tails())

    def tails(self) -> str:
        return "\n".join(f"--- {n.name}\n{n.tail(12)}" for n in self.nodes)


@contextlib.contextmanager
def running(line: Line) -> Iterator[Line]:
    """A line that is up for the length of a block."""
    try:
        yield line.start()
    finally:
        line.stop()
