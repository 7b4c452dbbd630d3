"""The child process that holds the model: `python -m contrib.worker`, JSON lines in on stdin and out on stdout.

    {"id":1,"job":"load","model":FOLDER,"spec":{..},"threads":1}
    {"id":2,"job":"train",..,"view":FILE|null,"settings":{..},"out":FOLDER}
    {"id":3,"job":"evaluate",..,"views":{NAME:FILE|null},"max_rows":200,"length":64,"batch":8}

Both have `"rows":FILE,"datasets":[..],"permits":{DATASET:{..}},"key":HEX|null`: what may be read (`contrib.permit`; a data
set without a permit is refused), and the data key of sealed rows. The key is kept for the job alone and repeated nowhere.

Every job answers with events that carry its id: any number of "step", "fisher" or "view", then one "done" or "error"
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
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from contrib.adapters import AdapterSpec, Vector
from contrib.encoding import MIN_LENGTH
from contrib.errors import BadAdapter, BadJob
from protocol.errors import FishernetError

if TYPE_CHECKING:
    from contrib.learner import Learner
    from contrib.permit import Permit
    from contrib.rows import RowStore

Job = Mapping[str, Any]
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
            job = _parse(line)
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
            _train(self._loaded(), job, emit)
        elif kind == "evaluate":
            _evaluate(self._loaded(), job, emit)
        else:
            raise BadJob(f"couldn't run job: {kind!r} is none of load, train, evaluate")

    def _load(self, job: Job, emit: Emit) -> None:
        import torch

        from contrib import learner

        began = time.monotonic()
        folder, spec = _path(job, "model"), AdapterSpec.parse(job.get("spec"))
        torch.set_num_threads(_number(job, "threads", 1))
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


def _train(learner: Learner, job: Job, emit: Emit) -> None:
    from contrib import fisher, training

    began = time.monotonic()
    settings = _settings(job.get("settings", {}))
    out, view = _path(job, "out"), _view(job.get("view"))
    with _opened(job) as store:
        sequences = training.draw(store, _names(job), learner.codec, settings, _permits(job))
    run = training.train(
        learner,
        sequences,
        view,
        settings,
        on_step=lambda step, loss: emit("step", step=step, steps=settings.steps, loss=round(loss, 4)),
    )
    several = sequences[: settings.fisher_sequences]
    felt = fisher.diagonal(
        learner, several, run.theta, on_sequence=lambda done: emit("fisher", step=done, steps=len(several))
    )
    out.mkdir(parents=True, exist_ok=True)
    files = {"theta": _save(out / "theta.npy", run.theta), "fisher": _save(out / "fisher.npy", felt)}
    emit(
        "done",
        **files,
        steps=settings.steps,
        tokens=run.tokens,
        first_loss=round(run.losses[0], 4),
        last_loss=round(run.losses[-1], 4),
        seconds=round(time.monotonic() - began, 3),
    )


def _evaluate(learner: Learner, job: Job, emit: Emit) -> None:
    from contrib import evaluation

    began = time.monotonic()
    views = job.get("views")
    if not isinstance(views, dict) or not views:
        raise BadJob("couldn't run job: views must map names to files or null")
    with _opened(job) as store:
        samples = evaluation.sample(store, _names(job), _number(job, "max_rows", 200), _permits(job))
    length, batch = _number(job, "length", 64, least=MIN_LENGTH), _number(job, "batch", 8)
    found = {}
    for name, file in views.items():
        loss = evaluation.held_out_loss(learner, samples, _view(file), length=length, batch=batch)
        found[name] = dataclasses.asdict(loss)
        emit("view", view=name, **found[name])
    emit("done", views=found, seconds=round(time.monotonic() - began, 3))


def _parse(line: str) -> Job:
    try:
        job = json.loads(line)
    except (ValueError, RecursionError):
        raise BadJob("couldn't read job: a line must be a JSON object") from None
    if not isinstance(job, dict):
        raise BadJob("couldn't read job: a line must be a JSON object")
    return job


def _settings(value: object) -> Any:
    from contrib.training import Settings

    if not isinstance(value, dict):
        raise BadJob("couldn't take settings: an object is expected")
    kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    for name, given in value.items():
        if name not in kinds:
            raise BadJob(f"couldn't take settings: {name} is none of {', '.join(kinds)}")
        if isinstance(given, bool) or not isinstance(given, int if kinds[name] is int else (int, float)):
            raise BadJob(f"couldn't take settings: {name} must be a number")
    return Settings(**value)


def _names(job: Job) -> list[str]:
    names = job.get("datasets")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise BadJob("couldn't run job: datasets must be a list of names")
    return names


def _opened(job: Job) -> RowStore:
    from contrib import sealing
    from contrib.rows import RowStore

    return RowStore.open(_path(job, "rows"), key=sealing.key_from_hex(job.get("key")), read_only=True)


def _permits(job: Job) -> dict[str, Permit]:
    from contrib import permit

    given = job.get("permits", {})
    if not isinstance(given, dict):
        raise BadJob("couldn't run job: permits must map data sets to permits")
    return {name: permit.parse(value) for name, value in given.items()}


def _path(job: Job, key: str) -> Path:
    value = job.get(key)
    if not isinstance(value, str) or not value:
        raise BadJob(f"couldn't run job: {key} must be a path")
    return Path(value)


def _number(job: Job, key: str, default: int, *, least: int = 1) -> int:
    value = job.get(key, default)
    if type(value) is not int or not least <= value <= 1 << 20:
        raise BadJob(f"couldn't run job: {key} must be a whole number from {least}")
    return value


def _view(file: object) -> Vector | None:
    if file is None:
        return None
    if not isinstance(file, str):
        raise BadJob("couldn't run job: a view must be a path or null")
    try:
        vector = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise BadAdapter(f"couldn't read view {file}: {e}") from e
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise BadAdapter(f"couldn't read view {file}: a vector of float32 is expected")
    return vector


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
