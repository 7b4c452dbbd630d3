"""The diagonal empirical Fisher information of B: how much the loss of a member's rows feels each coordinate.

F_j = mean over sequences of (d loss_i / d B_j)^2, with loss_i the mean loss of sequence i alone (the square of a batch's
mean gradient would be another thing). Knows nothing of updates or selection. Invariant: not negative, finite, in the
order of `adapters.read_b`, and independent of how sequences are grouped.

One backward pass serves several sequences: the gradient of B for sequence i is the sum over its tokens of (gradient of
B's output) x (B's input), and both are at hand in the backward pass (Goodfellow 2015, arXiv 1510.01799).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from contrib import adapters
from contrib.adapters import Vector
from contrib.encoding import Encoded
from contrib.errors import Diverged, NothingToLearn
from contrib.learner import Learner, token_losses


def diagonal(
    learner: Learner,
    sequences: Sequence[Encoded],
    at: Vector,
    *,
    group: int = 4,
    on_sequence: Callable[[int], None] = lambda _done: None,
) -> Vector:
    """The Fisher diagonal [P] at the adapter `at`, over `sequences` (16 to 64 are enough: contrib/LOG.md).

    Raises:
        NothingToLearn: there are no sequences.
        Diverged: a gradient is infinite or NaN.
        BadAdapter: the vector does not fit.
    """
    import torch

    if not sequences:
        raise NothingToLearn("couldn't measure Fisher: the rows give no sequence of tokens")
    learner.use(at)
    parts = adapters.trainable(learner.model)
    totals = [torch.zeros_like(part, dtype=torch.float32) for part in parts]
    handles = [_watch(module, total) for module, total in zip(_b_modules(learner.model, parts), totals, strict=True)]
    try:
        for start in range(0, len(sequences), group):
            several = sequences[start : start + group]
            nats, counted = token_losses(learner, several)
            each = nats.sum(1) / counted.sum(1).clamp(min=1)
            each.sum().backward()  # type: ignore[no-untyped-call]
            on_sequence(start + len(several))
    finally:
        for handle in handles:
            handle.remove()
        learner.model.zero_grad()
    found = adapters.flatten(totals) / np.float32(len(sequences))
    if not np.isfinite(found).all():
        raise Diverged("couldn't measure Fisher: a gradient is infinite or NaN")
    return found


def _b_modules(model: Any, parts: Sequence[Any]) -> list[Any]:
    owner = {id(module.weight): module for path, module in model.named_modules() if ".lora_B." in path}
    return [owner[id(part)] for part in parts]


def _watch(module: Any, total: Any) -> Any:
    import torch

    def forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entered = inputs[0].detach().float()  # [sequences, tokens, rank]

        def backward(gradient: torch.Tensor) -> None:  # [sequences, tokens, out]
            each = torch.einsum("sto,str->sor", gradient.float(), entered)
            total.add_(each.square_().sum(0))

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return module.register_forward_hook(forward)
