"""Our training step against a plain PEFT loop on the same model, the same adapter shape and the same batches.

The plain loop is what PEFT's own examples do: `get_peft_model`, `model(input_ids, labels).loss`, `clip_grad_norm_`, AdamW,
under the same autocast; once with B alone trainable, as ours, and once with A and B. The three run in turns, a few steps
at a time, so that whatever else the machine does hits all of them. Figures are ratios of medians.

    python benchmarks/bench_training_step.py [--model tiny|smollm2-135m] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from harness import Figure, cache, finish, options, table

from contrib import learner, models, training
from contrib.adapters import AdapterSpec
from contrib.encoding import Encoded
from contrib.training import Settings
from protocol.ids import digest

SHAPES = {
    "tiny": Settings(steps=8, batch=8, length=128, warmup=0),
    "smollm2-135m": Settings(steps=2, batch=4, length=64, warmup=0),
}
SPEC = AdapterSpec(rank=16, alpha=16, targets=("q_proj", "v_proj"), seed=digest(b"benchmark"))

Run = Callable[[], float]  # seconds of one step


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    return finish(measure(arguments), arguments, began=began)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    import torch

    torch.set_num_threads(arguments.threads)
    settings = SHAPES[arguments.model]
    model = models.add(arguments.model, cache())
    one = learner.load(model.path, SPEC)
    rng = np.random.default_rng(0)
    sequences = [
        Encoded(ids=tuple(rng.integers(0, 255, settings.length).tolist()), loss=(True,) * settings.length)
        for _ in range(settings.steps * settings.batch)
    ]
    runs: dict[str, Run] = {
        "ours": lambda: training.train(one, sequences, None, settings).seconds / settings.steps,
        "PEFT, B": plain(model.path, sequences, settings, one.bf16, only_b=True),
        "PEFT, A and B": plain(model.path, sequences, settings, one.bf16, only_b=False),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for number in range(arguments.rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            times[name].append(runs[name]())
    middle = {name: statistics.median(values) for name, values in times.items()}
    table(
        f"{arguments.model}: {settings.batch} x {settings.length} tokens a step, {arguments.rounds} rounds of "
        f"{settings.steps} steps, {arguments.threads} thread, {'bfloat16' if one.bf16 else 'float32'}",
        ("loop", "median ms", "least ms", "most ms"),
        [(name, 1e3 * middle[name], 1e3 * min(times[name]), 1e3 * max(times[name])) for name in runs],
    )
    return [
        Figure(
            id=f"training-step.{arguments.model}.speed-against-peft",
            value=middle["PEFT, B"] / middle["ours"],
            floor=0.9,
            aim=1.0,
            unit="x",
        ),
        Figure(
            id=f"training-step.{arguments.model}.speed-against-peft-a-and-b",
            value=middle["PEFT, A and B"] / middle["ours"],
            unit="x",
        ),
    ]


def plain(path: object, sequences: list[Encoded], settings: Settings, bf16: bool, *, only_b: bool) -> Run:
    """A textbook PEFT loop over the same tokens."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(
        r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.targets), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    model.train()
    if only_b:
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.tensor([sequence.ids for sequence in sequences])

    def run() -> float:
        optimizer = torch.optim.AdamW(chosen, lr=settings.lr, weight_decay=0.0)
        began = time.monotonic()
        for batch in ids.split(settings.batch):
            narrow = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
            with narrow:
                loss = model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(chosen, settings.clip)
            optimizer.step()
            loss.item()
        return (time.monotonic() - began) / settings.steps

    return run


if __name__ == "__main__":
    sys.exit(main())
