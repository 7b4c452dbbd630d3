"""A swarm of real nodes under churn: members are killed and come back, links fail one way, one link is bad all the time.

`Churn.run` drives real daemons in network namespaces by a plan with a seed: starts them in random order, each knowing the
addresses of a random few, lets members contribute, kills one after the other with SIGKILL and starts it again. `settle`
waits until nothing moves; `verdict` reads every ledger and says what differs and what is lost. Knows no rule of the ledger.
Law: a contribution is lost when it is neither released nor pending nor listed as stale or refused at every node, or was
acknowledged to whoever asked for it (`train.now` returned) and stands in no feed.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from line import Line
from namespaces import Host, Lab
from real_node import Node, make_node, sentences, until

from ledger.collective import Collective
from node.errors import NodeError
from protocol.errors import FishernetError

FATES = frozenset({"released", "pending", "stale", "refused"})
CHARTER = {
    "name": "swarm",
    "rank": 4,
    "held_out_min": 2,
    "tolerance_centinats": 500,  # what a release is worth for a handful of rows is not what churn asks
    "patience_ms": 5_000,
    "timeout_ms": 15_000,  # for sixteen judges on two cores
}
SMALL = {"train.steps": 2, "train.length": 32, "train.fisher_sequences": 2, "train.held_out_rows": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What happens to a swarm, and when, in seconds from the moment that all are up."""

    nodes: int
    seconds: float
    kill_every_s: float
    train_every_s: float
    down_s: tuple[float, float] = (1.0, 5.0)  # how long a killed one stays away
    partition: tuple[float, float] | None = None  # when a third can hear the others, and not be heard
    slow: Mapping[str, float] | None = None  # the link of the last member
    seed: int = 7
    ready_s: float = 180.0
    settle_s: float = 300.0


@dataclass(slots=True, kw_only=True)
class Told:
    """What was done to a swarm, and what came back."""

    kills: list[str] = field(default_factory=list)
    asked: int = 0
    acknowledged: list[str] = field(default_factory=list)  # digests of blobs
    failures: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)


