"""The weights of a Llama-family model in the form the forward pass wants: q, k, v in one matrix, gate and up in one.

Reads config.json and safetensors only; knows no tokens, no rows and no adapters' numbers, but says where adapters can sit
(`Site`). Covered is what `contrib.llama_config` reads; anything else is `Unfit` and runs on transformers
(`node.serving.engine.fallback`).

Invariant: what is loaded computes what transformers computes from the same folder, or `Unfit` is raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrib import llama_config
from contrib.errors import CorruptModel
from contrib.llama import frequencies, reader
from contrib.llama_config import Config
from contrib.weights import tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One linear of the forward pass, in every layer: the modules fused in it, and their widths.

    `parts` are module paths with {} for the layer; `outs` their output widths in the order of the fused matrix.
    """

    name: str
    parts: tuple[str, ...]
    width: int
    outs: tuple[int, ...]
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a base model an adapter must fit: where it can sit, and the digest of the base."""

    sites: tuple[Site, ...]
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one layer; matrices are [out, in]."""

    before_attention: Tensor  # [hidden]
    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    before_mlp: Tensor  # [hidden]
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights of a model, in one dtype on one device."""

    embedding: Tensor  # [vocabulary, hidden]
    layers: tuple[Layer, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocabulary, hidden]; the embedding itself where the two are tied


def read_config(folder: Path) -> Config:
    """The numbers in config.json.

    Raises:
        BadModel: no readable config lies there, or it does not say how many tokens the model reads.
        Unfit: another family, or a feature that the forward pass does not have; the message names it.
    """
    config = llama_config.read(folder)
    if config.context < 1:
        raise CorruptModel(f"couldn't read {folder / 'config.json'}: it has no max_position_embeddings")
    return config


def sites(config: Config) -> tuple[Site, ...]:
    """Where adapters can sit."""
    q, kv, layer = config.heads * config.head_dim, config.kv_heads * config.head_dim, "model.layers.{}."
    attn, mlp = layer + "self_attn.", layer + "mlp."

    def site(name: str, parts: tuple[str, ...], width: int, outs: tuple[int, ...]) -> Site:
        return Site(name=name, parts=parts, width=width, outs=outs, layers=config.layers)

    wide = (config.intermediate, config.intermediate)
    return (
        site("qkv", (attn + "q_proj", attn + "k_proj", attn + "v_proj"), config.hidden, (q, kv, kv)),
        site("o", (attn + "o_proj",), q, (config.hidden,)),
        site("gate_up", (mlp + "gate_proj", mlp + "up_proj"), config.hidden, wide),
        site("down", (mlp + "down_proj",), config.intermediate, (config.hidden,)),
    )


def rotary(config: Config, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [context, head_dim / 2] in float32."""
    angles = torch.outer(torch.arange(context).float(), frequencies(config.theta, config.head_dim, config.rope))
    return angles.cos().to(device), angles.sin().to(device)


def load_weights(folder: Path, config: Config, *, dtype: torch.dtype, device: torch.device) -> Weights:
    """Read, cast and fuse the weights in `folder`.

    Raises:
        BadModel: a tensor is missing, has another shape, or a file is damaged.
    """
    found = tensors(folder)
    stored = reader(folder, found)

    def read(name: str, *shape: int) -> Tensor:
        return stored(name, shape).to(device, dtype)

    def layer(number: int) -> Layer:
        at = f"model.layers.{number}."
        fused: dict[str, Tensor] = {}
        for site in sites(config):
            parts = [
                read(path.format(number) + ".weight", out, site.width)
                for path, out in zip(site.parts, site.outs, strict=True)
            ]
            fused[site.name] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        bias = None
        if config.qkv_bias:
            qkv = sites(config)[0]
            outs = zip(qkv.parts, qkv.outs, strict=True)
            bias = torch.cat([read(path.format(number) + ".bias", out) for path, out in outs])
        return Layer(
            before_attention=read(at + "input_layernorm.weight", config.hidden),
            before_mlp=read(at + "post_attention_layernorm.weight", config.hidden),
            qkv_bias=bias,
            **fused,
        )

    embedding = read("model.embed_tokens.weight", config.vocabulary, config.hidden)
    own_head = "lm_head.weight" in found
    return Weights(
        embedding=embedding,
        layers=tuple(layer(number) for number in range(config.layers)),
        norm=read("model.norm.weight", config.hidden),
        head=read("lm_head.weight", config.vocabulary, config.hidden) if own_head else embedding,
    )
