"""What stands in a collective: the state that the fold builds, and the questions asked of it.

Reads only; `ledger.collective` alone changes it. A seat may have had several keys, so several feeds: its contributions are
those of all of them up to where each is trusted, and they make one register. Knows no store, network, clock or blob.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Self

from ledger import events, forgetting
from ledger.amending import amended, check_keys
from ledger.charter import Charter, Member
from ledger.charter_reading import MAX_WAS
from ledger.cuts import Amendment, Cut, Place
from ledger.errors import BadCharter
from ledger.facts import Asked, Contribution, Decision, Flaw
from ledger.mentions import Mentions
from ledger.reaching import Reaching
from ledger.succession import RECOVERY, Statement
from ledger.tally import DoubleVote, Source, Tally
from ledger.witnesses import Witnesses
from protocol.binding import Binding
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, PeerId


class Standing:
    """The state of a collective as far as the applied entries tell."""

    def __init__(self, id_: CollectiveId) -> None:
        self.id = id_
        self.genesis: Charter | None = None
        self.founder: MemberId | None = None
        self.sizes: dict[MemberId, int] = {}
        self.leaves: dict[MemberId, list[Digest]] = {}
        self.contributions: dict[MemberId, list[Contribution]] = {}
        self.published: list[Contribution] = []  # all of them, as they became known here
        self.data: dict[MemberId, dict[str, events.DataCommitted]] = {}
        self.bound: dict[MemberId, PeerId] = {}
        self.transports: dict[MemberId, frozenset[str]] = {}
        self.asked: dict[EventId, Asked] = {}
        self.approvals: dict[EventId, dict[MemberId, Source]] = {}
        self.successions: dict[EventId, Statement] = {}
        self.sources: dict[EventId, Source] = {}
        self.mentions = Mentions()
        self.seen_by_commit: dict[EventId, Mapping[MemberId, int]] = {}  # commit -> all that its author had ever named
        self.seen_by_publish: dict[EventId, Mapping[MemberId, int]] = {}  # contribution -> the same of its author
        self.decisions: list[Decision] = []
        self.flaws: list[Flaw] = []
        self.double_votes: list[DoubleVote] = []
        self.withheld: list[Source] = []
        self.unknown_types: dict[str, int] = {}
        self.witnesses = Witnesses(id_, self.leaves)
        self.forked: dict[MemberId, dict[MemberId, Source]] = {}
        self.forks_claimed: dict[MemberId, dict[MemberId, Source]] = {}  # told with proofs that need the feed itself
        self._told: dict[MemberId, int] = {}  # proofs of forks that were checked, by teller
        self.ended: dict[MemberId, Source] = {}
        self.forgotten: dict[EventId, set[Source]] = {}  # contribution -> requests to erase that name it, by whomever
        self.withdrawals: dict[EventId, int] = {}  # such requests that erase no rows -> their deadline, ms
        self._tallies: dict[int, Tally] = {}
        self._charters: list[Charter] = []
        self._seats: list[Mapping[MemberId, Member]] = []
        self._reached = Reaching(())
        self._pending: tuple[tuple[int, int, int], tuple[Contribution, ...]] = (
            (-1, -1, -1),
            (),
        )  # found last, and when

    # -- what is true now --------------------------------------------------------------------------------------------

    @property
    def charter(self) -> Charter:
        """The charter in force for the next height.

        Raises:
            BadCharter: the genesis charter has not been seen yet.
        """
        if not self._charters:
            raise BadCharter("couldn't find charter: the founder's feed has not been received yet")
        return self._charters[-1]

    @property
    def known(self) -> bool:
        """Whether the genesis charter is here."""
        return bool(self._charters)

    @property
    def height(self) -> int:
        """The next height to decide, from 1."""
        return len(self.decisions) + 1

    @property
    def parent(self) -> Digest:
        """The decision before the next height; the collective id stands before the first."""
        return self.decisions[-1].digest if self.decisions else Digest(self.id)

    @property
    def releases(self) -> list[Decision]:
        """Decisions that are release cuts, oldest first."""
        return [d for d in self.decisions if isinstance(d.value, Cut)]

    @property
    def cut(self) -> Cut | None:
        """The latest release cut."""
        releases = self.releases
        value = releases[-1].value if releases else None
        return value if isinstance(value, Cut) else None

    @property
    def tally(self) -> Tally:
        """The votes at the next height."""
        return self._tallies.get(self.height) or Tally(self.height)

    def tally_of(self, height: int) -> Tally:
        """The votes at any height."""
        return self._tallies.get(height) or Tally(height)

    @property
    def charters(self) -> tuple[Charter, ...]:
        """Every charter that was in force, oldest first."""
        return tuple(self._charters)

    def charter_at(self, height: int) -> Charter:
        """The charter under which a height is, or was, decided."""
        return self._charters[height - 1]

    @property
    def peers(self) -> Mapping[PeerId, MemberId]:
        """Who each peer speaks for, by every member's newest binding; of two that claim one peer, the lower id.

        Keys that gave their seat to another one speak for nobody any more.
        """
        past = {w.id for m in self._charters[-1].members for w in m.was} if self._charters else set()
        return {self.bound[m]: m for m in sorted(self.bound, reverse=True) if m not in past}

    def outdated(self, binding: Binding) -> bool:
        """Whether a member bound this transport key once and another one since: only the newest speaks for it.

        A key that its feed has never named may be the next one: the feed that binds it may still be on its way.
        """
        known = self.transports.get(binding.member, frozenset())
        return binding.transport in known and self.bound.get(binding.member) != binding.peer

    def weights(
        self, charter: Charter, also: Iterable[MemberId] = (), height: int | None = None
    ) -> dict[MemberId, int]:
        """Merge weights of the charter's contributors, and of former ones in `also` as their last seat had it.

        `height` is the one that is merged for: a seat given later does not count. None: the next height.
        """
        weights = {m.id: m.weight for m in charter.contributors}
        for member in also:
            if member not in weights:
                seats = [c.member(member) for c in self._charters[:height]]
                weights[member] = next((s.weight for s in reversed(seats) if s), 1)
        return weights

    def ever_members(self) -> set[MemberId]:
        """Every key that has, or had, a seat: their feeds are part of the record."""
        return set(self._seats[-1]) if self._seats else set()

    def seat_at(self, feed: MemberId, height: int) -> Member | None:
        """The seat that a feed speaks, or spoke last, for when a height was or is decided."""
        return self._seats[min(height, len(self._seats)) - 1].get(feed) if self._seats else None

    def owner(self, feed: MemberId, height: int | None = None) -> MemberId:
        """Whose register a feed feeds: the present key of its seat. `height` as in `seat_at`, None: the next one."""
        seat = self.seat_at(feed, self.height if height is None else height)
        return seat.id if seat else feed

    def current_cut(self) -> Cut | None:
        """The latest cut, if it belongs to the epoch in force."""
        cut = self.cut
        return cut if cut and cut.epoch == self.charter.epoch_id else None

    def covered(self, where: Place, epoch: Digest) -> dict[MemberId, list[Contribution]]:
        """Contributions of an epoch inside the head vector of a cut that is, or may be, decided at `where`, by seat.

        One counts when its author had a contributor's seat under the first cut that covered it: what an auditor, an
        endorser, a former member or a key past its trusted end publishes never does. Excluded ones are still among them.
        Those of a seat's earlier keys come before those of its later ones.
        """
        found: dict[MemberId, list[tuple[int, int, Contribution]]] = {}
        for feed, published in list(self.contributions.items()):  # a thread may ask while the fold goes on
            taken = [c for c in list(published) if c.epoch == epoch and self._counts(c, where)]
            seat = self.seat_at(feed, where.height)
            turn = [w.id for w in seat.was].index(feed) if seat and feed != seat.id else MAX_WAS
            if taken:
                found.setdefault(seat.id if seat else feed, []).extend((turn, c.source.seq, c) for c in taken)
        return {m: [c for _, _, c in sorted(found[m], key=lambda item: item[:2])] for m in sorted(found)}

    def _counts(self, contribution: Contribution, where: Place) -> bool:
        """Whether the first cut up to `where` that covers it found its author in a contributor's seat, and trusted."""
        feed, seq = contribution.member, contribution.source.seq
        charter = self._reaching().first(contribution.epoch, feed, seq, where.height)
        if charter is None and seq < where.size_of(feed):
            charter = self.charter_at(min(where.height, len(self._charters)))
        end = 0 if charter is None else _trusted(charter, feed)
        return end is None or seq < end

    def _reaching(self) -> Reaching:
        """The index over what is decided now."""
        if self._reached.count != len(self.decisions):
            self._reached = Reaching(self.decisions)
        return self._reached

    def in_cut(self, cut: Cut) -> dict[MemberId, list[Contribution]]:
        """The contributions whose sum each register of the cut is."""
        left_out = {x.event for x in cut.excluded}
        found = {
            m: [c for c in taken if c.event not in left_out] for m, taken in self.covered(cut.place, cut.epoch).items()
        }
        return {m: taken for m, taken in found.items() if taken}

    def charter_for(self, contribution: Contribution) -> Charter | None:
        """The charter whose gate decides on a contribution: that of the cut that covered it first, else the newest.

        None: its epoch is not one of this collective. An amended gate never judges again what was released before.
        """
        released = self._reaching().first(contribution.epoch, contribution.member, contribution.source.seq)
        return released or next((c for c in reversed(self._charters) if c.epoch_id == contribution.epoch), None)

    def fate(self, contribution: Contribution) -> str:
        """`released`, `refused` (excluded, or by somebody without a contributor's seat), `stale` (epoch) or `pending`."""
        if contribution.epoch != self.charter.epoch_id:
            return "stale"
        if self.uncovered(contribution):
            past, feed = self.charter.seat_of(contribution.member), contribution.member
            lost = past is not None and feed != past.id and contribution.source.seq >= (past.reach(feed) or 0)
            return "refused" if lost else "pending"
        cut = self.current_cut()
        if cut is None:
            return "pending"
        left_out = any(x.event == contribution.event for x in cut.excluded)
        return "refused" if left_out or not self._counts(contribution, cut.place) else "released"

    def doubted(self) -> frozenset[MemberId]:
        """Seats whose last decided contribution was left out for what it was: nobody learns from their next before it is decided.

        One that was left out on request (erased, forgotten) says nothing against its author.
        """
        cut = self.current_cut()
        if cut is None:
            return frozenset()
        faults = {x.event for x in cut.excluded if x.reason not in {forgetting.ERASED, forgetting.FORGOTTEN}}
        return frozenset(last.member for last in cut.last if last.event in faults)

    def known_to(self, member: MemberId) -> dict[MemberId, int]:
        """How many entries of each feed a member's own entries, as far as they are here, prove that it holds."""
        size = self.sizes.get(member, 0)
        return {**self.mentions.upto(member, size), member: size}

    def uncovered(self, contribution: Contribution) -> bool:
        """Whether no cut of the epoch in force reaches so far in its author's feed."""
        cut = self.current_cut()
        return cut is None or contribution.source.seq >= cut.place.size_of(contribution.member)

    def pending(self) -> list[Contribution]:
        """Contributions of this epoch, by seated contributors, that no cut covers yet."""
        now = (len(self.decisions), len(self._charters), len(self.published))
        when, known = self._pending  # together: a thread may ask while another one does
        if when != now:
            known = tuple(self._find_pending())
            self._pending = (now, known)
        return list(known)

    def _find_pending(self) -> Iterable[Contribution]:
        epoch, cut = self.charter.epoch_id, self.current_cut()
        for seat in self.charter.contributors:
            for feed in (*(w.id for w in seat.was), seat.id):
                size, end = cut.place.size_of(feed) if cut else 0, seat.reach(feed)
                for c in self.contributions.get(feed, ()):
                    if c.epoch == epoch and c.source.seq >= size and (end is None or c.source.seq < end):
                        yield c

    def ripe_amendments(self) -> list[Asked]:
        """Undecided amendments that apply to the charter in force and that a quorum of voters approves.

        A succession needs no approval: the owner of the seat signed it. One by recovery key outranks one by ledger key.
        """
        done = {d.value.proposal for d in self.decisions if isinstance(d.value, Amendment)}
        voters = {m.id for m in self.charter.voters}
        ripe: list[tuple[bool, Asked]] = []
        for event, asked in self.asked.items():
            if event in done or not self._applies(asked):
                continue
            said = self.successions.get(event)
            if said is not None:
                if self.proven(said) and not self.outranked(said):
                    ripe.append((said.kind != RECOVERY, asked))
            elif len(voters & set(self.approvals.get(event, {}))) >= self.charter.quorum:
                ripe.append((True, asked))
        return [a for _, a in sorted(ripe, key=lambda item: (item[0], item[1].source.ts, item[1].source.event))]

    # -- keys and forks ----------------------------------------------------------------------------------------------

    def proven(self, said: Statement, where: Place | None = None) -> bool:
        """Whether the old feed (inside a head vector, if given) bears a statement out.

        It ends where the statement says, and a recovery key is the one that the feed committed to, before that end. A
        forked feed is frozen, so no head vector advances on it: what is held of it counts.
        """
        held = len(self.leaves.get(said.old, ()))
        size = held if where is None or self.fork_known(said.old) else min(held, where.size_of(said.old))
        if said.collective != self.id or said.size > size:
            return False
        if said.size and self.leaves[said.old][said.size - 1] != said.leaf:
            return False
        seq, committed = self.witnesses.commitments.get(said.old, (0, None))
        return said.commitment is None or (said.commitment == committed and seq < said.size)

    def outranked(self, said: Statement, where: Place | None = None) -> bool:
        """Whether a recovery of the same seat is asked for (inside a head vector, if given): then a rotation waits for ever."""
        if said.kind == RECOVERY:
            return False
        seat = self.charter.seat_of(said.old)
        for event, other in self.successions.items():
            source = self.asked[event].source
            if other.kind != RECOVERY or self.charter.seat_of(other.old) != seat:
                continue
            if where is not None and source.seq >= where.size_of(source.member):
                continue
            if self._applies(self.asked[event]) and self.proven(other, where):
                return True
        return False

    def fork_known(self, feed: MemberId, where: Place | None = None) -> bool:
        """Whether a proof of a fork stands in some feed (inside a head vector, if given)."""
        return any(where is None or s.seq < where.size_of(finder) for finder, s in self.forked.get(feed, {}).items())

    def before(self, height: int) -> Self:
        """The same entries as they stood before a height was decided; shares everything but the decisions."""
        past = copy.copy(self)
        past.decisions = self.decisions[: height - 1]
        past._charters = self._charters[:height]
        past._seats = self._seats[:height]
        return past

    def _applies(self, asked: Asked) -> bool:
        try:
            amended(self.charter, asked.change)
            check_keys(self.ever_members(), asked.change)
        except Refused:
            return False
        return not forgetting.too_many(self, asked.change)


def _trusted(charter: Charter, feed: MemberId) -> int | None:
    """How many entries of a feed speak for a contributor's seat: None without end, 0 none."""
    seat = charter.seat_of(feed)
    return seat.reach(feed) if seat is not None and seat.role == "contributor" else 0


def leaf_at(collective: Standing, member: MemberId, size: int) -> Digest | None:
    """The leaf of entry size-1 of a feed, None when it is not here; ZERO for size 0."""
    if size == 0:
        return ZERO
    leaves = collective.leaves.get(member, [])
    return leaves[size - 1] if size <= len(leaves) else None
