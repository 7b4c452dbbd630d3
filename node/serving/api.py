"""The OpenAI-style HTTP API over the Engine port.

`create_app` makes the application; `node.http` runs it. It knows neither torch nor the ledger: what an answer says about
the ledger comes from `facts`. Log lines name model and token counts, never text.

Invariant: every answer names the version it came from and the ledger head at its beginning (headers `x-fishernet-model`,
`x-fishernet-release`, `x-fishernet-head`, and `system_fingerprint`); a client that goes away cancels its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from node.errors import Busy, ContextTooLong, JobRefused, NodeError, UnknownModel
from node.http import BodyLimit
from node.ports import Engine, Piece, Prompt, Sampling, ServedModel, Usage
from node.serving.api_models import Answer, ChatRequest, CompletionRequest, error_body, model_body
from protocol.errors import FishernetError, Retry
from protocol.ids import Digest, short

log = logging.getLogger("fishernet.api")
T = TypeVar("T")

MOST_BODY = 4 << 20  # bytes
CLIENTS_FAULT = frozenset({"bad_messages", "bad_tokens", "too-large"})  # reasons of the engine that blame the request
INVALID, SERVER, LIMITED, DENIED = "invalid_request_error", "server_error", "rate_limit_error", "authentication_error"
GONE = 499  # nobody reads it: the client has closed the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What answers say about the node. `ready` names parts that are up or not; all up: the node is healthy."""

    node: str
    head: str  # hex digest of our newest ledger head
    release: Digest | None = None
    ready: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request with its version bound."""

    model: ServedModel
    prompts: Sequence[Prompt]
    sampling: Sampling
    answer: Answer
    headers: Mapping[str, str]


def create_app(
    engine: Engine,
    facts: Callable[[], Facts],
    *,
    api_keys: Sequence[str] = (),
    now: Callable[[], float] = time.time,
    most_body: int = MOST_BODY,
) -> FastAPI:
    """The application. With `api_keys`, every /v1 request must carry one of them as a bearer token."""
    app = FastAPI(title="Fishernet", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=most_body)
    _add_error_handlers(app)
    guarded = [Depends(_key_check(api_keys))]

    def bind(body: ChatRequest | CompletionRequest) -> _Asked:
        model, known, chat = engine.find(body.model), facts(), isinstance(body, ChatRequest)
        answer = Answer(
            number=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            created=int(now()),
            model=model.name,
            fingerprint=f"fn-{short(model.digest)}-{short(known.head)}",
            chat=chat,
        )
        headers = {
            "x-fishernet-model": model.name,
            "x-fishernet-release": model.digest,
            "x-fishernet-head": known.head,
            "x-request-id": answer.number,
        }
        return _Asked(model=model, prompts=body.prompts(), sampling=body.sampling(), answer=answer, headers=headers)

    async def respond(body: ChatRequest | CompletionRequest, request: Request) -> Response:
        asked = bind(body)
        parts = _parts(engine, asked)
        if not body.stream:
            async with contextlib.aclosing(parts):
                done = await _unless_gone(request, _collect(parts, asked.answer))
            return Response(status_code=GONE) if done is None else JSONResponse(done, headers=dict(asked.headers))
        try:
            first = await _unless_gone(request, _next(parts))  # errors before the first token have their own status
        except BaseException:
            await parts.aclose()
            raise
        if first is None:
            await parts.aclose()
            return Response(status_code=GONE)
        lines = _lines(first, parts, asked.answer, usage=body.include_usage)
        headers = {**asked.headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    @app.post("/v1/completions", dependencies=guarded)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await respond(body, request)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await respond(body, request)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        served = list(engine.models())
        with contextlib.suppress(UnknownModel):
            served.insert(1, replace(engine.find("latest"), name="latest"))
        return {"object": "list", "data": [_listed(model) for model in served]}

    @app.get("/v1/models/{name}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        return _listed(engine.find(name))

    def _listed(model: ServedModel) -> dict[str, Any]:
        return model_body(model, owner=facts().node, base=engine.find("base").digest)

    @app.get("/health")
    async def health() -> JSONResponse:
        known = facts()
        healthy = all(known.ready.values())
        body = {
            "status": "ok" if healthy else "starting",
            "node": known.node,
            "release": known.release,
            "head": known.head,
            "ready": dict(known.ready),
        }
        return JSONResponse(body, status_code=200 if healthy else 503)

    return app


# -- answers ---------------------------------------------------------------------------------------------------------
async def _parts(engine: Engine, asked: _Asked) -> AsyncGenerator[Piece | Usage, None]:
    """The pieces for each prompt in turn, choices numbered through, then one usage for all."""
    since, prompt_tokens, completion_tokens = time.monotonic(), 0, 0
    for number, prompt in enumerate(asked.prompts):
        async with contextlib.aclosing(engine.generate(asked.model, prompt, asked.sampling)) as parts:
            async for part in parts:
                if isinstance(part, Piece):
                    yield replace(part, index=number * asked.sampling.n + part.index)
                else:
                    prompt_tokens += part.prompt_tokens
                    completion_tokens += part.completion_tokens
    log.info(
        "answered model=%s digest=%s prompt_tokens=%d completion_tokens=%d ms=%d",
        asked.model.name,
        short(asked.model.digest),
        prompt_tokens,
        completion_tokens,
        1000 * (time.monotonic() - since),
    )
    yield Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


async def _collect(parts: AsyncIterator[Piece | Usage], answer: Answer) -> dict[str, Any]:
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    usage = Usage(prompt_tokens=0, completion_tokens=0)
    async for part in parts:
        if isinstance(part, Usage):
            usage = part
            continue
        texts[part.index] = texts.get(part.index, "") + part.text
        if part.finish:
            finishes[part.index] = part.finish
    return answer.whole(texts, finishes, usage)


async def _next(parts: AsyncIterator[Piece | Usage]) -> Piece | Usage:
    return await anext(parts)


async def _lines(
    first: Piece | Usage, parts: AsyncGenerator[Piece | Usage, None], answer: Answer, *, usage: bool
) -> AsyncGenerator[str, None]:
    """The lines of a stream of server-sent events; an error in the middle is its last event."""
    opened: set[int] = set()
    part: Piece | Usage | None = first
    try:
        while part is not None:
            if isinstance(part, Piece):
                if answer.chat and part.index not in opened:
                    opened.add(part.index)
                    yield _event(answer.opening(part.index))
                for chunk in answer.chunk(part):
                    yield _event({**chunk, "usage": None} if usage else chunk)
            elif usage:
                yield _event(answer.ending(part))
            part = await anext(parts, None)
        yield "data: [DONE]\n\n"
    except FishernetError as e:
        log.warning("answer_broken model=%s code=%s", answer.model, e.code)
        yield _event(_problem(e)[1])
    finally:
        await parts.aclose()


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
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


# -- refusals --------------------------------------------------------------------------------------------------------
def _key_check(keys: Sequence[str]) -> Callable[[Request], None]:
    allowed = [key.encode() for key in keys]

    def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        matches = [hmac.compare_digest(key, given.strip().encode()) for key in allowed]
        if allowed and not (scheme.lower() == "bearer" and any(matches)):
            raise HTTPException(401, "couldn't take request: a valid API key is needed as bearer token")

    return check


def _problem(error: FishernetError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error of ours."""
    hint = error.hint if isinstance(error, NodeError) else ""
    message = f"{error} ({hint})" if hint else str(error)
    match error:
        case UnknownModel():
            return 404, error_body(message, kind=INVALID, code=error.code, param="model"), {}
        case ContextTooLong():
            return 400, error_body(message, kind=INVALID, code=error.code), {}
        case JobRefused() if error.reason in CLIENTS_FAULT:
            return 400, error_body(message, kind=INVALID, code=error.reason), {}
        case Busy():
            headers = {"retry-after": str(error.retry_after)}
            return 429, error_body(message, kind=LIMITED, code=error.code), headers
        case Retry():
            return 503, error_body(message, kind=SERVER, code=error.code), {"retry-after": "1"}
        case JobRefused():
            return 500, error_body(message, kind=SERVER, code=error.reason), {}
    return 500, error_body(message, kind=SERVER, code=error.code), {}


