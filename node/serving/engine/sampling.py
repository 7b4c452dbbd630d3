"""Logits to tokens: temperature, top-k, top-p, min-p, seeds, log-probabilities; all rows of a step at once.

Pure but for each row's own random numbers; knows no model, text or request. The cuts come in the order that transformers
has: temperature, the `top_k` likeliest, the fewest of these that hold `top_p`, then what has at least `min_p` of the
likeliest one's probability (top-p: Holtzman 2020, arXiv 1904.09751; min-p: Nguyen 2024, arXiv 2407.01082). Each is a least
probability, so equals stay together and nothing is sorted but the few likeliest. A token is drawn by inverting the
cumulative sum with one number of the row's own stream.

Invariant: a row's tokens depend on its logits, its sampling and its seed, never on the other rows; scores are those of the
model itself, before grammar, temperature and cuts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn import functional

from node.ports import Sampling

if TYPE_CHECKING:
    from node.serving.engine.grammar import Grammar

GREEDY_BELOW: Final = 1e-4  # temperatures under this are greedy: dividing by them would only overflow
SHORT: Final = 128  # likeliest tokens that are sorted for top-p before the whole vocabulary is searched
BLOCK: Final = 256  # tokens summed at once: two short searches instead of one sum over the vocabulary
NOT_FINITE, NO_TOKEN = "not_finite", "no_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One token with its score in nats, and the likeliest ones, best first; `fault` says why there is none."""

    token: int  # -1 with a fault
    logprob: float | None = None  # None: not asked for
    top: tuple[tuple[int, float], ...] = ()
    fault: str = ""  # "" | NOT_FINITE: the model's numbers | NO_TOKEN: the grammar allows none


class Sampler:
    """How one answer is drawn: its sampling, its own random numbers, its grammar."""

    __slots__ = ("_random", "grammar", "sampling")

    def __init__(self, sampling: Sampling, index: int, seed: int, grammar: Grammar | None = None) -> None:
        """Draw answer `index` of a request with `seed`. Law: the same seed + index, the same random numbers."""
        self.sampling = sampling
        self.grammar = grammar
        self._random = random.Random(seed + index)  # noqa: S311 (nothing here is secret)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < GREEDY_BELOW

    def chance(self) -> float:
        """The next number of this answer's stream, from 0 up to but not including 1."""
        return self._random.random()


def draw_rows(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Drawn]:
    """One token for each row of `logits` [rows, vocabulary] float32; grammars are asked before and told after.

    Rows with a grammar are masked in place. A row without a drawable token gets a `fault` and uses no random number.
    """
    if not samplers:
        return []
    asked = {i: s.sampling.logprobs for i, s in enumerate(samplers) if s.sampling.logprobs is not None}
    plain = {i: logits[i].clone() if samplers[i].grammar else logits[i] for i in asked}
    sound = torch.isfinite(logits.amax(-1)).tolist()  # a NaN is the greatest of its row
    for row, sampler in enumerate(samplers):
        if sampler.grammar is not None and sound[row]:
            sampler.grammar.mask(logits[row])
    best, tokens = _likeliest(logits)
    drawable = torch.isfinite(best).tolist()
    chosen: list[int] = tokens.tolist()
    random_rows = [i for i, s in enumerate(samplers) if drawable[i] and not s.greedy]
    if random_rows:
        kept = _kept(_of(logits, random_rows), [samplers[i].sampling for i in random_rows])
        picked = _invert(kept, [samplers[i].chance() for i in random_rows])
        for row, token in zip(random_rows, picked, strict=True):
            chosen[row] = token
    scores: dict[int, Drawn] = {}
    if asked := {i: count for i, count in asked.items() if drawable[i]}:
        table = torch.stack([plain[i] for i in asked])
        found = score_rows(table, [chosen[i] for i in asked], max(asked.values()))
        scores = dict(zip(asked, found, strict=True))
    drawn = []
    for row, sampler in enumerate(samplers):
        if not drawable[row]:
            drawn.append(Drawn(token=-1, fault=NO_TOKEN if sound[row] else NOT_FINITE))
            continue
        if sampler.grammar is not None:
            sampler.grammar.accept(chosen[row])
        score = scores.get(row)
        if score is None:
            drawn.append(Drawn(token=chosen[row]))
        else:
            drawn.append(Drawn(token=score.token, logprob=score.logprob, top=score.top[: asked[row]]))
    return drawn


