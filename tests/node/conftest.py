"""Fixtures of the node's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.live_engine import Live, LoopThread, make_serving, serve


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One engine process with the test model and one API server for all tests: loading them takes seconds."""
    loop = LoopThread()
    serving = make_serving()
    coordinates = int(serving.coordinates or 0)
    found = Live(loop=loop, serving=serving, folder=tmp_path_factory.mktemp("views"), coordinates=coordinates)

    async def start() -> tuple[asyncio.Event, asyncio.Task[None]]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(found, stop, ready))
        found.port = await ready
        return stop, task

    async def end(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        stop.set()
        await task
        await serving.stop()

    stop, task = loop.run(start())
    yield found
    loop.run(end(stop, task))
    loop.close()
