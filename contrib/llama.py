"""The forward pass of the Llama family as plain torch modules, with the adapter in place: what training runs on.

Covers what `contrib.llama_config` reads, Mistral without a window only; for anything else `read_config` raises `Unfit`, and
`contrib.learner` takes transformers and PEFT. They compute the same, but importing them costs more time and memory than a
small model's whole run.

Knows no tokens' meaning and no rows. Invariants: modules and parameters have the names that they have in PEFT, after its
prefix; what is loaded computes what transformers computes from the same folder (tests/contrib/test_llama.py holds it to
that); only the adapter's B takes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from contrib import llama_config, weights
from contrib.errors import CorruptModel
from contrib.llama_config import Config, Unfit
from contrib.weights import tensors


# -- reading ---------------------------------------------------------------------------------------------------------
def read_config(folder: Path) -> Config:
    """The numbers in config.json.

    Raises:
        BadModel: no readable config lies there.
        Unfit: another family, or a feature that training does not have; the message names it.
    """
    config = llama_config.read(folder)
    lacking = {"attention_dropout": config.dropout, "sliding_window": config.windowed}
    if found := [name for name, bad in lacking.items() if bad]:
        raise Unfit(f"couldn't train the model here: it sets {', '.join(found)}")
    return config


def reader(folder: Path, found: Mapping[str, weights.Tensor]) -> Callable[[str, tuple[int, ...]], Tensor]:
    """What reads a tensor of the model in `folder`, one of `found` there, by its name and the shape that it has to have.

    The reader raises CorruptModel: a tensor is missing, has another shape, or its file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    opened: dict[Path, Any] = {}

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in found:
            raise CorruptModel(f"couldn't load the model in {folder}: tensor {name} is missing")
        if found[name].shape != shape:
            raise CorruptModel(f"couldn't load the model in {folder}: {name} is {found[name].shape}, not {shape}")
        file = found[name].file
        try:
            if file not in opened:
                opened[file] = safe_open(file, framework="pt")
            return opened[file].get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as e:
            raise CorruptModel(f"couldn't read {file}: {e}") from e

    return read


def load(folder: Path, config: Config) -> Llama:
    """The model in `folder` in float32, frozen.

    Raises:
        BadModel: a tensor is missing, has another shape, or a file is damaged.
    """
    model, found = Llama(config), tensors(folder)
    read, tied = reader(folder, found), "lm_head.weight" not in found
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    state = {name: read(name, tuple(wanted.shape)).float() for name, wanted in model.named_parameters()}
    model.load_state_dict(state, assign=True, strict=False)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False)


def attach(model: Llama, names: Sequence[str], rank: int, scale: float) -> Llama:
    """Put an adapter called "default" on the linears of these names; the values of A and B are still to be set."""
    for path in names:
        above, _, own = path.rpartition(".")
        setattr(model.get_submodule(above), own, Adapted(model.get_submodule(path), rank, scale))
    return model


# -- modules ---------------------------------------------------------------------------------------------------------
class Linear(nn.Linear):
    """A linear whose numbers come from files: nothing is drawn at its making."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Embedding(nn.Embedding):
    """A table whose numbers come from files."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Adapted(nn.Module):
    """A frozen linear W with an adapter: x -> W x + scale * B A x."""

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        wide, out = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.base_layer, self.scale = base, scale
        self.lora_A = nn.ModuleDict({"default": Linear(wide, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": Linear(rank, out, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] to [.., out]."""
        whole: Tensor = self.base_layer(x)
        change: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        return whole + change * self.scale


class Llama(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = Body(config)
        self.lm_head = Linear(config.hidden, config.vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Any:
        """Logits [sequences, tokens, vocabulary] of `input_ids` [sequences, tokens] as `.logits`; attention is causal."""
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids)))


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = Norm(config)
        self._config = config

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [sequences, tokens] to states [sequences, tokens, hidden]."""
        x: Tensor = self.embed_tokens(ids)  # [sequences, tokens, hidden]
        with torch.autocast(x.device.type, enabled=False):
            turns = rotary(self._config, ids.shape[1], x.device)
        for layer in self.layers:
            x = layer(x, turns)
        return self.norm(x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(config), Norm(config)
        self.self_attn, self.mlp = Attention(config), Mlp(config)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """States [sequences, tokens, hidden] and `rotary` to states of the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), turns)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped keys (GQA, arXiv 2305.13245)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._width = config.heads, config.kv_heads, config.head_dim
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden, q, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden, kv, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden, kv, bias=config.qkv_bias)
        self.o_proj = Linear(q, config.hidden, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """States [sequences, tokens, hidden] and `rotary` to states of the same shape."""
        rows, tokens, _ = x.shape
        q, k, v = (
            projected.view(rows, tokens, -1, self._width).transpose(1, 2)  # [sequences, heads, tokens, head_dim]
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        grouped = self._kv_heads != self._heads
        seen = functional.scaled_dot_product_attention(
            _turned(q, turns), _turned(k, turns), v, is_causal=True, enable_gqa=grouped
        )
        return self.o_proj(seen.transpose(1, 2).reshape(rows, tokens, -1))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., hidden] to [.., hidden]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467), computed in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight, self._eps = nn.Parameter(torch.empty(config.hidden)), config.eps

    def forward(self, x: Tensor) -> Tensor:
        """[.., hidden] to the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return self.weight * wide.to(x.dtype)


# -- rotary positions ------------------------------------------------------------------------------------------------
def frequencies(theta: float, head_dim: int, rope: Mapping[str, Any]) -> Tensor:
    """The rotary frequencies [head_dim / 2] in float32 (RoFormer, arXiv 2104.09864; Llama 3.1's scaling by wavelength)."""
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope["rope_type"] == "linear":
        return plain / float(rope["factor"])
    if rope["rope_type"] == "default":
        return plain
    factor, old = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    length = 2 * math.pi / plain
    smooth = (old / length - low) / (high - low)
    between = (1 - smooth) / factor * plain + smooth * plain
    scaled = torch.where(length > old / low, plain / factor, plain)
    return torch.where((length <= old / low) & (length >= old / high), between, scaled)


def rotary(config: Config, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [tokens, head_dim], each half of the width twice."""
    turns = frequencies(config.theta, config.head_dim, config.rope).to(device)
    angles = torch.outer(torch.arange(tokens, device=device).float(), turns).repeat(1, 2)
    return angles.cos(), angles.sin()


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (part.to(x.dtype) for part in turns)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
