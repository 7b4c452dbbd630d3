from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from node import control
from node.errors import ControlError, ControlTimeout, DaemonDown, HomeBusy
from node.home import Home
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError, Refused, Retry, TooLarge


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path)


async def dispatch(name: str, args: Mapping[str, Json]) -> Json:
    match name:
        case "echo":
            return dict(args)
        case "slow":
            await asyncio.sleep(5)
            return None
        case "refuse":
            raise HomeBusy("couldn't do it: busy", hint="wait")
        case _:
            raise ZeroDivisionError(name)


@contextlib.asynccontextmanager
async def serving(home: Home, events: control.Events | None = None) -> AsyncIterator[control.Events]:
    events = events or control.Events(lambda: 7)
    task = asyncio.create_task(control.serve(home, dispatch, events))
    try:
        async with asyncio.timeout(10):
            while not control.is_up(home):
                await asyncio.sleep(0.02)
        yield events
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_call_comes_back_as_it_was_sent(home: Home) -> None:
    async def run() -> None:
        async with serving(home):
            sent: dict[str, Json] = {"text": "grüße\n", "number": 3, "nested": [{"a": None}]}
            assert await asyncio.to_thread(control.call, home, "echo", sent) == sent
            assert home.control_socket().stat().st_mode & 0o777 == 0o600

    asyncio.run(run())


def test_an_error_of_the_daemon_is_raised_with_its_kind_code_text_and_hint(home: Home) -> None:
    async def run() -> None:
        async with serving(home):
            with pytest.raises(Refused, match="couldn't do it: busy") as caught:
                await asyncio.to_thread(control.call, home, "refuse", {})
            assert caught.value.code == "home-busy"
            assert caught.value.hint == "wait"

    asyncio.run(run())


def test_an_unforeseen_failure_is_logged_and_told_without_its_insides(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with serving(home):
            with pytest.raises(ControlError, match="failed inside") as caught:
                await asyncio.to_thread(control.call, home, "secret-name", {})
            assert "ZeroDivisionError" not in str(caught.value)
            assert "ZeroDivisionError: secret-name" in caplog.text

    asyncio.run(run())


def test_a_call_has_a_deadline(home: Home) -> None:
    async def run() -> None:
        async with serving(home):
            with pytest.raises(ControlTimeout):
                await asyncio.to_thread(control.call, home, "slow", {}, timeout=0.2)

    asyncio.run(run())


def test_no_daemon_is_an_error_that_says_how_to_start_one(home: Home) -> None:
    assert not control.is_up(home)
    with pytest.raises(DaemonDown) as caught:
        control.call(home, "status", {})
    assert caught.value.hint == f"start it with: fishernet up --home {home.path}"
    with pytest.raises(DaemonDown):
        next(control.follow(home))


def test_the_socket_of_a_killed_daemon_is_nobody_and_is_replaced(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.sockets() / "control.sock"))
    assert not control.is_up(home)

    async def run() -> None:
        async with serving(home):
            assert await asyncio.to_thread(control.call, home, "echo", {}) == {}

    asyncio.run(run())
    assert not home.control_socket().exists()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"name": 1, "args": {}}', b"[" * 100_000, b"x" * (2 << 20)])
def test_garbage_is_refused_and_the_daemon_goes_on(home: Home, body: bytes) -> None:
    def post() -> bytes:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60)
            link.connect(str(home.control_socket()))
            head = f"POST /call HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                link.sendall(head.encode() + body)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := link.recv(65536):
                    answer += piece
            return answer

    async def run() -> None:
        async with serving(home):
            answer = await asyncio.to_thread(post)
            assert answer.startswith(b"HTTP/1.1 400")
            assert await asyncio.to_thread(control.call, home, "echo", {"a": 1}) == {"a": 1}

    asyncio.run(run())


def test_events_reach_a_follower_in_order_and_end_with_the_daemon(home: Home) -> None:
    async def run() -> list[control.Event]:
        async with serving(home) as events:
            following = asyncio.create_task(asyncio.to_thread(lambda: list(control.follow(home))))
            async with asyncio.timeout(10):
                while not events.listeners:
                    await asyncio.sleep(0.01)
            for step in range(3):
                events.emit("train.step", step=step)
            await asyncio.sleep(0.1)
        return await following

    assert asyncio.run(run()) == [{"kind": "train.step", "time": 7, "step": step} for step in range(3)]


def test_a_stop_with_followers_and_a_call_under_way_takes_less_than_two_seconds(home: Home) -> None:
    async def run() -> float:
        async with serving(home) as events:
            following = asyncio.create_task(asyncio.to_thread(lambda: list(control.follow(home))))
            calling = asyncio.create_task(asyncio.to_thread(control.call, home, "slow", {}))
            async with asyncio.timeout(10):
                while not events.listeners:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            start = time.monotonic()
        stopped = time.monotonic() - start
        await following
        with pytest.raises(FishernetError):
            await calling
        return stopped

    assert asyncio.run(run()) < 2


def test_a_listener_that_does_not_read_loses_its_oldest_events_and_blocks_nobody() -> None:
    async def run() -> list[Json]:
        events = control.Events(lambda: 0, limit=3)
        listener = events.listen()
        first = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        for number in range(10):
            events.emit("x", number=number)
        got = [await first, *[await anext(listener) for _ in range(2)]]
        events.close()
        assert [event async for event in listener] == []
        return [event["number"] for event in got if event is not None]

    assert asyncio.run(run()) == [7, 8, 9]


def test_silence_is_broken_by_a_heartbeat() -> None:
    async def run() -> None:
        events = control.Events(lambda: 0)
        listener = events.listen(heartbeat=0.01)
        assert await anext(listener) is None
        events.emit("x")
        assert await anext(listener) == {"kind": "x", "time": 0}
        await listener.aclose()
        assert events.listeners == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", [Refused, Retry, Fatal, FishernetError, TooLarge])
def test_an_error_keeps_its_kind_on_the_way(kind: type[FishernetError]) -> None:
    back = control.error_from(control.error_json(kind("couldn't x: y")))
    assert control.error_json(back) == control.error_json(kind("couldn't x: y"))
    for base in (Refused, Retry, Fatal):
        assert isinstance(back, base) == issubclass(kind, base)
