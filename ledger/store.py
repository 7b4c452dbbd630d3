"""All feeds that this node holds, in one SQLite file: append to one's own, take verified pages of others, read.

`append` is the commit point: entry, body, what they complete of the tree and the caller's state rows stand in one transaction,
and nothing is announced before it returns. The head of one's own feed is signed when somebody asks for it (`heads`), after 256
entries, or at the end, and is stored before it is handed out; a stop before that loses nothing, as the entries give the same
head again. Foreign pages are verified whole before any of it is written. The store knows neither the meaning of events nor the
network. Invariant: for every feed, the stored entries are one signed hash chain from 0, and the stored tree is theirs. One
process writes (a lock file says who); threads may share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlite_utils import Database

from ledger import checkpoint, entry, forks, pages, tree
from ledger.changes import Changes
from ledger.checkpoint import Head
from ledger.entry import Record, Seen
from ledger.errors import BadChain, FeedBehind, FeedFrozen, ForkSeen, StoreBroken, StoreBusy, StoreFull
from ledger.forks import Fork
from ledger.log_room import LogRoom
from ledger.reading import StoredHead, StoredRow, head_of
from ledger.schema import ProcessLock
from ledger.tree import GrowingTree, Grown, Tree, place_of
from ledger.writing import STATE, Rows, Writer
from protocol import keys
from protocol.canon import Json
from protocol.errors import FishernetError, Malformed
from protocol.ids import ZERO, CollectiveId, Digest, MemberId
from protocol.merkle import root_at

__all__ = ["Draft", "Store", "StoredHead", "StoredRow"]

HEAD_EVERY: Final = 256  # entries of one's own feed that may be without a signed head
_ENTRY: Final = "INSERT INTO entries (place, line, leaf, salt, data) VALUES (?, ?, ?, ?, ?)"
_FEED: Final = "INSERT INTO feeds VALUES (?, ?, ?)"
_HEAD: Final = "INSERT INTO heads VALUES (?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An event that is not signed yet."""

    type: str
    body: Json
    salt: bytes
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """Where a feed goes on: its row id, its tree, the leaf of its last entry, and the largest size signed for it.

    `name` is the row of a feed that is new here, to be written with its first entry.
    """

    feed: int
    tree: GrowingTree
    leaf: Digest
    signed: int
    name: tuple[int, CollectiveId, MemberId] | None = None


