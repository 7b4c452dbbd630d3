"""A member's place in a collective: its keys, the ledger, the fold, and the only hand that writes its own feed.

Knows no network. What it appends is durable when `append` returns; listeners hear of it afterwards. Invariant: the fold
equals a replay of the store. A seat that may be behind its own feed (`hold`) refuses to append until told otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ledger import events, forks
from ledger.access.book import Book, Past, past_in
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.entry import MAX_SEEN, Record, Seen
from ledger.errors import StoreFull
from ledger.events import Event, Published
from ledger.forks import Fork
from ledger.store import Store
from node.errors import AppendPaused, PassphraseNeeded
from node.home import Home
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.keys import SigningKey

PAGE: Final = 256
_FROZEN: Final = (
    "this node's feed was proven forked (two nodes wrote with one key, or an old copy was written to); it is frozen for ever: "
    "give the seat to a new key with fishernet key revoke"
)
Changed = Callable[[MemberId], None]


def now_ms() -> int:
    """The wall clock in ms: what an entry claims as its time."""
    return time.time_ns() // 1_000_000


class Seat:
    """One member in one collective."""

    def __init__(
        self,
        home: Home,
        member: MemberId,
        store: Store,
        collective: CollectiveId,
        *,
        key: SigningKey | None = None,
        clock: Callable[[], int] | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Replay what the store holds; without `key` the seat can only be read.

        `clock` (ms, the wall clock unless given) dates entries, `entropy` salts them.
        """
        self._clock, self._entropy = clock, entropy
        self.home = home
        self.me = member
        self.store = store
        self._key = key
        self.fold = Collective(collective)
        self.book = Book()
        self._past: tuple[Charter | None, Past] = (None, Past())
        self._paused: str | None = None
        self._listeners: list[Changed] = []
        self._named: dict[MemberId, int] = {}  # feed -> the size named last; the one longest not named first
        self._frozen = False
        self._founded: int | None = None
        self.full: str | None = None  # why the last append found no room; None once one went through
        for each in store.members(collective):
            self._replay(each)
        self._look_for_forks()
        if key is not None:
            store.sign_with(key, collective)
            # A stop may have come between a proof's arrival and the freezing.
            frozen = {fork.member for fork in store.forks(collective)}
            for source in (s for m, by in self.fold.forked.items() if m not in frozen for s in by.values()):
                self._learn_forks(store.records(collective, source.member, source.seq, 1))

    @property
    def collective(self) -> CollectiveId:
        """The collective's id."""
        return self.fold.id

    @property
    def paused(self) -> str | None:
        """Why nothing may be appended now, or None."""
        return _FROZEN if self._frozen else self._paused

    @property
    def key(self) -> SigningKey:
        """The ledger key (raises PassphraseNeeded when the seat was opened for reading)."""
        if self._key is None:
            raise PassphraseNeeded("couldn't sign: the ledger key was not opened")
        return self._key

    def pause(self, reason: str | None) -> None:
        """Refuse appends for this reason, or (None) allow them again."""
        self._paused = reason

    def listen(self, changed: Changed) -> None:
        """Call `changed(member)` after each feed that grew, our own included."""
        self._listeners.append(changed)

    def may_read(self, member: MemberId) -> bool:
        """Whether a member gets feeds and blobs: everybody with a seat, in any role."""
        return self.fold.known and self.fold.charter.member(member) is not None

    def farewell(self, reader: MemberId, feed: MemberId) -> int:
        """How many entries of a feed a former member may still read: those that it needs to learn that its seat is gone."""
        for decision, after in zip(reversed(self.fold.decisions), reversed(self.fold.charters), strict=False):
            if after.member(reader) is not None:
                return 0  # it has a seat
            if decision.charter.member(reader) is not None:
                said = [s.seq + 1 for s in (decision.proposal, *decision.commits) if s.member == feed]
                return max(decision.value.place.size_of(feed), *said, 0)
        return 0

    def append(self, event: Event, state: Mapping[str, bytes] | None = None) -> Record:
        """Sign and store one event of our feed with `state`, apply it, and tell the listeners.

        Raises:
            AppendPaused: our own feed may be longer elsewhere.
            FeedBehind, FeedFrozen, StoreFull, StoreBroken: nothing was written.
        """
        if self.paused:
            raise AppendPaused(f"couldn't write {event.TYPE}: {self.paused}")
        seen, named = self._seen(everything=isinstance(event, events.Committed))
        try:
            record = self.store.append(
                self.key,
                self.collective,
                event.TYPE,
                event.to_json(),
                now_ms=self.now_ms(),
                salt=self._entropy(16),
                seen=seen,
                state=dict(state or {}),
            )
        except StoreFull as e:
            self.full = str(e)
            raise
        self.full = None
        for feed, size in named.items():
            self._named.pop(feed, None)
            self._named[feed] = size
        if record.entry.header.seq > self.fold.sizes.get(self.me, 0):  # the store has just got our own entries back
            self._replay(self.me)
        else:
            self.fold.apply(record)
            self.book.apply(record)
        self._tell(self.me)
        return record

    def receive(self, member: MemberId, records: Sequence[Record]) -> None:
        """Apply entries that the store has taken from another node (our own feed too, after a restore)."""
        if records and records[0].entry.header.seq > self.fold.sizes.get(member, 0):
            self._replay(member)
        else:
            self.fold.apply_all(records)
            self.book.apply_all(records)
        self._learn_forks(records)
        self._tell(member)

    def attached(self, record: Record) -> tuple[Digest, int] | None:
        """The blob (digest, bytes) that travels together with an entry: that of a contribution of this epoch."""
        if record.entry.header.type != Published.TYPE or not self.fold.known:
            return None
        with contextlib.suppress(Refused):
            event = events.read(record)
            if isinstance(event, Published) and event.epoch == self.fold.charter.epoch_id:
                return event.blob, event.size
        return None

    def now_ms(self) -> int:
        """What the next entry would claim as its time."""
        return now_ms() if self._clock is None else self._clock()

    def run_id(self) -> str:
        """A fresh name for a training run; sorts by time, says nothing else."""
        return run_id(self.now_ms(), self._entropy(16))

    def past(self) -> Past:
        """Where a decision taken now stands: everything recorded here."""
        charter = self.fold.charter if self.fold.known else None
        if self._past[0] is not charter:
            self._past = (charter, past_in(self.fold))
        return self._past[1]

    def size(self, member: MemberId) -> int:
        """How many entries of a feed were applied."""
        return self.fold.sizes.get(member, 0)

    def founded_ms(self) -> int | None:
        """When the collective was founded, as its founder's first entry says (ms since 1970); None before that is here."""
        if self._founded is None and self.fold.founder is not None:
            first = self.store.records(self.collective, self.fold.founder, 0, 1)
            self._founded = first[0].entry.header.ts if first else None
        return self._founded

    def fork_found(self, fork: Fork) -> None:
        """Our sync has convicted a member, and the store has frozen its feed: say so in our feed, once."""
        self._look_for_forks()
        self._tell_fork(fork)
        self._tell(fork.member)

    def tell_forks(self) -> None:
        """Say in our feed what forks this node knows of and nobody has told yet."""
        for fork in self.store.forks(self.collective):
            if not self.fold.fork_known(fork.member):
                self._tell_fork(fork)

    def _tell_fork(self, fork: Fork) -> None:
        if self.paused or fork.member == self.me or self.me in self.fold.forked.get(fork.member, {}):
            return
        proof = forks.encode(fork).decode("utf-8")
        if len(proof) <= events.MAX_PROOF and forks.self_contained(fork):
            self.append(events.ForkFound(member=fork.member, proof=proof))

    def _learn_forks(self, records: Sequence[Record]) -> None:
        """Freeze what others have proven forked; the proof is checked, the teller is not believed.

        A proof convicts without other entries, or it is not told; the fold checks a bounded number of each teller.
        """
        told = [r for r in records if r.entry.header.type == events.ForkFound.TYPE and r.body is not None]
        frozen = {fork.member for fork in self.store.forks(self.collective)} if told else set()
        for record in told:
            with contextlib.suppress(Refused, KeyError):
                body = events.parse(events.ForkFound.TYPE, record.body.value() if record.body else {})
                if not isinstance(body, events.ForkFound) or body.member in frozen:
                    continue
                by = self.fold.forked.get(body.member, {}) | self.fold.forks_claimed.get(body.member, {})
                if record.entry.header.member not in by:
                    continue  # the fold has looked at it and was not convinced
                fork = forks.decode(body.proof.encode("utf-8"))
                if fork.collective == self.collective and fork.member in self.fold.ever_members():
                    self.store.add_fork(fork)
                    frozen.add(fork.member)
        if told:
            self._look_for_forks()

    def _look_for_forks(self) -> None:
        self._frozen = any(f.member == self.me for f in self.store.forks(self.collective))

    def dataset_root(self, dataset: str) -> events.DataCommitted | None:
        """Our newest commitment to a data set."""
        return self.fold.data.get(self.me, {}).get(dataset)

    def _seen(self, *, everything: bool) -> tuple[list[Seen], dict[MemberId, int]]:
        """Foreign heads to name, and their sizes: all of them at a commit (what we had recorded), else those that moved.

        Of more than an entry can name, those that moved come first, and of these the ones that were not named for longest.
        """
        moved = [
            (m, n) for m, n in self.fold.sizes.items() if m != self.me and (everything or self._named.get(m, 0) != n)
        ]
        newest = moved
        if len(moved) > MAX_SEEN:
            turn = {m: place for place, m in enumerate(self._named, 1)}
            newest = sorted(moved, key=lambda item: (self._named.get(item[0], 0) == item[1], turn.get(item[0], 0)))
            newest = newest[:MAX_SEEN]
        return [Seen(member=m, seq=n - 1, leaf=self.fold.leaves[m][n - 1]) for m, n in newest], dict(newest)

    def _replay(self, member: MemberId) -> None:
        while page := self.store.records(self.collective, member, self.fold.sizes.get(member, 0), PAGE):
            self.fold.apply_all(page)
            self.book.apply_all(page)

    def _tell(self, member: MemberId) -> None:
        for listener in self._listeners:
            listener(member)


def run_id(now: int | None = None, drawn: bytes | None = None) -> str:
    """A fresh name for a training run; sorts by time, says nothing else."""
    name = hashlib.sha256(secrets.token_bytes(16) if drawn is None else drawn).hexdigest()[:8]
    return f"{now_ms() if now is None else now:013d}-{name}"
