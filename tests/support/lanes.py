"""A lane over the real runner and the test model in this process, stepped by the test: no thread, a clock of the test's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrib.adapters import AdapterSpec, layout
from contrib.merging import model_digest
from contrib.models import tiny_folder
from node.ports import Piece, Sampling, Usage
from node.serving.engine.answer import Request
from node.serving.engine.embedding import Embeds
from node.serving.engine.inbox import room
from node.serving.engine.lane import Lane
from node.serving.engine.reports import Reports
from node.serving.engine.runner import open_runner
from node.serving.engine.sampling import Sampler
from node.serving.engine.scheduler import BASE, Limits
from node.serving.engine.store import Source
from node.serving.engine.text import Text

SPEC = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed="5e" * 32)
PROMPT = "The people of the United States"


@dataclass(kw_only=True)
class Heard:
    """What the lane has said about one request."""

    pieces: list[Piece] = field(default_factory=list)
    vectors: dict[int, torch.Tensor] = field(default_factory=dict)
    error: Exception | None = None
    cancelled: bool = False
    done: bool = False
    digest: str = ""
    usage: Usage | None = None

    @property
    def over(self) -> bool:
        return self.done or self.cancelled or self.error is not None

    def text(self, index: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces if piece.index == index)

    def finish(self, index: int = 0) -> str | None:
        return next((piece.finish for piece in self.pieces if piece.index == index and piece.finish), None)


@dataclass(kw_only=True)
class Bench:
    """The lane, what it said, and a clock that a test moves."""

    folder: Path
    limits: Limits = field(default_factory=Limits)
    rows: int = 8
    ram: int = 1 << 28
    model: Path = field(default_factory=tiny_folder)
    now: float = 0.0
    heard: dict[int, Heard] = field(default_factory=dict)
    on_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.coordinates = layout(self.model, SPEC).coordinates
        self.lane = self.make_lane()

    def make_lane(self, **options: Any) -> Lane:
        reports = Reports(
            piece=lambda request, piece: self.heard[request.number].pieces.append(piece),
            vector=lambda embeds, index, vector: self.heard[embeds.number].vectors.update({index: vector}),
            done=self._done,
            failed=lambda number, error: setattr(self.heard[number], "error", error),
            cancelled=lambda number: setattr(self.heard[number], "cancelled", True),
        )
        settings = {
            "base": "ba" * 32,
            "text": Text(self.model),
            "runner": open_runner(self.model, base="ba" * 32, rows=self.rows, slots=self.limits.max_active + 1),
            "spec": SPEC,
            "limits": self.limits,
            "ram": self.ram,
            "reports": reports,
            "wake": lambda: None,
        }
        return Lane(**{**settings, **options})

    def _done(self, request: Request | Embeds) -> None:
        found = self.heard[request.number]
        found.done = True
        if isinstance(request, Request):
            found.digest, found.usage = request.digest, request.usage()

    def source(self, seed: int, strength: float = 0.3, spec: AdapterSpec = SPEC) -> Source:
        """A random adapter on disk."""
        values = (
            np.random.default_rng(seed).normal(0, strength, layout(self.model, spec).coordinates).astype(np.float32)
        )
        digest = model_digest(values)
        path = self.folder / f"{digest}.npy"
        if not path.exists():  # a loader may be reading it
            np.save(path, values)
        return Source(version=f"{digest}/{spec.rank}", path=path, rank=spec.rank, spec=spec, digest=digest)

    def ask(
        self,
        source: Source | None = None,
        prompt: str = PROMPT,
        *,
        tenant: str = "",
        deadline: float | None = None,
        lane: Lane | None = None,
        **sampling: Any,
    ) -> Heard:
        """Submit a request; its answer comes with `run`."""
        lane = lane or self.lane
        number = len(self.heard) + 1
        found = self.heard[number] = Heard()
        drawn = Sampling(**{"max_tokens": 16, **sampling})
        ids = lane.text.encode(prompt)
        request = Request(
            number=number,
            name=source.version[:8] if source else BASE,
            version=source.version if source else BASE,
            source=source,
            tenant=tenant,
            ids=ids,
            sampling=drawn,
            samplers=[Sampler(drawn, index, drawn.seed or 0, None) for index in range(drawn.n)],
            most=room(len(ids), drawn.max_tokens, lane.runner.context),
            arrived=self.now,
            deadline=deadline,
        )
        lane.submit(request, self.now)
        return found

    def number(self, heard: Heard) -> int:
        return next(number for number, each in self.heard.items() if each is heard)

    def run(self, *until: Heard, steps: int = 4000, tick: float = 0.01) -> None:
        """Step until these (default: all) requests are over; a step with nothing to run waits for the disk, in real time."""
        patience = time.monotonic() + 120
        while steps > 0 and time.monotonic() < patience:
            if all(heard.over for heard in until or self.heard.values()):
                return
            if self.lane.step(self.now):
                steps, self.now = steps - 1, self.now + tick
            else:
                time.sleep(0.001)
                self.now += 0.001
            self.on_step()
        raise AssertionError("a request did not end")

    def answer(self, source: Source | None = None, prompt: str = PROMPT, **options: Any) -> str:
        """One answer, alone."""
        found = self.ask(source, prompt, **options)
        self.run(found)
        assert found.error is None, found.error
        return found.text()
