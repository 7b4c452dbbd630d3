"""Grants: what is allowed is allowed by every link, what was taken away stays away, and anybody gets the same answer."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from granted import NOW, Village
from hypothesis import given
from hypothesis import strategies as st

from ledger import events
from ledger.access import decision
from ledger.access.book import Book, Past, roles_in
from ledger.access.decision import REASONS, decide
from ledger.access.grants import Terms, issued, meet, terms_of, wider
from ledger.entry import Record
from ledger.events import AccessRequest
from ledger.events.grants import MAX_LINKS
from protocol.ids import Digest, EventId, MemberId, digest

IDS = st.sampled_from([MemberId(digest(bytes([i]))) for i in range(4)])
WORDS = st.frozensets(st.sampled_from(["a", "b", "c"]))
LIMIT = st.none() | st.integers(0, 5)
TERMS = st.builds(
    Terms,
    columns=st.none() | WORDS,
    tags_all=WORDS,
    tags_none=WORDS,
    actions=st.frozensets(st.sampled_from(["train", "evaluate"])),
    purposes=WORDS,
    members=st.frozensets(IDS),
    roles=st.frozensets(st.sampled_from(["auditor", "contributor"])),
    not_before=st.integers(0, 5),
    expires=LIMIT,
    uses=LIMIT,
    epsilon_micro=LIMIT,
    depth=st.integers(0, 3),
)


@pytest.fixture
def village() -> Village:
    found = Village()
    found.commit("ada")
    return found


# -- values ----------------------------------------------------------------------------------------------------------
@given(TERMS, TERMS, TERMS)
def test_terms_meet_in_any_order_and_never_widen(a: Terms, b: Terms, c: Terms) -> None:
    assert meet(a, b) == meet(b, a)
    assert meet(meet(a, b), c) == meet(a, meet(b, c))
    assert meet(a, a) == a
    assert wider(meet(a, b), a) == ()
    assert (meet(a, b) == a) == (wider(a, b) == ())


@given(TERMS)
def test_terms_survive_their_event(terms: Terms) -> None:
    event = issued(terms, dataset="d", parent=None, basis="", nonce=Digest(digest(b"n")))
    assert terms_of(event) == terms
    assert events.parse(event.TYPE, event.to_json()) == event


# -- one grant -------------------------------------------------------------------------------------------------------
def test_the_owner_too_needs_a_grant_and_with_one_may_do_what_it_says(village: Village) -> None:
    assert village.decide("ada").reasons == ("no-grant",)
    assert village.decide("ada", dataset="nothing").reasons == ("unknown-dataset",)
    grant = village.grant("ada", "ada", columns=["text"], tags_all=["consented"], tags_none=["minor"], expires=NOW + 9)
    answer = village.decide("ada")
    assert answer.allowed
    assert answer.grants == (grant,)
    assert answer.selector == events.Selector(columns=("text",), tags_all=("consented",), tags_none=("minor",))
    assert answer.expires == NOW + 9


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "serve"}, "action"),
        ({"purpose": "advertising"}, "purpose"),
        ({"columns": ("name",)}, "columns"),
        ({"at": NOW - 1}, "not-yet"),
        ({"at": NOW + 100}, "expired"),
    ],
)
def test_what_a_grant_does_not_say_is_refused_with_its_reason(
    village: Village, fields: dict[str, Any], reason: str
) -> None:
    village.grant("ada", "ada", columns=["text"], not_before=NOW, expires=NOW + 100)
    assert village.decide("ada", **fields).reasons == (reason,)
    assert village.decide("ada", columns=("text",)).allowed


def test_time_is_exact_to_the_millisecond(village: Village) -> None:
    village.grant("ada", "ada", not_before=NOW, expires=NOW + 1)
    assert [village.decide("ada", at=NOW + d).allowed for d in (-1, 0, 1)] == [False, True, False]


def test_a_selector_that_no_row_can_meet_or_that_shows_nothing_is_refused(village: Village) -> None:
    village.grant("ada", "ada", tags_all=["x"], tags_none=["x"])
    assert village.decide("ada").reasons == ("tags",)
    other = Village()
    other.commit("ada")
    other.grant("ada", "ada", columns=[])
    assert other.decide("ada").reasons == ("columns",)


def test_a_role_is_that_of_the_charter_and_strangers_have_none(village: Village) -> None:
    village.grant("ada", roles=["contributor"])
    assert village.decide("bob").allowed
    assert village.decide("bob", actor=MemberId(digest(b"stranger"))).reasons == ("no-seat",)
    quiet = Village(cyd="auditor")
    quiet.commit("ada")
    quiet.grant("ada", roles=["contributor"])
    assert quiet.decide("bob").allowed
    assert quiet.decide("cyd").reasons == ("not-audience",)


def test_a_name_of_ones_own_never_means_the_data_of_another(village: Village) -> None:
    """Two members have `notes`: a grant of one says nothing about the other's."""
    village.commit("bob")
    village.grant("bob", "ada", "bob", "cyd")
    assert village.decide("ada").reasons == ("no-grant",)
    assert village.decide("cyd").reasons == ("no-grant",)
    assert village.decide("cyd", owner="bob").allowed
    assert village.decide("bob", owner="bob").allowed


