"""The numbers of a running node, by part, as flat mappings: for Prometheus, and for `fishernet doctor`.

Reads the parts and the sizes of files; keeps nothing and writes nothing. Invariant: no value holds text of others but a
member's name in the charter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.logs import Logs
from node.parts import Parts


def read(parts: Parts, logs: Logs) -> Mapping[str, Mapping[str, Any]]:
    """{"swarm", "sync", "guard", "growth", "ledger", "log", "members"} and what else counts."""
    swarm, sync = parts.swarm.status(), parts.sync.status()
    feeds = sync["feeds"] if isinstance(sync["feeds"], dict) else {}
    found: dict[str, Mapping[str, Any]] = {
        "swarm": {**_numbers(swarm), "peers": len(parts.swarm.peers()), "missing": _length(swarm.get("missing"))},
        "sync": {**_numbers(sync), "feeds": len(feeds), "behind": sum(_behind(feed) for feed in feeds.values())},
        "guard": parts.guard.status(),
        "growth": _numbers(parts.growth.status()),
        "ledger": _ledger(parts),
        "storage": parts.keeper.status(),
        "log": logs.status(),
        "members": _members(parts, feeds),
    }
    return found


def _ledger(parts: Parts) -> Mapping[str, int]:
    seat, home = parts.seat, parts.session.home
    fold = seat.fold
    return {
        "entries": sum(fold.sizes.values()),
        "own_entries": fold.sizes.get(seat.me, 0),
        "feeds": len(fold.sizes),
        "pending": len(fold.pending()) if fold.known else 0,
        "releases": len(fold.releases),
        "height": fold.height,
        "members": len(fold.charter.members) if fold.known else 0,
        "paused": int(seat.paused is not None),
        "forks": len(fold.forked),
        "bytes_db": _bytes(home.ledger_db),
        "bytes_wal": _bytes(home.ledger_db.with_name(home.ledger_db.name + "-wal")),
    }


def _members(parts: Parts, feeds: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
    """By name, or where two have the same one by name and digits of the id."""
    fold, me = parts.seat.fold, parts.seat.me
    if not fold.known:
        return {}
    linked = {parts.sync.member_of(peer) for peer in parts.swarm.peers()}
    found: dict[str, Mapping[str, int]] = {}
    for member in fold.charter.members:
        feed = feeds.get(member.id, {})
        numbers = {
            "entries": fold.sizes.get(member.id, 0),
            "behind": _behind(feed) if feed else 0,
            "frozen": int(member.id in fold.forked),
        }
        if member.id != me:
            numbers["connected"] = int(member.id in linked)
        found[member.name if member.name not in found else f"{member.name} {member.id[:8]}"] = numbers
    return found


def _behind(feed: Mapping[str, Any]) -> int:
    return max(0, int(feed.get("known", 0)) - int(feed.get("size", 0)))


def _numbers(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if isinstance(value, int | float) and name != "pid"}


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | tuple | dict) else 0


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
