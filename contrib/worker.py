"""The child process that holds the model: `python -m contrib.worker`, JSON lines in on stdin and out on stdout.

    {"id":1,"job":"load","model":FOLDER,"spec":{..},"threads":1}
    {"id":2,"job":"train",..,"view":FILE|null,"settings":{..},"tuning":{..}|null,"moments":FILE|null,"out":FOLDER}
    {"id":3,"job":"evaluate",..,"views":{NAME:FILE|null},"max_rows":200,"length":64,"batch":8}

Both have `"rows":FILE,"datasets":[..],"permits":{DATASET:{..}},"key":HEX|null`: what may be read (`contrib.permit`; a data
set without a permit is refused), and the data key of sealed rows. The key is kept for the job alone and repeated nowhere.

`tuning` asks for a run that is tuned and stopped early on training rows kept for it (`contrib.tuning.Wish`); `moments` is
what an earlier run left, and counts as absent when it cannot be read or is of another adapter.

Every job answers with events that carry its id: any number of "trial", "step", "fisher" or "view", then one "done" or "error"
(with `code` and `message`). A job that fails leaves the worker as it was. The worker ends when stdin does; it has no
signal handlers, so a kill costs the job that runs and nothing else: results appear under their names when complete.

Knows no ledger, keys or network. Invariant: stdout carries events only; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from contrib import jobs, tuning
from contrib.adapters import AdapterSpec, Vector
from contrib.encoding import MIN_LENGTH
from contrib.errors import BadJob
from contrib.jobs import Job
from contrib.tuning import Wish
from protocol.errors import FishernetError

if TYPE_CHECKING:
    from contrib.encoding import Encoded
    from contrib.learner import Learner
    from contrib.training import Moments, Settings
    from contrib.tuning import Trial

Emit = Callable[..., None]

_LIBRARIES = ("torch", "transformers", "peft")
_NICE = 10


class Worker:
    """Runs jobs one after another on the model that was loaded last."""

    def __init__(self, out: TextIO) -> None:
        """Write events to `out`."""
        self._out = out
        self._learner: Learner | None = None

    def serve(self, lines: Iterable[str]) -> None:
        """Answer every line until there are no more."""
        for line in lines:
            if line.strip():
                self.answer(line)

    def answer(self, line: str) -> None:
        """Run the job in `line` and write its events; nothing a job does ends the worker."""
        number: object = None
        try:
            job = jobs.parse(line)
            number = job.get("id")
            self._run(job, lambda event, **facts: self._emit(number, event, facts))
        except FishernetError as e:
            self._emit(number, "error", {"code": e.code, "message": str(e)})
        except MemoryError:
            self._emit(number, "error", {"code": "no-memory", "message": "couldn't run job: not enough memory"})
        except Exception as e:  # noqa: BLE001 - this loop is the supervisor of the jobs
            self._emit(number, "error", {"code": "worker-fault", "message": f"couldn't run job: {_fault(e)}"})

    def _run(self, job: Job, emit: Emit) -> None:
        kind = job.get("job")
        if kind == "load":
            self._load(job, emit)
        elif kind == "train":
            train(self._loaded(), job, emit)
        elif kind == "evaluate":
            _evaluate(self._loaded(), job, emit)
        else:
            raise BadJob(f"couldn't run job: {kind!r} is none of load, train, evaluate")

    def _load(self, job: Job, emit: Emit) -> None:
        import torch

        from contrib import learner

        began = time.monotonic()
        folder, spec = jobs.path(job, "model"), AdapterSpec.parse(job.get("spec"))
        torch.set_num_threads(jobs.number(job, "threads", 1))
        self._learner = None  # two models at once may not fit
        self._learner = learner.load(folder, spec)
        emit(
            "done",
            coordinates=self._learner.coordinates,
            device=self._learner.device,
            bf16=self._learner.bf16,
            libraries=libraries(),
            seconds=round(time.monotonic() - began, 3),
        )

    def _loaded(self) -> Learner:
        if self._learner is None:
            raise BadJob("couldn't run job: no model is loaded")
        return self._learner

    def _emit(self, number: object, event: str, facts: Mapping[str, object]) -> None:
        self._out.write(json.dumps({"id": number, "event": event, **facts}) + "\n")
        self._out.flush()


def libraries() -> dict[str, str]:
    """Versions of what computes the numbers, for a contribution's card: of these, what a model made this process import."""
    return {name: version(name) for name in _LIBRARIES if name in sys.modules}


