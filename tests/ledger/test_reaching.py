"""Which release covered an entry first: the index says what a walk through all releases says, for any head vectors."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from paper import Paper

from ledger.cuts import Cut
from ledger.facts import Decision
from ledger.reaching import Reaching

paper = Paper.found(["ada", "bob", "cyd"])
first = paper.release()
STANDS: Decision = paper.members["ada"].fold.decisions[0]
FEEDS = [h.member for h in first.place.heads]


def decision(height: int, sizes: list[int]) -> Decision:
    heads = tuple(replace(h, size=n) for h, n in zip(first.place.heads, sizes, strict=True) if n)
    charter = replace(STANDS.charter, name=f"at {height}")
    return replace(
        STANDS,
        height=height,
        charter=charter,
        value=replace(first, place=replace(first.place, height=height, heads=heads)),
    )


@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), max_size=7), st.integers(0, 6), st.integers(1, 9))
def test_the_index_says_what_a_walk_says(shape: list[list[int]], seq: int, below: int) -> None:
    decisions = [decision(height, sizes) for height, sizes in enumerate(shape, 1)]
    index = Reaching(decisions)
    for feed in FEEDS:
        for height in (None, below):
            walk = (
                d.charter
                for d in decisions
                if isinstance(d.value, Cut)
                and (height is None or d.height < height)
                and seq < d.value.place.size_of(feed)
            )
            assert index.first(first.epoch, feed, seq, height) == next(walk, None)
    assert index.first(STANDS.digest, FEEDS[0], 0) is None, "an epoch without a release"
    assert index.count == len(decisions)
