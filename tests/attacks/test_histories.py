"""Random honest histories give no finding: whatever honest members do, in whatever order, the audit accuses nobody.

`--histories N` makes N of them (the nightly run: 100,000); the default is a small sample. Real keys, real entries, the real
fold, book, facts and rules; the store and the blobs are left out, they have tests of their own.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from world import DAY, HOUR, PURPOSE, World

from ledger import events
from ledger.access import egress
from ledger.access.book import Book
from ledger.collective import Collective
from ledger.compliance.facts import Facts, empty
from ledger.compliance.findings import find
from ledger.compliance.repeat import repeat
from ledger.compliance.signs import links, signs
from ledger.entry import Record

PART = 1000  # histories of one test
NAMES = ("ada", "bob", "cyd", "dan")
DATABASE = empty()


@functools.cache
def opened(names: tuple[str, ...], cosignatures: int) -> bytes:
    return pickle.dumps(World.opened(names, real_blobs=False, cosignatures=cosignatures))


class History:
    """A world in which only honest things happen."""

    def __init__(self, names: tuple[str, ...], cosignatures: int) -> None:
        self.names = names
        self.world: World = pickle.loads(opened(names, cosignatures))  # noqa: S301  # a tenth of the price of a new one
        self.lent: list[tuple[str, Record]] = []  # owner and grant, while it stands
        self.serving: dict[str, Any] = {}
        self.used: dict[str, list[Record]] = {n: [] for n in names}
        self.made: dict[str, list[Record]] = {n: [] for n in names}

    def do(self, act: str, who: int, what: int) -> None:
        name = self.names[who % len(self.names)]
        if self.world.apart and act not in ALONE:
            self.world.apart = set()
        ACTS[act](self, name, what)

    # -- what members do -------------------------------------------------------------------------------------------------
    def read(self, name: str, what: int) -> None:
        """Use one's own rows, or ask for somebody else's; what is denied is not used."""
        w = self.world
        owner = self.names[what % len(self.names)]
        dataset = "rows" if owner == name or w.apart else f"{w.ids[owner]}/rows"
        action = ("train", "evaluate", "label")[what % 3]
        purpose = PURPOSE if what % 5 else "teaching"
        w.runs += 1
        fields: dict[str, Any] = {
            "dataset": dataset,
            "action": action,
            "purpose": purpose,
            "columns": ("text",) if what % 2 else (),
        }
        decision = w.decided(name, f"run-{w.runs}", epsilon_micro=None if what % 4 else 1000, **fields)
        body: Any = decision.body.value() if decision.body else {}
        if body["verdict"] == "allow":
            self.used[name] += [decision, w.used(name, decision, rows=what % 91)]

    def contribute(self, name: str, _what: int) -> None:
        before = len(self.world.feeds[name])
        self.made[name].append(self.world.published(name))
        self.used[name] += self.world.feeds[name][before : before + 2]

    def lend(self, name: str, what: int) -> None:
        w = self.world
        to = self.names[(self.names.index(name) + 1 + what) % len(self.names)]
        if to == name:
            return
        grant = w.grant(
            name, to=[to], depth=what % 3, uses=None if what % 2 else 1 + what % 4, epsilon_micro=None if what % 3 else 5000,
            not_before=w.now + (HOUR if what % 7 == 0 else 0), expires=None if what % 5 else w.now + HOUR,
            actions=("evaluate", "train") if what % 2 else ("train",),
            selector=events.Selector(columns=("text",) if what % 3 else None),
        )  # fmt: skip
        w.say(to, events.GrantAccepted(grant=grant.entry.event))
        self.lent.append((name, grant))
        if what % 3 == 2:
            terms: Any = grant.body.value() if grant.body else {}
            third = self.names[(self.names.index(to) + 1) % len(self.names)]
            below = events.parse("grant.issued", {
                **terms, "parent": grant.entry.event, "depth": 0, "nonce": w.ids[to][:56] + f"{what:08d}",
                "audience": {"members": [w.ids[third]], "roles": []},
            })  # fmt: skip
            handed = w.say(to, below)
            if third != to:
                w.say(third, events.GrantAccepted(grant=handed.entry.event))

    def narrow(self, _name: str, what: int) -> None:
        if self.lent:
            owner, grant = self.lent[what % len(self.lent)]
            terms: Any = grant.body.value() if grant.body else {}
            narrower = events.parse("grant.issued", {**terms, "actions": terms["actions"][: 1 + what % 2], "uses": 9})
            assert isinstance(narrower, events.GrantIssued)
            self.world.say(owner, events.GrantNarrowed(grant=grant.entry.event, terms=narrower))

    def revoke(self, _name: str, what: int) -> None:
        if self.lent:
            owner, grant = self.lent.pop(what % len(self.lent))
            self.world.say(owner, events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"))

    def cosign(self, name: str, what: int) -> None:
        of = self.names[what % len(self.names)]
        if of != name:
            self.world.cosigned(name, of)

    def release(self, _name: str, _what: int) -> None:
        w = self.world
        if w.fold.charter.witness.cosignatures:
            for name in self.names:
                for of in self.names:
                    if of != name:
                        w.cosigned(name, of)
        if w.fold.pending():
            w.decide(w.draft())

    def serve(self, name: str, _what: int) -> None:
        w = self.world
        if not w.fold.releases or self.serving.get(name) == w.fold.releases[-1].digest:
            return
        if name in self.serving:
            w.say(name, events.ModelWithdrawn(release=self.serving[name]))
        w.served(name)
        self.serving[name] = w.fold.releases[-1].digest

    def forget(self, name: str, _what: int) -> None:
        """Everything that came of a member's rows goes: entries, contributions, models."""
        w = self.world
        fate = {c.event: w.fold.fate(c) for c in w.fold.contributions.get(w.ids[name], [])}
        gone = [r for r in self.made[name] if fate[r.entry.event] in {"released", "pending"}]
        request = w.forgotten(name, contributions=gone, entries=self.used[name])
        for record in self.used[name]:
            w.without_body(record)
        self.used[name] = []
        for other in self.names:
            w.erased(other, request)
        if gone:
            if w.fold.charter.witness.cosignatures:
                self.cosign_all()
            w.decide(w.draft())
            for other in list(self.serving):
                self.serve(other, 0)
            self.made[name] = []

    def cosign_all(self) -> None:
        for name in self.names:
            for of in self.names:
                if of != name:
                    self.world.cosigned(name, of)

    def limit(self, name: str, what: int) -> None:
        self.world.say(name, events.EgressSet(policy=egress.Policy(max_bytes=4096 + what).to_json()))
        self.world.policies[name] = egress.Policy(max_bytes=4096 + what).digest

    def wait(self, _name: str, what: int) -> None:
        """Time passes for everybody; who is up says so."""
        self.world.now += (60_000, HOUR, DAY, 40 * DAY)[what % 4]
        self.world.alive()

    def part(self, name: str, _what: int) -> None:
        self.world.apart ^= {name}


