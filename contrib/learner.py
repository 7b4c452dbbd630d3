"""A base model in memory with the epoch's adapter on it: what training, Fisher and evaluation share.

Knows tokens, not rows, ledgers or charters. Invariant: only B can change; the base and A are never written to, so one
`Learner` serves any number of views. Where the machine multiplies bfloat16 natively the forward pass is autocast, and
the frozen weights are cast once at loading instead of in every step: the same rounding, a third of the traffic.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrib import adapters
from contrib.adapters import AdapterSpec, Vector
from contrib.encoding import IGNORED, Codec, Encoded, batch
from contrib.errors import WrongModel

if TYPE_CHECKING:
    import torch

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A model with an adapter whose B alone is trainable, its tokenizer, and where it runs."""

    model: Any
    codec: Codec
    coordinates: int
    device: str
    bf16: bool

    def use(self, view: Vector | None) -> None:
        """Put a view on the model; None is the base model itself.

        Raises:
            BadAdapter: the vector does not fit.
        """
        adapters.load_b(self.model, np.zeros(self.coordinates, np.float32) if view is None else view)


def load(folder: Path, spec: AdapterSpec, *, device: str | None = None, bf16: bool | None = None) -> Learner:
    """Load the model in `folder` and attach the adapter of `spec`; `device` and `bf16` default to what is fastest here.

    Raises:
        BadModel: no readable causal language model lies there.
        BadAdapter: the adapter does not fit it.
        TokenizerUnfit: its tokenizer has no end token.
    """
    import torch

    from contrib import llama, tokenizer
    from contrib.llama_config import Unfit

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    fast = native_bf16(where) if bf16 is None else bf16
    expected = adapters.layout(folder, spec)  # damage is found here, in plain words
    codec = tokenizer.read(folder).codec()
    try:
        config = llama.read_config(folder)
    except Unfit:
        model = adapters.attach(_whole(folder), spec)
    else:
        names = [name for name, _, _ in expected.modules]
        model = llama.attach(llama.load(folder, config), names, spec.rank, spec.scale)
        adapters.reset(model, spec)
    if tuple(adapters.modules(model)) != expected.modules:
        raise WrongModel(f"couldn't load the model in {folder}: its modules are not those its files name")
    if fast:
        _narrow(model)
    model.to(where).eval()  # there is no dropout, so evaluation mode computes the same and keeps fewer buffers
    return Learner(model=model, codec=codec, coordinates=expected.coordinates, device=where, bf16=fast)


def _whole(folder: Path) -> Any:
    """The model as transformers has it, for families that `contrib.llama` does not cover."""
    import torch
    from transformers import AutoModelForCausalLM

    offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **offline)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        raise WrongModel(f"couldn't load the model in {folder}: {str(e).strip().splitlines()[0]}") from e
    base.config.use_cache = False
    return base


def token_losses(learner: Learner, sequences: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood in nats of every token that counts.

    Returns:
        losses [sequences, longest - 1] in float32, zero where nothing counts, and the mask of what counts, same shape.
    """
    import torch
    from torch.nn import functional

    arrays = batch(sequences, pad=learner.codec.pad)
    ids = torch.from_numpy(arrays.ids).to(learner.device)
    labels = torch.from_numpy(arrays.labels[:, 1:]).to(learner.device)
    # No attention mask: the padding stands on the right, where a causal model's earlier tokens cannot see it.
    narrow = torch.autocast(learner.device, dtype=torch.bfloat16) if learner.bf16 else contextlib.nullcontext()
    with narrow:
        logits = learner.model(input_ids=ids).logits[:, :-1]
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(labels), labels != IGNORED


@functools.cache
def native_bf16(device: str) -> bool:
    """Whether bfloat16 products are faster than float32 ones on this device."""
    if device != "cpu":
        import torch

        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in _CPU_FLAGS for line in flags.splitlines() if line.startswith("flags") for flag in line.split())


def _narrow(model: Any) -> None:
    # Linear weights only: embeddings and norms stay float32, so the residual stream does, as under plain autocast. A
    # head tied to the embedding gets its own narrow copy.
    import torch
    from torch import nn

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in path:
            module.weight = nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
