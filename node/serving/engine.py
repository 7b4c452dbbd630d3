"""The engine process: `python -m node.serving.engine` loads one base model and answers generate jobs (lines as in `node.jobs`).

    {"id":1,"job":"load","model":FOLDER,"spec":{...}}
    {"id":2,"job":"register","name":NAME,"vector":NPY|null,"digest":MODEL DIGEST|null}
    {"id":3,"job":"drop","name":NAME}
    {"id":4,"job":"generate","model":NAME,"prompt":TEXT|[ids] or "messages":[..],"max_tokens":..,"temperature":..,
     "top_p":..,"seed":..,"stop":[..],"n":1}
    {"cancel":4}

Events of a generate job: {"event":"token","index":0,"text":..} ("finish_reason" on the last one of each answer), then
{"event":"done","finish_reason":..,"usage":{"prompt_tokens":..,"completion_tokens":..}}.

A thread reads the jobs and binds each generate job to its adapter vector at once; the main thread runs load and generate
jobs one after another. Naming a "vector" in a generate job registers it on the way.

Invariant: a job runs with the vector its name had when it was read, whatever is registered or dropped later. The process
ends when its input ends, and writes no file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from contrib.adapters import AdapterSpec, Vector, layout
from node.errors import ContextTooLong, JobRefused
from node.jobs import LINE_LIMIT
from node.ports import Chat, Piece, Prompt, Sampling, Tokens
from node.serving.vectors import read_vector
from protocol.errors import FishernetError

if TYPE_CHECKING:
    from node.serving.generation import TextModel

QUEUE_LIMIT = 256  # jobs that wait
ADAPTERS = 32  # vectors kept in memory


@dataclass(slots=True, kw_only=True)
class Ticket:
    """One load or generate job on its way from the reading thread to the main thread."""

    number: int
    job: dict[str, Any]
    vector: Vector | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class Output:
    """Writes events, one line each, from both threads."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, number: int, event: str, **fields: object) -> None:
        """Write one event."""
        line = json.dumps({"id": number, "event": event, **fields}, separators=(",", ":"))
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def fail(self, number: int, error: Exception) -> None:
        """Write the error event of a job; what was not foreseen also leaves its traceback on the standard error."""
        if isinstance(error, ContextTooLong):
            self.send(number, "error", code=error.code, message=str(error), limit=error.limit)
        elif isinstance(error, JobRefused):
            self.send(number, "error", code=error.reason, message=str(error))
        elif isinstance(error, FishernetError):
            self.send(number, "error", code=error.code, message=str(error))
        elif isinstance(error, MemoryError):
            self.send(number, "error", code="no-memory", message="couldn't finish job: not enough memory")
        else:
            traceback.print_exception(error)
            self.send(number, "error", code="job-crashed", message=f"couldn't finish job: {type(error).__name__}")


class Inbox:
    """The reading thread's side: owns the table of vectors and the tickets that are not finished."""

    def __init__(self, output: Output, adapters: int) -> None:
        self.waiting: queue.Queue[Ticket] = queue.Queue(QUEUE_LIMIT)
        self._output, self._most = output, adapters
        self._vectors: OrderedDict[str, Vector] = OrderedDict()
        self._coordinates: int | None = None
        self._tickets: dict[int, Ticket] = {}

    def read(self, lines: IO[bytes]) -> None:
        """Take jobs until the input ends, then end the process, whatever the main thread does."""
        while line := lines.readline(LINE_LIMIT):
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self.take(message)
        os._exit(0)

    def take(self, message: dict[str, Any]) -> None:
        """Act on one message."""
        if type(cancelled := message.get("cancel")) is int:
            if (ticket := self._tickets.get(cancelled)) is not None:
                ticket.cancelled.set()
            return
        number = message.get("id")
        if type(number) is not int:
            return
        try:
            self._start(Ticket(number=number, job=message))
        except Exception as e:  # noqa: BLE001  (the loop of this thread: one bad job must not end it)
            self._output.fail(number, e)

    def finish(self, ticket: Ticket) -> None:
        """Forget a ticket that has its last event."""
        self._tickets.pop(ticket.number, None)

    def _start(self, ticket: Ticket) -> None:
        job = ticket.job
        match job.get("job"):
            case "register":
                self._register(job)
                self._output.send(ticket.number, "done")
            case "drop":
                self._vectors.pop(str(job.get("name")), None)
                self._output.send(ticket.number, "done")
            case "load":
                self._coordinates = layout(Path(job["model"]), AdapterSpec.parse(job["spec"])).coordinates
                self._enqueue(ticket)
            case "generate":
                ticket.vector = self._vector(job)
                self._enqueue(ticket)
            case other:
                raise JobRefused(f"couldn't start job: {other!r} is not a job", reason="unknown_job")

    def _enqueue(self, ticket: Ticket) -> None:
        self._tickets[ticket.number] = ticket
        try:
            self.waiting.put_nowait(ticket)
        except queue.Full:
            self.finish(ticket)
            raise JobRefused(f"couldn't queue job: {QUEUE_LIMIT} are waiting", reason="busy") from None

    def _vector(self, job: dict[str, Any]) -> Vector | None:
        name = str(job["model"])
        if name == "base":
            return None
        if name not in self._vectors:
            if not job.get("vector"):
                raise JobRefused(f"couldn't find adapter {name}: it is not registered", reason="unknown_adapter")
            self._register({"name": name, "vector": job["vector"], "digest": job.get("digest")})
        self._vectors.move_to_end(name)
        return self._vectors[name]

    def _register(self, job: dict[str, Any]) -> None:
        name, path = str(job["name"]), job.get("vector")
        if self._coordinates is None:
            raise JobRefused("couldn't register adapter: no model is loaded", reason="not_loaded")
        if path is None:
            vector = np.zeros(self._coordinates, dtype=np.float32)
        else:
            vector = read_vector(Path(path), coordinates=self._coordinates, digest=job.get("digest"))
        self._vectors[name] = vector
        self._vectors.move_to_end(name)
        while len(self._vectors) > self._most:
            self._vectors.popitem(last=False)


