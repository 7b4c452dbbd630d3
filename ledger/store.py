"""All feeds that this node holds, in one SQLite file: append to one's own, take verified pages of others, read.

`append` is the commit point: entry, body, tree nodes, signed head and the caller's state rows stand in one transaction, and
nothing is announced before it returns. Foreign pages are verified whole before any of it is written. The store knows neither
the meaning of events (but which bodies may be erased) nor the network. Invariant: for every feed, the stored entries are one
signed hash chain from 0, and the stored nodes are its tree. One process writes (a lock file says who); threads may share it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sqlite_utils import Database

from ledger import checkpoint, entry, forks, pages, tree
from ledger.checkpoint import Head
from ledger.entry import Record, Seen
from ledger.errors import BadChain, EraseUnfinished, FeedBehind, FeedFrozen, ForkSeen, StoreBroken, StoreFull
from ledger.forks import Fork
from ledger.reading import LEAVES, Reader, StoredHead, StoredRow, head_of
from ledger.schema import ERASABLE, ProcessLock, connect, guard, guarded
from ledger.tree import Tree
from protocol import keys
from protocol.canon import Json
from protocol.errors import Malformed
from protocol.ids import ZERO, CollectiveId, Digest, MemberId
from protocol.merkle import Frontier, Row, root_at

__all__ = ["Draft", "Store", "StoredHead", "StoredRow"]

_UNFINISHED = "erase.unfinished"  # state: bodies were deleted, and the file was not written anew since


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An event that is not signed yet."""

    type: str
    body: Json
    salt: bytes
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """Where a feed goes on: its row id, its tree, the leaf of its last entry, and the largest size signed for it."""

    feed: int
    frontier: Frontier
    leaf: Digest
    signed: int


