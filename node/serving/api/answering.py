"""From the engine's pieces to the body of an answer or the lines of a stream.

Knows OpenAI's shapes only through `api_answers`. Invariants: several prompts of one request run side by side and their pieces
keep their order; a client that goes away cancels everything its request had started; an error in the middle of a stream is
the stream's last event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from fastapi import Request

from node.errors_serving import TooLate
from node.ports import Engine, Piece, Prompt, Sampling, ServedModel, Usage
from node.serving.api.answers import Answer
from node.serving.api.errors import problem
from protocol.errors import FishernetError

T = TypeVar("T")
Part = Piece | Usage

_AHEAD: Final = 64  # pieces of one request that nobody has read yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request with its version bound."""

    model: ServedModel
    prompts: Sequence[Prompt]
    sampling: Sampling
    tenant: str = ""
    deadline: float | None = None


async def parts_of(engine: Engine, asked: Asked) -> AsyncGenerator[Part, None]:
    """The pieces of all prompts, choices numbered through, then one usage for all. Raises as `Engine.generate`."""
    if len(asked.prompts) == 1:
        async with contextlib.aclosing(_one(engine, asked, 0)) as parts:
            async for part in parts:
                yield part
        return
    used = Usage(prompt_tokens=0, completion_tokens=0)
    async with contextlib.aclosing(_merged([_one(engine, asked, n) for n in range(len(asked.prompts))])) as parts:
        async for part in parts:
            if isinstance(part, Piece):
                yield part
            else:
                used = added(used, part)
    yield used


async def _one(engine: Engine, asked: Asked, number: int) -> AsyncGenerator[Part, None]:
    prompt, n = asked.prompts[number], asked.sampling.n
    options: dict[str, Any] = {"tenant": asked.tenant, "deadline": asked.deadline}
    async with contextlib.aclosing(engine.generate(asked.model, prompt, asked.sampling, **options)) as parts:
        async for part in parts:
            yield replace(part, index=number * n + part.index) if isinstance(part, Piece) else part


async def _merged(sources: Sequence[AsyncGenerator[Part, None]]) -> AsyncGenerator[Part, None]:
    """What all sources give, as it comes; the first error ends all of them.

    Plain tasks and no group: this generator may be closed by another task than the one that began it.
    """
    queue: asyncio.Queue[Part | BaseException | None] = asyncio.Queue(_AHEAD)

    async def pump(source: AsyncGenerator[Part, None]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for part in source:
                    await queue.put(part)
            await queue.put(None)
        except Exception as e:  # noqa: BLE001  (it is raised where the parts are read)
            await queue.put(e)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    open_ = len(tasks)
    try:
        while open_:
            got = await queue.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                open_ -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def added(one: Usage, other: Usage) -> Usage:
    """The sum of two usages."""
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )


async def collected(parts: AsyncIterator[Part], answer: Answer) -> dict[str, Any]:
    """The body of a whole answer. Raises TooLate when the deadline passed before any token."""
    pieces: list[Piece] = []
    usage = Usage(prompt_tokens=0, completion_tokens=0)
    async for part in parts:
        if isinstance(part, Piece):
            pieces.append(part)
        else:
            usage = part
    if pieces and not usage.completion_tokens and all(p.finish == "deadline" or not p.finish for p in pieces):
        raise TooLate("couldn't answer: the request's timeout passed before the first token")
    return answer.whole(pieces, usage)


async def lines(
    first: Part,
    parts: AsyncGenerator[Part, None],
    answer: Answer,
    *,
    usage: bool,
    broken: Callable[[FishernetError], None],
) -> AsyncGenerator[str, None]:
    """The lines of a stream of server-sent events."""
    opened: set[int] = set()
    part: Part | None = first
    told = False
    try:
        while part is not None:
            if isinstance(part, Piece):
                chunks = answer.chunk(part)
                if answer.chat and part.index not in opened:
                    opened.add(part.index)
                    chunks = [answer.opening(part.index), *chunks]
                for chunk in chunks:
                    more: dict[str, Any] = {"usage": None} if usage else {}
                    if not told:  # where it came from stands in the first chunk, and in the one that counts tokens
                        told, more = True, {**more, "fishernet": dict(answer.origin)}
                    yield event({**chunk, **more})
            elif usage:
                yield event(answer.ending(part))
            part = await anext(parts, None)
        yield "data: [DONE]\n\n"
    except FishernetError as e:
        broken(e)
        yield event(problem(e)[1])
    finally:
        await parts.aclose()


def event(value: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None, with `work` cancelled, when the client closes the connection first."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait({working, watching})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