def _fault(error: Exception) -> str:
    """An unforeseen error and where it was raised; its own words only where they cannot be those of a row."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = f": {error}" if isinstance(error, OSError | RuntimeError) else ""
    return f"{type(error).__name__}{place}{said}"


def train(learner: Learner, job: Job, emit: Emit, *, clock: Callable[[], int] | None = None) -> None:
    """Run a job "train" and emit its events; `clock` (ms) ends permits, by default the system's."""
    from contrib import fisher, searching, training

    began = time.monotonic()
    settings, wish = jobs.settings(job.get("settings", {})), jobs.wish(job.get("tuning"))
    out, view, moments = (
        jobs.path(job, "out"),
        jobs.view(job.get("view")),
        jobs.moments(job.get("moments"), learner.coordinates),
    )
    measured: list[Encoded] = []
    with jobs.opened(job, clock) as store:
        names, permits = jobs.names(job), jobs.permits(job)
        if wish:
            measured = searching.tuning_sequences(store, names, learner.codec, settings, permits, wish)
        tunes = len(measured) >= tuning.LEAST_SEQUENCES
        longest = tuning.MOST_STEPS if wish and wish.steps else settings.steps
        drawn = dataclasses.replace(settings, steps=longest)
        sequences = training.draw(store, names, learner.codec, drawn, permits, spare=tunes)
    trials = None
    if wish and tunes:
        settings, trials = _tuned(learner, sequences, measured, view, settings, wish, moments, emit)
    run = training.train(
        learner,
        sequences,
        view,
        settings,
        moments=moments,
        watch=searching.watch(learner, measured, settings.steps) if tunes else None,
        on_step=_steps(emit, settings.steps),
    )
    several = sequences[: settings.fisher_sequences]
    felt = (
        fisher.diagonal(
            learner, several, run.theta, on_sequence=lambda done: emit("fisher", step=done, steps=len(several))
        )
        if several
        else run.moments.fisher()
    )
    out.mkdir(parents=True, exist_ok=True)
    files = {"theta": _save(out / "theta.npy", run.theta), "fisher": _save(out / "fisher.npy", felt)}
    files["moments"] = _save(out / "moments.npy", training.packed(run.moments))
    emit(
        "done",
        **files,
        steps=run.steps,
        lr=settings.lr,
        planned=settings.steps,
        resumed=moments is not None,
        trials=trials,
        untuned=wish is not None and not tunes,
        curve=[[point.step, round(point.loss, 4)] for point in run.curve],
        tokens=run.tokens,
        first_loss=round(run.losses[0], 4),
        last_loss=round(run.losses[-1], 4),
        seconds=round(time.monotonic() - began, 3),
    )


def _tuned(
    learner: Learner,
    sequences: list[Encoded],
    measured: list[Encoded],
    view: Vector | None,
    settings: Settings,
    wish: Wish,
    moments: Moments | None,
    emit: Emit,
) -> tuple[Settings, list[dict[str, object]] | None]:
    """The settings that a search gives, and its trials as they are told; the settings as they are when none is wished."""
    from contrib import searching

    if not wish.searches:
        return settings, None
    made: list[dict[str, object]] = []

    def on_trial(number: int, trial: Trial) -> None:
        curve = [[point.step, round(point.loss, 4)] for point in trial.curve]
        made.append({"lr": trial.lr, "curve": curve})
        emit("trial", trial=number, most=tuning.MOST_TRIALS if wish.rate else 1, lr=trial.lr, curve=curve)

    steps = tuning.MOST_STEPS if wish.steps else settings.steps
    choice = searching.search(
        learner,
        sequences,
        measured,
        view,
        settings,
        wish,
        moments=moments,
        on_step=lambda step, loss: emit("step", step=step, steps=steps, loss=round(loss, 4), trial=len(made) + 1),
        on_trial=on_trial,
    )
    return dataclasses.replace(settings, lr=choice.lr, steps=choice.steps), made


def _steps(emit: Emit, steps: int) -> Callable[[int, float], None]:
    return lambda step, loss: emit("step", step=step, steps=steps, loss=round(loss, 4))


def _evaluate(learner: Learner, job: Job, emit: Emit) -> None:
    from contrib import evaluation

    began = time.monotonic()
    views = job.get("views")
    if not isinstance(views, dict) or not views:
        raise BadJob("couldn't run job: views must map names to files or null")
    with jobs.opened(job) as store:
        samples = evaluation.sample(store, jobs.names(job), jobs.number(job, "max_rows", 200), jobs.permits(job))
    length, batch = jobs.number(job, "length", 64, least=MIN_LENGTH), jobs.number(job, "batch", 8)
    found = {}
    for name, file in views.items():
        loss = evaluation.held_out_loss(learner, samples, jobs.view(file), length=length, batch=batch)
        found[name] = dataclasses.asdict(loss)
        emit("view", view=name, **found[name])
    emit("done", views=found, seconds=round(time.monotonic() - began, 3))


def _save(file: Path, vector: Vector) -> str:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with beside.open("wb") as stream:
        np.save(stream, vector, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
    return str(file)


def main() -> None:
    """Serve stdin; stdout is kept for events, and file descriptor 1 is turned over to stderr for everybody else."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    os.nice(_NICE)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    Worker(events).serve(sys.stdin)


if __name__ == "__main__":
    main()