# -- replay (54) -----------------------------------------------------------------------------------------------------
def test_attack_54_a_grant_is_for_its_audience_and_its_data_set_only(village: Village) -> None:
    village.commit("ada", "diary")
    village.grant("ada", "bob")
    assert village.decide("bob").allowed
    assert village.decide("cyd").reasons == ("not-audience",)
    assert village.decide("bob", dataset="diary").reasons == ("no-grant",)


def test_attack_54_a_grant_copied_into_another_feed_grants_nothing(village: Village) -> None:
    body = village.terms("bob", "cyd")
    village.say("cyd", body)
    assert village.decide("cyd").reasons == ("no-grant",)
    village.commit("cyd", "other")
    assert village.decide("cyd").reasons == ("no-grant",)


def test_attack_54_the_same_nonce_again_is_no_second_budget(village: Village) -> None:
    body = village.terms("bob", uses=1)
    first = village.say("ada", body)
    village.use("bob")
    again = village.say("ada", body)
    assert first != again
    answer = village.decide("bob")
    assert not answer.allowed
    assert {reason for reason in answer.reasons} <= {"replayed", "uses-exhausted"}
    assert village.decide("bob", at=NOW + 1).reasons == answer.reasons


# -- delegation (55) -------------------------------------------------------------------------------------------------
PARENT: dict[str, Any] = {
    "columns": ["prompt", "text"],
    "tags_all": ["consented"],
    "tags_none": ["minor"],
    "actions": ("train",),
    "not_before": 10,
    "expires": 2 * NOW,
    "uses": 5,
    "epsilon_micro": 5,
    "depth": 2,
}
CHILD: dict[str, Any] = {**PARENT, "depth": 1}


@pytest.mark.parametrize(
    ("wide", "reason"),
    [
        ({"columns": None}, "delegation-widened"),
        ({"columns": ["completion", "text"]}, "delegation-widened"),
        ({"tags_all": []}, "delegation-widened"),
        ({"tags_none": ["other"]}, "delegation-widened"),
        ({"actions": ("evaluate", "train")}, "delegation-widened"),
        ({"purposes": ("advertising", "research")}, "delegation-widened"),
        ({"not_before": 9}, "delegation-widened"),
        ({"expires": None}, "delegation-widened"),
        ({"expires": 2 * NOW + 1}, "delegation-widened"),
        ({"uses": None}, "delegation-widened"),
        ({"uses": 6}, "delegation-widened"),
        ({"epsilon_micro": None}, "delegation-widened"),
        ({"epsilon_micro": 6}, "delegation-widened"),
        ({"dataset": "diary"}, "delegation-widened"),
        ({"depth": 2}, "delegation-too-deep"),
    ],
    ids=str,
)
def test_attack_55_a_grant_wider_than_the_one_above_it_grants_nothing(
    village: Village, wide: dict[str, Any], reason: str
) -> None:
    village.commit("ada", "diary")
    parent = village.grant("ada", "bob", **PARENT)
    village.grant("bob", "cyd", parent=parent, **{**CHILD, **wide})
    ask = {"epsilon_micro": 1, "dataset": wide.get("dataset", "notes")}
    assert reason in village.decide("cyd", **ask).reasons
    honest = village.grant("bob", "cyd", parent=parent, **CHILD)
    assert village.decide("cyd", epsilon_micro=1).grants == (parent, honest)