ACTS: dict[str, Callable[[History, str, int], None]] = {
    f.__name__: f
    for f in (
        History.read, History.contribute, History.lend, History.narrow, History.revoke, History.cosign, History.release,
        History.serve, History.forget, History.limit, History.wait, History.part,
    )
}  # fmt: skip
ALONE = {"read", "contribute", "part"}
OFTEN = [*sorted(ACTS), "contribute", "contribute", "lend", "lend", "read", "read", "read", "release", "serve"]
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 20)


def plan(chance: bytes) -> tuple[list[tuple[str, int, int]], int, int]:
    """Steps, members and cosignatures out of a handful of bytes: drawing each by itself costs a quarter of an audit."""
    steps = []
    for at in range(3, 3 + 3 * LENGTHS[chance[0] % len(LENGTHS)], 3):
        what, who = divmod(chance[at + 1] << 8 | chance[at + 2], 4)
        steps.append((OFTEN[chance[at] % len(OFTEN)], who, what % 1000))
    return steps, 2 + chance[1] % 3, chance[2] % 2


SIZE = 3 + 3 * max(LENGTHS)
PLANS = st.binary(min_size=SIZE, max_size=SIZE).map(plan)


def findings(world: World) -> Iterator[tuple[str, str | None, str, str]]:
    """What the rules and the signs say about a world that is read from its entries alone."""
    DATABASE.execute("BEGIN")
    try:
        facts, fold, book = Facts(DATABASE), Collective(world.collective), Book()
        for feed in sorted(world.feeds.values(), key=lambda f: f[0].entry.header.member if f else ""):
            fold.apply_all(feed)
            book.apply_all(feed)
            facts.add(feed)
        facts.settle(fold)
        repeat(facts, book, fold)
        for found in find(facts):
            yield found.rule.id, found.case, found.severity, found.text
        for sign in (*links(facts, fold.ever_members(), {}, world.now), *signs(facts)):
            yield sign.id, None, "could-not-check" if sign.unchecked else sign.severity, sign.text
        for flaw in fold.flaws:
            yield flaw.code, None, "error", flaw.text
    finally:
        DATABASE.execute("ROLLBACK")


def honest(planned: tuple[list[tuple[str, int, int]], int, int]) -> None:
    steps, names, cosignatures = planned
    history = History(NAMES[:names], cosignatures)
    for step in steps:
        history.do(*step)
    history.world.apart = set()
    history.world.alive()
    found = [f for f in findings(history.world) if f[:3] != ("C10", "learnt", "notice")]
    assert found == []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A large sample runs in parts, so that no part meets the time limit of a test and workers can share them."""
    if "part" in metafunc.fixturenames:
        whole = int(metafunc.config.getoption("--histories"))
        metafunc.parametrize("part", [min(PART, whole - start) for start in range(0, whole, PART)])


def test_random_honest_histories_give_no_finding(part: int) -> None:
    run = settings(
        max_examples=part, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck), derandomize=part < PART,
    )(given(PLANS)(honest))  # fmt: skip
    run()
