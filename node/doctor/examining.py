"""`fishernet doctor`: gathers what there is to look at, beside a running daemon or without one, and asks every check.

A check that fails itself is a finding, never the end. Invariant: nothing is changed, and no key is needed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ledger.entry import Record
from ledger.events import NodeStarted
from node import commands, control
from node import session as sessions
from node.collective.seat import Seat
from node.doctor import machine, ours, place
from node.doctor.finding import Finding, fail, ok, warn
from node.errors import ConfigError
from node.home import Home
from node.session import Session
from protocol.errors import FishernetError
from protocol.ids import MemberId

_LIVE_S: Final = 4.0
_NEWEST: Final = 64  # entries of each feed that are looked at
_MOST: Final = 128  # feeds
_PAGE, _PAGES = 256, 16  # entries of a feed that are searched for its author's last start


def examine(home: Home, *, index: bool = False) -> list[Finding]:
    """Everything that can be seen from here; `index` asks for the package index too (up to four seconds more)."""
    found: list[Finding] = []
    up = control.is_up(home)
    try:
        config = home.read_config()
    except ConfigError as e:
        found.append(fail("config", str(e), "fishernet config check"))
        config = None
    if config is not None:
        found += place.every(home, config, running=up)
    found += machine.disk(home.path) + machine.sqlite() + machine.processor() + machine.memory() + machine.packages()
    if index:
        found += machine.index()
    if config is not None and config.node.collective:
        found += _storage(home)
    live = _live(home, found) if up else {}
    found += _tried("daemon", ours.daemon(live))
    if config is not None and config.node.collective:
        try:
            with sessions.reading(home) as session:
                found += _collective(session, live)
        except FishernetError as e:
            found.append(fail("ledger", str(e), "fishernet audit; fishernet restore FILE"))
    elif config is not None:
        cure = "fishernet collective create --name NAME; or: fishernet collective join ID MULTIADDR"
        found.append(warn("collective", "this node belongs to none yet", cure))
    return found


def _storage(home: Home) -> list[Finding]:
    """What the keeper of blobs says of quota and room, in the node or without it."""
    try:
        told = commands.run(home, "storage.show", {}, passphrase=lambda: None)
    except FishernetError as e:
        return [warn("storage", str(e), "fishernet storage show")]
    said = told["findings"] if isinstance(told, dict) and isinstance(told.get("findings"), list) else []
    found = [
        (fail if each["severity"] in {"error", "fail"} else warn)("storage", str(each["text"]), str(each["cure"]))
        for each in said
        if isinstance(each, dict)
    ]
    return found or [ok("storage", "blobs are within quota and room")]


def _live(home: Home, found: list[Finding]) -> Mapping[str, Any]:
    try:
        told = control.call(home, "doctor.look", {}, timeout=_LIVE_S)
    except FishernetError as e:
        found.append(
            fail("daemon", f"it does not answer: {e}", "fishernet status; kill -9 and start it, if that hangs too")
        )
        return {}
    return told if isinstance(told, dict) else {}


def _collective(session: Session, live: Mapping[str, Any]) -> list[Finding]:
    seat = session.need_seat()
    fold, me = seat.fold, seat.me
    if not fold.known:
        return [
            warn("collective", "its charter is not here yet: no member has sent it", "fishernet peer add MULTIADDR")
        ]
    records: dict[MemberId, Sequence[Record]] = {}
    for member in list(fold.sizes)[:_MOST]:
        start = max(0, fold.sizes[member] - _NEWEST)
        records[member] = list(seat.store.records(seat.collective, member, start, _NEWEST))
    now = time.time_ns() // 1_000_000
    base = fold.charter.base
    groups: list[Iterable[Finding]] = [
        place.base_model(base.digest, base.name),
        ours.feeds(fold, me, live),
        ours.votes(fold, live),
        ours.versions(fold, me, {m: _last_start(seat, m, newest) for m, newest in records.items()}),
        ours.clock(records, me, now, live),
    ]
    if live:
        groups += [ours.paused(live["paused"], live["full"]), ours.peers(fold, me, live), ours.reachability(live)]
    return list(itertools.chain.from_iterable(_tried("collective", group) for group in groups))


def _last_start(seat: Seat, member: MemberId, newest: Sequence[Record]) -> list[Record]:
    """The entry of a member's last start, if it is among its last few thousand."""
    end, page = seat.fold.sizes[member] - len(newest), newest
    for _ in range(_PAGES):
        for record in reversed(page):
            if record.entry.header.type == NodeStarted.TYPE:
                return [record]
        if end <= 0:
            break
        start = max(0, end - _PAGE)
        page, end = seat.store.records(seat.collective, member, start, end - start), start
    return []


def _tried(name: str, checks: Iterable[Finding]) -> list[Finding]:
    """What the checks say; one that cannot be made says that."""
    found: list[Finding] = []
    try:
        found.extend(checks)
    except (OSError, FishernetError, KeyError, TypeError, ValueError) as e:
        found.append(warn(name, f"couldn't look: {type(e).__name__}: {e}", "fishernet status"))
    return found
