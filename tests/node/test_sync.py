"""Promises of the sync over real p2pd daemons: late, restarted and lied-to nodes end up with the same verified feeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest
from peers import COLLECTIVE, Node, homes, live, swarm_of, until

from ledger import checkpoint, entry
from ledger.collective import Collective
from ledger.errors import FeedBehind, FeedFrozen
from ledger.store import Store
from node.errors_network import BlobTooLarge, PeerRefused, PeerUnreachable, StreamEnded
from node.guarding.limits import MEMBER, Limits
from node.syncing.exchange import Asker, read_frame, to_wire
from protocol import binding, wire
from protocol.ids import Digest, digest

BLOB = random.Random(1).randbytes(3_000_000)


def give(node, store, home):
    """Put the feed of `home` as `store` has it into the ledger of `node`, as if it had been pulled before."""
    head = store.heads(COLLECTIVE, home.member)[0]
    node.store.append_foreign(COLLECTIVE, home.member, store.records(COLLECTIVE, home.member), head.note)


def feed_of(home, count, folder, start=0):
    """A store with a feed of `home` of its own."""
    store = Store.open(folder / f"{home.name}-{start}-{count}.db")
    for n in range(start, start + count):
        store.append(home.key, COLLECTIVE, "note.added", {"n": n}, now_ms=n, salt=bytes(16))
    return store


@live
async def test_announced_entry_arrives_with_its_blob(tmp_path):
    one, two = homes(tmp_path, "ab")
    async with Node(one, [one, two]) as a, Node(two, [one, two], known=[a.address]) as b:
        await until(lambda: a.swarm.peers() and b.swarm.peers())
        name = a.blobs.put(BLOB)
        for n in range(3):
            a.append(n=n, blob=name)
            await a.sync.announce()
            await until(lambda n=n: len(b.seen) == n + 1)
        assert [(who, record.body.value()["n"]) for who, record in b.seen] == [(one.member, n) for n in range(3)]
        path = await b.sync.want_blob(name, len(BLOB), prefer=[one.member])
        assert path.read_bytes() == BLOB
        b.append(thanks=True)
        await b.sync.announce()
        await until(lambda: a.size(two) == 1)


@live
async def test_restarted_node_catches_up_by_itself(tmp_path):
    one, two = homes(tmp_path, "ab")
    async with Node(one, [one, two]) as a:
        for n in range(260):  # more than a page
            a.append(n=n)
        async with Node(two, [one, two], known=[a.address]) as b:  # late
            await until(lambda: b.size(one) == 260)
            port = b.address.partition("/p2p/")[0]
        a.append(n=260)
        async with Node(two, [one, two], known=[a.address], listen=port) as b:  # restarted
            await until(lambda: b.size(one) == 261)
            assert a.store.head(COLLECTIVE, one.member) == b.store.head(COLLECTIVE, one.member)


@pytest.mark.slow  # p2pd's own pause between dials decides how long it takes: up to 14 s
@live
async def test_passive_node_that_restarts_is_dialled_by_the_members(tmp_path):
    one, two = homes(tmp_path, "ab")
    async with Node(one, [one, two]) as a:
        async with Node(two, [one, two]) as b:
            await a.swarm.dial(b.address)
            port = b.address.partition("/p2p/")[0]
        a.append(n=0)
        async with Node(two, [one, two], listen=port) as b:  # knows nobody
            await until(lambda: b.size(one) == 1)


@live
async def test_feed_and_blob_come_from_another_member_when_their_author_is_gone(tmp_path):
    one, two, three = homes(tmp_path)
    members = [one, two, three]
    name = digest(BLOB)
    async with Node(three, members) as c:
        async with Node(one, members, known=[c.address]) as a:
            a.append(blob=a.blobs.put(BLOB))
            await until(lambda: c.size(one) == 1)
            await c.sync.want_blob(name, len(BLOB))
        async with Node(two, members, known=[c.address]) as b:
            await until(lambda: b.size(one) == 1)
            await b.sync.want_blob(name, len(BLOB), prefer=[one.member])
            assert b.blobs.read(name, len(BLOB)) == BLOB


@live
async def test_members_that_only_a_third_one_introduced_keep_in_step_without_it(tmp_path):
    one, two, three = members = homes(tmp_path)
    bound = {home.peer: home.member for home in members}  # as `peer.bound` events say it
    async with contextlib.AsyncExitStack() as first:
        a = await first.enter_async_context(Node(one, members))
        rules = {"known": [a.address], "peers": lambda: bound}
        async with Node(two, members, **rules) as b, Node(three, members, **rules) as c:
            await until(lambda: c.swarm.peer in b.swarm.peers())
            await first.aclose()
            b.append(n=0)
            await b.sync.announce()
            await until(lambda: c.size(two) == 1)


@live
async def test_stranger_gets_only_the_checkpoint(tmp_path):
    one, two, stranger = homes(tmp_path, "abx")
    feed = feed_of(two, 2, tmp_path)
    async with Node(one, [one, two]) as a:
        give(a, feed, two)
        a.append(secret=1)
        name = a.blobs.put(BLOB)
        async with swarm_of(stranger) as x:
            asker = Asker(x.swarm, COLLECTIVE, binding.verify(stranger.binding))
            peer = await x.swarm.dial(a.address)
            answer = await asker.heads(peer)
            assert [checkpoint.parse(note).member for note in answer.notes] == [one.member]
            for member in (one.member, two.member):
                with pytest.raises(PeerRefused, match="not-a-member"):
                    await asker.page(peer, member, 0)
            with pytest.raises(PeerRefused, match="not-a-member"):
                async with asker.blob(peer, name, 0):
                    pass
            assert a.sync.asking().keys() == {stranger.member}
            a.members.add(stranger.member)  # an amendment later
            assert len((await asker.page(peer, one.member, 0)).records) == 1
            assert not a.sync.asking()
    feed.close()


@live
async def test_who_holds_only_a_transport_key_that_was_replaced_is_nobody(tmp_path):
    """The newest binding in a member's feed counts; a key that the feed has never named may be the next one."""
    one, old, next_ = homes(tmp_path, "abc")
    statements = [binding.make(old.key, each.transport) for each in (old, next_)]
    fold, feed = Collective(COLLECTIVE), Store.open(tmp_path / "feed.db")
    async with Node(one, [one, old], outdated=fold.outdated) as a:
        a.append(secret=1)
        for home, statement, others in ((old, statements[0], []), (next_, statements[1], [statements[0]])):
            async with swarm_of(home) as x:
                asker = Asker(x.swarm, COLLECTIVE, binding.verify(statement))
                peer = await x.swarm.dial(a.address)
                assert len((await asker.page(peer, one.member, 0)).records) == 1, "before the feed says anything"
                for each in [*others, statement]:
                    body = {"binding": each}
                    fold.apply(feed.append(old.key, COLLECTIVE, "peer.bound", body, now_ms=0, salt=bytes(16)))
                assert len((await asker.page(peer, one.member, 0)).records) == 1
        async with swarm_of(old) as thief:
            asker = Asker(thief.swarm, COLLECTIVE, binding.verify(statements[0]))
            peer = await thief.swarm.dial(a.address)
            for ask in (asker.heads(peer), asker.page(peer, one.member, 0)):
                with pytest.raises(PeerRefused, match="outdated-peer"):
                    await ask
    assert not fold.flaws
    feed.close()


