"""How a node becomes a working member after each start: charter, base model, seat, own head, first events.

Knows the order and the waits, not how anything is fetched. Invariant: nothing is appended to our feed before a member
that may hold more of it has answered (a restored backup must not fork it), unless the operator took that risk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Final

from contrib import adapters, models
from contrib.adapters import AdapterSpec
from contrib.errors import UnknownModel
from contrib.models import Model
from ledger import events
from node.collective.pace import Pace
from node.errors import NotAllowed, WrongBase
from node.home import model_cache
from node.lasting import lasting
from node.session import Session
from node.syncing.sync import Sync
from protocol.ids import MemberId

log = logging.getLogger("fishernet.joining")
_HEAD_ANSWER_S: Final = 10.0
_RETRY_S: Final = 2.0
_STALLED_S: Final = 15.0  # a busy machine may take a moment for a blob
_LONGEST_S: Final = 300.0
_FAR: Final = 256  # entries that are missing: more than ordinary rounds bring at once
_NOBODY: Final = "nobody who can be reached has them"
_ASKING: Final = "peers have not been asked yet how long our feed is"
_NO_SEAT: Final = "this node has no seat in the collective yet: a member must invite it"
_GONE: Final = "the seat of this node's key went to {}; the keys of that member are not in this home"
_ALONE: Final = (
    "no other member has said yet how long our feed is; this node trains and serves, but writes nothing "
    "(a bundle that another member makes from now on says so too; fishernet up --accept-fork-risk overrides this)"
)


class Joining:
    """The steps, one method each; the daemon calls them in this order."""

    def __init__(
        self, session: Session, sync: Sync, next_change: Callable[[], Awaitable[None]], *, accept_fork_risk: bool
    ) -> None:
        self._session = session
        self._seat = session.need_seat()
        self._sync = sync
        self._next_change = next_change
        self._fork_risk = accept_fork_risk
        self._began = self._seat.now_ms()
        self._told: int | None = None  # how long our feed is, by a bundle of another member made since we began
        self._answer = asyncio.Event()
        session.carried = self.carried
        self._pace = Pace()
        self._seat.pause(_ASKING)

    async def charter(self) -> None:
        """Wait until the founder's feed is here."""
        if not self._seat.fold.known:
            log.info("event=waiting-for-charter collective=%s", self._seat.collective[:12])
        while not self._seat.fold.known:
            await self._next_change()

    def base(self) -> Model:
        """The collective's base model, from the cache.

        Raises:
            WrongBase: this node was told to use another one, or does not have it.
        """
        base, wanted = self._seat.fold.charter.base, self._session.config.node.model
        hint = f"fishernet model add {base.name}, then: fishernet config set node.model {base.name}"
        try:
            model = models.find(wanted or base.digest, model_cache())
        except UnknownModel as e:
            raise WrongBase(
                f"couldn't take part: the collective's base model {base.name} ({base.digest[:12]}) is not here: {e}",
                hint=hint,
            ) from e
        if model.digest != base.digest:
            raise WrongBase(
                f"couldn't take part: the collective's base model is {base.name} ({base.digest[:12]}), "
                f"this node has {model.name} ({model.digest[:12]}); it stays out",
                hint=hint,
            )
        wanted_coordinates = self._seat.fold.charter.adapter.coordinates
        found = adapters.layout(model.path, self.spec()).coordinates
        if found != wanted_coordinates:
            raise WrongBase(
                f"couldn't take part: the charter's adapter has {wanted_coordinates} coordinates, on this model it has {found}",
                hint="the charter is wrong: amend it",
            )
        return model

    def spec(self) -> AdapterSpec:
        """The adapter that the charter fixes."""
        adapter = self._seat.fold.charter.adapter
        return AdapterSpec(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets, seed=adapter.seed)

    async def seat(self) -> None:
        """Wait until the charter gives us a seat."""
        past = self._seat.fold.charter.seat_of(self._seat.me)
        self._seat.pause(_NO_SEAT if past is None else _GONE.format(past.id[:12]))
        while self._seat.fold.charter.member(self._seat.me) is None:
            await self._next_change()

    async def own_head(self) -> None:
        """Ask peers for our own highest head; stay read-only while a mirror may know more and none answers."""
        seat = self._seat
        mirrored = any(m != seat.me and n > 0 for m, n in seat.fold.sizes.items())
        others = [m.id for m in seat.fold.charter.members if m.id != seat.me]
        seat.pause(_ALONE)
        while mirrored and others and not self._fork_risk:
            ahead = await self._said_ahead()
            if ahead is None:
                log.warning("event=read-only cause=%s", _ALONE)
                continue
            if self._size() < ahead:
                log.warning("event=behind-own-feed held=%s known=%s", self._size(), ahead)
            while self._size() < ahead:
                await self._next_change()
            break
        seat.pause(None)

    def catching_up(self) -> bool:
        """Whether decisions of the past are coming in: what is newest now will soon be of no interest.

        It goes by decisions, which no member makes alone: a head that somebody signs without ever showing the entries holds up
        nobody for long.
        """
        return self._pace.moving(self._seat.fold.height) and sum(self._sync.behind().values()) > _FAR

    async def caught_up(self, lacking: Callable[[], int]) -> None:
        """Wait until entries and newest release are here that members had when we asked: who trains from less is behind them.

        `lacking` counts the blobs of the newest release that are not here. A feed of which nothing comes is not waited for, and
        all together not for longer than five minutes.
        """
        paces: dict[MemberId, Pace] = {}
        blobs, longest, told = Pace(_STALLED_S), Pace(_LONGEST_S), False
        while longest.moving(None):
            sizes = self._seat.fold.sizes
            behind = {m: n for m, n in self._sync.behind().items() if _pace_of(paces, m).moving(sizes.get(m, 0))}
            missing = lacking()
            if not behind and (missing == 0 or not blobs.moving(missing)):
                break
            if not told:
                log.info("event=catching-up entries=%s blobs=%s", sum(behind.values()), missing)
            told = True
            await self._next_change()
        left = sum(self._sync.behind().values())
        if left or lacking():
            log.warning("event=still-behind entries=%s blobs=%s cause=%s", left, lacking(), _NOBODY)

    async def _said_ahead(self) -> int | None:
        """How long our feed is, by peers or by a bundle, whichever says so first; None when nobody did for a while."""
        asking = asyncio.create_task(self._sync.own_head_from_peers(_HEAD_ANSWER_S))
        carried = asyncio.create_task(self._answer.wait())
        try:
            await asyncio.wait((asking, carried), return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and (found := asking.result()).answered:
                return max(found.head.size if found.head else 0, self._told or 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._answer.wait()
            return self._told
        finally:
            for task in (asking, carried):
                task.cancel()
            await asyncio.gather(asking, carried, return_exceptions=True)

    def carried(self, maker: MemberId, made: int, size: int) -> None:
        """Take what a bundle says about our own feed as a member's answer, if one made it since this node began.

        It is as much worth as the answer of a peer: its maker may have heard less than others. `made` is its maker's clock.
        """
        seat = self._seat
        member = seat.fold.charter.member(maker) if seat.fold.known else None
        if member is None or maker == seat.me or made < self._began:
            return
        self._told = max(self._told or 0, size)
        self._answer.set()

    async def begin(self) -> None:
        """Introduce ourselves as soon as there is room for it: a full disk ends no node."""

        async def introduced() -> None:
            self.introduce()

        await lasting(introduced, log=log, event="not-introduced", rest_s=_RETRY_S)

    def introduce(self) -> None:
        """The events every node writes when it begins: its bindings when new, its data commitments, its versions.

        The versions come last: what stands before them is not written again when this is tried again.
        """
        seat, identity = self._seat, self._session.identity
        if identity is None:
            raise NotAllowed("couldn't start: the key is not open")
        if seat.fold.peers.get(identity.peer) != seat.me:
            seat.append(events.PeerBound(binding=dict(identity.binding)))
        bound = identity.bound(seat.collective)
        if seat.fold.witnesses.announced.get(seat.me) != bound:
            seat.append(bound)
        seat.tell_forks()
        self._session.commit_data()
        seat.append(events.NodeStarted(versions=_versions(), fork_risk_accepted=self._fork_risk))

    def _size(self) -> int:
        """How much of our own feed the fold has taken: the store has it a moment earlier."""
        return self._seat.fold.sizes.get(self._seat.me, 0)


def _pace_of(paces: dict[MemberId, Pace], member: MemberId) -> Pace:
    return paces.setdefault(member, Pace(_STALLED_S))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version}
    for name in ("fishernet", "torch", "hivemind", "pynacl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
