"""The forward pass in plain torch: linear, rms, attend, bgmv, gate, and `TorchPass`, which runs them in turn.

Runs on every device, and is what the kernels of `node.serving.engine.kernels` are compared with. Sums, outputs y and the
residual are float32, what goes into a matrix has the model's dtype. n tokens of any rows stand one after another; a `Batch`
says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from contrib.llama_config import Config
from node.serving.engine.adapter import Pair
from node.serving.engine.cache import PAGE, Storage
from node.serving.engine.model import Site, Weights, sites
from node.serving.engine.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens `begin` .. `begin + count` of a batch: one row's, at its positions `start` .. ."""

    begin: int
    count: int
    start: int
    slot: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step reads: n tokens, in the order of the segments."""

    ids: list[int]
    segments: tuple[Segment, ...]

    @property
    def positions(self) -> list[int]:
        """Place of each token in its row."""
        return [at for s in self.segments for at in range(s.start, s.start + s.count)]

    @property
    def places(self) -> list[int]:
        """Place of each token in the storage: page * PAGE + place in the page."""
        return [
            s.pages[at // PAGE] * PAGE + at % PAGE for s in self.segments for at in range(s.start, s.start + s.count)
        ]


class TorchPass:
    """The pass over all layers with the operations below."""

    name = "torch"

    def __init__(
        self, config: Config, weights: Weights, rotary: tuple[Tensor, Tensor], storage: Storage, pool: Pool
    ) -> None:
        self._config, self._weights, self._storage, self._pool = config, weights, storage, pool
        self._cosine, self._sine = rotary
        self._device = weights.embedding.device

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states [n, hidden], normed, in the model's dtype."""
        config, weights = self._config, self._weights
        positions = torch.tensor(batch.positions, device=self._device)
        rotary = self._cosine[positions], self._sine[positions]
        users: dict[int, list[int]] = {}
        for s in batch.segments:
            if s.slot:
                users.setdefault(s.slot, []).extend(range(s.begin, s.begin + s.count))
        groups = [(slot, torch.tensor(tokens, device=self._device)) for slot, tokens in users.items()]

        def adapted(y: Tensor, x: Tensor, number: int, site: Site) -> Tensor:
            found = [(tokens, self._pool.pair(slot, site.name)) for slot, tokens in groups]
            bgmv(y, x, site, number, [(tokens, pair) for tokens, pair in found if pair is not None])
            return y

        qkv_site, o_site, gate_up_site, down_site = sites(config)
        x = F.embedding(torch.tensor(batch.ids, device=self._device), weights.embedding).float()
        for number, layer in enumerate(weights.layers):
            h = rms(x, layer.before_attention, config.eps)
            qkv = adapted(linear(h, layer.qkv, layer.qkv_bias), h, number, qkv_site)
            keys, values = self._storage.keys[number], self._storage.values[number]
            h = attend(qkv, config, rotary, keys, values, batch)
            x += adapted(linear(h, layer.o), h, number, o_site)
            h = rms(x, layer.before_mlp, config.eps)
            h = gate(adapted(linear(h, layer.gate_up), h, number, gate_up_site), h.dtype)
            x += adapted(linear(h, layer.down), h, number, down_site)
        return rms(x, weights.norm, config.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [n, vocabulary] of hidden states."""
        return linear(hidden, self._weights.head)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[n, in] -> float32 [n, out]."""
    return F.linear(x, weight, bias).float()


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm (arXiv 1910.07467) of float32 [n, hidden], in the dtype of `weight`."""
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(weight.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions of [n, heads, head_dim]; cosine and sine [n, head_dim / 2] in float32."""
    low, high = x.chunk(2, -1)
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)


def attend(
    qkv: Tensor, config: Config, rotary: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, batch: Batch
) -> Tensor:
    """Turn q and k of float32 qkv [n, ...] by their positions, store k and v in one layer's pages, attend over them.

    Returns [n, heads * head_dim] in the dtype of `keys`. Rows that read one token go together, longer pieces one by one.
    """
    read = qkv.view(len(qkv), -1, config.head_dim)
    turned = rotate(read[:, : config.heads + config.kv_heads], *rotary)
    q = turned[:, : config.heads].to(keys.dtype)
    places = torch.tensor(batch.places, device=q.device)
    keys[places // PAGE, :, :, places % PAGE] = turned[:, config.heads :].to(keys.dtype)
    values[places // PAGE, :, places % PAGE] = read[:, config.heads + config.kv_heads :].to(values.dtype)
    out = torch.empty_like(q)
    single = [segment for segment in batch.segments if segment.count == 1]
    for segment in batch.segments:
        if segment.count > 1:
            end = segment.start + segment.count
            seen = torch.arange(end, device=q.device) <= torch.arange(segment.start, end, device=q.device)[:, None]
            rows = slice(segment.begin, segment.begin + segment.count)
            out[rows] = _attention(q[None, rows], *_gather(keys, values, [segment.pages], end), seen[None])[0]
    if single:
        longest = max(segment.start for segment in single) + 1
        at = torch.tensor([segment.begin for segment in single], device=q.device)
        starts = torch.tensor([segment.start for segment in single], device=q.device)
        wide = -(-longest // PAGE)
        pages = [[*segment.pages[:wide], *[segment.pages[0]] * (wide - len(segment.pages))] for segment in single]
        seen = torch.arange(longest, device=q.device)[None] <= starts[:, None]
        out[at] = _attention(q[at, None], *_gather(keys, values, pages, longest), seen[:, None])[:, 0]
    return out.flatten(1)


def _gather(keys: Tensor, values: Tensor, pages: Sequence[Sequence[int]], end: int) -> tuple[Tensor, Tensor]:
    # [rows, kv_heads, end, head_dim] of both
    table = torch.tensor([list(row[: -(-end // PAGE)]) for row in pages], device=keys.device)

    def read(stored: Tensor) -> Tensor:
        # a place that is seen by none may hold any bits, and weight 0 times NaN is NaN
        return stored[table].transpose(1, 2).flatten(2, 3)[:, :, :end].nan_to_num(0.0, 0.0, 0.0)

    return read(keys.transpose(-1, -2)), read(values)


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    # q [rows, count, heads, head_dim], k and v [rows, kv_heads, end, head_dim], seen [rows, count, end]
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen[:, None], enable_gqa=True)
    return out.transpose(1, 2)


def bgmv(y: Tensor, x: Tensor, site: Site, layer: int, pairs: Sequence[tuple[Tensor, Pair]]) -> None:
    """Add to y float32 [n, out], in place, what each adapter makes of its tokens of x [n, in] (Punica, arXiv 2310.18547)."""
    begins = [sum(site.outs[:j]) for j in range(len(site.outs))]
    for tokens, pair in pairs:
        a, b = pair.a[layer].float(), pair.b[layer].float()
        rank, column = b.shape[0], 0
        shrunk = x[tokens].float() @ a.T  # [tokens, parts * rank]
        for place, j in enumerate(pair.parts):
            out = site.outs[j]
            added = shrunk[:, place * rank : (place + 1) * rank] @ b[:, column : column + out]
            columns = slice(begins[j], begins[j] + out)
            y[tokens, columns] += added
            column += out


def gate(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """SwiGLU's middle (arXiv 2002.05202): float32 [n, 2 * intermediate] -> [n, intermediate]."""
    left, right = gate_up.chunk(2, -1)
    return (F.silu(left) * right).to(dtype)
