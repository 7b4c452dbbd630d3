"""A node begins: it writes nothing before a member that may know more of its feed has answered, then introduces itself."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from circle import Circle, make_circle, told
from peers import LOOPBACK, live, until

from ledger import events
from ledger.entry import Record
from node import session as sessions
from node.collective.joining import Joining
from node.errors import AppendPaused
from node.network.swarm import Swarm, SwarmConfig
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.sync import Sync, SyncRules


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Circle:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    return make_circle(tmp_path)


class Begun:
    """A home whose network and sync run for the length of a block, as the daemon wires them."""

    def __init__(self, session: Session, known: tuple[str, ...] = ()) -> None:
        seat, home = session.need_seat(), session.home
        self.session, self.seat = session, seat
        self.swarm = Swarm(
            SwarmConfig(identity=home.transport_key, listen=(LOOPBACK,), run_dir=home.sockets(), known=known, book=None)
        )
        assert session.identity is not None
        rules = SyncRules(
            allowed=seat.may_read, on_records=seat.receive, on_fork=seat.fork_found, peers=lambda: seat.fold.peers
        )
        self.sync = Sync(
            store=session.store,
            blobs=BlobStore(home.blobs),
            network=self.swarm,
            collective=seat.collective,
            binding=session.identity.binding,
            rules=rules,
            heads_every_s=0.5,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def joining(self, *, accept_fork_risk: bool = False) -> Joining:
        return Joining(self.session, self.sync, self._change, accept_fork_risk=accept_fork_risk)

    async def _change(self) -> None:
        await asyncio.sleep(0.05)

    async def __aenter__(self) -> Begun:
        self._tasks = [asyncio.create_task(job()) for job in (self.swarm.run, self.sync.run)]
        await until(self.swarm.ready.is_set)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def own(session: Session) -> list[Record]:
    return session.store.records(session.need_seat().collective, session.member)


@live
async def test_a_node_whose_mirrors_are_silent_reads_and_does_not_write_until_one_answers(circle: Circle) -> None:
    with circle.open("ada") as one, circle.open("bob") as two:
        async with Begun(one) as ada:
            joining = ada.joining()
            with pytest.raises(AppendPaused):
                ada.seat.append(events.NodeAlive())
            asked = asyncio.create_task(joining.own_head())
            await until(lambda: "writes nothing" in str(ada.seat.paused))
            await asyncio.sleep(0.5)
            assert not asked.done()
            async with Begun(two, known=(ada.swarm.addresses()[0],)):
                await asyncio.wait_for(asked, 90)
            assert ada.seat.paused is None
            ada.seat.append(events.NodeAlive())


@live
async def test_the_operator_may_take_the_risk_and_the_feed_says_so(circle: Circle) -> None:
    with circle.open("ada") as one:
        async with Begun(one) as ada:
            joining = ada.joining(accept_fork_risk=True)
            await joining.own_head()
            joining.introduce()
            started = [r.body.value() for r in own(one) if r.entry.header.type == events.NodeStarted.TYPE and r.body]
            assert [s["fork_risk_accepted"] for s in started] == [True]


def test_a_node_introduces_itself_with_what_is_new_and_only_that(circle: Circle) -> None:
    with circle.open("ada") as session:
        before = len(own(session))

        async def begin() -> list[str]:
            joining = Begun(session).joining(accept_fork_risk=True)
            await joining.own_head()
            joining.introduce()
            return [r.entry.header.type for r in own(session)[before:]]

        assert asyncio.run(begin()) == ["peer.bound", "node.started"], "its keys are bound already"
        before = len(own(session))
        assert asyncio.run(begin()) == ["node.started"]
        session.home.witness_key.unlink()
    with sessions.writing(circle.homes["ada"], None) as session:
        before = len(own(session))
        assert asyncio.run(begin()) == ["keys.bound", "node.started"]
        assert not session.need_seat().fold.flaws


def test_an_old_key_says_that_its_seat_has_gone(circle: Circle, capsys: pytest.CaptureFixture[str]) -> None:
    done = told(capsys, circle.homes["bob"], "key", "rotate")
    circle.decide("ada", "cyd")

    async def begin(session: Session) -> None:
        waiting = asyncio.create_task(Begun(session).joining(accept_fork_risk=True).seat())
        await until(lambda: done["next"][:12] in str(session.need_seat().paused))
        waiting.cancel()

    with circle.open("bob") as session:
        asyncio.run(begin(session))


def test_a_bundle_of_another_member_says_how_long_our_feed_is_as_a_peer_does(circle: Circle) -> None:
    """Only one that was made since this node began: an older one may know less than what we have written since."""

    async def begin(session: Session) -> None:
        seat = session.need_seat()
        joining = Begun(session).joining()
        began = seat.now_ms()
        asked = asyncio.create_task(joining.own_head())
        bob = next(m.id for m in seat.fold.charter.members if m.name == "bob")
        for maker, made in ((seat.me, began + 1), ("ab" * 32, began + 1), (bob, began - 60_000)):
            session.carried(maker, made, 1)  # type: ignore[arg-type]
        await asyncio.sleep(0.3)
        assert not asked.done()
        assert seat.paused is not None
        session.carried(bob, began + 60_000, len(own(session)))
        await asyncio.wait_for(asked, 90)
        assert seat.paused is None

    with circle.open("ada") as session:
        asyncio.run(begin(session))


def test_a_bundle_that_knows_a_longer_feed_of_ours_keeps_us_waiting_for_it(circle: Circle) -> None:
    async def begin(session: Session) -> None:
        seat = session.need_seat()
        joining = Begun(session).joining()
        asked = asyncio.create_task(joining.own_head())
        bob = next(m.id for m in seat.fold.charter.members if m.name == "bob")
        session.carried(bob, seat.now_ms() + 60_000, len(own(session)) + 2)
        await asyncio.sleep(0.5)
        assert not asked.done()
        with pytest.raises(AppendPaused):
            seat.append(events.NodeAlive())
        asked.cancel()

    with circle.open("ada") as session:
        asyncio.run(begin(session))
