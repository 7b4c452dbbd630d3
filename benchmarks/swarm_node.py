"""One node of the swarm that benchmarks measure: the product's own parts in a process of its own, no trainer and no engine.

    python swarm_node.py HOME          orders as lines of JSON on stdin, answers as lines of JSON on stdout

Everything that moves is made by `node.parts.build`: swarm (p2pd), sync, seat, holdings, gate. It fetches the blob of a
contribution that is new here; when that is there, the cheap checks are repeated. Times are those of the system's monotonic
clock, the same for all processes of this machine. Knows nothing of the others.
Law: a contribution counts as applied when its entry is stored, its blob is stored and `Replay.examine` accepted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from contrib import updates
from contrib.updates import Accept
from ledger import events
from ledger.collective import Contribution
from ledger.store import Store
from node.collective.joining import Joining
from node.collective.seat import Seat
from node.home import Home
from node.parts import build
from node.session import Session
from protocol import contribution as blobs
from protocol import sparse
from protocol.card import Card
from protocol.ids import Digest, MemberId, digest

LINE = 1 << 20
TICK_S = 0.5  # of the daemon


class SwarmNode:
    """The parts, the orders that they get, and what is to be told of them."""

    def __init__(self, session: Session) -> None:
        self.news = asyncio.Event()
        self.session = session
        self.parts = build(session, changed=self.news.set)
        self.seat: Seat = self.parts.seat
        self.maker: Maker | None = None
        self.published: list[tuple[str, float, float, float]] = []  # blob, when due, announced, told to the network
        self.applied: list[tuple[str, float, float]] = []  # blob, when its entry was stored, when it was applied
        self.refused: list[str] = []
        self.waiting: dict[Digest, tuple[Contribution, float]] = {}
        self._known: dict[MemberId, int] = {}
        self._jobs: set[asyncio.Task[Any]] = set()
        self._profile: cProfile.Profile | None = None
        self.seat.listen(self._grown)

    async def run(self) -> None:
        """Live until stdin ends."""
        async with asyncio.TaskGroup() as jobs:
            self.parts.holdings.jobs = jobs
            joining = Joining(self.session, self.parts.sync, self._next_change, accept_fork_risk=True)
            tasks = [jobs.create_task(each) for each in (self.parts.swarm.run(), self.parts.sync.run(), self._apply())]
            tasks.append(jobs.create_task(self._join(joining)))
            await self._obey()
            for task in tasks:
                task.cancel()

    # -- what the daemon does with news ------------------------------------------------------------------------------
    async def _next_change(self) -> None:
        await self.news.wait()
        self.news.clear()
        await asyncio.sleep(0.02)

    async def _join(self, joining: Joining) -> None:
        while not self.seat.fold.known:
            await asyncio.sleep(0.05)
        await joining.seat()
        await joining.own_head()
        await joining.begin()
        await self.parts.sync.announce()

    def _grown(self, member: MemberId) -> None:
        """Remember what a member has published since the last look; its blobs are being fetched already."""
        if member == self.seat.me:
            return
        published = self.seat.fold.contributions.get(member, [])
        fresh = published[self._known.get(member, 0) :]
        self._known[member] = len(published)
        for contribution in fresh:
            self.waiting[contribution.blob] = (contribution, time.monotonic())

    async def _apply(self) -> None:
        """Repeat the cheap checks of whatever has arrived, and ask again for what has not, as the daemon's loop does."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.news.wait()
            self.news.clear()
            here, missing = [], []
            for each in self.waiting.values():
                (here if self.parts.blobs.has(each[0].blob) else missing).append(each)
            if missing:
                self.parts.holdings.fetch(contribution for contribution, _ in missing)
            for contribution, stored in here:
                answer = await asyncio.to_thread(self.parts.replay.examine, contribution)
                if answer is None:
                    continue
                del self.waiting[contribution.blob]
                if isinstance(answer, Accept):
                    self.applied.append((contribution.blob, stored, time.monotonic()))
                else:
                    self.refused.append(answer.code)

    # -- orders ------------------------------------------------------------------------------------------------------
    async def _obey(self) -> None:
        reader = asyncio.StreamReader(limit=LINE)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            answer = await getattr(self, f"do_{order.pop('do')}")(**order)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    async def do_status(self) -> Any:
        """Where it stands."""
        fold, swarm = self.seat.fold, self.parts.swarm.status()
        return {
            "p2pd": swarm["pid"],
            "peers": len(self.parts.swarm.peers()),
            "lives": swarm["lives"],
            "bound": len(fold.peers),
            "sizes": dict(fold.sizes),
            "waiting": len(self.waiting),
            "contributions": sum(map(len, fold.contributions.values())),
            "tasks": len(asyncio.all_tasks()),
        }

    async def do_prepare(self, size: int) -> Any:
        """Make the update that every contribution of this node carries, so that its blob has about `size` bytes."""
        self.maker = await asyncio.to_thread(Maker.fitting, self.seat, size)
        return {"bytes": len(self.maker.blob(1)), "sent": self.maker.update.sent}

    async def do_publish(self, first: float, every: float, count: int) -> Any:
        """Publish `count` contributions, the k-th at `first` + k `every` of the monotonic clock, however long one takes."""
        if self.maker is None:
            raise ValueError("couldn't publish: prepare first")
        job = asyncio.create_task(self._publish(self.maker, first, every, count))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return {}

    async def _publish(self, maker: Maker, first: float, every: float, count: int) -> None:
        for k in range(count):
            due = first + k * every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number = 1 + len(self.seat.fold.contributions.get(self.seat.me, []))
            data = maker.blob(number)
            name = await asyncio.to_thread(self.parts.blobs.put, data)
            event = events.Published(
                epoch=self.seat.fold.charter.epoch_id, number=number, blob=name, size=len(data), run=f"run {number}"
            )
            self.seat.append(event)
            announced = time.monotonic()
            await self.parts.sync.announce()
            self.published.append((name, due, announced, time.monotonic()))

    async def do_take(self) -> Any:
        """What was published and applied since the last call; it is forgotten here."""
        told = {
            "published": self.published,
            "applied": self.applied,
            "refused": self.refused,
            "publishing": len(self._jobs),
        }
        self.published, self.applied, self.refused = [], [], []
        return told

    async def do_put(self, size: int, seed: int) -> Any:
        """Store a blob of noise of that size."""
        data = await asyncio.to_thread(np.random.default_rng(seed).bytes, size)
        return await asyncio.to_thread(self.parts.blobs.put, data)

    async def do_fetch(self, blob: str, size: int) -> Any:
        """Fetch a blob from whoever has it; the seconds it took."""
        began = time.monotonic()
        await self.parts.sync.want_blob(Digest(blob), size, max_bytes=size)
        return time.monotonic() - began

    async def do_drop(self, blob: str) -> Any:
        """Forget a blob."""
        return self.parts.blobs.remove(Digest(blob))

    async def do_profile(self, path: str) -> Any:
        """Start to profile the event loop's thread (path ""), or write what was found since to a file."""
        if self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
        elif path:
            self._profile.disable()
            self._profile.dump_stats(path)
            self._profile = None
        return {}


