"""How fast a feed may grow here: a member that appends without end fills nobody's disk and holds up nobody else.

The rule: a feed may hold `entries.burst` entries and `entries.per_s` more for each second since the collective was founded, and
in the same way so many bytes. What is beyond stays where it is until time has passed: nothing is refused, lost or banned for it,
and other feeds are pulled meanwhile. As it goes by age, a newcomer takes all of an old honest feed at once. Knows no store and no
network; our own feed is not asked about. Invariant: no feed takes more of this disk than its allowance and one page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from node.guarding.limits import MIB, Rate
from protocol.canon import Json
from protocol.ids import MemberId

log = logging.getLogger(__name__)


_DAY_S: Final = 86_400
_ENTRIES: Final = Rate(per_s=0.25, burst=20_000)
_BYTES: Final = Rate(per_s=1024, burst=64 * MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRates:
    """The allowance of one feed: entries (about 1 KB of memory each), and bytes of lines and bodies."""

    entries: Rate = _ENTRIES
    bytes: Rate = _BYTES


def rates_of(*, feed_entries_per_day: int, feed_mib_per_day: int) -> FeedRates:
    """The allowance that a configuration asks for."""
    return FeedRates(
        entries=replace(_ENTRIES, per_s=feed_entries_per_day / _DAY_S),
        bytes=replace(_BYTES, per_s=feed_mib_per_day * MIB / _DAY_S),
    )


@dataclass(slots=True)
class _Held:
    entries: int
    bytes: int


class Growth:
    """The allowances of all feeds of one collective."""

    def __init__(
        self,
        rates: FeedRates,
        *,
        now_ms: Callable[[], int],
        founded_ms: Callable[[], int | None],
        held: Callable[[MemberId], tuple[int, int]],
    ) -> None:
        """`held` gives entries and bytes that stand on disk, asked once for each feed; `founded_ms` None: not known yet."""
        self._rates, self._now_ms, self._founded_ms, self._read = rates, now_ms, founded_ms, held
        self._held: dict[MemberId, _Held] = {}
        self._waiting: set[MemberId] = set()

    def use(self, rates: FeedRates) -> None:
        """Go by another allowance from now on."""
        self._rates = rates

    def room(self, member: MemberId) -> int:
        """How many more entries of this feed may be taken now."""
        held, founded = self._of(member), self._founded_ms()
        age_s = 0.0 if founded is None else max(0.0, (self._now_ms() - founded) / 1000)
        rates = self._rates
        entries = int(rates.entries.burst + rates.entries.per_s * age_s) - held.entries
        left = int(rates.bytes.burst + rates.bytes.per_s * age_s) - held.bytes
        room = entries if left > 0 else 0
        if room > 0:
            self._waiting.discard(member)
        elif member not in self._waiting:
            self._waiting.add(member)
            log.warning("event=feed-held-back member=%s entries=%d bytes=%d", member[:12], held.entries, held.bytes)
        return max(0, room)

    def took(self, member: MemberId, entries: int, size: int) -> None:
        """So many entries with so many bytes were stored."""
        if member not in self._held:
            self._of(member)  # what is read now has them already
            return
        self._held[member].entries += entries
        self._held[member].bytes += size

    def held_back(self) -> frozenset[MemberId]:
        """Members whose feeds are beyond their allowance."""
        return frozenset(self._waiting)

    def status(self) -> dict[str, Json]:
        """Flat numbers."""
        return {"feeds_held_back": len(self._waiting), "feed_bytes": sum(held.bytes for held in self._held.values())}

    def _of(self, member: MemberId) -> _Held:
        if member not in self._held:
            self._held[member] = _Held(*self._read(member))
        return self._held[member]
