"""Whether a forget bundle shows what it says: signatures, hashes and rules alone, without a store, a network or numpy.

    maker's signature -> entries, each under its feed's signed head -> charters from the genesis on -> decisions with quorums
      -> both cuts tied to the feeds (inclusion, consistency) -> what was asked is in the old and out of the new one -> logs
Invariant: what `check` lets pass as shown follows from signatures of the members themselves. Merged models of releases that were
never decided, and views on cards, are the maker's word: `node.audits.bundle_blobs` repeats them where the blobs are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from ledger import charter as charters
from ledger import charter_reading, checkpoint, cuts, entry, events
from ledger.amending import amended
from ledger.bundle import DOMAIN, Bundle, FeedProof
from ledger.bundle_logs import Decided, Logs, no, owner
from ledger.charter import Charter
from ledger.checkpoint import Head
from ledger.cuts import Amendment, Cut, Exclusion, Value
from ledger.entry import Entry
from ledger.forgetting import ERASED, FORGOTTEN, OP, read_change
from protocol import keys, merkle
from protocol.canon import Json
from protocol.ids import CollectiveId, Digest, EventId, MemberId, digest

_T = TypeVar("_T", bound=events.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a bundle has shown; `was_in` are the numbers of the releases that had each asked contribution in them."""

    bundle: Bundle
    name: str
    new: Decided
    old: Decided | None
    releases: tuple[Cut, ...]  # that had one of them in it, oldest first; the last is the old one
    was_in: Mapping[EventId, tuple[int, ...]]
    weights: Mapping[Digest, list[Json]]  # release -> rows of member and merge weight
    charters: Mapping[Digest, Charter]  # release -> the charter that it was decided under
    by: Mapping[EventId, tuple[str, EventId]]  # contribution -> reason and evidence


def check(bundle: Bundle, collective: CollectiveId | None = None) -> Checked:
    """Check everything that a bundle shows offline; `collective`: it must be of this one.

    Raises:
        BadBundle: a part does not show what it should, or the parts do not belong together.
        BadSignature, BadKey, BadProof, Malformed and other Refused: as the readers of the parts have it.
    """
    return _Check(bundle).run(collective)


