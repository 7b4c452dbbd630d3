"""Promises of finding each other, as far as values decide: whom to dial when, ways through relays, what a LAN may tell us."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from node.finding import circuits, contacts, lan
from node.finding.addresses import AddressBook
from node.finding.backoff import Backoff
from node.finding.contacts import MAX_NEARBY, REDIAL_S, Contacts
from node.finding.lan import Shown, judge, tag
from node.finding.relays import MAX_RELAYS, Nat, merged
from node.network import endpoints
from protocol import addresses
from protocol.errors import Malformed
from protocol.ids import CollectiveId, peer_id

PEERS = [peer_id(bytes(SigningKey(bytes([n]) * 32).verify_key)) for n in range(1, 90)]
ME, ADA, BOB, CYD = PEERS[:4]
OURS, OTHERS = CollectiveId("ab" * 32), CollectiveId("cd" * 32)
HOME, AWAY = "/ip4/192.0.2.7/tcp/4242", "/ip4/192.0.2.8/tcp/4242"
RELAY, RELAY2 = f"/ip4/198.51.100.1/tcp/4001/p2p/{BOB}", f"/dns4/relay.example/tcp/4001/p2p/{CYD}"
NOBODY = frozenset()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def known(clock, banned=(), seed=1):
    return Contacts(ME, AddressBook(), clock=clock, rng=random.Random(seed), banned=set(banned).__contains__)


# -- whom to dial ------------------------------------------------------------------------------------------------------
def test_a_missing_peer_is_tried_for_ever_after_pauses_that_are_bounded_and_differ():
    clock = Clock()
    circle = known(clock)
    circle.want([ADA])
    pauses = []
    for _ in range(80):
        assert circle.due(NOBODY) == [ADA]
        circle.trying(ADA)
        circle.failed(ADA)
        began = clock.now
        while not circle.due(NOBODY):
            clock.now += 0.05
        pauses.append(clock.now - began)
    assert max(pauses) <= REDIAL_S[1] + 0.1
    assert len({round(p, 1) for p in pauses}) > 20
    assert 0.3 < sum(p < REDIAL_S[1] / 2 for p in pauses) / len(pauses) < 0.7  # full jitter: evenly, from nothing on


def test_without_a_source_of_chance_pauses_double_as_before():
    clock = Clock()
    backoff = Backoff(clock)
    for pause in (1.0, 2.0, 4.0, 4.0):
        backoff.fail("x", (1.0, 4.0))
        clock.now += pause - 0.01
        assert backoff.blocked("x")
        clock.now += 0.02
        assert not backoff.blocked("x")


def test_a_peer_with_a_new_address_is_tried_at_once_and_first():
    clock = Clock()
    circle = known(clock)
    circle.want([ADA, BOB])
    circle.learn(ADA, [HOME])
    for peer in (ADA, BOB):
        circle.trying(peer)
        for _ in range(9):
            circle.failed(peer)
    assert not circle.learn(ADA, [HOME])  # nothing new
    assert circle.learn(ADA, [AWAY])
    assert circle.due(NOBODY)[0] == ADA
    assert circle.addresses(ADA) == (AWAY, HOME)
    circle.trying(ADA)
    circle.failed(ADA)
    clock.now += REDIAL_S[1]
    assert sorted(circle.due(NOBODY)) == sorted([ADA, BOB])


def test_nobody_is_dialled_who_is_connected_banned_forgotten_or_us():
    clock = Clock()
    circle = known(clock, banned=[CYD])
    circle.want([ADA, CYD, ME])
    circle.name(BOB, [HOME])
    assert circle.missing(frozenset([ADA])) == {BOB}
    circle.unname(BOB)
    assert circle.missing(NOBODY) == {ADA}
    circle.forget(ADA)
    assert circle.due(NOBODY) == []
    assert circle.addresses(BOB) == (HOME,)
    circle.forget(BOB)
    assert circle.addresses(BOB) == ()


def test_a_lan_full_of_peers_is_heard_up_to_a_bound_and_trusted_with_nothing():
    circle = known(Clock())
    assert circle.nearby({peer: (HOME,) for peer in PEERS[1:]})
    assert len(circle.missing(NOBODY)) == MAX_NEARBY
    assert not any(circle.trusted(peer) for peer in PEERS)
    assert not circle.nearby(dict.fromkeys(PEERS[1:], (HOME,)))
    circle.nearby({})
    assert circle.missing(NOBODY) == frozenset()
    assert circle.status()["nearby"] == 0


def test_two_nodes_that_lost_each_other_together_do_not_try_in_step():
    def first_five(seed):
        clock, tries = Clock(), []
        circle = known(clock, seed=seed)
        circle.want([ADA])
        while len(tries) < 5:
            if circle.due(NOBODY):
                circle.trying(ADA)
                circle.failed(ADA)
                tries.append(round(clock.now, 2))
            clock.now += 0.01
        return tries

    assert first_five(1) != first_five(2)


# -- relays ------------------------------------------------------------------------------------------------------------
def test_without_relays_p2pd_is_started_without_any_of_this():
    assert Nat().flags(ME) == {"relay": 0}
    assert Nat(relays=(RELAY,)).flags(BOB) == {"relay": 0}  # the relay itself needs none
    assert Nat().through(ME, ADA) == ()


@pytest.mark.parametrize("reach", ["auto", "public", "private"])
def test_p2pd_is_told_of_relays_by_flags_that_it_has(reach):
    flags = Nat(relays=(RELAY, RELAY2), reachability=reach, autonat=False).flags(ME)
    assert flags.get("trustedRelays") == (None if reach == "public" else f"{RELAY},{RELAY2}")
    assert flags["relayService"] == flags["autonat"] == 0
    assert [f for f in flags if f.startswith("force")] == (
        [] if reach == "auto" else [f"forceReachability{reach.title()}"]
    )


def test_a_peer_is_tried_through_every_relay_that_is_neither_end():
    nat = Nat(relays=(RELAY, RELAY2))
    assert nat.through(ME, ADA) == (f"{RELAY}/p2p-circuit", f"{RELAY2}/p2p-circuit")
    assert nat.through(ME, BOB) == (f"{RELAY2}/p2p-circuit",)
    assert all(addresses.is_circuit(addresses.check_address(way)) for way in nat.through(ME, ADA))


def test_relays_of_charter_and_operator_are_one_short_list_of_machines():
    many = [f"/ip4/198.51.100.{n}/tcp/1/p2p/{peer}" for n, peer in enumerate(PEERS[:20])]
    assert merged([RELAY], [RELAY.replace("4001", "4002"), RELAY2]) == (RELAY, RELAY2)
    assert len(merged(many)) == MAX_RELAYS
    for wrong in (HOME, f"{RELAY}/p2p-circuit/p2p/{ADA}", RELAY.replace("4001", "0"), "", 7):
        with pytest.raises(Malformed):
            merged([wrong])


def test_circuits_are_addresses_that_are_dialled_and_told_but_never_listened_on():
    way = f"{RELAY}/p2p-circuit"
    assert addresses.split(f"{way}/p2p/{ADA}") == (way, ADA)
    assert (addresses.host(way), addresses.port(way)) == (("ip4", "198.51.100.1"), 4001)
    with pytest.raises(Malformed):
        endpoints.check_listen([way])
    local = [f"/ip4/127.0.0.{n}/tcp/4242" for n in range(1, 9)]
    assert endpoints.shown([*local, HOME, way, "/ip4/192.0.2.7/udp/1/quic-v1"]) == (HOME, way)
    assert endpoints.shown(local[:2]) == tuple(local[:2])
    assert endpoints.shown([*[f"/ip4/192.0.2.{n}/tcp/1" for n in range(9)], way])[-1] == way
    assert endpoints.with_port(("/ip4/0.0.0.0/tcp/0",), (HOME, way)) == ("/ip4/0.0.0.0/tcp/4242",)


@pytest.mark.parametrize(
    "wrong", ["/p2p-circuit", f"/p2p/{ADA}", f"/p2p/{ADA}/p2p-circuit/p2p/{BOB}/p2p-circuit", "/p2p/Qm/p2p-circuit"]
)
def test_no_other_form_of_circuit_is_taken(wrong):
    with pytest.raises(Malformed):
        addresses.check_address(HOME + wrong)


@given(st.binary(max_size=80))
def test_a_message_to_a_relay_is_read_or_refused(message):
    for read in (circuits.read_asked, circuits.read_stop_status):
        try:
            read(message)
        except Malformed:
            continue


def test_a_relay_reads_what_a_peer_asks():
    target = bytes(range(38))
    inner = b"\x0a\x26" + target
    assert circuits.read_asked(b"\x08\x00") == circuits.Asked(kind=circuits.RESERVE)
    asked = circuits.read_asked(b"\x08\x01\x12" + bytes([len(inner)]) + inner)
    assert asked == circuits.Asked(kind=circuits.CONNECT, peer=target)
    assert circuits.stop_connect(target)[1:] == b"\x08\x00\x12" + bytes([len(inner)]) + inner
    assert circuits.read_stop_status(b"\x08\x01\x20\x64") == circuits.OK
    for wrong in (b"", b"\x08\x01", b"\x08\x02", b"\x12\x7f", b"\x08" + b"\xff" * 12, b"\x0d\x00"):
        with pytest.raises(Malformed):
            circuits.read_asked(wrong)


# -- the LAN -----------------------------------------------------------------------------------------------------------
LINKS = (ipaddress.IPv4Interface("192.168.7.3/24"),)
SALT = bytes(8)


def shown(**changes):
    whole = {
        "name": f"{ADA}.{lan.SERVICE}",
        "port": 4242,
        "salt": SALT,
        "tag": tag(SALT, OURS, ADA),
        "hosts": ("192.168.7.9",),
    }
    return Shown(**whole | changes)


def test_a_node_of_ours_on_the_link_is_found():
    assert judge(shown(), OURS, LINKS) == (ADA, ("/ip4/192.168.7.9/tcp/4242",))


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": tag(SALT, OTHERS, ADA)},
        {"tag": tag(SALT, OURS, BOB)},  # another's tag, repeated
        {"tag": b""},
        {"salt": b""},
        {"port": 0},
        {"port": None},
        {"port": 1 << 16},
        {"name": f"mallory.{lan.SERVICE}"},
        {"name": ""},
        {"hosts": ()},
        {"hosts": ("192.0.2.1", "10.0.0.1", "not an address", "::1")},  # dial somebody else, far away
    ],
    ids=str,
)
def test_whatever_else_is_said_on_a_lan_moves_nobody(changes):
    assert judge(shown(**changes), OURS, LINKS) is None


def test_a_tag_tells_the_collective_to_nobody_and_is_new_at_each_start():
    hosts = tuple(f"192.168.7.{n}" for n in range(2, 90))
    found = judge(shown(hosts=hosts), OURS, LINKS)
    assert found is not None
    assert len(found[1]) <= 4
    tags = Counter(tag(bytes([n]) * 8, OURS, ADA) for n in range(50))
    assert len(tags) == 50
    info = lan.Lan(OURS, ADA, lambda _seen: None)._info(4242, ["192.168.7.3"])
    said = b"".join(str(part).encode() for part in (info.name, info.server, info.properties))
    assert OURS.encode() not in said
    assert info.server == f"{ADA}.local."


def test_loopback_is_no_lan():
    assert endpoints.is_local(("/ip4/127.0.0.1/tcp/4242", "/ip6/::1/tcp/1"))
    assert not endpoints.is_local(("/ip4/127.0.0.1/tcp/4242", "/ip4/0.0.0.0/tcp/1"))
    assert not endpoints.is_local(("/dns4/localhost/tcp/1",))
    assert lan.links(["203.0.113.1"]) == ()
    assert contacts.MAX_NEARBY == lan.MAX_PEERS
