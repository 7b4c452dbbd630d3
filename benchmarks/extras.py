"""What some recipes need beside registers, gathered in the laboratory: losses on other rows, Fisher, Gram matrices, past means.

A `Merger` stands in a plan's two places: it looks on while members send and merges what they sent by one recipe. Losses are
of rows that no row of the table is judged by. Gram matrices are h.T @ h of the inputs h = A x of every module's B, over the
first sequences of a member's run, at what that member learnt.

Knows no table. Invariant: the rows that judge are never among those that choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from lab import HELD_OUT_ROWS, Lab, Send, Sent, Turn, permits

from contrib import adapters, evaluation, recipes, training
from contrib.adapters import Vector
from contrib.encoding import Encoded
from contrib.evaluation import Sample
from contrib.learner import token_losses
from contrib.merging import Register
from contrib.recipes import Extra
from contrib.training import Settings
from protocol.ids import MemberId

CHOOSING_ROWS = {"tiny": 3, "smollm2-135m": 2}  # of each member: "a few held-out examples"

Gram = npt.NDArray[np.float64]  # [rank, rank]


def choosing(lab: Lab, rows: int | None = None) -> list[list[Sample]]:
    """For each member the held-out rows that follow the judging ones, in the order of their digests."""
    judging, wanted = HELD_OUT_ROWS[lab.model], rows or CHOOSING_ROWS[lab.model]
    found = []
    for name, judges in zip(lab.names, lab.samples, strict=True):
        (sample,) = evaluation.sample(lab.store, [name], judging + wanted, permits([name], "evaluate"))
        used = {row.digest() for row in judges[0].rows}
        found.append([dataclasses.replace(sample, rows=tuple(row for row in sample.rows if row.digest() not in used))])
    return found


def mean_loss(lab: Lab, view: Vector | None, samples: Sequence[list[Sample]]) -> float:
    """The mean over members of the held-out loss of a view."""
    length = lab.settings.length
    return float(
        np.mean([evaluation.held_out_loss(lab.learner, sample, view, length=length).nats for sample in samples])
    )


def grams(lab: Lab, name: str, theta: Vector, settings: Settings) -> tuple[Gram, ...]:
    """One Gram matrix for each module, in the order of the vector, of one member's training sequences."""
    sequences = training.draw(lab.store, [name], lab.learner.codec, settings, permits([name], "train"))
    return gathered(lab.learner, sequences[: settings.fisher_sequences], theta)


def gathered(learner: Any, sequences: Sequence[Encoded], theta: Vector) -> tuple[Gram, ...]:
    """The sum of h.T @ h over all tokens of `sequences`, h [tokens, rank] being what enters each B."""
    import torch

    learner.use(theta)
    names = [name for name, _, _ in adapters.modules(learner.model)]
    parts = [learner.model.get_submodule(f"{name}.lora_B.default") for name in names]
    sums = [np.zeros((part.in_features, part.in_features)) for part in parts]

    def watch(part: Any, total: Gram) -> Any:
        def enters(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            h = inputs[0].detach().double().flatten(0, -2).numpy()
            total[:] += h.T @ h

        return part.register_forward_pre_hook(enters)

    handles = [watch(part, total) for part, total in zip(parts, sums, strict=True)]
    try:
        with torch.no_grad():
            for sequence in sequences:  # one at a time: padding would count
                token_losses(learner, [sequence])
    finally:
        for handle in handles:
            handle.remove()
    return tuple(sums)


@dataclass(slots=True, kw_only=True)
class Merger:
    """One recipe over the cuts of one plan, with what it needs."""

    lab: Lab
    text: str
    settings: Settings | None = None
    samples: list[list[Sample]] = field(default_factory=list)
    fishers: dict[MemberId, Vector] = field(default_factory=dict)
    learnt: dict[MemberId, Vector] = field(default_factory=dict)
    previous: list[Vector] = field(default_factory=list)
    view: Vector | None = None
    cut: int = 0

    def watching(self, send: Send) -> Send:
        """`send`, looked at: Fisher and what was learnt are kept for the merge that follows."""

        def watched(turn: Turn) -> Sent:
            self.fishers[turn.member] = turn.fisher
            self.learnt[turn.member] = turn.learnt if self.view is None else self.view + turn.learnt
            return send(turn)

        return watched

    def merge(self, registers: Mapping[MemberId, Register]) -> Vector:
        """The view after a cut."""
        members = self.lab.members
        weights, p = dict.fromkeys(members, 1), self.lab.learner.coordinates
        needs = recipes.parse(self.text).recipe.needs
        extra = Extra(
            losses=self._loss if "losses" in needs else None,
            grams=self._grams() if "grams" in needs else None,
            shapes=tuple((out, self.lab.spec.rank) for _, _, out in adapters.modules(self.lab.learner.model)),
            previous=tuple(self.previous) if "previous" in needs else None,
            fishers=dict(self.fishers),
        )
        self.view = recipes.merge(self.text, registers, weights, len(members), p, extra=extra)
        if "previous" in needs:
            self.previous.append(recipes.merge("contributor-mean/1", registers, weights, len(members), p))
        self.cut += 1
        return self.view

    def _loss(self, view: Vector) -> float:
        self.samples = self.samples or choosing(self.lab)
        return mean_loss(self.lab, view, self.samples)

    def _grams(self) -> dict[MemberId, tuple[Gram, ...]]:
        settings = dataclasses.replace(self.settings or self.lab.settings, seed=self.lab.seed * 1000 + self.cut)
        return {
            member: grams(self.lab, name, self.learnt[member], settings)
            for member, name in zip(self.lab.members, self.lab.names, strict=True)
        }