def score_rows(logits: torch.Tensor, ids: Sequence[int], top: int = 0) -> list[Drawn]:
    """Scores of given tokens: `ids[i]` by `logits[i]` [positions, vocabulary] float32, with the `top` likeliest ones each."""
    whole = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(1, torch.tensor(list(ids), device=logits.device).unsqueeze(1)) - whole
    best: list[tuple[tuple[int, float], ...]] = [()] * len(ids)
    if top:
        values, names = logits.topk(min(top, logits.shape[-1]), dim=-1)
        pairs = zip(names.tolist(), (values - whole).tolist(), strict=True)
        best = [tuple(zip(i, v, strict=True)) for i, v in pairs]
    scores = own.squeeze(1).tolist()
    return [Drawn(token=t, logprob=p, top=b) for t, p, b in zip(ids, scores, best, strict=True)]


# -- drawing ---------------------------------------------------------------------------------------------------------
def _of(table: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return table if len(rows) == len(table) else table[list(rows)]


def _blocks(table: torch.Tensor, filling: float) -> torch.Tensor:
    """`table` [rows, tokens] as [rows, blocks, BLOCK], filled up at its end."""
    if missing := -table.shape[-1] % BLOCK:
        table = functional.pad(table, (0, missing), value=filling)
    return table.view(len(table), -1, BLOCK)


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Greatest value and its first place in each row; a NaN is the greatest."""
    blocks = _blocks(logits, -torch.inf)
    best, block = blocks.amax(-1).max(-1)
    place = blocks[torch.arange(len(blocks), device=logits.device), block].argmax(-1)
    return best, block * BLOCK + place


def _kept(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities [rows, vocabulary] at each row's temperature, 0 where a cut took the token away; they need not sum to 1."""
    heat = torch.tensor([[s.temperature] for s in samplings], device=logits.device)
    chances = torch.softmax(logits / heat, dim=-1)
    if all(s.top_k == 0 and s.top_p >= 1 and s.min_p == 0 for s in samplings):
        return chances
    ordered = [s.top_k or SHORT for s in samplings if s.top_k or s.top_p < 1]
    values = chances.topk(min(max(ordered), chances.shape[-1]), dim=-1)[0] if ordered else chances[:, :0]
    least = [_least(chances[i], values[i], sampling) for i, sampling in enumerate(samplings)]
    return chances.masked_fill(chances < torch.tensor(least, device=logits.device).unsqueeze(1), 0.0)


def _least(chances: torch.Tensor, values: torch.Tensor, sampling: Sampling) -> float:
    """The least probability that the cuts leave in a row; `values` are its greatest ones, descending."""
    least = 0.0
    if 0 < sampling.top_k < len(chances):
        values = values[: sampling.top_k]
        least = float(values[-1])
    elif sampling.top_p < 1:
        values = values[:SHORT]
    if sampling.top_p < 1:
        sums = values.double().cumsum(-1)
        limited = least > 0 or len(values) == len(chances)
        aim = sampling.top_p * (float(sums[-1]) if limited else 1.0)  # what the first cut left counts as everything
        enough = float(sums[-1]) >= aim
        least = float(values[int((sums < aim).sum())]) if enough else _nucleus(chances, aim)
    return max(least, sampling.min_p * float(chances.max())) if sampling.min_p else least


def _nucleus(chances: torch.Tensor, aim: float) -> float:
    """The greatest probability such that all tokens with at least as much hold `aim` together; 0 when all hold less."""
    # NumPy's sort is ten times as fast as torch's on a CPU.
    on_cpu = chances.device.type == "cpu"
    ordered = torch.from_numpy(np.sort(chances.numpy())).flip(0) if on_cpu else chances.sort(descending=True)[0]
    sums = ordered.double().cumsum(-1)
    return float(ordered[int((sums < aim).sum())]) if float(sums[-1]) >= aim else 0.0


def _invert(chances: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """Where each number falls in the cumulative sum of its row of weights [rows, tokens]; never on a weight of 0."""
    blocks = _blocks(chances, 0.0)
    rows = torch.arange(len(blocks), device=chances.device)
    sums = blocks.sum(-1).double().cumsum(-1)
    aims = torch.tensor(numbers, dtype=torch.float64, device=chances.device) * sums[:, -1]
    block = _place(sums, aims)
    before = torch.where(block > 0, sums[rows, (block - 1).clamp(min=0)], 0.0)
    inner = blocks[rows, block].double().cumsum(-1)
    picked: list[int] = (block * BLOCK + _place(inner, aims - before)).tolist()
    return picked


def _place(sums: torch.Tensor, aims: torch.Tensor) -> torch.Tensor:
    """The first place of each row of rising sums that is above its aim, at most the first that holds everything."""
    found = torch.searchsorted(sums, aims.unsqueeze(1), right=True).squeeze(1)
    return torch.minimum(found, (sums < sums[:, -1:]).sum(-1))
