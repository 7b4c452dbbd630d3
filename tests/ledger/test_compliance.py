"""Facts, causality and rules: what counts as known, at which time an audit stands, and that every sentence can be said."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from world import DAY, START, World

from ledger import compliance, events
from ledger.access.book import Book
from ledger.collective import Collective
from ledger.compliance.facts import GRACE, Facts, empty
from ledger.compliance.findings import find, moment, records, timeline
from ledger.compliance.past import Causality
from ledger.compliance.privacy import signs
from ledger.compliance.repeat import repeat
from ledger.compliance.rules import ERROR, RULES
from ledger.entry import Body, Record
from protocol.ids import MemberId

VIEWS = (Path(compliance.__file__).parent / "views.sql").read_text(encoding="utf-8")


def facts_of(world: World, order: list[str] | None = None) -> Facts:
    facts, fold, book = Facts(), Collective(world.collective), Book()
    for name in order or list(world.feeds):
        fold.apply_all(world.feeds[name])
        book.apply_all(world.feeds[name])
        facts.add(world.feeds[name])
    facts.settle(fold)
    repeat(facts, book, fold)
    return facts


def dump(facts: Facts) -> dict[str, list[tuple[object, ...]]]:
    tables = [r[0] for r in facts.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {t: sorted(facts.database.execute(f"SELECT * FROM {t}").fetchall(), key=repr) for t in tables}  # noqa: S608


# -- the past ------------------------------------------------------------------------------------------------------------
def test_what_an_author_knew_is_what_it_named_and_what_lay_before_is_more() -> None:
    """Cyd has seen bob, and bob has seen ada: ada's entry lies before cyd's, and cyd need not know it."""
    world = World()
    world.apart = {"cyd"}
    mark = world.say("ada", events.NodeAlive())
    world.say("bob", events.NodeAlive())
    world.apart = {"ada", "cyd"}
    world.knows("cyd", bob=1)
    late = world.say("cyd", events.NodeAlive())
    causality = Causality()
    for feed in world.feeds.values():
        for record in feed:
            causality.add(record.entry, wanted=record is late)
    (past,) = causality.pasts()
    ada, bob, cyd = (world.ids[n] for n in ("ada", "bob", "cyd"))
    assert past.event == late.entry.event
    assert past.known == {bob: 1, cyd: 0}
    assert past.before == {ada: mark.entry.header.seq + 1, bob: 1, cyd: 0}


def test_a_link_to_what_is_not_here_proves_nothing() -> None:
    world = World()
    link = world.head("ada", 1)
    lie = world.say("bob", events.NodeAlive(), seen=[type(link)(member=link.member, seq=7, leaf=link.leaf)])
    causality = Causality()
    for feed in world.feeds.values():
        for record in feed:
            causality.add(record.entry, wanted=record is lie)
    (past,) = causality.pasts()
    assert dict(past.before) == {world.ids["bob"]: 0}


# -- facts ---------------------------------------------------------------------------------------------------------------
def test_the_order_in_which_feeds_come_changes_no_fact_and_no_finding() -> None:
    world = World.opened()
    world.release()
    world.grant("ada", to=["bob"])
    world.published("cyd", "never")
    world.now += 8 * DAY
    world.alive()
    first = facts_of(world)
    found = [(f.rule.id, f.case, f.event) for f in find(first)]
    assert {f[:2] for f in found} == {("C7", "no-run"), ("C12", "not-accepted")}
    for seed in range(3):
        order = random.Random(seed).sample(list(world.feeds), 3)
        other = facts_of(world, order)
        assert dump(other) == dump(first)
        assert [(f.rule.id, f.case, f.event) for f in find(other)] == found


def test_no_single_clock_moves_the_time_of_an_audit() -> None:
    world = World.opened()
    world.alive()
    before = moment(facts_of(world))
    world.say("cyd", events.NodeAlive(), ts=world.now + 100 * DAY)
    after = moment(facts_of(world))
    assert START < before <= after < before + DAY


def test_a_body_that_does_not_read_is_no_fact() -> None:
    world = World.opened()
    before = dump(facts_of(world))["uses"]
    world.say("ada", "data.used", {"dataset": ["rows"], "rows": -1})
    assert dump(facts_of(world))["uses"] == before == []


def test_facts_need_no_disk_and_leave_nothing_behind() -> None:
    database = empty()
    database.execute("BEGIN")
    facts = Facts(database)
    facts.add(World.opened().feeds["ada"])
    database.execute("ROLLBACK")
    assert database.execute("SELECT count(*) FROM entries").fetchone() == (0,)


# -- rules ---------------------------------------------------------------------------------------------------------------
def test_there_are_sixteen_rules_and_each_has_its_view() -> None:
    assert list(RULES) == [f"C{n}" for n in range(1, 17)]
    assert all(f"CREATE VIEW {rule.lower()} AS" in VIEWS for rule in RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_case_of_a_view_has_its_sentence_and_every_sentence_its_case(rule: object) -> None:
    assert rule in RULES.values()
    view = re.search(rf"CREATE VIEW {rule.id.lower()} AS(.*?);\n", VIEWS, re.DOTALL)  # type: ignore[attr-defined]
    assert view
    said = {
        w
        for part in re.findall(r"SELECT (iif\(.*?\)|'[a-z-]+')(?: AS what)?, ", view[1])
        for w in re.findall(r"'([a-z-]+)'", part)
    }
    said |= set(re.findall(r"SELECT '([a-z-]+)'", view[1]))
    cases = rule.cases  # type: ignore[attr-defined]
    assert set(cases) <= said


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_sentences_are_for_people(rule: object) -> None:
    """Whole sentences, no word that only an engineer knows, and advice that says what to do."""
    jargon = re.compile(
        r"\b(hash|SQL|JSON|causal|vector|leaf|root|signature|byte|tuple|null|boolean|event id)\b", re.IGNORECASE
    )
    texts = [rule.promise, rule.advice, *(c.text for c in rule.cases.values())]  # type: ignore[attr-defined]
    for text in texts:
        assert text.endswith((".", "earlier).")), text
        assert not jargon.search(text), text
    assert any(case.severity == ERROR for case in rule.cases.values()) or rule.id in {"C12", "C13"}  # type: ignore[attr-defined]


def test_grace_is_told_in_one_place() -> None:
    (row,) = facts_of(World.opened()).database.execute("SELECT * FROM grace").fetchall()
    assert row == tuple(GRACE.values())


# -- records and the timeline ----------------------------------------------------------------------------------------------
def test_the_newest_description_of_a_data_set_is_its_record() -> None:
    world = World.opened()
    world.grant("ada", to=["bob"])
    world.decided("ada", "run", purpose="advertising")
    world.say("ada", events.DataDescribed(dataset="rows", purposes=("research",), retention_days=30, basis="contract"))
    found = next(r for r in records(facts_of(world)) if r["controller"] == "ada")
    assert (found["purposes"], found["retention_days"], found["basis"]) == (["research"], 30, "contract")
    assert (found["recipients"], found["uses"], found["denied"]) == ([world.ids["bob"]], 0, 1)


def test_the_timeline_counts_every_entry_once_and_shortens_pauses() -> None:
    world = World.opened()
    world.alive()
    world.now += 90 * DAY
    last = world.say("ada", events.NodeAlive())
    drawn = timeline(facts_of(world), 60, [last.entry.event, "not there"])
    counted = sum(n for lane in drawn["lanes"] for _, _, n in lane["marks"])
    assert counted == sum(map(len, world.feeds.values()))
    assert {place for lane in drawn["lanes"] for place, _, _ in lane["marks"]} <= set(range(60))
    assert drawn["places"] == {last.entry.event: 59}
    ((_place, length),) = drawn["pauses"]
    assert length > 89 * DAY


# -- privacy -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("written by anna@clinic.example", ["personal-data"]),
        ("GB82 WEST 1234 5698 7654 32", ["personal-data"]),
        ("GB83 WEST 1234 5698 7654 32", []),
        ("a@b", []),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", ["secret-in-feed"]),
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEF", ["secret-in-feed"]),
        ("AKIAIOSFODNN7EXAMPLE", ["secret-in-feed"]),
        ("fn-p_qR8LIcZN_62uw39NJoL0pv_gCAVEq10PhBFYrL4zs", ["secret-in-feed"]),
        ("ask-the-owner", []),
        ("ab" * 32, []),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_or_a_person_is_told_and_never_repeated(text: str, found: list[str]) -> None:
    said = list(signs("data.described", Body(salt=bytes(16), data=text.encode())))
    assert [s.id for s in said] == found
    assert not any(text in s.text for s in said)


def test_a_member_is_known_by_all_its_keys() -> None:
    world = World.opened()
    facts = facts_of(world)
    assert dict(facts.database.execute("SELECT member, seat FROM who")) == {i: i for i in world.ids.values()}
    assert MemberId(world.ids["ada"]) in world.fold.ever_members()


# -- C14: what was erased since ---------------------------------------------------------------------------------------------
def erased_uses(world: World, name: str) -> None:
    """A member used its own rows, and asks that the records of it go."""
    pair = world.read(name)
    world.forgotten(name, entries=pair)
    for record in pair:
        world.without_body(record)


def lent(world: World, **terms: Any) -> Record:
    grant = world.grant("bob", to=["ada"], **terms)
    world.say("ada", events.GrantAccepted(grant=grant.entry.event))
    return grant


def c14(world: World) -> list[str | None]:
    return [f.case for f in find(facts_of(world)) if f.rule.id == "C14"]


@pytest.mark.parametrize(
    ("action", "verdict"), [("train", "allow"), ("evaluate", "deny")], ids=["another grant", "another reason"]
)
def test_an_erasure_makes_no_honest_decision_wrong_whichever_grant_it_fell_under(action: str, verdict: str) -> None:
    """An erased use counts against a limited grant, so that another one may come nearest when the decision is repeated."""
    world = World.opened()
    erased_uses(world, "ada")
    lent(world, uses=1, actions=("train",))
    lent(world, actions=("label",))
    lent(world, epsilon_micro=5000, actions=("train",))
    said = world.decided("ada", "run-x", dataset=f"{world.ids['bob']}/rows", action=action)
    assert said.body is not None
    assert said.body.value()["verdict"] == verdict  # type: ignore[index, call-overload]
    assert c14(world) == []


def test_what_no_count_of_erased_uses_explains_is_still_named() -> None:
    world = World.opened()
    erased_uses(world, "ada")
    grant = lent(world, uses=1, actions=("train",))
    world.decided("ada", "run-x", dataset=f"{world.ids['bob']}/rows", action="evaluate", lie=world.allowed_by(grant))
    assert "verdict" in c14(world)


# -- C10: erasure reaches what is served -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("withdrawn", "expected"), [(True, [("C10", "learnt")]), (False, [("C10", "learnt"), ("C10", "served")])]
)
def test_a_node_that_moved_to_the_release_without_it_before_the_deadline_is_clean(
    withdrawn: bool, expected: list[tuple[str, str]]
) -> None:
    """What others learnt while it was in stays a notice."""
    world = World.opened()
    world.release()
    (mine,) = (r for r in world.feeds["ada"] if r.entry.header.type == events.Published.TYPE)
    world.served("bob")
    request = world.forgotten("ada", contributions=[mine])
    for name in world.feeds:
        world.erased(name, request)
    world.decide(world.draft())
    old, new = (d.digest for d in world.fold.releases)
    assert [x.reason for x in world.fold.cut.excluded] == ["erased"]  # type: ignore[union-attr]
    world.served("bob")
    if withdrawn:
        world.say("bob", events.ModelWithdrawn(release=old))
    world.now += 32 * DAY
    world.alive()
    assert sorted((f.rule.id, f.case) for f in find(facts_of(world)) if f.rule.id == "C10") == expected
    assert new != old