class Store(Reader):
    """The ledger file of one home; see the module's text. Use `Store.open`."""

    def __init__(self, database: Database, lock: ProcessLock | None) -> None:
        """Wrap an open database; `lock` is None for a reader."""
        super().__init__(database)
        self._process_lock = lock
        self._edges: dict[tuple[CollectiveId, MemberId], _Edge] = {}

    @classmethod
    def open(cls, path: Path, *, writer: bool = True) -> Store:
        """Open the ledger; a writer creates it when missing and keeps every other writer out.

        Raises:
            StoreLocked: another process (or store) is the writer.
            StoreBroken, StoreFull: the file cannot be used.
        """
        lock = ProcessLock(path.with_name(path.name + ".lock")) if writer else None
        try:
            return cls(connect(path, writer=writer), lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def close(self) -> None:
        """Close the file and give up the writer's place."""
        with self._lock:
            self._database.close()
            if self._process_lock is not None:
                self._process_lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put_state(self, key: str, value: bytes) -> None:
        """Store a blob under `key`, replacing what was there."""
        with self._writing(f"store state {key}") as write:
            _put_state(write, {key: value})

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
        """Sign and store the next event of one's own feed, its new head and `state`, all or nothing.

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
        """Like `append` for several events in one transaction and under one head; all are in memory at once.

        Raises:
            Malformed: there is no event; and everything that `append` raises, for the same reasons.
        """
        if not drafts:
            raise Malformed("couldn't append: no event was given")
        member = keys.member_id(key)
        with self._writing(f"append {drafts[0].type}") as write:
            edge = self._edge(collective, member) or self._begin(collective, member)
            self._refuse_behind(member, edge)
            frontier, leaf, records = edge.frontier.copy(), edge.leaf, list[Record]()
            for seq, draft in enumerate(drafts, frontier.size):
                record = entry.make(
                    key,
                    collective=collective,
                    seq=seq,
                    prev=leaf,
                    ts=now_ms,
                    type=draft.type,
                    seen=draft.seen,
                    body=draft.body,
                    salt=draft.salt,
                )
                leaf = record.entry.leaf
                records.append(record)
            nodes = frontier.extend([bytes.fromhex(record.entry.leaf) for record in records])
            head = checkpoint.make(key, collective, member, frontier.size, Digest(frontier.root().hex()))
            _put_records(write, edge.feed, records, nodes)
            _put_head(write, edge.feed, head)
            _put_state(write, state or {})
        self._edges[collective, member] = _Edge(feed=edge.feed, frontier=frontier, leaf=leaf, signed=frontier.size)
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
            with self._writing(f"store page of {member[:12]}") as write:
                edge = self._edge(collective, member) or self._begin(collective, member)
                known_head = self._check_head(edge, head)
                fresh, frontier, nodes = pages.follow(self._held(collective, member, edge, len(records), head), records)
                _put_records(write, edge.feed, fresh, nodes)
                if head is not None and not known_head:
                    _put_head(write, edge.feed, head)
        except ForkSeen as seen:
            self._freeze(seen.fork)
            raise
        self._edges[collective, member] = _Edge(
            feed=edge.feed,
            frontier=frontier,
            leaf=fresh[-1].entry.leaf if fresh else edge.leaf,
            signed=max(edge.signed, head.size if head else 0),
        )
        return fresh

    def erase_bodies(
        self, collective: CollectiveId, events: Iterable[tuple[MemberId, int]], *, vacuum: bool = False
    ) -> int:
        """Delete the bodies and salts of entries (member, seq) for ever, and their bytes from file and log; how many went.

        Only types in `schema.ERASABLE` have such bodies; the lines stay, so every chain still verifies. `vacuum` rewrites the
        whole file too: without it, remains of rows that were once moved between pages may be left in free space.

        Raises:
            Malformed: an entry is not here, or its body may never be erased; nothing was erased.
            EraseUnfinished: the bodies are deleted, but a program that reads the ledger holds on to the log, or there is no
                room to write the file anew: call again, after a restart too.
            StoreFull, StoreBusy, StoreBroken: as for every write.
        """
        with self._lock:
            with self._writing("erase bodies") as write:
                gone = sum(self._erase(write, collective, member, seq) for member, seq in events)
                if gone and vacuum:
                    _put_state(write, {_UNFINISHED: b"1"})  # a stop before the rewriting must not make us forget it
            try:
                with guard("erase bodies", self._lock_file):
                    if vacuum or self.get_state(_UNFINISHED):
                        self._vacuum()
                        self.put_state(_UNFINISHED, b"")
                    busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except StoreFull as e:
                raise EraseUnfinished(
                    "couldn't erase bodies from the raw file: the disk is full (for a moment there must be room for a second"
                    " copy of the ledger); free some space and erase again"
                ) from e
        if busy:
            raise EraseUnfinished(
                "couldn't erase bodies from the raw file: another program reads the ledger; close it and erase again"
            )
        return gone

    def add_fork(self, fork: Fork) -> None:
        """Take a proof that somebody else found, and freeze the feed.

        Raises:
            Malformed, BadKey, BadSignature: it proves nothing.
        """
        feed = self._feed(fork.collective, fork.member)
        known = () if feed is None or fork.kind != "root" else self._rows(LEAVES, feed, 0, fork.at)
        forks.verify(fork, [row[0] for row in known])
        self._freeze(fork)

    @contextlib.contextmanager
    def _writing(self, verb: str) -> Iterator[sqlite3.Connection]:
        if self._process_lock is None:
            raise StoreBroken(f"couldn't {verb}: the ledger is open for reading only")
        with self._lock, guard(verb, self._lock_file):
            # At once, not at the first write: a transaction that has read cannot wait for another program's short lock.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @property
    def _lock_file(self) -> Path | None:
        return self._process_lock.path if self._process_lock else None

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
        frontier = self._frontier(feed)
        signed = self._rows("SELECT size, root FROM heads WHERE feed = ? ORDER BY size DESC LIMIT 1", feed)
        if signed and signed[0] != (frontier.size, frontier.root()) and signed[0][0] == frontier.size:
            raise StoreBroken(
                f"couldn't extend feed of {member[:12]}: its stored tree has not the root that was signed for size"
                f" {frontier.size}; run the audit"
            )
        leaf = self._leaf(feed, frontier.size - 1) if frontier.size else ZERO
        edge = _Edge(feed=feed, frontier=frontier, leaf=leaf, signed=signed[0][0] if signed else 0)
        self._edges[collective, member] = edge
        return edge

    def _begin(self, collective: CollectiveId, member: MemberId) -> _Edge:
        """The edge of a feed that is new here; it is remembered only once the transaction is through."""
        made = self._connection.execute("INSERT INTO feeds (collective, member) VALUES (?, ?)", (collective, member))
        return _Edge(feed=int(made.lastrowid or 0), frontier=Frontier(), leaf=ZERO, signed=0)

    def _refuse_behind(self, member: MemberId, edge: _Edge) -> None:
        size = edge.frontier.size
        if edge.signed > size:
            raise FeedBehind(
                f"couldn't append entry {size}: {edge.signed} entries of this feed were signed before; fetch them first"
            )

    def _held(
        self, collective: CollectiveId, member: MemberId, edge: _Edge, page: int, head: Head | None
    ) -> pages.Held:
        size = edge.frontier.size
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
            frontier=edge.frontier,
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
        if head.size <= edge.frontier.size:
            root = root_at(head.size, Tree(self._rows, edge.feed).nodes)
            if root.hex() != head.root:
                raise pages.root_fork(head, [self._line(edge.feed, head.size - 1)])
        return False

    def _freeze(self, fork: Fork) -> None:
        try:
            with self._writing(f"freeze feed of {fork.member[:12]}") as write:
                edge = self._edge(fork.collective, fork.member) or self._begin(fork.collective, fork.member)
                write.execute("INSERT INTO forks VALUES (?, ?)", (edge.feed, forks.encode(fork)))
        except FeedFrozen:
            return  # one proof is enough
        self._edges.pop((fork.collective, fork.member), None)

    def _erase(self, write: sqlite3.Connection, collective: CollectiveId, member: MemberId, seq: int) -> int:
        feed = self._feed(collective, member)
        if feed is None or not self._rows("SELECT 1 FROM entries WHERE feed = ? AND seq = ?", feed, seq):
            raise Malformed(f"couldn't erase body of entry {seq} of {member[:12]}: the entry is not here")
        if self._rows("SELECT 1 FROM erased WHERE feed = ? AND seq = ?", feed, seq):
            return 0
        kind = entry.parse_stored(self._line(feed, seq)).header.type
        if kind not in ERASABLE:
            raise Malformed(f"couldn't erase body of entry {seq} of {member[:12]}: bodies of {kind} are kept for ever")
        write.execute("INSERT INTO erased VALUES (?, ?)", (feed, seq))
        guarded(self._connection, erasing=True)
        try:
            return write.execute("DELETE FROM bodies WHERE feed = ? AND seq = ?", (feed, seq)).rowcount
        finally:
            guarded(self._connection)

    def _vacuum(self) -> None:
        """Write the file anew; for that moment the authorizer steps aside, because VACUUM attaches and creates."""
        self._connection.set_authorizer(None)
        try:
            self._connection.execute("VACUUM")
        finally:
            guarded(self._connection)


def _put_records(write: sqlite3.Connection, feed: int, records: Sequence[Record], nodes: Iterable[Row]) -> None:
    write.executemany(
        "INSERT INTO entries VALUES (?, ?, ?, ?)",
        [(feed, r.entry.header.seq, r.entry.line, bytes.fromhex(r.entry.leaf)) for r in records],
    )
    bodies = [(feed, r.entry.header.seq, r.body.salt, r.body.data) for r in records if r.body is not None]
    for sql, rows in (("INSERT INTO bodies VALUES (?, ?, ?, ?)", bodies), (tree.INSERT, tree.rows(feed, nodes))):
        if rows:
            write.executemany(sql, rows)


def _put_head(write: sqlite3.Connection, feed: int, head: Head) -> None:
    row = (feed, head.size, bytes.fromhex(head.root), head.signature)
    write.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", row)


def _put_state(write: sqlite3.Connection, state: Mapping[str, bytes]) -> None:
    if state:
        write.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", state.items())
