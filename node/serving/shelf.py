"""What this node serves: every release of the epoch, its own view and each member's part, computed from blobs.

Knows no API and no votes. Invariant: a version is served only after its vector was recomputed here and has the digest
that was decided; computing again gives the same bytes, so `views/` may be lost. Which releases are served stands in our feed
(`model.served`, `model.withdrawn`), once each over all restarts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ledger import events, forgetting, rules
from ledger.collective import Decision
from ledger.cuts import Cut
from ledger.forgetting import Retired
from node.collective.holdings import Holdings
from node.collective.measure import save_view
from node.collective.pace import Pace
from node.collective.replay import Missing, Replay
from node.collective.seat import Seat, now_ms
from node.ports import Engine, Retiring
from node.serving.names import member_names
from node.serving.routing import declared
from protocol.ids import Digest, EventId, MemberId

log = logging.getLogger("fishernet.shelf")
_HISTORY_S: Final = 0.5  # how long one update works on releases that nobody waits for


class Shelf:
    """Keeps the engine's table of versions equal to what was decided and what is pending."""

    def __init__(
        self, seat: Seat, replay: Replay, engine: Engine, holdings: Holdings, *, now: Callable[[], int] = now_ms
    ) -> None:
        """`now` is the wall clock in ms: until a deadline, whoever pinned a release with something forgotten in it gets it."""
        self._seat = seat
        self._replay = replay
        self._engine = engine
        self._holdings = holdings
        self._now = now
        self._looked: tuple[tuple[int, int], Mapping[Digest, Retired]] = ((0, 0), {})
        self._served: set[Digest] = set()
        self._models: dict[Digest, Digest] = {}  # release -> model, as the engine has them
        self._parts: dict[str, tuple[EventId, ...]] = {}  # model name -> the contributions in it
        self.view: Digest | None = None
        # release -> blobs that it was found to lack, some of them here by now
        self._lacking: dict[Digest, list[Digest]] = {}
        self._pace = Pace()
        self.behind = False  # there is history that the last update had no time for

    async def update(self) -> list[tuple[str, Digest]]:
        """Serve what is new; returns the names and digests that appeared, in the order in which they did.

        The newest release comes first, then the view and the members' parts, then history from the newest on: a node that was
        away is of use before it is complete. When it ends `behind`, more of the history can be served at once.
        """
        self.behind = False
        fresh: list[tuple[str, Digest]] = []
        retired, now = self._retired(), self._now()
        ended = {digest for digest, each in retired.items() if each.deadline <= now}
        newest, *older = reversed(self._seat.fold.releases) if self._seat.fold.releases else (None,)
        fresh += await self._releases([newest] if newest is not None else [], ended)
        if newest is not None and self._lacks(newest.digest) and self._pace.moving(self._holdings.waiting):
            return fresh  # view, parts and history are made of the same blobs, and these are on their way
        if await self._view() and self.view:
            fresh.append(("view", self.view))
        fresh += await self._members()
        fresh += await self._releases(older, ended)
        self._withdraw(ended)
        self._engine.retire([self._retiring(d, each) for d, each in sorted(retired.items(), key=lambda r: r[1].number)])
        self._record(set(retired))
        return fresh

    async def _releases(self, decisions: Iterable[Decision], ended: set[Digest]) -> list[tuple[str, Digest]]:
        """Serve those that are not served yet; of a long history so much that what is new meanwhile need not wait."""
        fresh: list[tuple[str, Digest]] = []
        until = time.monotonic() + _HISTORY_S
        for decision in decisions:
            cut = decision.value
            if not isinstance(cut, Cut) or decision.digest in self._served | ended:
                continue
            if await self._release(cut, decision.digest):
                fresh.append((f"release-{cut.number}", decision.digest))
            if time.monotonic() >= until:
                self.behind = True
                break
        return fresh

    async def _release(self, cut: Cut, digest: Digest) -> bool:
        fold = self._seat.fold
        if cut.epoch != fold.charter.epoch_id:
            return False  # another base or shape: the engine of this epoch cannot serve it
        if self._lacks(digest):
            return False
        self._holdings.fetch(c for covered in fold.in_cut(cut).values() for c in covered)
        model = await asyncio.to_thread(self._replay.of_cut, fold.charter_at(cut.place.height), cut)
        if isinstance(model, Missing):
            self._lacking[digest] = list(model.blobs)
            return False
        if model.digest != cut.model:
            log.error("event=release-differs number=%s computed=%s", cut.number, model.digest[:12])
            self._served.add(digest)
            return False
        path = await asyncio.to_thread(save_view, self._seat.home, model)
        await self._engine.set_release(cut.number, digest, path, model=cut.model)
        self._served.add(digest)
        self._models[digest] = cut.model
        return True

    def _lacks(self, digest: Digest) -> bool:
        """Whether a blob that a release was found to lack is still not here: most of the time one file is looked for."""
        lacking = self._lacking.get(digest, [])
        while lacking and self._holdings.has(lacking[-1]):
            lacking.pop()
        return bool(lacking)

    def _retired(self) -> Mapping[Digest, Retired]:
        """Releases with something forgotten in them; looked for again when something was decided or asked."""
        fold = self._seat.fold
        state = (fold.height, sum(map(len, fold.forgotten.values())))
        if self._looked[0] != state:
            self._looked = (state, forgetting.retired(fold))
        return self._looked[1]

    def _retiring(self, digest: Digest, each: Retired) -> Retiring:
        return Retiring(
            height=each.number,
            release=digest,
            until=each.deadline,
            gone=digest not in self._served,
            successor=f"release-{each.successor_number}@{each.successor}",
        )

    def _withdraw(self, ended: set[Digest]) -> None:
        """Serve no release with something in it that had to be forgotten by now, once one without it is served."""
        releases = self._seat.fold.releases
        if not ended or releases[-1].digest not in self._served:
            return
        for decision in releases:
            if decision.digest in ended & self._served and isinstance(decision.value, Cut):
                self._engine.drop_release(decision.value.number, forget=True)
                self._served.discard(decision.digest)
                self._models.pop(decision.digest, None)
                log.info("event=withdrawn number=%s cause=forgotten", decision.value.number)

    def _record(self, retired: set[Digest]) -> None:
        """Write down what we began to serve, and what we serve no more; later, while paused."""
        seat, fold = self._seat, self._seat.fold
        if seat.paused or not fold.known or fold.charter.member(seat.me) is None:
            return
        said = seat.book.serving(seat.me)
        ended = retired - self._models.keys()
        for release, model in self._models.items():
            if release not in said:
                seat.append(events.ModelServed(release=release, model=model))
        for decision in fold.releases:
            gone = isinstance(decision.value, Cut) and decision.value.epoch != fold.charter.epoch_id
            if (gone or decision.digest in ended) and decision.digest in said:
                seat.append(events.ModelWithdrawn(release=decision.digest))

    async def _view(self) -> bool:
        fold, objected = self._seat.fold, self._objected()
        doubted = fold.doubted()
        model = await asyncio.to_thread(
            self._replay.view, lambda c: c.event not in objected and fold.owner(c.member) not in doubted
        )
        empty = not isinstance(model, Missing) and not model.registers and self.view is None
        if isinstance(model, Missing) or model.digest == self.view or empty:
            return False
        path = await asyncio.to_thread(save_view, self._seat.home, model)
        await self._engine.set_view(model.digest, path)
        self.view = model.digest
        return True

    async def _members(self) -> list[tuple[str, Digest]]:
        """Serve each contributor's own register, as it is now, and say what its data is about."""
        fold, fresh = self._seat.fold, list[tuple[str, Digest]]()
        if not fold.known:
            return fresh
        cut, forgotten = fold.current_cut(), rules.forgotten(fold)
        objected = self._objected() | forgotten
        kept = {m: [c for c in by if c.event not in forgotten] for m, by in fold.in_cut(cut).items()} if cut else {}
        sent = {m: by for m, by in kept.items() if by}
        for contribution in fold.pending():
            if contribution.event not in objected and self._replay.examine(contribution) is not None:
                sent.setdefault(fold.owner(contribution.member), []).append(contribution)
        seats = {m: fold.charter.member(m) for m in sent}
        names = member_names({m: seat.name if seat else "" for m, seat in seats.items()})
        for gone in self._parts.keys() - names.values():
            self._engine.drop_member(gone)
            del self._parts[gone]
        for member, name in names.items():
            events_ = tuple(c.event for c in sent[member])
            if self._parts.get(name) == events_:
                continue
            model = await asyncio.to_thread(self._replay.alone, fold.charter, sent[member])
            if isinstance(model, Missing) or not model.registers:
                continue
            path = await asyncio.to_thread(save_view, self._seat.home, model)
            seat = seats[member]
            await self._engine.set_member(name, path, model=model.digest, owner=seat.organisation if seat else member)
            self._parts[name] = events_
            fresh.append((name, model.digest))
        self._engine.set_domains({name: self._declared(member) for member, name in names.items()})
        return fresh

    def _declared(self, member: MemberId) -> str:
        described, owner = self._seat.book.described, self._seat.fold.owner
        return declared(event for (feed, _), (_, event) in described.items() if owner(feed) == member)

    def _objected(self) -> set[EventId]:
        """Contributions we have objected to at this height."""
        mine = self._seat.fold.tally.verdicts.get(self._seat.me, {})
        return {o.event for _, verdict in mine.values() for o in verdict.objections}
