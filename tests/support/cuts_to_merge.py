"""Registers to merge: drawn from a seed, small enough for plain Python, with ties, gaps and members that are silent."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from contrib.merging import Register
from contrib.recipes import RECIPES, Chosen, Extra

P = 24
SHAPES = ((2, 4), (4, 4))  # (width out, rank); P coordinates
MEMBERS = [f"{letter * 8}{place:056x}" for place, letter in enumerate("3b07c9")]


def register(units, counts=None):
    units = np.array(units, dtype=np.int64)
    counts = units != 0 if counts is None else counts
    return Register(units=units, counts=np.array(counts, dtype=np.int32))


def drawn(rng, coordinates, bits, density):
    counts = (rng.random(coordinates) < density) * rng.integers(1, 4, coordinates)
    return register(rng.integers(-(2**bits), 2**bits, coordinates) * (counts > 0), counts)


@st.composite
def cuts(draw, dense=False, equal=False):
    """(registers by member, weights of all seats)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    seats = MEMBERS[: draw(st.integers(1, len(MEMBERS)))]
    bits = draw(st.sampled_from([1, 3, 20, 40]))
    registers = {}
    for member in seats:
        density = 1.0 if dense else draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
        registers[member] = drawn(rng, P, bits, density)
    weights = {m: 1 if equal else draw(st.integers(1, 5)) for m in seats}
    return registers, weights


def texts(recipe, draw):
    """A text of this recipe with some parameters changed."""
    own = dict(recipe.parameters)
    for key, (low, high) in recipe.bounds.items():
        if draw(st.booleans()):
            own[key] = draw(st.integers(low, min(high, low + (20 if key == "steps" else 1500))))
    text = Chosen(recipe=recipe, parameters=own).text
    return text if len(text) <= 64 else recipe.name


def extra(seed=0):
    """What every recipe needs, for all members, from a seed."""
    rng = np.random.default_rng(seed)
    aim = rng.normal(size=P)
    halves = {m: [rng.normal(size=(9, rank)) for _, rank in SHAPES] for m in MEMBERS}
    return Extra(
        losses=lambda vector: float(np.abs(vector - aim).sum()),
        grams={m: tuple(half.T @ half for half in own) for m, own in halves.items()},
        shapes=SHAPES,
        previous=(rng.normal(size=P).astype(np.float32),),
        fishers={m: rng.random(P).astype(np.float32) for m in MEMBERS},
    )


ALL = sorted(RECIPES)
