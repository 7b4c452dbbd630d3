"""Adapter versions between disk and slot: read by two threads, kept in memory up to a number of bytes, the longest unused go.

A version is named by its content, so new content is another version and nothing is refreshed in place. Knows no slots and no
requests: the caller says which versions must stay. All methods are called by one thread; only `load` runs in others.

Invariant: room is made before a version is read, so loaded and expected bytes never exceed the limit; what is in memory is
not read again; an error is remembered for `RETRY` seconds, then the next request tries anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import torch

from contrib.adapters import AdapterSpec
from contrib.errors import BadAdapter
from node.errors_serving import BadVector
from node.serving.engine.adapter import HostAdapter, from_peft, from_vector
from node.serving.engine.model import ModelShape
from node.serving.engine.pool import bucket, most_bytes
from node.serving.vectors import read_vector
from protocol.errors import FishernetError
from protocol.ids import short

LOADERS: Final = 2  # threads
RETRY: Final = 20.0  # s for which an error is remembered
_MOST_ERRORS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a version lies: a vector of the shape `spec` describes, or a PEFT folder (`spec` None)."""

    version: str
    path: Path
    rank: int
    spec: AdapterSpec | None = None
    digest: str | None = None  # of the content; checked when given


class Found(Enum):
    """What `Store.fetch` can say."""

    READY = "ready"
    LOADING = "loading"
    SHORT = "short"  # everything in memory is in use


def load(source: Source, shape: ModelShape, dtype: torch.dtype) -> HostAdapter:
    """Read, check and lay out one version.

    Raises:
        BadVector, BadAdapter: damaged, not what its digest says, made for another base, or not finite.
    """
    if source.spec is not None:
        vector = read_vector(source.path, digest=source.digest)
        return from_vector(vector, source.spec, shape, dtype, digest=source.digest)
    adapter = from_peft(source.path, shape, dtype)
    if source.digest is not None and adapter.digest != source.digest:
        raise BadAdapter(f"couldn't load adapter: the digest of {source.path.name} is not {short(source.digest)}...")
    return adapter


class Store:
    """Versions in memory, for one base model."""

    def __init__(
        self,
        shape: ModelShape,
        dtype: torch.dtype,
        *,
        limit: int,
        wake: Callable[[], None],
        load: Callable[[Source, ModelShape, torch.dtype], HostAdapter] = load,
    ) -> None:
        """Hold at most `limit` bytes; `wake` is called, in any thread, when a load has ended."""
        self._shape, self._dtype, self._limit, self._wake, self._load = shape, dtype, limit, wake, load
        self._held: OrderedDict[str, HostAdapter] = OrderedDict()  # the longest unused first
        self._loading: dict[str, tuple[Future[HostAdapter], int]] = {}  # with the bytes expected
        self._errors: OrderedDict[str, tuple[FishernetError, float]] = OrderedDict()
        self._pool = ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
        self.bytes = 0
        self.reads = self.read_errors = self.evictions = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, version: str) -> HostAdapter | None:
        """The version, if it is in memory; it counts as used."""
        adapter = self._held.get(version)
        if adapter is not None:
            self._held.move_to_end(version)
        return adapter

    def bucket(self, version: str) -> int | None:
        """Size class of a version in memory."""
        adapter = self._held.get(version)
        return None if adapter is None else bucket(adapter.rank)

    def fetch(self, source: Source, now: float, in_use: Callable[[str], bool]) -> Found:
        """See that the version comes into memory; to be asked again until it is there.

        Args:
            source: the version.
            now: the time in seconds.
            in_use: whether a version in memory must stay.

        Raises:
            BadVector, BadAdapter: it can't be read; the same error until `RETRY` seconds have passed.
        """
        self._collect(now)
        if source.version in self._held:
            return Found.READY
        if source.version in self._loading:
            return Found.LOADING
        if (known := self._errors.get(source.version)) is not None:
            if now < known[1]:
                raise known[0]
            del self._errors[source.version]
        expected = self._expected(source)
        if expected > self._limit:
            message = f"couldn't load adapter: it takes {expected} bytes, all adapters together may take {self._limit}"
            raise self._remember(source.version, BadAdapter(message), now)
        if not self._make_room(expected, in_use):
            return Found.SHORT
        future = self._pool.submit(self._load, source, self._shape, self._dtype)
        self._loading[source.version] = future, expected
        future.add_done_callback(lambda _: self._wake())
        return Found.LOADING

    def drop(self, version: str) -> None:
        """Take a version that nothing uses out of memory, and forget its error."""
        self._errors.pop(version, None)
        if (adapter := self._held.pop(version, None)) is not None:
            self.bytes -= adapter.nbytes

    def trim(self, in_use: Callable[[str], bool]) -> None:
        """Take out everything that nothing uses."""
        for version in [version for version in self._held if not in_use(version)]:
            self.drop(version)

    def close(self) -> None:
        """End the loading threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _collect(self, now: float) -> None:
        """Take over what has been loaded."""
        for version in [version for version, (future, _) in self._loading.items() if future.done()]:
            future, _ = self._loading.pop(version)
            error = future.exception()
            if error is None:
                adapter = self._held[version] = future.result()
                self.bytes += adapter.nbytes
                self.reads += 1
            else:
                self._remember(version, _typed(error), now)

    def _remember(self, version: str, error: FishernetError, now: float) -> FishernetError:
        self.read_errors += 1
        self._errors[version] = error, now + RETRY
        while len(self._errors) > _MOST_ERRORS:
            self._errors.popitem(last=False)
        return error

    def _make_room(self, expected: int, in_use: Callable[[str], bool]) -> bool:
        """Evict until `expected` bytes more fit; nothing is evicted when that is not enough."""
        over = self.bytes + sum(size for _, size in self._loading.values()) + expected - self._limit
        going: list[str] = []
        for version, adapter in self._held.items():
            if over <= 0:
                break
            if not in_use(version):
                going.append(version)
                over -= adapter.nbytes
        if over > 0:
            return False
        for version in going:
            self.bytes -= self._held.pop(version).nbytes
            self.evictions += 1
        return True

    def _expected(self, source: Source) -> int:
        """Bytes it takes at most: its rank on every linear (a single module of a PEFT folder may have a higher one)."""
        return most_bytes(self._shape, source.rank, self._dtype)


def _typed(error: BaseException) -> FishernetError:
    if isinstance(error, FishernetError):
        return error
    cause = "not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    return BadVector(f"couldn't load adapter: {cause}")
