"""B: an author lies with a valid key. C: keys, cosignatures and successions that are not what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paper import key
from world import DAY, HOUR, World

from ledger import checkpoint, cosignature, events, forks, succession
from ledger.entry import Record, Seen, make
from ledger.errors import ForkSeen
from ledger.forks import Fork
from ledger.store import Store
from protocol.ids import ZERO, digest
from tests.attacks.case import Held, Place, attack, tampering


def other(w: World, name: str, seq: int) -> Record:
    """Another entry that the author signs for a place."""
    prev = w.feeds[name][seq - 1].entry.leaf if seq else ZERO
    return make(
        key(name), collective=w.collective, seq=seq, prev=prev, ts=w.now, type="node.alive", seen=(), body={},
        salt=b"another salt 123",
    )  # fmt: skip


def takes(held: Held, name: str, records: list[Record], note: bytes | None) -> None:
    """The store meets the other history, keeps the proof and freezes the feed."""
    with Store.open(held.path) as store, pytest.raises(ForkSeen):
        store.append_foreign(held.world.collective, held.world.ids[name], records, note)


# -- B ---------------------------------------------------------------------------------------------------------------------
@attack(13, "a feed that is shorter than others have seen it", "seen-missing", severity="notice")
def _(w: World, lie: bool) -> Record:
    w.say("ada", events.NodeAlive())
    seen = w.say("bob", events.NodeAlive())
    if lie:
        w.feeds["ada"].pop()
    return seen


@attack(14, "a history that is rewritten and signed again", "seen-branch")
def _(w: World, lie: bool) -> Record:
    w.say("ada", events.NodeAlive())
    seen = w.say("bob", events.NodeAlive())
    if lie:
        w.feeds["ada"][-1] = other(w, "ada", len(w.feeds["ada"]) - 1)
    return seen


@tampering(15, "two histories shown to two members", "fork")
def _(held: Held) -> Place:
    at = len(held.world.feeds["cyd"]) - 2
    takes(held, "cyd", [other(held.world, "cyd", at)], None)
    return held.place("cyd", at)


@tampering(10, "an old backup is restored and written on", "fork")
def _(held: Held) -> Place:
    at = len(held.world.feeds["bob"]) - 3
    first = other(held.world, "bob", at)
    leaf = first.entry.leaf
    second = make(
        key("bob"), collective=held.world.collective, seq=at + 1, prev=leaf, ts=held.world.now, type="node.alive", seen=(),
        body={}, salt=b"one more salt 12",
    )  # fmt: skip
    takes(held, "bob", [first, second], None)
    return held.place("bob", at)


@tampering(16, "two entries with one number", "fork")
def _(held: Held) -> Place:
    takes(held, "ada", [other(held.world, "ada", 0)], None)
    return held.place("ada", 0)


@tampering(17, "two heads of one size", "fork")
def _(held: Held) -> Place:
    w, size = held.world, len(held.world.feeds["ada"])
    lie = checkpoint.make(key("ada"), w.collective, w.ids["ada"], size, digest(b"another history"))
    takes(held, "ada", [], lie.note)
    return held.place("ada", size)


@tampering(19, "a head of a branch that is not the one published", "fork")
def _(held: Held) -> Place:
    w = held.world
    lie = checkpoint.make(key("ada"), w.collective, w.ids["ada"], 4, digest(b"another branch"))
    takes(held, "ada", [], lie.note)
    return held.place("ada", 4)


@attack(22, "a link to an entry that never was", "seen-branch")
def _(w: World, lie: bool) -> Record:
    link = w.head("ada", len(w.feeds["ada"]))
    return w.say("bob", events.NodeAlive(), seen=[replace(link, leaf=digest(b"no entry")) if lie else link])


@attack(22, "a link to an entry of the future", "seen-missing", severity="notice")
def _(w: World, lie: bool) -> Record:
    size = len(w.feeds["ada"])
    future = Seen(member=w.ids["ada"], seq=size + 5, leaf=digest(b"not yet"))
    return w.say("bob", events.NodeAlive(), seen=[future] if lie else None)


@attack(22, "a link backwards", "seen-backwards", severity="warning")
def _(w: World, lie: bool) -> Record:
    size = len(w.feeds["ada"])
    w.say("bob", events.NodeAlive(), seen=[w.head("ada", size)])
    return w.say("bob", events.NodeAlive(), seen=[w.head("ada", size - (2 if lie else 0))])


@attack(23, "a time of the future", "ts-future", severity="warning", also="time-in-the-future seen-later")
@attack(23, "a time after that of its witness", "time-in-the-future", severity="warning", also="ts-future seen-later")
def _(w: World, lie: bool) -> Record:
    entry = w.say("ada", events.NodeAlive(), ts=w.now + 30 * DAY if lie else None)
    w.cosigned("bob", "ada")
    return entry


@attack(25, "a revocation that is dated back convicts nobody", "ts-backwards", severity="notice", also="seen-later")
def _(w: World, lie: bool) -> Record:
    grant = w.grant("ada", to=["bob"])
    w.say("bob", events.GrantAccepted(grant=grant.entry.event))
    w.now += HOUR
    w.read("bob", dataset=w.ids["ada"] + "/rows")
    w.alive()
    return w.say(
        "ada", events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"), ts=w.now - HOUR if lie else None
    )


# -- C ---------------------------------------------------------------------------------------------------------------------
@attack(34, "a witness key under another member's name", "malformed")
def _(w: World, lie: bool) -> Record:
    bound = w.bound("ada")
    if lie:
        bound = replace(bound, witness=w.bound("bob").witness)
    return w.say("ada", bound)


@attack(34, "a witness key that did not agree", "bad-signature")
def _(w: World, lie: bool) -> Record:
    bound = w.bound("ada")
    if lie:
        public = bytes(key("stranger").verify_key)
        bound = replace(
            bound, witness=cosignature.verifier_key(w.collective, w.ids["ada"], cosignature.ED25519, public)
        )
    return w.say("ada", bound)


@attack(36, "a cosignature from the future", "bad-event")
def _(w: World, lie: bool) -> Record:
    return w.cosigned("bob", "ada", time=(w.now + HOUR) // 1000 if lie else None)


@attack(36, "a cosignature of another member's head", "bad-signature")
def _(w: World, lie: bool) -> Record:
    record = w.cosigned("bob", "ada")
    if lie:
        body = events.parse("head.witnessed", record.body.value() if record.body else {})
        assert isinstance(body, events.HeadWitnessed)
        record = w.say("bob", events.HeadWitnessed(heads=(replace(body.heads[0], member=w.ids["cyd"]),)))
    return record


@attack(35, "a witness cosigns a history that is not the one here", "witness-contradicts")
def _(w: World, lie: bool) -> Record:
    return w.cosigned("bob", "ada", size=3, root=digest(b"another history") if lie else None)


def succeeded(w: World, owner: str) -> succession.Statement:
    """Cyd's feed goes on under another key, says the owner of a key."""
    head = w.feeds["cyd"][-1].entry
    return succession.make(
        key(owner), key("cyd's next"), collective=w.collective, old=w.ids["cyd"], size=head.header.seq + 1, leaf=head.leaf
    )  # fmt: skip