class Churn:
    """A collective of real nodes, each at a host of its own."""

    def __init__(self, lab: Lab, folder: Path, plan: Plan) -> None:
        self.lab, self.plan, self.told = lab, plan, Told()
        self.random = random.Random(plan.seed)
        names = [f"m{n:02d}" for n in range(plan.nodes)]
        self.hosts: dict[str, Host] = {name: lab.host(name) for name in names}
        settings = {key.replace(".", "__"): value for key, value in SMALL.items()}
        nodes = [
            make_node(
                folder, n, sentences(n, 24), at=self.hosts[n], train__auto=False, ledger__heartbeat_s=86_400, **settings
            )
            for n in names
        ]
        self.line = self._found(nodes)
        if plan.slow is not None:
            lab.link(self.hosts[names[-1]], **plan.slow)

    def _found(self, nodes: Sequence[Node]) -> Line:
        """Each node knows one or two that were made before it, whoever that was: the addresses make a connected graph."""
        founder, *others = nodes
        members = [f"{n.member}:{n.name}:contributor" for n in others]
        made = founder.ask("collective.create", members=members, wait_for=len(nodes), **CHARTER)
        for n, node in enumerate(others, 1):
            known = self.random.sample(nodes[:n], min(n, self.random.choice((1, 2))))
            node.ask("collective.join", collective=made["id"], peers=[each.address for each in known])
        return Line(nodes, str(made["id"]))

    # -- what happens ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """All of them, in a random order."""
        for node in self.random.sample(self.line.nodes, len(self.line.nodes)):
            node.start()
            time.sleep(self.random.random() * 0.5)
        for node in self.line.nodes:
            until(node.ready, self.plan.ready_s, what=f"{node.name} is ready", step_s=0.5)

    def run(self) -> Told:
        """Live through the plan; at its end all are up and the network is whole."""
        plan, began = self.plan, time.monotonic()
        kill_at, train_at, back = plan.kill_every_s, 0.0, dict[str, float]()
        cut = False
        jobs: list[Future[None]] = []
        with ThreadPoolExecutor(3) as pool:
            while (now := time.monotonic() - began) < plan.seconds or back:
                if plan.partition is not None and cut != (plan.partition[0] <= now < plan.partition[1]):
                    cut = not cut
                    self._partition(cut)
                for name in [name for name, due in back.items() if due <= now]:
                    del back[name]
                    self.line[name].start()
                if now >= kill_at and now < plan.seconds:
                    kill_at += plan.kill_every_s
                    victim = self.random.choice([n for n in self.line.nodes if n.running])
                    victim.kill()
                    self.told.kills.append(victim.name)
                    back[victim.name] = now + self.random.uniform(*plan.down_s)
                if now >= train_at and now < plan.seconds:
                    train_at += plan.train_every_s
                    jobs.append(pool.submit(self._train, self.random.choice(self.line.up())))
                time.sleep(0.1)
            if cut:
                self._partition(False)
            for job in jobs:
                job.result()
        return self.told

    def _partition(self, cut: bool) -> None:
        self.lab.heal()
        if cut:
            hosts = list(self.hosts.values())
            third = len(hosts) // 3
            self.lab.block(hosts[:third], hosts[third:])

    def _train(self, node: Node) -> None:
        """One contribution; a node that is down, not ready, or killed in the middle of it, makes none that it acknowledges."""
        self.told.asked += 1
        try:
            self.told.acknowledged.append(str(node.call("train.now", 120)["digest"]))
        except (NodeError, FishernetError) as e:
            self.told.failures[e.code] += 1

    # -- how it ends -------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Wait until all are ready, hold the same entries, and nothing is left to be decided."""
        for node in self.line.nodes:
            until(node.ready, self.plan.ready_s, what=f"{node.name} is ready again", step_s=0.5)

        def settled() -> bool:
            folds = [n.fold() for n in self.line.nodes]
            return all(f.sizes == folds[0].sizes and not f.pending() for f in folds)

        until(settled, self.plan.settle_s, what="all hold the same and nothing waits\n" + self.state(), step_s=1.0)

    def state(self) -> str:
        """Where each node stands, for whoever reads a failure."""
        rows = []
        for node in self.line.nodes:
            fold = node.fold()
            rows.append(
                f"{node.name} entries={sum(fold.sizes.values())} releases={len(fold.releases)} pending={len(fold.pending())}"
            )
        return "\n".join(rows)

    def verdict(self) -> dict[str, Any]:
        """What every node's ledger says at the end; call it when no daemon runs."""
        folds = {n.name: n.fold() for n in self.line.nodes}
        first = next(iter(folds.values()))
        fates = Counter(first.fate(c) for by in first.contributions.values() for c in by)
        return {
            "nodes": len(folds),
            "entries": sum(first.sizes.values()),
            "releases": len(first.releases),
            "contributions": sum(fates.values()),
            "fates": dict(fates),
            "differing": [name for name, fold in folds.items() if _view(fold) != _view(first)],
            "lost": lost(folds, self.told.acknowledged),
            "forks": [n.name for n in self.line.nodes if n.forks()],
            "audits": {n.name: audit(n) for n in self.line.nodes},
        }


def _view(fold: Collective) -> tuple[Any, ...]:
    """What must be equal everywhere: the feeds by their last entries, the decisions, the register of every release."""
    cuts = [d.value for d in fold.releases]
    return (
        fold.sizes,
        {m: leaves[-1] for m, leaves in fold.leaves.items() if leaves},
        [d.digest for d in fold.decisions],
        [getattr(cut, "registers", None) for cut in cuts],
    )


def lost(folds: Mapping[str, Collective], acknowledged: Sequence[str]) -> list[str]:
    """Contributions that are lost at some node, and why."""
    found = {name: {c.event: c for by in fold.contributions.values() for c in by} for name, fold in folds.items()}
    known = set().union(*found.values())
    blobs = {c.blob for by in found.values() for c in by.values()}
    gone = [f"blob {blob[:12]} was acknowledged and stands nowhere" for blob in acknowledged if blob not in blobs]
    for name, fold in folds.items():
        gone += [f"{event[:12]} is not at {name}" for event in known - found[name].keys()]
        gone += [f"{e[:12]} is {fold.fate(c)} at {name}" for e, c in found[name].items() if fold.fate(c) not in FATES]
    return gone


def audit(node: Node) -> str:
    """`fishernet audit`: its verdict, and what it found."""
    done = node.cli("audit", "--json")
    answer = json.loads(done.stdout)
    return "clean" if done.returncode == 0 else json.dumps(answer)[:600]
