"""`fishernet serve`: engine and API alone, from exported folders; no ledger, no keys, no peers.

    FOLDER             one export: served as it is found
    FOLDER/<export>/   several: each is served, and one that appears, changes or goes is noticed at the next look

Every folder is checked against its card before it is served (`contrib.exported`), and the base model against the digest
that the cards name. What is not right is not served, and is said once in the log. Knows no HTTP beyond the app it runs.
Invariant: all releases are of one collective, base and adapter shape: those of the first one that was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contrib import adapters, exported, models
from contrib.errors import BadExport
from contrib.exported import Exported
from contrib.exporting import CARD
from contrib.models import Model, Progress
from node import http
from node.collective.measure import save_vector
from node.errors_serving import ServingError
from node.serving.api.app import Facts, create_app
from node.serving.models import Load, Serving
from protocol.errors import FishernetError, Retry
from protocol.ids import ZERO, short

log = logging.getLogger("fishernet.replica")
_LOOK_S: Final = 1.0
_STOP_S: Final = 4.0

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to serve and where."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    load: Load = Load()  # noqa: RUF009  (a frozen value)
    api_keys: Sequence[str] = ()
    base: Path | None = None  # None: the model cache, by digest


def candidates(folder: Path) -> list[Path]:
    """The exports in a folder: itself, or those directly inside; names that begin with a dot are being written."""
    if exported.is_export(folder):
        return [folder]
    try:
        inside = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as e:
        raise BadExport(f"couldn't look into {folder}: {e.strerror}") from e
    return [each for each in inside if exported.is_export(each)]


def find_base(first: Exported, base: Path | None, cache: Path, *, on_progress: Progress) -> Model:
    """The base model that an export names, every byte checked.

    Raises:
        BadExport: the folder given is another model.
        UnknownModel, CorruptModel: it is not in the cache, or not as it was.
    """
    if base is None:
        found = models.find(first.base, cache)
        models.verify(found, on_progress=on_progress)
        return found
    digest = models.base_digest(base, on_progress=lambda part: on_progress("checking the base", part))
    if digest != first.base:
        named = f"{first.base_name} with digest {short(first.base)}"
        raise BadExport(f"couldn't serve {first.folder}: its base is {named}, and {base} has {short(digest)}")
    return Model(name=first.base_name, digest=digest, path=base)


class Replica:
    """Keeps the engine's table of names equal to the folders."""

    def __init__(self, folder: Path, first: Exported, serving: Serving, scratch: Path) -> None:
        """`scratch` takes the vectors, for as long as they may be asked for."""
        self._folder, self._first, self._serving, self._scratch = folder, first, serving, scratch
        self._stamps: dict[Path, Stamp] = {}
        self._served: dict[Path, Exported] = {}

    @property
    def served(self) -> list[Exported]:
        """What is served, by number."""
        return sorted(self._served.values(), key=lambda each: each.number)

    async def look(self) -> None:
        """Serve what is new, end what is gone."""
        found = await asyncio.to_thread(_stamped, self._folder)
        for gone in self._stamps.keys() - found.keys():
            del self._stamps[gone]
            self._end(gone)
        for folder, stamp in found.items():
            if self._stamps.get(folder) == stamp:
                continue
            self._stamps[folder] = stamp
            try:
                await self._serve(folder)
            except Retry as e:
                del self._stamps[folder]
                log.warning("event=not-served folder=%s code=%s cause=%s", folder.name, e.code, e)
            except (FishernetError, OSError) as e:
                self._end(folder)
                log.warning("event=refused folder=%s cause=%s", folder.name, e)

    async def _serve(self, folder: Path) -> None:
        export = await asyncio.to_thread(exported.read, folder)
        first = self._first
        for what in ("collective", "base", "spec", "modules"):
            if getattr(export, what) != getattr(first, what):
                raise BadExport(f"couldn't serve {folder}: it has another {what} than {first.folder.name}")
        same = [f for f, each in self._served.items() if each.number == export.number and f != folder]
        if same and self._served[same[0]].release != export.release:
            raise BadExport(f"couldn't serve {folder}: {same[0].name} is another release {export.number}")
        path = self._scratch / f"{export.model}.npy"
        if not path.exists():
            await asyncio.to_thread(save_vector, path, export.vector)
        before = self._served.get(folder)
        if before is not None and before.number != export.number:
            self._end(folder)
        await self._serving.set_release(export.number, export.release, path, model=export.model)
        self._served[folder] = export

    def _end(self, folder: Path) -> None:
        if (ended := self._served.pop(folder, None)) is None:
            return
        if all(each.number != ended.number for each in self._served.values()):
            self._serving.drop_release(ended.number)
            log.info("event=withdrawn release=%s digest=%s", ended.number, ended.release[:12])

    def facts(self) -> Facts:
        """What answers say: the ledger head is the one that the newest export names."""
        newest = self.served[-1] if self._served else None
        return Facts(
            node="replica",
            head=newest.head if newest else ZERO,
            release=newest.release if newest else None,
            ready={"engine": self._serving.running, "release": newest is not None},
        )


