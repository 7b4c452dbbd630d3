"""Checks everything stored about a collective, trusting nothing but signatures and hashes.

For every feed: each line is canonical, signed and in its place, the chain holds, bodies match their commitments, and every
stored head is signed and has the root of the entries. What the events mean is checked elsewhere. Needs no key, network
or clock. Law: an honest history has no finding; a changed, moved or added byte of it has one, and so has a missing part,
except a tail that is gone together with its heads: only the other members remember that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ledger import checkpoint, entry, forks
from ledger.entry import Entry
from ledger.errors import StoreBroken
from ledger.reading import Reader, StoredRow
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId
from protocol.merkle import Frontier, leaf_hash

NOTICES: Final = frozenset({"body-missing"})
"""Codes that say what could not be checked; every other code is a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault with its place: the feed, the entry (or None for the feed as a whole), and the event if readable."""

    code: str
    member: MemberId
    seq: int | None
    event: EventId | None
    text: str


def integrity(store: Reader, collective: CollectiveId) -> list[Finding]:
    """Check every stored feed of `collective`; an empty list means that nothing was changed."""
    return [finding for member in store.members(collective) for finding in feed_integrity(store, collective, member)]


def feed_integrity(store: Reader, collective: CollectiveId, member: MemberId) -> Iterator[Finding]:
    """Check one feed, entry by entry, then its heads, then the fork proof against it."""
    check = _Check(collective, member)
    try:
        heads = store.raw_heads(collective, member)
        roots: dict[int, Digest | None] = dict.fromkeys(size for size, _, _ in heads)
        for row in store.raw(collective, member):
            yield from check.row(row)
            if check.tree.size in roots:
                roots[check.tree.size] = Digest(check.tree.root().hex())
        for size, root, signature in heads:
            yield from check.head(size, root, signature, roots[size])
        for proof in store.raw_proofs(collective, member):
            yield from check.proof(proof)
    except StoreBroken as e:
        yield check.finding("store-broken", None, str(e))


class _Check:
    """The walk through one feed. `tree` holds the leaves as they follow from the stored lines, not as stored."""

    def __init__(self, collective: CollectiveId, member: MemberId) -> None:
        self.collective, self.member = collective, member
        self.tree = Frontier()
        self.leaves: list[bytes] = []
        self.next, self.last = 0, ZERO

    def finding(self, code: str, seq: int | None, text: str, event: EventId | None = None) -> Finding:
        return Finding(code=code, member=self.member, seq=seq, event=event, text=text)

    def row(self, row: StoredRow) -> Iterator[Finding]:
        if row.seq != self.next:
            yield self.finding("gap", self.next, f"entries {self.next} to {row.seq - 1} are missing")
        leaf = leaf_hash(row.line)
        if leaf != row.leaf:
            yield self.finding("leaf-mismatch", row.seq, "the stored leaf hash is not that of the line")
        try:
            parsed = entry.parse(row.line)
        except Refused as e:
            yield self.finding(e.code, row.seq, str(e))
        else:
            yield from self._place(parsed, row)
            yield from self._body(parsed, row)
        self.tree.append(leaf)
        self.leaves.append(leaf)
        self.next, self.last = row.seq + 1, Digest(leaf.hex())

    def head(self, size: int, root: bytes, signature: bytes, computed: Digest | None) -> Iterator[Finding]:
        try:
            head = checkpoint.parse(
                checkpoint.assemble(self.collective, self.member, size, Digest(root.hex()), signature).note
            )
        except Refused as e:
            yield self.finding("bad-head", size - 1, f"the stored head of size {size}: {e}")
            return
        if computed is None:
            text = f"a signed head names {size} entries, {self.tree.size} are stored"
            yield self.finding("tail-missing", self.tree.size, text)
        elif head.root != computed:
            text = f"the entries up to here do not have the root that was signed for size {size}"
            yield self.finding("root-mismatch", size - 1, text)

    def proof(self, proof: bytes) -> Iterator[Finding]:
        try:
            fork = forks.decode(proof)
            forks.verify(fork, self.leaves)
        except Refused as e:
            yield self.finding("bad-proof", None, f"the stored fork proof: {e}")
        else:
            yield self.finding("fork", fork.at, f"the member signed two histories ({fork.kind} at {fork.at})")

    def _place(self, parsed: Entry, row: StoredRow) -> Iterator[Finding]:
        header = parsed.header
        if (header.collective, header.member) != (self.collective, self.member):
            yield self.finding("wrong-feed", row.seq, "the entry belongs to another feed", parsed.event)
        if header.seq != row.seq:
            yield self.finding("wrong-place", row.seq, f"the entry is signed as number {header.seq}", parsed.event)
        if header.prev != self.last:
            yield self.finding("bad-chain", row.seq, "the previous entry is not the one it follows", parsed.event)

    def _body(self, parsed: Entry, row: StoredRow) -> Iterator[Finding]:
        if row.body is None:
            yield self.finding("body-missing", row.seq, "the body was erased or withheld", parsed.event)
            return
        try:
            entry.check_body(parsed, row.body)
        except Refused as e:
            yield self.finding(e.code, row.seq, str(e), parsed.event)