class Store(Writer):
    """The ledger file of one home; see the module's text. Use `Store.open`."""

    def __init__(self, database: Database, lock: ProcessLock | None, log: LogRoom | None) -> None:
        """Wrap an open database; `lock` and `log` are None for a reader."""
        super().__init__(database, lock, log)
        self._edges: dict[tuple[CollectiveId, MemberId], _Edge] = {}
        self._keys: dict[tuple[CollectiveId, MemberId], keys.SigningKey] = {}
        self._changes = Changes()

    def close(self) -> None:
        """Sign the heads that are still unsigned, close the file and give up the writer's place."""
        with self._lock:
            with contextlib.suppress(FishernetError):  # no room, or damaged: the next start signs it, or says so
                self._sign_heads()
            self._keys.clear()
            super().close()

    def sign_with(self, key: keys.SigningKey, collective: CollectiveId) -> None:
        """Sign the heads of this key's feed when they are asked for, as after an append; nothing is signed yet."""
        self._keys[collective, keys.member_id(key)] = key

    def heads(self, collective: CollectiveId, member: MemberId | None = None) -> list[Head]:
        """The largest signed head held of each feed (of one `member`, if given); it may be ahead of the entries.

        The head of a feed that was appended to is signed now, and stored before it is returned. When the disk is full, or
        another program writes, the one before it is returned, which is as true.
        """
        with contextlib.suppress(StoreFull, StoreBusy):
            self._sign_heads(collective, member)
        return super().heads(collective, member)

    def length(self, collective: CollectiveId, member: MemberId) -> int:
        """How many entries of a feed are here; from memory when it was written to in this opening."""
        edge = self._edges.get((collective, member))  # without the lock: it is held while the disk is waited for
        if edge is not None:
            return edge.tree.size
        head = self.head(collective, member)
        return 0 if head is None else head.size

    def changes(self, collective: CollectiveId, since: int = 0) -> tuple[list[tuple[MemberId, int]], int]:
        """The feeds written to after change number `since` with the number of the last change, ascending; and the newest one.

        Numbers start at 0 each time the ledger is opened; what was there before is no change.
        """
        return self._changes.since(collective, since)

    def append(
        self,
        key: keys.SigningKey,
        collective: CollectiveId,
        type: str,
        body: Json,
        *,
        now_ms: int,
        salt: bytes,
        seen: Iterable[Seen] = (),
        state: Mapping[str, bytes] | None = None,
    ) -> Record:
        """Sign and store the next event of one's own feed and `state`, all or nothing; the store keeps the key to sign heads.

        Raises:
            Malformed, TooLarge: a field is outside the format.
            FeedFrozen: this feed was proven forked.
            FeedBehind: we hold a head of our own feed beyond our entries: fetch them first.
            StoreFull, StoreBusy, StoreBroken: nothing was written.
        """
        draft = Draft(type=type, body=body, salt=salt, seen=tuple(seen))
        return self.append_all(key, collective, [draft], now_ms=now_ms, state=state)[0]

    def append_all(
        self,
        key: keys.SigningKey,
        collective: CollectiveId,
        drafts: Sequence[Draft],
        *,
        now_ms: int,
        state: Mapping[str, bytes] | None = None,
    ) -> list[Record]:
        """Like `append` for several events in one transaction; all are in memory at once.

        Raises:
            Malformed: there is no event; and everything that `append` raises, for the same reasons.
        """
        if not drafts:
            raise Malformed("couldn't append: no event was given")
        member = keys.member_id(key)
        with self._lock:
            edge = self._edge(collective, member) or self._new(collective, member)
            seq, leaf, records = edge.tree.size, edge.leaf, list[Record]()
            if edge.signed > seq:
                raise FeedBehind(
                    f"couldn't append entry {seq}: {edge.signed} entries of this feed were signed before; fetch them first"
                )
            for number, draft in enumerate(drafts, seq):
                record = entry.make(
                    key,
                    collective=collective,
                    seq=number,
                    prev=leaf,
                    ts=now_ms,
                    type=draft.type,
                    seen=draft.seen,
                    body=draft.body,
                    salt=draft.salt,
                )
                leaf = record.entry.leaf
                records.append(record)
            growing = edge.tree.copy()
            grown = growing.extend([bytes.fromhex(record.entry.leaf) for record in records])
            rows, signed = _rows_of(edge, records, grown), edge.signed
            if growing.size - signed >= HEAD_EVERY:
                rows.append((_HEAD, [_head_row(edge.feed, _sign(key, collective, member, growing))]))
                signed = growing.size
            if state:
                rows.append((STATE, list(state.items())))
            self._write(f"append {drafts[0].type}", rows)
            self._keys[collective, member] = key
            self._remember(collective, member, _Edge(feed=edge.feed, tree=growing, leaf=leaf, signed=signed))
            self._changes.note(collective, member)
        return records

    def append_foreign(
        self, collective: CollectiveId, member: MemberId, records: Sequence[Record], note: bytes | None
    ) -> list[Record]:
        """Verify a page of a feed and a signed head, store what is new of both, and return the new records.

        Entries we hold already may be repeated. The head may lie beyond the page; its root is checked when the entries
        arrive. Our own feed comes back this way too, after a restore from backup.

        Raises:
            Refused kinds of `pages.read` and `pages.follow`, BadChain, FeedFrozen: nothing was stored.
            ForkSeen: its proof was stored, and the feed is frozen from now on.
            StoreFull, StoreBusy, StoreBroken: nothing was written.
        """
        head = None if note is None else checkpoint.parse(note)
        if head is not None and (head.collective, head.member) != (collective, member):
            raise BadChain(f"couldn't take page of {member[:12]}: the head is that of another feed")
        try:
            pages.read(collective, member, records)
            with self._lock:
                edge = self._edge(collective, member) or self._new(collective, member)
                known_head = self._check_head(edge, head)
                fresh, growing, grown = pages.follow(self._held(collective, member, edge, len(records), head), records)
                rows = _rows_of(edge, fresh, grown)
                if head is not None and not known_head:
                    rows.append((_HEAD, [_head_row(edge.feed, head)]))
                self._write(f"store page of {member[:12]}", rows)
                leaf = fresh[-1].entry.leaf if fresh else edge.leaf
                signed = max(edge.signed, head.size if head else 0)
                self._remember(collective, member, _Edge(feed=edge.feed, tree=growing, leaf=leaf, signed=signed))
                if fresh or signed > edge.signed:
                    self._changes.note(collective, member)
        except ForkSeen as seen:
            self._freeze(seen.fork)
            raise
        return fresh

    def add_fork(self, fork: Fork) -> None:
        """Take a proof that somebody else found, and freeze the feed.

        Raises:
            Malformed, BadKey, BadSignature: it proves nothing.
        """
        feed = self._feed(fork.collective, fork.member)
        known = [] if feed is None or fork.kind != "root" else Tree(self._rows, feed).leaves(0, fork.at)
        forks.verify(fork, known)
        self._freeze(fork)

    def _remember(self, collective: CollectiveId, member: MemberId, edge: _Edge) -> None:
        self._edges[collective, member] = edge
        self._trees[edge.feed] = edge.tree

    def _sign_heads(self, collective: CollectiveId | None = None, member: MemberId | None = None) -> None:
        """Sign and store the heads of feeds that this store has the key of and that have grown (of all, or as named)."""
        for (where, who), key in list(self._keys.items()):
            if collective not in {None, where} or member not in {None, who}:
                continue
            with self._lock, contextlib.suppress(FeedFrozen):
                edge = self._edge(where, who)
                if edge is not None and edge.signed < edge.tree.size:
                    head = _sign(key, where, who, edge.tree)
                    self._write(f"sign head of {who[:12]}", [(_HEAD, [_head_row(edge.feed, head)])])
                    self._edges[where, who] = replace(edge, signed=head.size)
                    self._changes.note(where, who)

    def _edge(self, collective: CollectiveId, member: MemberId) -> _Edge | None:
        """Where a feed goes on, read once; None when nothing of it is here.

        Raises:
            FeedFrozen: it goes on nowhere.
            StoreBroken: the stored tree is not the one that was signed.
        """
        if known := self._edges.get((collective, member)):
            return known
        feed = self._feed(collective, member)
        if feed is None:
            return None
        if self._rows("SELECT 1 FROM forks WHERE feed = ?", feed):
            raise FeedFrozen(f"couldn't extend feed of {member[:12]}: it was proven forked")
        growing = GrowingTree.stored(Tree(self._rows, feed))
        size, signed = growing.size, 0
        for signed, root in self._rows("SELECT size, root FROM heads WHERE feed = ? ORDER BY size DESC LIMIT 1", feed):
            held = growing.root() if signed == size else root if signed > size else self._root_at(feed, signed)
            if held != root:
                raise StoreBroken(
                    f"couldn't extend feed of {member[:12]}: its stored tree has not the root that was signed for size"
                    f" {signed}; run the audit"
                )
        leaf = self._leaf(feed, size - 1) if size else ZERO
        self._remember(collective, member, _Edge(feed=feed, tree=growing, leaf=leaf, signed=signed))
        return self._edges[collective, member]

    def _new(self, collective: CollectiveId, member: MemberId) -> _Edge:
        """The edge of a feed that is new here; it is remembered only once it is written."""
        feed = int(self._rows("SELECT coalesce(max(id), 0) + 1 FROM feeds")[0][0])
        return _Edge(feed=feed, tree=GrowingTree(), leaf=ZERO, signed=0, name=(feed, collective, member))

    def _root_at(self, feed: int, size: int) -> bytes:
        return root_at(size, Tree(self._rows, feed).nodes)

    def _held(
        self, collective: CollectiveId, member: MemberId, edge: _Edge, page: int, head: Head | None
    ) -> pages.Held:
        size = edge.tree.size
        ahead = self._rows(
            "SELECT member, size, root, signature FROM heads JOIN feeds ON id = feed WHERE feed = ? AND size > ? AND size <= ?",
            edge.feed,
            size,
            size + page,
        )
        heads = {item.size: item for item in (head_of(collective, *row) for row in ahead)}
        if head is not None:
            heads[head.size] = head
        return pages.Held(
            collective=collective,
            member=member,
            tree=edge.tree,
            line=lambda seq: self._line(edge.feed, seq),
            heads=heads,
        )

    def _check_head(self, edge: _Edge, head: Head | None) -> bool:
        """Whether `head` is stored already; one that contradicts what we hold is a fork."""
        if head is None:
            return False
        found = self._rows("SELECT root, signature FROM heads WHERE feed = ? AND size = ?", edge.feed, head.size)
        if found:
            known = head_of(head.collective, head.member, head.size, *found[0])
            if known.root != head.root:
                raise pages.heads_fork(known, head)
            return True
        if head.size <= edge.tree.size and self._root_at(edge.feed, head.size).hex() != head.root:
            raise pages.root_fork(head, [self._line(edge.feed, head.size - 1)])
        return False

    def _freeze(self, fork: Fork) -> None:
        try:
            with self._lock:
                edge = self._edge(fork.collective, fork.member) or self._new(fork.collective, fork.member)
                proof: Rows = [("INSERT INTO forks VALUES (?, ?)", [(edge.feed, forks.encode(fork))])]
                self._write(f"freeze feed of {fork.member[:12]}", [*_rows_of(edge, (), Grown([], [])), *proof])
        except FeedFrozen:
            return  # one proof is enough
        self._edges.pop((fork.collective, fork.member), None)


