"""Jobs in, events out: one JSON object a line, as `node.jobs` has them.

    {"id":1,"job":"load","model":FOLDER,"base":DIGEST,"spec":{...}}        again: another base takes over between two steps
    {"id":2,"job":"register", VERSION}      {"id":3,"job":"drop", VERSION}      {"id":5,"job":"stats"}
    {"id":4,"job":"generate","model":NAME, VERSION, "prompt":TEXT|[ids] or "messages":[..], the fields of node.ports.Sampling,
     "tenant":TEXT,"deadline":SECONDS}
    {"id":6,"job":"embed","inputs":[TEXT|[ids] or {"messages":[..]}],"tenant":..,"deadline":..}
    {"cancel":4}

VERSION is "vector":NPY (with "spec", else the load job's) or "folder":PEFT FOLDER, "digest" of its content, and "base": the
digest of the base it was made for; without vector and folder it is the bare base.

Events of a generate job: {"event":"token","index":0,"text":..}, with "tokens" where scores were asked for and
"finish_reason" on the last one of each answer, then {"event":"done","digest":..,"usage":{..}}; the digest is of what answered.
Embed: {"event":"vector","index":0,"values":BASE64 of float32}, then done with usage.

The reading thread parses and tokenizes, so that the engine thread need not. Invariant: each job ends with one "done" or one
"error"; a bad line or job ends nothing else; the process ends when its input ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from contrib.adapters import AdapterSpec
from contrib.errors import BadModel
from contrib.weights import read_json
from node.errors import JobRefused
from node.errors_serving import BadVector, Busy, ContextTooLong
from node.jobs import LINE_LIMIT
from node.ports import Piece, Sampling, Usage
from node.serving.engine.answer import DEFAULT_TOKENS, Request
from node.serving.engine.embedding import Embeds
from node.serving.engine.grammar import Grammar
from node.serving.engine.lane import Lane
from node.serving.engine.loop import Base, Engine
from node.serving.engine.reports import Reports
from node.serving.engine.sampling import Sampler
from node.serving.engine.scheduler import BASE
from node.serving.engine.store import Source
from node.serving.lines import parse_prompt, parse_sampling, piece_fields, usage_fields, vector_text
from protocol.errors import FishernetError

if TYPE_CHECKING:
    import torch

MOST_INPUTS = 2048  # of one embed job


class Output:
    """Writes events, one line each, from several threads; they go out with `flush`."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, number: int, event: str, **fields: object) -> None:
        """Write one event."""
        line = json.dumps({"id": number, "event": event, **fields}, separators=(",", ":"))
        with self._lock:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        """Let out what was written."""
        with self._lock:
            self._stream.flush()

    def fail(self, number: int, error: Exception) -> None:
        """Write the error event of a job; what was not foreseen also leaves its traceback on the standard error."""
        match error:
            case ContextTooLong():
                self.send(number, "error", code=error.code, message=str(error), limit=error.limit)
            case Busy():
                self.send(number, "error", code=error.code, message=str(error), retry_after=error.retry_after)
            case JobRefused():
                self.send(number, "error", code=error.reason, message=str(error))
            case FishernetError():
                self.send(number, "error", code=error.code, message=str(error))
            case MemoryError():
                self.send(number, "error", code="no-memory", message="couldn't finish job: not enough memory")
            case _:
                traceback.print_exception(error)
                self.send(number, "error", code="job-crashed", message=f"couldn't finish job: {type(error).__name__}")

    def reports(self) -> Reports:
        """What lanes report to."""
        return Reports(
            piece=self._piece,
            vector=self._vector,
            done=self._done,
            failed=self.fail,
            cancelled=lambda number: self.send(number, "done", finish_reason="cancelled"),
        )

    def _piece(self, request: Request, piece: Piece) -> None:
        self.send(request.number, "token", **piece_fields(piece))

    def _vector(self, embeds: Embeds, index: int, vector: torch.Tensor) -> None:
        self.send(embeds.number, "vector", index=index, values=vector_text(vector.float().cpu().numpy()))

    def _done(self, request: Request | Embeds) -> None:
        if isinstance(request, Request):
            self.send(request.number, "done", digest=request.digest, usage=usage_fields(request.usage()))
        else:
            tokens = sum(map(len, request.inputs))
            self.send(request.number, "done", usage=usage_fields(Usage(prompt_tokens=tokens, completion_tokens=0)))


