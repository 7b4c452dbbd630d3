"""Forgetting rows, and the bodies that speak of their use: here at once, at every other holder by its own hand.

    data forget -> plan kept -> rows deleted -> new commitment -> `erasure.requested` -> bodies deleted -> `erasure.done`
Each holder that sees a request deletes the bodies it names and says so; `status` tells who has not. What cannot be done now
(the ledger is paused, a reader holds the file) is done at the next opportunity: the plan lies in the ledger's state until
then. Invariants: rows are gone before anything is announced; a plan names row numbers, never what stood in a row or whom it
was about; nobody's bodies are erased on another member's word.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ledger import events
from ledger.erasures import Erasures, Request, Trace
from ledger.errors import EraseUnfinished
from ledger.events.erasure import MAX_LISTED, Scope
from node.collective.seat import PAGE, Seat, now_ms
from node.data import residual
from node.syncing.blobs import BlobStore
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError
from protocol.ids import Digest, EventId

if TYPE_CHECKING:
    from contrib.datasets import Found
    from ledger.store import Store
    from node.session import Session

log = logging.getLogger("fishernet.erasing")
STATE: Final = "erasing"
FORGOTTEN: Final = "erasing.runs"
DEADLINE_MS: Final = 30 * 86_400_000  # one month, as GDPR article 12(3) has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rows that are being forgotten; `roots` None: behind any commitment of the data set."""

    request: Digest
    dataset: str
    scope: Scope
    rows: int
    ids: tuple[int, ...]
    roots: tuple[Digest, ...] | None
    collective: str  # "" when this node belonged to none: then nobody else has to hear of it
    deleted: bool = False


