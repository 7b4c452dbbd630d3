"""Selectors at equal bytes: every rule sends the most coordinates whose whole signed blob fits one budget.

Knows no recipe. Invariant: a blob is never larger than its budget; two senders of the same bits and block differ in
nothing but what they choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from lab import BLOCK, Lab, Send, Sent, Turn, dense, whole

from contrib import updates
from contrib.feedback import DEFAULT, Feedback
from protocol.card import SELECTIONS

CLOSE = 0.995  # of the budget: near enough to stop searching
TRIES = 8
ROWS = updates.ROW_RULE


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """A rule of the product, the power of the Fisher diagonal it is given, and how values are written."""

    rule: str
    power: float = 1.0
    bits: int = 8
    block: int = BLOCK


def selectors(bits: int) -> Mapping[str, Selector]:
    """Every rule a card may name and F^(1/2) r^2, with values of so many bits (rows of 16 have a scale each)."""
    known = {
        f"{rule} int{bits}": Selector(rule=rule, bits=bits, block=updates.ROW if rule in updates.ROW_RULES else BLOCK)
        for rule in SELECTIONS
    }
    known[f"sqrt-fisher-r2 int{bits}"] = Selector(rule="fisher-r2", power=0.5, bits=bits)
    return known


def budgets(lab: Lab, parts: tuple[int, ...]) -> dict[str, int]:
    """Bytes of a whole blob for each part of the dense float16 one."""
    rng = np.random.default_rng(0)
    p = lab.learner.coordinates
    anything = (rng.standard_normal(p) * 1e-3).astype(np.float32)
    turn = Turn(
        round=0,
        residual=np.zeros_like(anything),
        learnt=anything,
        moved=anything,
        fisher=anything,
        member=lab.members[0],
    )
    size = dense(lab)(turn).size
    return {f"1/{part}": size // part for part in parts}


def at_budget(lab: Lab, selector: Selector, most: int, *, feedback: Feedback = DEFAULT) -> Send:
    """A sender with error feedback whose whole blobs have at most `most` bytes.

    The density is found by a few secant steps, for sizes grow nearly in proportion to it.
    """

    def send(turn: Turn) -> Sent:
        wanted = feedback.wanted(turn.residual, turn.learnt)
        fisher = np.power(turn.fisher, np.float32(selector.power)) if selector.power != 1.0 else turn.fisher
        best: tuple[updates.Made, int] | None = None
        low, low_size, high, high_size = 0.0, 0.0, 1e6, 0.0
        density = min(1e6, 1e6 * most / (len(wanted) * (selector.bits + 2) / 8))
        for _ in range(TRIES):
            made = updates.make(
                fisher,
                wanted,
                density_ppm=max(1, round(density)),
                value_bits=selector.bits,
                block=selector.block,
                rule=selector.rule,
                seed=lab.seed * 100 + turn.round,
            )
            size = whole(lab, made.data, made.update, turn)
            if size <= most:
                best, low, low_size = (made, size), density, size
                if size >= CLOSE * most or density >= 1e6:
                    break
            else:
                high, high_size = density, size
            aim = (
                low + (high - low) * (0.998 * most - low_size) / (high_size - low_size) if high_size else density * 1.5
            )
            density = (
                min(max(aim, low + (high - low) * 0.02), high - (high - low) * 0.02) if high_size else min(1e6, aim)
            )
        if best is None:
            raise ValueError(f"couldn't send: {most} bytes were not met in {TRIES} tries")
        return Sent(update=best[0].update, size=best[1], residual=feedback.left(wanted, best[0].update))

    return send
