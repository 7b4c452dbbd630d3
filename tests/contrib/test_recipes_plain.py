"""Every recipe that a charter may name, against the same written once more in plain Python from FORMAT.md; golden bytes."""

import json
import struct
from pathlib import Path

import numpy as np
import plain_recipes
import pytest
from cuts_to_merge import MEMBERS, P, cuts, drawn, register, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib import merging, recipes
from contrib.merging import Register

GOLDEN = Path(__file__).resolve().parents[1] / "vectors" / "recipes.json"
IN_CHARTERS = sorted(recipes.in_charters())


def plain(text, registers, weights):
    sent = {m: (r.units.tolist(), r.counts.tolist()) for m, r in registers.items()}
    values = plain_recipes.merge(text, sent, weights, len(next(iter(registers.values())).units))
    return struct.pack(f"<{len(values)}f", *values)


def test_the_plain_recipes_are_all_of_them_with_the_same_defaults():
    assert {name: dict(recipes.RECIPES[name].parameters) for name in IN_CHARTERS} == plain_recipes.DEFAULTS


@pytest.mark.parametrize("name", IN_CHARTERS)
@given(cut=cuts(), data=st.data())
@settings(max_examples=10)
def test_a_recipe_has_the_bytes_of_its_plain_form(name, cut, data):
    registers, weights = cut
    text = texts(recipes.RECIPES[name], data.draw)
    assert recipes.merge(text, registers, weights, len(weights), P).astype("<f4").tobytes() == plain(
        text, registers, weights
    )


@pytest.mark.parametrize("name", IN_CHARTERS)
def test_values_near_the_limits_merge_to_the_bytes_of_the_plain_form(name):
    registers = {
        MEMBERS[0]: register([2**51 - 1, -(2**50) + 3, 5, 0]),
        MEMBERS[1]: register([2**51 - 3, 2**49 + 1, 0, 0]),
    }
    weights = {MEMBERS[0]: 1000, MEMBERS[1]: 999, MEMBERS[2]: 1000}
    got = recipes.merge(name, registers, weights, 3, 4)
    assert got.astype("<f4").tobytes() == plain(name, registers, weights)


def golden_case():
    rng = np.random.Generator(np.random.PCG64(5))
    registers = {m: drawn(rng, 40, 22, 0.6) for m in MEMBERS}
    weights = dict(zip(MEMBERS, (1, 1, 3, 1, 2, 1), strict=True))
    chosen = [*IN_CHARTERS, *(t for t in (
        "damped-mean/1:quarters=3", "median/1:zeros=1", "trimmed-mean/1:cut=100,zeros=1", "clipped-mean/1:clip=800,rms=1",
        "guarded-mean/1:clip=900,cut=300,floor=3000", "geometric-median/1:zeros=1", "centred-clipping/1:radius=500,zeros=1",
        "adapter-soup/1:keep=500,toward=3149642683", "task-arithmetic/1:minus=3149642683,scale=1000", "ties/1:keep=500",
        "della/1:drop=300,scale=800,window=400",
    ))]  # fmt: skip
    return {
        "weights": weights,
        "registers": {m: {"units": r.units.tolist(), "counts": r.counts.tolist()} for m, r in registers.items()},
        "merges": {text: merged(text, registers, weights) for text in chosen},
    }


def merged(text, registers, weights):
    view = recipes.merge(text, registers, weights, len(weights), 40)
    return {"values": view.astype("<f4").tobytes().hex(), "model": merging.model_digest(view)}


def test_the_golden_case_has_the_same_bytes_on_every_machine(update_golden):
    if update_golden:
        GOLDEN.write_text(json.dumps(golden_case(), indent=1, sort_keys=True) + "\n")
    case = json.loads(GOLDEN.read_text())
    registers = {
        m: Register(units=np.array(r["units"]), counts=np.array(r["counts"], dtype=np.int32))
        for m, r in case["registers"].items()
    }
    assert set(IN_CHARTERS) <= {text.partition(":")[0] for text in case["merges"]}
    for text, expected in case["merges"].items():
        assert plain(text, registers, case["weights"]).hex() == expected["values"], text
        assert merged(text, registers, case["weights"]) == expected, text
