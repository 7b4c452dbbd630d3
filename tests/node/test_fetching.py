"""Promises of fetching blobs from several donors: real desks, askers and stores over a simulated network, in simulated time."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections import Counter

import pytest
from wires import Net, now

from node.guarding.limits import Fault
from node.simulation import virtual
from node.syncing.donors import PER_DONOR, TOTAL, Rank
from node.syncing.pieces import PIECE
from protocol import wire
from protocol.ids import digest

SMALL = random.Random(1).randbytes(64 << 10)
LARGE = random.Random(2).randbytes((5 << 20) + 4321)


def simulated(test):
    """A test in simulated time, at most ten minutes of it."""

    @functools.wraps(test)
    def run(tmp_path, **given):
        async def bounded():
            net = Net(tmp_path)
            try:
                async with asyncio.timeout(600):
                    await test(net, **given)
            finally:
                net.close()

        virtual.run(bounded())

    names = ["tmp_path", *list(inspect.signature(test).parameters)[1:]]  # what pytest is to give
    run.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in names])
    return run


def donors(net, count, data=LARGE, **link):
    found = [net.member(f"donor{n}", **link) for n in range(count)]
    for each in found:
        each.blobs.put(data)
    return found


def asked_bytes(members):
    return sum(length for member in members for _, _, length in member.asked.parts)


def sent(members):
    return sum(member.port.sent for member in members)


# -- how much it costs -------------------------------------------------------------------------------------------------
@simulated
async def test_small_blob_is_one_question_to_its_author(net):
    givers, me = donors(net, 4, SMALL), net.member("me")
    author = givers[2]
    await me.want(SMALL, prefer=[author.member])
    assert [len(each.asked.parts) for each in givers] == [0, 0, 1, 0]
    assert sum(each.asked.have for each in givers) == 0
    assert author.port.opened.total() == 1


@simulated
async def test_large_blob_comes_from_several_donors_at_once(net):
    givers, me = donors(net, 3, rate=2e6), net.member("me")
    began = now()
    await me.want(LARGE)
    assert now() - began < len(LARGE) / 2e6 / 2.5, "three donors of 2 MB/s each"
    assert all(each.asked.parts for each in givers)
    assert asked_bytes(givers) < 1.5 * len(LARGE)
    assert sent(givers) < 1.1 * len(LARGE)
    assert not me.faults


@simulated
async def test_streams_are_bounded_in_all_and_for_each_donor(net):
    givers, me = donors(net, 6, rate=1e6), net.member("me")
    blobs = [random.Random(n).randbytes(100_000) for n in range(40)]
    for each in givers:
        for data in blobs:
            each.blobs.put(data)
    seen = []

    async def look():
        while True:
            seen.append([len(each.port.ends) for each in givers])
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(look())
    await asyncio.gather(*(me.want(data, prefer=[givers[n % 6].member]) for n, data in enumerate(blobs)))
    watching.cancel()
    most = [max(column) for column in zip(*seen, strict=True)]
    assert max(most) <= PER_DONOR + 1  # and one to ask who holds what
    assert max(map(sum, seen)) <= TOTAL + len(givers)
    assert me.fetcher.status()["blobs_waiting"] == 0


# -- donors that fail --------------------------------------------------------------------------------------------------
@simulated
async def test_donor_that_dies_costs_the_piece_it_was_sending(net):
    givers, me = donors(net, 3, rate=4e6), net.member("me")
    givers[0].port.dies_after = 1 << 20
    await me.want(LARGE)
    assert not givers[0].port.up
    assert sent(givers) < len(LARGE) + 3 * PIECE, "what it had sent is used"
    assert not me.faults


@simulated
async def test_all_donors_die_and_one_comes_back(net):
    givers, me = donors(net, 2, rate=4e6), net.member("me")
    for each in givers:
        each.port.dies_after = 1 << 20
    want = asyncio.create_task(me.want(LARGE))
    await asyncio.sleep(60)
    assert not want.done()
    before = sent(givers)
    assert before >= 2 << 20
    givers[1].port.revive()
    me.fetcher.poke()
    await want
    assert sent(givers) < len(LARGE) + 4 * PIECE, "only what was missing came again"
    assert not me.faults


@simulated
async def test_fetcher_that_is_restarted_asks_only_for_what_is_missing(net):
    (giver,), me = donors(net, 1, rate=4e6), net.member("me")
    giver.port.dies_after = 3 << 20
    want = asyncio.create_task(me.want(LARGE))
    await asyncio.sleep(30)
    want.cancel()
    await asyncio.gather(want, return_exceptions=True)
    giver.asked.parts.clear()
    giver.port.revive()
    me.start()
    await me.want(LARGE)
    assert asked_bytes([giver]) <= len(LARGE) - (3 << 20) + 3 * PIECE


@simulated
async def test_donor_that_says_it_has_a_blob_and_has_not_is_passed_over(net):
    givers, boaster, me = donors(net, 1), net.member("boaster"), net.member("me")
    boaster.port.add_handler(wire.HAVE, _says_yes)
    await me.want(LARGE, rank=Rank.HISTORY)
    await me.want(SMALL, rank=Rank.HISTORY) if givers[0].blobs.put(SMALL) else None
    assert not me.faults, "it may have been dropped since"


async def _says_yes(stream):
    from node.syncing.exchange import read_frame

    request = wire.parse_request(await read_frame(stream, wire.MAX_HAVE_REQUEST), max_bytes=wire.MAX_HAVE_REQUEST)
    await stream.write(wire.answer(wire.bitmap([True] * len(request.digests))))


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@simulated
async def test_stalled_donor_is_overtaken(net, data):
    givers, me = donors(net, 3, data), net.member("me")
    givers[0].port.stalled = True
    began = now()
    await me.want(data, prefer=[givers[0].member])
    assert now() - began < 5


@simulated
async def test_slow_donor_does_not_hold_up_a_blob_that_others_have(net):
    givers, me = donors(net, 3, rate=10e6), net.member("me")
    givers[0].port.rate = 30e3
    began = now()
    await me.want(LARGE)
    assert now() - began < 6, "alone it would take seven minutes, and a third of the blob two"


@simulated
async def test_on_our_own_thin_line_nothing_is_asked_twice(net):
    givers, me = donors(net, 3, SMALL, rate=20e3), net.member("me")
    await me.want(SMALL, prefer=[givers[0].member])
    assert sent(givers) < len(SMALL) + 1000
    assert me.fetcher.status()["blob_doubled"] == 0


@simulated
async def test_donor_of_an_older_version_is_asked_by_the_older_protocol(net):
    givers, me = donors(net, 2, rate=5e6), net.member("me")
    for each in givers:
        each.port.refuses = {wire.PART, wire.HAVE}
    await me.want(LARGE)
    await me.want(SMALL, prefer=[givers[0].member]) if givers[0].blobs.put(SMALL) else None
    assert all(each.asked.whole for each in givers)
    assert sent(givers) < 2 * len(LARGE)


# -- donors that lie ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 3 << 20, len(LARGE) - 1])
@simulated
async def test_liar_among_donors_is_found_and_nobody_else_is_blamed(net, at):
    givers, me = donors(net, 3, rate=4e6), net.member("me")
    liar = net.member("liar", rate=4e6)
    liar.lie(LARGE, at)
    await me.want(LARGE)
    assert {peer for peer, _ in me.faults} <= {liar.peer}
    gave_it = any(offset <= at < offset + length for _, offset, length in liar.asked.parts)
    assert bool(me.faults) == bool(me.fetcher.status()["blob_liars"])
    assert not me.faults or gave_it
    assert sent([*givers, liar]) < 2.2 * len(LARGE)


@simulated
async def test_who_gave_all_of_a_bad_blob_is_blamed_at_once(net):
    liar, honest, me = net.member("liar"), net.member("honest"), net.member("me")
    for data in (SMALL, LARGE):
        liar.lie(data)
    honest.port.up = False
    wants = [asyncio.create_task(me.want(data)) for data in (SMALL, LARGE)]
    await asyncio.sleep(20)
    assert Counter(me.faults) == {(liar.peer, Fault.BAD_BLOB): len(me.faults)}
    assert 2 <= len(me.faults) <= 10, "it is left alone for longer and longer"
    assert not me.blobs.digests()
    for data in (SMALL, LARGE):
        honest.blobs.put(data)
    honest.port.revive()
    me.fetcher.poke()
    await asyncio.gather(*wants)
    assert {peer for peer, _ in me.faults} == {liar.peer}


@simulated
async def test_liar_whose_pieces_wait_from_before_a_restart_is_found(net):
    liar, honest, me = net.member("liar", rate=4e6), net.member("honest", rate=4e6), net.member("me")
    liar.lie(LARGE, 300_000)
    liar.port.dies_after = 2 << 20
    want = asyncio.create_task(me.want(LARGE))
    await asyncio.sleep(10)
    want.cancel()
    await asyncio.gather(want, return_exceptions=True)
    me.start()
    honest.blobs.put(LARGE)
    await me.want(LARGE)
    assert me.faults == [(liar.peer, Fault.BAD_BLOB)]


@simulated
async def test_two_liars_among_four_donors_are_found(net):
    givers, me = donors(net, 2, rate=4e6), net.member("me")
    liars = [net.member(f"liar{n}", rate=4e6) for n in range(2)]
    for n, liar in enumerate(liars):
        for at in range(n, len(LARGE), PIECE):  # every piece is bad
            name = digest(LARGE)
            if at == n:
                liar.lie(LARGE, at)
            held = bytearray(liar.blobs.path(name).read_bytes())
            held[at] ^= 1 if at != n else 0
            liar.blobs.path(name).write_bytes(held)
    await me.want(LARGE)
    assert {peer for peer, _ in me.faults} <= {liar.peer for liar in liars}
    assert me.faults
    assert not any(peer in {g.peer for g in givers} for peer, _ in me.faults)


@simulated
async def test_who_states_another_size_is_blamed_once_the_blob_is_here(net):
    (honest,), me = donors(net, 1), net.member("me")
    liar = net.member("liar")
    liar.blobs.path(digest(LARGE)).write_bytes(LARGE[:-5])
    want = asyncio.create_task(me.want(LARGE, prefer=[liar.member]))
    honest.port.up = False
    await asyncio.sleep(5)
    assert not me.faults, "perhaps the event lies"
    honest.port.revive()
    me.fetcher.poke()
    await want
    assert {peer for peer, _ in me.faults} <= {liar.peer}


@simulated
async def test_piece_that_our_own_disk_spoilt_is_nobodys_fault(net):
    me = net.member("me")
    donors(net, 2, rate=4e6)
    want = asyncio.create_task(me.want(LARGE))
    part = me.blobs.path(digest(LARGE)).with_name(f"{digest(LARGE)}.part")
    while not part.exists() or part.stat().st_size < 2 << 20:
        await asyncio.sleep(0.05)
    want.cancel()
    await asyncio.gather(want, return_exceptions=True)
    with part.open("r+b") as file:
        file.write(b"spoilt")
    me.start()
    await me.want(LARGE)
    assert not me.faults


# -- who is asked for what, and when -----------------------------------------------------------------------------------
@simulated
async def test_newcomers_do_not_all_hit_one_donor(net):
    blobs = [random.Random(n).randbytes(50_000) for n in range(24)]
    givers = [net.member(f"donor{n}", rate=3e6) for n in range(6)]
    for each in givers:
        for data in blobs:
            each.blobs.put(data)
    newcomers = [net.member(f"new{n}") for n in range(5)]
    await asyncio.gather(*(new.want(data, rank=Rank.HISTORY) for new in newcomers for data in blobs))
    served = [len(each.asked.parts) for each in givers]
    fair = len(newcomers) * len(blobs) / len(givers)
    assert max(served) < 2 * fair
    assert min(served) > fair / 3


@simulated
async def test_rarest_blob_comes_first_and_urgent_ones_before_it(net):
    givers, me = donors(net, 6, SMALL, rate=1e6), net.member("me")
    history = {digest(data): (data, 1 + n % 6) for n in range(36) if (data := random.Random(n).randbytes(100_000))}
    for data, held in history.values():
        for each in givers[:held]:
            each.blobs.put(data)
    urgent = random.Random(99).randbytes(100_000)
    givers[0].blobs.put(urgent)
    jobs = [asyncio.create_task(me.want(data, rank=Rank.HISTORY)) for data, _ in history.values()]
    await asyncio.sleep(0.1)
    jobs.append(asyncio.create_task(me.want(urgent, rank=Rank.VOTE)))
    began, before = now(), len(net.order)
    await asyncio.wait(jobs[-1:])
    assert now() - began < 1.0, "the history alone takes a second of every line"
    assert digest(urgent) in net.order[before : before + 8], "it did not wait in line"
    await asyncio.gather(*jobs)
    turns = [name for name in dict.fromkeys(net.order) if name in history]
    mean = {k: sum(i for i, n in enumerate(turns) if history[n][1] == k) / 6 for k in (1, 2, 5, 6)}
    assert mean[1] < mean[5]
    assert mean[2] < mean[6]


@simulated
async def test_survey_counts_the_other_holders_and_asks_little(net):
    givers, me = donors(net, 12, SMALL), net.member("me")
    lonely = random.Random(3).randbytes(100)
    me.blobs.put(lonely)
    found = await me.fetcher.survey([digest(SMALL), digest(lonely)])
    assert found[digest(SMALL)] == 8, "some members were asked, not all"
    assert found[digest(lonely)] == 0
    await me.fetcher.survey([digest(SMALL)])
    assert sum(each.asked.have for each in givers) <= 12
    for each in givers:
        each.port.kill()
    assert (await me.fetcher.survey([digest(b"unknown")]))[digest(b"unknown")] is None


@simulated
async def test_want_that_gives_up_leaves_nothing_behind(net):
    (giver,), me = donors(net, 1, rate=1e5), net.member("me")
    want = asyncio.create_task(me.want(LARGE))
    await asyncio.sleep(3)
    want.cancel()
    await asyncio.gather(want, return_exceptions=True)
    assert me.fetcher.status()["blob_streams"] == 0
    assert me.fetcher.status()["blobs_waiting"] == 0
    assert not me.fetcher._ranks
    await me.asker.lines.close()
    assert not giver.port.ends