class Eraser:
    """The erasure fold of one session, kept up with the store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.fold = Erasures()
        self.plans = threading.Lock()  # held while the list of plans changes
        self.deleting = threading.Lock()  # held while rows are deleted

    def catch_up(self) -> Erasures:
        """The fold with everything that the seat knows now."""
        seat = self._session.need_seat()
        if seat.fold.known:
            self.fold.earlier = {m.id: frozenset(w.id for w in m.was) for m in seat.fold.charter.members if m.was}
        for member, size in list(seat.fold.sizes.items()):  # nothing is read when nothing has grown
            while (at := self.fold.sizes.get(member, 0)) < size:
                for record in seat.store.records(seat.collective, member, at, PAGE):
                    self.fold.apply(record)
        return self.fold

    def answer(self) -> int:
        """Erase what requests ask of us and confirm it; returns how many requests were answered.

        Raises:
            EraseUnfinished: a program that reads the ledger keeps the bytes alive; they go at the next call.
        """
        seat, fold = self._session.need_seat(), self.catch_up()
        destroyed = {r.source.event: _destroy(seat, r) for r in fold.requests() if r.asked.scope == events.DESTROYED}
        owed = [r for r in fold.owed(seat.me) if destroyed.get(r.source.event, 0) is not None]
        bodies = {request.source.event: fold.bodies(request) for request in owed}
        held = {event: sum(s.event in fold.held for s in sources) for event, sources in bodies.items()}
        everything = [source for sources in bodies.values() for source in sources]
        if everything:  # all at once: the file is written anew at most once, however many requests there are
            places = {(source.member, source.seq) for source in everything}
            seat.store.erase_bodies(seat.collective, sorted(places), vacuum=any(held.values()))
            fold.erased(everything)
        for request in owed:
            event = request.source.event
            if not fold.confirmed(request, seat.me):
                seat.append(events.ErasureDone(request=event, bodies=held[event] + (destroyed.get(event) or 0)))
                log.info("event=erased request=%s bodies=%s", event[:12], held[event])
        return len(owed)


def _destroy(seat: Seat, request: Request) -> int | None:
    """Delete the blobs that their author wants destroyed; None while a release still needs one of them.

    Never on another member's word, and never one that a contribution names which is not to go.
    """
    fold, author = seat.fold, seat.fold.owner(request.source.member)
    everything = [c for by in fold.contributions.values() for c in by]
    named = [c for c in everything if c.event in request.asked.contributions and fold.owner(c.member) == author]
    if any(fold.fate(c) not in {"refused", "stale"} for c in named):
        return None
    blobs, going = BlobStore(seat.home.blobs), {c.event for c in named}
    shared = {c.blob for c in everything if c.event not in going}
    return sum(blobs.remove(c.blob) for c in named if c.blob not in shared)


# -- our own rows ------------------------------------------------------------------------------------------------------
def begin(session: Session, dataset: str, found: Found, scope: Scope) -> Plan:
    """Keep the plan to forget these rows: from here on it is carried out, whatever interrupts it."""
    plan = Plan(
        request=Digest(secrets.token_hex(32)),
        dataset=dataset,
        scope=scope,
        rows=len(found.ids),
        ids=found.ids,
        roots=None if found.roots is None else tuple(sorted(found.roots)),
        collective=session.seat.collective if session.seat else "",
    )
    with session.eraser().plans:
        session.store.put_state(STATE, _packed([*pending(session.store), plan]))
    return plan


def delete(session: Session) -> None:
    """Delete the rows of every plan, and the files of unfinished runs on them.

    Raises:
        RowsBusy: a reader keeps the bytes alive; they go at the next call.
        PassphraseNeeded: sealed rows, and the key is not open.
    """
    with session.eraser().deleting:
        for plan in pending(session.store):
            if not plan.deleted:
                with session.rows() as rows, contextlib.suppress(_unknown()):
                    rows.forget(plan.dataset, plan.ids)
                _end(session, plan)


def _end(session: Session, plan: Plan) -> None:
    """Note that the rows of a plan are gone; one that nobody else has to hear of is done."""
    with session.eraser().plans:
        left = [p for p in pending(session.store) if p.request != plan.request or p.collective]
        done = [replace(p, ids=(), deleted=True) if p.request == plan.request else p for p in left]
        session.store.put_state(STATE, _packed(done))


def announce(session: Session) -> list[EventId]:
    """Ask all holders to erase, for every plan whose rows are gone; our own bodies go in the same call.

    The commitments must have been renewed before (`Session.commit_data` does both). Nothing happens while the ledger is paused.
    """
    seat = session.seat
    if seat is None or seat.paused or not seat.fold.known:
        return []
    said: list[EventId] = []
    for plan in pending(session.store):
        if plan.deleted and plan.collective == seat.collective:
            said += _announce(session, seat, plan)
    with contextlib.suppress(EraseUnfinished):  # the daemon, or the next command, does it again
        session.eraser().answer()
    return said


def trace(session: Session, dataset: str, roots: Collection[Digest] | None) -> Trace:
    """What the rows behind these commitments went into, as our own feed tells."""
    if session.seat is None:
        return Trace(contributions=(), entries=(), runs=frozenset())
    return session.eraser().catch_up().trace(session.seat.me, dataset, roots)


def pending(store: Store) -> list[Plan]:
    """Plans that are not done."""
    saved = store.get_state(STATE)
    return [_plan(value) for value in json.loads(saved)] if saved else []


def is_forgotten(store: Store, run: str) -> bool:
    """Whether rows that a run was trained on were forgotten before it was published."""
    saved = store.get_state(FORGOTTEN)
    return bool(saved) and run in json.loads(saved or b"[]")


def _announce(session: Session, seat: Seat, plan: Plan) -> list[EventId]:
    found = trace(session, plan.dataset, plan.roots)
    for run in found.runs:
        shutil.rmtree(seat.home.run_folder(run), ignore_errors=True)
    if found.runs:
        residual.forget_moments(seat.home.runs)  # later runs went on from those of the forgotten ones
    saved = json.loads(seat.store.get_state(FORGOTTEN) or b"[]")
    runs = json.dumps(sorted({*saved, *found.runs})).encode()
    said = []
    *first, last = _requests(plan, found)
    with session.eraser().plans:
        left = _packed([p for p in pending(seat.store) if p.request != plan.request])
        done = {STATE: left, FORGOTTEN: runs, **(residual.nothing() if found.runs else {})}
        said += [seat.append(request).entry.event for request in first]
        said.append(seat.append(last, state=done).entry.event)
    log.info("event=erasure-requested rows=%s contributions=%s", plan.rows, len(found.contributions))
    return said


def _requests(plan: Plan, found: Trace) -> Iterator[events.ErasureRequested]:
    """As many requests as the lists need; one when there is nothing to list."""
    deadline = now_ms() + DEADLINE_MS
    for start in range(0, max(len(found.contributions), len(found.entries), 1), MAX_LISTED):
        yield events.ErasureRequested(
            dataset=plan.dataset,
            scope=plan.scope,
            rows=plan.rows,
            request=plan.request,
            contributions=found.contributions[start : start + MAX_LISTED],
            entries=found.entries[start : start + MAX_LISTED],
            deadline=deadline,
        )


# -- in the daemon -----------------------------------------------------------------------------------------------------
async def tend(session: Session) -> None:
    """What the daemon does about erasure after every change: finish our own plans, answer the requests of others."""
    import asyncio

    seat = session.need_seat()
    if seat.paused or not seat.fold.known or seat.fold.charter.member(seat.me) is None:
        return
    try:
        if pending(session.store):
            await asyncio.to_thread(delete, session)
            session.commit_data()
            if session.daemon is not None:
                session.daemon.use_data()
        session.eraser().answer()
    except FishernetError as e:  # a reader holds a file, the disk is full: at the next change
        if isinstance(e, Fatal):
            raise
        log.warning("event=erasure-waits code=%s cause=%s", e.code, e)


# -- what is open ------------------------------------------------------------------------------------------------------
def status(session: Session, now: int) -> dict[str, Json]:
    """Requests that some member has not confirmed, with their names; contributions that are marked; our plans that wait."""
    seat = session.seat
    waiting: list[Json] = []
    marked: list[Json] = []
    if seat is not None and seat.fold.known:
        names = {m.id: m.name for m in seat.fold.charter.members}
        fold = session.eraser().catch_up()
        marked = list(sorted(fold.marked()))
        for request, missing in fold.waiting(names):
            waiting.append(_waiting(request, sorted(names[m] for m in missing), names, now))
    return {"erasures": waiting, "marked": marked, "forgetting": len(pending(session.store))}


def _waiting(request: Request, missing: Sequence[str], names: Mapping[Any, str], now: int) -> Json:
    asked = request.asked
    return {
        "request": request.source.event,
        "by": names.get(request.source.member, request.source.member[:12]),
        "dataset": asked.dataset,
        "rows": asked.rows,
        "contributions": len(asked.contributions),
        "bodies": len(asked.entries),
        "deadline": asked.deadline,
        "overdue": now > asked.deadline,
        "missing": list(missing),
    }


def _packed(plans: Sequence[Plan]) -> bytes:
    return json.dumps([asdict(plan) for plan in plans]).encode()


def _plan(value: Mapping[str, Any]) -> Plan:
    roots = value["roots"]
    return Plan(**{**value, "ids": tuple(value["ids"]), "roots": None if roots is None else tuple(roots)})


def _unknown() -> type[Exception]:
    from contrib.errors import UnknownDataset

    return UnknownDataset