@live
async def test_former_member_gets_the_entries_that_took_its_seat_and_no_more(tmp_path):
    one, gone = homes(tmp_path, "ab")
    async with Node(one, [one], farewell=lambda reader, feed: 2 * (reader == gone.member)) as a:
        for n in range(3):
            a.append(n=n)
        async with swarm_of(gone) as x:
            asker = Asker(x.swarm, COLLECTIVE, binding.verify(gone.binding))
            peer = await x.swarm.dial(a.address)
            for start in (0, 1):
                assert len((await asker.page(peer, one.member, start)).records) == 2 - start
            with pytest.raises(PeerRefused, match="not-a-member"):
                await asker.page(peer, one.member, 2)


@live
async def test_joiner_takes_the_founders_feed_but_serves_nobody(tmp_path):
    one, three = homes(tmp_path, "ac")
    async with Node(one, [one, three]) as a, Node(three, [], known=[a.address], wants=lambda member: True) as c:
        a.found()
        c.blobs.put(BLOB)
        await until(lambda: c.size(one) == 1)
        with pytest.raises(PeerRefused, match="not-a-member"):
            async with a.sync._asker.blob(three.peer, digest(BLOB), 0):
                pass


@live
async def test_garbage_on_every_protocol_leaves_the_node_serving(tmp_path):
    one, two, bad = homes(tmp_path, "abx")
    rng = random.Random(7)
    bound = binding.verify(bad.binding)
    foreign = binding.verify(two.binding)
    requests = [
        wire.HeadsRequest(collective=COLLECTIVE, binding=foreign),  # replayed: the binding of another peer
        wire.HeadsRequest(collective=digest(b"another"), binding=bound),
        wire.FeedRequest(collective=COLLECTIVE, binding=bound, member=one.member, start=2**50),
        wire.BlobRequest(collective=COLLECTIVE, binding=bound, digest=Digest("0" * 64), offset=2**50),
    ]
    garbage = [
        b"",
        b"\0",
        b"\xff\xff\xff\xff" + bytes(1000),
        b"\0\0\0\x05hell",
        *(wire.frame(rng.randbytes(n)) for n in (0, 1, 100, 8000)),
        *(wire.frame(request.to_bytes()) for request in requests),
        wire.frame(requests[0].to_bytes()[:-1]),
        rng.randbytes(100_000),
    ]
    async with Node(one, [one, two]) as a, swarm_of(bad) as x:
        a.append(n=0)
        peer = await x.swarm.dial(a.address)

        async def throw(protocol, piece):
            with contextlib.suppress(PeerUnreachable, StreamEnded):
                async with x.swarm.open(peer, protocol) as stream:
                    await stream.write(piece)
                    if len(piece) > 4 and piece != garbage[2]:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.3):
                                await read_frame(stream, 10_000)

        for protocol in (wire.HEADS, wire.FEED, wire.BLOB):
            for piece in garbage:
                await throw(protocol, piece)
        note = checkpoint.make(bad.key, COLLECTIVE, bad.member, 5, digest(b"root")).note
        mine = a.store.heads(COLLECTIVE, one.member)[0].note
        for piece in (rng.randbytes(500), b"", note, note.replace(bad.member.encode(), two.member.encode()), mine):
            await x.swarm.publish(wire.topic(COLLECTIVE), piece)
        async with Node(two, [one, two], known=[a.address]) as b:
            await until(lambda: b.size(one) == 1)
        assert a.swarm.status()["handler_errors"] == 0
        assert a.swarm.status()["lives"] == 1
        assert set(a.sync.status()["feeds"]) <= {one.member, two.member}


