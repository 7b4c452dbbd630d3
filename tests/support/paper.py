"""Members on paper: real keys, real entries and the real fold, with a hand-driven clock and a hand-driven mail."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ledger import charter as charters
from ledger import charter_reading, checkpoint, cosignature, events, keyring, rules, votes, witnesses
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.cuts import Amendment, Cut, RegisterDigest
from ledger.entry import Record, Seen, make
from ledger.votes import Accept, Commit, Enter, Judge, Judgement, Moment, Object, Propose
from protocol.canon import Json
from protocol.ids import ZERO, CollectiveId, Digest, MemberId, digest
from protocol.keys import SigningKey, member_id
from protocol.merkle import root_of


def witness_key(name: str) -> SigningKey:
    return key(f"witness of {name}")


@functools.cache
def key(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def charter_of(
    names: list[str],
    *,
    faults: int | None = None,
    timeout_ms: int = 1000,
    cosignatures: int = 0,
    organisations: Mapping[str, str] | None = None,
    **roles: str,
) -> Charter:
    run_by = organisations or {}
    seats = sorted(
        (
            charters.Member(
                id=member_id(key(n)), name=n, role=roles.get(n, "contributor"), organisation=run_by.get(n, "")
            )
            for n in names
        ),
        key=lambda m: m.id,
    )
    voters = sum(s.votes for s in seats)
    return charter_reading.parse(
        Charter(
            name="paper",
            nonce=digest(b"nonce"),
            base=charters.Base(name="tiny", digest=digest(b"base")),
            adapter=charters.Adapter(rank=2, alpha=2, targets=("q_proj",), seed=digest(b"seed"), coordinates=64),
            update=charters.Update(density_ppm=200_000, value_bits=8, block=16),
            recipe="contributor-mean/1",
            gate=charters.Gate(max_blob_bytes=4096, norm_cap_micro=10**9, tolerance_centinats=2, held_out_min=0),
            release=charters.Release(wait_for=len(names), patience_ms=1000, timeout_ms=timeout_ms),
            witness=charters.Witness(cosignatures=cosignatures),
            members=tuple(seats),
            faults=charters.default_faults(voters) if faults is None else faults,
        ).to_json()
    )


@dataclass
class PaperMember:
    """One member: its key, its own feed, and what it has received of everybody's."""

    name: str
    collective: CollectiveId
    fold: Collective = field(init=False)
    feed: list[Record] = field(default_factory=list)
    attempt: int = 0
    entered: int = 0
    judged: dict[Digest, Judgement] = field(default_factory=dict)
    picky: bool = False

    def __post_init__(self) -> None:
        self.fold = Collective(self.collective)

    @property
    def id(self) -> MemberId:
        return member_id(key(self.name))

    def say(self, event: events.Event, now: int = 0) -> Record:
        return self.write(event.TYPE, event.to_json(), now)

    def write(self, kind: str, body: Json, now: int = 0) -> Record:
        """Append an entry of any type and body to the own feed."""
        prev = self.feed[-1].entry.leaf if self.feed else ZERO
        seen = [
            Seen(member=m, seq=n - 1, leaf=self.fold.leaves[m][n - 1])
            for m, n in self.fold.sizes.items()
            if m != self.id
        ]
        record = make(
            key(self.name),
            collective=self.collective,
            seq=len(self.feed),
            prev=prev,
            ts=now,
            type=kind,
            seen=seen,
            body=body,
            salt=hashlib.sha256(f"{self.name}{len(self.feed)}".encode()).digest()[:16],
        )
        self.feed.append(record)
        self.fold.apply(record)
        return record

    def publish(self, now: int = 0, number: int | None = None) -> Record:
        number = number or len(self.fold.contributions.get(self.id, [])) + 1
        blob = digest(f"{self.name}/{number}".encode())
        return self.say(
            events.Published(epoch=self.fold.charter.epoch_id, number=number, blob=blob, size=100, run=f"run {number}"),
            now,
        )

    def bind_keys(self, *, recovery: SigningKey | None = None, now: int = 0) -> Record:
        """Bind a witness key, and commit to a recovery key."""
        committed = digest(bytes(recovery.verify_key)) if recovery else None
        event = keyring.make(
            witness_key(self.name), collective=self.collective, member=self.id, post_quantum=None, recovery=committed
        )
        return self.say(event, now)

    def cosigned(self, feed: PaperMember, size: int | None = None, time: int = 1) -> events.Witnessed:
        """A cosignature of another member's head, as an honest witness makes it."""
        count = size or len(feed.feed)
        root = Digest(root_of([bytes.fromhex(r.entry.leaf) for r in feed.feed[:count]]).hex())
        head = checkpoint.make(key(feed.name), self.collective, feed.id, count, root)
        made = cosignature.make(witness_key(self.name), None, witness=self.id, head=head, time=time)
        return events.Witnessed(member=feed.id, size=count, root=root, time=time, signature=made.signature)

    def cosign(self, *feeds: PaperMember, now: int = 1000) -> Record:
        """Cosign these feeds in one entry."""
        heads = sorted((self.cosigned(f, time=now // 1000) for f in feeds), key=lambda h: h.member)
        return self.say(events.HeadWitnessed(heads=tuple(heads)), now)

    def cosign_due(self, now: int) -> bool:
        """Cosign what is here and asks for it, once keys are bound; whether there was anything."""
        due = witnesses.due(self.fold, self.id) if self.id in self.fold.witnesses.bound else []
        rows = []
        for feed in sorted(due):
            leaves = self.fold.leaves[feed]
            root, time = Digest(root_of([bytes.fromhex(x) for x in leaves]).hex()), max(1, now // 1000)
            head = checkpoint.assemble(self.collective, feed, len(leaves), root, bytes(64))
            made = cosignature.make(witness_key(self.name), None, witness=self.id, head=head, time=time)
            rows.append(events.Witnessed(member=feed, size=len(leaves), root=root, time=time, signature=made.signature))
        if rows:
            self.say(events.HeadWitnessed(heads=tuple(rows)), max(now, 1000))
        return bool(rows)

    def restart(self) -> None:
        """Lose everything but the own feed, as after a kill."""
        self.fold = Collective(self.collective)
        self.fold.apply_all(self.feed)
        self.attempt, self.judged = votes.starting_attempt(self.fold.tally, self.id), {}

    def step(self, now: int) -> bool:
        """Do one act; True when something was written or changed."""
        fold = self.fold
        if not fold.known:
            return False
        if self.cosign_due(now):
            return True
        height = fold.height
        moment = Moment(
            attempt=self.attempt,
            elapsed_ms=now - self.entered,
            due=bool(fold.pending()) or bool(fold.ripe_amendments()),
            judged=self.judged,
        )
        act = votes.act(fold, self.id, moment)
        match act:
            case Propose():
                value = fold.tally.values[act.digest] if act.digest else self.draft()
                self.say(
                    events.Proposed(
                        height=height, attempt=act.attempt, valid_attempt=act.valid_attempt, value=value.to_json()
                    ),
                    now,
                )
            case Judge():
                check = rules.check(fold, act.proposal.value)
                if isinstance(check, rules.Lacking):
                    return False
                sound = isinstance(check, rules.Fits)
                self.judged[act.proposal.digest] = Judgement(
                    sound=sound, accept=sound and not self.picky, reason="" if sound else getattr(check, "reason", "")
                )
                if self.picky:
                    self.judged[act.proposal.digest] = Judgement(sound=sound, accept=False, reason="worse")
            case Accept():
                self.say(events.Accepted(height=height, attempt=act.attempt, digest=act.digest), now)
            case Object():
                self.say(events.Objected(height=height, attempt=act.attempt, digest=act.digest, reason=act.reason), now)
            case Commit():
                self.say(events.Committed(height=height, attempt=act.attempt, digest=act.digest), now)
            case Enter():
                self.attempt, self.entered = act.attempt, now
            case _:
                return False
        if fold.height != height:
            self.attempt, self.entered = 0, now
        return True

    def draft(self) -> Cut | Amendment:
        fold = self.fold
        ripe = fold.ripe_amendments()
        sizes = {m: n for m, n in fold.sizes.items() if m in fold.ever_members()}
        if ripe:
            return Amendment(place=rules.place(fold, sizes), proposal=ripe[0].source.event, change=ripe[0].change)
        sizes = rules.within_reach(fold, sizes)
        place = rules.place(fold, sizes)
        previous = fold.current_cut()
        excluded = (*(previous.excluded if previous else ()), *rules.refused(fold, sizes))
        cut = Cut(
            place=place,
            number=len(fold.releases) + 1,
            parent_release=fold.releases[-1].digest if fold.releases else None,
            epoch=fold.charter.epoch_id,
            last=rules.last_of(fold, place),
            excluded=tuple(sorted(excluded, key=lambda x: x.event)),
            recipe=fold.charter.recipe,
            registers=(),
            model=digest(b"model"),
        )
        registers = tuple(RegisterDigest(member=m, digest=digest(m.encode())) for m in sorted(fold.in_cut(cut)))
        return replace(cut, registers=registers)


@dataclass
class Paper:
    """A collective on paper: mail is delivered in a random order, and never to the dead."""

    members: dict[str, PaperMember]
    random: random.Random
    now: int = 0
    dead: set[str] = field(default_factory=set)
    slow: float = 0.0

    @classmethod
    def found(cls, names: list[str], seed: int = 0, **options: object) -> Paper:
        charter = charter_of(names, **options)  # type: ignore[arg-type]
        collective = charters.collective_id(charter)
        paper = cls({n: PaperMember(n, collective) for n in names}, random.Random(seed))
        paper.members[names[0]].say(events.Genesis(charter=charter.to_json()))
        paper.deliver_all()
        return paper

    def cosign_all(self, now: int = 1000) -> None:
        """Everybody alive holds everything and cosigns everybody else."""
        self.deliver_all()
        for member in self.alive():
            member.cosign(*(m for m in self.alive() if m is not member), now=now)
        self.deliver_all()

    def alive(self) -> list[PaperMember]:
        return [m for n, m in self.members.items() if n not in self.dead]

    def deliver_all(self) -> None:
        for to in self.alive():
            for source in self.members.values():
                to.fold.apply_all(source.feed)
                to.entered = to.entered or self.now

    def guest(self, name: str) -> PaperMember:
        """Somebody who knows everything and has no seat."""
        self.members[name] = PaperMember(name, next(iter(self.members.values())).collective)
        self.deliver_all()
        return self.members[name]

    def release(self) -> Cut:
        """Everybody alive publishes, and one more height is decided."""
        for member in self.alive():
            if member.fold.charter.member(member.id) in member.fold.charter.contributors:
                member.publish(self.now)
        return self.decide()

    def decide(self) -> Cut:
        """Everything is delivered and one more height is decided; returns the latest cut."""
        self.deliver_all()
        self.run(max(len(m.fold.decisions) for m in self.alive()) + 1)
        self.deliver_all()
        cut = self.alive()[0].fold.cut
        assert cut is not None
        return cut

    def amend(self, change: dict[str, Json]) -> None:
        """All voters ask for a change, and it is decided."""
        first, *others = [m for m in self.alive() if m.id in {v.id for v in m.fold.charter.voters}]
        asked = first.say(events.AmendmentProposed(change=change), self.now)
        for other in others:
            other.say(events.AmendmentApproved(proposal=asked.entry.event), self.now)
        self.deliver_all()
        self.run(len(first.fold.decisions) + 1)
        self.deliver_all()

    def run(self, until: int, ms: int = 300_000) -> None:
        """Let time pass until every living member has decided `until` heights (or `ms` have passed)."""
        end = self.now + ms
        while self.now < end and any(len(m.fold.decisions) < until for m in self.alive()):
            member = self.random.choice(self.alive())
            if self.random.random() >= self.slow:
                for source in self.random.sample(self.alive(), len(self.alive())):
                    if self.random.random() < 0.7:
                        height = member.fold.height
                        member.fold.apply_all(source.feed)
                        if member.fold.height != height:
                            member.attempt, member.entered = 0, self.now
            if not member.step(self.now):
                self.now += self.random.randint(1, 60)
