"""Registers and merges: functions of a set, exact, and the same bytes everywhere."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import merging, recipes
from contrib.errors import MergeRefused
from protocol import sparse

P = 40
RECIPES = ["contributor-mean/1", "member-mean/1", "sqrt-mean/1"]
MEMBERS = [letter * 64 for letter in "abcd"]


@st.composite
def sparse_updates(draw, limit=sparse.MAX_UNITS):
    indices = sorted(draw(st.sets(st.integers(0, P - 1), max_size=12)))
    units = draw(st.lists(st.integers(-limit, limit).filter(bool), min_size=len(indices), max_size=len(indices)))
    return sparse.SparseUpdate(
        coordinates=P,
        indices=np.array(indices, dtype=np.uint32),
        units=np.array(units, dtype=np.int64),
        bits=8,
        block=256,
    )


by_member = st.dictionaries(st.sampled_from(MEMBERS), st.lists(sparse_updates(), max_size=3))


def registers_of(contributed):
    return {member: merging.registers_of(sent, P) for member, sent in contributed.items()}


def weights(values=(1, 1, 1, 1)):
    return dict(zip(MEMBERS, values, strict=True))


def view(recipe, registers, values=(1, 1, 1, 1)):
    return recipes.merge(recipe, registers, weights(values), len(MEMBERS), P)


@given(sent=st.lists(sparse_updates(), max_size=5), order=st.randoms())
@settings(deadline=None)
def test_a_register_does_not_depend_on_the_order_of_its_updates(sent, order):
    shuffled = list(sent)
    order.shuffle(shuffled)
    one_by_one = merging.empty(P)
    for update in shuffled:
        one_by_one = merging.add(one_by_one, update)
    assert merging.register_digest(one_by_one) == merging.register_digest(merging.registers_of(sent, P))


@given(kept=st.lists(sparse_updates(), max_size=3), gone=sparse_updates(), place=st.integers(0, 3))
@settings(deadline=None)
def test_a_removed_update_leaves_the_bytes_of_never_having_had_it(kept, gone, place):
    everything = [*kept[:place], gone, *kept[place:]]
    without = merging.remove(merging.registers_of(everything, P), gone)
    never = merging.registers_of(kept, P)
    assert merging.register_digest(without) == merging.register_digest(never)
    for recipe in RECIPES:
        assert view(recipe, {MEMBERS[0]: without}).tobytes() == view(recipe, {MEMBERS[0]: never}).tobytes()


@given(contributed=by_member, order=st.randoms())
@settings(deadline=None)
def test_a_merge_is_a_function_of_the_set(contributed, order):
    shuffled = list(contributed.items())
    order.shuffle(shuffled)
    for recipe in RECIPES:
        first = view(recipe, registers_of(contributed))
        assert view(recipe, registers_of(dict(shuffled))).tobytes() == first.tobytes()
        assert view(recipe, registers_of(contributed)).tobytes() == first.tobytes()


@given(contributed=by_member)
@settings(deadline=None)
def test_a_member_that_sent_nothing_is_as_one_that_is_not_there(contributed):
    with_empty = {member: merging.empty(P) for member in MEMBERS} | registers_of(contributed)
    for recipe in RECIPES:
        assert view(recipe, with_empty).tobytes() == view(recipe, registers_of(contributed)).tobytes()


@given(contributed=by_member, values=st.tuples(*[st.integers(1, 1000)] * 4))
@settings(deadline=None)
def test_the_means_are_the_exact_quotients_rounded_twice(contributed, values):
    registers = registers_of(contributed)
    total = sum(values)
    merged = {recipe: view(recipe, registers, values) for recipe in RECIPES}
    for at in range(P):
        senders = [(w, r) for m, w in weights(values).items() if (r := registers.get(m)) and r.counts[at]]
        weighted = sum(w * int(r.units[at]) for w, r in senders)
        share = sum(w for w, _ in senders) or 1
        # Python's int -> float and float / float are each one correctly rounded step, as numpy's are
        top = float(weighted)
        assert merged["contributor-mean/1"][at] == np.float32(top / float(share << 24))
        assert merged["member-mean/1"][at] == np.float32(top / float(total << 24))
        assert merged["sqrt-mean/1"][at] == np.float32(top / (math.sqrt(float(share * total)) * 2**24))


@given(contributed=by_member)
@settings(deadline=None)
def test_recipes_agree_where_everybody_sent_and_are_ordered_where_not(contributed):
    registers = registers_of(contributed)
    mean, root, members = (np.abs(view(r, registers)) for r in ("contributor-mean/1", "sqrt-mean/1", "member-mean/1"))
    assert (mean >= root).all()
    assert (root >= members).all()
    if len(registers) == len(MEMBERS):
        everybody = np.all([r.counts > 0 for r in registers.values()], axis=0)
        assert (mean[everybody] == members[everybody]).all()
        assert np.allclose(mean[everybody], root[everybody], rtol=1e-6)


@given(contributed=by_member, factor=st.integers(2, 50))
@settings(deadline=None)
def test_equal_weights_are_as_no_weights(contributed, factor):
    for recipe in RECIPES:
        plain = view(recipe, registers_of(contributed))
        scaled = view(recipe, registers_of(contributed), (factor,) * 4)
        assert np.allclose(plain, scaled, rtol=1e-6, atol=0)


@given(contributed=by_member)
@settings(deadline=None)
def test_a_merge_is_finite_and_has_no_negative_zero(contributed):
    for recipe in RECIPES:
        merged = view(recipe, registers_of(contributed))
        assert merged.dtype == np.float32
        assert np.isfinite(merged).all()
        assert not np.signbit(merged[merged == 0]).any()


def test_contributor_mean_divides_by_those_who_sent():
    def sent(indices, units):
        return merging.registers_of(
            [
                sparse.SparseUpdate(
                    coordinates=P,
                    indices=np.array(indices, dtype=np.uint32),
                    units=np.array(units, dtype=np.int64) * 2**24,
                    bits=8,
                    block=256,
                )
            ],
            P,
        )

    registers = {MEMBERS[0]: sent([0, 1], [6, 6]), MEMBERS[1]: sent([1], [2])}
    assert view("contributor-mean/1", registers)[:3].tolist() == [6.0, 4.0, 0.0]
    assert view("member-mean/1", registers)[:3].tolist() == [1.5, 2.0, 0.0]
    assert view("sqrt-mean/1", registers)[0] == 3.0
    assert view("contributor-mean/1", registers, (3, 1, 1, 1))[:2].tolist() == [6.0, 5.0]


def full(value):
    units = np.full(P, value, dtype=np.int64)
    return merging.Register(units=units, counts=np.ones(P, dtype=np.int32))


def one(value, coordinates=P):
    return sparse.SparseUpdate(
        coordinates=coordinates, indices=np.array([5], dtype=np.uint32), units=np.array([value]), bits=8, block=256
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_register_never_wraps(sign):
    with pytest.raises(MergeRefused):
        merging.add(full(sign * (merging.MAX_UNITS - 1)), one(sign * 2))


def test_a_weighted_sum_never_wraps():
    registers = {MEMBERS[0]: full(2**62), MEMBERS[1]: full(2**62)}
    with pytest.raises(MergeRefused):
        view("contributor-mean/1", registers)
    with pytest.raises(MergeRefused):
        view("contributor-mean/1", {MEMBERS[0]: full(-(2**61))}, (4, 1, 1, 1))


def test_an_update_that_is_not_in_a_register_is_not_removed():
    with pytest.raises(MergeRefused):
        merging.remove(merging.empty(P), one(1))
    with pytest.raises(MergeRefused):
        merging.remove(merging.add(merging.empty(P), one(1)), one(2))


def test_another_adapter_is_refused():
    with pytest.raises(MergeRefused):
        merging.add(merging.empty(P), one(1, coordinates=P + 1))
    with pytest.raises(MergeRefused):
        view("contributor-mean/1", {MEMBERS[0]: merging.empty(P + 1)})


@pytest.mark.parametrize(
    ("recipe", "given_weights", "members"),
    [
        ("median/9", weights(), 4),
        ("contributor-mean/1", weights(), 3),
        ("contributor-mean/1", {}, 0),
        ("contributor-mean/1", weights((0, 1, 1, 1)), 4),
        ("contributor-mean/1", weights((-1, 1, 1, 1)), 4),
        ("contributor-mean/1", weights((2**20 + 1, 1, 1, 1)), 4),
    ],
)
def test_a_recipe_or_weights_that_do_not_fit_are_refused(recipe, given_weights, members):
    with pytest.raises(MergeRefused):
        recipes.merge(recipe, {MEMBERS[0]: merging.empty(P)}, given_weights, members, P)


def test_registers_cannot_be_written_to():
    register = merging.add(merging.empty(P), one(1))
    with pytest.raises(ValueError, match="read-only"):
        register.units[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        register.counts[0] = 1


def test_model_digests_name_values_not_spellings_of_zero():
    plain, negative = np.zeros(3, dtype=np.float32), np.array([0.0, -0.0, 0.0], dtype=np.float32)
    assert merging.model_digest(plain) == merging.model_digest(negative)
    assert merging.model_digest(plain) != merging.model_digest(np.zeros(4, dtype=np.float32))
    assert merging.model_digest(plain) != merging.register_digest(merging.empty(3))


def test_a_model_that_is_not_finite_has_no_name():
    with pytest.raises(MergeRefused):
        merging.model_digest(np.array([float("nan")], dtype=np.float32))


def test_sums_beyond_2_53_round_once():
    units = 2**53 + 3
    merged = view("contributor-mean/1", {MEMBERS[0]: full(units)}, (3, 1, 1, 1))
    assert merged[0] == np.float32(float(3 * units) / float(3 << 24))
    assert abs(Fraction(float(merged[0])) - Fraction(units, 2**24)) <= Fraction(units, 2**24) * Fraction(1, 2**23)


def test_a_whole_adapter_merges_in_milliseconds():
    coordinates = 368_640
    rng = np.random.default_rng(0)
    registers = {
        member: merging.Register(
            units=rng.integers(-(2**30), 2**30, coordinates), counts=rng.integers(0, 2, coordinates, dtype=np.int32)
        )
        for member in MEMBERS[:3]
    }
    best = min(timed(registers, coordinates) for _ in range(5))
    assert best < 0.1  # about 8 ms on one quiet core


def timed(registers, coordinates):
    start = time.thread_time()
    recipes.merge("contributor-mean/1", registers, dict.fromkeys(registers, 1), 3, coordinates)
    return time.thread_time() - start