EASY = Limits(stranger=MEMBER, strangers=MEMBER, streams_strangers=256, streams_per_stranger=64)


class Liar:
    """A member whose node answers heads rightly, and pages and blobs as it was told."""

    def __init__(self, home, notes, *, pages=None, blobs=None):
        self.bare = swarm_of(home)
        self.bare.swarm.guard.use(EASY)  # it does not know whom it lies to, and lies at full speed
        self.home, self.asked = home, Counter()
        self._notes, self._pages, self._blobs = notes, pages or {}, blobs or {}
        for protocol, handler in ((wire.HEADS, self.heads), (wire.FEED, self.feed), (wire.BLOB, self.blob)):
            self.bare.swarm.add_handler(protocol, handler)

    async def heads(self, stream):
        await read_frame(stream, wire.MAX_REQUEST)
        answer = wire.HeadsAnswer(binding=binding.verify(self.home.binding), notes=tuple(self._notes))
        await stream.write(wire.answer(answer.to_bytes()))

    async def feed(self, stream):
        request = wire.parse_request(await read_frame(stream, wire.MAX_REQUEST))
        self.asked[request.member] += 1
        await stream.write(self._pages[request.member])

    async def blob(self, stream):
        request = wire.parse_request(await read_frame(stream, wire.MAX_REQUEST))
        self.asked[request.digest] += 1
        data, size = self._blobs[request.digest]
        await stream.write(wire.answer(wire.blob_size(size)) + data)


