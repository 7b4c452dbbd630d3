"""How commands talk to the running daemon of a home: HTTP over a unix socket that only its user can reach.

`POST /call {"name", "args"}` answers `{"ok": ...}` or `{"error": {"code", "kind", "message", "hint"}}`; `GET /events`
is a server-sent stream of `{"kind", "time", ...}`. The client needs the standard library only, so commands stay fast.
Knows no command: the daemon gives `dispatch`. Trust: whoever may open the socket (0600 in a 0700 folder) is the operator.
Invariant: an error raised by `dispatch` is raised by `call` with the same code, kind, text and hint.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from node.errors import ControlError, ControlTimeout, DaemonDown
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError, Malformed, Refused, Retry, TooLarge

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

    from node.home import Home

Dispatch: TypeAlias = Callable[[str, Mapping[str, Json]], Awaitable[Json]]
Event: TypeAlias = Mapping[str, Json]

log = logging.getLogger(__name__)

_MAX_REQUEST = 1 << 20
_MAX_ANSWER = 64 << 20
_HEARTBEAT = 10.0  # seconds; a follower that hears nothing for three of them knows the daemon is gone
_KINDS: Mapping[str, type[FishernetError]] = {"refused": Refused, "retry": Retry, "fatal": Fatal}


# -- errors on the socket and on stderr ------------------------------------------------------------------------------
def error_json(error: FishernetError) -> dict[str, Json]:
    """The form of an error that programs read: code, kind, message, hint."""
    kind = next((name for name, base in _KINDS.items() if isinstance(error, base)), "error")
    return {"code": error.code, "kind": kind, "message": str(error), "hint": str(getattr(error, "hint", ""))}


def error_from(value: Mapping[str, Json]) -> FishernetError:
    """The error behind `error_json`: of the same kind and with the same code, text and hint."""
    error = _remote(str(value.get("kind", "")), str(value.get("code", "error")))(str(value.get("message", "")))
    error.hint = str(value.get("hint", ""))  # type: ignore[attr-defined]  # NodeError's field on a class made here
    return error


@functools.cache
def _remote(kind: str, code: str) -> type[FishernetError]:
    return type("RemoteError", (_KINDS.get(kind, FishernetError),), {"code": code})


# -- the asking side -------------------------------------------------------------------------------------------------
def is_up(home: Home) -> bool:
    """Whether a daemon listens on this home."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(os.fsencode(home.control_socket()))
        except OSError:
            return False
    return True


def call(home: Home, name: str, args: Mapping[str, Json], *, timeout: float | None = 60.0) -> Json:
    """Ask the daemon of `home` to do `name`; `timeout` in seconds, None waits until it answers or ends.

    Raises:
        DaemonDown: nobody listens.
        ControlTimeout: no answer in time.
        ControlError: the answer is not one.
        FishernetError: what the daemon's own function raised.
    """
    body = json.dumps({"name": name, "args": dict(args)}).encode()
    connection = _UnixConnection(home.control_socket(), timeout)
    with contextlib.closing(connection), _translated(home, name):
        connection.request("POST", "/call", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read(_MAX_ANSWER + 1)
        if len(data) > _MAX_ANSWER:
            raise ControlError(f"couldn't ask the daemon for {name}: the answer is over {_MAX_ANSWER} bytes")
        value = json.loads(data) if answer.headers.get_content_type() == "application/json" else None
    if not isinstance(value, dict) or not ("ok" in value or isinstance(value.get("error"), dict)):
        cause = f"it failed inside (HTTP {answer.status})"
        raise ControlError(f"couldn't ask the daemon for {name}: {cause}", hint="its log says why")
    if "ok" in value:
        return cast("Json", value["ok"])
    raise error_from(value["error"])


def follow(home: Home) -> Iterator[Event]:
    """Events of the daemon as they happen; ends when the daemon stops.

    Raises:
        DaemonDown: nobody listens.
    """
    connection = _UnixConnection(home.control_socket(), 3 * _HEARTBEAT)
    with contextlib.closing(connection):
        with _translated(home, "events"):
            connection.request("GET", "/events")
            answer = connection.getresponse()
        with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon went away: the end of the stream
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("daemon", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fsencode(self._path))


@contextlib.contextmanager
def _translated(home: Home, name: str) -> Iterator[None]:
    what = f"couldn't ask the daemon for {name}"
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError):
        hint = f"start it with: fishernet up --home {home.path}"
        raise DaemonDown(f"{what}: none runs on {home.path}", hint=hint) from None
    except TimeoutError:
        raise ControlTimeout(f"{what}: no answer in time", hint="it may be busy; see its log") from None
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise ControlError(f"{what}: {e}", hint="it may just have stopped; see its log") from None


