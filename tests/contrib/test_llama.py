"""The forward pass that training runs on computes what transformers and PEFT compute from the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrib import adapters, learner, models
from contrib.adapters import AdapterSpec
from contrib.encoding import encode
from contrib.errors import CorruptModel
from contrib.row import text_row

SPEC = AdapterSpec(rank=4, alpha=8, targets=("all-linear",), seed="0d" * 32)
SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, own head, wide heads": {"tie_word_embeddings": False, "head_dim": 16},
    "llama, tied": {"tie_word_embeddings": True, "num_key_value_heads": 6},
    "llama 3": {"rope_parameters": LLAMA3},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    "qwen2": {},
    "mistral": {"sliding_window": None},
}


def saved(folder: Path, family: str, **change: Any) -> Path:
    """A model of that shape with random weights, biases too, and the test model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL | change))
    with torch.no_grad():
        for name, part in made.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                part.uniform_(0.5, 1.5)
    made.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((models.tiny_folder() / file).read_bytes())
    return folder


def both(folder: Path) -> tuple[learner.Learner, learner.Learner]:
    """The folder as this package reads it, and as transformers and PEFT do."""
    import torch
    from transformers import AutoModelForCausalLM

    from contrib import llama

    torch.set_num_threads(1)
    ours = learner.load(folder, SPEC, bf16=False)
    assert isinstance(ours.model, llama.Llama)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    theirs = adapters.attach(whole, SPEC).eval()
    return ours, learner.Learner(
        model=theirs, codec=ours.codec, coordinates=ours.coordinates, device="cpu", bf16=ours.bf16
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_equal_those_of_transformers_and_peft(family: str, tmp_path: Path) -> None:
    import torch

    ours, theirs = both(saved(tmp_path, family.split(maxsplit=1)[0].rstrip(","), **FAMILIES[family]))
    rows = [text_row("He came with a cough " * n) for n in range(1, 6)]
    sequences = list(encode(rows, ours.codec, length=64))
    view = np.random.default_rng(1).normal(scale=0.05, size=ours.coordinates).astype(np.float32)
    found = []
    for each in (ours, theirs):
        each.use(view)
        losses, counted = learner.token_losses(each, sequences)
        (losses.sum() / counted.sum()).backward()
        found.append((losses.detach(), adapters.flatten([part.grad for part in adapters.trainable(each.model)])))
    (losses, gradient), (expected, expected_gradient) = found
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=np.abs(expected_gradient).max() * 1e-4)
    assert adapters.modules(ours.model) == adapters.modules(theirs.model)


def test_the_test_models_losses_under_bfloat16_are_those_of_transformers() -> None:
    import torch

    ours, theirs = both(models.tiny_folder())
    sequences = list(encode([text_row("The bone of the left hand is short. " * 4)], ours.codec, length=48))
    view = np.full(ours.coordinates, 0.01, np.float32)
    found = []
    for each in (ours, theirs):
        each.use(view)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(learner.token_losses(each, sequences)[0])
    assert abs((found[0].sum() - found[1].sum()) / found[1].sum()) < 2e-3


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"model_type": "mistral", "sliding_window": 64},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
        {"quantization_config": {}},
    ],
)
def test_model_that_the_forward_pass_does_not_cover_is_left_to_transformers(change: Any, tmp_path: Path) -> None:
    from contrib import llama, llama_config

    values = json.loads((models.tiny_folder() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(llama_config.Unfit):
        llama.read_config(tmp_path)


def test_model_of_another_family_is_trained_through_transformers_and_peft(tmp_path: Path) -> None:
    from contrib import llama

    folder = saved(tmp_path, "llama", attention_bias=True)
    found = learner.load(folder, SPEC, bf16=False)
    assert not isinstance(found.model, llama.Llama)
    losses, _ = learner.token_losses(found, list(encode([text_row("a cough and a fever")], found.codec, length=16)))
    assert losses.sum() > 0


@pytest.mark.parametrize(
    "change", [{"hidden_size": 64}, {"num_hidden_layers": 5}, {"num_attention_heads": 3}, {"rms_norm_eps": None}]
)
def test_config_that_does_not_fit_the_weights_is_refused(change: Any, tmp_path: Path) -> None:
    for file in models.tiny_folder().glob("*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(CorruptModel):
        learner.load(tmp_path, SPEC)


def test_training_loads_neither_transformers_nor_a_compiler() -> None:
    """They cost a worker ten seconds of its start and 170 MiB; a library that brings them back must be noticed."""
    code = (
        "import sys; from contrib import adapters, encoding, fisher, learner, models, row, training\n"
        f"found = learner.load(models.tiny_folder(), adapters.AdapterSpec.parse({SPEC.to_json()!r}))\n"
        "texts = list(encoding.encode([row.text_row('a cough and a fever')], found.codec, length=16))\n"
        "run = training.train(found, texts, None, training.Settings(steps=2, length=16))\n"
        "fisher.diagonal(found, texts, run.theta)\n"
        "bad = {'transformers', 'peft', 'scipy', 'sympy', 'torch._dynamo', 'torch.distributed.tensor'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