@attack(32, "a key writes on after it was given up", "feed-ended")
def _(w: World, lie: bool) -> Record:
    last = w.say("cyd", events.KeyRotated(statement=succeeded(w, "cyd").to_json()))
    return w.say("cyd", events.NodeAlive()) if lie else last


@attack(33, "a thief ends a feed without the owner's key", "bad-event")
def _(w: World, lie: bool) -> Record:
    return w.say("cyd", events.KeyRotated(statement=succeeded(w, "thief" if lie else "cyd").to_json()))


@attack(51, "a forged proof of a fork", "bad-signature")
def _(w: World, lie: bool) -> Record:
    if not lie:
        return w.say("bob", events.NodeAlive())
    first, second = w.feeds["ada"][3].entry.line, other(w, "bob", 3).entry.line
    forged = second.replace(w.ids["bob"].encode(), w.ids["ada"].encode())
    fork = Fork(kind="entries", collective=w.collective, member=w.ids["ada"], at=3, evidence=(first, forged))
    return w.say("bob", events.ForkFound(member=w.ids["ada"], proof=forks.encode(fork).decode()))


@attack(15, "a fork that another member has proven", "fork")
def _(w: World, lie: bool) -> Place:
    if lie:
        lines = (w.feeds["ada"][3].entry.line, other(w, "ada", 3).entry.line)
        fork = Fork(kind="entries", collective=w.collective, member=w.ids["ada"], at=3, evidence=lines)
        w.say("bob", events.ForkFound(member=w.ids["ada"], proof=forks.encode(fork).decode()))
    return Place(w.ids["ada"], None)
