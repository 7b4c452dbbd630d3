"""The sparse update: what goes in comes out, in few bytes, and its bytes are the only ones that say it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.charter_reading import VALUE_BITS
from protocol import grid, quantise, sparse
from protocol.errors import Malformed

P = 5000


def drawn(seed, coordinates, sent, scale=1e-2):
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(coordinates, sent, replace=False)).astype(np.uint32)
    return indices, (rng.standard_normal(sent) * scale).astype(np.float32)


def clustered(seed, coordinates=P, density=0.05):
    """What training makes: few rows and columns with much in them, signs of rank one but for a few."""
    rng = np.random.default_rng(seed)
    rows = -(-coordinates // 16)
    strength = np.exp(rng.normal(0, 1.5, (rows, 1)) + rng.normal(0, 1, (1, 16))) * np.exp(
        rng.normal(0, 0.3, (rows, 16))
    )
    flat = strength.ravel()[:coordinates]
    indices = np.sort(np.argsort(-flat)[: int(density * coordinates)])
    signs = (
        rng.choice([-1, 1], (rows, 1)) * rng.choice([-1, 1], (1, 16)) * rng.choice([-1, 1], (rows, 16), p=[0.05, 0.95])
    )
    values = signs.ravel()[indices] * rng.uniform(0.5, 1.5, len(indices)) * 1e-2
    return indices.astype(np.uint32), values.astype(np.float32)


def encoded(indices, values, coordinates=P, bits=4, block=64):
    return sparse.in_grid(coordinates=coordinates, indices=indices, values=values, bits=bits, block=block)


# -- in and out --------------------------------------------------------------------------------------------------------
@given(
    coordinates=st.one_of(st.integers(1, 40), st.integers(1, 9000)),
    share=st.floats(0, 1),
    bits=st.sampled_from(sparse.BITS),
    block=st.sampled_from([1, 2, 64, 256, 32768]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
    cluster=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_what_is_decoded_is_what_was_quantised_and_has_one_spelling(
    coordinates, share, bits, block, scale, cluster, seed
):
    indices, values = drawn(seed, coordinates, int(share * coordinates), scale)
    if cluster:
        indices, values = clustered(seed, coordinates, share)
        values *= np.float32(scale)
    data = encoded(indices, values, coordinates, bits, block)
    update = sparse.decode(data, coordinates=coordinates, max_sent=len(indices))
    chosen = quantise.quantise(values.astype(np.float64), bits, block)

    assert update.indices.tolist() == indices[chosen.kept].tolist()
    scales = np.repeat(quantise.scale_units(chosen.scales, chosen.cut), block)[: update.sent]
    assert np.abs(update.units).tolist() == (scales * (chosen.codes + chosen.base)).tolist()
    assert (np.sign(update.units) == np.sign(values[chosen.kept])).all()
    assert sparse.write(sparse.read(data, coordinates=coordinates, max_sent=len(indices))) == data


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
def test_eight_bits_leave_an_error_of_half_a_step(scale):
    indices, values = drawn(1, P, 1000, scale)
    update = sparse.decode(encoded(indices, values, bits=8), coordinates=P, max_sent=1000)
    dense, got = np.zeros(P), np.zeros(P)
    dense[indices] = values
    got[update.indices] = update.values()
    step = float(np.abs(values).max()) / quantise.levels(8) * (1 + 2**-10) + 2.0**-24  # its scale at most
    assert float(np.abs(dense - got).max()) <= step / 2


@pytest.mark.parametrize("sent", [0, 1, 37, 5000])
def test_eight_bits_are_written_in_version_1_and_keep_every_value_within_half_a_step(sent):
    indices, values = drawn(4, P, sent)
    data = sparse.encode(coordinates=P, indices=indices, values=values, bits=8, block=64)
    update = sparse.decode(data, coordinates=P, max_sent=P)
    dense, got = np.zeros(P), np.zeros(P)
    dense[indices], got[update.indices] = values, update.values()
    assert data[4] == 1
    assert float(np.abs(dense - got).max()) <= float(np.abs(values).max(initial=0)) / 127 * (1 + 2**-10) / 2 + 2.0**-24


def test_equal_values_that_a_reader_of_version_1_would_take_for_a_bomb_are_written_in_version_2():
    many = 1_000_000
    values = np.full(many, 0.5, dtype=np.float32)
    data = sparse.encode(coordinates=many, indices=np.arange(many, dtype=np.uint32), values=values, bits=8, block=256)
    update = sparse.decode(data, coordinates=many, max_sent=many)
    assert data[4] == 2
    assert update.sent == many
    assert np.allclose(update.values(), 0.5)


def relative_error(values, bits, block=64):
    indices = np.arange(len(values), dtype=np.uint32)
    update = sparse.decode(encoded(indices, values, len(values), bits, block), coordinates=len(values), max_sent=P)
    got = np.zeros(len(values))
    got[update.indices] = update.values()
    return float(np.square(got - values).sum() / np.square(values).sum())


def test_few_bits_are_spent_where_the_squared_error_is_least():
    """Against the bound for 2^(bits-1) equal cells of a uniform density, and against scales by the maximum."""
    rng = np.random.default_rng(3)
    values = (rng.choice([-1, 1], 4096) * rng.uniform(0.5, 1.5, 4096) * 1e-2).astype(np.float32)
    second_moment = 1 + 1 / 12
    for bits, slack in ((1, 1.02), (2, 1.15), (3, 1.2), (4, 1.25)):
        ideal = (1 / quantise.levels(bits)) ** 2 / 12 / second_moment
        assert relative_error(values, bits) <= slack * ideal
    by_maximum = float(np.mean((np.abs(values) - np.abs(values).max()) ** 2) / np.mean(values**2))
    assert relative_error(values, 1) < by_maximum / 3


def test_one_bit_sends_the_mean_of_its_block_under_the_sign():
    values = np.array([1.0, -1.5, 2.0, -3.5], dtype=np.float32)
    indices = np.array([3, 4, 700, 4999], dtype=np.uint32)
    update = sparse.decode(encoded(indices, values, bits=1), coordinates=P, max_sent=4)
    assert update.indices.tolist() == indices.tolist()
    assert update.values().tolist() == [2.0, -2.0, 2.0, -2.0]


@pytest.mark.parametrize("bits", sparse.BITS)
def test_values_are_exact_in_units(bits):
    update = sparse.decode(encoded(*drawn(0, P, 900), bits=bits), coordinates=P, max_sent=900)
    assert (update.values().astype(np.float64) * 2.0**24 == update.units).all()
    assert (update.units != 0).all()
    assert int(np.abs(update.units).max()) <= sparse.MAX_UNITS
    assert not update.indices.flags.writeable
    assert not update.units.flags.writeable


@pytest.mark.parametrize("bits", sparse.BITS)
def test_the_largest_value_of_the_format_is_sent_as_it_is(bits):
    largest = np.float32(sparse.LARGEST_SCALE * quantise.levels(bits))
    one = np.array([0], dtype=np.uint32)
    update = sparse.decode(encoded(one, np.array([largest], dtype=np.float32), bits=bits), coordinates=P, max_sent=1)
    assert float(update.values()[0]) == pytest.approx(float(largest), rel=2**-3)
    with pytest.raises(Malformed, match="too large"):
        encoded(one, np.array([largest * 1.01], dtype=np.float32), bits=bits)


def test_a_value_too_small_for_its_block_is_left_out_instead_of_sent_as_zero():
    values = np.array([1.0, 1e-5, -1.0], dtype=np.float32)
    for bits in sparse.BITS:
        data = encoded(np.array([3, 4, 5], dtype=np.uint32), values, bits=bits)
        assert sparse.decode(data, coordinates=P, max_sent=3).indices.tolist() == [3, 5]


def test_one_huge_value_among_small_ones_still_ends():
    values = np.full(20_000, 1e-4, dtype=np.float32)
    values[0] = 1.0
    data = encoded(np.arange(20_000, dtype=np.uint32), values, 20_000, bits=8, block=256)
    update = sparse.decode(data, coordinates=20_000, max_sent=20_000)
    assert update.indices[0] == 0
    assert 15_000 < update.sent < 20_000


def test_an_update_of_nothing_is_an_update():
    none = np.zeros(0)
    update = sparse.decode(encoded(none.astype(np.uint32), none.astype(np.float32)), coordinates=P, max_sent=0)
    assert (update.sent, update.coordinates) == (0, P)


# -- bytes ---------------------------------------------------------------------------------------------------------------
def entropy(share):
    return float(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / share)


def test_what_training_makes_takes_far_fewer_bits_than_its_indices_alone_would():
    coordinates, density = 92_160, 0.02
    indices, values = clustered(5, coordinates, density)
    bits = {b: 8 * len(encoded(indices, values, coordinates, b, 256)) / len(indices) for b in (1, 2, 4)}
    assert bits[1] < 0.75 * entropy(density), "index and sign together, against an index of independent coordinates"
    assert bits[2] - bits[1] == pytest.approx(1, abs=0.2)
    assert bits[4] - bits[2] == pytest.approx(2, abs=0.2)


def test_what_has_no_structure_costs_a_fifth_more_than_its_entropy():
    coordinates, density = 92_160, 0.02
    indices, values = drawn(6, coordinates, int(density * coordinates))
    bits = 8 * len(encoded(indices, np.sign(values) * 1e-2, coordinates, 1, 256)) / len(indices)
    assert bits < 1.2 * (1 + entropy(density))


# -- the sender --------------------------------------------------------------------------------------------------------------
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
        encoded(np.array(indices, dtype=np.uint32), np.array(values, dtype=np.float32), bits=8)


@pytest.mark.parametrize("setting", [{"bits": 16}, {"bits": 5}, {"block": 3}, {"block": 65536}, {"coordinates": 0}])
def test_an_unknown_shape_is_refused_by_the_sender(setting):
    with pytest.raises(Malformed):
        encoded(*drawn(0, P, 9), **setting)


# -- parts -------------------------------------------------------------------------------------------------------------------
def test_a_charter_can_ask_for_the_bits_that_an_update_can_have_and_no_others():
    assert VALUE_BITS == sparse.BITS


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("signs", [True, False])
def test_every_shape_of_the_grid_can_be_read(group, signs):
    indices, values = clustered(7, 40_000, 0.1)
    parts = sparse.read(encoded(indices, values, 40_000), coordinates=40_000, max_sent=4000)
    positions = parts.positions.astype(np.int64)
    shape = dataclasses.replace(grid.shape_of(40_000, group, 256, positions), signs=signs)
    again = sparse.write(dataclasses.replace(parts, grid=shape, positions=positions))
    got = sparse.decode(again, coordinates=40_000, max_sent=4000)
    assert got.indices.tolist() == positions.tolist()
    assert got.units.tolist() == parts.units().tolist()
