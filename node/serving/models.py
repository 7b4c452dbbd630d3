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
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from node.children import Child, Command, python
from node.errors import BadVector, Busy, ChildError, JobRefused
from node.jobs import Event, Job
from node.ports import Chat, Piece, Prompt, Sampling, ServedModel, Tokens, Usage
from node.serving.names import BASE, VIEW, Names
from node.serving.vectors import read_vector
from protocol.ids import Digest, short

log = logging.getLogger("fishernet.serving")

MOST_WAITING = 16  # requests under way or queued; the engine answers one at a time
ANSWER_TIMEOUT = 900.0  # s from admission to the last token, the queue included


class Serving:
    """The Engine port over an engine process that starts with the first request."""

    def __init__(
        self,
        *,
        model: Path,
        base: Digest,
        adapter: Mapping[str, Any],
        threads: int = 1,
        most_waiting: int = MOST_WAITING,
        env: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve the base model in the folder `model`; `adapter` is the charter's (rank, alpha, targets, seed)."""
        self._load: Job = {"job": "load", "model": str(model), "spec": dict(adapter)}
        self.coordinates: int | None = adapter.get("coordinates")
        self._most_waiting, self._now = most_waiting, now
        self.names = Names(base=ServedModel(name=BASE, digest=base, vector=None, created=int(now())))
        self._under_way = 0
        argv = python("node.serving.engine", "--threads", str(threads))
        self.child = Child(Command(name="engine", argv=argv, env=env or {}), setup=lambda: [self._load])

    # -- life --------------------------------------------------------------------------------------------------------
    async def start(self, *, preload: bool = False) -> None:
        """With `preload` load the model now instead of at the first request."""
        if preload:
            await self.child.start()

    async def stop(self) -> None:
        """End the engine process; what is under way fails with ChildDied."""
        await self.child.stop()

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
        await self._check(model)
        self.names = self.names.with_view(model)
        log.info("served name=view digest=%s", short(view))

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
        await self._check(served)
        self.names = self.names.with_release(served)
        log.info("served name=%s digest=%s", served.name, short(release))

    def drop_release(self, height: int) -> None:
        """Stop serving a release; requests under way end on it."""
        self.names = self.names.without_release(height)

    async def set_member(self, name: str, vector: Path, *, model: Digest, owner: str = "") -> None:
        """Serve what one member has contributed as `name` from now on (raises BadVector)."""
        served = ServedModel(
            name=name, digest=model, vector=vector, model=model, created=int(self._now()), owner=owner
        )
        await self._check(served)
        self.names = self.names.with_member(served)
        log.info("served name=%s digest=%s", name, short(model))

    def drop_member(self, name: str) -> None:
        """Serve no adapter under this name any more; requests under way end on it."""
        self.names = self.names.without_member(name)

    async def _check(self, model: ServedModel) -> None:
        """Read the vector once before it enters the table, and hand it to the engine if that is up."""
        if model.vector is not None:
            await asyncio.to_thread(read_vector, model.vector, coordinates=self.coordinates, digest=model.model)
        if not self.child.running:
            return
        try:
            await self.child.request({"job": "register", "name": _adapter(model), **_vector(model)}, timeout=60)
        except JobRefused as e:
            raise BadVector(str(e)) from e
        except ChildError as e:
            log.warning("engine_missed_version name=%s error=%s", model.name, e.code)  # it reads it with the next job

    # -- answers -----------------------------------------------------------------------------------------------------
    async def generate(
        self, model: ServedModel, prompt: Prompt, sampling: Sampling
    ) -> AsyncGenerator[Piece | Usage, None]:
        """Stream the answers of `model`; the last value is the Usage. Closing the generator cancels the request.

        Raises:
            Busy: too many requests are under way.
            ContextTooLong, JobRefused: the request cannot be answered.
            ChildDied, JobTimeout, JobCrashed: the engine failed.
        """
        if self._under_way >= self._most_waiting:
            message = f"couldn't take request: {self._under_way} are under way already"
            raise Busy(message, retry_after=2)
        self._under_way += 1
        try:
            job = {
                "job": "generate",
                "model": _adapter(model),
                **_vector(model),
                **_prompt(prompt),
                **_sampling(sampling),
            }
            async with contextlib.aclosing(self.child.stream(job, ANSWER_TIMEOUT)) as events:
                async for event in events:
                    yield _part(event)
        finally:
            self._under_way -= 1


def _adapter(model: ServedModel) -> str:
    """The engine's name of a version: never reused for other bytes."""
    return BASE if model.vector is None else f"{model.digest}/{model.model or ''}"


def _vector(model: ServedModel) -> dict[str, str | None]:
    return {"vector": None if model.vector is None else str(model.vector), "digest": model.model}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    match prompt:
        case str():
            return {"prompt": prompt}
        case Tokens():
            return {"prompt": list(prompt.ids)}
        case Chat():
            return {"messages": [dict(message) for message in prompt.messages]}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "n": sampling.n,
    }


def _part(event: Event) -> Piece | Usage:
    if event["event"] == "done":
        usage = event["usage"]
        return Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
    return Piece(text=event["text"], index=event["index"], finish=event.get("finish_reason"))