@dataclass(slots=True)
class _Check:
    bundle: Bundle
    entries: dict[EventId, Entry] = field(default_factory=dict)
    heads: dict[MemberId, Head] = field(default_factory=dict)
    charters: list[tuple[int, Charter]] = field(default_factory=list)  # in force from this height on
    used: set[EventId] = field(default_factory=set)

    def run(self, collective: CollectiveId | None) -> Checked:
        bundle = self.bundle
        if collective not in {None, bundle.collective}:
            no(f"it is of collective {bundle.collective[:12]}")
        self._signature()
        self._entries()
        decided = self._decisions()
        old, new, cut = self._both_cuts(decided)
        self._feeds(old, cut)
        by = {event: self._asked(event, cut, decided) for event in bundle.asked}
        releases = self._chain(old, cut)
        logs = Logs(bundle=bundle, charters=tuple(self.charters), published=self._published)
        logs.check(bundle.logs["old"], old, bundle.logs["new"], new)
        logs.check_releases(releases, cut)
        self._descendants(cut.epoch)
        if unused := bundle.entries.keys() - self.used:
            no(f"entry {min(unused)[:12]} shows nothing")
        was_in = {event: tuple(c.number for c in releases if self._inside(event, c)) for event in bundle.asked}
        under = {cut.digest: self._charter_at(cut.place.height) for cut in (*releases, cut)}
        return Checked(
            bundle=bundle,
            name=self.charters[-1][1].name,
            new=new,
            old=old,
            releases=releases,
            was_in=was_in,
            weights={c.digest: logs.weights(c, under[c.digest]) for c in (*releases, cut)},
            charters=under,
            by=by,
        )

    # -- signatures and hashes -------------------------------------------------------------------------------------------
    def _signature(self) -> None:
        bundle = self.bundle
        keys.verify(bundle.maker, DOMAIN, bytes.fromhex(digest(bundle.signed)), bundle.signature)

    def _entries(self) -> None:
        """Every entry is signed by its member, and stands under the signed head of its feed."""
        bundle = self.bundle
        for member, proof in bundle.feeds.items():
            head = checkpoint.parse(proof.note)
            if (head.collective, head.member) != (bundle.collective, member):
                no(f"the head under {member[:12]} is another feed's")
            self.heads[member] = head
        for event, shown in bundle.entries.items():
            parsed = entry.parse(shown.line)
            header = parsed.header
            if parsed.event != event or header.collective != bundle.collective or header.member not in self.heads:
                no(f"entry {event[:12]} is not the one it is named after, or of no feed that is here")
            if shown.body is not None and entry.body_hash(shown.body) != header.body_hash:
                no(f"the body of {event[:12]} is not the one that was signed")
            head = self.heads[header.member]
            leaf, root = bytes.fromhex(parsed.leaf), bytes.fromhex(head.root)
            merkle.verify_inclusion(header.seq, head.size, leaf, shown.path, root)
            self.entries[event] = parsed

    def _read(self, event: EventId, kind: type[_T]) -> tuple[_T, Entry]:
        """An entry of this type with its body."""
        parsed, shown = self.entries.get(event), self.bundle.entries.get(event)
        if parsed is None or shown is None:
            no(f"entry {event[:12]} is missing")
        if parsed.header.type != kind.TYPE or shown.body is None:
            no(f"entry {event[:12]} is no {kind.TYPE} with a body")
        found = events.parse(kind.TYPE, shown.body.value())
        if not isinstance(found, kind):
            no(f"entry {event[:12]} is no {kind.TYPE}")
        self.used.add(event)
        return found, parsed

    # -- charters and decisions ------------------------------------------------------------------------------------------
    def _decisions(self) -> list[Decided]:
        """Each decision has a quorum under the charter that the amendments before it lead to, from the genesis on."""
        genesis, first = self._read(self.bundle.genesis, events.Genesis)
        charter = charter_reading.parse(dict(genesis.charter))
        if charters.collective_id(charter) != self.bundle.collective or first.header.seq != 0:
            no("the genesis charter is not that of this collective")
        if charter.member(first.header.member) is None or any(m.was for m in charter.members):
            no("the genesis charter was written by somebody without a seat, or gives seats earlier keys")
        self.charters = [(1, charter)]
        found: list[Decided] = []
        for step in self.bundle.decisions:
            proposed, said = self._read(step.proposal, events.Proposed)
            value = cuts.parse(dict(proposed.value))
            where = value.place
            height = found[-1].value.place.height if found else 0
            if where.collective != self.bundle.collective or not height < where.height == proposed.height:
                no(f"decision {step.proposal[:12]} stands at another height, or is of another collective")
            if where.charter != charter.digest:
                no(f"height {where.height} was decided under a charter that nothing here leads to")
            if charter.seat_of(said.header.member) is None:
                no(f"height {where.height} was proposed by somebody without a seat")
            self._quorum(step.commits, value, charter)
            found.append(Decided(value=value, proposal=step.proposal, charter=charter))
            if isinstance(value, Amendment):
                after = amended(charter, value.change)
                if after is not charter:
                    charter = after
                    self.charters.append((where.height + 1, charter))
        if charter.seat_of(self.bundle.maker) is None:
            no("its maker has no seat in the collective")
        return found

    def _quorum(self, commits: tuple[EventId, ...], value: Value, charter: Charter) -> None:
        voters, attempts, seats = {m.id for m in charter.voters}, set[int](), set[MemberId]()
        for event in commits:
            said, parsed = self._read(event, events.Committed)
            if (said.height, said.digest) != (value.place.height, value.digest):
                no(f"commit {event[:12]} is to another decision")
            attempts.add(said.attempt)
            if parsed.header.member not in voters or parsed.header.member in seats:
                no(f"commit {event[:12]} is not by a voter, or a second one of the same")
            seats.add(parsed.header.member)
        if len(seats) < charter.quorum or len(attempts) != 1:
            no(f"height {value.place.height} has {len(seats)} commits, {charter.quorum} of one attempt are needed")

    def _both_cuts(self, decided: list[Decided]) -> tuple[Decided | None, Decided, Cut]:
        """The last two releases in the list: nothing but amendments stands beside them."""
        releases = [d for d in decided if isinstance(d.value, Cut)]
        if not 1 <= len(releases) <= 2 or releases[-1] is not decided[-1]:
            no("it has not one new release and the one before it")
        new, old = releases[-1], releases[0] if len(releases) == 2 else None
        parent = old.value.digest if old else None
        if not isinstance(new.value, Cut) or new.value.parent_release != parent:
            no("the old release is not the one before the new one")
        if old is not None and isinstance(old.value, Cut) and old.value.number + 1 != new.value.number:
            no("the numbers of the two releases do not follow each other")
        return old, new, new.value

    def _chain(self, old: Decided | None, new: Cut) -> tuple[Cut, ...]:
        """The releases that had one of them in it, each named by the one after it."""
        found = list(self.bundle.superseded)
        if old is not None and isinstance(old.value, Cut):
            found.append(old.value)
        for before, after in pairwise(found):
            if after.parent_release != before.digest or after.number != before.number + 1:
                no(f"release {before.number} is not the one before release {after.number}")
        if found and (old is None or any(c.epoch != new.epoch for c in found[:-1])):
            no("releases are listed that are not of this epoch, or lead to none that was decided")
        held = [cut for cut in found if cut.epoch == new.epoch and any(self._inside(e, cut) for e in self.bundle.asked)]
        if found[:-1] and found[0] not in held:
            no("a release is listed that had none of them in it")
        return tuple(held)

    # -- feeds -----------------------------------------------------------------------------------------------------------
    def _feeds(self, old: Decided | None, new: Cut) -> None:
        """Both head vectors lie in the feeds as their members signed them, the old part at the beginning of the new one."""
        ends = {h.member: (h.size, h.leaf) for h in new.place.heads}
        before = {h.member: (h.size, h.leaf) for h in old.value.place.heads} if old else {}
        authors = {e.header.member for e in self.entries.values()}
        if self.bundle.feeds.keys() != ends.keys() | before.keys() | authors:
            no("it has not exactly the feeds that both releases build on")
        for member, proof in self.bundle.feeds.items():
            head = self.heads[member]
            _end(proof, "new", ends.get(member), head.size, Digest(head.root))
            if proof.old is None:
                if member in before or proof.consistency:
                    no(f"the old end of feed {member[:12]} is missing")
                continue
            _end(proof, "old", before.get(member), proof.old.size, proof.old.root)
            merkle.verify_consistency(
                proof.old.size, head.size, bytes.fromhex(proof.old.root), bytes.fromhex(head.root), proof.consistency
            )

    # -- what was asked --------------------------------------------------------------------------------------------------
    def _published(self, event: EventId) -> tuple[events.Published, MemberId, int]:
        said, parsed = self._read(event, events.Published)
        return said, parsed.header.member, parsed.header.seq

    def _inside(self, event: EventId, cut: Cut) -> bool:
        """Whether a release has a contribution in it (that its author had a seat then is what the quorum checked)."""
        said, member, seq = self._published(event)
        left_out = any(x.event == event for x in cut.excluded)
        return said.epoch == cut.epoch and seq < cut.place.size_of(member) and not left_out

    def _asked(self, event: EventId, new: Cut, decided: list[Decided]) -> tuple[str, EventId]:
        """The new release leaves it out, for its author's word or by a decision that is here."""
        said, member, seq = self._published(event)
        row = next((x for x in new.excluded if x.event == event), None)
        if said.epoch != new.epoch or seq >= new.place.size_of(member) or row is None:
            no(f"the new release does not leave {event[:12]} out")
        if len(row.evidence) != 1 or row.reason not in {ERASED, FORGOTTEN}:
            no(f"{event[:12]} was left out for another reason than a request")
        if row.reason == ERASED:
            self._request(row, member, new)
        elif not any(
            isinstance(d.value, Amendment)
            and d.value.proposal == row.evidence[0]
            and d.value.change.get("op") == OP
            and event in read_change(d.value.change).contributions
            and d.charter.epoch_id == new.epoch
            for d in decided
        ):
            no(f"no decision to forget {event[:12]} is here")
        return row.reason, row.evidence[0]

    def _request(self, row: Exclusion, member: MemberId, new: Cut) -> None:
        said, parsed = self._read(row.evidence[0], events.ErasureRequested)
        author, height = parsed.header.member, new.place.height
        same = owner(self.charters, author, height) == owner(self.charters, member, height)
        if not same or row.event not in said.contributions:
            no(f"the request about {row.event[:12]} is not its author's, or does not name it")
        if parsed.header.seq >= new.place.size_of(author):
            no(f"the request about {row.event[:12]} lies beyond the new release")

    def _charter_at(self, height: int) -> Charter:
        return [charter for start, charter in self.charters if start <= height][-1]

    # -- the maker's word --------------------------------------------------------------------------------------------
    def _descendants(self, epoch: Digest) -> None:
        """The list is the maker's word; that the contributions exist is shown."""
        known = {*self.bundle.asked, *(d.event for d in self.bundle.descendants)}
        for each in self.bundle.descendants:
            said, member, _ = self._published(each.event)
            if (member, said.number, said.epoch) != (each.member, each.number, epoch):
                no(f"descendant {each.event[:12]} is not what its author published")
            if each.event in self.bundle.asked or not known >= set(each.through):
                no(f"descendant {each.event[:12]} descends from nothing that is listed")


def _end(proof: FeedProof, which: str, expected: tuple[int, Digest] | None, size: int, root: Digest) -> None:
    """The end of a cut's part of a feed: its last leaf, as the cut names it, lies under the root."""
    edge = proof.old if which == "old" else proof.new
    if edge is None or expected is None:
        if edge is not None or expected is not None:
            no(f"the {which} release and the proof of a feed do not belong together")
        return
    if edge.size != expected[0] or edge.root != root:
        no(f"the {which} end of a feed is not where the {which} release has it")
    merkle.verify_inclusion(edge.size - 1, size, bytes.fromhex(expected[1]), edge.path, bytes.fromhex(root))