def test_attack_55_only_the_audience_hands_on_and_not_deeper_than_it_may(village: Village) -> None:
    root = village.grant("ada", "bob", depth=1)
    village.grant("dan", "cyd", parent=root)
    assert village.decide("cyd").reasons == ("wrong-issuer",)
    child = village.grant("bob", "cyd", parent=root, depth=0)
    assert village.decide("cyd").grants == (root, child)
    village.grant("cyd", "dan", parent=child, depth=0)
    assert "delegation-too-deep" in village.decide("dan").reasons


def test_attack_55_a_chain_without_a_beginning_or_in_a_circle_ends_in_a_no(village: Village) -> None:
    village.grant("ada", "bob", parent=EventId(digest(b"nothing")))
    assert village.decide("bob").reasons == ("unknown-parent",)
    circle = Village()
    circle.commit("ada")
    book = circle.books["ada"]
    one, two = circle.grant("ada", "bob", "ada", depth=3), circle.grant("ada", "bob", "ada", depth=2)
    book.grants[one] = replace(book.grants[one], parent=two)  # no hash can name its successor: only a forged book does
    book.grants[two] = replace(book.grants[two], parent=one)
    book.version += 1
    assert "cycle" in circle.decide("bob").reasons


def test_attack_55_a_chain_has_at_most_eight_links() -> None:
    deep = Village(tuple(f"m{i}" for i in range(10)))
    deep.commit("m0")
    parent = deep.grant("m0", "m1", depth=7)
    for i in range(1, 8):
        parent = deep.grant(f"m{i}", f"m{i + 1}", parent=parent, depth=7 - i)
    assert len(deep.decide("m8", owner="m0", knowing="m0").grants) == MAX_LINKS == 8
    deep.grant("m8", "m9", parent=parent, depth=0)
    assert not deep.decide("m9", owner="m0", knowing="m0").allowed


# -- taking away (57, 58) --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("link", [0, 1])
@pytest.mark.parametrize("by", ["owner", "issuer"])
def test_attack_57_nothing_below_a_revoked_grant_is_left(village: Village, link: int, by: str) -> None:
    parent = village.grant("ada", "bob", depth=1)
    child = village.grant("bob", "cyd", parent=parent)
    assert village.decide("cyd").allowed
    village.revoke("bob" if by == "issuer" and link else "ada", (parent, child)[link])
    assert village.decide("cyd").reasons == ("revoked",)
    assert village.decide("bob").allowed == bool(link)


def test_nobody_else_can_revoke_or_narrow(village: Village) -> None:
    parent = village.grant("ada", "bob", depth=1)
    child = village.grant("bob", "cyd", parent=parent)
    village.revoke("cyd", child)
    village.revoke("bob", parent)
    village.narrow("dan", parent, purposes=())
    assert village.decide("cyd").allowed
    assert village.decide("bob").allowed


def test_a_narrowing_takes_away_and_never_gives(village: Village) -> None:
    grant = village.grant("ada", "bob", purposes=("a", "b"), columns=["text"], expires=NOW + 10)
    village.narrow("ada", grant, "bob", "cyd", purposes=("a", "c"), columns=None, expires=None)
    assert village.decide("bob", purpose="a").allowed
    assert village.decide("bob", purpose="a").expires == NOW + 10
    assert village.decide("bob", purpose="b").reasons == ("purpose",)
    assert village.decide("bob", purpose="c").reasons == ("purpose",)
    assert village.decide("bob", purpose="a", columns=("name",)).reasons == ("columns",)
    assert village.decide("cyd", purpose="a").reasons == ("not-audience",)


def test_a_narrowed_parent_narrows_what_was_handed_on_before(village: Village) -> None:
    parent = village.grant("ada", "bob", depth=1)
    village.grant("bob", "cyd", parent=parent)
    village.narrow("ada", parent, "bob", actions=("evaluate",), depth=1)
    assert village.decide("cyd").reasons == ("action",)
    assert village.decide("cyd", action="evaluate").allowed
    village.narrow("ada", parent, "bob", actions=("evaluate",), depth=0)
    assert village.decide("cyd", action="evaluate").reasons == ("delegation-too-deep",)


