"""Runs an ASGI application on a TCP port or a unix socket inside our own event loop, until it is cancelled.

It binds the socket itself, so that a port in use is an error of ours and port 0 has a known number before the first
request. It knows no application.

Invariant: when `run_server` ends, by cancel or by error, its socket is closed and no request of it is left: requests under
way get `GRACE` seconds, and `on_stop` runs before, to end what would never end by itself (event streams).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from node.errors import AddressError

GRACE = 1  # s
BACKLOG = 128
ADDRESS_HINT = "choose another address in node.toml, or stop what listens there"

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen: a unix socket when `uds` is given, else host and port (0: any free one)."""

    host: str = "127.0.0.1"
    port: int = 0
    uds: Path | None = None


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises AddressError when the address is in use, not ours, or not allowed."""
    if address.uds is not None:
        return _listen_unix(address.uds)
    try:
        family, kind, number, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
    except OSError as e:
        raise _address_error(f"{address.host} port {address.port}", e) from e
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise _address_error(f"{address.host} port {address.port}", e) from e
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """A socket only we may connect to; a stale one of a killed process is replaced, a living one is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
                path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise _address_error(path.name, e) from e
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def _address_error(where: str, error: OSError) -> AddressError:
    return AddressError(f"couldn't listen on {where}: {error.strerror or error}", hint=ADDRESS_HINT)


async def run_server(
    app: App,
    address: Address,
    *,
    on_ready: Callable[[int], None] = lambda _port: None,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` until cancelled; `on_ready` gets the port (0 on a unix socket) once requests can come.

    Raises:
        AddressError: see `listen`.
    """
    import uvicorn

    listener = listen(address)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=64 << 10,
    )
    ending = asyncio.Event()

    class Quiet(uvicorn.Server):
        """Ticks once a second instead of ten times: an idle node shall cost next to nothing."""

        async def main_loop(self) -> None:
            while not await self.on_tick(0):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await ending.wait()

    server = Quiet(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # signals are ours
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        on_ready(0 if address.uds is not None else int(listener.getsockname()[1]))
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        ending.set()
        on_stop()
        try:
            await serving
        finally:
            listener.close()
            if address.uds is not None:
                address.uds.unlink(missing_ok=True)


class BodyLimit:
    """Refuses a request whose body is larger than `limit` bytes, announced or not, before it is held in memory."""

    def __init__(self, app: App, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        from starlette.exceptions import HTTPException

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            await _refuse(send, self._limit)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(413, f"couldn't read request: its body has more than {self._limit} bytes")
            return message

        await self._app(scope, limited, send)


async def _refuse(send: Send, limit: int) -> None:
    body = (
        b'{"error":{"message":"couldn\'t read request: its body has more than %d bytes",'
        b'"type":"invalid_request_error","param":null,"code":"request_too_large"}}' % limit
    )
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
