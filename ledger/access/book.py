"""The record of data sets, grants, narrowings, revocations and uses: a fold over all feeds, in any order.

Knows no request and no clock; `decision.decide` reads it. Whether something counts depends on where the reader stands: a
`Past` names how much of each feed is in its causal past, so that an auditor decides as the node could then. Law: the
state depends on the set of applied entries. What an entry claims without the right to (another member's revocation, a
second grant with one nonce) is kept and has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ledger import events, succession
from ledger.access.chains import Ways
from ledger.access.grants import Grant, Terms, terms_of
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.entry import Record
from protocol import canon
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

Place = tuple[MemberId, int]  # feed and number of an entry
_MATTER = frozenset({
    events.DataCommitted.TYPE, events.DataDescribed.TYPE, events.GrantIssued.TYPE, events.GrantNarrowed.TYPE,
    events.GrantRevoked.TYPE, events.GrantAccepted.TYPE, events.AccessDecided.TYPE, events.EgressSet.TYPE,
    events.EgressRefused.TYPE, events.Published.TYPE, events.KeyRotated.TYPE, events.ModelServed.TYPE, events.ModelWithdrawn.TYPE,
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Where a decision stands: entries known of each feed (None: all that the book holds), and the seats it knows.

    A seat may have had several keys: `now` leads from an earlier key to the present one, and `ends` says how many entries of
    the earlier key's feed are still its owner's. All keys of a seat are one member.
    """

    sizes: Mapping[MemberId, int] | None = None
    roles: Mapping[MemberId, str] = field(default_factory=dict)
    now: Mapping[MemberId, MemberId] = field(default_factory=dict)
    ends: Mapping[MemberId, int] = field(default_factory=dict)

    def holds(self, place: Place) -> bool:
        """Whether an entry is in this past, and its author's."""
        if self.ends and place[1] >= self.ends.get(place[0], place[1] + 1):
            return False
        return self.sizes is None or place[1] < self.sizes.get(place[0], 0)

    def who(self, key: MemberId) -> MemberId:
        """The present key of the seat that a key has or had."""
        return self.now.get(key, key)

    def keys(self, member: MemberId) -> tuple[MemberId, ...]:
        """All keys of a member, given the present one."""
        return (member, *(old for old, new in self.now.items() if new == member)) if self.now else (member,)

    def same_seats(self, other: Past) -> bool:
        """Whether both know the same seats."""
        return (self.roles, self.now, self.ends) == (other.roles, other.now, other.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """An allowed access under a grant, as its decision states it."""

    place: Place
    actor: MemberId
    leaf: EventId  # the grant that names the actor's audience
    epsilon_micro: int


class Book:
    """Grants and what became of them."""

    def __init__(self) -> None:
        self.version = 0  # grows with everything but uses
        self.committed: dict[tuple[MemberId, str], list[int]] = {}
        self.described: dict[tuple[MemberId, str], tuple[int, events.DataDescribed]] = {}
        self.grants: dict[EventId, Grant] = {}
        self.named: dict[str, set[EventId]] = {}  # data set name -> grants that name it
        self.narrowed: dict[EventId, dict[Place, Terms]] = {}
        self.revoked: dict[EventId, dict[Place, str]] = {}
        self.accepted: dict[EventId, dict[MemberId, int]] = {}
        self.uses: dict[EventId, list[Use]] = {}
        self.erased: dict[MemberId, list[int]] = {}  # decisions whose bodies are gone
        self.policies: dict[MemberId, dict[int, Mapping[str, canon.Json]]] = {}
        self.stopped: dict[MemberId, Digest | None] = {}  # policy under which the newest run was kept back
        self.served: dict[MemberId, dict[int, tuple[Digest, Digest | None]]] = {}  # None: withdrawn
        self.kept: dict[tuple[MemberId, str], Ways] = {}  # what `ways_of` found last
        self._spent: dict[EventId, dict[tuple[MemberId, MemberId, EventId], list[int]]] = {}
        self._first: dict[tuple[MemberId, str], int] = {}
        self._ended: set[MemberId] = set()
        self._sizes: dict[MemberId, int] = {}

    # -- the fold ----------------------------------------------------------------------------------------------------
    def apply_all(self, records: Iterable[Record]) -> None:
        """Apply the entries of one feed in their order."""
        for record in records:
            self.apply(record)

    def apply(self, record: Record) -> None:
        """Take the next entry of its feed; one that was taken before, or does not parse, is passed over."""
        header = record.entry.header
        if header.seq < self._sizes.get(header.member, 0):
            return
        self._sizes[header.member] = header.seq + 1
        if header.type not in _MATTER or header.member in self._ended:
            return
        if record.body is None and header.type == events.AccessDecided.TYPE:
            self.erased.setdefault(header.member, []).append(header.seq)
        try:
            event = events.read(record)
            if isinstance(event, events.KeyRotated):
                said = succession.read(event.statement)
                if (said.collective, said.old, said.kind) == (header.collective, header.member, succession.ROTATION):
                    self._ended.add(header.member)
                return
        except Refused:
            return  # `Collective` keeps it as a flaw
        if event is not None:
            self._take(header.member, header.seq, record.entry.event, event)

    def _take(self, member: MemberId, seq: int, id_: EventId, event: events.Event) -> None:
        """What changes who may do what."""
        place = (member, seq)
        match event:
            case events.DataCommitted():
                self.committed.setdefault((member, event.dataset), []).append(seq)
            case events.DataDescribed():
                self.described[member, event.dataset] = (seq, event)
            case events.GrantIssued():
                self._issue(member, seq, id_, event)
            case events.GrantNarrowed():
                self.narrowed.setdefault(event.grant, {})[place] = terms_of(event.terms)
            case events.GrantRevoked():
                self.revoked.setdefault(event.grant, {})[place] = event.reason
            case events.GrantAccepted():
                self.accepted.setdefault(event.grant, {}).setdefault(member, seq)
            case _:
                self._note(member, seq, event)
                return
        self.version += 1

    def _note(self, member: MemberId, seq: int, event: events.Event) -> None:
        """What was done: uses, policies, and what left, stayed or is served."""
        match event:
            case events.AccessDecided():
                if event.verdict == "allow":
                    self._use((member, seq), event)
            case events.EgressSet():
                self.policies.setdefault(member, {})[seq] = event.policy
            case events.EgressRefused():
                if event.run:
                    self.stopped[member] = event.policy
            case events.Published():
                self.stopped[member] = None
            case events.ModelServed():
                self.served.setdefault(member, {})[seq] = (event.release, event.model)
            case events.ModelWithdrawn():
                self.served.setdefault(member, {})[seq] = (event.release, None)
            case _:
                pass

    def _use(self, place: Place, event: events.AccessDecided) -> None:
        spent = event.request.epsilon_micro or 0
        for grant in event.grants:
            use = Use(place=place, actor=event.request.actor, leaf=event.grants[-1], epsilon_micro=spent)
            self.uses.setdefault(grant, []).append(use)
            total = self._spent.setdefault(grant, {}).setdefault((place[0], use.actor, use.leaf), [0, 0])
            total[0] += 1
            total[1] += spent

    def _issue(self, member: MemberId, seq: int, id_: EventId, event: events.GrantIssued) -> None:
        self.grants[id_] = Grant(
            id=id_,
            issuer=member,
            seq=seq,
            dataset=event.dataset,
            parent=event.parent,
            nonce=event.nonce,
            basis=event.basis,
            terms=terms_of(event),
        )
        self.named.setdefault(event.dataset, set()).add(id_)
        self._first[member, event.nonce] = min(seq, self._first.get((member, event.nonce), seq))

    # -- what a past knows -------------------------------------------------------------------------------------------
    def commits(self, owner: MemberId, dataset: str, past: Past) -> bool:
        """Whether `owner` had committed to a data set of this name, by whichever of its keys."""
        return any(past.holds((key, seq)) for key in past.keys(owner) for seq in self.committed.get((key, dataset), ()))

    def replayed(self, grant: Grant) -> bool:
        """Whether its issuer had used its nonce before."""
        return self._first[grant.issuer, grant.nonce] != grant.seq

    def spent(self, grant: EventId, owner: MemberId, past: Past) -> tuple[int, int]:
        """Uses of a grant and the epsilon they took, by decisions of those who may write them.

        These are the owner of the data set, and who acted itself, when the grant it names is for it.
        """
        if past.sizes is None and not past.ends:
            if grant not in self._spent:
                return 0, 0
            counted = self._spent[grant].items()
        else:
            found: dict[tuple[MemberId, MemberId, EventId], list[int]] = {}
            for use in self.uses.get(grant, ()):
                if past.holds(use.place):
                    total = found.setdefault((use.place[0], use.actor, use.leaf), [0, 0])
                    total[0] += 1
                    total[1] += use.epsilon_micro
            counted = found.items()
        uses = epsilon = 0
        for (writer_key, actor_key, leaf), (number, micro) in counted:
            writer, actor = past.who(writer_key), past.who(actor_key)
            if writer == owner or (writer == actor and self._is_for(leaf, actor, past)):
                uses += number
                epsilon += micro
        return uses, epsilon

    def erased_by(self, writers: Iterable[MemberId], past: Past) -> int:
        """How many decisions of these members have no body any more."""
        keys = {key for writer in writers for key in past.keys(writer)}
        return sum(past.holds((key, seq)) for key in keys for seq in self.erased.get(key, ()))

    def _is_for(self, grant: EventId, actor: MemberId, past: Past) -> bool:
        found = self.grants.get(grant)
        if found is None:
            return False
        return actor in map(past.who, found.terms.members) or past.roles.get(actor) in found.terms.roles

    def past_of(self, fold: Collective, member: MemberId, seq: int) -> Past:
        """What the author of entry `seq` had recorded when it wrote it: its own entries before, and every head it had named.

        Law: for an honest node it holds what its own book held when it decided.
        """
        return past_in(fold, {**fold.mentions.upto(member, seq), member: seq})

    def serving(self, member: MemberId) -> dict[Digest, Digest]:
        """The releases that a member says it serves, each with the digest of its vector."""
        found: dict[Digest, Digest] = {}
        for _, (release, model) in sorted(self.served.get(member, {}).items()):
            if model is None:
                found.pop(release, None)
            else:
                found[release] = model
        return found

    def policy(self, member: MemberId, before: int | None = None) -> Mapping[str, canon.Json] | None:
        """The egress policy that a member had last set (before entry `before` of its feed)."""
        seqs = [seq for seq in self.policies.get(member, {}) if before is None or seq < before]
        return self.policies[member][max(seqs)] if seqs else None


def past_in(fold: Collective, sizes: Mapping[MemberId, int] | None = None) -> Past:
    """The past with these entries of `fold` (None: all), and the seats as the charter in force there has them."""
    if not fold.known:
        return Past(sizes=sizes)
    charter = charter_in(fold, sizes)
    now = {was.id: m.id for m in charter.members for was in m.was}
    ends = {was.id: was.size for m in charter.members for was in m.was}
    return Past(sizes=sizes, roles={m.id: m.role for m in charter.members}, now=now, ends=ends)


def charter_in(fold: Collective, sizes: Mapping[MemberId, int] | None) -> Charter:
    """The charter in force, or the newest one whose decision, with a quorum of its commits, `sizes` covers."""
    if sizes is None:
        return fold.charter
    charter = fold.charters[0]
    for decision, after in zip(fold.decisions, fold.charters[1:], strict=False):
        known = [c for c in decision.commits if c.seq < sizes.get(c.member, 0)]
        if len(known) < decision.charter.quorum:
            break
        charter = after
    return charter


def roles_in(fold: Collective, sizes: Mapping[MemberId, int] | None = None) -> dict[MemberId, str]:
    """Who has which role there."""
    return dict(past_in(fold, sizes).roles)