class Inbox:
    """The reading thread's side: turns lines into work for the engine."""

    def __init__(self, engine: Engine, output: Output) -> None:
        self._engine, self._output = engine, output

    def read(self, lines: IO[bytes]) -> None:
        """Take jobs until the input ends, then end the process, whatever the engine thread does."""
        while line := lines.readline(LINE_LIMIT):
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self.take(message)
        os._exit(0)

    def take(self, message: dict[str, Any]) -> None:
        """Act on one message."""
        if type(cancelled := message.get("cancel")) is int:
            self._engine.cancel(cancelled)
            return
        number = message.get("id")
        if type(number) is not int:
            return
        try:
            self._start(number, message)
        except Exception as e:  # noqa: BLE001  (the loop of this thread: one bad job must not end it)
            wrong = isinstance(e, KeyError | TypeError | ValueError | AttributeError)
            self._output.fail(number, _bad_job(e) if wrong else e)
            self._output.flush()

    def _start(self, number: int, job: dict[str, Any]) -> None:
        match job.get("job"):
            case "load":
                spec = None if job.get("spec") is None else AdapterSpec.parse(job["spec"])
                base = Base(folder=Path(job["model"]), digest=str(job.get("base") or ""), spec=spec)
                self._engine.load(number, base, partial(self._loaded, number))
            case "register":
                lane = self._engine.lane(job.get("base"))
                source = _source(job, lane.spec)
                if source is None:
                    raise JobRefused("couldn't register adapter: vector or folder is expected", reason="bad_job")
                self._engine.register(number, lane, source, lambda: self._output.send(number, "done"))
            case "drop":
                source = _source(job, self._engine.lane(job.get("base")).spec)
                if source is not None:
                    self._engine.drop(source.version)
                self._engine.post(lambda: self._output.send(number, "done"))
            case "stats":
                self._engine.post(lambda: self._output.send(number, "done", stats=self._engine.stats()))
            case "generate":
                lane = self._engine.lane(job.get("base"))
                self._engine.submit(lane, self._request(number, job, lane))
            case "embed":
                lane = self._engine.lane(job.get("base"))
                self._engine.submit_embeds(lane, self._embeds(number, job, lane))
            case other:
                raise JobRefused(f"couldn't start job: {other!r} is not a job", reason="unknown_job")

    def _loaded(self, number: int, lane: Lane, seconds: float) -> None:
        self._output.send(
            number, "done", context=lane.runner.context, device=lane.runner.device.type, seconds=round(seconds, 3)
        )

    def _request(self, number: int, job: dict[str, Any], lane: Lane) -> Request:
        source = _source(job, lane.spec)
        sampling = parse_sampling(job)
        ids = lane.text.encode(parse_prompt(job))
        seed = secrets.randbits(48) if sampling.seed is None else sampling.seed
        arrived = self._engine.clock()
        return Request(
            number=number,
            name=str(job.get("model") or BASE)[:256],
            version=BASE if source is None else source.version,
            source=source,
            tenant=str(job.get("tenant") or ""),
            ids=ids,
            sampling=sampling,
            samplers=[
                Sampler(sampling, index, seed % 2**63, self._grammar(sampling, lane)) for index in range(sampling.n)
            ],
            most=room(len(ids), sampling.max_tokens, lane.runner.context),
            arrived=arrived,
            deadline=_deadline(job, arrived),
        )

    def _embeds(self, number: int, job: dict[str, Any], lane: Lane) -> Embeds:
        given = job.get("inputs")
        if not isinstance(given, list) or not 1 <= len(given) <= MOST_INPUTS:
            raise JobRefused(f"couldn't embed: 1 to {MOST_INPUTS} inputs are expected", reason="bad_job")
        prompts = [parse_prompt(each if isinstance(each, dict) else {"prompt": each}) for each in given]
        inputs = [lane.text.encode(prompt) for prompt in prompts]
        for ids in inputs:
            room(len(ids), 0, lane.runner.context)
        arrived = self._engine.clock()
        tenant, deadline = str(job.get("tenant") or ""), _deadline(job, arrived)
        return Embeds(number=number, inputs=inputs, tenant=tenant, arrived=arrived, deadline=deadline)

    @staticmethod
    def _grammar(sampling: Sampling, lane: Lane) -> Grammar | None:
        if sampling.json is None:
            return None
        return Grammar.for_json(sampling.json, lane.text.folder / "tokenizer.json", sorted(lane.text.ends))


# -- parsing ---------------------------------------------------------------------------------------------------------
def room(prompt: int, asked: int | None, context: int) -> int:
    """The length of an answer in tokens. Raises ContextTooLong: prompt and answer do not fit."""
    if asked is None:
        asked = max(1, min(DEFAULT_TOKENS, context - prompt))
    if prompt + asked > context:
        message = (
            f"couldn't answer: the model reads at most {context} tokens, "
            f"the prompt has {prompt} and the answer may have {asked}"
        )
        raise ContextTooLong(message, limit=context)
    return asked


def _deadline(job: dict[str, Any], now: float) -> float | None:
    seconds = job.get("deadline")
    return None if seconds is None else now + float(seconds)


def _source(job: dict[str, Any], charter: AdapterSpec | None) -> Source | None:
    """The version of a job, named by its content; None: the bare base.

    Without a digest the file's own time and size stand for its content, so that a file that was replaced is another version.
    """
    digest = job.get("digest")
    try:
        if job.get("vector"):
            spec = charter if job.get("spec") is None else AdapterSpec.parse(job["spec"])
            if spec is None:
                raise JobRefused("couldn't use vector: no adapter shape is known", reason="bad_job")
            path, rank, shape = Path(job["vector"]), spec.rank, json.dumps(spec.to_json(), sort_keys=True)
            weights = path
        elif job.get("folder"):
            path, spec, shape = Path(job["folder"]), None, "peft"
            weights = path / "adapter_model.safetensors"
            stated = read_json(path / "adapter_config.json").get("r")
            rank = stated if type(stated) is int else 0
            if not 1 <= rank <= 1024:
                raise BadVector(f"couldn't load adapter {path.name}: its rank is {stated!r}")
        else:
            return None
        if digest is None:
            found = weights.stat()
            content = f"{weights}:{found.st_mtime_ns}:{found.st_size}"
        else:
            content = str(digest)
    except (OSError, BadModel) as e:
        raise BadVector(f"couldn't read adapter {job.get('vector') or job.get('folder')}: {e}") from e
    shape = hashlib.sha256(shape.encode()).hexdigest()[:16]
    return Source(version=f"{content}/{shape}", path=path, rank=rank, spec=spec, digest=digest)


def _bad_job(error: Exception) -> JobRefused:
    return JobRefused(f"couldn't start job: {type(error).__name__}: {str(error)[:200]}", reason="bad_job")
