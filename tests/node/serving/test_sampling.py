"""Tokens are drawn as the reference says, and a row never depends on its neighbours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ports import Sampling
from node.serving.engine.sampling import NOT_FINITE, Drawn, Sampler, draw_rows, score_rows

V = 700  # not a multiple of a block


def table(rows: int, seed: int = 0, scale: float = 3.0, width: int = V) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits: torch.Tensor, samplings: list[Sampling], seed: int = 5) -> list[Drawn]:
    return draw_rows(logits.clone(), [Sampler(s, i, seed) for i, s in enumerate(samplings)])


# -- against plain references ----------------------------------------------------------------------------------------
def reference(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """Probabilities [vocabulary] after the cuts, one step after the other, by numpy in float64."""
    heated = logits.numpy().astype(np.float64) / sampling.temperature
    chances = np.exp(heated - heated.max())
    chances /= chances.sum()
    if sampling.top_k:
        chances = np.where(chances >= np.sort(chances)[-min(sampling.top_k, len(chances))], chances, 0)
        chances /= chances.sum()
    if sampling.top_p < 1:
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        chances[order[1:][before[1:] >= sampling.top_p]] = 0
    if sampling.min_p:
        chances = np.where(chances >= sampling.min_p * chances.max(), chances, 0)
    return chances / chances.sum()


def counted(logits: torch.Tensor, sampling: Sampling, draws: int) -> np.ndarray:
    """How often each token is drawn by one sampler."""
    sampler, found = Sampler(sampling, 0, 7), np.zeros(logits.shape[-1])
    for _ in range(draws // 50):
        for one in draw_rows(logits.expand(50, -1), [sampler] * 50):
            found[one.token] += 1
    return found


CUTS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.05),
    Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.02),
]


@pytest.mark.parametrize("sampling", CUTS)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    logits = table(1, scale=2.0, width=60)
    expected, draws = reference(logits[0], sampling), 2500
    found = counted(logits, sampling, draws)
    assert not found[expected == 0].any(), "a token that a cut took away was drawn"
    likely = expected * draws >= 5
    statistic = (((found - expected * draws) ** 2)[likely] / (expected * draws)[likely]).sum()
    degrees = int(likely.sum()) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * max(degrees, 1)) + 4, "chi squared: not this distribution"


def kept_by(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    from node.serving.engine import sampling as module

    return set(module._kept(logits, [sampling])[0].nonzero().flatten().tolist())


@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 5, 200, 5000]),
    st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.05, 2.0, 8.0]),
)
@settings(max_examples=60, deadline=None)
def test_cuts_leave_what_the_library_for_them_leaves(
    seed: int, top_k: int, top_p: float, min_p: float, heat: float, scale: float
) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = table(1, seed, scale)
    sampling = Sampling(temperature=heat, top_k=0 if top_k == 5000 else top_k, top_p=top_p, min_p=min_p)
    scores = TemperatureLogitsWarper(heat)(None, logits.clone()) if heat != 1.0 else logits.clone()
    steps: list[Any] = [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    for step in steps:
        scores = step(None, scores)
    theirs = set(torch.isfinite(scores[0]).nonzero().flatten().tolist())
    ours = kept_by(logits, sampling)
    if ours != theirs:  # at the edge of top_p one rounding may let one token more or less in
        chances = torch.softmax(logits[0].double() / heat, -1)
        edge = sorted(float(chances[t]) for t in ours ^ theirs)
        assert len(edge) == 1, (ours ^ theirs, edge)


def test_long_tail_of_a_flat_distribution_is_cut_exactly() -> None:
    logits = table(1, seed=3, scale=0.1, width=5000)
    for top_p in (0.5, 0.95):
        chances = np.sort(reference(logits[0], Sampling(temperature=1.0)))[::-1]
        fewest = int((np.cumsum(chances) < top_p).sum()) + 1
        assert abs(len(kept_by(logits, Sampling(temperature=1.0, top_p=top_p))) - fewest) <= 1


# -- rows ------------------------------------------------------------------------------------------------------------
def test_row_is_drawn_alike_alone_and_in_any_batch() -> None:
    logits = table(8, seed=1)
    samplings = [*CUTS, Sampling(), Sampling(temperature=1.0, logprobs=3)]
    alone: dict[int, list[Drawn]] = {}
    for row, sampling in enumerate(samplings):
        sampler = Sampler(sampling, row, 11)
        alone[row] = [draw_rows(logits[row : row + 1].clone(), [sampler])[0] for _ in range(6)]
    together = [Sampler(sampling, row, 11) for row, sampling in enumerate(samplings)]
    steps = [draw_rows(logits.clone(), together) for _ in range(6)]
    order = [5, 2, 7, 0]
    mixed = [Sampler(samplings[row], row, 11) for row in order]
    shuffled = [draw_rows(logits[order].clone(), mixed) for _ in range(6)]
    for row in range(len(samplings)):
        assert [step[row].token for step in steps] == [one.token for one in alone[row]]
    for place, row in enumerate(order):
        assert [step[place].token for step in shuffled] == [one.token for one in alone[row]]


def test_seed_decides_and_answers_of_one_request_differ() -> None:
    logits = table(1, scale=0.5)
    sampling = Sampling(temperature=1.0)

    def tokens(index: int, seed: int) -> list[int]:
        sampler = Sampler(sampling, index, seed)
        return [draw_rows(logits.clone(), [sampler])[0].token for _ in range(10)]

    assert tokens(0, 5) == tokens(0, 5) == tokens(1, 4)
    assert tokens(0, 5) != tokens(1, 5)
    assert tokens(0, -(2**63)) != tokens(0, 2**63 - 1)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.zeros(3, V)
    logits[0, 650], logits[1, [3, 640]], logits[2, 699] = 5.0, 5.0, 5.0
    assert [one.token for one in drawn(logits, [Sampling()] * 3)] == [650, 3, 699]
    assert drawn(logits, [Sampling(temperature=1e-9)] * 3) == drawn(logits, [Sampling()] * 3)


# -- scores ----------------------------------------------------------------------------------------------------------
def test_scores_are_the_models_own_whatever_is_cut() -> None:
    logits = table(2)
    exact = torch.log_softmax(logits.double(), -1)
    for one in drawn(logits, [Sampling(temperature=0.3, top_k=2, logprobs=4), Sampling(logprobs=0)])[:1]:
        assert one.logprob == pytest.approx(float(exact[0, one.token]), abs=1e-5)
        assert [t for t, _ in one.top] == exact[0].topk(4).indices.tolist()
        assert [p for _, p in one.top] == pytest.approx(exact[0].topk(4).values.tolist(), abs=1e-5)
    plain, scored = drawn(logits, [Sampling(), Sampling(logprobs=0)])
    assert plain.logprob is None
    assert scored.logprob == pytest.approx(float(exact[1].max()), abs=1e-5)
    assert scored.top == ()


def test_prompt_is_scored_token_by_token() -> None:
    logits = table(6)
    ids = [3, 9, 699, 0, 0, 1]
    exact = torch.log_softmax(logits.double(), -1)
    found = score_rows(logits, ids, top=2)
    assert [one.token for one in found] == ids
    assert [one.logprob for one in found] == pytest.approx([float(exact[i, t]) for i, t in enumerate(ids)], abs=1e-5)
    assert [one.top[0][0] for one in found] == exact.argmax(-1).tolist()
    assert all(one.top == () for one in score_rows(logits, ids))


# -- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_whose_numbers_are_broken_says_so_and_spoils_no_other(bad: float) -> None:
    logits = table(3)
    clean = drawn(logits, [Sampling(temperature=1.0, logprobs=1)] * 3)
    logits[1, 40] = bad
    found = drawn(logits, [Sampling(temperature=1.0, logprobs=1)] * 3)
    assert (found[1].token, found[1].fault) == (-1, NOT_FINITE)
    assert [found[0], found[2]] == [clean[0], clean[2]]