def open_first(folder: Path) -> Exported:
    """The export that says what everything here is about: the newest one that is right.

    Raises:
        BadExport: none is; with one export, what is wrong with it.
    """
    found = candidates(folder)
    if not found:
        raise BadExport(
            f"couldn't serve {folder}: no export lies there; make one with: fishernet export latest --out FOLDER"
        )
    good, last = [], BadExport("")
    for each in found:
        try:
            good.append(exported.read(each))
        except BadExport as e:
            last = e  # `Replica.look` says it once there is something to serve
    if not good:
        raise last
    return max(good, key=lambda each: each.number)


async def run(
    wanted: Wanted,
    first: Exported,
    base: Model,
    *,
    on_ready: Callable[[int, Replica], None] = lambda _port, _replica: None,
) -> None:
    """Serve until SIGTERM, SIGINT or cancellation; `on_ready` gets the port once the model is loaded.

    Raises:
        AddressError: the port is taken.
        BadExport, BadAdapter: the exports do not fit the base.
        ChildDied: the engine process cannot start.
    """
    spec = first.spec
    layout = await asyncio.to_thread(adapters.layout, base.path, spec)
    if layout.modules != first.modules:
        raise BadExport(f"couldn't serve {first.folder}: its modules are not those of {base.name}")
    adapter = {**spec.to_json(), "coordinates": layout.coordinates}
    serving = Serving(model=base.path, base=base.digest, adapter=adapter, load=wanted.load)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="fishernet-serve-") as scratch:
        replica = Replica(wanted.folder, first, serving, Path(scratch))
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread: a test
                loop.add_signal_handler(number, stop.set)
        try:
            await replica.look()
            app = create_app(serving, replica.facts, api_keys=tuple(wanted.api_keys))
            address = http.Address(host=wanted.host, port=wanted.port)
            bound = loop.create_future()
            async with asyncio.TaskGroup() as jobs:
                server = jobs.create_task(http.run_server(app, address, on_ready=bound.set_result), name="api")
                watch = jobs.create_task(_watch(serving, replica, bound, on_ready), name="watch")
                await stop.wait()
                log.info("event=stopping")
                server.cancel()
                watch.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(serving.stop(), _STOP_S)


async def _watch(
    serving: Serving, replica: Replica, bound: asyncio.Future[int], on_ready: Callable[[int, Replica], None]
) -> None:
    """Keep the engine up and the names equal to the folders."""
    port, told = await bound, False
    while True:
        if not serving.running:
            try:
                await serving.start(preload=True)
            except Retry as e:
                if not told:
                    raise  # it never came up: say so and end
                log.warning("event=engine-down cause=%s", e)
        if not told:
            told = True
            log.info("event=ready port=%s", port)
            on_ready(port, replica)
        await asyncio.sleep(_LOOK_S)
        try:
            await replica.look()
        except ServingError as e:
            log.warning("event=not-served cause=%s", e)
        except BadExport as e:  # the folder itself cannot be read now
            log.warning("event=folder cause=%s", e)


def _stamped(folder: Path) -> dict[Path, Stamp]:
    """The exports in a folder with what changes when one is replaced."""
    found = {}
    for each in candidates(folder):
        with contextlib.suppress(OSError):
            stat = (each / CARD).stat()
            found[each] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the service, out of the groups that carried it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
