"""What config.json says of a model of the Llama family, for those who compute its forward pass: training and serving.

Covers Llama, SmolLM2, Qwen2 (biases of q, k, v) and Mistral, with plain, linear and Llama-3 rotary positions; anything else is
`Unfit`. Knows no tensors. Invariant: a model that is read here computes what transformers computes as long as nobody reads
beyond `context`; what only one of the two passes lacks, that pass refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contrib.errors import CorruptModel, WrongModel
from contrib.weights import read_json

_FAMILIES: Final = ("llama", "mistral", "qwen2")
_ROPES: Final = ("default", "linear", "llama3")


class Unfit(WrongModel):
    """Our own forward pass does not cover the model; transformers may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The numbers of a Llama-family model; `rope` is the config's own table, checked.

    `context` counts tokens, 0: unstated; where attention has a window it is no longer than that, since inside one window
    windowed attention is plain attention.
    """

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
    windowed: bool = False
    dropout: bool = False  # of attention, in training


def read(folder: Path) -> Config:
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
    if family not in _FAMILIES:
        raise Unfit(f"couldn't compute the model here: its family is {family}")
    table = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = table.get("rope_type", table.get("type", "default"))
    wrong = {
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(values.get("mlp_bias")),
        "attention_bias": bool(values.get("attention_bias")),
        "quantization_config": values.get("quantization_config") is not None,
        "use_sliding_window": bool(values.get("use_sliding_window")),
        "pretraining_tp": values.get("pretraining_tp", 1) not in (None, 1),
        f"rope_type {kind}": kind not in _ROPES,
        "partial_rotary_factor": float(table.get("partial_rotary_factor") or 1) != 1,
    }
    if found := [name for name, bad in wrong.items() if bad]:
        raise Unfit(f"couldn't compute the model here: it sets {', '.join(found)}")
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    context = int(values.get("max_position_embeddings") or 0)
    window = values.get("sliding_window") if family == "mistral" else None
    config = Config(
        layers=int(values["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        intermediate=int(values["intermediate_size"]),
        vocabulary=int(values["vocab_size"]),
        context=min(context, int(window)) if window else context,
        eps=float(values["rms_norm_eps"]),
        theta=float(table.get("rope_theta") or values.get("rope_theta") or 10000.0),
        rope={**table, "rope_type": kind},
        qkv_bias=family == "qwen2",
        windowed=window is not None,
        dropout=bool(values.get("attention_dropout")),
    )
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ValueError("heads do not divide")
    return config