def _sign(key: keys.SigningKey, collective: CollectiveId, member: MemberId, growing: GrowingTree) -> Head:
    return checkpoint.make(key, collective, member, growing.size, Digest(growing.root().hex()))


def _rows_of(edge: _Edge, records: Sequence[Record], grown: Grown) -> Rows:
    """What to write for new entries and what they complete; for a feed that is new here its name before."""
    rows: Rows = [] if edge.name is None else [(_FEED, [edge.name])]
    if records:
        first = place_of(edge.feed, records[0].entry.header.seq)
        rows.append((_ENTRY, [_entry_row(place, record) for place, record in enumerate(records, first)]))
    if grown.tiles:
        rows.append((tree.INSERT_TILE, tree.tile_rows(edge.feed, grown.tiles)))
        rows.append((tree.INSERT_NODE, tree.node_rows(edge.feed, grown.nodes)))
    return rows


def _entry_row(place: int, record: Record) -> tuple[int, bytes, bytes, bytes | None, bytes | None]:
    made, body = record.entry, record.body
    salt, data = (None, None) if body is None else (body.salt, body.data)
    return place, made.line, bytes.fromhex(made.leaf), salt, data


def _head_row(feed: int, head: Head) -> tuple[int, int, bytes, bytes]:
    return feed, head.size, bytes.fromhex(head.root), head.signature
