"""A client of an OpenAI-style API, in the standard library: one question, one streamed answer.

Knows no terminal. Works with any such server; where it is one of ours the answer also says which release it came from.
Invariant: leaving the block of `ask` closes the connection, which cancels the answer at the server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from node.errors_serving import AskFailed, AskRefused
from protocol.canon import Json

TIMEOUT_S: Final = 600.0
_MOST_LINE: Final = 4 << 20
_MOST_BODY: Final = 16 << 20
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to ask. `url` ends in /v1, as the OpenAI clients have it."""

    url: str
    api_key: str = ""
    timeout: float = TIMEOUT_S


@dataclass(slots=True, kw_only=True)
class Answer:
    """What has come so far; complete once the stream ended."""

    model: str = ""
    release: str = ""
    head: str = ""
    text: str = ""
    finish: str = ""
    route: Mapping[str, Any] | None = None
    usage: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """For programs."""
        route: Json = None if self.route is None else dict(self.route)
        said: dict[str, Json] = {"model": self.model, "release": self.release, "head": self.head, "answer": self.text}
        return {**said, "finish_reason": self.finish, "usage": dict(self.usage), "route": route}


def models(server: Server) -> list[str]:
    """The names of what the server offers (raises as `ask`)."""
    with _request(server, "GET", "/models", None) as response:
        value = _json(response.read(_MOST_BODY))
    data = value.get("data")
    return [str(each.get("id")) for each in data if isinstance(each, dict)] if isinstance(data, list) else []


@contextlib.contextmanager
def ask(
    server: Server, model: str, messages: Sequence[Message], *, settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[Answer, Iterator[str]]]:
    """The answer that grows while the pieces of text are iterated; `settings` are further fields of the request.

    Raises:
        AskRefused: the server says no; the text is its own.
        AskFailed: nobody listens there, the connection broke, or what comes is not this API.
    """
    body: dict[str, Any] = {"model": model, "messages": [dict(message) for message in messages], "stream": True}
    body |= {"stream_options": {"include_usage": True}, **(settings or {})}
    with _request(server, "POST", "/chat/completions", body) as response:
        answer = Answer(
            model=response.getheader("x-fishernet-model", ""),
            release=response.getheader("x-fishernet-release", ""),
            head=response.getheader("x-fishernet-head", ""),
        )
        if (why := response.getheader("x-fishernet-route")) is not None:
            answer.route = {"why": why}
        yield answer, _pieces(response, answer, server)


def _pieces(response: http.client.HTTPResponse, answer: Answer, server: Server) -> Iterator[str]:
    try:
        while line := response.readline(_MOST_LINE):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = _json(data)
            if isinstance(event.get("error"), dict):
                raise AskFailed(f"couldn't finish answer: {_said(event)}")
            answer.model = answer.model or str(event.get("model", ""))
            origin = event.get("fishernet")
            if isinstance(origin, dict) and isinstance(route := origin.get("route"), dict):
                answer.route = route
            if isinstance(usage := event.get("usage"), dict):
                answer.usage = {k: v for k, v in usage.items() if isinstance(v, int)}
            if isinstance(choices := event.get("choices"), list) and choices and isinstance(choices[0], dict):
                answer.finish = str(choices[0].get("finish_reason") or answer.finish)
                delta = choices[0].get("delta")
                text = delta.get("content") if isinstance(delta, dict) else None
                if isinstance(text, str) and text:
                    answer.text += text
                    yield text
    except (OSError, http.client.HTTPException) as e:
        raise _broken(server, e) from e
    if not answer.finish:
        raise AskFailed("couldn't finish answer: the server closed the connection", hint="its log says why")


@contextlib.contextmanager
def _request(
    server: Server, method: str, path: str, body: Mapping[str, Json] | None
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(server.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AskFailed(
            f"couldn't ask {server.url}: an http or https URL is expected, such as http://127.0.0.1:8000/v1"
        )
    headers = {"accept": "text/event-stream, application/json", "content-type": "application/json"}
    if server.api_key:
        headers["authorization"] = f"Bearer {server.api_key}"
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=server.timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=server.timeout)
    except (ValueError, http.client.HTTPException) as e:
        raise AskFailed(f"couldn't ask {server.url}: {e}") from e
    with contextlib.closing(connection):
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, (parts.path.rstrip("/") or "/v1") + path, data, headers)
            response = connection.getresponse()
            if response.status != 200:
                value = _json(response.read(_MOST_BODY))
                after = response.getheader("retry-after")
                hint = f"ask again in {after} s" if after and response.status in (429, 503) else ""
                raise AskRefused(_said(value) or f"HTTP {response.status}", status=response.status, hint=hint)
        except (OSError, http.client.HTTPException, UnicodeError) as e:
            raise _broken(server, e) from e
        yield response


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(value: Mapping[str, Any]) -> str:
    error = value.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else ""


def _broken(server: Server, error: Exception) -> AskFailed:
    cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    hint = "start a node with: fishernet up, or a replica with: fishernet serve FOLDER"
    return AskFailed(f"couldn't ask {server.url}: {cause}", hint=hint if isinstance(error, ConnectionError) else "")
