"""The sparse update in version 1, which 8 bits are written in: what goes in comes out, and no bytes from outside do harm."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import sparse, sparse1, varints
from protocol.errors import Malformed, NotCanonical, TooLarge

P = 1000
HEADER = struct.Struct("<4sBBBBIIII")


def drawn(seed, coordinates, sent, scale=1e-2):
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(coordinates, sent, replace=False)).astype(np.uint32)
    return indices, (rng.standard_normal(sent) * scale).astype(np.float32)


def encode(*, coordinates, indices, values, bits, block):
    data = sparse1.encode(
        coordinates=coordinates,
        positions=indices.astype(np.int64),
        values=values.astype(np.float64),
        bits=bits,
        block=block,
    )
    assert data is not None
    return data


def encoded(seed=0, coordinates=P, sent=200, bits=8, block=64):
    indices, values = drawn(seed, coordinates, sent)
    return encode(coordinates=coordinates, indices=indices, values=values, bits=bits, block=block)


def build(*, sent, index, values, scales=b"\x00\x3c", bits=8, encoding=0, exponent=8, coordinates=P, level=3):
    """An update with parts of our choosing, which `encode` would never make."""
    compress = zstandard.ZstdCompressor(level=level).compress
    frames = compress(index), compress(values)
    head = HEADER.pack(b"FNSU", 1, bits, encoding, exponent, coordinates, sent, len(frames[0]), len(frames[1]))
    return head + frames[0] + scales + frames[1]


@given(
    coordinates=st.integers(1, 3000),
    share=st.floats(0, 1),
    bits=st.sampled_from([8, 4]),
    block=st.sampled_from([1, 2, 64, 256, 32768]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_decoded_values_differ_from_the_encoded_ones_by_half_a_step(coordinates, share, bits, block, scale, seed):
    indices, values = drawn(seed, coordinates, int(share * coordinates), scale)
    data = encode(coordinates=coordinates, indices=indices, values=values, bits=bits, block=block)
    update = sparse.decode(data, coordinates=coordinates, max_sent=len(indices))

    assert np.isin(update.indices, indices).all()
    assert (np.diff(update.indices.astype(np.int64)) > 0).all()
    dense, got = np.zeros(coordinates), np.zeros(coordinates)
    dense[indices] = values
    got[update.indices] = update.values()
    step = float(np.abs(values).max(initial=0)) / sparse1.LEVELS[bits] * (1 + 2**-10) + 2.0**-24  # its scale at most
    assert float(np.abs(dense - got).max()) <= step / 2


def test_values_are_exact_in_units():
    update = sparse.decode(encoded(), coordinates=P, max_sent=200)
    assert (update.values().astype(np.float64) * 2.0**24 == update.units).all()
    assert (update.units != 0).all()
    assert not update.indices.flags.writeable
    assert not update.units.flags.writeable


def test_a_value_too_small_for_its_block_is_left_out_instead_of_sent_as_zero():
    values = np.array([1.0, 1e-5, -1.0], dtype=np.float32)
    data = sparse.encode(coordinates=P, indices=np.array([3, 4, 5], dtype=np.uint32), values=values, bits=8, block=256)
    assert sparse.decode(data, coordinates=P, max_sent=3).indices.tolist() == [3, 5]


def test_one_huge_value_among_small_ones_still_ends():
    values = np.full(20_000, 1e-4, dtype=np.float32)
    values[0] = 1.0
    data = sparse.encode(
        coordinates=20_000, indices=np.arange(20_000, dtype=np.uint32), values=values, bits=8, block=256
    )
    update = sparse.decode(data, coordinates=20_000, max_sent=20_000)
    assert update.indices[0] == 0
    assert 15_000 < update.sent < 20_000


@pytest.mark.parametrize(("share", "encoding"), [(0.01, sparse1.DELTA_VARINT), (0.5, sparse1.BITMAP)])
def test_the_smaller_index_encoding_is_taken(share, encoding):
    assert encoded(coordinates=100_000, sent=int(share * 100_000))[6] == encoding


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        ([1, 1], [1.0, 1.0]),
        ([2, 1], [1.0, 1.0]),
        ([P], [1.0]),
        ([1], [float("nan")]),
        ([1], [float("inf")]),
        ([1], [1e9]),
        ([1], [1.0, 2.0]),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_sender(indices, values):
    with pytest.raises(Malformed):
        sparse.encode(
            coordinates=P,
            indices=np.array(indices, dtype=np.uint32),
            values=np.array(values, dtype=np.float32),
            bits=8,
            block=256,
        )


@pytest.mark.parametrize("setting", [{"bits": 16}, {"block": 3}, {"block": 65536}, {"coordinates": 0}])
def test_an_unknown_shape_is_refused_by_the_sender(setting):
    shape = {"coordinates": P, "bits": 8, "block": 256} | setting
    with pytest.raises(Malformed):
        sparse.encode(indices=np.zeros(0, dtype=np.uint32), values=np.zeros(0, dtype=np.float32), **shape)


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 40, -1])
def test_a_cut_off_update_is_refused(cut):
    with pytest.raises(Malformed):
        sparse.decode(encoded()[:cut], coordinates=P, max_sent=200)


def test_trailing_bytes_are_refused():
    with pytest.raises(Malformed):
        sparse.decode(encoded() + b"\0", coordinates=P, max_sent=200)


def test_more_coordinates_than_allowed_are_refused():
    with pytest.raises(TooLarge):
        sparse.decode(encoded(sent=200), coordinates=P, max_sent=150)


def test_another_adapter_is_refused():
    with pytest.raises(Malformed):
        sparse.decode(encoded(), coordinates=P + 1, max_sent=200)


ONE = {"sent": 1, "index": b"\x05", "values": b"\x01"}


def test_the_builder_of_bad_updates_can_build_a_good_one():
    assert sparse.decode(build(**ONE), coordinates=P, max_sent=1).units.tolist() == [2**24]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"values": b"\x00"}, Malformed),  # a zero value
        ({"values": b"\x80"}, Malformed),  # -128
        ({"bits": 4, "values": b"\x08"}, Malformed),  # -8
        ({"bits": 4, "values": b"\x11"}, NotCanonical),  # the padding nibble
        ({"bits": 4, "values": b"\x10"}, NotCanonical),
        ({"bits": 5}, Malformed),
        ({"encoding": 2}, Malformed),
        ({"exponent": 16}, TooLarge),
        ({"exponent": 255}, TooLarge),
        ({"scales": b"\x00\x00"}, Malformed),  # zero
        ({"scales": b"\x00\x80"}, Malformed),  # -0.0
        ({"scales": b"\x00\xbc"}, Malformed),  # -1.0
        ({"scales": b"\x00\x7c"}, Malformed),  # infinity
        ({"scales": b"\x01\x7e"}, Malformed),  # not a number
        ({"scales": b"\x00\x3c\x00\x3c"}, Malformed),  # one too many
        ({"index": b"\x05\x05"}, Malformed),  # one index too many
        ({"index": b"\x85"}, Malformed),  # cut off
        ({"index": b"\x85\x00"}, NotCanonical),  # longer than needed
        ({"index": b"\xe8\x07"}, Malformed),  # 1000 of 0..999
        ({"index": b"\xff\xff\xff\xff\x7f"}, TooLarge),  # longer than any single varint below P
        ({"values": b"\x01\x01"}, TooLarge),
        ({"encoding": 1, "index": b"\x01" + bytes(124)}, None),
        ({"encoding": 1, "index": b"\x03" + bytes(124)}, Malformed),  # two bits, one sent
        ({"encoding": 1, "index": b"\x01" + bytes(125)}, TooLarge),
        ({"encoding": 1, "index": b"\x01" + bytes(123)}, TooLarge),
    ],
)
def test_every_field_is_checked(change, error):
    data = build(**(ONE | change))
    if error is None:
        sparse.decode(data, coordinates=P, max_sent=1)
        return
    with pytest.raises(error) as caught:
        sparse.decode(data, coordinates=P, max_sent=1)
    assert str(caught.value).startswith("couldn't decode ")


def test_bitmap_bits_beyond_the_coordinates_are_refused():
    data = build(sent=1, index=b"\x80", values=b"\x01", encoding=1, coordinates=5)
    with pytest.raises(NotCanonical):
        sparse.decode(data, coordinates=5, max_sent=1)


def test_varint_indices_cannot_wrap_around():
    gaps = varints.encode(np.full(200, varints.MAX_VALUE))
    with pytest.raises(Malformed):
        sparse.decode(build(sent=200, index=gaps, values=b"\x01" * 200), coordinates=P, max_sent=200)


def test_a_frame_that_does_not_tell_its_size_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"\x05")
    value = zstandard.ZstdCompressor().compress(b"\x01")
    head = HEADER.pack(b"FNSU", 1, 8, 0, 8, P, 1, len(frame), len(value))
    with pytest.raises(TooLarge):
        sparse.decode(head + frame + b"\x00\x3c" + value, coordinates=P, max_sent=1)


def test_two_frames_in_one_part_are_refused():
    frame = zstandard.ZstdCompressor().compress(b"\x05")
    value = zstandard.ZstdCompressor().compress(b"\x01")
    head = HEADER.pack(b"FNSU", 1, 8, 0, 8, P, 1, 2 * len(frame), len(value))
    with pytest.raises(Malformed):
        sparse.decode(head + frame + frame + b"\x00\x3c" + value, coordinates=P, max_sent=1)


def test_a_skippable_frame_is_refused():
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 1) + b"\x05"
    value = zstandard.ZstdCompressor().compress(b"\x01")
    head = HEADER.pack(b"FNSU", 1, 8, 0, 8, P, 1, len(skippable), len(value))
    with pytest.raises(Malformed):
        sparse.decode(head + skippable + b"\x00\x3c" + value, coordinates=P, max_sent=1)


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), seed=st.integers(0, 3), bits=st.sampled_from([8, 4]))
@example(at=6, flip=1, seed=0, bits=8)
@settings(max_examples=400, deadline=None)
def test_a_changed_byte_is_refused_or_decodes_within_bounds(at, flip, seed, bits):
    data = bytearray(encoded(seed=seed, bits=bits))
    data[at % len(data)] ^= flip
    within_bounds_or_malformed(bytes(data))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_a_header_are_refused_or_decode_within_bounds(rest):
    for sent, parts in ((3, rest), (len(rest), rest)):
        half = len(parts) // 2
        head = HEADER.pack(b"FNSU", 1, 8, 0, 8, P, sent, half, max(0, len(parts) - half - 2 * -(-sent // 256)))
        within_bounds_or_malformed(head + parts)


@given(index=st.binary(max_size=40), values=st.binary(max_size=20), encoding=st.sampled_from([0, 1]))
@settings(max_examples=300, deadline=None)
def test_any_parts_inside_good_frames_are_refused_or_decode_within_bounds(index, values, encoding):
    within_bounds_or_malformed(build(sent=len(values), index=index, values=values, encoding=encoding, coordinates=P))


def within_bounds_or_malformed(data):
    try:
        update = sparse.decode(data, coordinates=P, max_sent=200)
    except Malformed:
        return
    assert update.sent == len(update.units) <= 200
    assert (np.diff(update.indices.astype(np.int64)) > 0).all()
    assert update.indices.max(initial=0) < P
    assert int(np.abs(update.units).max(initial=0)) <= sparse.MAX_UNITS


def test_a_bomb_allocates_less_than_twice_the_largest_honest_update():
    coordinates, most = 400_000, 80_000
    indices, values = drawn(1, coordinates, most)
    honest = sparse.encode(coordinates=coordinates, indices=indices, values=values, bits=8, block=256)
    limit = peak(lambda: sparse.decode(honest, coordinates=coordinates, max_sent=most))
    zeros = bytes(100_000_000)
    bombs = [
        build(sent=most, index=zeros, values=zeros, coordinates=coordinates, scales=b"\x00\x3c" * 313),
        build(sent=most, index=b"\0" * most, values=zeros, coordinates=coordinates, scales=b"\x00\x3c" * 313),
        build(sent=most, index=zeros, values=zeros, coordinates=coordinates, scales=b"\x00\x3c" * 313, encoding=1),
        build(sent=2**32 - 1, index=b"", values=b"", coordinates=coordinates),
    ]
    for bomb in bombs:
        assert len(bomb) < 100_000
        assert peak(lambda bomb=bomb: refused(bomb, coordinates, most)) < 2 * limit


def refused(data, coordinates, most):
    with pytest.raises(Malformed):
        sparse.decode(data, coordinates=coordinates, max_sent=most)


def peak(work):
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, varints.MAX_VALUE)), max_size=200))
@settings(deadline=None)
def test_varints_round_trip_within_their_bound(values):
    data = varints.encode(np.array(values, dtype=np.int64))
    assert varints.decode(data, len(values)).tolist() == values
    assert len(data) <= varints.longest(len(values), sum(values))


@given(data=st.binary(max_size=60), count=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_varints_have_one_spelling(data, count):
    try:
        values = varints.decode(data, count)
    except Malformed:
        return
    assert varints.encode(values) == data


def test_a_whole_adapter_decodes_in_milliseconds():
    coordinates = 368_640
    data = encoded(coordinates=coordinates, sent=coordinates, block=256)
    best = min(timed(lambda: sparse.decode(data, coordinates=coordinates, max_sent=coordinates)) for _ in range(5))
    assert best < 0.1  # about 10 ms on one quiet core


def timed(work):
    start = time.thread_time()
    work()
    return time.thread_time() - start
