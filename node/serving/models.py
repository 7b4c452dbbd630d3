"""The node's models: which version a name stands for, and answers from the engine process.

Holds the table of names (`node.serving.names`) and talks to `node.serving.engine` over
`node.children`. It imports no torch and knows nothing of HTTP. A vector's file must stay where it is while it is in the
table; nothing here writes a file.

Invariant: a request is bound to one version when it is found and ends on it, whatever is set meanwhile; a version enters
the table only after its vector has been read and checked, so a bad file leaves the old version served.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contrib.merging import model_digest
from node.children import Child, Command, python
from node.errors import ChildError, JobCrashed, JobRefused
from node.errors_serving import BadVector, Busy
from node.jobs import Event, Job
from node.ports import Piece, Prompt, Retiring, Route, Sampling, ServedModel, Usage
from node.serving.lines import (
    parse_piece,
    parse_usage,
    parse_vectors,
    prompt_fields,
    sampling_fields,
    version_fields,
)
from node.serving.names import BASE, VIEW, Names
from node.serving.routing import Domain, Router
from node.serving.vectors import read_vector
from protocol.canon import Json
from protocol.ids import Digest, short

log = logging.getLogger("fishernet.serving")

MOST_WAITING = 1024  # requests under way or queued here; the engine's own queue is shorter and fair
ANSWER_TIMEOUT = 900.0  # s from admission to the last token, the queue included, when the request names no deadline
LOAD_TIMEOUT = 600.0  # s to load a base beside the one that serves
REGISTER_TIMEOUT = 60.0  # s for the engine to read one adapter, or to count
_LOOK_S = 0.1
LATE = 30.0  # s that the engine may take to say that a deadline has come


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much the engine takes on: its command line. `ram` is MiB of adapters in memory, `cycle` in seconds."""

    threads: int = 1
    rows: int = 16
    max_active: int = 128
    cycle: float = 2.0
    queue: int = 512
    ram: int = 1024
    context: int | None = None
    dtype: str | None = None

    def argv(self) -> list[str]:
        """The options of `python -m node.serving.engine`."""
        given = {name.replace("_", "-"): getattr(self, name) for name in Load.__slots__}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


