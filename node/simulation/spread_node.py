"""A node of a simulated swarm: the product's `Sync` over a simulated network, a store with signed heads, and nothing above.

Knows no votes and no model. Invariant: what a node holds came through its own sync and its own store; what it held at the
beginning is said (`Everyone.held`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.entry import Record
from node.simulation.ether import Ether
from node.simulation.feeds import Archive, MemoryBlobs
from node.simulation.footprint import footprint
from node.simulation.heads import HeadedStore, Roots
from node.syncing.neighbours import Neighbours
from node.syncing.sync import Sync, SyncRules
from protocol import binding as bindings
from protocol.canon import Json
from protocol.ids import CollectiveId, MemberId, PeerId, digest
from protocol.keys import SigningKey, member_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The keys of a member, and what binds them."""

    number: int
    key: SigningKey
    member: MemberId
    peer: PeerId
    binding: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Everyone:
    """What all nodes have in common: who is a member, and what everybody held at the beginning."""

    collective: CollectiveId
    identities: tuple[Identity, ...]
    bound: Mapping[PeerId, MemberId]
    members: frozenset[MemberId]
    archive: Archive
    roots: Roots
    held: HeadedStore


def everyone(count: int, seed: int) -> Everyone:
    """Keys, bindings and the first entry of each feed, all from the seed."""
    collective = CollectiveId(digest(f"swarm/{seed}/{count}".encode()))
    archive, roots = Archive(), Roots()
    held = HeadedStore(archive, roots)
    made = tuple(_identity(n, seed) for n in range(count))
    for one in made:
        held.append(one.key, collective, "peer.bound", {"binding": dict(one.binding)}, now_ms=0, salt=bytes(16))
    held.heads(collective)
    return Everyone(
        collective=collective,
        identities=made,
        bound={one.peer: one.member for one in made},
        members=frozenset(one.member for one in made),
        archive=archive,
        roots=roots,
        held=held,
    )


def _identity(number: int, seed: int) -> Identity:
    key = SigningKey(hashlib.sha256(f"swarm/{seed}/ledger/{number}".encode()).digest())
    transport = SigningKey(hashlib.sha256(f"swarm/{seed}/transport/{number}".encode()).digest())
    made = bindings.make(key, transport)
    return Identity(number=number, key=key, member=member_id(key), peer=PeerId(str(made["peer"])), binding=made)


class Chosen(Neighbours):
    """Neighbours that a topology fixes: for comparison."""

    def __init__(
        self, collective: CollectiveId, me: MemberId, rng: random.Random, among: Sequence[MemberId] | None
    ) -> None:
        """`among`: these alone; None: everybody."""
        super().__init__(collective, me, rng)
        self._among = None if among is None else frozenset(among)

    def choose(self, members: Collection[MemberId]) -> frozenset[MemberId]:
        """As fixed, as far as they are members."""
        others = frozenset(members) - {self._me}
        return others if self._among is None else others & self._among


@dataclass(slots=True, kw_only=True)
class Arrival:
    """When and how a node got an entry."""

    at: float
    source: PeerId | None


@dataclass(slots=True)
class Log:
    """What arrived, by feed and entry number."""

    arrivals: dict[tuple[MemberId, int], Arrival] = field(default_factory=dict)


class SwarmNode:
    """One node, not running before `start`."""

    def __init__(
        self,
        identity: Identity,
        all_: Everyone,
        ether: Ether,
        neighbours: Neighbours,
        rng: random.Random,
        *,
        heads_every_s: float,
        empty: bool = False,
    ) -> None:
        self.identity, self._all = identity, all_
        self.port = ether.port(identity.peer)
        self.store = HeadedStore(all_.archive, all_.roots)
        if not empty:
            self.store.copy_of(all_.held)
        self.log = Log()
        self.sync = Sync(
            store=self.store,
            blobs=MemoryBlobs(all_.archive),
            network=self.port,
            collective=all_.collective,
            binding=identity.binding,
            rules=SyncRules(
                allowed=lambda member: member in all_.members,
                on_records=self._took,
                peers=lambda: all_.bound,
                follows=True,
            ),
            heads_every_s=heads_every_s,
            clock=self.port.loop.time,
            rng=rng,
            neighbours=neighbours,
        )
        self.store.sign_with(identity.key, all_.collective)
        self._pages: dict[MemberId, PeerId] = {}  # feed -> who sent the page that is taken now
        feeds = self.sync._feeds
        took = feeds._took

        async def traced(answer: Any, peer: PeerId, member: MemberId, *more: Any) -> bool:
            self._pages[member] = peer
            return await took(answer, peer, member, *more)

        vars(feeds)["_took"] = traced  # to see the way that a page takes; nothing else is changed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the sync."""
        self._task = asyncio.get_running_loop().create_task(self.sync.run())

    async def stop(self) -> None:
        """End the sync; the node is gone."""
        self.port.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def footprint(self) -> int:
        """Bytes of memory of what this node's sync knows, without entries, heads and the simulated network."""
        all_ = self._all
        shared = (all_, all_.identities, all_.bound, all_.members, all_.archive, all_.roots, all_.held)
        return footprint(self.sync, [*shared, self.identity.binding, self.port, self.store, self])

    async def write(self, text: str) -> int:
        """Append one entry to the own feed and announce it; its number."""
        now = self.port.loop.time()
        made = self.store.append(
            self.identity.key,
            self._all.collective,
            "note.added",
            {"text": text},
            now_ms=round(now * 1000),
            salt=hashlib.sha256(text.encode()).digest()[:16],
        )
        seq = made.entry.header.seq
        self.log.arrivals[self.identity.member, seq] = Arrival(at=now, source=None)
        await self.sync.announce()
        return seq

    def _took(self, member: MemberId, records: Sequence[Record]) -> None:
        now, source = self.port.loop.time(), self._pages.get(member)
        for record in records:
            self.log.arrivals.setdefault((member, record.entry.header.seq), Arrival(at=now, source=source))
