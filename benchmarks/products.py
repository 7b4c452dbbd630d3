"""Changes of weights as whole matrices: what other merge tools make of adapters, measured as our vectors are.

A `Product` is what is added to each module's weight. Ours is scale * B A; tools that merge A and B apart, or whole
weights, give one that need not lie in the span of A, so it is laid beside the model instead of being loaded as an adapter.
`by_peft` merges with PEFT's own `add_weighted_adapter` and reads the product of the result back.

Knows no recipe and no file. Invariant: the model is the same before and after a measurement.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from lab import Lab

from contrib import adapters, evaluation
from contrib.adapters import AdapterSpec, Vector
from contrib.evaluation import Sample

Matrix: TypeAlias = npt.NDArray[np.float32]
Product: TypeAlias = Mapping[str, Matrix]  # by module: [out, in]


def exact(lab: Lab, vector: Vector) -> dict[str, Matrix]:
    """scale * B A of every module."""
    found, at = {}, 0
    for name, wide, out in adapters.modules(lab.learner.model):
        b = vector[at : at + out * lab.spec.rank].reshape(out, lab.spec.rank)
        a = adapters.frozen_a(lab.spec.seed, name, lab.spec.rank, wide)
        found[name] = (np.float32(lab.spec.scale) * (b @ a)).astype(np.float32)
        at += out * lab.spec.rank
    return found


def base(lab: Lab) -> dict[str, Matrix]:
    """The weights under the adapters, as the model computes with them."""
    names = [name for name, _, _ in adapters.modules(lab.learner.model)]
    return {name: lab.learner.model.get_submodule(name).base_layer.weight.detach().float().numpy() for name in names}


def losses(lab: Lab, product: Product, samples: Sequence[list[Sample]]) -> tuple[float, ...]:
    """Held-out loss on each sample of the base model with `product` added to its weights, in nats a token."""
    with _beside(lab.learner.model, product):
        return tuple(
            evaluation.held_out_loss(lab.learner, sample, None, length=lab.settings.length).nats for sample in samples
        )


def distance(one: Product, other: Product) -> float:
    """The largest difference of any entry, as a part of the largest entry of `other`."""
    most = max(float(np.abs(matrix).max()) for matrix in other.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in other) / most


@contextlib.contextmanager
def _beside(model: Any, product: Product) -> Iterator[None]:
    import torch
    from torch.nn import functional

    def watch(name: str, matrix: Matrix) -> Any:
        change = torch.from_numpy(np.ascontiguousarray(matrix))

        def forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + functional.linear(inputs[0], change)

        return model.get_submodule(name).register_forward_hook(forward)

    handles = [watch(name, matrix) for name, matrix in product.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_peft(
    lab: Lab, vectors: Sequence[Vector], kind: str, *, weight: float, density: float | None, seed: int
) -> dict[str, Matrix]:
    """What PEFT's `add_weighted_adapter` makes of the members' adapters, each with the same weight.

    The adapters hang on linears of the model's names and shapes; their own weights play no part in a merge of adapters.
    """
    import torch

    model = _with_adapters(adapters.modules(lab.learner.model), lab.spec, vectors)
    torch.manual_seed(seed)
    names = [f"member{place}" for place in range(len(vectors))]
    given: dict[str, Any] = {} if density is None else {"density": density}
    model.add_weighted_adapter(
        names, [weight] * len(names), "merged", combination_type=kind, svd_full_matrices=False, **given
    )
    prefix = "base_model.model."
    return {
        path.removeprefix(prefix): layer.get_delta_weight("merged").detach().numpy().astype(np.float32)
        for path, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def _with_adapters(modules: Sequence[tuple[str, int, int]], spec: AdapterSpec, vectors: Sequence[Vector]) -> Any:
    from peft import LoraConfig, PeftModel
    from torch import nn

    bare = nn.Module()
    for name, wide, out in modules:
        above = bare
        *folders, own = name.split(".")
        for folder in folders:
            if not hasattr(above, folder):
                above.add_module(folder, nn.Module())
            above = getattr(above, folder)
        above.add_module(own, nn.Linear(wide, out, bias=False))
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=[name for name, _, _ in modules])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model without a configuration
        model = PeftModel(bare, config, adapter_name="member0")
        for place, vector in enumerate(vectors):
            name = f"member{place}"
            if place:
                model.add_adapter(name, config)
            adapters.reset(model, spec, name=name)
            adapters.load_b(model, vector, name=name)
    return model
