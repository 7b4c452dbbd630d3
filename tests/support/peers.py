"""Real nodes for the network tests: a store, blobs, p2pd on a loopback port of the system's choice, and a sync."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import uvloop
from nacl.signing import SigningKey
from paper import charter_of, key

from ledger.charter import collective_id
from ledger.events import Genesis
from ledger.store import Store
from node.network.swarm import Swarm, SwarmConfig
from node.syncing.blobs import BlobStore
from node.syncing.sync import Sync, SyncRules
from protocol import binding
from protocol.ids import digest, peer_id
from protocol.keys import member_id

CHARTER = charter_of(["a", "b", "c"])
COLLECTIVE = collective_id(CHARTER)
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def live(test):
    """An async test with a deadline, on a loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def bounded():
            async with asyncio.timeout(150):  # for a machine that does much else
                await test(*args, **kwargs)

        uvloop.run(bounded())  # the loop of the daemon

    return run


async def until(holds, limit_s=60.0, step_s=0.02):
    """Wait for a condition; fails the test when it does not come true."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(step_s)


class Home:
    """What stays of a node over a restart: keys, ledger, blobs. Names a, b and c have a seat in `CHARTER`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        (self.folder / "keys").mkdir(parents=True)
        self.key = key(name)
        self.transport = SigningKey(bytes.fromhex(digest(b"transport " + name.encode())))
        self.member = member_id(self.key)
        self.peer = peer_id(bytes(self.transport.verify_key))
        self.binding = binding.make(self.key, self.transport)
        self.identity = self.folder / "keys" / "transport.key"
        self.identity.write_bytes(bytes((8, 1, 18, 64)) + bytes(self.transport) + bytes(self.transport.verify_key))
        self.identity.chmod(0o600)
        (self.folder / "keys" / "binding.json").write_text(json.dumps(self.binding))


def homes(folder: Path, names: str = "abc") -> list[Home]:
    return [Home(folder, name) for name in names]


class Running:
    """Coroutines that run for the length of a block, then are cancelled and awaited."""

    def __init__(self, swarm: Swarm, run_dir: Path, *more) -> None:
        self.swarm, self.run_dir = swarm, run_dir
        self._jobs = (swarm.run, *more)
        self._stack = contextlib.AsyncExitStack()

    @property
    def pid(self):
        return self.swarm.status()["pid"]

    @property
    def address(self):
        return self.swarm.addresses()[0]

    async def __aenter__(self):
        self._stack.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
        tasks = [asyncio.create_task(job()) for job in self._jobs]
        for task in tasks:
            self._stack.push_async_callback(_stop, task)
        try:
            await until(lambda: self.swarm.ready.is_set() or any(task.done() for task in tasks))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_):
        await self._stack.aclose()


async def _stop(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def config_of(home: Home, run_dir: Path, *, known=(), listen=LOOPBACK, **more) -> SwarmConfig:
    return SwarmConfig(identity=home.identity, listen=(listen,), run_dir=run_dir, known=tuple(known), **more)


def swarm_of(home: Home, *, tap=None, **config) -> Running:
    """A bare swarm; add handlers to `.swarm` before entering it."""
    run_dir = Path(tempfile.mkdtemp(prefix="fn-"))
    return Running(Swarm(config_of(home, run_dir, **config), tap=tap), run_dir)


class Node(Running):
    """A swarm with the store, blobs and sync of a member."""

    def __init__(
        self,
        home,
        members,
        *,
        heads_every_s=1.0,
        known=(),
        listen=LOOPBACK,
        tap=None,
        guard=None,
        network=None,
        **rules,
    ):
        bare = swarm_of(home, known=known, listen=listen, tap=tap, guard=guard, **(network or {}))
        self.home, self.members = home, {h.member for h in members}
        self.store, self.blobs = Store.open(home.folder / "ledger.db"), BlobStore(home.folder / "blobs")
        self.seen, self.forks = [], []
        self.sync = Sync(
            store=self.store,
            blobs=self.blobs,
            network=bare.swarm,
            collective=COLLECTIVE,
            binding=home.binding,
            rules=SyncRules(
                allowed=self.members.__contains__,
                on_records=lambda member, records: self.seen.extend((member, r) for r in records),
                on_fork=self.forks.append,
                **rules,
            ),
            heads_every_s=heads_every_s,
        )
        super().__init__(bare.swarm, bare.run_dir, self.sync.run)
        self._stack.callback(self.store.close)

    @property
    def member(self):
        return self.home.member

    def append(self, kind="note.added", **body):
        salt = os.urandom(16)
        return self.store.append(self.home.key, COLLECTIVE, kind, body, now_ms=1_700_000_000_000, salt=salt)

    def found(self):
        """Write the genesis event."""
        return self.append(Genesis.TYPE, **Genesis(charter=CHARTER.to_json()).to_json())

    def size(self, home):
        head = self.store.head(COLLECTIVE, home.member)
        return 0 if head is None else head.size
