"""A served test model: the real engine process, the real API on a loopback port, on an event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openai
import uvloop

from contrib.adapters import AdapterSpec, layout
from contrib.merging import model_digest
from contrib.models import tiny_folder
from node.http import Address, run_server
from node.serving.api.app import Facts, create_app
from node.serving.models import Serving
from protocol.ids import Digest

T = TypeVar("T")

SEED = "5e" * 32
ADAPTER: dict[str, Any] = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "seed": SEED}
BASE = Digest("ba" * 32)
HEAD = "4e" * 32


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()  # as in the daemon
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 150) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@dataclass(kw_only=True)
class Live:
    """What a test needs of it."""

    loop: LoopThread
    serving: Serving
    folder: Path
    coordinates: int
    port: int = 0
    ready: dict[str, bool] = field(default_factory=lambda: {"engine": True})

    def vector(self, seed: int, strength: float = 0.3) -> tuple[Path, Digest]:
        """A random adapter vector on disk, and its model digest."""
        values = np.random.default_rng(seed).normal(0, strength, self.coordinates).astype(np.float32)
        path = self.folder / f"{model_digest(values)}.npy"
        np.save(path, values)
        return path, model_digest(values)

    def facts(self) -> Facts:
        return Facts(node="clinic", head=HEAD, release=None, ready=self.ready)

    def client(self, **options: Any) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=150, **options)


async def serve(live: Live, stop: asyncio.Event, ready: asyncio.Future[int], **options: Any) -> None:
    """Run the API until `stop`."""
    app = create_app(live.serving, live.facts, **options)
    server = asyncio.create_task(run_server(app, Address(), on_ready=ready.set_result))
    await stop.wait()
    server.cancel()
    with suppress(asyncio.CancelledError):
        await server


def make_serving(**options: Any) -> Serving:
    coordinates = layout(tiny_folder(), AdapterSpec.parse(ADAPTER)).coordinates
    adapter = {**ADAPTER, "coordinates": coordinates}
    return Serving(model=tiny_folder(), base=BASE, adapter=adapter, **options)