def lies(feed, homes_):
    """For each home a page that is wrong in its own way; `feed` holds three records of each."""
    for number, home in enumerate(homes_):
        note = feed.heads(COLLECTIVE, home.member)[0].note
        good = list(to_wire(feed.records(COLLECTIVE, home.member)))
        line = good[1].line
        body = wire.WireRecord(line=line, salt=bytes(16), data=b'{"n":9}')
        forged = wire.WireRecord(line=line[:-9] + bytes([line[-9] ^ 1]) + line[-8:], salt=None, data=None)
        yield (
            home.member,
            (
                wire.answer(wire.page_of(note, [good[0], body, good[2]]).to_bytes()),
                wire.answer(wire.page_of(note, [good[0], good[2]]).to_bytes()),
                wire.answer(wire.page_of(note, [good[0], forged]).to_bytes()),
                wire.answer(wire.page_of(note, []).to_bytes()),
                wire.frame(b"\0" + os.urandom(5000)),
                b"\xff\xff\xff\xff",
                b"",
            )[number],
        )


@live
async def test_bad_pages_are_not_stored_and_other_members_are_asked(tmp_path):
    authors = homes(tmp_path, "1234567")
    two, three, evil = homes(tmp_path, "bcd")
    members = [two, three, evil, *authors]
    feed = Store.open(tmp_path / "feeds.db")
    for home in authors:
        for n in range(3):
            feed.append(home.key, COLLECTIVE, "note.added", {"n": n}, now_ms=n, salt=bytes(16))
    liar = Liar(evil, [head.note for head in feed.heads(COLLECTIVE)], pages=dict(lies(feed, authors)))
    async with Node(three, members) as c, liar.bare, Node(two, members, known=[liar.bare.address]) as b:
        for home in authors:
            give(c, feed, home)
        await until(lambda: len(liar.asked) == len(authors))
        await until(lambda: b.sync.status()["quarantined"] >= len(authors))
        assert not any(b.size(home) for home in authors)
        await b.swarm.dial(c.address)
        await until(lambda: all(b.size(home) == 3 for home in authors))
        assert not b.forks
        assert max(liar.asked.values()) < 10
    feed.close()


@live
async def test_head_of_a_feed_that_nobody_has_is_not_chased_without_end(tmp_path):
    one, evil = homes(tmp_path, "ad")
    note = checkpoint.make(evil.key, COLLECTIVE, evil.member, 10**9, digest(b"root")).note
    liar = Liar(evil, [note], pages={evil.member: wire.answer(wire.page_of(note, []).to_bytes())})
    async with liar.bare, Node(one, [one, evil], known=[liar.bare.address], heads_every_s=0.1):
        await until(lambda: liar.asked.total() > 0)
        await asyncio.sleep(2.5)
        assert liar.asked.total() <= 4


@live
async def test_bad_blob_is_not_stored_and_comes_from_another_member(tmp_path):
    one, two, evil = homes(tmp_path, "abd")
    members = [one, two, evil]
    good = [bytes([n]) + BLOB for n in range(4)]
    size = len(good[0])
    told = (
        (good[0][:-1] + b"!", size),  # other bytes
        (good[1][:1_000_000], size),  # ends early: the rest is resumed elsewhere
        (good[2], 7),  # says another size
        (b"!" * 500_000, size),  # bad bytes in a part that somebody else completes
    )
    liar = Liar(evil, [], blobs={digest(data): lie for data, lie in zip(good, told, strict=True)})
    async with Node(one, members) as a, liar.bare, Node(two, members, known=[liar.bare.address]) as b:
        names = [a.blobs.put(data) for data in good]
        await until(lambda: b.sync.member_of(evil.peer))
        wants = [asyncio.create_task(b.sync.want_blob(name, size, prefer=[evil.member])) for name in names]
        await until(lambda: len(liar.asked) == len(names))
        await until(lambda: b.sync.status()["quarantined"] >= 2)
        assert not b.blobs.digests()
        await b.swarm.dial(a.address)
        await asyncio.gather(*wants)
        assert [b.blobs.read(name, size) for name in names] == good
        assert max(liar.asked.values()) < 10


