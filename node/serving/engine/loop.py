"""The engine thread: one step after another on the base that serves, and on one that is being replaced until it is empty.

Other threads post what is to be done; it is done between two steps. Knows no JSON: `node.serving.engine.inbox` does.

Invariant: one thread touches lanes, rows and adapters. A new base is loaded and tried beside the old one and takes over between
two steps; requests end on the base they were read for, and one that names the old base still finds it for `GRACE` seconds.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from contrib.adapters import AdapterSpec
from node.errors import JobRefused
from node.serving.engine.answer import Request
from node.serving.engine.embedding import Embeds
from node.serving.engine.lane import Lane
from node.serving.engine.reports import Reports
from node.serving.engine.rows import Work
from node.serving.engine.runner import open_runner
from node.serving.engine.scheduler import BASE, Limits
from node.serving.engine.store import Source
from node.serving.engine.text import Text

GRACE: Final = 10.0  # s in which a replaced base still takes requests that name it: they were sent before the news
_PAUSE: Final = 0.05  # s between two looks at what waits for its adapter or its deadline
_WARM: Final = (0, 1, 2, 3)  # tokens that a fresh base reads before it serves


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much the engine takes on. `ram` counts bytes of adapters in memory."""

    rows: int = 16
    limits: Limits = Limits()  # noqa: RUF009  (a frozen value)
    ram: int = 1 << 30
    context: int | None = None
    dtype: Any = None  # torch's; None: what the device does best


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model to load: its folder, its digest, and the shape of vectors that come without one."""

    folder: Path
    digest: str
    spec: AdapterSpec | None


class Engine:
    """The lanes and the thread that steps them."""

    def __init__(
        self, reports: Reports, settings: Settings, flush: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        """`flush` is called after each step: what was reported in it may go out together."""
        self._reports, self._settings, self._flush, self.clock = reports, settings, flush, clock
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lanes: list[tuple[Lane, float]] = []  # the serving one first; until when a replaced one takes requests
        self._loading = threading.Lock()
        self._registering: list[tuple[int, Lane, Source, Callable[[], None]]] = []
        self._stopped = False

    # -- any thread --------------------------------------------------------------------------------------------------
    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done by the engine thread between two steps, in the order of posting."""
        self._posted.put(work)

    def lane(self, base: str | None = None) -> Lane:
        """The lane that serves this base, or the newest. Raises JobRefused: none does."""
        for lane, _ in list(self._lanes):
            if base is None or not lane.base or lane.base == base:
                return lane
        if not self._lanes:
            raise JobRefused("couldn't answer: no model is loaded", reason="not_loaded")
        raise JobRefused(f"couldn't answer: base {(base or '')[:12]}... is not served here", reason="wrong-base")

    def stop(self) -> None:
        """End `run` after the present step."""
        self.post(self._stop)

    def submit(self, lane: Lane, request: Request) -> None:
        """Queue a generate request on the lane that its ids were read for."""
        self.post(partial(self._submit, lane, request))

    def submit_embeds(self, lane: Lane, embeds: Embeds) -> None:
        """Queue an embed request."""
        self.post(partial(self._submit_embeds, lane, embeds))

    def cancel(self, number: int) -> None:
        """End a request wherever it is."""
        self.post(partial(self._cancel, number))

    def register(self, number: int, lane: Lane, source: Source, done: Callable[[], None]) -> None:
        """Bring a version into memory, then call `done`; an error is reported for `number`."""
        self.post(lambda: self._registering.append((number, lane, source, done)))

    def drop(self, version: str) -> None:
        """Forget a version as soon as nothing uses it."""
        self.post(partial(self._drop, version))

    def load(self, number: int, base: Base, done: Callable[[Lane, float], None]) -> None:
        """Load a base in a thread of its own and let it take over; `done` gets it and the seconds it took."""
        threading.Thread(target=self._load, args=(number, base, done), name="base", daemon=True).start()

    def _load(self, number: int, base: Base, done: Callable[[Lane, float], None]) -> None:
        since = time.monotonic()
        try:
            with self._loading:
                lane = self._make(base)
        except Exception as e:  # noqa: BLE001  (the supervisor of loads: the base before it goes on serving)
            self.post(partial(self._reports.failed, number, e))
            return
        self.post(partial(self._take_over, lane, partial(done, lane, time.monotonic() - since)))

    def _make(self, base: Base) -> Lane:
        """A lane that has read a prompt and written a token."""
        before = self._lanes[0][0].text if self._lanes else None
        text = (before and before.moved(base.folder)) or Text(base.folder)
        limits, settings = self._settings.limits, self._settings
        runner: Any = open_runner(
            base.folder,
            base=base.digest,
            rows=settings.rows,
            slots=limits.max_active + 1,
            context=settings.context,
            dtype=settings.dtype,
        )
        opened = runner.open(_WARM, 0, BASE)
        runner.step([Work(row=opened.row, ids=_WARM)])
        runner.step([Work(row=opened.row, ids=_WARM[:1])])
        runner.close(opened.row, keep=False)
        return Lane(
            base=base.digest,
            text=text,
            runner=runner,
            spec=base.spec,
            limits=limits,
            ram=settings.ram,
            reports=self._reports,
            wake=partial(self.post, _nothing),
        )

    # -- the engine thread -------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Work until `stop`."""
        while not self._stopped:
            worked = self.turn()
            self._flush()
            if not worked:
                self._wait()
        for lane, _ in self._lanes:
            lane.close()

    def turn(self) -> bool:
        """Do what was posted, then one step of each lane; False when nothing ran."""
        while True:
            try:
                work = self._posted.get_nowait()
            except queue.Empty:
                break
            work()
        now = self.clock()
        self._register(now)
        worked = False
        for lane, _ in self._lanes:
            worked |= lane.step(now)
        self._retire(now)
        return worked

    def _wait(self) -> None:
        busy = self._registering or len(self._lanes) > 1 or any(not lane.idle for lane, _ in self._lanes)
        with contextlib.suppress(queue.Empty):
            self._posted.get(timeout=_PAUSE if busy else None)()

    def _stop(self) -> None:
        self._stopped = True

    def _submit(self, lane: Lane, request: Request) -> None:
        self._keep(lane)
        lane.submit(request, self.clock())

    def _submit_embeds(self, lane: Lane, embeds: Embeds) -> None:
        self._keep(lane)
        lane.submit_embeds(embeds, self.clock())

    def _cancel(self, number: int) -> None:
        for lane, _ in self._lanes:
            lane.cancel(number, self.clock())
        if any(each[0] == number for each in self._registering):
            self._registering = [each for each in self._registering if each[0] != number]
            self._reports.cancelled(number)

    def _drop(self, version: str) -> None:
        for lane, _ in self._lanes:
            lane.drop(version)

    def _take_over(self, lane: Lane, done: Callable[[], None]) -> None:
        """From now on new requests go to this lane."""
        for old, _ in self._lanes:
            old.trim()
        until = self.clock() + GRACE
        self._lanes = [(lane, 0.0), *((old, until) for old, _ in self._lanes)]
        done()

    def _keep(self, lane: Lane) -> None:
        """A request read for a lane that has been retired meanwhile still runs there."""
        if all(lane is not each for each, _ in self._lanes):
            self._lanes.append((lane, 0.0))

    def _retire(self, now: float) -> None:
        for pair in self._lanes[1:]:
            lane, until = pair
            if lane.idle and now >= until:
                self._lanes.remove(pair)
                lane.close()

    def _register(self, now: float) -> None:
        left = []
        for number, lane, source, done in self._registering:
            try:
                if lane.load(source, now):
                    done()
                else:
                    left.append((number, lane, source, done))
            except Exception as e:  # noqa: BLE001  (one bad adapter must not end the engine)
                self._reports.failed(number, e)
        self._registering = left

    def stats(self) -> dict[str, Any]:
        """Numbers of all lanes together, in the engine thread."""
        found: dict[str, Any] = {}
        for lane, _ in self._lanes:
            _add(found, lane.stats())
        kernels = getattr(self._lanes[0][0].runner, "kernels", "") if self._lanes else ""
        return {**found, "bases": len(self._lanes), "kernels": kernels}


def _nothing() -> None:
    """Wakes the engine thread."""


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
