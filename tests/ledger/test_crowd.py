"""As many members as a charter takes: a release is proposed, voted and decided, and what a node keeps of it stays small."""

from __future__ import annotations

import tracemalloc

import pytest
from crowd import Crowd

from ledger import cuts
from ledger.charter_reading import MAX_MEMBERS
from ledger.entry import MAX_BODY, MAX_SEEN, Seen
from ledger.mentions import Mentions
from protocol.canon import encode
from protocol.ids import MemberId, digest

IDS = [MemberId(digest(f"{n}".encode())) for n in range(200)]


def test_the_largest_collective_decides_a_release_and_its_cut_leaves_room_for_exclusions() -> None:
    crowd = Crowd(96)
    crowd.found()
    small = len(encode(crowd.release().to_json(), max_bytes=MAX_BODY))
    assert crowd.fold.height == 2
    a_seat = small / crowd.count
    evidence = 70 * (
        MAX_MEMBERS - (MAX_MEMBERS + MAX_MEMBERS // 3) // 2
    )  # an exclusion names an objection of n - q + 1 voters
    assert a_seat * MAX_MEMBERS + 40 * evidence < MAX_BODY
    assert 2 * MAX_MEMBERS <= cuts.MAX_LIST


@pytest.mark.slow
def test_five_hundred_and_twelve_members_decide_two_releases() -> None:
    crowd = Crowd(MAX_MEMBERS)
    crowd.found()
    for height in (2, 3):
        crowd.release()
        assert crowd.fold.height == height
    assert len(crowd.fold.decisions[0].commits) >= crowd.charter.quorum
    assert crowd.seconds / crowd.entries < 0.01  # of the processor, an entry


def test_what_members_name_of_each_other_is_kept_in_bytes_not_in_kilobytes() -> None:
    mentions = Mentions()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for seq in range(1, 7):
            for author in IDS:
                named = [IDS[(seq * MAX_SEEN + n) % len(IDS)] for n in range(MAX_SEEN)]
                mentions.take(author, seq, [Seen(member=m, seq=seq, leaf=digest(b"")) for m in named])
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept / (6 * MAX_SEEN * len(IDS)) < 40  # bytes a head that was named


def test_what_an_author_had_named_by_an_entry_stays_what_it_was() -> None:
    mentions = Mentions()
    ada, bob, cyd = IDS[:3]
    leaf = digest(b"")
    mentions.take(ada, 0, [Seen(member=bob, seq=4, leaf=leaf)])
    early = mentions.upto(ada, 0)
    mentions.take(ada, 2, [Seen(member=bob, seq=2, leaf=leaf), Seen(member=cyd, seq=0, leaf=leaf)])
    mentions.take(ada, 5, [Seen(member=bob, seq=9, leaf=leaf)])
    assert early == {bob: 5}
    assert mentions.upto(ada, 4) == {bob: 5, cyd: 1}
    assert mentions.upto(ada, 5) == {bob: 10, cyd: 1}
    assert mentions.upto(bob, 5) == {}
    assert early.get(cyd, 0) == 0
    assert len(mentions.upto(ada, 9)) == 2