@live
async def test_blob_over_the_limit_is_not_asked_for_and_a_wrong_size_never_fits(tmp_path):
    one, two = homes(tmp_path, "ab")
    async with Node(one, [one, two]) as a, Node(two, [one, two], known=[a.address]) as b:
        name = a.blobs.put(b"x" * 1000)
        with pytest.raises(BlobTooLarge):
            await b.sync.want_blob(name, 1000, max_bytes=999)
        wrong = asyncio.create_task(b.sync.want_blob(name, 900))  # the event of somebody who claims the digest
        await until(lambda: b.sync.status()["quarantined"])
        assert not b.blobs.has(name)
        both = await asyncio.gather(*(b.sync.want_blob(name, 1000) for _ in range(5)))
        assert both == [b.blobs.path(name)] * 5
        await wrong
        assert b.sync.status()["blobs_waiting"] == 0


@live
async def test_blob_is_resumed_when_its_holder_is_killed_in_the_middle(tmp_path):
    one, two = homes(tmp_path, "ab")
    data = random.Random(2).randbytes(48 << 20)
    async with Node(one, [one, two]) as a, Node(two, [one, two], known=[a.address]) as b:
        name = a.blobs.put(data)
        await until(lambda: a.swarm.peers() and b.swarm.peers())
        want = asyncio.create_task(b.sync.want_blob(name, len(data)))
        part = b.blobs.path(name).with_name(f"{name}.part")
        await until(lambda: want.done() or (part.exists() and part.stat().st_size > 4 << 20), step_s=0.001)
        os.kill(a.pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        kept = part.stat().st_size if part.exists() else len(data)
        assert kept >= 4 << 20
        await want
        assert b.blobs.read(name, len(data)) == data


@live
async def test_fork_freezes_the_feed_and_is_reported(tmp_path):
    one, two, three = homes(tmp_path)
    members = [one, two, three]
    first, second = feed_of(three, 2, tmp_path), feed_of(three, 2, tmp_path, start=5)
    async with Node(one, members) as a, Node(two, members) as b:
        give(a, first, three)
        give(b, second, three)
        await b.swarm.dial(a.address)
        await until(lambda: a.forks and b.forks)
        assert {fork.member for fork in (*a.forks, *b.forks)} == {three.member}
        assert a.sync.status()["feeds"][three.member]["frozen"]
        with pytest.raises(FeedFrozen):
            give(a, first, three)
        a.append(n=0)  # the others go on
        await until(lambda: b.size(one) == 1)
    first.close()
    second.close()


@live
async def test_node_set_back_to_a_backup_gets_its_own_entries_before_it_appends(tmp_path):
    one, two = homes(tmp_path, "ab")
    async with Node(two, [one, two]) as b:
        a = Node(one, [one, two], known=[b.address])
        a.append(n=0)
        a.store.close()
        a.run_dir.rmdir()
        shutil.copy(one.folder / "ledger.db", tmp_path / "backup.db")
        async with Node(one, [one, two], known=[b.address]) as a:
            a.append(n=1)
            a.append(n=2)
            await until(lambda: b.size(one) == 3)
        for stale in one.folder.glob("ledger.db*"):
            stale.unlink()
        shutil.copy(tmp_path / "backup.db", one.folder / "ledger.db")
        async with Node(one, [one, two], known=[b.address]) as a:
            own = await a.sync.own_head_from_peers(10)
            assert own.answered == {two.member}
            assert own.head is not None
            assert own.head.size == 3
            with contextlib.suppress(FeedBehind):
                a.append(n="too early")
            await until(lambda: a.size(one) >= 3)
            assert entry.parse(a.append(n=3).entry.line).header.seq == 3 + (a.size(one) - 4)
        assert not b.forks


@live
async def test_nobody_answering_is_said(tmp_path):
    (one,) = homes(tmp_path, "a")
    async with Node(one, [one]) as a:
        began = time.monotonic()
        own = await a.sync.own_head_from_peers(0.3)
        assert (own.answered, own.head) == (frozenset(), None)
        assert time.monotonic() - began < 2