def _add_error_handlers(app: FastAPI) -> None:
    async def on_ours(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, FishernetError):
            raise error
        status, body, headers = _problem(error)
        return JSONResponse(body, status_code=status, headers=headers)

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        return JSONResponse(_invalid(error.errors()), status_code=400)

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, StarletteHTTPException):
            raise error
        kind = DENIED if error.status_code == 401 else INVALID
        code = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
        body = error_body(str(error.detail), kind=kind, code=code.get(error.status_code))
        headers = {**(error.headers or {}), **({"www-authenticate": "Bearer"} if error.status_code == 401 else {})}
        return JSONResponse(body, status_code=error.status_code, headers=headers)

    async def on_unforeseen(_request: Request, error: Exception) -> JSONResponse:
        log.error("request_failed error=%s", type(error).__name__)
        return JSONResponse(error_body("couldn't answer: an internal error", kind=SERVER, code="internal"), 500)

    app.add_exception_handler(FishernetError, on_ours)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(Exception, on_unforeseen)


def _invalid(errors: Sequence[Any]) -> dict[str, Any]:
    """The first fault of a request body, without repeating its content."""
    fault = errors[0]
    path = [part for part in fault["loc"] if part != "body"]
    param = str(path[0]) if path and isinstance(path[0], str) else None
    if fault["type"] == "json_invalid":
        return error_body("couldn't read request: the body is not JSON", kind=INVALID, code="invalid_json")
    if fault["type"] == "extra_forbidden":
        name = ".".join(map(str, path))
        known = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
        near = difflib.get_close_matches(name, known, n=1)
        message = f"couldn't take request: {name[:80]} is not supported" + (
            f", did you mean {near[0]}?" if near else ""
        )
        return error_body(message, kind=INVALID, code="unknown_parameter", param=name[:80])
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    where = f" {param}" if param else ""
    return error_body(f"couldn't take request{where}: {fault['msg']}", kind=INVALID, code=code, param=param)
