"""A small collective written by hand: real keys, entries, folds and blobs, a clock that only moves when told, no network.

One `World` plays every member, honest or not; `save` puts it into a real store, as a member or an auditor would hold it. A
member that is `apart` hears nothing of the others. What an act needs first (commit, describe, grant, bind) `opened` has done.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from paper import charter_of, key, witness_key
from seats import own_grant

from contrib import updates
from contrib.merging import model_digest
from ledger import charter as charters
from ledger import checkpoint, cosignature, events, keyring, rules
from ledger.access import egress
from ledger.access.book import Book, Past, roles_in
from ledger.access.decision import decide
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.cuts import Cut, Exclusion, RegisterDigest
from ledger.entry import Record, Seen, make
from ledger.store import Store
from node.collective.replay import Model, Replay, completed
from protocol import contribution as blobs
from protocol import sparse
from protocol.canon import Json
from protocol.card import Card
from protocol.ids import ZERO, Digest, EventId, MemberId, digest
from protocol.keys import member_id
from protocol.merkle import root_of

HOUR, DAY = 3_600_000, 86_400_000
START = 1_760_000_000_000
PURPOSE = "model-improvement"


class World:
    """All members of one collective, and everything they wrote."""

    def __init__(
        self, names: Sequence[str] = ("ada", "bob", "cyd"), *, real_blobs: bool = True, **options: Any
    ) -> None:
        charter: Charter = options.pop("charter", None) or charter_of(list(names), **options)
        self.collective = charters.collective_id(charter)
        self.ids: dict[str, MemberId] = {n: member_id(key(n)) for n in names}
        self.feeds: dict[str, list[Record]] = {n: [] for n in names}
        self.fold, self.book = Collective(self.collective), Book()
        self._replay: Replay | None = None
        self.now, self.runs, self.real_blobs = START, 0, real_blobs
        self.apart: set[str] = set()
        self.policies: dict[str, Digest] = {}  # digests of egress policies that members have set
        self.blobs: dict[Digest, bytes] = {}
        self._knows: dict[str, dict[str, int]] = {n: {} for n in names}
        self._named: dict[str, dict[str, int]] = {n: {} for n in names}
        self._keys: dict[str, Any] = {}
        self.say(names[0], events.Genesis(charter=charter.to_json()))

    @classmethod
    def opened(cls, names: Sequence[str] = ("ada", "bob", "cyd"), **options: Any) -> World:
        """Everybody has bound keys, committed to a data set `rows`, described it, and granted itself its use."""
        world = cls(names, **options)
        for name in names:
            world.say(name, world.bound(name))
            world.open_data(name)
        return world

    # -- writing -----------------------------------------------------------------------------------------------------
    def hear(self, name: str) -> None:
        """Everything written so far reaches a member, unless one of the two is apart."""
        if name not in self.apart:
            for other in self.feeds:
                if other != name and other not in self.apart:
                    self._knows[name][other] = len(self.feeds[other])

    def say(
        self, name: str, event: events.Event | str, body: Json = None, *, ts: int | None = None,
        seen: Sequence[Seen] | None = None, salt: bytes | None = None,
    ) -> Record:  # fmt: skip
        """The next entry of a member: an event, or a type with any body."""
        kind, content = (event, body) if isinstance(event, str) else (event.TYPE, event.to_json())
        self.hear(name)
        self.now += 1000
        feed = self.feeds[name]
        record = make(
            key(name),
            collective=self.collective,
            seq=len(feed),
            prev=feed[-1].entry.leaf if feed else ZERO,
            ts=self.now if ts is None else ts,
            type=kind,
            seen=self.seen(name) if seen is None else seen,
            body=content,
            salt=secrets.token_bytes(16) if salt is None else salt,
        )
        feed.append(record)
        self.fold.apply(record)
        self.book.apply(record)
        return record

    def seen(self, name: str) -> list[Seen]:
        """The heads that moved since the member last named them."""
        moved = {o: n for o, n in self._knows[name].items() if n and self._named[name].get(o, 0) != n}
        self._named[name].update(moved)
        return [self.head(o, n) for o, n in moved.items()]

    def head(self, name: str, size: int) -> Seen:
        """What somebody who holds `size` entries of a member has seen of it."""
        return Seen(member=self.ids[name], seq=size - 1, leaf=self.feeds[name][size - 1].entry.leaf)

    def knows(self, name: str, **sizes: int) -> None:
        """Set by hand how much a member holds of others."""
        self._knows[name].update(sizes)

    def past(self, name: str) -> Past:
        """What a member knows now."""
        self.hear(name)
        sizes = {self.ids[o]: n for o, n in self._knows[name].items()} | {self.ids[name]: len(self.feeds[name])}
        return Past(sizes=sizes, roles=roles_in(self.fold, sizes))

    # -- keys and witnesses --------------------------------------------------------------------------------------------
    def bound(self, name: str) -> events.KeysBound:
        return keyring.make(
            witness_key(name), collective=self.collective, member=self.ids[name], post_quantum=None, recovery=None
        )

    def cosigned(
        self, name: str, of: str, *, size: int | None = None, root: Digest | None = None, time: int | None = None
    ) -> Record:
        """A member cosigns what it holds of another one's feed (or what it is told to say)."""
        self.hear(name)
        leaves = [bytes.fromhex(r.entry.leaf) for r in self.feeds[of]]
        size = self._knows[name].get(of, 0) if size is None else size
        found = Digest(root_of(leaves[:size]).hex()) if root is None else root
        head = checkpoint.make(key(of), self.collective, self.ids[of], size, found)
        made = cosignature.make(
            witness_key(name),
            None,
            witness=self.ids[name],
            head=head,
            time=(self.now + 1000) // 1000 if time is None else time,
        )
        said = events.Witnessed(member=head.member, size=size, root=found, time=made.time, signature=made.signature)
        return self.say(name, events.HeadWitnessed(heads=(said,)))

    # -- data ----------------------------------------------------------------------------------------------------------
    def open_data(self, name: str, dataset: str = "rows", **terms: Any) -> Record:
        """Commit, describe, grant to oneself; returns the grant."""
        root = digest(f"{name}/{dataset}".encode())
        self.say(
            name,
            events.DataCommitted(dataset=dataset, train_rows=90, held_out_rows=10, train_root=root, held_out_root=root),
        )
        self.say(name, events.DataDescribed(
            dataset=dataset, tags=("consented",), columns=("text",), purposes=(PURPOSE,), retention_days=365,
            licence="internal", basis="consent",
        ))  # fmt: skip
        return self.grant(name, dataset=dataset, **terms)

    def grant(self, name: str, /, **terms: Any) -> Record:
        """A grant by a member, to itself unless `audience` says another; `to` names members."""
        if "to" in terms:
            terms["audience"] = events.Audience(members=tuple(sorted(self.ids[n] for n in terms.pop("to"))))
        nonce = terms.pop("nonce", digest(secrets.token_bytes(8)))
        return self.say(name, own_grant(self.ids[name], nonce, **terms))

    def request(self, name: str, run: str, /, **fields: Any) -> events.AccessRequest:
        whole: dict[str, Any] = {
            "actor": self.ids[name], "action": "train", "dataset": "rows", "purpose": PURPOSE, "columns": (), "rows": 90,
            "epsilon_micro": None, "at": self.now + 1000, "run": run,
        }  # fmt: skip
        return events.AccessRequest(**{**whole, **fields})

    def decided(self, name: str, run: str, /, *, lie: Mapping[str, Any] | None = None, **fields: Any) -> Record:
        """Ask and write the answer down: the right one, unless `lie` replaces parts of it."""
        request = self.request(name, run, **fields)
        answer = decide(self.book, request, self.past(name))
        said: dict[str, Any] = {
            "request": request, "grants": answer.grants, "verdict": answer.verdict, "reasons": answer.reasons,
            "policy": self.policies.get(name, egress.DEFAULT.digest),
        }  # fmt: skip
        return self.say(name, events.AccessDecided(**{**said, **(lie or {})}))

    def used(self, name: str, decision: Record, /, **fields: Any) -> Record:
        """Log the access that a decision allowed; `fields` replace what the log says."""
        body: Any = decision.body.value() if decision.body else {}
        asked = body["request"]
        whole: dict[str, Any] = {k: asked[k] for k in ("dataset", "rows", "action", "purpose", "run")}
        whole |= {"root": digest(f"{name}/{asked['dataset']}".encode()), "decision": decision.entry.event}
        return self.say(name, events.DataUsed(**{**whole, **fields}))

    def read(self, name: str, /, **fields: Any) -> tuple[Record, Record]:
        """One honest access: the decision and the log of it."""
        self.runs += 1
        decision = self.decided(name, f"run-{self.runs}", **fields)
        return decision, self.used(name, decision)

    def allowed_by(self, *grants: Record) -> dict[str, Any]:
        """The lie that a chain of grants allows it."""
        return {"grants": tuple(g.entry.event for g in grants), "verdict": "allow", "reasons": ()}

    # -- contributions and releases --------------------------------------------------------------------------------------
    def published(self, name: str, run: str | None = None, /, **fields: Any) -> Record:
        """A contribution of a run that is on record (of a new, honest one when none is named)."""
        if run is None:
            self.read(name)
            run = f"run-{self.runs}"
        epoch = self.fold.charter.epoch_id
        number = 1 + sum(c.epoch == epoch for c in self.fold.contributions.get(self.ids[name], []))
        data = self._blob(name, number) if self.real_blobs else f"{name}/{number}".encode()
        self.blobs[digest(data)] = data
        whole: dict[str, Any] = {"epoch": epoch, "number": number, "blob": digest(data), "size": len(data), "run": run}
        return self.say(name, events.Published(**{**whole, **fields}))

    def draft(
        self, *, exclude: Sequence[EventId] = (), model: Digest | None = None, reach: bool = True, forget: bool = True
    ) -> Cut:
        """The cut that an honest proposer makes of everything, without `exclude`.

        A dishonest one ignores what is in reach, or what was asked to be forgotten.
        """
        fold = self.fold
        sizes = {m: n for m, n in fold.sizes.items() if m in fold.ever_members()}
        sizes = rules.within_reach(fold, sizes) if reach else sizes
        place, previous = rules.place(fold, sizes), fold.current_cut()
        excluded = {x.event: x for x in (*(previous.excluded if previous else ()), *rules.refused(fold, sizes))}
        for event, exclusion in rules.owed(fold, place).items() if forget else ():
            excluded.setdefault(event, exclusion)
        for event in exclude:
            evidence = tuple(sorted(rules.objections(fold, place, event).values()))
            excluded[event] = Exclusion(event=event, reason=rules.REFUSED, evidence=evidence)
        cut = Cut(
            place=place,
            number=len(fold.releases) + 1,
            parent_release=fold.releases[-1].digest if fold.releases else None,
            epoch=fold.charter.epoch_id,
            last=rules.last_of(fold, place),
            excluded=tuple(excluded[e] for e in sorted(excluded)),
            recipe=fold.charter.recipe,
            registers=(),
            model=digest(b"model"),
        )
        cut = self.completed(cut)
        return cut if model is None else replace(cut, model=model)

    def completed(self, cut: Cut) -> Cut:
        """With the registers and the model that its contributions give."""
        if self.real_blobs:
            self._replay = self._replay or Replay(self.fold, self.blobs.get)
            made = self._replay.of_cut(self.fold.charter, cut)
            assert isinstance(made, Model)
            return completed(cut, made)
        registers = (RegisterDigest(member=m, digest=digest(m.encode())) for m in sorted(self.fold.in_cut(cut)))
        return replace(cut, registers=tuple(registers))

    def objected(self, contribution: Record, *names: str, reason: str = "worse") -> None:
        """Members speak against a contribution at this height."""
        objection = events.Objection(event=contribution.entry.event, reason=reason)
        for name in names:
            self.say(name, events.Verdict(
                height=self.fold.height, candidate=digest(b"candidate"), rows=300, versus_base=9, versus_parent=9,
                objections=(objection,),
            ))  # fmt: skip

    def decide(self, value: Cut, by: Sequence[str] | None = None) -> Record:
        """Propose, accept and commit a value; returns the proposal."""
        height, names = self.fold.height, list(by or self.feeds)
        proposal = self.say(
            names[0], events.Proposed(height=height, attempt=0, valid_attempt=-1, value=value.to_json())
        )
        for name in names:
            self.say(name, events.Accepted(height=height, attempt=0, digest=value.digest))
        for name in names:
            self.say(name, events.Committed(height=height, attempt=0, digest=value.digest))
        return proposal

    def release(self, *names: str, **draft: Any) -> Record:
        """These members (else all) contribute, and all decide; returns the proposal."""
        for name in names or tuple(self.feeds):
            self.published(name)
        return self.decide(self.draft(**draft))

    def served(self, name: str, /, **fields: Any) -> Record:
        """A member begins to serve the newest release."""
        decision = self.fold.releases[-1]
        assert isinstance(decision.value, Cut)
        return self.say(
            name, events.ModelServed(**{"release": decision.digest, "model": decision.value.model, **fields})
        )

    # -- erasure -------------------------------------------------------------------------------------------------------
    def forgotten(
        self, name: str, *, contributions: Sequence[Record] = (), entries: Sequence[Record] = (), days: int = 30
    ) -> Record:
        """A member forgets a row, and asks for what came from it."""
        return self.say(name, events.ErasureRequested(
            dataset="rows", scope="row", rows=1, request=digest(secrets.token_bytes(8)),
            contributions=tuple(sorted(r.entry.event for r in contributions)),
            entries=tuple(sorted(r.entry.event for r in entries)), deadline=self.now + days * DAY,
        ))  # fmt: skip

    def erased(self, name: str, request: Record, bodies: int = 0) -> Record:
        return self.say(name, events.ErasureDone(request=request.entry.event, bodies=bodies))

    def without_body(self, record: Record) -> None:
        """The world as it is held where this body was erased."""
        feed = next(f for n, f in self.feeds.items() if self.ids[n] == record.entry.header.member)
        feed[record.entry.header.seq] = Record(entry=record.entry, body=None)

    def alive(self, *names: str) -> None:
        for name in names or tuple(self.feeds):
            self.say(name, events.NodeAlive())

    # -- holding it ----------------------------------------------------------------------------------------------------
    def save(self, folder: Path, *, without: Sequence[str] = ()) -> Path:
        """Store every feed and blob in a folder, as an auditor fetches them; returns the ledger's path."""
        (folder / "blobs").mkdir()
        for name, data in self.blobs.items():
            (folder / "blobs" / name).write_bytes(data)
        with Store.open(folder / "ledger.db") as store:
            for name, feed in self.feeds.items():
                if name in without or not feed:
                    continue
                leaves = [bytes.fromhex(r.entry.leaf) for r in feed]
                head = checkpoint.make(
                    key(name), self.collective, self.ids[name], len(feed), Digest(root_of(leaves).hex())
                )
                for start in range(0, len(feed), 256):
                    store.append_foreign(self.collective, self.ids[name], feed[start : start + 256], head.note)
        return folder / "ledger.db"

    def _blob(self, name: str, number: int) -> bytes:
        charter = self.fold.charter
        raw = hashlib.sha256(f"{name}/{number}".encode()).digest()
        indices = np.array(sorted({b % 64 for b in raw[:6]}), dtype=np.uint32)
        values = np.array([(b - 128) / 256 or 0.5 for b in raw[6 : 6 + len(indices)]], dtype=np.float32)
        data = sparse.encode(
            coordinates=64, indices=indices, values=values, bits=charter.update.value_bits, block=charter.update.block
        )
        update = sparse.decode(data, coordinates=64, max_sent=64)
        card = Card(
            collective=self.collective, member=self.ids[name], epoch=charter.epoch_id, base=charter.base.digest, number=number,
            view=model_digest(np.zeros(64, dtype=np.float32)), train_root=digest(b"train"), held_out_root=digest(b"held out"),
            train_rows=90, steps=4, tokens=99, epsilon_micro=None, selection="fisher-r2",
            density_ppm=charter.update.density_ppm, value_bits=charter.update.value_bits, coordinates=64, sent=update.sent,
            norm_micro=updates.norm_micro(update), loss_before=420, loss_after=400, libraries={"numpy": "2"},
        )  # fmt: skip
        return blobs.pack(card, data, key(name))