# -- the answering side ----------------------------------------------------------------------------------------------
class Events:
    """What the daemon tells whoever listens: `emit` never waits, a slow listener loses its oldest events.

    Owned by the event loop: call it from there only.
    """

    def __init__(self, now_ms: Callable[[], int], *, limit: int = 256) -> None:
        """Stamp events with `now_ms`; keep at most `limit` unread ones per listener."""
        self._now_ms = now_ms
        self._limit = limit
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def emit(self, kind: str, **fields: Json) -> None:
        """Tell every listener."""
        event: Event = {"kind": kind, "time": self._now_ms(), **fields}
        for queue in self._queues:
            self._put(queue, event)

    def close(self) -> None:
        """End every listener's stream, and refuse new ones."""
        self._closed = True
        for queue in self._queues:
            self._put(queue, None)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._queues)

    async def listen(self, *, heartbeat: float = _HEARTBEAT) -> AsyncGenerator[Event | None]:
        """Events from now on; None after `heartbeat` seconds of silence."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(self._limit)
        self._queues.add(queue)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(heartbeat):
                        event = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)

    @staticmethod
    def _put(queue: asyncio.Queue[Event | None], event: Event | None) -> None:
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(event)


def make_app(dispatch: Dispatch, events: Events) -> Starlette:
    """The ASGI app behind the socket."""
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def on_call(request: Request) -> JSONResponse:
        try:
            name, args = _asked(await _body(request))
            return JSONResponse({"ok": await dispatch(name, args)})
        except ClientDisconnect:
            return JSONResponse({})
        except FishernetError as e:
            return JSONResponse({"error": error_json(e)}, status_code=400 if isinstance(e, Refused) else 503)

    async def on_events(request: Request) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield ": fishernet\n\n"
            async for event in events.listen():
                yield ": still here\n\n" if event is None else f"data: {json.dumps(event)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    def on_failure(request: Request, error: Exception) -> JSONResponse:
        log.error("event=control-call-failed", exc_info=error)
        return JSONResponse({}, status_code=500)

    routes = [Route("/call", on_call, methods=["POST"]), Route("/events", on_events)]
    return Starlette(routes=routes, exception_handlers={Exception: on_failure})


async def serve(home: Home, dispatch: Dispatch, events: Events) -> None:
    """Answer on the home's control socket until cancelled; event streams are ended first, calls get a second to end.

    Raises:
        AddressError: another daemon answers there.
    """
    from node.http import Address, run_server

    address = Address(uds=home.sockets() / home.control_socket().name)
    try:
        await run_server(make_app(dispatch, events), address, on_stop=events.close)
    finally:
        home.tidy()


async def _body(request: Request) -> bytes:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_REQUEST:
            raise TooLarge(f"couldn't read request: over {_MAX_REQUEST} bytes")
    return data


def _asked(data: bytes) -> tuple[str, dict[str, Json]]:
    try:
        value = json.loads(data)
        name, args = value["name"], value["args"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed('couldn\'t read request: {"name": ..., "args": {...}} is expected') from None
    if not isinstance(name, str) or not isinstance(args, dict):
        raise Malformed("couldn't read request: name is a text and args an object")
    return name, args