@pytest.mark.parametrize("how", ["narrow", "revoke"])
def test_attack_58_what_races_with_a_use_is_decided_by_what_the_user_had_recorded(village: Village, how: str) -> None:
    grant = village.grant("ada", "bob")
    village.deaf = {"bob"}
    village.narrow("ada", grant, "bob", actions=("evaluate",)) if how == "narrow" else village.revoke("ada", grant)
    before = village.use("bob")  # bob has not heard of it
    village.deaf = set()
    village.hear()
    after = village.use("bob")
    assert _verdict(before) == "allow"
    assert _verdict(after) == "deny"
    for record in (before, after):  # and everybody who has all entries finds the same
        assert _again(village, "dan", record) == _logged(record)


def test_attack_24_a_grant_written_after_the_use_does_not_cover_it(village: Village) -> None:
    use = village.use("bob")
    forged = village.decided(
        "bob", village.request("bob"), decision.Decision(verdict="allow", reasons=(), grants=(use.entry.event,))
    )
    village.grant("ada", "bob", not_before=0)
    assert _again(village, "dan", forged) == ("deny", ("no-grant",), ())


# -- budgets (60) ----------------------------------------------------------------------------------------------------
def test_attack_60_many_small_uses_add_up_over_everybody_below(village: Village) -> None:
    root = village.grant("ada", "bob", uses=3, depth=1)
    village.grant("bob", "cyd", parent=root, uses=2)
    assert [_verdict(village.use(who)) for who in ("cyd", "bob", "cyd", "bob")] == ["allow", "allow", "allow", "deny"]
    assert village.decide("bob").reasons == ("uses-exhausted",)
    assert village.decide("cyd").reasons == ("uses-exhausted",)


def test_attack_60_epsilon_adds_up_and_must_be_stated(village: Village) -> None:
    village.grant("ada", "bob", epsilon_micro=10)
    assert village.decide("bob").reasons == ("epsilon-unstated",)
    assert [_verdict(village.use("bob", epsilon_micro=4)) for _ in range(3)] == ["allow", "allow", "deny"]
    assert village.decide("bob", epsilon_micro=4).reasons == ("epsilon-exhausted",)
    assert village.decide("bob", epsilon_micro=2).allowed


def test_a_stranger_cannot_use_up_the_budget_of_others(village: Village) -> None:
    grant = village.grant("ada", "bob", uses=1)
    forged = decision.Decision(verdict="allow", reasons=(), grants=(grant,))
    village.decided("cyd", village.request("bob"), forged)
    village.decided("cyd", village.request("cyd"), forged)
    assert village.decide("bob").allowed
    village.decided("ada", village.request("bob"), forged)
    assert not village.decide("bob").allowed


def test_an_erased_decision_counts_against_every_budget_of_its_author(village: Village) -> None:
    village.grant("ada", "bob", uses=2)
    village.grant("ada", "cyd", uses=2)
    village.use("bob")
    gone = [Record(entry=r.entry, body=None) if r.entry.header.type == "access.decided" else r for r in village.records]
    book = Book()
    book.apply_all(gone)
    past = village.past("ada")
    assert decide(book, village.request("bob"), past).allowed
    village.use("bob")
    book.apply(Record(entry=village.records[-1].entry, body=None))
    assert decide(book, village.request("bob"), past).reasons == ("uses-exhausted",)
    assert decide(book, village.request("cyd"), past).allowed


# -- anybody can repeat it (62) ---------------------------------------------------------------------------------------
def test_attack_62_a_verdict_that_was_logged_otherwise_is_found_by_deciding_again(village: Village) -> None:
    grant = village.grant("ada", "bob", purposes=("research",))
    honest = village.use("bob")
    lie = village.decided(
        "bob",
        village.request("bob", purpose="advertising"),
        decision.Decision(verdict="allow", reasons=(), grants=(grant,)),
    )
    assert _again(village, "dan", honest) == _logged(honest)
    assert _again(village, "dan", lie) == ("deny", ("purpose",), (grant,))


def test_roles_are_those_of_the_charter_that_the_author_knew(village: Village) -> None:
    fold = village.members["ada"].fold
    assert roles_in(fold, {}) == roles_in(fold) == {village.id(n): "contributor" for n in village.members}


