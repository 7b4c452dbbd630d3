"""The weights of a Llama-family model in the form the forward pass wants: q, k, v in one matrix, gate and up in one.

Reads config.json and safetensors only; knows no tokens, no rows and no adapters' numbers, but says where adapters can sit
(`Site`). Covered: Llama, SmolLM2, Qwen2 (biases of q, k, v) and Mistral, with the plain, linear and Llama-3 rotary
positions; anything else is `Unfit` and runs on transformers (`node.serving.engine.fallback`).

Invariant: what is loaded computes what transformers computes from the same folder, or `Unfit` is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrib.errors import CorruptModel
from contrib.llama import FAMILIES, ROPES, Unfit, frequencies
from contrib.weights import read_json, tensors


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
class Config:
    """The numbers of a Llama-family model. `context` counts tokens; `rope` is the config's own table, checked."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    eps: float
    theta: float
    rope: Mapping[str, Any]
    qkv_bias: bool

    def sites(self) -> tuple[Site, ...]:
        """Where adapters can sit."""
        q, kv, layer = self.heads * self.head_dim, self.kv_heads * self.head_dim, "model.layers.{}."
        attn, mlp = layer + "self_attn.", layer + "mlp."

        def site(name: str, parts: tuple[str, ...], width: int, outs: tuple[int, ...]) -> Site:
            return Site(name=name, parts=parts, width=width, outs=outs, layers=self.layers)

        return (
            site("qkv", (attn + "q_proj", attn + "k_proj", attn + "v_proj"), self.hidden, (q, kv, kv)),
            site("o", (attn + "o_proj",), q, (self.hidden,)),
            site("gate_up", (mlp + "gate_proj", mlp + "up_proj"), self.hidden, (self.intermediate, self.intermediate)),
            site("down", (mlp + "down_proj",), self.intermediate, (self.hidden,)),
        )


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
        BadModel: no readable config lies there.
        Unfit: another family, or a feature that the forward pass does not have; the message names it.
    """
    values = read_json(folder / "config.json")
    try:
        return _config(values)
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptModel(f"couldn't read {folder / 'config.json'}: {type(e).__name__}: {e}") from e


def _config(values: Mapping[str, Any]) -> Config:
    family = values.get("model_type")
    heads = int(values.get("num_attention_heads") or 0)
    if family not in FAMILIES:
        raise Unfit(f"couldn't run the model here: its family is {family}")
    wrong = {
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(values.get("mlp_bias")),
        "attention_bias": bool(values.get("attention_bias")),
        "quantization_config": values.get("quantization_config") is not None,
        "use_sliding_window": bool(values.get("use_sliding_window")),
        "pretraining_tp": values.get("pretraining_tp", 1) not in (None, 1),
    }
    if found := [name for name, bad in wrong.items() if bad]:
        raise Unfit(f"couldn't run the model here: it sets {', '.join(found)}")
    table = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope = {"rope_type": "default", **table}
    rope["rope_type"] = table.get("rope_type", table.get("type", "default"))
    if rope["rope_type"] not in ROPES or float(table.get("partial_rotary_factor") or 1) != 1:
        raise Unfit(f"couldn't run the model here: its rotary positions are of the kind {rope['rope_type']}")
    hidden = int(values["hidden_size"])
    context = int(values["max_position_embeddings"])
    if family == "mistral" and values.get("sliding_window"):
        context = min(
            context, int(values["sliding_window"])
        )  # inside one window, windowed attention is plain attention
    config = Config(
        layers=int(values["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        intermediate=int(values["intermediate_size"]),
        vocabulary=int(values["vocab_size"]),
        context=context,
        eps=float(values["rms_norm_eps"]),
        theta=float(table.get("rope_theta") or values.get("rope_theta") or 10000.0),
        rope=rope,
        qkv_bias=family == "qwen2",
    )
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ValueError("heads do not divide")
    return config


def rotary(config: Config, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [context, head_dim / 2] in float32."""
    angles = torch.outer(torch.arange(context).float(), frequencies(config.theta, config.head_dim, config.rope))
    return angles.cos().to(device), angles.sin().to(device)


def load_weights(folder: Path, config: Config, *, dtype: torch.dtype, device: torch.device) -> Weights:
    """Read, cast and fuse the weights in `folder`.

    Raises:
        BadModel: a tensor is missing, has another shape, or a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found = tensors(folder)
    opened: dict[Path, Any] = {}

    def read(name: str, *shape: int) -> Tensor:
        if name not in found:
            raise CorruptModel(f"couldn't load the model in {folder}: tensor {name} is missing")
        if found[name].shape != shape:
            raise CorruptModel(f"couldn't load the model in {folder}: {name} is {found[name].shape}, not {shape}")
        file = found[name].file
        try:
            if file not in opened:
                opened[file] = safe_open(file, framework="pt")
            return opened[file].get_tensor(name).to(device, dtype)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as e:
            raise CorruptModel(f"couldn't read {file}: {e}") from e

    def layer(number: int) -> Layer:
        at = f"model.layers.{number}."
        fused: dict[str, Tensor] = {}
        for site in config.sites():
            parts = [
                read(path.format(number) + ".weight", out, site.width)
                for path, out in zip(site.parts, site.outs, strict=True)
            ]
            fused[site.name] = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        bias = None
        if config.qkv_bias:
            qkv = config.sites()[0]
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
