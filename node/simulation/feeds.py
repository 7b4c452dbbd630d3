"""What a simulated member keeps on its disk: feeds and blobs, in memory, with the surface that seats and rounds use.

The same bytes are verified once in a process and held once, however many members hold them; which of them a member holds
is its own. Invariants: an entry that a member holds has a valid signature and commitment, and follows the one before; two
histories of one feed are found by the same code as in the real store (`ledger.pages`). Heads are not signed here: an
announcement is counted with the bytes of a signed one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ledger import entry, pages
from ledger.checkpoint import Head
from ledger.entry import Record, Seen
from ledger.errors import BadChain, FeedFrozen, ForkSeen
from ledger.forks import Fork
from ledger.forks import verify as verify_fork
from ledger.store import Store
from ledger.tree import GrowingTree
from node.errors_network import BlobMissing, BlobTooLarge
from node.syncing.blobs import BlobStore
from protocol import keys
from protocol.canon import Json
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, digest

RECORD_BYTES = 12  # three lengths of 4 bytes around line, salt and data on the wire


class Archive:
    """What one process has verified: entries by event, blobs by digest."""

    def __init__(self) -> None:
        self.verified: dict[EventId, Record] = {}
        self.blobs: dict[Digest, bytes] = {}

    def admit(self, collective: CollectiveId, member: MemberId, records: Sequence[Record]) -> list[Record]:
        """The records, each checked once by `ledger.pages.read` (raises what that raises); the same bytes are one object."""
        taken: list[Record] = []
        for record in records:
            known = self.verified.get(record.entry.event)
            if known is None or not _same(known, record):
                pages.read(collective, member, [record])
                known = self.verified.setdefault(record.entry.event, record)
            taken.append(known if _same(known, record) else record)
        return taken


class MemoryStore(Store):
    """The ledger of one simulated member; survives the member's restart."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._feeds: dict[MemberId, list[Record]] = {}
        self._proofs: dict[MemberId, Fork] = {}
        self._states: dict[str, bytes] = {}
        self._lock = threading.RLock()

    # -- reading -------------------------------------------------------------------------------------------------------
    def members(self, collective: CollectiveId) -> list[MemberId]:
        """Every member of whose feed something is held, ascending."""
        return sorted({*self._feeds, *self._proofs})

    def size(self, member: MemberId) -> int:
        """How many entries of a feed are held."""
        return len(self._feeds.get(member, ()))

    def sizes(self) -> dict[MemberId, int]:
        """How many entries are held of each feed."""
        return {member: len(feed) for member, feed in self._feeds.items()}

    def records(self, collective: CollectiveId, member: MemberId, start: int = 0, limit: int = 256) -> list[Record]:
        """Entries of one feed from `start` on."""
        return self._feeds.get(member, [])[start : start + limit]

    def forks(self, collective: CollectiveId) -> list[Fork]:
        """Every proof of a fork, by member."""
        return [self._proofs[member] for member in sorted(self._proofs)]

    def heads(self, collective: CollectiveId, member: MemberId | None = None) -> list[Head]:
        """No head is signed in a simulation."""
        return []

    def get_state(self, key: str) -> bytes | None:
        """The caller's bytes under `key`."""
        return self._states.get(key)

    # -- writing -------------------------------------------------------------------------------------------------------
    def put_state(self, key: str, value: bytes) -> None:
        """Store bytes under `key`."""
        self._states[key] = value

    def sign_with(self, key: keys.SigningKey, collective: CollectiveId) -> None:
        """Nothing to keep: heads are not signed here."""

    def close(self) -> None:
        """Nothing to close."""

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
        """Sign and hold the next event of one's own feed and `state` (raises Malformed, TooLarge, FeedFrozen)."""
        member = keys.member_id(key)
        feed = self._feeds.setdefault(member, [])
        if member in self._proofs:
            raise FeedFrozen(f"couldn't extend feed of {member[:12]}: it was proven forked")
        prev = feed[-1].entry.leaf if feed else ZERO
        record = entry.make(
            key,
            collective=collective,
            seq=len(feed),
            prev=prev,
            ts=now_ms,
            type=type,
            seen=seen,
            body=body,
            salt=salt,
        )
        self._archive.verified[record.entry.event] = record
        feed.append(record)
        self._states.update(state or {})
        return record

    def append_foreign(
        self, collective: CollectiveId, member: MemberId, records: Sequence[Record], note: bytes | None
    ) -> list[Record]:
        """Hold what is new of a page and return it (raises Refused kinds of `pages.read`, BadChain, FeedFrozen, ForkSeen)."""
        if member in self._proofs:
            raise FeedFrozen(f"couldn't extend feed of {member[:12]}: it was proven forked")
        feed = self._feeds.setdefault(member, [])
        taken = self._archive.admit(collective, member, records)
        fresh: list[Record] = []
        leaf = feed[-1].entry.leaf if feed else ZERO
        for record in taken:
            seq = record.entry.header.seq
            if seq < len(feed) and feed[seq] is record:
                continue
            if seq != len(feed) + len(fresh) or record.entry.header.prev != leaf:
                return self._disputed(collective, member, taken)
            fresh.append(record)
            leaf = record.entry.leaf
        feed.extend(fresh)
        return fresh

    def _disputed(self, collective: CollectiveId, member: MemberId, records: Sequence[Record]) -> list[Record]:
        """A gap or another history: the ledger's own judgement, over the feed that is held."""
        feed, tree = self._feeds[member], GrowingTree()
        tree.extend([bytes.fromhex(r.entry.leaf) for r in feed])
        held = pages.Held(
            collective=collective, member=member, tree=tree, line=lambda seq: feed[seq].entry.line, heads={}
        )
        try:
            pages.read(collective, member, records)
            fresh, _, _ = pages.follow(held, records)
        except ForkSeen as seen:
            self.add_fork(seen.fork)
            raise
        except BadChain:
            return []  # it starts beyond what is held: asked for again from there
        feed.extend(fresh)
        return fresh

    def add_fork(self, fork: Fork) -> None:
        """Keep a proof and freeze the feed (raises Malformed, BadKey, BadSignature)."""
        known = [bytes.fromhex(r.entry.leaf) for r in self._feeds.get(fork.member, ())][: fork.at]
        verify_fork(fork, known)
        self._proofs.setdefault(fork.member, fork)


