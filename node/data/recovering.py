"""Our own feed from elsewhere, after a restore or from a twin: what this node takes up again, and what it must not.

The feed is longer than what was restored, so what the restored files say beside it belongs to the past: the residual is dropped
(DESIGN section 6), a run whose contribution stands in the feed is not published again, and rows that may hold what was forgotten
meanwhile are put aside unread. Knows no network. Invariant: rows that were forgotten are never used again because a copy of them
came back; a node that may write and gets entries of its own that it did not write, writes nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ledger import events
from ledger.entry import Record
from ledger.store import Store
from node.collective.seat import PAGE
from node.data import residual
from node.session import Session
from protocol.ids import MemberId

log = logging.getLogger("fishernet.recovering")
_NOTED: Final = "recovering.from"  # state: the first entry of ours that came back and was not seen to
_TWIN: Final = (
    "another node writes with this node's key (a restored backup, a copied home): stop one of the two, then start this one; "
    "until then it writes nothing"
)
_ROWS: Final = frozenset({"row", "subject"})  # scopes of erasures that deleted rows


def note(store: Store, seq: int) -> None:
    """Remember that entries of our own feed came back from `seq` on, until `settle` has seen to them, over a restart too."""
    before = store.get_state(_NOTED)
    if not before or int(before) > seq:
        store.put_state(_NOTED, str(seq).encode())


def receive(session: Session, member: MemberId, records: Sequence[Record]) -> None:
    """Take entries in that came from elsewhere, by a peer or a bundle, and that the store has taken.

    Our own come back while this node does not write yet, or where no daemon runs; later only from somebody who has our key.
    """
    seat = session.need_seat()
    own = member == seat.me and bool(records)
    twin = own and seat.paused is None and session.daemon is not None
    if own:
        note(session.store, records[0].entry.header.seq)
    seat.receive(member, records)
    if twin:
        log.error("event=twin at=%s", records[0].entry.header.seq)
        seat.pause(_TWIN)


def settle(session: Session, held: int) -> list[str]:
    """Bring this node's state in line with its feed, of which `held` entries were here at its start, or fewer as was noted.

    Returns the data sets whose rows were put aside, because rows of theirs were forgotten after the copy was made.

    Raises:
        StoreFull, StoreBusy, StoreBroken: nothing may be written before it is done.
    """
    seat = session.need_seat()
    noted = seat.store.get_state(_NOTED)
    held = min(held, int(noted)) if noted else held
    back = list(_records(session, held))
    if not back:
        return []
    old = _settle(session, held, back)
    if noted:
        seat.store.put_state(_NOTED, b"")
    return old


def _settle(session: Session, held: int, back: Sequence[Record]) -> list[str]:
    seat = session.need_seat()
    log.warning("event=feed-recovered held=%s recovered=%s", held, len(back))
    bodies = [(r.entry.header.type, r.body.value()) for r in back if r.body is not None]
    runs = [str(body["run"]) for type_, body in bodies if type_ == events.Published.TYPE]
    erased = {
        str(body["dataset"])
        for type_, body in bodies
        if type_ == events.ErasureRequested.TYPE and body["scope"] in _ROWS and body["rows"]
    }
    state = residual.nothing() if erased else {residual.STATE: residual.nothing()[residual.STATE]}
    published = (seat.store.get_state(residual.STATE + ".run") or b"").decode()
    if runs and max(runs) > published:
        state[residual.STATE + ".run"] = max(runs).encode()
    for name, value in state.items():
        seat.store.put_state(name, value)
    if not erased:
        return []
    shutil.rmtree(session.home.runs, ignore_errors=True)  # runs on rows that may be forgotten
    session.home.runs.mkdir(mode=0o700, exist_ok=True)
    return _put_aside(session, erased)


def _records(session: Session, start: int) -> Iterator[Record]:
    seat, at = session.need_seat(), start
    while page := seat.store.records(seat.collective, seat.me, at, PAGE):
        yield from page
        at += len(page)


def _put_aside(session: Session, erased: set[str]) -> list[str]:
    """Take the rows away where they are not those of the last commitment of every data set that had rows forgotten."""
    home, seat = session.home, session.need_seat()
    if not home.rows_db.exists():
        return []
    known = seat.fold.data.get(seat.me, {})
    with session.rows(read_only=True) as rows:
        held = {each.name: (each.train_root, each.held_out_root) for each in rows.datasets()}
    old = sorted(
        name
        for name in erased & held.keys()
        if name not in known or held[name] != (known[name].train_root, known[name].held_out_root)
    )
    if old:
        with session.rows():
            pass  # the last writer that closes takes the write-ahead log into the file
        home.rows_db.replace(home.withheld_rows)
        for rest in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{home.rows_db}{rest}").unlink()
        log.error("event=rows-withheld datasets=%s file=%s", ",".join(old), home.withheld_rows.name)
    return old