class Serving:
    """The Engine port over an engine process that starts with the first request."""

    def __init__(
        self,
        *,
        model: Path,
        base: Digest,
        adapter: Mapping[str, Any],
        threads: int = 1,
        load: Load | None = None,
        most_waiting: int = MOST_WAITING,
        experts: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve the base model in the folder `model`; `adapter` is the charter's (rank, alpha, targets, seed).

        `experts` are texts of the operator's that say what models are for, by name; they go before what is declared.
        """
        self._load = _load_job(model, base, adapter)
        self.coordinates: int | None = adapter.get("coordinates")
        self._most_waiting, self._now = most_waiting, now
        self.names = Names(base=ServedModel(name=BASE, digest=base, vector=None, created=int(now())))
        self._experts = {name: Domain(text=text, source="configured") for name, text in (experts or {}).items()}
        self._router = Router(self.embed)
        self._router.domains = self._experts
        self._under_way = 0
        self._env, self._leaving = env or {}, set[Child]()
        self.child = self._engine(load or Load(threads=threads))

    # -- life --------------------------------------------------------------------------------------------------------
    def _engine(self, load: Load) -> Child:
        command = Command(name="engine", argv=python("node.serving.engine", *load.argv()), env=self._env)
        return Child(command, setup=lambda: [self._load])

    async def renew(self, load: Load, *, preload: bool) -> None:
        """Answer with an engine that takes on `load`; requests under way end on the old one, then it ends.

        With `preload`, or while one is loaded, the new one is loaded first (raises Retry: it could not; the old one stays).
        """
        fresh, old = self._engine(load), self.child
        if preload or old.running:
            try:
                await fresh.start()
            except BaseException:
                await fresh.stop()
                raise
        self.child = fresh
        self._leaving.add(old)
        try:
            while old.busy:
                await asyncio.sleep(_LOOK_S)
        finally:
            await old.stop()
            self._leaving.discard(old)

    def expect(self, experts: Mapping[str, str]) -> None:
        """Choose by these texts of the operator's from now on; what is declared stays behind them."""
        declared = {n: d for n, d in self._router.domains.items() if n not in self._experts}
        self._experts = {name: Domain(text=text, source="configured") for name, text in experts.items()}
        self._router.domains = {**declared, **self._experts}

    async def start(self, *, preload: bool = False) -> None:
        """With `preload` load the model now instead of at the first request."""
        if preload:
            await self.child.start()

    async def stop(self) -> None:
        """End the engine process; what is under way fails with ChildDied."""
        await asyncio.gather(*(child.stop() for child in (self.child, *self._leaving)))

    @property
    def running(self) -> bool:
        """True while the model is loaded."""
        return self.child.running

    @property
    def under_way(self) -> int:
        """Requests that are answered or wait."""
        return self._under_way

    # -- versions ----------------------------------------------------------------------------------------------------
    def models(self) -> Sequence[ServedModel]:
        """Base, view, the releases from the newest to the oldest, the members' adapters."""
        return self.names.listed()

    def find(self, name: str) -> ServedModel:
        """The version that a name, a digest or `name@digest` means now (raises UnknownModel)."""
        return self.names.find(name)

    async def set_view(self, view: Digest, vector: Path) -> None:
        """Serve the view with model digest `view`. Raises BadVector, and then goes on with the one before."""
        model = ServedModel(name=VIEW, digest=view, vector=vector, model=view, created=int(self._now()))
        self.names = self.names.with_view(await self._checked(model))
        log.info("event=serving name=view digest=%s", short(view))

    async def set_release(self, height: int, release: Digest, vector: Path, *, model: Digest | None = None) -> None:
        """Serve a release; `model` is the digest of its vector, checked when given. Raises BadVector."""
        served = ServedModel(
            name=f"release-{height}",
            digest=release,
            vector=vector,
            model=model,
            height=height,
            created=int(self._now()),
        )
        self.names = self.names.with_release(await self._checked(served))
        log.info("event=serving name=%s digest=%s", served.name, short(release))

    def drop_release(self, height: int, *, forget: bool = False) -> None:
        """Stop serving a release; requests under way end on it. `forget`: nor under its digest, nor any other old version."""
        self.names = self.names.without_release(height)
        if forget:
            self.names = self.names.forgetting()

    def retire(self, releases: Sequence[Retiring]) -> None:
        """Which releases end at a time, and which are gone; replaces what was said before."""
        self.names = self.names.retiring(releases)

    async def set_member(self, name: str, vector: Path, *, model: Digest, owner: str = "") -> None:
        """Serve what one member has contributed as `name` from now on (raises BadVector)."""
        served = ServedModel(name=name, digest=model, vector=vector, model=model, created=int(self._now()), owner=owner)
        self.names = self.names.with_member(await self._checked(served))
        log.info("event=serving name=%s digest=%s", name, short(model))

    def drop_member(self, name: str) -> None:
        """Serve no adapter under this name any more; requests under way end on it."""
        self.names = self.names.without_member(name)

    def set_domains(self, domains: Mapping[str, str]) -> None:
        """What the members' data is about, as declared, by the name of each one's adapter."""
        declared = {name: Domain(text=text, source="declared") for name, text in domains.items()}
        self._router.domains = {**declared, **self._experts}

    async def route(self, prompt: Prompt) -> tuple[ServedModel, Route]:
        """The version that "auto" means for this prompt, and why; costs one prefill on the base (raises as `embed`)."""
        return await self._router.route(prompt, self.names)

    async def set_base(self, *, model: Path, base: Digest, adapter: Mapping[str, Any]) -> None:
        """Serve another base from now on; view, releases and members of the old one are gone from the table.

        Requests under way end on what they began with. Raises JobRefused, JobCrashed or JobTimeout when the model can't be
        loaded, and then goes on with the old one.
        """
        job = _load_job(model, base, adapter)
        if self.child.running:
            await self.child.request(job, timeout=LOAD_TIMEOUT)
        self._load, self.coordinates = job, adapter.get("coordinates")
        self.names = Names(base=ServedModel(name=BASE, digest=base, vector=None, created=int(self._now())))
        self._router.forget()
        log.info("event=serving name=base digest=%s", short(base))

    async def _checked(self, model: ServedModel) -> ServedModel:
        """Read the vector before it enters the table, and let the engine read it if that is up; returns it with its digest."""
        if model.vector is None:
            return model
        read = functools.partial(read_vector, coordinates=self.coordinates, digest=model.model)
        vector = await asyncio.to_thread(read, model.vector)
        content = model.model or Digest(await asyncio.to_thread(model_digest, vector))
        checked = replace(model, model=content, base=self.names.base.digest)
        if self.child.running:
            try:
                await self.child.request({"job": "register", **version_fields(checked)}, timeout=REGISTER_TIMEOUT)
            except JobRefused as e:
                raise BadVector(str(e)) from e
            except ChildError as e:
                log.warning(
                    "event=engine-missed-version name=%s error=%s", model.name, e.code
                )  # it reads it when asked for
        return checked

    # -- answers -----------------------------------------------------------------------------------------------------
    async def generate(
        self,
        model: ServedModel,
        prompt: Prompt,
        sampling: Sampling,
        *,
        tenant: str = "",
        deadline: float | None = None,
    ) -> AsyncGenerator[Piece | Usage, None]:
        """Stream the answers of `model`; the last value is the Usage. Closing the generator cancels the request.

        Raises:
            Busy: too many requests wait.
            BadVector: the version can't be read any more.
            ContextTooLong, JobRefused: the request cannot be answered.
            ChildDied, JobTimeout, JobCrashed: the engine failed.
        """
        seconds = ANSWER_TIMEOUT if deadline is None else deadline
        job = {
            "job": "generate",
            "model": model.name,
            **version_fields(model),
            **prompt_fields(prompt),
            **sampling_fields(sampling),
            "tenant": tenant,
            "deadline": seconds,
        }
        async with self._admitted(), contextlib.aclosing(self.child.stream(job, seconds + LATE)) as events:
            async for event in events:
                if event["event"] != "done":
                    yield parse_piece(event)
                    continue
                if event["digest"] not in ("", model.model or model.digest):
                    raise JobCrashed(f"couldn't answer as {model.name}: {event['digest'][:12]}... has answered")
                yield parse_usage(event["usage"])

    async def embed(self, inputs: Sequence[Prompt]) -> tuple[npt.NDArray[np.float32], Usage]:
        """[inputs, hidden]: mean of the base's last hidden states, L2-normalised. Raises as `generate` does."""
        found: dict[int, str] = {}

        def keep(event: Event) -> None:
            found[event["index"]] = event["values"]

        job = {"job": "embed", "inputs": [_input(prompt) for prompt in inputs], "deadline": ANSWER_TIMEOUT}
        async with self._admitted():
            done = await self.child.request(job, keep, ANSWER_TIMEOUT + LATE)
        return parse_vectors([found[index] for index in range(len(inputs))]), parse_usage(done["usage"])

    async def stats(self) -> Mapping[str, Json]:
        """Counters and levels of the engine, flat but for `per_adapter`; empty while it is not loaded."""
        if not self.child.running:
            return {}
        done = await self.child.request({"job": "stats"}, timeout=REGISTER_TIMEOUT)
        stats: Mapping[str, Json] = done["stats"]
        return stats

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._under_way >= self._most_waiting:
            raise Busy(f"couldn't take request: {self._under_way} are under way already", retry_after=2)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _load_job(model: Path, base: Digest, adapter: Mapping[str, Any]) -> Job:
    return {"job": "load", "model": str(model), "base": base, "spec": dict(adapter)}


def _input(prompt: Prompt) -> Any:
    fields = prompt_fields(prompt)
    return fields.get("prompt", fields)
