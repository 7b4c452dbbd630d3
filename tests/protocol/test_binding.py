"""Promises of the tie between a member and its peer."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from protocol import binding
from protocol.errors import BadKey, BadSignature, Malformed, Refused
from protocol.ids import peer_id
from protocol.keys import member_id

KEY, TRANSPORT, OTHER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
MADE = binding.make(KEY, TRANSPORT)


def test_made_binding_verifies_and_names_both_keys():
    bound = binding.verify(MADE)
    assert bound.member == member_id(KEY)
    assert bound.peer == peer_id(bytes(TRANSPORT.verify_key))
    assert bound.to_json() == MADE


def test_binding_needs_both_signatures():
    theirs = binding.make(OTHER, TRANSPORT)
    for field in ("by_member", "by_transport"):
        with pytest.raises(BadSignature):
            binding.verify({**MADE, field: binding.make(OTHER, OTHER)[field]})
    with pytest.raises(BadSignature):  # nobody binds a foreign member to his own peer
        binding.verify({**MADE, "member": theirs["member"], "by_transport": theirs["by_transport"]})


def test_peer_must_be_the_name_of_the_transport_key():
    with pytest.raises(Malformed):
        binding.verify({**MADE, "peer": peer_id(bytes(OTHER.verify_key))})


def test_low_order_key_cannot_be_a_member():
    with pytest.raises(BadKey):
        binding.verify({**MADE, "member": "01" + "00" * 31})


def test_second_spelling_of_a_signature_is_refused():
    text = str(MADE["by_member"])
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".index(text[85])
    other = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[last | 1]
    twin = text[:85] + other + "=="
    assert base64.b64decode(twin) == base64.b64decode(text)
    with pytest.raises(Malformed):
        binding.verify({**MADE, "by_member": twin})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(_JSON)
def test_garbage_is_refused(value):
    with pytest.raises(Refused):
        binding.verify(value)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(MADE)), _JSON)
def test_a_changed_field_is_refused(field, value):
    if value != MADE[field]:
        with pytest.raises(Refused):
            binding.verify({**MADE, field: value})
