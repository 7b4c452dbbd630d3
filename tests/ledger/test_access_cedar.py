"""Two engines, one answer: whatever our decision lets through, Cedar allows at every link of the chain that we name.

The other way round there is a list: what Cedar would allow and we refuse is refused for the shape of the chain (a grant that
is wider than the one above it grants nothing, even the part inside), because no row could fit its tags, or because a grant to
a role was narrowed to members of it (ours compares members with members and roles with roles).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from cedar import Cedar, Heard
from granted import NOW, Village

from ledger import events
from ledger.access.chains import chain_to
from ledger.access.decision import Decision, decide
from ledger.events import AccessRequest
from protocol.ids import MemberId

TAGS, COLUMNS, PURPOSES = ("consented", "eu", "minor"), ("completion", "prompt", "text"), ("care", "research")
OURS_ALONE = {"delegation-widened", "delegation-too-deep", "tags"}


@dataclass
class Counted:
    """How the two answered."""

    cases: int = 0
    ours: int = 0
    both: int = 0
    unsafe: int = 0
    stricter: int = 0


def compare(seed: int, cases: int) -> tuple[Counted, Counter[str]]:
    """Random histories, some requests on each; every answer of ours against Cedar's."""
    rng, found, reasons = random.Random(seed), Counted(), Counter[str]()
    while found.cases < cases:
        village = _history(rng)
        who = rng.choice(list(village.members))  # decides, by what it has heard
        book, past = village.books[who], village.past(who)
        cedar = Cedar(_heard(village, who))
        grants = [grant for _, grant in _heard(village, "ada").issued.values()]
        for _ in range(min(25, cases - found.cases)):
            request = _request(village, rng)
            columns, tags = _some(rng, COLUMNS, 1), _some(rng, TAGS)
            if rng.random() < 0.7:
                request, columns, tags = _aimed(village.id("ada"), rng, rng.choice(grants), request, tags)
            answer = decide(book, request, past)
            ours = answer.allowed and _readable(answer, columns, tags)
            found.cases += 1
            found.ours += ours
            if answer.allowed:
                theirs = cedar.allows(answer.grants, request, columns, tags)
                found.unsafe += ours and not theirs
                found.both += ours and theirs
                found.stricter += theirs and not ours
            else:
                for chain in (c for c in cedar.chains() if cedar.allows(c, request, columns, tags)):
                    found.stricter += 1
                    ours_of_it = chain_to(book, book.grants[chain[-1]], past)
                    role = past.roles.get(request.actor)
                    outside = request.actor not in ours_of_it.members and role not in ours_of_it.roles
                    narrowed = any(grant in chain for _, grant, _ in cedar.heard.narrowed)
                    if narrowed and (outside or "wrong-issuer" in ours_of_it.faults):
                        reasons["members-of-a-role"] += 1
                    else:
                        reasons.update(set(ours_of_it.faults) & OURS_ALONE or {"?" + ",".join(answer.reasons)})
    return found, reasons


def test_cedar_allows_whatever_we_allow() -> None:
    found, reasons = compare(seed=20, cases=2_000)
    assert found.cases == 2_000
    assert found.unsafe == 0
    assert found.both == found.ours > 300, "a comparison in which hardly anything is allowed shows nothing"
    assert not [r for r in reasons if r.startswith("?")], reasons


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cedar_allows_whatever_we_allow_in_a_hundred_thousand_cases() -> None:
    found, reasons = compare(seed=21, cases=100_000)
    print(found, reasons)
    assert found.cases == 100_000
    assert found.unsafe == 0
    assert found.both == found.ours > 8_000
    assert not [r for r in reasons if r.startswith("?")], reasons


def test_the_comparison_would_see_an_answer_that_allows_too_much() -> None:
    """Against Cedar, an engine that forgets the purpose is caught."""
    village = Village()
    village.commit("ada")
    grant = village.grant("ada", "bob", purposes=("care",))
    cedar = Cedar(_heard(village, "ada"))
    assert cedar.allows([grant], village.request("bob", purpose="care"), [], [])
    assert not cedar.allows([grant], village.request("bob", purpose="research"), [], [])
    assert not cedar.allows([grant], village.request("cyd", purpose="care"), [], [])
    village.revoke("ada", grant)
    assert not Cedar(_heard(village, "ada")).allows([grant], village.request("bob", purpose="care"), [], [])


def _readable(answer: Decision, columns: tuple[str, ...], tags: tuple[str, ...]) -> bool:
    """Whether what the answer selects covers these columns of a row with these tags."""
    selector = answer.selector
    assert selector is not None
    covered = selector.columns is None or set(columns) <= set(selector.columns)
    return covered and set(selector.tags_all) <= set(tags) and not set(selector.tags_none) & set(tags)


def _heard(village: Village, who: str) -> Heard:
    """The events that a member has, read from their bytes."""
    fold = village.members[who].fold
    heard = Heard(roles={m.id: m.role for m in fold.charter.members})
    for record in village.records:
        header = record.entry.header
        if header.seq < fold.sizes.get(header.member, 0):
            assert record.body is not None
            heard.take(header.member, record.entry.event, events.parse(header.type, record.body.value()))
    return heard


