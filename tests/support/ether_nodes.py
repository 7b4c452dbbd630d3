"""Real syncs with real stores over a simulated network in virtual time: what takes minutes takes no time here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random

from peers import COLLECTIVE

from ledger.store import Store
from node.simulation import virtual
from node.simulation.ether import Ether, Medium
from node.simulation.gossip import GossipRules
from node.syncing.blobs import BlobStore
from node.syncing.sync import Sync, SyncRules


def virtually(test):
    """An async test in simulated time, at most an hour of it."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def bounded():
            async with asyncio.timeout(3600):
                await test(*args, **kwargs)

        virtual.run(bounded())

    return run


async def until(holds, limit_s=600.0, step_s=0.05):
    """Wait for a condition, in simulated seconds; how many it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not holds():
        assert loop.time() - began < limit_s, "it did not come true in time"
        await asyncio.sleep(step_s)
    return loop.time() - began


def feeds_of(authors, folder, entries=1):
    """A ledger with a feed of each author."""
    store = Store.open(folder / "authors.db")
    for home in authors:
        for n in range(entries):
            store.append(home.key, COLLECTIVE, "note.added", {"n": n}, now_ms=n, salt=bytes(16))
    return store


def give(node, feeds, authors):
    """What was pulled in an earlier life."""
    for home in authors:
        note = feeds.heads(COLLECTIVE, home.member)[0].note
        node.store.append_foreign(COLLECTIVE, home.member, feeds.records(COLLECTIVE, home.member), note)


class Air:
    """The simulated network and every node on it; ends them all."""

    def __init__(self, *, loss=0.0, delay_ms=(10, 60), seed=1):
        self.rng = random.Random(seed)
        self.ether = Ether(Medium(loss=loss, delay_ms=delay_ms), GossipRules(), self.rng)
        self.nodes = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for node in self.nodes:
            await node.stop()

    def node(self, home, members, **options):
        made = EtherNode(self, home, members, **options)
        self.nodes.append(made)
        return made


class EtherNode:
    """Store, blobs and sync of one home on the simulated network, running from the start."""

    def __init__(self, air, home, members, *, gossip=True, heads_every_s=5.0, **rules):
        self.home, self.members = home, {h.member for h in members}
        self.port = air.ether.port(home.peer)
        if not gossip:
            vars(self.port)["publish"] = _nobody_hears
        self.store, self.blobs = Store.open(home.folder / "ledger.db"), BlobStore(home.folder / "blobs")
        self.seen, self.forks, self.faults = [], [], []
        bound = {h.peer: h.member for h in members}
        given = {
            "allowed": self.members.__contains__,
            "on_records": lambda member, records: self.seen.extend((member, r) for r in records),
            "on_fork": self.forks.append,
            "faulty": lambda peer, error: self.faults.append((peer, error)),
            "peers": lambda: bound,
        }
        self.sync = Sync(
            store=self.store,
            blobs=self.blobs,
            network=self.port,
            collective=COLLECTIVE,
            binding=home.binding,
            rules=SyncRules(**{**given, **rules}),
            heads_every_s=heads_every_s,
            clock=self.port.loop.time,
            rng=random.Random(air.rng.getrandbits(32)),
        )
        self.store.sign_with(home.key, COLLECTIVE)
        self._task = asyncio.get_running_loop().create_task(self.sync.run())

    async def stop(self):
        """The node is gone; its files stay."""
        if self._task is None:
            return
        self.port.leave()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        self.store.close()

    def append(self, **body):
        return self.store.append(
            self.home.key, COLLECTIVE, "note.added", body, now_ms=1_700_000_000_000, salt=os.urandom(16)
        )

    def size(self, home):
        return self.store.length(COLLECTIVE, home.member)

    def heads(self):
        return {head.member: (head.size, head.root) for head in self.store.heads(COLLECTIVE)}


async def _nobody_hears(_topic, _data):
    return False
