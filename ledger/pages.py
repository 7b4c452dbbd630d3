"""Decides whether a page of foreign entries continues a feed: pure functions over what is held and what arrives.

`read` takes everything that can be checked without the feed (format, signatures, commitments); `follow` walks the chain
and the tree from the held state. Nothing is stored here. Invariant: a page is taken whole or not at all, and a
contradiction between two statements of the author is never a mere refusal but a `Fork`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ledger import entry
from ledger.checkpoint import Head
from ledger.entry import Record
from ledger.errors import BadChain, ForkSeen
from ledger.forks import MAX_LINES, Fork, Kind
from ledger.tree import GrowingTree, Grown
from protocol.errors import Malformed, TooLarge
from protocol.ids import CollectiveId, MemberId

MAX_PAGE: Final = MAX_LINES


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What we hold of a feed: its tree, a way to read an old line (`seq -> line`), and signed heads by size."""

    collective: CollectiveId
    member: MemberId
    tree: GrowingTree
    line: Callable[[int], bytes]
    heads: Mapping[int, Head]


def read(collective: CollectiveId, member: MemberId, records: Sequence[Record]) -> None:
    """Check each record by itself, and that the page is one run of the named feed.

    Raises:
        TooLarge, Malformed, NotCanonical, BadKey, BadSignature: an entry is not what `entry.parse` would give.
        BadCommitment: a body is not the one its entry commits to.
        BadChain: an entry of another feed, or a gap inside the page.
        ForkSeen: two consecutive entries of the page contradict each other.
    """
    if len(records) > MAX_PAGE:
        raise TooLarge(f"couldn't take page: {len(records)} entries, the limit is {MAX_PAGE}")
    for record in records:
        if entry.parse(record.entry.line) != record.entry:
            raise Malformed("couldn't take page: an entry is not the one in its line")
        header = record.entry.header
        if (header.collective, header.member) != (collective, member):
            raise BadChain(f"couldn't take page of {member[:12]}: entry {header.seq} belongs to another feed")
        if record.body is not None:
            entry.check_body(record.entry, record.body)
    for before, after in pairwise(records):
        if after.entry.header.seq != before.entry.header.seq + 1:
            raise BadChain(f"couldn't take page of {member[:12]}: a gap after entry {before.entry.header.seq}")
        if after.entry.header.prev != before.entry.leaf:
            raise _chain_fork(before.entry.line, after)


def follow(held: Held, records: Sequence[Record]) -> tuple[list[Record], GrowingTree, Grown]:
    """Return the records that are new after `held`, the tree with them, and what they complete of it.

    `records` passed `read`. Each held head whose size the page reaches must have the root of the tree there.

    Raises:
        BadChain: the page starts beyond what is held.
        ForkSeen: the author signed something else before.
    """
    size = held.tree.size
    if records and records[0].entry.header.seq > size:
        start = records[0].entry.header.seq
        raise BadChain(f"couldn't take page of {held.member[:12]}: it starts at {start}, we hold {size} entries")
    fresh = []
    for record in records:
        if record.entry.header.seq < size:
            _same_as_held(held, record)
        else:
            fresh.append(record)
    if fresh and size > 0:
        last = entry.parse_stored(held.line(size - 1))
        if fresh[0].entry.header.prev != last.leaf:
            raise _chain_fork(last.line, fresh[0])
    return fresh, *_grow(held, fresh)


def heads_fork(first: Head, second: Head) -> ForkSeen:
    """The error for two heads of one size with different roots."""
    fork = _fork("heads", first.collective, first.member, first.size, (first.note, second.note))
    return ForkSeen(f"couldn't take head of {first.member[:12]}: it signed two roots for size {first.size}", fork)


def root_fork(head: Head, lines: Sequence[bytes]) -> ForkSeen:
    """The error for a head that its author's own entries contradict; `lines` end at entry `head.size - 1`."""
    fork = _fork("root", head.collective, head.member, head.size, (head.note, *lines))
    return ForkSeen(
        f"couldn't take feed of {head.member[:12]}: its entries do not have the root it signed for size {head.size}",
        fork,
    )


def _grow(held: Held, fresh: Sequence[Record]) -> tuple[GrowingTree, Grown]:
    growing, grown, start = held.tree.copy(), Grown([], []), held.tree.size
    leaves = [bytes.fromhex(record.entry.leaf) for record in fresh]
    end = start + len(leaves)
    for size in sorted({size for size in held.heads if start < size < end} | {end}):
        more = growing.extend(leaves[growing.size - start : size - start])
        grown = Grown(grown.tiles + more.tiles, grown.nodes + more.nodes)
        head = held.heads.get(size)
        if head is not None and size > start and head.root != growing.root().hex():
            raise root_fork(head, [item.entry.line for item in fresh[: size - start]])
    return growing, grown


def _same_as_held(held: Held, record: Record) -> None:
    seq = record.entry.header.seq
    line = held.line(seq)
    if line != record.entry.line:
        fork = _fork("entries", held.collective, held.member, seq, (line, record.entry.line))
        raise ForkSeen(f"couldn't take page of {held.member[:12]}: it signed two entries {seq}", fork)


def _chain_fork(before: bytes, after: Record) -> ForkSeen:
    header = after.entry.header
    fork = _fork("chain", header.collective, header.member, header.seq, (before, after.entry.line))
    return ForkSeen(f"couldn't take page of {header.member[:12]}: entry {header.seq} follows another history", fork)


def _fork(kind: Kind, collective: CollectiveId, member: MemberId, at: int, evidence: tuple[bytes, ...]) -> Fork:
    return Fork(kind=kind, collective=collective, member=member, at=at, evidence=evidence)
