"""The ledger of a simulated node with signed heads, for simulations in which the node's own `Sync` does the asking.

As `MemoryStore`, and: heads are made by `ledger.checkpoint`, signed with the member's key when they are asked for, parsed and
verified when they come, and their root is compared with that of the entries. A root and a signature are computed once in a
process for the same bytes; the comparison is every node's own. Knows no network. Invariant: a head that a node holds carries
its member's signature, and where the entries are here it has their root.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

from ledger import checkpoint
from ledger.changes import Changes
from ledger.checkpoint import Head
from ledger.entry import Record, Seen
from ledger.errors import BadChain
from ledger.pages import heads_fork, root_fork
from ledger.reading import StoredHead
from ledger.tree import GrowingTree, Tree
from node.simulation.feeds import Archive, MemoryStore
from protocol import keys
from protocol.canon import Json
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.merkle import Place, root_of

_parse = functools.lru_cache(maxsize=1 << 16)(checkpoint.parse)


class Roots:
    """Roots of feeds by the leaf of their last entry, which stands for all before it; computed once in a process."""

    def __init__(self) -> None:
        self._trees: dict[Digest, GrowingTree] = {}  # newest leaf -> the tree up to it
        self._known: dict[Digest, Digest] = {}

    def of(self, feed: Sequence[Record], size: int) -> Digest:
        """The root of the first `size` entries."""
        last = feed[size - 1].entry
        found = self._known.get(last.leaf)
        if found is None:
            before = self._trees.pop(last.header.prev, None)
            tree = GrowingTree() if before is None else before
            tree.extend([bytes.fromhex(r.entry.leaf) for r in feed[tree.size : size]])
            found = self._known[last.leaf] = Digest(tree.root().hex())
            self._trees[last.leaf] = tree
        return found


class _Leaves(Tree):
    """The tree over some leaves, without a file."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._all = leaves

    def nodes(self, places: Sequence[Place]) -> list[bytes]:
        """The hashes at `places`."""
        return [root_of(self._all[index << level : (index + 1) << level]) for level, index in places]


class HeadedStore(MemoryStore):
    """A memory store that signs, checks and serves heads."""

    def __init__(self, archive: Archive, roots: Roots) -> None:
        super().__init__(archive)
        self._roots = roots
        self._signed: dict[MemberId, Head] = {}
        self._signing: dict[MemberId, keys.SigningKey] = {}
        self._changes = Changes()

    def copy_of(self, other: HeadedStore) -> None:
        """Hold what `other` holds."""
        self._feeds = {member: list(feed) for member, feed in other._feeds.items()}
        self._signed = dict(other._signed)

    def sign_with(self, key: keys.SigningKey, collective: CollectiveId) -> None:
        """Sign the heads of this key's feed when they are asked for."""
        self._signing[keys.member_id(key)] = key

    def length(self, collective: CollectiveId, member: MemberId) -> int:
        """How many entries of a feed are here."""
        return len(self._feeds.get(member, ()))

    def changes(self, collective: CollectiveId, since: int = 0) -> tuple[list[tuple[MemberId, int]], int]:
        """The feeds written to after change number `since`, with the number of the last change, ascending; and the newest."""
        return self._changes.since(collective, since)

    def tree(self, collective: CollectiveId, member: MemberId, *, remember: bool = False) -> Tree:
        """The tree of one feed, made from its leaves."""
        return _Leaves([bytes.fromhex(r.entry.leaf) for r in self._feeds.get(member, ())])

    def head(self, collective: CollectiveId, member: MemberId) -> StoredHead | None:
        """What the entries of a feed add up to; None without entries."""
        feed = self._feeds.get(member)
        if not feed:
            return None
        return StoredHead(size=len(feed), root=self._roots.of(feed, len(feed)), leaf=feed[-1].entry.leaf)

    def heads(self, collective: CollectiveId, member: MemberId | None = None) -> list[Head]:
        """The newest signed head of each feed (of one `member`, if given)."""
        for own, key in self._signing.items():
            size = len(self._feeds.get(own, ()))
            known = self._signed.get(own)
            if size and member in (None, own) and (known is None or known.size < size):
                root = self._roots.of(self._feeds[own], size)
                self._signed[own] = checkpoint.make(key, collective, own, size, root)
                self._changes.note(collective, own)
        if member is not None:
            return [self._signed[member]] if member in self._signed else []
        return [self._signed[each] for each in sorted(self._signed)]

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
        """As the memory store's; keeps the key to sign heads."""
        made = super().append(key, collective, type, body, now_ms=now_ms, salt=salt, seen=seen, state=state)
        self._signing[keys.member_id(key)] = key
        self._changes.note(collective, keys.member_id(key))
        return made

    def append_foreign(
        self, collective: CollectiveId, member: MemberId, records: Sequence[Record], note: bytes | None
    ) -> list[Record]:
        """As the memory store's; `note` is verified, and must have the root of the entries as far as they are here."""
        head = None if note is None else _parse(note)
        if head is not None and (head.collective, head.member) != (collective, member):
            raise BadChain(f"couldn't take page of {member[:12]}: the head is that of another feed")
        known = self._signed.get(member)
        if head is not None and known is not None and head.size == known.size and head.root != known.root:
            fork = heads_fork(known, head)
            self.add_fork(fork.fork)
            raise fork
        fresh = super().append_foreign(collective, member, records, note)
        for each in (known, head):
            self._check(member, each)
        if head is not None and (known is None or head.size > known.size):
            self._signed[member] = head
        if fresh or (head is not None and self._signed[member] is head):
            self._changes.note(collective, member)
        return fresh

    def _check(self, member: MemberId, head: Head | None) -> None:
        feed = self._feeds.get(member, [])
        if head is not None and head.size <= len(feed) and self._roots.of(feed, head.size) != head.root:
            fork = root_fork(head, [record.entry.line for record in feed[: head.size]])
            self.add_fork(fork.fork)
            raise fork
