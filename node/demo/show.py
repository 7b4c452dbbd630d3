"""`fishernet demo`: three real nodes on this machine improve one language model together, and an outsider audits them.

Only the public commands are used (`init`, `data add`, `collective create`, `join`, `up`, `status`, `log`, `observe`), each in
its own process, and HTTP for the served answers: what the demo shows is what an operator can do. Knows no protocol.
Invariant: whatever happens, the nodes it started are ended and, without --keep, its directory is gone.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.demo.nodes import DemoNode, free_ports
from node.demo.report import build, show
from node.errors import NodeError
from node.home import model_cache
from protocol.errors import FishernetError

_NAMES: Final = ("clinic", "security", "cinema")


class DemoFailed(NodeError):
    """The demo did not come to its end."""

    code = "demo-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What differs between the real demo and the tiny one."""

    model: str
    rows: int  # of each text, at most
    train: Mapping[str, str]
    charter: tuple[str, ...]
    held_out: Mapping[str, str]
    prompt: str
    least_gain: float  # nats below base that every node must reach
    deadline_s: float
    releases: int = 2


FULL: Final = Plan(
    model="smollm2-135m",
    rows=4000,
    train={
        "steps": "6",
        "warmup": "3",
        "batch": "4",
        "length": "64",
        "learning_rate": "0.008",
        "fisher_sequences": "16",
        "held_out_rows": "48",
    },
    charter=("--density", "0.2", "--tolerance", "0.05", "--patience", "180", "--timeout", "60", "--cosignatures", "1"),
    held_out={"clinic": "0.1", "security": "0.25", "cinema": "0.1"},
    prompt="The most common symptom is",
    least_gain=0.15,
    deadline_s=1800.0,
)
TINY: Final = Plan(
    model="tiny",
    rows=1500,
    train={
        "steps": "12",
        "warmup": "4",
        "batch": "8",
        "length": "128",
        "learning_rate": "0.005",
        "fisher_sequences": "16",
        "held_out_rows": "32",
    },
    charter=("--density", "0.2", "--tolerance", "0.05", "--patience", "60", "--timeout", "20", "--target", "q_proj",
             "--target", "k_proj", "--target", "v_proj", "--target", "o_proj", "--target", "gate_proj",
             "--target", "up_proj", "--target", "down_proj", "--cosignatures", "1"),
    held_out=dict.fromkeys(_NAMES, "0.25"),
    prompt="The patient ",
    least_gain=0.05,
    deadline_s=600.0,
)  # fmt: skip


@dataclass(slots=True)
class Clock:
    """Wall time of each phase, in seconds."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Time a block and say what it does."""
        print(f"\n== {text}", flush=True)
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(time.monotonic() - began, 1)
            print(f"   {self.phases[name]} s", flush=True)


def main(*, tiny: bool, report: Path, keep: Path | None) -> int:
    """Run the demo and write `report`; 0 when everything that it promises came true.

    Raises:
        DemoFailed: a node ended early or a phase took too long; what it said is part of the message.
        DownloadFailed: model or texts could not be had.
    """
    plan, clock = (TINY if tiny else FULL), Clock()
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fishernet-demo-")))
        else:
            folder = keep.absolute()
            folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with clock.phase("fetch", f"model {plan.model} and three private texts (downloaded once, checked by digest)"):
            texts = _fetch(plan)
        started = time.monotonic()
        nodes = [DemoNode(name=n, home=folder / n, port=p) for n, p in zip(_NAMES, free_ports(3), strict=True)]
        auditor = DemoNode(name="auditor", home=folder / "auditor", port=0)
        with clock.phase("make", "three nodes with private rows, one auditor, one charter"):
            collective = _found(plan, nodes, auditor, texts, folder)
        for node in nodes:
            stack.callback(node.stop)
        with clock.phase("start", "fishernet up, three times"):
            for node in nodes:
                node.start()
            for node in nodes:
                _until(node, plan, started, lambda status: bool(status.get("ready")))
        for number in range(1, plan.releases + 1):
            with clock.phase(f"release-{number}", f"train, publish, vote: release {number}"):
                _release(plan, nodes, number, started)
        with clock.phase("measure", "held-out losses, measured by each node on its own rows"):
            losses = {node.name: _losses(node) for node in nodes}
        with clock.phase("answers", "one answer of each model"):
            answers = nodes[0].answers(plan.prompt)
        with clock.phase(
            "audit", "an auditor fetches everything from outside (py-libp2p) and recomputes every release"
        ):
            audit = auditor.observe(collective, [a for node in nodes for a in node.addresses()])
        wall = time.monotonic() - started
        result = build(plan.least_gain, nodes, losses, answers, audit, clock.phases)
        result |= {"tiny": tiny, "model": plan.model, "collective": collective, "wall_s": round(wall, 1)}
        result["total_s"] = round(time.monotonic() - began, 1)
        report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        show(result)
        print(f"\nthe same numbers: {report}" + (f"; the homes: {folder}" if keep else ""), flush=True)
    return 0 if result["holds"] else 1


