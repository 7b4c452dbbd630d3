"""Promises of who speaks for whom, and of how long somebody is left alone."""

from __future__ import annotations

from node.finding.backoff import HOSTILE_S, MAX_KEYS, Backoff
from node.syncing import directory
from node.syncing.directory import Directory
from protocol.ids import MemberId, PeerId

A, B = MemberId("a" * 64), MemberId("b" * 64)
PEERS = [PeerId(f"peer{n}") for n in range(8)]


def test_newest_peer_of_a_member_stands_first_and_only_a_few_are_kept():
    met = Directory(PEERS[7])
    assert not met.meet(PEERS[7], A, newest=True)  # ourselves
    for peer in PEERS[:6]:
        assert met.meet(peer, A, newest=True)
    assert met.peers_of(A) == tuple(reversed(PEERS[2:6]))
    assert met.newest() == {PEERS[5]}
    assert not met.meet(PEERS[5], A, newest=True)
    assert not met.meet(PEERS[3], A, newest=False)
    assert met.meet(PEERS[3], A, newest=True)
    assert met.peers_of(A)[0] == PEERS[3]
    assert met.member_of(PEERS[0]) is None
    assert met.peers() == set(PEERS[2:6])


def test_peer_speaks_for_one_member():
    met = Directory(PEERS[7])
    met.meet(PEERS[0], A, newest=True)
    met.meet(PEERS[0], B, newest=True)
    assert (met.member_of(PEERS[0]), met.peers_of(A), met.peers_of(B)) == (B, (), (PEERS[0],))
    assert met.newest() == {PEERS[0]}


def test_preferred_members_are_ranked_first_among_those_present():
    met = Directory(PEERS[7])
    met.meet(PEERS[0], A, newest=True)
    met.meet(PEERS[1], B, newest=True)
    assert met.ranked([B], PEERS) == [PEERS[1], PEERS[0]]
    assert met.ranked([B], PEERS[:1]) == [PEERS[0]]


def test_directory_is_bounded():
    met = Directory(PEERS[7])
    for n in range(directory.MAX_MEMBERS + 10):
        met.meet(PeerId(f"p{n}"), MemberId(f"{n:064x}"), newest=True)
    assert len(met.peers()) == directory.MAX_MEMBERS


def test_pauses_double_up_to_a_limit_and_end_with_a_success():
    now = [100.0]
    backoff = Backoff(lambda: now[0])
    pauses = []
    for _ in range(12):
        backoff.fail("k", HOSTILE_S)
        began = now[0]
        while backoff.blocked("k"):
            now[0] += 1.0
        pauses.append(now[0] - began)
    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
    assert pauses[-1] == HOSTILE_S[1]
    backoff.fail("k", HOSTILE_S)
    assert backoff.blocked_count() == 1
    backoff.clear("k")
    assert not backoff.blocked("k")
    backoff.fail("k")
    now[0] += 0.25
    assert not backoff.blocked("k")
    for n in range(MAX_KEYS + 10):
        backoff.fail(n)
    assert backoff.blocked_count() == MAX_KEYS
