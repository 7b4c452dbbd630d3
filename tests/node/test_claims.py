"""Promises of claims: every piece is asked for, never by more than two at once, and slow donors hold nothing up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node.syncing.claims import MOST, SILENT_S, Claims
from node.syncing.pieces import PIECE
from protocol.ids import PeerId

A, B, C = (PeerId(name) for name in "ABC")


def test_a_free_donor_gets_the_first_run_that_nobody_was_asked_for():
    claims = Claims([0, 1, 2, 5, 6])
    first, second = claims.take(A, 0.0), claims.take(B, 0.0)
    assert (first.at, first.end, second.at, second.end) == (0, 3, 5, 7)
    assert not claims.free()
    claims.close(first)
    assert claims.free()


def test_a_claim_is_bounded_and_halved_for_a_donor_that_is_free_later():
    claims = Claims(range(100))
    first = claims.take(A, 0.0)
    assert first.end - first.at == MOST
    rest = [claims.take(A, 0.0) for _ in range(3)]
    assert all(rest)
    helper = claims.take(B, 1.0)
    assert helper is not None
    assert helper.end - helper.at == MOST // 2 - 1
    assert claims.busy(A) == 4


def test_a_silent_donor_keeps_one_piece_and_that_one_is_asked_of_another_too():
    claims = Claims(range(10))
    stalled = claims.take(A, 0.0)
    other = claims.take(C, SILENT_S)
    assert (stalled.at, stalled.end, other.at, other.end) == (0, 1, 1, 10)
    for index in range(other.at, other.end):
        claims.came(other, index)
    claims.close(other)
    double = claims.take(C, SILENT_S + 1)
    assert (double.at, double.end) == (0, 1)
    assert claims.take(C, SILENT_S + 1) is None, "never twice by one"
    assert claims.take(B, SILENT_S + 1) is None, "never by three"


def test_a_slow_donor_that_goes_on_is_doubled_only_by_one_known_to_be_much_faster():
    claims = Claims([0])
    slow = claims.take(A, 0.0)
    slow.hear(20_000, 0.9)
    for rate in (None, slow.rate(1.0) * 2):
        assert claims.take(B, 1.0, rate=rate) is None
    assert claims.take(B, 1.0, rate=slow.rate(1.0) * 10) is not None


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 60), st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 3), st.floats(0, 3)), max_size=120)
)
def test_whatever_donors_do_every_piece_comes_once_and_at_most_two_are_asked_for_it(count, steps):
    claims, now, here = Claims(range(count)), 0.0, set()
    held = {}

    def check():
        for index in range(count):
            asked = [c.peer for c in claims.claims if c.at <= index < c.end and claims.is_missing(index)]
            assert len(asked) <= 2
            assert len(set(asked)) == len(asked)

    for name, what, seconds in steps:
        now += seconds
        peer = PeerId(name)
        claim = held.get(peer)
        if claim is None:
            claim = claims.take(peer, now)
            if claim is not None:
                held[peer] = claim
        elif what == 0:
            claims.close(held.pop(peer))  # it died
        elif claim.at < claim.end and claims.is_missing(claim.at):
            assert claim.at not in here
            here.add(claim.at)
            claim.hear(PIECE, now)
            claims.came(claim, claim.at)
        else:
            claims.close(held.pop(peer))
        check()
    for claim in held.values():
        claims.close(claim)
    while (claim := claims.take(A, now)) is not None:
        for index in range(claim.at, claim.end):
            if claims.is_missing(index):
                claims.came(claim, index)
        claims.close(claim)
    assert claims.whole
