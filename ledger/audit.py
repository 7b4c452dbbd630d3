"""Checks everything stored about a collective, trusting nothing but signatures and hashes.

For every feed: each line is canonical, signed and in its place, the chain holds, bodies match their commitments, the stored
tree is the one over these lines, and every stored head is signed and has the root of the entries. What the events mean is
checked elsewhere. Needs no key, network or clock. Law: an honest history has no finding; a changed, moved or added byte of
it has one, and so has a missing part, except a tail that is gone together with its heads: only the other members remember that.

Mode `full` verifies every signature, on several threads. Mode `lines` does the same and reads no bodies. Mode `checkpoint`
verifies one signature, that of the largest head, which vouches for every line under its root, and reads no bodies; all else it
checks too. Chunks in which nothing is wrong are
passed by `runs`; any other is read again line by line, to say what and where.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from ledger import checkpoint, entry, forks, runs
from ledger.entry import Body, Entry
from ledger.errors import StoreBroken
from ledger.reading import Reader
from ledger.runs import RawLine
from ledger.stored_tree import StoredTree
from ledger.tree import GrowingTree, Grown
from protocol import keys
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId
from protocol.merkle import leaf_hash

NOTICES: Final = frozenset({"body-missing", "body-erased"})
"""Codes that say what could not be checked; every other code is a fault."""
Mode = Literal["full", "lines", "checkpoint"]

_BATCH: Final = 128  # signatures that a thread takes at a time
_CANDIDATES: Final = 16  # heads that are looked at for one that vouches
_AHEAD: Final = 3  # chunks whose signatures are verified while the next one is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault with its place: the feed, the entry (or None for the feed as a whole), and the event if readable."""

    code: str
    member: MemberId
    seq: int | None
    event: EventId | None
    text: str


def integrity(
    store: Reader, collective: CollectiveId, *, mode: Mode = "full", threads: int | None = None
) -> list[Finding]:
    """Check every stored feed of `collective`; an empty list means that nothing was changed.

    `threads` verify signatures; None means one for each processor that this process may use.
    """
    found = [
        finding
        for member in store.members(collective)
        for finding in feed_integrity(store, collective, member, mode=mode, threads=threads)
    ]
    return [*found, *_lost_feeds(store, collective)]


def feed_integrity(
    store: Reader, collective: CollectiveId, member: MemberId, *, mode: Mode = "full", threads: int | None = None
) -> Iterator[Finding]:
    """Check one feed, entry by entry, then its heads, then the fork proof against it."""
    count = len(os.sched_getaffinity(0)) if threads is None else threads
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count)) if count > 1 else None
        walk = _Walk(store, collective, member, pool, bodies=False)
        try:
            if mode == "checkpoint" and walk.vouch():
                found = list(walk.run())
                if not any(finding.code == "root-mismatch" for finding in found):
                    yield from found
                    return
            # Without a head that vouches, or with one that vouches for nothing, each line stands for itself.
            walk = _Walk(store, collective, member, pool, bodies=mode != "lines")
            yield from walk.run()
        except StoreBroken as e:
            yield walk.finding("store-broken", None, str(e))


_Head = tuple[int, bytes, bytes]
T = TypeVar("T")


class _Job(Generic[T]):
    """Work that a thread does, or that is done at once without threads."""

    def __init__(self, pool: ThreadPoolExecutor | None, work: Callable[..., T], *values: object) -> None:
        self._future = pool.submit(work, *values) if pool else None
        self._work, self._values = work, values

    def result(self) -> T:
        """What came out of it."""
        return self._work(*self._values) if self._future is None else self._future.result()


def _lost_feeds(store: Reader, collective: CollectiveId) -> Iterator[Finding]:
    """Feeds whose entries are stored and whose names are gone from the table of feeds, or from its index."""
    known = set(store.members(collective))
    for _, place, member in store.raw_feeds():
        if place == collective and member not in known:
            text = "the feed is missing from the index of feeds: the file is damaged"
            yield Finding(code="store-broken", member=member, seq=None, event=None, text=text)
    for _, line in store.raw_orphans():
        try:
            header = entry.parse_stored(line).header
        except Refused:
            continue  # nothing says whose it was; the members of its collective remember it
        if header.collective == collective:
            text = "its entries are stored, but its name is gone from the table of feeds"
            yield Finding(code="feed-missing", member=header.member, seq=None, event=None, text=text)


@dataclass(slots=True, kw_only=True)
class _Chunk:
    """What was found in some consecutive rows, which need not be kept, and what is still being verified about them."""

    lines: list[Finding]
    signed: int  # the entry with the first of `signatures`
    signatures: list[_Job[list[int]]]
    signed_heads: list[_Job[list[Finding]]]
    bodies: list[Finding] = field(default_factory=list)
    tree: list[Finding] = field(default_factory=list)
    broken: StoreBroken | None = None  # what kept us from looking further