@pytest.mark.parametrize("seed", range(20))
def test_the_book_and_the_answers_do_not_depend_on_how_feeds_interleave(seed: int) -> None:
    rng, village = random.Random(seed), Village()
    _bustle(village, rng)
    requests = [_random_request(village, rng) for _ in range(30)]
    past = Past(roles=village.past("ada").roles)
    there = village.books["ada"]
    feeds = {name: list(member.feed) for name, member in village.members.items()}
    other = Book()
    while feeds:
        name = rng.choice(sorted(feeds))
        other.apply(feeds[name].pop(0))
        feeds = {n: rest for n, rest in feeds.items() if rest}
    assert [decide(there, r, past) for r in requests] == [decide(other, r, past) for r in requests]
    used = [r for r in village.records if r.entry.header.type == "access.decided"]
    assert used
    for record in used:
        assert _again(village, "ada", record, other) == _logged(record)


@given(
    st.builds(
        AccessRequest,
        actor=st.text().map(MemberId),
        action=st.text(),
        dataset=st.text() | st.just("notes"),
        purpose=st.text(),
        columns=st.lists(st.text()).map(tuple),
        rows=st.integers(),
        epsilon_micro=st.none() | st.integers(),
        at=st.integers(),
        run=st.text(),
    )
)
def test_whatever_is_asked_there_is_an_answer(request: AccessRequest) -> None:
    answer = decide(_FULL.books["ada"], request, _FULL.past("ada"))
    assert not answer.allowed
    assert set(answer.reasons) <= REASONS
    assert answer.reasons


def _verdict(record: Record) -> str:
    return _logged(record)[0]


def _logged(record: Record) -> tuple[str, tuple[str, ...], tuple[EventId, ...]]:
    body = events.parse(record.entry.header.type, record.body.value() if record.body else None)
    assert isinstance(body, events.AccessDecided)
    return body.verdict, body.reasons, body.grants


def _again(
    village: Village, auditor: str, record: Record, book: Book | None = None
) -> tuple[str, tuple[str, ...], tuple[EventId, ...]]:
    """What somebody who has all feeds finds for a decision, standing where its author stood."""
    book, fold = book or village.books[auditor], village.members[auditor].fold
    header = record.entry.header
    body = events.parse(header.type, record.body.value() if record.body else None)
    assert isinstance(body, events.AccessDecided)
    answer = decide(book, body.request, book.past_of(fold, header.member, header.seq))
    return answer.verdict, answer.reasons, answer.grants


def _bustle(village: Village, rng: random.Random) -> None:
    """Members commit, grant, hand on, narrow, revoke and use at random, some of them hearing late."""
    names, grants = list(village.members), []
    for name in names[:2]:
        village.commit(name)
    for _ in range(60):
        who = rng.choice(names)
        village.deaf = set(rng.sample(names, rng.randint(0, 2)))
        kind = rng.random()
        audience = rng.sample(names, rng.randint(1, 2))
        wish = _random_terms(rng)
        if kind < 0.3 or not grants:
            grants.append(village.grant(who, *audience, **wish))
        elif kind < 0.5:
            grants.append(village.grant(who, *audience, parent=rng.choice(grants), **wish))
        elif kind < 0.6:
            village.narrow(who, rng.choice(grants), *audience, **wish)
        elif kind < 0.65:
            village.revoke(who, rng.choice(grants))
        else:
            request = _random_request(village, rng, who)
            answer = decide(village.books[who], request, village.past(who))
            village.decided(who, request, answer)
    village.deaf = set()
    village.hear()


def _random_terms(rng: random.Random) -> dict[str, Any]:
    return {
        "purposes": tuple(sorted(rng.sample(["a", "b"], rng.randint(1, 2)))),
        "columns": rng.choice([None, ["text"], ["prompt", "text"]]),
        "uses": rng.choice([None, None, 1, 3]),
        "expires": rng.choice([None, NOW, NOW + 5]),
        "depth": rng.randint(0, 2),
    }


def _random_request(village: Village, rng: random.Random, who: str | None = None) -> AccessRequest:
    return village.request(
        who or rng.choice(list(village.members)),
        owner=rng.choice(list(village.members)[:2]),
        purpose=rng.choice("ab"),
        columns=rng.choice([(), ("text",)]),
        at=NOW + rng.choice([-1, 0, 1, 6]),
    )


_FULL = Village()
_bustle(_FULL, random.Random(7))
