"""Splitting a pool of rows over members that are unlike each other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib.errors import BadJob
from contrib.partition import dirichlet


@settings(max_examples=25)
@given(
    labels=st.lists(st.sampled_from("abcd"), min_size=24, max_size=120),
    members=st.integers(1, 6),
    alpha=st.sampled_from([0.001, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_item_goes_to_exactly_one_member_and_nobody_starves(labels, members, alpha, seed):
    parts = dirichlet(labels, members, alpha, np.random.default_rng(seed), least=4)
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert len(parts) == members
    assert min(len(part) for part in parts) >= 4
    assert parts == dirichlet(labels, members, alpha, np.random.default_rng(seed), least=4)


def mixture(alpha: float) -> float:
    """The mean share of a member's commonest label."""
    labels = [f"label {i % 4}" for i in range(2000)]
    parts = dirichlet(labels, 10, alpha, np.random.default_rng(5))
    return float(np.mean([max(Counter(labels[i] for i in part).values()) / len(part) for part in parts]))


def test_a_small_concentration_makes_members_unlike_each_other_and_a_large_one_alike():
    assert mixture(0.05) > 0.8
    assert 0.25 <= mixture(1000.0) < 0.35


def test_what_cannot_be_split_is_refused():
    rng = np.random.default_rng(0)
    for labels, members, alpha, least in (("ab", 0, 1.0, 1), ("ab", 2, 0.0, 1), ("ab", 2, 1.0, 2)):
        with pytest.raises(BadJob):
            dirichlet(labels, members, alpha, rng, least=least)