class Maker:
    """Signs contributions that all carry one update: only the number on the card differs."""

    def __init__(self, seat: Seat, data: bytes) -> None:
        self.seat, self.data = seat, data
        coordinates = seat.fold.charter.adapter.coordinates
        self.update = sparse.decode(data, coordinates=coordinates, max_sent=coordinates)
        self._norm = updates.norm_micro(self.update)

    @classmethod
    def fitting(cls, seat: Seat, size: int) -> Maker:
        """Find how many random coordinates make a blob of about `size` bytes; never more."""
        charter, rng = seat.fold.charter, np.random.default_rng(int(seat.me[:8], 16))
        most = updates.most_sent(charter.adapter.coordinates, charter.update.density_ppm)
        order = rng.permutation(charter.adapter.coordinates)[:most]
        values = rng.normal(0, 1e-3, most).astype(np.float32)
        count, made = most, None
        for _ in range(6):
            at = np.sort(order[:count]).astype(np.uint32)
            data = sparse.encode(
                coordinates=charter.adapter.coordinates,
                indices=at,
                values=values[:count],
                bits=charter.update.value_bits,
                block=charter.update.block,
            )
            made = cls(seat, data)
            if 0.97 * size <= len(made.blob(1)) <= size:
                return made
            count = min(most, int(count * 0.985 * size / len(made.blob(1))))
        raise ValueError(f"couldn't make a blob of {size} bytes out of {most} coordinates")

    def blob(self, number: int) -> bytes:
        """The bytes of this member's contribution of that number."""
        charter, seat = self.seat.fold.charter, self.seat
        card = Card(
            collective=seat.collective,
            member=seat.me,
            epoch=charter.epoch_id,
            base=charter.base.digest,
            number=number,
            view=digest(b"view"),
            train_root=digest(b"train"),
            held_out_root=digest(b"held out"),
            train_rows=9,
            steps=4,
            tokens=99,
            epsilon_micro=None,
            selection="fisher-r2",
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            coordinates=charter.adapter.coordinates,
            sent=self.update.sent,
            norm_micro=self._norm,
            loss_before=420,
            loss_after=400,
            libraries={"numpy": "2"},
        )
        return blobs.pack(card, self.data, seat.key)


def main() -> None:
    home = Home.open(Path(sys.argv[1]))
    logging.basicConfig(
        level=os.environ.get("SWARM_LOG", "INFO"), format="ts=%(asctime)s level=%(levelname)s log=%(name)s %(message)s"
    )
    with home.lock(), Store.open(home.ledger_db) as store:
        identity = home.unlock(None)
        session = Session(home=home, config=home.read_config(), store=store, member=identity.member, identity=identity)
        session.open_seat()
        uvloop.run(_run(session))  # as `fishernet up` does


async def _run(session: Session) -> None:
    await SwarmNode(session).run()


if __name__ == "__main__":
    main()