class MemoryBlobs(BlobStore):
    """The blobs that one simulated member holds; their bytes are shared."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._held: set[Digest] = set()

    def path(self, name: Digest) -> Path:
        """There is no file."""
        raise BlobMissing(f"couldn't open blob {name[:12]}: a simulated member has no files")

    def has(self, name: Digest) -> bool:
        """Whether the blob is here."""
        return name in self._held

    def size(self, name: Digest) -> int | None:
        """Its bytes; None when it is not here."""
        return len(self._archive.blobs[name]) if name in self._held else None

    def digests(self) -> list[Digest]:
        """Every blob here, ascending."""
        return sorted(self._held)

    def put(self, data: bytes) -> Digest:
        """Hold `data` under its digest."""
        name = digest(data)
        self._archive.blobs.setdefault(name, data)
        self._held.add(name)
        return name

    def read(self, name: Digest, max_bytes: int) -> bytes:
        """The bytes of a blob (raises BlobMissing, BlobTooLarge)."""
        if name not in self._held:
            raise BlobMissing(f"couldn't read blob {name[:12]}: it is not here")
        data = self._archive.blobs[name]
        if len(data) > max_bytes:
            raise BlobTooLarge(f"couldn't read blob {name[:12]}: {len(data)} bytes, the limit is {max_bytes}")
        return data


def _same(known: Record, record: Record) -> bool:
    """Whether two records are one to the byte."""
    if known is record:
        return True
    mine, other = known.body, record.body
    if known.entry.line != record.entry.line or (mine is None) != (other is None):
        return False
    return mine is None or other is None or (mine.salt, mine.data) == (other.salt, other.data)


def wire_bytes(record: Record) -> int:
    """What an entry with its body costs in a page."""
    body = record.body
    return len(record.entry.line) + RECORD_BYTES + (0 if body is None else len(body.salt) + len(body.data))
