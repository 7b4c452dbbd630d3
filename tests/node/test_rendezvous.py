"""Promises of addresses and of the signed DHT record that carries them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from node.finding import addresses, rendezvous
from node.finding.addresses import AddressBook
from protocol.errors import Malformed, Refused
from protocol.ids import PeerId, peer_id

KEY, OTHER = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
HEX = bytes(KEY.verify_key).hex()
PEER = peer_id(bytes(KEY.verify_key))
NOW = 1_700_000_000.0
RECORD = rendezvous.Entry(
    key=rendezvous.key_id(HEX),
    subkey=b"\xd9\x40" + HEX.encode(),
    value=b"\xc4\x02" + rendezvous.pack(["/ip4/127.0.0.1/tcp/4242"]),
    expires=NOW + 60,
)
SIGNED = dataclasses.replace(RECORD, value=rendezvous.Seal(KEY).sign(RECORD))


def test_own_record_passes_everywhere_and_comes_back_as_it_was():
    for reader in (KEY, OTHER):
        assert rendezvous.Seal(reader).check(SIGNED, NOW)
    assert rendezvous.Seal.strip(SIGNED.value) == RECORD.value


@pytest.mark.parametrize(
    "change",
    [
        {"value": RECORD.value},
        {"value": rendezvous.Seal(OTHER).sign(RECORD)},
        {"value": SIGNED.value[:-1] + b"\0"},
        {"expires": NOW + 61},
        {"key": rendezvous.key_id(bytes(OTHER.verify_key).hex())},
        {"subkey": b"\xd9\x40" + bytes(OTHER.verify_key).hex().encode()},
        {"subkey": b""},
        {"subkey": b"\xc0"},
        {"value": b"x" * 5000},
    ],
)
def test_record_that_its_owner_did_not_sign_is_refused(change):
    assert not rendezvous.Seal(KEY).check(dataclasses.replace(SIGNED, **change), NOW)


def test_record_for_too_long_is_refused():
    long = dataclasses.replace(RECORD, expires=NOW + 2 * rendezvous.MAX_LIFETIME_S)
    long = dataclasses.replace(long, value=rendezvous.Seal(KEY).sign(long))
    assert not rendezvous.Seal(KEY).check(long, NOW)


def test_seal_signs_only_its_own_record():
    assert rendezvous.Seal(OTHER).sign(RECORD) == RECORD.value


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=200), st.floats(allow_nan=False))
def test_garbage_is_no_record(key, subkey, value, expires):
    entry = rendezvous.Entry(key=key, subkey=subkey, value=value, expires=expires)
    assert not rendezvous.Seal(KEY).check(entry, NOW)


@given(st.one_of(st.binary(max_size=200), st.none(), st.integers()))
def test_garbage_has_no_addresses(value):
    with pytest.raises(Refused):
        rendezvous.unpack(value)


def test_addresses_come_back_and_are_at_most_eight():
    many = [f"/ip4/10.0.0.{n}/tcp/4242" for n in range(20)]
    assert rendezvous.unpack(rendezvous.pack(many)) == tuple(many[:8])


@pytest.mark.parametrize(
    "good", ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/65535", "/dns/node.example.org/tcp/4242", "/dns4/a-b.c/tcp/1"]
)
def test_address_that_we_dial_is_taken(good):
    assert addresses.check_address(good) == good
    assert addresses.split(f"{good}/p2p/{PEER}") == (good, PEER)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        None,
        7,
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/300.0.0.1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic",
        "/unix/tmp/x.sock",
        "/ip4/127.0.0.1/tcp/1/p2p/x",
        "/dns/" + "a" * 101 + "/tcp/1",
        "/dns/a,b/tcp/1",
        "/ip4/127.0.0.1/tcp/1\n",
    ],
)
def test_other_address_is_refused(bad):
    with pytest.raises(Malformed):
        addresses.check_address(bad)


@given(st.text(max_size=60))
def test_garbage_is_no_peer(text):
    with pytest.raises(Malformed):
        addresses.check_peer(text)


def test_transport_key_stands_in_the_peer_id():
    assert addresses.transport(PEER) == HEX
    with pytest.raises(Malformed):
        addresses.transport(PeerId("12D3KooW" + "z" * 44))


def test_book_is_bounded_keeps_the_newest_and_survives_damage(tmp_path):
    path = tmp_path / "addresses.json"
    book = AddressBook(path)
    assert book.remember(PEER, ["/ip4/127.0.0.1/tcp/1"])
    assert not book.remember(PEER, ["/ip4/127.0.0.1/tcp/1"])
    assert book.remember(PEER, [f"/ip4/127.0.0.1/tcp/{n}" for n in range(2, 20)])
    assert len(AddressBook(path).addresses(PEER)) == addresses.MAX_ADDRESSES
    for n in range(addresses.MAX_PEERS + 5):
        book._path = None  # the file is not the point here
        book.remember(peer_id(n.to_bytes(32, "big")), ["/ip4/127.0.0.1/tcp/1"])
    assert len(book.peers()) == addresses.MAX_PEERS
    assert PEER not in book
    path.write_text(json.dumps({PEER: ["/ip4/127.0.0.1/tcp/1"], "x": ["y"], str(PEER)[:-1] + "0": 3}))
    assert AddressBook(path).peers() == {PEER}
    for damaged in ("{", "[]", '{"x": 3}', ""):
        path.write_text(damaged)
        assert not AddressBook(path).peers()