class _Walk:
    """One way through one feed. `tree` grows from the stored lines, not from the stored leaves or nodes."""

    def __init__(
        self,
        store: Reader,
        collective: CollectiveId,
        member: MemberId,
        pool: ThreadPoolExecutor | None,
        *,
        bodies: bool,
    ) -> None:
        self.store, self.collective, self.member, self.pool, self.bodies = store, collective, member, pool, bodies
        self.tree = GrowingTree()
        self.stored = StoredTree(store.tree(collective, member))
        self.next, self.last = 0, ZERO
        self.vouched: _Head | None = None  # lines under its root need no signature of their own
        self.damaged = False
        self.admitted = _admitted(member)

    def vouch(self) -> bool:
        """Rely on the largest good head that is not ahead of the entries, and on no other; whether there is one."""
        for head in self.store.raw_heads(
            self.collective, self.member, upto=self.stored.tree.size(), newest=_CANDIDATES
        ):
            if not self.head(*head, Digest(head[1].hex())):
                self.vouched = head
                return True
        return False

    def run(self) -> Iterator[Finding]:
        """All findings, in the order of the entries."""
        waiting: deque[_Chunk] = deque()
        try:
            for rows in self.store.raw_chunks(self.collective, self.member, bodies=self.bodies):
                waiting.append(self.chunk(rows))
                if len(waiting) > _AHEAD:
                    # Without threads several are verified in a row: after each time the caches have forgotten the rest of us.
                    for _ in range(1 if self.pool else len(waiting)):
                        yield from self.judge(waiting.popleft())
        except StoreBroken:
            while waiting:  # what was read before has its findings
                yield from self.judge(waiting.popleft())
            raise
        while waiting:
            yield from self.judge(waiting.popleft())
        ahead = self.store.raw_heads(self.collective, self.member, after=self.tree.size)
        for head in ahead:
            yield from self.head(*head, None)
        if not self.damaged and not ahead and (spare := self.stored.spare(self.tree.size)):
            text = f"the stored tree has {spare} tiles or nodes more than its entries make"
            yield self.finding("node-mismatch", None, text)
        for proof in self.store.raw_proofs(self.collective, self.member):
            yield from self.proof(proof)

    def chunk(self, rows: list[RawLine]) -> _Chunk:
        """Check the next rows but for their signatures, take them into the tree, and begin to verify them."""
        first, end = rows[0][0], rows[-1][0]
        leaves = runs.follow(self.collective, self.member, self.next, self.last, rows) if self.admitted else None
        passed, lines, signed = leaves is not None, list[Finding](), list[bytes]()
        sure = max(first, self.vouched[0] if self.vouched else 0)
        if leaves is None:
            leaves = [leaf_hash(row[1]) for row in rows]
            lines = list(self.explain(rows))
        else:
            signed = keys.signed_messages(entry.DOMAIN, *runs.signed(rows[sure - first :]))
        heads = self.heads(self.tree.size, self.tree.size + len(leaves))
        grown, roots = self.grow(leaves, [size for size, _, _ in heads])
        self.next, self.last = end + 1, Digest(leaves[-1].hex())
        chunk = _Chunk(
            lines=lines,
            signed=sure,
            signatures=[
                _Job(self.pool, keys.wrong_signatures, self.member, signed[n : n + _BATCH])
                for n in range(0, len(signed), _BATCH)
            ],
            signed_heads=[
                _Job(self.pool, self.check_heads, heads[n : n + _BATCH], roots) for n in range(0, len(heads), _BATCH)
            ],
        )
        try:
            chunk.bodies.extend(self.check_bodies(rows, passed) if self.bodies else ())
            chunk.tree.extend(self.finding("node-mismatch", seq, text) for seq, text in self.stored.faults(grown))
        except StoreBroken as e:
            chunk.broken = e
        return chunk

    def heads(self, after: int, upto: int) -> list[_Head]:
        """The heads to check whose sizes lie in (after, upto]."""
        if self.vouched is None:
            return self.store.raw_heads(self.collective, self.member, after=after, upto=upto)
        return [self.vouched] if after < self.vouched[0] <= upto else []

    def grow(self, leaves: Sequence[bytes], sizes: Sequence[int]) -> tuple[Grown, dict[int, Digest]]:
        """Add leaves to the tree: what they complete of it, and the root at each of `sizes` on the way."""
        start, grown, roots = self.tree.size, Grown([], []), dict[int, Digest]()
        for size in [*sizes, start + len(leaves)]:
            more = self.tree.extend(leaves[self.tree.size - start : size - start])
            grown.tiles.extend(more.tiles)
            grown.nodes.extend(more.nodes)
            if size in sizes:
                roots[size] = Digest(self.tree.root().hex())
        return grown, roots

    def judge(self, chunk: _Chunk) -> Iterator[Finding]:
        """The findings of one chunk, in the order of the checks; those about the tree mean nothing over damaged lines."""
        for found in chunk.lines:
            self.damaged = True
            yield found
        for number, job in enumerate(chunk.signatures):
            for place in job.result():
                self.damaged = True
                yield self.unsigned(chunk.signed + number * _BATCH + place)
        yield from chunk.bodies
        if chunk.broken is not None:
            raise chunk.broken
        if not self.damaged:
            yield from chunk.tree
        for heads in chunk.signed_heads:
            yield from heads.result()

    def explain(self, rows: list[RawLine]) -> Iterator[Finding]:
        """What is wrong with each row's line, leaf and place."""
        after, last = self.next, self.last
        for seq, line, stored, *_ in rows:
            if seq != after:
                yield self.finding("gap", after, f"entries {after} to {seq - 1} are missing")
            leaf = leaf_hash(line)
            if leaf != stored:
                yield self.finding("leaf-mismatch", seq, "the stored leaf hash is not that of the line")
            try:
                parsed = entry.parse(line)
            except Refused as e:
                yield self.finding(e.code, seq, str(e))
            else:
                yield from self.place(parsed, seq, last)
            after, last = seq + 1, Digest(leaf.hex())

    def unsigned(self, seq: int) -> Finding:
        """What is wrong with an entry in which nothing is wrong but the signature."""
        try:
            entry.parse(self.store.line(self.collective, self.member, seq))
        except Refused as e:
            return self.finding(e.code, seq, str(e))
        raise StoreBroken(f"couldn't read ledger: entry {seq} changed while it was read")

    def place(self, parsed: Entry, seq: int, last: Digest) -> Iterator[Finding]:
        """Whether a readable entry belongs where it is stored."""
        header = parsed.header
        if (header.collective, header.member) != (self.collective, self.member):
            yield self.finding("wrong-feed", seq, "the entry belongs to another feed", parsed.event)
        if header.seq != seq:
            yield self.finding("wrong-place", seq, f"the entry is signed as number {header.seq}", parsed.event)
        if header.prev != last:
            yield self.finding("bad-chain", seq, "the previous entry is not the one it follows", parsed.event)

    def check_bodies(self, rows: list[RawLine], passed: bool) -> Iterator[Finding]:
        """Whether each readable entry has the body that it commits to."""
        for seq, line, _, salt, data in rows:
            if salt is not None and data is not None and passed and runs.commits(line, salt, data):
                continue
            try:
                parsed = entry.parse_stored(line)
            except Refused:
                continue  # the line has its finding
            if salt is None or data is None:
                erased = self.store.is_erased(self.collective, self.member, seq)
                code, text = (
                    ("body-erased", "was erased here") if erased else ("body-missing", "was erased or withheld")
                )
                yield self.finding(code, seq, f"the body {text}", parsed.event)
                continue
            try:
                entry.check_body(parsed, Body(salt=salt, data=data))
            except Refused as e:
                yield self.finding(e.code, seq, str(e), parsed.event)

    def check_heads(self, heads: Sequence[_Head], roots: Mapping[int, Digest]) -> list[Finding]:
        """What is wrong with heads whose entries are here; all of them at once, and one by one when that fails."""
        if all(root.hex() == roots[size] for size, root, _ in heads):
            texts = [checkpoint.text(self.collective, self.member, size, roots[size]) for size, _, _ in heads]
            try:
                signed = keys.signed_messages(None, texts, [signature for _, _, signature in heads])
                if not keys.wrong_signatures(self.member, signed):
                    return []
            except Refused:
                pass  # the key itself, or the length of a signature; each head says so
        return [found for head in heads for found in self.head(*head, roots[head[0]])]

    def head(self, size: int, root: bytes, signature: bytes, computed: Digest | None) -> list[Finding]:
        """What is wrong with a stored head: its signature, or its root, or the entries under it (None) are not here."""
        try:
            head = checkpoint.parse(
                checkpoint.assemble(self.collective, self.member, size, Digest(root.hex()), signature).note
            )
        except Refused as e:
            return [self.finding("bad-head", size - 1, f"the stored head of size {size}: {e}")]
        if computed is None:
            text = f"a signed head names {size} entries, {self.tree.size} are stored"
            return [self.finding("tail-missing", self.tree.size, text)]
        if head.root != computed:
            text = f"the entries up to here do not have the root that was signed for size {size}"
            return [self.finding("root-mismatch", size - 1, text)]
        return []

    def proof(self, proof: bytes) -> Iterator[Finding]:
        """Whether a stored fork proof convicts the member."""
        try:
            fork = forks.decode(proof)
            lines = self.store.raw_chunks(self.collective, self.member) if fork.kind == "root" else ()
            forks.verify(fork, [leaf_hash(line) for rows in lines for _, line, _ in rows])
        except Refused as e:
            yield self.finding("bad-proof", None, f"the stored fork proof: {e}")
        else:
            yield self.finding("fork", fork.at, f"the member signed two histories ({fork.kind} at {fork.at})")

    def finding(self, code: str, seq: int | None, text: str, event: EventId | None = None) -> Finding:
        """A finding in this feed."""
        return Finding(code=code, member=self.member, seq=seq, event=event, text=text)


def _admitted(member: MemberId) -> bool:
    """Whether the key of a member is acceptable: else none of its lines is, and each says so."""
    try:
        keys.admit(member)
    except Refused:
        return False
    return True