def _history(rng: random.Random) -> Village:
    village = Village(cyd=rng.choice(["contributor", "auditor"]))
    names = list(village.members)
    village.commit("ada")
    if rng.random() < 0.2:
        village.commit("bob")
    grants = []
    for _ in range(rng.randint(1, 2)):
        holders = [rng.choice(["ada"] * 9 + ["bob"]), *rng.sample(names, rng.randint(1, 3))]
        above, wish = None, _terms(rng, depth=rng.randint(0, 3))
        for issuer, holder in pairwise(holders):
            by = issuer if rng.random() < 0.95 else rng.choice(names)
            who = [holder] if rng.random() < 0.8 else []
            roles = [] if who and rng.random() < 0.9 else [rng.choice(["contributor", "auditor"])]
            above = village.grant(by, *who, roles=roles, parent=above, **wish)
            grants.append(above)
            wish = _handed_on(rng, wish)
    for _ in range(rng.choice([0, 0, 1, 2])):
        village.deaf = set(rng.sample(names, rng.randint(0, 2)))
        grant = rng.choice(grants)
        by = rng.choice(["ada", "ada", *names])
        if rng.random() < 0.6:
            village.narrow(by, grant, *rng.sample(names, rng.randint(2, 4)), **_terms(rng, depth=rng.randint(0, 3)))
        else:
            village.revoke(by, grant)
    for _ in range(rng.choice([0, 1, 3])):
        who = rng.choice(names)
        request = _request(village, rng, who)
        answer = decide(village.books[who], request, village.past(who))
        if rng.random() < 0.1:
            answer = Decision(verdict="allow", reasons=(), grants=(rng.choice(grants),))  # somebody lies
        village.decided(rng.choice([who, "ada"]), request, answer)
    return village


def _terms(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "actions": _some(rng, ("evaluate", "train"), 1),
        "purposes": _some(rng, PURPOSES, 1),
        "columns": rng.choice([None, None, _some(rng, COLUMNS, 1), _some(rng, COLUMNS)]),
        "tags_all": rng.choice([(), (), _some(rng, TAGS)]),
        "tags_none": rng.choice([(), (), (rng.choice(TAGS),)]),
        "not_before": rng.choice([0, 0, NOW]),
        "expires": rng.choice([None, NOW + 50, NOW + 100]),
        "uses": rng.choice([None, None, 1, 2, 4]),
        "epsilon_micro": rng.choice([None, None, None, 5, 9]),
        "depth": depth,
    }


def _handed_on(rng: random.Random, above: dict[str, Any]) -> dict[str, Any]:
    """The terms above, a little less of them; sometimes more in one dimension."""
    wish = {**above, "depth": max(0, above["depth"] - 1)}
    for key in rng.sample(sorted(above), rng.randint(0, 2)):
        narrower: dict[str, Any] = {
            "actions": above["actions"][:1],
            "purposes": above["purposes"][:1],
            "columns": COLUMNS[:1] if above["columns"] is None else above["columns"][:1],
            "tags_all": tuple(sorted({*above["tags_all"], rng.choice(TAGS)})),
            "tags_none": tuple(sorted({*above["tags_none"], rng.choice(TAGS)})),
            "not_before": NOW,
            "expires": NOW + 50,
            "uses": 1,
            "epsilon_micro": 5,
            "depth": 0,
        }
        wish[key] = narrower[key]
    if rng.random() < 0.2:
        other = _terms(rng, depth=rng.randint(0, 3))
        key = rng.choice(sorted(other))
        wish[key] = other[key]
    return wish


def _request(village: Village, rng: random.Random, who: str | None = None) -> AccessRequest:
    return village.request(
        who or rng.choice(list(village.members)),
        owner=rng.choice(["ada"] * 9 + ["bob"]),
        action=rng.choice(["train", "train", "evaluate", "serve"]),
        purpose=rng.choice(PURPOSES),
        columns=rng.choice([(), (), _some(rng, COLUMNS)]),
        epsilon_micro=rng.choice([None, 1, 4]),
        at=NOW + rng.choice([-1, 0, 10, 49, 50, 99, 100]),
    )


def _aimed(
    ada: MemberId, rng: random.Random, grant: events.GrantIssued, request: AccessRequest, tags: tuple[str, ...]
) -> tuple[AccessRequest, tuple[str, ...], tuple[str, ...]]:
    """The request made to fit one of the grants, as far as that grant says."""
    actor = rng.choice([*grant.audience.members, request.actor])
    columns = grant.selector.columns
    fitting = replace(
        request,
        actor=actor,
        dataset="notes" if actor == ada else f"{ada}/notes",
        action=rng.choice(grant.actions),
        purpose=rng.choice(grant.purposes),
        columns=(),
        at=max(NOW, grant.not_before),
    )
    carried = tuple(sorted({*tags, *grant.selector.tags_all} - set(grant.selector.tags_none)))
    return fitting, columns[:1] if columns else COLUMNS[:1], carried


def _some(rng: random.Random, words: tuple[str, ...], least: int = 0) -> tuple[str, ...]:
    return tuple(sorted(rng.sample(words, rng.randint(least, len(words)))))
