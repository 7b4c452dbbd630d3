"""Refusals of the OpenAI-style API: one shape for all of them, with status, type and code as OpenAI's clients expect them.

Knows no engine. Invariant: no error repeats the content of a request, and every one begins with "couldn't".
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from node.errors import JobRefused, NodeError
from node.errors_serving import BadKey, BadVector, Busy, ContextTooLong, KeyDenied, ModelGone, TooLate, UnknownModel
from node.serving.api.requests import UNSUPPORTED, ChatRequest, CompletionRequest, EmbeddingRequest
from protocol.errors import FishernetError, Refused, Retry

log = logging.getLogger("fishernet.api")

CLIENTS_FAULT: Final = frozenset({"bad_messages", "bad_tokens", "bad_schema", "bad_job", "no_token", "too-large"})
"""Reasons of the engine that blame the request."""
INVALID, SERVER, LIMITED = "invalid_request_error", "server_error", "rate_limit_error"
DENIED, FORBIDDEN = "authentication_error", "permission_error"
_KINDS: Final = {401: DENIED, 403: FORBIDDEN, 429: LIMITED}
_CODES: Final = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ErrorDetail(BaseModel):
    """What was wrong: a sentence, its kind, the field it is about, a stable code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorDetail


RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; `code` says why. 429 has Retry-After."},
    "5XX": {"model": ErrorBody, "description": "Failed; the same request may succeed later."},
}
"""What every route may answer besides its result, for the OpenAPI document."""


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The envelope."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem(error: FishernetError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error of ours."""
    hint = error.hint if isinstance(error, NodeError) else ""
    message = f"{error} ({hint})" if hint else str(error)
    match error:
        case UnknownModel():
            after = error.successor if isinstance(error, ModelGone) else ""
            status, headers = 410 if isinstance(error, ModelGone) else 404, {"x-fishernet-successor": after}
            body = error_body(message, kind=INVALID, code=error.code, param="model")
            return status, body, headers if after else {}
        case ContextTooLong():
            return 400, error_body(message, kind=INVALID, code=error.code), {}
        case JobRefused() if error.reason == "wrong-base":  # the base was replaced between the name and the answer
            return 503, error_body(message, kind=SERVER, code=error.reason), {"retry-after": "1"}
        case JobRefused() if error.reason in CLIENTS_FAULT:
            param = "response_format" if error.reason == "bad_schema" else None
            return 400, error_body(message, kind=INVALID, code=error.reason, param=param), {}
        case BadKey():
            return 401, error_body(message, kind=DENIED, code=error.code), {"www-authenticate": "Bearer"}
        case KeyDenied():
            return 403, error_body(message, kind=FORBIDDEN, code=error.reason), {}
        case Busy():
            headers = {"retry-after": str(error.retry_after)}
            return 429, error_body(message, kind=LIMITED, code=error.code), headers
        case TooLate():
            return 504, error_body(message, kind=SERVER, code=error.code), {}
        case BadVector():
            return 503, error_body(message, kind=SERVER, code=error.code), {"retry-after": "60"}
        case Retry():
            return 503, error_body(message, kind=SERVER, code=error.code), {"retry-after": "1"}
        case JobRefused():
            return 500, error_body(message, kind=SERVER, code=error.reason), {}
        case Refused():
            return 400, error_body(message, kind=INVALID, code=error.code), {}
    return 500, error_body(message, kind=SERVER, code=error.code), {}


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the application this shape, the unforeseen ones too."""

    async def on_ours(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, FishernetError):
            raise error
        status, body, headers = problem(error)
        return JSONResponse(body, status_code=status, headers=headers)

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        return JSONResponse(_invalid(error.errors()), status_code=400)

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, StarletteHTTPException):
            raise error
        detail = str(error.detail)
        message = (
            detail if detail.startswith("couldn't") else f"couldn't take request: {detail[:1].lower()}{detail[1:]}"
        )
        kind = _KINDS.get(error.status_code, INVALID)
        body = error_body(message, kind=kind, code=_CODES.get(error.status_code))
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    async def on_unforeseen(_request: Request, error: Exception) -> JSONResponse:
        log.error("event=request-failed error=%s", type(error).__name__)
        return JSONResponse(error_body("couldn't answer: an internal error", kind=SERVER, code="internal"), 500)

    app.add_exception_handler(FishernetError, on_ours)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(StarletteHTTPException, on_http)
    app.add_exception_handler(Exception, on_unforeseen)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first fault of a request body, without repeating its content."""
    fault = errors[0]
    path = [part for part in fault["loc"] if part not in {"body", "header", "path", "query"}]
    param = str(path[0])[:80] if path and isinstance(path[0], str) else fault.get("ctx", {}).get("param")
    if fault["type"] == "json_invalid":
        return error_body("couldn't read request: the body is not JSON", kind=INVALID, code="invalid_json")
    if fault["type"] == "extra_forbidden":
        name = ".".join(map(str, path))
        known = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *EmbeddingRequest.model_fields}
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        message = f"couldn't take request: {name[:80]} is not supported{hint}"
        return error_body(message, kind=INVALID, code="unknown_parameter", param=name[:80])
    code = {"missing": "missing_required_parameter", UNSUPPORTED: UNSUPPORTED}.get(fault["type"], "invalid_value")
    where = f" {param}" if param else ""
    return error_body(f"couldn't take request{where}: {_cause(fault)}", kind=INVALID, code=code, param=param)


def _cause(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"])
    return message.removeprefix("Value error, ")
