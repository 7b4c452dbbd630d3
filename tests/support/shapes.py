"""Members whose links are cut in any shape: real ledgers, blobs, seats, judges and councils; a clock that only moves when told.

A link is one-way: (a, b) means that b gets from a whatever a holds, of every feed, as by the pull. What is cut is not delivered
and not kept for later; what is linked comes in a drawn order. One draw gives one history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seats import Sitter, Table

from node.collective.council import Council
from node.collective.replay import Missing
from protocol.ids import Digest

Links = frozenset[tuple[str, str]]


def among(*groups: Iterable[str]) -> Links:
    """Everybody in a group hears everybody in it, and nobody outside."""
    return frozenset((a, b) for group in map(tuple, groups) for a in group for b in group if a != b)


def star(hub: str, names: Sequence[str]) -> Links:
    """All hear one and are heard by it, and nobody else."""
    return frozenset(link for n in names if n != hub for link in ((n, hub), (hub, n)))


def pairs(names: Sequence[str]) -> Links:
    """A ring of which every second link is cut."""
    return among(*(names[i : i + 2] for i in range(0, len(names), 2)))


def one_way(source: Sequence[str], to: Sequence[str]) -> Links:
    """Two groups; the second hears the first, but not the other way round."""
    return among(source, to) | frozenset((a, b) for a in source for b in to)


def ring(names: Sequence[str]) -> Links:
    """Everybody hears the one before, and nobody else."""
    return frozenset((names[i - 1], n) for i, n in enumerate(names))


def drawn(names: Sequence[str], rng: random.Random, share: float) -> Links:
    """Each one-way link stands with this chance."""
    return frozenset((a, b) for a in names for b in names if a != b and rng.random() < share)


class Cut(Table):
    """A table whose mail goes over links."""

    def __init__(self, folder: Path, names: Sequence[str], seed: int, **options: Any) -> None:
        rules = {"release": {"wait_for": 2, "patience_ms": 2000, "timeout_ms": 1000}}
        super().__init__(folder, names, rules=rules, **options)
        self.names, self.rng, self.now = list(names), random.Random(seed), 0.0
        self.links: Links = among(names)
        self.loop = asyncio.new_event_loop()
        self.councils = {s.name: Council(s.seat, s.replay, s.judge, clock=lambda: self.now) for s in self}
        self.away: set[str] = set()
        self.blobs: dict[str, set[Digest]] = {n: set() for n in names}
        self.wrote: set[str] = set()  # every contribution that anybody published

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        super().close()

    def restart(self, name: str) -> None:
        """The node starts anew from its store."""
        sitter = self[name]
        sitter.sit()
        self.councils[name] = Council(sitter.seat, sitter.replay, sitter.judge, clock=lambda: self.now)

    def contribute(self, *names: str) -> None:
        for name in names:
            contribution = self[name].publish()
            self.wrote.add(contribution.event)
            self.blobs[name].add(contribution.blob)

    def turn(self, seconds: float = 0.25) -> None:
        """A moment passes: what is linked hears each other, in any order, and everybody acts."""
        self.now += seconds
        links = [(a, b) for a, b in sorted(self.links) if not {a, b} & self.away]
        self.rng.shuffle(links)
        for source, to in links:
            self._pull(self[source], self[to])
        for name in self.rng.sample(self.names, len(self.names)):
            if name not in self.away:
                for _ in range(6):
                    if not self.loop.run_until_complete(self.councils[name].step()):
                        break

    def turns(self, count: int, seconds: float = 0.25) -> None:
        for _ in range(count):
            self.turn(seconds)

    def until(self, holds: Any, limit: int = 200) -> int:
        """Turns until something holds."""
        for count in range(limit):
            if holds():
                return count
            self.turn()
        raise AssertionError(f"not within {limit} turns: {holds}")

    def _pull(self, source: Sitter, to: Sitter) -> None:
        """Everything that one holds and the other lacks, of whatever feed, as far as the other's own checks take it."""
        for member, size in list(source.fold.sizes.items()):
            if member != to.id and size > (held := to.fold.sizes.get(member, 0)):
                (head,) = source.store.heads(self.collective, member)
                page = source.store.records(self.collective, member, held)
                to.seat.receive(member, to.store.append_foreign(self.collective, member, page, head.note))
        for name in self.blobs[source.name] - self.blobs[to.name]:
            to.blobs.put(source.blobs.read(name, 1 << 20))
            self.blobs[to.name].add(name)

    # -- what must hold ----------------------------------------------------------------------------------------------------
    def views(self) -> set[str]:
        """The models that members would serve and train from."""
        found = set()
        for sitter in self:
            model = sitter.replay.view(lambda _c: True)
            found.add("missing" if isinstance(model, Missing) else model.digest)
        return found

    def settled(self) -> bool:
        """Everybody holds the same, and nothing is left to decide."""
        sizes = [s.fold.sizes for s in self]
        return all(each == sizes[0] for each in sizes) and not any(s.fold.pending() for s in self)

    def fates(self) -> Mapping[str, set[str]]:
        """What became of every contribution, at every member."""
        return {
            event: {next((s.fold.fate(c) for c in _all(s) if c.event == event), "lost") for s in self}
            for event in sorted(self.wrote)
        }

    def decisions(self, name: str) -> list[str]:
        return [d.digest for d in self[name].fold.decisions]


def _all(sitter: Sitter) -> list[Any]:
    return [c for by in sitter.fold.contributions.values() for c in by]
