"""The fake network: messages between members that take time, cost bytes, and may be lost. Pure but for the event queue.

Knows no ledger: a message is a size and what happens when it arrives. Invariant: nothing arrives at, or leaves from, a
member that is away, and nothing crosses a split; what is sent is counted whether it arrives or not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.simulation.clock import Clock

Arrived = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Between two simulated moments (ms), members in different groups do not hear each other."""

    start: int
    end: int
    group: Mapping[int, int]  # member -> group; a member that is not named is in group 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What every message meets: a delay drawn between two bounds (ms), bytes a ms, the share that is lost."""

    delay_ms: tuple[int, int] = (10, 120)
    bytes_per_ms: float = 1250.0
    loss: float = 0.0
    splits: Sequence[Split] = ()


@dataclass(slots=True)
class Traffic:
    """What went over the network so far."""

    messages: Counter[str] = field(default_factory=Counter)  # by kind
    bytes: Counter[str] = field(default_factory=Counter)  # by kind
    sent: Counter[int] = field(default_factory=Counter)  # bytes by sender
    lost: int = 0  # messages that met loss, a split or somebody away


class Swarm:
    """All links of a collective; members are numbers."""

    def __init__(self, clock: Clock, links: Links, members: int, rng: random.Random) -> None:
        self.clock, self.links, self.members = clock, links, members
        self.traffic = Traffic()
        self.away: set[int] = set()
        self._random = rng

    def reaches(self, source: int, to: int) -> bool:
        """Whether a message can pass between two members now."""
        if source in self.away or to in self.away:
            return False
        now = self.clock.elapsed
        return all(
            not (s.start <= now < s.end) or s.group.get(source, 0) == s.group.get(to, 0) for s in self.links.splits
        )

    def send(self, source: int, to: int, size: int, kind: str, arrived: Arrived) -> None:
        """Send `size` bytes; `arrived` is called at the other end, or never."""
        traffic = self.traffic
        traffic.messages[kind] += 1
        traffic.bytes[kind] += size
        traffic.sent[source] += size
        low, high = self.links.delay_ms
        delay = self._random.uniform(low, high) + size / self.links.bytes_per_ms
        # Both draws are made for every message, so that what is lost does not move what comes after it.
        lost = self._random.random() < self.links.loss
        if lost or not self.reaches(source, to):
            traffic.lost += 1
            return

        def land() -> None:
            if self.reaches(source, to):
                arrived()
            else:
                traffic.lost += 1

        self.clock.after(delay, land)

    def others(self, member: int, count: int) -> list[int]:
        """So many other members, drawn at random; all of them when there are no more."""
        if count >= self.members - 1:
            return [other for other in range(self.members) if other != member]
        found: list[int] = []
        while len(found) < count:
            other = self._random.randrange(self.members)
            if other != member and other not in found:
                found.append(other)
        return found
