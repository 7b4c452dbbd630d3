"""Links between feeds and times: honest histories say nothing, and each lie is named at its entry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import Paper, PaperMember, key

from ledger import events, seen
from ledger.entry import Record, Seen, make
from ledger.seen import Contradiction, Link
from protocol.ids import MemberId, digest
from protocol.keys import member_id

NAMES = ["ada", "bob", "cyd"]
NOW = 10**7


def feeds(members: Iterable[PaperMember]) -> dict[MemberId, list[Link]]:
    return {m.id: [Link(header=r.entry.header, leaf=r.entry.leaf) for r in m.feed] for m in members}


def found(paper: Paper, **more: Any) -> list[Contradiction]:
    return seen.contradictions(feeds(paper.members.values()), now_ms=NOW, **more)


def history() -> Paper:
    paper = Paper.found(NAMES)
    for now in (1000, 2000):
        for member in paper.members.values():
            member.publish(now)
        paper.now = now
        paper.decide()
    return paper


def entry(by: PaperMember, ts: int = 400_000, links: Iterable[Seen] = ()) -> Record:
    """The member's next entry with any time and links."""
    record = make(
        key(by.name),
        collective=by.collective,
        seq=len(by.feed),
        prev=by.feed[-1].entry.leaf,
        ts=ts,
        type=events.NodeAlive.TYPE,
        seen=links,
        body={},
        salt=bytes(16),
    )
    by.feed.append(record)
    return record


# -- the honest say nothing ------------------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0, 0.5))
def test_honest_histories_have_no_contradictions(seed: int, count: int, slow: float) -> None:
    paper = Paper.found([f"m{n}" for n in range(count)], seed=seed)
    paper.slow = slow
    for round_ in range(2):
        for member in paper.members.values():
            member.publish(paper.now)
        paper.run(round_ + 1, ms=20_000)
        paper.random.choice(paper.alive()).restart()
        paper.deliver_all()  # a real node's store outlives it
    assert seen.contradictions(feeds(paper.members.values()), now_ms=paper.now) == []


def test_a_feed_of_which_only_the_head_is_here_yet_is_no_contradiction() -> None:
    paper = history()
    cyd = paper.members["cyd"]
    size = len(cyd.feed)
    cyd.feed = cyd.feed[:2]
    assert {c.code for c in found(paper)} == {"seen-missing"}
    assert found(paper, longest={cyd.id: size}) == []


# -- each lie is named -----------------------------------------------------------------------------------------------
def test_a_truncated_feed_contradicts_what_others_had_seen() -> None:
    paper = history()
    bob = paper.members["bob"]
    bob.feed = bob.feed[:3]
    (first, *_) = found(paper)
    assert (first.code, first.about) == ("seen-missing", bob.id)
    assert first.at >= 3
    assert first.author != bob.id


def test_a_rewritten_history_contradicts_what_others_had_seen() -> None:
    paper = history()
    bob = paper.members["bob"]
    size = len(bob.feed)
    bob.feed = bob.feed[:2]
    while len(bob.feed) < size:
        entry(bob)
    codes = {(c.code, c.about) for c in found(paper)}
    assert ("seen-branch", bob.id) in codes


@pytest.mark.parametrize(
    ("link", "code"),
    [
        (lambda bob: Seen(member=bob.id, seq=99, leaf=digest(b"x")), "seen-missing"),
        (lambda bob: Seen(member=bob.id, seq=len(bob.feed) - 1, leaf=digest(b"x")), "seen-branch"),
        (lambda bob: Seen(member=bob.id, seq=0, leaf=bob.feed[0].entry.leaf), "seen-backwards"),
        (lambda bob: Seen(member=MemberId(member_id(key("eve"))), seq=0, leaf=digest(b"x")), "seen-stranger"),
    ],
)
def test_a_link_to_nothing_to_the_future_or_backwards_is_named_at_its_entry(link: Any, code: str) -> None:
    paper = history()
    ada, bob, _ = paper.members.values()
    made = entry(ada, links=[link(bob)])
    (one,) = found(paper)
    assert (one.code, one.author, one.seq) == (code, ada.id, made.entry.header.seq)


def test_a_link_to_an_entry_from_much_later_is_named() -> None:
    paper = history()
    ada, bob, _ = paper.members.values()
    late = entry(bob, ts=NOW)
    entry(ada, links=[Seen(member=bob.id, seq=late.entry.header.seq, leaf=late.entry.leaf)])
    assert [(c.code, c.author) for c in found(paper)] == [("seen-later", ada.id)]


def test_a_time_that_goes_back_or_lies_in_the_future_is_named() -> None:
    paper = history()
    ada, bob, _ = paper.members.values()
    back = entry(ada, ts=0)
    ahead = entry(bob, ts=NOW + seen.SKEW_MS + 1)
    assert [(c.code, c.seq) for c in found(paper)] in (
        [("ts-backwards", back.entry.header.seq), ("ts-future", ahead.entry.header.seq)],
        [("ts-future", ahead.entry.header.seq), ("ts-backwards", back.entry.header.seq)],
    )


# -- omission and freeze ---------------------------------------------------------------------------------------------
def test_who_had_recorded_an_entry_is_proven_by_its_own_links() -> None:
    paper = history()
    ada, bob, cyd = paper.members.values()
    published = bob.fold.contributions[bob.id][0].source
    knew = dict(seen.unseen(feeds(paper.members.values()), author=bob.id, seq=published.seq))
    assert knew.keys() == {ada.id, cyd.id}
    for member in (ada, cyd):
        header = member.feed[knew[member.id]].entry.header
        assert any(s.member == bob.id and s.seq >= published.seq for s in header.seen)
    assert seen.unseen(feeds([ada, bob]), author=bob.id, seq=10**6) == []


def test_a_feed_that_stands_still_is_told_from_one_that_beats() -> None:
    paper = history()
    ada, bob, _ = paper.members.values()
    entry(ada, ts=NOW - 1000)
    silent = seen.silent(feeds(paper.members.values()), [ada.id, bob.id], now_ms=NOW)
    assert [(c.code, c.author) for c in silent] == [("feed-silent", bob.id)]
    assert seen.silent({}, [ada.id], now_ms=NOW) == [], "a member that never wrote is not silent"
