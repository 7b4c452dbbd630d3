"""The OpenAI-style HTTP API over the Engine port: its routes.

    api_requests.py   bodies in          api_answers.py    bodies out, their shapes
    api_binding.py    what a request is bound to before its first token: version, key, deadline
    api_keys.py       who may            api_errors.py     refusals
    api_answering.py  pieces to answers  api_metrics.py    what Prometheus reads

`create_app` makes the application; `node.http` runs it. It knows neither torch nor the ledger. Log lines name model, key id
and token counts, never text.

Invariant: every answer names the version it came from and the ledger head at its beginning (headers `x-fishernet-model`,
`x-fishernet-release`, `x-fishernet-head`, `system_fingerprint`, `fishernet`); a client that goes away cancels its request.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer

from node.errors import NodeError
from node.errors_serving import UnknownModel
from node.http import BodyLimit
from node.ports import Engine, Piece, ServedModel, Usage
from node.serving.access.keyfile import Judge, KeyFile, no_grants
from node.serving.access.log import AccessLog
from node.serving.api import answers as shapes
from node.serving.api.answering import Part, collected, lines, parts_of, unless_gone
from node.serving.api.binding import BASE, Binder, Bound, Facts, headers_of
from node.serving.api.errors import RESPONSES, add_error_handlers, problem
from node.serving.api.keys import Door
from node.serving.api.metrics import CONTENT_TYPE, Metrics, Watch
from node.serving.api.node_metrics import Read
from node.serving.api.requests import MOST_SECONDS, ChatRequest, CompletionRequest, EmbeddingRequest
from protocol.errors import FishernetError
from protocol.ids import short

__all__ = ["Facts", "Keys", "create_app"]

log = logging.getLogger("fishernet.api")

MOST_BODY: Final = 4 << 20  # bytes
GONE: Final = 499  # nobody reads it: the client has closed the connection
LATEST: Final = "latest"
_NOTHING: Final = Usage(prompt_tokens=0, completion_tokens=0)
_PURPOSE = Header(default=None, alias="x-fishernet-purpose", description="One of the key's purposes.")
_TIMEOUT = Header(
    default=None, alias="timeout", gt=0, le=MOST_SECONDS, allow_inf_nan=False, description="As the field timeout."
)
# The scheme is only for the document: the door decides, and with our shape of errors.
_GUARDED = [Depends(HTTPBearer(auto_error=False, description="Asked for where the node has keys."))]
_STREAMED: Final = {
    "description": "The answer; a stream of server-sent events when stream is true.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Where API keys come from besides node.toml, who decides on their grants, and where decisions are counted."""

    file: KeyFile | None = None
    judge: Judge = no_grants
    log: AccessLog | None = None


def create_app(
    engine: Engine,
    facts: Callable[[], Facts],
    *,
    api_keys: Sequence[str] = (),
    keys: Keys | None = None,
    meters: Read | None = None,
    now: Callable[[], float] = time.time,
    most_body: int = MOST_BODY,
) -> FastAPI:
    """The application. With `api_keys`, or once `keys` has one, every request but /health and /ready must carry a key.

    `meters` gives the numbers of the node around it for /metrics.
    """
    app = FastAPI(
        title="Fishernet",
        version="1",
        summary="The models of one node, in OpenAI's shapes.",
        docs_url=None,
        redoc_url=None,
        responses=RESPONSES,
    )
    app.add_middleware(BodyLimit, limit=most_body)
    add_error_handlers(app)
    metrics, given = Metrics(meters), keys or Keys()
    door = Door(config_keys=api_keys, file=given.file, judge=given.judge, log=given.log, denied=metrics.denied, now=now)
    app.state.door = door
    binder = Binder(engine, facts, door, now)
    _add_answers(app, _Answers(engine, binder, door, metrics))
    _add_models(app, engine, binder, door)
    _add_state(app, engine, facts, door, metrics)
    return app