class Engine:
    """The main thread's side: owns the model."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._model: TextModel | None = None

    def run(self, ticket: Ticket) -> None:
        """Carry out one load or generate job up to its last event."""
        try:
            if ticket.job["job"] == "load":
                self._load(ticket)
            else:
                self._generate(ticket)
        except Exception as e:  # noqa: BLE001  (the supervisor of jobs: a failed one must not end the process)
            self._output.fail(ticket.number, e)

    def _load(self, ticket: Ticket) -> None:
        from node.serving.generation import TextModel

        since = time.monotonic()
        self._model = TextModel(Path(ticket.job["model"]), AdapterSpec.parse(ticket.job["spec"]))
        self._output.send(
            ticket.number,
            "done",
            context=self._model.context,
            device=self._model.device.type,
            seconds=round(time.monotonic() - since, 3),
        )

    def _generate(self, ticket: Ticket) -> None:
        from node.serving.generation import Cancelled

        if self._model is None:
            raise JobRefused("couldn't answer: no model is loaded", reason="not_loaded")
        finish = ""
        prompt, sampling = parse_generate(ticket.job)
        try:
            for part in self._model.generate(prompt, ticket.vector, sampling, ticket.cancelled.is_set):
                if isinstance(part, Piece):
                    finish = part.finish or finish
                    more = {"finish_reason": part.finish} if part.finish else {}
                    self._output.send(ticket.number, "token", index=part.index, text=part.text, **more)
                else:
                    usage = {"prompt_tokens": part.prompt_tokens, "completion_tokens": part.completion_tokens}
                    self._output.send(ticket.number, "done", finish_reason=finish, usage=usage)
        except Cancelled:
            self._output.send(ticket.number, "done", finish_reason="cancelled")


def parse_generate(job: dict[str, Any]) -> tuple[Prompt, Sampling]:
    """Prompt and sampling of a generate job. Raises JobRefused when it has no prompt or too many answers."""
    prompt: Prompt
    if isinstance(messages := job.get("messages"), list):
        prompt = Chat(messages=tuple(messages))
    elif isinstance(text := job.get("prompt"), str):
        prompt = text
    elif isinstance(text, list):
        prompt = Tokens(ids=tuple(text))
    else:
        raise JobRefused("couldn't answer: prompt or messages are expected", reason="bad_job")
    seed, most = job.get("seed"), job.get("max_tokens")
    sampling = Sampling(
        max_tokens=None if most is None else int(most),
        temperature=float(job.get("temperature", 0.0)),
        top_p=float(job.get("top_p", 1.0)),
        seed=None if seed is None else int(seed),
        stop=tuple(str(stop) for stop in job.get("stop") or ()),
        n=int(job.get("n", 1)),
    )
    if not (1 <= sampling.n <= 4 and sampling.temperature >= 0 and (most is None or sampling.max_tokens)):
        raise JobRefused("couldn't answer: n is 1 to 4, temperature and max_tokens are positive", reason="bad_job")
    return prompt, sampling


def main() -> None:
    """Run until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m node.serving.engine", description="The engine process of a node.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one forward pass")
    parser.add_argument("--adapters", type=int, default=ADAPTERS, help="adapter vectors kept in memory")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    output = Output(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # a library that prints must not write between our lines
    inbox, engine = Inbox(output, arguments.adapters), Engine(output)
    threading.Thread(target=inbox.read, args=(sys.stdin.buffer,), daemon=True, name="jobs").start()
    import torch

    torch.set_num_threads(arguments.threads)
    while True:
        ticket = inbox.waiting.get()
        engine.run(ticket)
        inbox.finish(ticket)


if __name__ == "__main__":
    main()
