"""Everything that a ledger file holds of one collective, read once for whoever asks about it without a running node.

Knows no blob and no rule of a release. With `verify`, bytes, hashes and signatures are checked first and a feed is followed up
to its first fault; without it the file is trusted as its own node trusts it. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger import audit
from ledger.collective import Collective
from ledger.entry import Header
from ledger.store import Store
from node.errors import NoCollective, NotAllowed
from protocol.ids import CollectiveId, MemberId

_PAGE = 256
_OF_HEADS = frozenset({"bad-head", "tail-missing", "root-mismatch", "bad-proof", "fork", "node-mismatch"})
"""Faults that leave the entries standing by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The fold over the feeds, the header of every entry, and what was wrong (only when it was looked for)."""

    fold: Collective
    headers: Mapping[MemberId, tuple[Header, ...]]
    faults: tuple[audit.Finding, ...] = ()

    @property
    def entries(self) -> int:
        """How many entries were read."""
        return sum(len(each) for each in self.headers.values())


def read(store: Store, collective: CollectiveId, *, verify: bool = False) -> Record:
    """Read every feed of a collective (raises what the store raises)."""
    faults = tuple(f for f in audit.integrity(store, collective) if f.code not in audit.NOTICES) if verify else ()
    fold, headers = Collective(collective), dict[MemberId, tuple[Header, ...]]()
    for member in store.members(collective):
        places = [f.seq for f in faults if f.member == member and f.code not in _OF_HEADS]
        end = min((seq for seq in places if seq is not None), default=None)
        found: list[Header] = []
        while page := store.records(collective, member, len(found), _limit(len(found), end)):
            fold.apply_all(page)
            found += (record.entry.header for record in page)
        headers[member] = tuple(found)
    return Record(fold=fold, headers=headers, faults=faults)


def only_collective(ledger_db: Path) -> CollectiveId:
    """The collective of a folder that says nothing else.

    Raises:
        NoCollective, NotAllowed: it holds none, or several.
        StoreBroken: there is no ledger to read.
    """
    with Store.open(ledger_db, writer=False) as store:
        found = store.collectives()
    if not found:
        raise NoCollective(f"couldn't read {ledger_db}: it holds the feeds of no collective")
    if len(found) > 1:
        listed = ", ".join(each[:12] for each in found)
        raise NotAllowed(f"couldn't choose a collective: {ledger_db} holds {listed}", hint="--collective ID")
    return found[0]


def _limit(size: int, end: int | None) -> int:
    return _PAGE if end is None else max(0, min(_PAGE, end - size))