def _fetch(plan: Plan) -> Mapping[str, Path]:
    from contrib import demo_data, models

    cache = model_cache()
    said: set[str] = set()

    def say(stage: str, _part: float = 0.0) -> None:
        if stage not in said:
            said.add(stage)
            print(f"   {stage}", flush=True)

    models.add(plan.model, cache, on_progress=say)
    return demo_data.fetch(cache / "demo", on_progress=say)


def _found(plan: Plan, nodes: list[DemoNode], auditor: DemoNode, texts: Mapping[str, Path], folder: Path) -> str:
    """Make the homes, add the rows, write the charter, let the others join; returns the collective's id."""

    def make(node: DemoNode) -> None:
        node.init(plan.model, {"rounds": str(plan.releases), **plan.train}, preload=node is nodes[0])
        if node is auditor:
            return
        part = folder / f"{node.name}.jsonl"
        with texts[node.name].open(encoding="utf-8") as lines:
            part.write_text("".join(line for line, _ in zip(lines, range(plan.rows), strict=False)), encoding="utf-8")
        added = node.cli("data", "add", str(part), "--dataset", node.name, "--held-out", plan.held_out[node.name])
        print(f"   {node.name}: {added['train_rows']} private rows, {added['held_out_rows']} held out", flush=True)

    with ThreadPoolExecutor(max_workers=2) as two:
        list(two.map(make, (*nodes, auditor)))
    founder, *others = nodes
    members = [f"--member={n.member}:{n.name}" for n in others] + [f"--member={auditor.member}:auditor:auditor"]
    charter = founder.cli("collective", "create", "--name", "demo", "--model", plan.model, *members, *plan.charter)
    collective = str(charter["id"])
    with ThreadPoolExecutor(max_workers=2) as two:
        list(two.map(lambda node: node.cli("collective", "join", collective, founder.address()), others))
    print(f"   collective {collective[:12]}: quorum {charter['quorum']} of 3, one auditor", flush=True)
    return collective


def _until(node: DemoNode, plan: Plan, started: float, holds: Callable[[Mapping[str, Any]], bool]) -> None:
    while True:
        node.check_alive()
        with contextlib.suppress(FishernetError):
            status = node.status()
            if holds(status):
                return
        if time.monotonic() - started > plan.deadline_s:
            print(node.last_words(), flush=True)
            raise DemoFailed(
                f"couldn't finish the demo: {node.name} is not there after {plan.deadline_s:.0f} s; its log is above",
                hint="the machine may be busy; try again, or look with --keep DIR at the homes and logs",
            )
        time.sleep(0.5)


def _release(plan: Plan, nodes: list[DemoNode], number: int, started: float) -> None:
    seen: dict[str, str] = {}
    name = f"release-{number}"
    for node in nodes:

        def done(status: Mapping[str, Any], node: DemoNode = node) -> bool:
            for other in nodes:
                _tell(other, seen)
            return name in (status.get("serving") or {}).get("models", [])

        _until(node, plan, started, done)
    log = nodes[0].call("log")
    decision = log["decisions"][-1]
    print(f"   release {number}: {decision['digest'][:12]}, attempt {decision['attempt']}", flush=True)


def _tell(node: DemoNode, seen: dict[str, str]) -> None:
    """Say what a node does when that has changed."""
    with contextlib.suppress(FishernetError):
        state = str((node.status().get("training") or {}).get("state"))
        if state != "idle" and seen.get(node.name) != state:
            seen[node.name] = state
            print(f"   {node.name}: {state}", flush=True)


def _losses(node: DemoNode) -> Mapping[str, float]:
    found = node.call("measure")
    losses: dict[str, dict[str, int]] = found["losses"]
    return {name: loss["micronats"] / 1_000_000 for name, loss in losses.items()}
