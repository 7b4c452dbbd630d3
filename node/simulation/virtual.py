"""An asyncio event loop whose time is simulated: when nothing is ready, time jumps to the next timer.

The product's own coroutines (`asyncio.sleep`, `asyncio.timeout`, events, task groups) run in it unchanged. What a coroutine
sends to a thread runs at once, in the loop, so that one seed gives one order. Knows no network. Invariant: no real time passes
in a wait, no socket is opened, and callbacks run in the order of their simulated time, those of one moment as they were asked.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from node.errors import NodeError

_T = TypeVar("_T")


class NothingWillHappen(NodeError):
    """Every simulated task waits for something that nobody will do: a fault of the simulated code."""

    code = "nothing-will-happen"


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `time()` is in simulated seconds from 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jump(self._jump))

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        """Run `func` now; what it took is not simulated, and what it raises is raised where the result is awaited."""
        done: asyncio.Future[_T] = self.create_future()
        done.set_result(func(*args))
        return done

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise NothingWillHappen("couldn't go on: every simulated task waits, and no timer is set")
        self._now += max(0.0, seconds)


class _Jump(selectors.SelectSelector):
    """Never waits: tells how long it should have, and finds nothing ready."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._jump(timeout)
        return []


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end in simulated time (raises NothingWillHappen, and what it raises).

    Many nodes are millions of objects that stay: the collector of cycles looks at them seldom meanwhile.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main)
    finally:
        gc.set_threshold(*thresholds)
