"""Where each adapter version is: on disk, in memory, in an active slot; and the moves between these.

Joins the store with the runner's slots. Which version moves is decided elsewhere (`scheduler`); this counts what it finds
and moves. Knows no requests.

Invariant: a version in a slot stays as it is until nothing uses it; what something waits for keeps its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from node.serving.engine.pool import bucket
from node.serving.engine.scheduler import BASE
from node.serving.engine.store import Found, Source, Store
from protocol.errors import FishernetError

Uses = Callable[[str], bool]  # whether answers of a version wait or run


@dataclass(slots=True)
class TierCounts:
    """Where requests found their versions, and what was moved for them."""

    tier_hits_active: int = 0
    tier_hits_ram: int = 0
    tier_hits_disk: int = 0
    swap_ins: int = 0
    evictions_active: int = 0


class Tiers:
    """The adapters of one base model. One thread calls it."""

    def __init__(self, runner: Any, base: str, *, limit: int, uses: Uses, wake: Callable[[], None]) -> None:
        """Hold at most `limit` bytes in memory; `wake` is called, in any thread, when something has been loaded."""
        self.counts = TierCounts()
        self._runner, self._uses = runner, uses
        self._store: Final = Store(runner.shape, runner.dtype, limit=limit, wake=wake)
        self._slots: dict[str, tuple[int, str]] = {BASE: (0, base)}  # version -> slot, digest of what is in it
        self._sources: dict[str, Source] = {}
        self._dropped: set[str] = set()

    def slot(self, version: str) -> tuple[int, str]:
        """The slot of an active version, and the digest of what is in it."""
        return self._slots[version]

    def bucket(self, version: str) -> int | None:
        """Size class of a version in memory, None when it is not there."""
        return self._store.bucket(version)

    def want(self, source: Source, now: float) -> Found:
        """A request asks for this version: count where it is, and begin to read it. Raises the error of reading it."""
        found = self.load(source, now)
        self._sources[source.version] = source
        self._dropped.discard(source.version)
        if source.version in self._slots:
            self.counts.tier_hits_active += 1
        elif found is Found.READY:
            self.counts.tier_hits_ram += 1
        else:
            self.counts.tier_hits_disk += 1
        return found

    def load(self, source: Source, now: float) -> Found:
        """See that a version comes into memory, no request asking. Raises the error of reading it."""
        if source.version in self._slots:
            return Found.READY
        return self._store.fetch(source, now, self._stays)

    def fetch(self, wanted: Iterable[str], now: float) -> tuple[set[str], dict[str, FishernetError]]:
        """Go on reading what is waited for; returns the versions without room, and those that can't be read.

        `wanted` has the one that is due first in front: it may take the memory of those behind it, never the reverse, so
        that two versions do not push each other out by turns.
        """
        short: set[str] = set()
        failed: dict[str, FishernetError] = {}
        before: set[str] = set()
        for version in wanted:
            before.add(version)
            try:
                found = self._store.fetch(self._sources[version], now, lambda v: v in before or self._placed(v))
                if found is Found.SHORT:
                    short.add(version)
            except FishernetError as e:
                failed[version] = e
        return short, failed

    def activate(self, version: str) -> bool:
        """Put a version into a slot; False when it is not in memory any more or finds no slot."""
        adapter = self._store.get(version)
        if adapter is None or not self._runner.slots_free(bucket(adapter.rank)):
            return False
        self._slots[version] = self._runner.activate(adapter), adapter.digest
        self.counts.swap_ins += 1
        return True

    def deactivate(self, version: str) -> None:
        """Take a version that no row uses out of its slot."""
        self._runner.deactivate(self._slots.pop(version)[0])
        self.counts.evictions_active += 1

    def drop(self, version: str) -> None:
        """Hold a version no longer than what is under way needs it."""
        self._dropped.add(version)

    def unused(self) -> list[str]:
        """Forget what nothing uses and is not wanted any more; returns the active ones, which are out of their slots now."""
        for version in [v for v in self._sources if not self._uses(v)]:
            del self._sources[version]
        return self._take_out([v for v in self._dropped if not self._uses(v)])

    def trim(self) -> list[str]:
        """Take out everything that nothing uses; returns the active ones among them."""
        found = self._take_out([v for v in self._slots if v != BASE and not self._uses(v)])
        self._store.trim(self._stays)
        return found

    def _take_out(self, versions: list[str]) -> list[str]:
        active = [version for version in versions if version in self._slots]
        for version in versions:
            self._dropped.discard(version)
            if version in active:
                self.deactivate(version)
            self._store.drop(version)
        return active

    def _stays(self, version: str) -> bool:
        """Whether it must stay in memory whoever asks for room: it is in a slot, or something waits for it."""
        return self._placed(version) or self._uses(version)

    def _placed(self, version: str) -> bool:
        """True for what is in a slot that holds no copy."""
        return version in self._slots and self._runner.device.type == "cpu"

    def close(self) -> None:
        """End the loading threads."""
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Gauges and counters by their names in `Engine.stats`."""
        counts, store = self.counts, self._store
        return {
            **{name: getattr(counts, name) for name in TierCounts.__slots__},
            "adapters_active": len(self._slots) - 1,
            "adapters_ram": len(store),
            "adapters_ram_bytes": store.bytes,
            "evictions_ram": store.evictions,
            "load_errors": store.read_errors,
        }
