"""Promises of blobs from several donors over real p2pd: one is killed in the middle, one lies; the blob comes all the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal

from peers import Node, homes, live, until

from node.guarding.limits import Fault
from node.syncing.donors import Rank
from node.syncing.pieces import PIECE
from protocol.ids import digest

DATA = random.Random(5).randbytes((9 << 20) + 77)
SIZE = len(DATA)


def trusting(*nodes):
    """As the daemon wires it: who speaks for a member is none of the strangers, whose bytes are few."""
    for node in nodes:
        node.swarm.guard.member_of = node.sync.member_of


@live
async def test_blob_comes_when_one_donor_is_killed_and_another_lies_and_only_the_liar_is_blamed(tmp_path):
    one, two, evil, me = members = homes(tmp_path, "abde")
    faults = []
    async with (
        Node(one, members) as a,
        Node(two, members) as b,
        Node(evil, members) as x,
        Node(
            me,
            members,
            known=[a.address, b.address, x.address],
            fault=lambda peer, fault: faults.append((peer, fault)),
        ) as m,
    ):
        trusting(a, b, x, m)
        name = a.blobs.put(DATA)
        b.blobs.put(DATA)
        x.blobs.put(DATA)
        bad = bytearray(DATA)
        for at in range(0, SIZE, PIECE):
            bad[at] ^= 1
        x.blobs.path(name).write_bytes(bad)
        await until(lambda: all(m.sync.member_of(home.peer) for home in (one, two, evil)))
        want = asyncio.create_task(m.sync.want_blob(name, SIZE))
        await until(lambda: m.sync.status()["blob_bytes"] > 1 << 20 or want.done(), step_s=0.001)
        os.kill(b.pid, signal.SIGKILL)
        await want
        assert m.blobs.read(name, SIZE) == DATA
        for n in range(100):  # a liar that the others overtook has not lied yet
            if faults:
                break
            data = random.Random(n).randbytes(2 << 20)
            more = a.blobs.put(data)
            x.blobs.put(data)
            x.blobs.path(more).write_bytes(bytes(len(data)))
            await m.sync.want_blob(more, len(data))
        assert set(faults) == {(evil.peer, Fault.BAD_BLOB)}
        assert not list(m.blobs.folder.glob("*.part"))


@live
async def test_who_holds_what_is_asked_of_real_members_and_small_history_is_spread(tmp_path):
    one, two, me = members = homes(tmp_path, "abd")
    async with (
        Node(one, members) as a,
        Node(two, members) as b,
        Node(me, members, known=[a.address, b.address]) as m,
    ):
        trusting(a, b, m)
        blobs = [random.Random(n).randbytes(3000) for n in range(30)]
        for data in blobs:
            a.blobs.put(data)
            b.blobs.put(data)
        only = a.blobs.put(b"only here")
        await until(lambda: all(m.sync.member_of(home.peer) for home in (one, two)))
        held = await m.sync.survey([only, digest(blobs[0]), digest(b"nowhere")])
        assert [held[d] for d in (only, digest(blobs[0]), digest(b"nowhere"))] == [1, 2, 0]
        asked, rounds = m.sync.status()["blob_surveys"], 0
        names = [digest(data) for data in blobs]
        while not all(held.get(name) == 2 for name in names):  # who was too slow to answer is asked again
            rounds += 1
            for found in await asyncio.gather(*(m.sync.survey([name]) for name in names)):
                held = {**held, **found}
        asked_now = m.sync.status()["blob_surveys"]
        assert asked_now - asked <= 2 * rounds, "the questions of all callers went out together"
        wants = [m.sync.want_blob(name, 3000, rank=Rank.HISTORY) for name in names]
        await asyncio.gather(*wants)
        sent = [node.swarm.guard.status()["bytes_out"] for node in (a, b)]
        assert min(sent) >= 3 * 3000, "each was asked for three at once, however fast the other is"
        assert m.sync.status()["blob_surveys"] == asked_now, "nobody was asked again"
