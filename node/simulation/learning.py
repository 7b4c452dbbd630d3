"""The trainer of simulated members, in this process: the real model, or plain vectors where only network and ledger count.

Behind the port `Trainer`, so that rounds and judges are the node's own. One loaded model serves all members. Invariants: a
run is a function of rows, view and settings; losses are measured on the rows that the permit shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from node.errors import JobRefused
from node.ports import Trained, TrainJob
from node.training import trainer
from protocol.canon import Json
from protocol.ids import digest

if TYPE_CHECKING:
    from contrib.adapters import AdapterSpec
    from contrib.evaluation import Sample
    from contrib.learner import Learner
    from contrib.permit import Permit
    from contrib.rows import RowStore

Vector = npt.NDArray[np.float32]
_BATCH: Final = 32  # sequences that are measured at once
_STEP: Final = 0.5  # of the way to its own optimum that a synthetic member goes in a run


class Counted:
    """How much was trained and measured: what a simulation spends its time on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # "runs", "evaluations"


class ModelTrainer(Counted):
    """Trains and measures the base model with `contrib`'s own code; rows are read by permits, as in the worker."""

    def __init__(self, model: Path, spec: AdapterSpec, clock: Callable[[], int], *, length: int) -> None:
        """Load the model of all members; `clock` ends permits, `length` is that of measured sequences."""
        super().__init__()
        import torch

        from contrib import learner

        torch.set_num_threads(1)
        self.learner: Learner = learner.load(model, spec, bf16=False)
        self._clock, self._length = clock, length
        self._samples: dict[tuple[Path, tuple[str, ...], int], list[Sample]] = {}

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        """The model is loaded already."""

    async def libraries(self) -> Mapping[str, str]:
        """Versions of what computes the numbers, for the card."""
        from contrib import worker

        return worker.libraries()

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        """The worker's own run, here and now; it takes no simulated time by itself."""
        from contrib import worker

        self.counts["runs"] += 1
        done: dict[str, Any] = {}

        def emit(event: str, **facts: Any) -> None:
            if event == "done":
                done.update(facts)
            else:
                on_event({"event": event, **facts})

        worker.train(self.learner, trainer.line(job, None), emit, clock=self._clock)
        return replace(trainer.trained(done), seconds=0.0)

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Any]]:
        """Held-out loss of each view on one member's permitted rows."""
        from contrib import permit as reading

        granted = {name: reading.parse(dict(value)) for name, value in permits.items()}
        samples = self._sampled(rows, tuple(datasets), max_rows, granted)
        found: dict[str, Mapping[str, Any]] = {}
        for name, path in views.items():
            found[name] = self.loss(samples, None if path is None else load_vector(path))
        return found

    def loss(self, samples: list[Sample], vector: Vector | None) -> Mapping[str, Any]:
        """The loss of one vector on a sample (raises JobRefused when it diverges, like the worker)."""
        from contrib import evaluation
        from contrib.errors import Diverged

        self.counts["evaluations"] += 1
        try:
            loss = evaluation.held_out_loss(self.learner, samples, vector, length=self._length, batch=_BATCH)
        except Diverged as e:
            raise JobRefused(str(e), reason="diverged") from e
        return {"nats": loss.nats, "tokens": loss.tokens, "rows": loss.rows, "accuracy": loss.accuracy}

    def _sampled(
        self, rows: Path, datasets: tuple[str, ...], max_rows: int, permits: Mapping[str, Permit]
    ) -> list[Sample]:
        """The rows of a measurement; drawn once, as what a simulated member holds does not change."""
        from contrib import evaluation

        key = (rows, datasets, max_rows)
        if key not in self._samples:
            with self._opened(rows) as store:
                self._samples[key] = evaluation.sample(store, datasets, max_rows, permits)
        return self._samples[key]

    def _opened(self, rows: Path) -> RowStore:
        from contrib.rows import RowStore

        return RowStore.open(rows, read_only=True, clock=self._clock)


class VectorTrainer(Counted):
    """No model: each member's loss is a quadratic around an optimum of its own, which a run goes half-way to.

    loss = 1 + mean over coordinates of c * (v - o)^2 / 2 nats, with a curvature c that all share (as Fisher diagonals are
    alike) and an optimum o that is partly everybody's. For simulations of network and ledger; says nothing about quality.
    """

    def __init__(self, coordinates: int, seed: int, *, heterogeneity: float) -> None:
        """`heterogeneity` (0 to 1) is the share of a member's optimum that is its own."""
        super().__init__()
        rng = np.random.default_rng([seed, 1])
        self._seed, self._own = seed, heterogeneity
        self._common = rng.normal(0.0, 1.0, coordinates)
        self._curvature = rng.gamma(0.5, 2.0, coordinates)

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        """There is no model."""

    async def libraries(self) -> Mapping[str, str]:
        """What computes the numbers."""
        return {"numpy": np.__version__}

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        """Half the way from the view to the member's optimum, with a little noise of the run's seed."""
        self.counts["runs"] += 1
        optimum = self.optimum(job.rows)
        view = np.zeros(len(optimum)) if job.view is None else load_vector(job.view).astype(np.float64)
        rng = np.random.default_rng([self._seed, int(job.settings.get("seed", 0)), _number(job.rows)])
        theta = view + _STEP * (optimum - view) + rng.normal(0.0, 0.01, len(optimum))
        return _kept(job.out, theta.astype(np.float32), self._curvature.astype(np.float32), 1)

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Any]]:
        """The quadratic's value for each view."""
        return {n: self.loss(rows, None if p is None else load_vector(p)) for n, p in views.items()}

    def loss(self, rows: Path, vector: Vector | None) -> Mapping[str, Any]:
        """The loss of one vector for the member whose rows these would be."""
        self.counts["evaluations"] += 1
        optimum = self.optimum(rows)
        away = optimum if vector is None else vector.astype(np.float64) - optimum
        nats = 1.0 + float(np.mean(self._curvature * np.square(away)) / 2)
        return {"nats": nats, "tokens": 1, "rows": 1000, "accuracy": None}

    def optimum(self, rows: Path) -> npt.NDArray[np.float64]:
        """Where the member of these rows would go alone, [P]."""
        own = np.random.default_rng([self._seed, 2, _number(rows)]).normal(0.0, 1.0, len(self._common))
        return np.asarray((1 - self._own) * self._common + self._own * own)


def load_vector(path: Path) -> Vector:
    """A float32 vector from a file of ours."""
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)


def _kept(out: Path, theta: Vector, fisher: Vector, tokens: int) -> Trained:
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "theta.npy", theta, allow_pickle=False)
    np.save(out / "fisher.npy", fisher, allow_pickle=False)
    return Trained(theta=out / "theta.npy", fisher=out / "fisher.npy", tokens=tokens, seconds=0.0)


def _number(rows: Path) -> int:
    """A member's number for its generator: from the name of its home, never from where that lies."""
    return int(digest(rows.parent.name.encode())[:12], 16)