# -- answers ---------------------------------------------------------------------------------------------------------
class _Answers:
    """Requests that cost tokens: each is bound, timed, charged and answered."""

    def __init__(self, engine: Engine, binder: Binder, door: Door, metrics: Metrics) -> None:
        self._engine, self._binder, self._door, self._metrics = engine, binder, door, metrics

    async def generate(
        self, body: ChatRequest | CompletionRequest, request: Request, route: str, timeout: float | None
    ) -> Response:
        """The answer to one request, whole or as a stream; errors before the first token have their own status."""
        try:
            bound = await self._binder.bind(body, request, timeout)
        except FishernetError as e:
            self._metrics.refused(route, problem(e)[0])
            raise
        watch = self._metrics.watch(route, bound.asked.model.name)
        parts = self._metered(bound, watch)
        try:
            if not body.stream:
                done = await unless_gone(request, collected(parts, bound.answer))
                await parts.aclose()
                return Response(status_code=GONE) if done is None else JSONResponse(done, headers=dict(bound.headers))
            first = await unless_gone(request, _next(parts))
        except FishernetError as e:
            watch.end(problem(e)[0])
            raise
        except BaseException:
            await parts.aclose()
            raise
        if first is None:
            await parts.aclose()
            return Response(status_code=GONE)

        def broken(error: FishernetError) -> None:
            log.warning("event=answer-broken model=%s code=%s", bound.answer.model, error.code)

        stream = lines(first, parts, bound.answer, usage=body.include_usage, broken=broken)
        headers = {**bound.headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def _metered(self, bound: Bound, watch: Watch) -> AsyncGenerator[Part, None]:
        """The parts of an answer, timed and counted; what they cost is charged however they end."""
        used, drawn = None, 0
        try:
            async with contextlib.aclosing(parts_of(self._engine, bound.asked)) as parts:
                async for part in parts:
                    if isinstance(part, Piece):
                        watch.piece(part)
                        drawn += 1
                    else:
                        used = part
                        watch.usage(part)
                    yield part
        except FishernetError as e:
            watch.end(problem(e)[0])
            raise
        finally:
            cost = used or replace(_NOTHING, completion_tokens=drawn)  # given up: about a token a piece
            self._door.done(bound.admitted, bound.asked.model, cost)
            seconds = watch.end(200 if used else GONE)
            log.info(
                "event=answered model=%s digest=%s key=%s prompt_tokens=%d completion_tokens=%d ms=%d",
                bound.asked.model.name,
                short(bound.asked.model.digest),
                bound.admitted.tenant or "-",
                cost.prompt_tokens,
                cost.completion_tokens,
                1000 * seconds,
            )

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """Vectors of texts, by the base model."""
        model, admitted, known = self._binder.base(body.model, request)
        watch, used = self._metrics.watch("embeddings", model.name), _NOTHING
        try:
            found = await unless_gone(request, self._engine.embed(body.prompts()))
            if found is None:
                watch.end(GONE)
                return Response(status_code=GONE)
            vectors, used = found
            watch.usage(used)
            watch.end(200)
        except FishernetError as e:
            watch.end(problem(e)[0])
            raise
        finally:
            self._door.done(admitted, model, used)
        packed = body.encoding_format == "base64"
        data = [{"object": "embedding", "index": i, "embedding": _vector(v, packed)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": used.prompt_tokens, "total_tokens": used.prompt_tokens}
        answer = {"object": "list", "data": data, "model": model.name, "usage": usage}
        return JSONResponse(answer, headers=headers_of(model, known))


def _add_answers(app: FastAPI, answers: _Answers) -> None:
    @app.post("/v1/completions", dependencies=_GUARDED, response_model=shapes.Completion, responses={200: _STREAMED})
    async def completions(
        body: CompletionRequest, request: Request, purpose: str | None = _PURPOSE, timeout: float | None = _TIMEOUT
    ) -> Response:
        """Continue one or several prompts."""
        return await answers.generate(body, request, "completions", timeout)

    @app.post(
        "/v1/chat/completions", dependencies=_GUARDED, response_model=shapes.ChatCompletion, responses={200: _STREAMED}
    )
    async def chat_completions(
        body: ChatRequest, request: Request, purpose: str | None = _PURPOSE, timeout: float | None = _TIMEOUT
    ) -> Response:
        """Answer a conversation."""
        return await answers.generate(body, request, "chat", timeout)

    @app.post("/v1/embeddings", dependencies=_GUARDED, response_model=shapes.EmbeddingList)
    async def embeddings(body: EmbeddingRequest, request: Request, purpose: str | None = _PURPOSE) -> Response:
        """Embed texts with the base model: means of its last hidden states, of length 1."""
        return await answers.embed(body, request)


def _vector(vector: Any, packed: bool) -> list[float] | str:
    if packed:
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]


async def _next(parts: AsyncGenerator[Part, None]) -> Part:
    return await anext(parts)


# -- models ----------------------------------------------------------------------------------------------------------
def _add_models(app: FastAPI, engine: Engine, binder: Binder, door: Door) -> None:
    def listed(each: ServedModel) -> dict[str, Any]:
        return shapes.model_body(each, owner=binder.node, base=engine.find(BASE).digest)

    @app.get("/v1/models", dependencies=_GUARDED, response_model=shapes.ModelList)
    async def models(request: Request) -> dict[str, Any]:
        """The versions that can be asked for."""
        key, served = binder.caller(request), list(engine.models())
        with contextlib.suppress(UnknownModel):
            served.insert(1, replace(engine.find(LATEST), name=LATEST))
        return {"object": "list", "data": [listed(each) for each in served if door.may_see(key, [each.name])]}

    @app.get("/v1/models/{name:path}", dependencies=_GUARDED, response_model=shapes.ModelBody)
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One version, by any of its names."""
        key = binder.caller(request)
        found = binder.resolve(name, key)
        if not door.may_see(key, [name, found.name]):
            raise UnknownModel(f"couldn't find model {name[:80]!r}: this key does not cover it")
        return listed(found)


# -- state -----------------------------------------------------------------------------------------------------------
def _add_state(app: FastAPI, engine: Engine, facts: Callable[[], Facts], door: Door, metrics: Metrics) -> None:
    @app.get("/health", response_model=shapes.Health)
    async def health() -> dict[str, Any]:
        """Whether this process answers; see /ready for whether it can answer requests."""
        return {"status": "ok", "node": facts().node}

    @app.get("/ready", response_model=shapes.Readiness, responses={503: {"model": shapes.Readiness}})
    async def ready() -> JSONResponse:
        """Whether requests can be answered now, and what is missing."""
        known = facts()
        missing = [name for name, up in known.ready.items() if not up]
        body = {
            "status": "starting" if missing else "ok",
            "node": known.node,
            "release": known.release,
            "head": known.head,
            "ready": dict(known.ready),
            "missing": missing,
        }
        return JSONResponse(body, status_code=503 if missing else 200)

    @app.get(
        "/metrics",
        dependencies=_GUARDED,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus(request: Request) -> Response:
        """Meters in Prometheus' text format; any key that holds may read them."""
        door.caller(request.headers.get("authorization", ""))
        try:
            counted = await engine.stats()
        except NodeError as e:
            log.debug("event=metrics-without-engine code=%s", e.code)
            counted = {}
        return Response(metrics.text(counted), headers={"content-type": CONTENT_TYPE})
