"""Who has cosigned what: the part of the fold that keeps bound keys and cosignatures, and counts them.

A cosignature counts for a contribution when its witness has a seat, its head covers the contribution and has the root
that the feed really has, and for each organisation once, the author's never. Whether it counts is asked anew for each
proposal, within that proposal's head vector, so the answer depends on entries alone. Knows no clock: a cosignature from
later than the entry that carries it is refused.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledger import cosignature, keyring
from ledger.charter import Charter
from ledger.cosignature import Cosignature, WitnessKeys
from ledger.errors import BadEvent
from ledger.events import HeadWitnessed, KeysBound
from ledger.facts import Contribution, Flaw
from ledger.keyring import Bound
from ledger.tally import Source
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.merkle import Frontier

if TYPE_CHECKING:
    from ledger.standing import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """A verified cosignature, the entry that carries it, and the keys that made it."""

    source: Source
    cosignature: Cosignature
    by: WitnessKeys

    @property
    def order(self) -> tuple[int, MemberId, int]:
        """By size, so that those that cover a contribution are found at once."""
        return self.cosignature.size, self.source.member, self.source.seq


class Witnesses:
    """Bound keys and cosignatures of one collective; `leaves` are the fold's leaf hashes of each feed."""

    def __init__(self, collective: CollectiveId, leaves: Mapping[MemberId, Sequence[Digest]]) -> None:
        self._collective = collective
        self._leaves = leaves
        self.announced: dict[MemberId, KeysBound] = {}
        self.bound: dict[MemberId, Bound] = {}
        self.commitments: dict[MemberId, tuple[int, Digest]] = {}
        self.cosigned: dict[MemberId, list[Cosigned]] = {}
        self._reached: dict[tuple[MemberId, MemberId], int] = {}
        self._trees: dict[MemberId, Frontier] = {}
        self._roots: dict[tuple[MemberId, int], Digest] = {}

    def bind(self, source: Source, event: KeysBound, transports: frozenset[str]) -> None:
        """Take the keys of a member; the first commitment to a recovery key stands, or a thief could change it.

        Raises:
            BadEvent, BadKey, BadSignature, Malformed: they are not acceptable; earlier ones stay.
        """
        bound = keyring.read(event, self._collective, source.member)
        if bound.witness.public in transports:
            raise BadEvent("couldn't bind keys: the witness key is a transport key, which lies in a plain file")
        self.announced[source.member], self.bound[source.member] = event, bound
        if bound.recovery is not None:
            self.commitments.setdefault(source.member, (source.seq, bound.recovery))

    def take(self, source: Source, event: HeadWitnessed) -> list[Flaw]:
        """Record the cosignatures of one entry; those that do not verify are returned as flaws.

        Raises:
            BadEvent: its author has bound no witness key before.
        """
        bound = self.bound.get(source.member)
        if bound is None:
            raise BadEvent("couldn't take cosignatures: their author has bound no witness key")
        flaws = []
        for head in event.heads:
            said = Cosignature(
                collective=self._collective,
                witness=source.member,
                member=head.member,
                size=head.size,
                root=head.root,
                time=head.time,
                signature=head.signature,
                post_quantum=head.post_quantum,
            )
            try:
                if said.time * 1000 > source.ts:
                    raise BadEvent("couldn't take cosignature: it is from later than the entry that carries it")
                cosignature.verify(said, bound.witness)
            except Refused as e:
                flaws.append(Flaw(source=source, code=e.code, text=str(e)))
                continue
            place = self.cosigned.setdefault(head.member, [])
            insort(place, Cosigned(source=source, cosignature=said, by=bound.witness), key=lambda c: c.order)
            pair = (source.member, head.member)
            self._reached[pair] = max(self._reached.get(pair, 0), head.size)
        return flaws

    def reached(self, witness: MemberId, feed: MemberId) -> int:
        """The largest size of a feed that a witness has cosigned."""
        return self._reached.get((witness, feed), 0)

    def cosigned_size(self, feed: MemberId) -> int:
        """The largest size of a feed that anybody has cosigned, with the root that it has here."""
        found = (c.cosignature for c in reversed(self.cosigned.get(feed, [])))
        return next((c.size for c in found if self._root(feed, c.size) == c.root), 0)

    def sizes(self, feed: MemberId) -> dict[MemberId, int]:
        """For each witness, the largest size of a feed that it has cosigned with the root that the feed has here."""
        found: dict[MemberId, int] = {}
        for item in self.cosigned.get(feed, []):
            if self._root(feed, item.cosignature.size) == item.cosignature.root:
                found[item.source.member] = item.cosignature.size
        return found

    def covering(self, feed: MemberId, seq: int) -> list[Cosigned]:
        """Cosignatures of heads that cover entry `seq` and have the root that the feed has here, smallest head first."""
        found = self.cosigned.get(feed, [])
        start = bisect_right(found, seq, key=lambda c: c.cosignature.size)
        return [c for c in found[start:] if self._root(feed, c.cosignature.size) == c.cosignature.root]

    def contradicting(self) -> list[Cosigned]:
        """Cosignatures of heads that the feeds held here do not have: the author showed another history, or the witness lies."""
        return [
            c
            for feed, cosigned in sorted(self.cosigned.items())
            for c in cosigned
            if self._root(feed, c.cosignature.size) not in {None, c.cosignature.root}
        ]

    def organisations(
        self, contribution: Contribution, charter: Charter, within: Callable[[MemberId], int] | None = None
    ) -> frozenset[str]:
        """The organisations that cosigned a contribution, by entries below `within(member)` (None: any); never its author's."""
        author = charter.seat_of(contribution.member)
        found: dict[str, str] = {}
        for item in self.covering(contribution.member, contribution.source.seq):
            seat = charter.member(item.source.member)
            inside = within is None or item.source.seq < within(item.source.member)
            if seat is not None and inside and (author is None or seat.organisation != author.organisation):
                found.setdefault(item.by.public, seat.organisation)  # one key speaks for one organisation
        return frozenset(found.values())

    def _root(self, feed: MemberId, size: int) -> Digest | None:
        """The root over the first entries of a feed, None while they are not here."""
        leaves = self._leaves.get(feed, ())
        if size > len(leaves):
            return None
        known = self._roots.get((feed, size))
        if known is None:
            tree = self._trees.get(feed)
            if tree is None or tree.size > size:
                tree = Frontier()
            for leaf in leaves[tree.size : size]:
                tree.append(bytes.fromhex(leaf))
            self._trees[feed] = tree
            known = self._roots[feed, size] = Digest(tree.root().hex())
        return known


def due(collective: Standing, me: MemberId) -> list[MemberId]:
    """Feeds with pending contributions that the member `me` has not cosigned yet and whose witness it can be.

    Nothing else makes a cosignature due, so cosignatures never call for cosignatures.
    """
    if not collective.known or (mine := collective.charter.member(me)) is None:
        return []
    found: dict[MemberId, None] = {}
    for contribution in collective.pending():
        author = collective.charter.seat_of(contribution.member)
        other = author is not None and author.organisation != mine.organisation
        if other and collective.witnesses.reached(me, contribution.member) <= contribution.source.seq:
            found.setdefault(contribution.member)
    return list(found)
