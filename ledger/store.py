"""All feeds that this node holds, in one SQLite file: append to one's own, take verified pages of others, read.

`append` is the commit point: entry, body, signed head and the caller's state rows stand in one transaction, and nothing
is announced before it returns. Foreign pages are verified whole before any of it is written. The store knows neither the
meaning of events nor the network. Invariant: for every feed, the stored entries are one signed hash chain from 0.
One process writes (a lock file says who); threads may share a store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sqlite_utils import Database

from ledger import checkpoint, entry, forks, pages
from ledger.checkpoint import Head
from ledger.entry import Record, Seen
from ledger.errors import BadChain, FeedBehind, FeedFrozen, ForkSeen, StoreBroken
from ledger.forks import Fork
from ledger.reading import LEAVES, Reader, StoredHead, StoredRow, head_of
from ledger.schema import ProcessLock, connect, guard
from protocol import keys
from protocol.canon import Json
from protocol.ids import ZERO, CollectiveId, Digest, MemberId
from protocol.merkle import Frontier

__all__ = ["Store", "StoredHead", "StoredRow"]


class Store(Reader):
    """The ledger file of one home; see the module's text. Use `Store.open`."""

    def __init__(self, database: Database, lock: ProcessLock | None) -> None:
        """Wrap an open database; `lock` is None for a reader."""
        super().__init__(database)
        self._process_lock = lock

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
        with self._writing(f"store state {key}") as database:
            _put_state(database, {key: value})

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
            StoreFull, StoreBroken: nothing was written.
        """
        member = keys.member_id(key)
        with self._writing(f"append {type}") as database:
            feed = self._open_feed(collective, member)
            tree = self._tree(feed).copy()
            self._refuse_behind(feed, tree.size)
            prev = self._leaf(feed, tree.size - 1) if tree.size else ZERO
            record = entry.make(
                key,
                collective=collective,
                seq=tree.size,
                prev=prev,
                ts=now_ms,
                type=type,
                seen=seen,
                body=body,
                salt=salt,
            )
            tree.append(bytes.fromhex(record.entry.leaf))
            head = checkpoint.make(key, collective, member, tree.size, Digest(tree.root().hex()))
            _put_records(database, feed, [record])
            _put_head(database, feed, head)
            _put_state(database, state or {})
        self._trees[feed] = tree
        return record

    def append_foreign(
        self, collective: CollectiveId, member: MemberId, records: Sequence[Record], note: bytes | None
    ) -> list[Record]:
        """Verify a page of a feed and a signed head, store what is new of both, and return the new records.

        Entries we hold already may be repeated. The head may lie beyond the page; its root is checked when the entries
        arrive. Our own feed comes back this way too, after a restore from backup.

        Raises:
            Refused kinds of `pages.read` and `pages.follow`, BadChain, FeedFrozen: nothing was stored.
            ForkSeen: its proof was stored, and the feed is frozen from now on.
            StoreFull, StoreBroken: nothing was written.
        """
        head = None if note is None else checkpoint.parse(note)
        if head is not None and (head.collective, head.member) != (collective, member):
            raise BadChain(f"couldn't take page of {member[:12]}: the head is that of another feed")
        try:
            pages.read(collective, member, records)
            with self._writing(f"store page of {member[:12]}") as database:
                feed = self._open_feed(collective, member)
                known_head = self._check_head(feed, head)
                fresh, tree = pages.follow(self._held(collective, member, feed, len(records), head), records)
                _put_records(database, feed, fresh)
                if head is not None and not known_head:
                    _put_head(database, feed, head)
        except ForkSeen as seen:
            self._freeze(seen.fork)
            raise
        self._trees[feed] = tree
        return fresh

    def add_fork(self, fork: Fork) -> None:
        """Take a proof that somebody else found, and freeze the feed.

        Raises:
            Malformed, BadKey, BadSignature: it proves nothing.
        """
        feed = self._feed(fork.collective, fork.member)
        leaves = [] if feed is None else [row[0] for row in self._rows(LEAVES, feed, 0, fork.at)]
        forks.verify(fork, leaves)
        self._freeze(fork)

    @contextlib.contextmanager
    def _writing(self, verb: str) -> Iterator[Database]:
        if self._process_lock is None:
            raise StoreBroken(f"couldn't {verb}: the ledger is open for reading only")
        with self._lock, guard(verb), self._database.atomic() as database:
            yield database

    def _open_feed(self, collective: CollectiveId, member: MemberId) -> int:
        feed = self._feed(collective, member)
        if feed is None:
            self._database.table("feeds").insert({"collective": collective, "member": member})
            return int(self._rows("SELECT max(id) FROM feeds")[0][0])
        if self._rows("SELECT 1 FROM forks WHERE feed = ?", feed):
            raise FeedFrozen(f"couldn't extend feed of {member[:12]}: it was proven forked")
        return feed

    def _refuse_behind(self, feed: int, size: int) -> None:
        ahead = self._rows("SELECT max(size) FROM heads WHERE feed = ?", feed)[0][0]
        if ahead is not None and ahead > size:
            raise FeedBehind(
                f"couldn't append entry {size}: {ahead} entries of this feed were signed before; fetch them first"
            )

    def _held(self, collective: CollectiveId, member: MemberId, feed: int, page: int, head: Head | None) -> pages.Held:
        tree = self._tree(feed)
        ahead = self._rows(
            "SELECT member, size, root, signature FROM heads JOIN feeds ON id = feed WHERE feed = ? AND size > ? AND size <= ?",
            feed,
            tree.size,
            tree.size + page,
        )
        heads = {item.size: item for item in (head_of(collective, *row) for row in ahead)}
        if head is not None:
            heads[head.size] = head
        return pages.Held(
            collective=collective, member=member, frontier=tree, line=lambda seq: self._line(feed, seq), heads=heads
        )

    def _check_head(self, feed: int, head: Head | None) -> bool:
        """Whether `head` is stored already; one that contradicts what we hold is a fork."""
        if head is None:
            return False
        found = self._rows("SELECT root, signature FROM heads WHERE feed = ? AND size = ?", feed, head.size)
        if found:
            known = head_of(head.collective, head.member, head.size, *found[0])
            if known.root != head.root:
                raise pages.heads_fork(known, head)
            return True
        if head.size <= self._tree(feed).size:
            tree = Frontier()
            for (leaf,) in self._rows(LEAVES, feed, 0, head.size):
                tree.append(leaf)
            if tree.root().hex() != head.root:
                raise pages.root_fork(head, [self._line(feed, head.size - 1)])
        return False

    def _freeze(self, fork: Fork) -> None:
        try:
            with self._writing(f"freeze feed of {fork.member[:12]}") as database:
                feed = self._open_feed(fork.collective, fork.member)
                database.table("forks").insert({"feed": feed, "proof": forks.encode(fork)})
        except FeedFrozen:
            return  # one proof is enough


def _put_records(database: Database, feed: int, records: Sequence[Record]) -> None:
    database.table("entries").insert_all(
        {"feed": feed, "seq": r.entry.header.seq, "line": r.entry.line, "leaf": bytes.fromhex(r.entry.leaf)}
        for r in records
    )
    database.table("bodies").insert_all(
        {"feed": feed, "seq": r.entry.header.seq, "salt": r.body.salt, "data": r.body.data}
        for r in records
        if r.body is not None
    )


def _put_head(database: Database, feed: int, head: Head) -> None:
    row = {"feed": feed, "size": head.size, "root": bytes.fromhex(head.root), "signature": head.signature}
    database.table("heads").insert(row)


def _put_state(database: Database, state: Mapping[str, bytes]) -> None:
    database.table("state").insert_all(({"key": key, "value": value} for key, value in state.items()), replace=True)
