"""Promises of the bytes on streams: round trips, limits before allocation, and nothing but `Refused` for garbage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from protocol import binding, canon, fingerprints, wire
from protocol.errors import Malformed, NotCanonical, Refused, TooLarge
from protocol.frames import unpack
from protocol.ids import CollectiveId, Digest, MemberId

BOUND = binding.verify(binding.make(SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)))
COLLECTIVE = CollectiveId("ab" * 32)
REQUESTS = [
    wire.HeadsRequest(collective=COLLECTIVE, binding=BOUND),
    wire.FeedRequest(collective=COLLECTIVE, binding=BOUND, member=MemberId("cd" * 32), start=7),
    wire.BlobRequest(collective=COLLECTIVE, binding=BOUND, digest=Digest("ef" * 32), offset=2**40),
    wire.ChangesRequest(collective=COLLECTIVE, binding=BOUND, since="a-1", have=bytes(fingerprints.SIZE)),
    wire.ChangesRequest(collective=COLLECTIVE, binding=BOUND),
    wire.RangeRequest(
        collective=COLLECTIVE, binding=BOUND, member=MemberId("cd" * 32), start=7, attach=wire.MAX_ATTACHED
    ),
    wire.FollowRequest(collective=COLLECTIVE, binding=BOUND, start=0, attach=0),
    wire.PartRequest(collective=COLLECTIVE, binding=BOUND, digest=Digest("ef" * 32), offset=2**40, length=1),
    wire.HaveRequest(collective=COLLECTIVE, binding=BOUND, digests=(Digest("ef" * 32), Digest("01" * 32))),
]
PARSERS = [
    wire.parse_request,
    wire.parse_heads,
    wire.parse_changes,
    wire.parse_page,
    wire.parse_blob_size,
    wire.open_answer,
    lambda data: wire.parse_bitmap(data, 9),
    lambda data: wire.parse_attached(data, 3),
    wire.parse_go_on,
]

lines = st.binary(min_size=1, max_size=200)
records = st.builds(
    lambda line, body: wire.WireRecord(line=line, salt=body and body[0], data=body and body[1]),
    lines,
    st.none() | st.tuples(st.binary(min_size=16, max_size=16), st.binary(max_size=200)),
)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_request_parses_back(request_):
    assert wire.parse_request(request_.to_bytes()) == request_


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.lists(records, max_size=20))
def test_page_parses_back(note, some):
    page = wire.page_of(note, some)
    assert page.records == tuple(some)
    assert wire.parse_page(page.to_bytes()) == page


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20))
def test_heads_parse_back(notes):
    heads = wire.HeadsAnswer(binding=BOUND, notes=tuple(notes))
    assert wire.parse_heads(heads.to_bytes()) == heads


@settings(max_examples=50, deadline=None)
@given(st.from_regex(r"[0-9A-Za-z_-]{0,64}", fullmatch=True), st.lists(st.binary(max_size=300), max_size=20))
def test_changes_parse_back(token, notes):
    changes = wire.ChangesAnswer(binding=BOUND, token=token, notes=tuple(notes))
    assert wire.parse_changes(changes.to_bytes()) == changes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=wire.MAX_DIGESTS))
def test_request_for_many_digests_parses_back_within_its_own_limit(raw):
    request = wire.HaveRequest(collective=COLLECTIVE, binding=BOUND, digests=tuple(Digest(one.hex()) for one in raw))
    assert wire.parse_request(request.to_bytes(), max_bytes=wire.max_request(wire.HAVE)) == request


def test_most_digests_fit_and_one_more_is_refused():
    def asked(count):
        many = (Digest("ff" * 32),) * count
        return wire.HaveRequest(collective=COLLECTIVE, binding=BOUND, digests=many).to_bytes()

    assert len(wire.parse_request(asked(1024), max_bytes=wire.max_request(wire.HAVE)).digests) == 1024
    with pytest.raises(Malformed):
        wire.parse_request(asked(1025), max_bytes=wire.max_request(wire.HAVE))
    for protocol in (wire.HEADS, wire.FEED, wire.BLOB, wire.CHANGES, wire.RANGE, wire.PART):
        with pytest.raises(TooLarge):
            wire.parse_request(asked(1024), max_bytes=wire.max_request(protocol))


@given(st.lists(st.booleans(), min_size=1, max_size=wire.MAX_DIGESTS))
def test_bitmap_parses_back_and_has_one_spelling(held):
    raw = wire.bitmap(held)
    assert wire.parse_bitmap(raw, len(held)) == tuple(held)
    for bad in (raw + b"\0", raw[:-1]):
        with pytest.raises(Malformed):
            wire.parse_bitmap(bad, len(held))
    if len(held) % 8:
        with pytest.raises(Malformed):
            wire.parse_bitmap(raw[:-1] + bytes([raw[-1] | 0x80]), len(held))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20))
def test_attachments_parse_back_one_for_each_record(blobs):
    (frame,) = unpack(wire.attached(blobs), max_items=1, max_item=wire.max_attached(20 * 300))
    assert wire.parse_attached(frame, len(blobs)) == blobs
    for wrong in (len(blobs) + 1, len(blobs) - 1):
        if wrong >= 0:
            with pytest.raises(Refused):
                wire.parse_attached(frame, wrong)


heads_held = st.dictionaries(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.tuples(st.integers(1, 2**53 - 1), st.binary(min_size=32, max_size=32).map(bytes.hex)),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=8, max_size=8), heads_held, heads_held)
def test_fingerprints_name_the_buckets_of_every_head_that_differs(salt, ours, theirs):
    theirs = {**theirs, **dict(list(ours.items())[::2])}
    as_heads = [[(member, *head) for member, head in held.items()] for held in (ours, theirs)]
    told = fingerprints.fingerprints(salt, as_heads[1])
    assert len(told) == fingerprints.SIZE
    assert not fingerprints.differing(told, reversed(as_heads[1]))
    differing = {member for member in {*ours, *theirs} if ours.get(member) != theirs.get(member)}
    assert {fingerprints.bucket_of(salt, member) for member in differing} == fingerprints.differing(told, as_heads[0])


@given(st.integers(0, 2**64 - 1))
def test_blob_size_parses_back(size):
    assert wire.parse_blob_size(wire.blob_size(size)) == size


@given(st.binary(max_size=400))
def test_garbage_raises_nothing_but_refused(data):
    for parse in PARSERS:
        with contextlib.suppress(Refused):
            parse(data)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_byte_never_escapes_the_refusal(data):
    page = wire.page_of(b"note", [wire.WireRecord(line=b"line", salt=b"s" * 16, data=b"{}")]).to_bytes()
    heads = wire.HeadsAnswer(binding=BOUND, notes=(b"note",)).to_bytes()
    for good, parse in (
        (page, wire.parse_page),
        (heads, wire.parse_heads),
        (REQUESTS[1].to_bytes(), wire.parse_request),
    ):
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
        with contextlib.suppress(Refused):
            assert parse(bad) != parse(good)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_request_with_another_field_or_spelling_is_refused(request_):
    value = canon.decode_object(request_.to_bytes())
    for bad in ({**value, "more": 1}, {**value, "v": 2}, {**value, "ask": "all"}, {**value, "collective": "AB" * 32}):
        with pytest.raises(Malformed):
            wire.parse_request(canon.encode(bad))
    with pytest.raises(NotCanonical):
        wire.parse_request(b" " + request_.to_bytes())
    for field, wrong in (
        ("start", -1),
        ("start", True),
        ("offset", "0"),
        ("attach", -1),
        ("attach", wire.MAX_ATTACHED + 1),
        ("length", 0),
        ("length", wire.MAX_PART + 1),
        ("since", "a b"),
        ("since", "a" * 65),
        ("since", 1),
        ("have", "AAAA"),
        ("have", "AB=="),  # a second spelling of AA==
        ("digests", ""),
        ("digests", "AAAA"),
        ("digests", "*"),
        ("digests", None),
    ):
        if field in value:
            with pytest.raises(Malformed):
                wire.parse_request(canon.encode({**value, field: wrong}))


def test_request_with_a_forged_binding_is_refused():
    value = canon.decode_object(REQUESTS[0].to_bytes())
    theirs = binding.make(SigningKey(b"\3" * 32), SigningKey(b"\4" * 32))
    value["binding"] = {**BOUND.to_json(), "by_member": theirs["by_member"]}
    with pytest.raises(Refused):
        wire.parse_request(canon.encode(value))


def test_lengths_are_refused_before_anything_is_read():
    with pytest.raises(TooLarge):
        wire.frame_length(b"\xff\xff\xff\xff", wire.MAX_PAGE)
    with pytest.raises(TooLarge):
        wire.parse_request(b"{" * (wire.MAX_REQUEST + 1))
    with pytest.raises(TooLarge):  # an item that claims 4 GiB
        wire.parse_page(b"\xff\xff\xff\xff")
    with pytest.raises(TooLarge):  # a line that claims more than its item
        wire.parse_page(wire.frame(b"note") + wire.frame(b"\x01\x00\x00\xff\xff"))
    with pytest.raises(TooLarge):
        wire.parse_heads(wire.frame(canon.encode(BOUND.to_json())) + wire.frame(b"") * (wire.MAX_HEADS + 1))


def test_page_holds_at_most_256_records_and_one_mebibyte():
    small, large = (wire.WireRecord(line=b"x", salt=b"s" * 16, data=b"y" * n) for n in (1, 100_000))
    assert len(wire.page_of(b"note", [small] * 300).records) == wire.PAGE_RECORDS
    page = wire.page_of(b"note", [large] * 300)
    assert len(page.records) == 10
    assert len(page.to_bytes()) <= wire.MAX_PAGE
    assert wire.parse_page(page.to_bytes()) == page


def test_largest_record_fits_into_a_page():
    record = wire.WireRecord(line=b"x" * wire.MAX_LINE, salt=b"s" * 16, data=b"y" * wire.MAX_BODY)
    assert wire.parse_page(wire.page_of(b"n" * wire.MAX_NOTE, [record]).to_bytes()).records == (record,)


def test_refusal_is_typed_and_its_code_is_bounded():
    assert wire.open_answer(wire.refusal("not-a-member")[4:]) == wire.Refusal(code="not-a-member")
    assert wire.open_answer(wire.answer(b"payload")[4:]) == b"payload"
    for bad in (b"\x01", b"\x01Not A Code", b"\x01" + b"x" * 41, b"\x02", b""):
        with pytest.raises(Malformed):
            wire.open_answer(bad)
