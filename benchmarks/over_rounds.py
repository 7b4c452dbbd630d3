"""Rows over rounds: members learn from the view, send with error feedback, merge, and learn again.

On the test model every recipe and every selector runs; on the real one a few named rows. All rows of a seed have the same
rows, steps and budgets, and each is held against the dense float16 mean of as many rounds; Flower's FedAvg trains the same
members with the same seeds in clients of its own.

Knows the laboratory and Flower's files. Invariant: a row differs from its neighbours in what its name says alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from at_bytes import ROWS, Selector, at_budget, budgets, selectors
from extras import Merger, choosing
from lab import Curve, Lab, Plan, Send, dense, rounds, sparse
from peers import flower
from rows import Row

from contrib import recipes, updates
from contrib.errors import Diverged, MergeRefused
from contrib.updates import ROW

AGAINST = "dense float16, as many rounds"
STEADY = "sqrt-mean/1"  # the charter recipe that is meant for small budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """One row: what is sent, within which budget, and how it is merged."""

    part: str
    name: str
    budget: str
    send: Callable[[int], Send]  # of the most bytes of a blob
    recipe: str = "contributor-mean/1"


def everything(lab: Lab, parts: tuple[int, ...]) -> list[Named]:
    """Every recipe on int8 blobs of the smallest budget, and every selector at each, with 1 and 8 bits a value."""
    smallest = f"1/{max(parts)}"

    def by(selector: Selector) -> Callable[[int], Send]:
        return lambda most: at_budget(lab, selector, most)

    by_rule = [
        Named(part="rounds selector", name=name, budget=f"1/{part}", send=by(selector), recipe=STEADY)
        for part in parts
        for name, selector in [*selectors(1).items(), *selectors(8).items()]
    ]
    default = by(Selector(rule=updates.DEFAULT_RULE))
    by_recipe = [
        Named(part="rounds recipe", name=name, budget=smallest, send=default, recipe=name) for name in recipes.RECIPES
    ]
    return by_rule + by_recipe


def named(lab: Lab) -> list[Named]:
    """The five rows that the real model runs."""
    part = "rounds named"

    def rows(density: int) -> Callable[[int], Send]:
        return lambda _most: sparse(lab, density_ppm=density, bits=1, block=ROW, rule=ROWS)

    def as_many(most: int) -> Send:
        return at_budget(lab, Selector(rule="magnitude", bits=1), most)

    return [
        Named(part=part, name="rows by signs, 15 %", budget="1/100", send=rows(150_000)),
        Named(part=part, name="rows by signs, 50 %", budget="1/30", send=rows(500_000)),
        Named(part=part, name="all rows by signs", budget="1/15", send=rows(1_000_000)),
        Named(part=part, name="magnitude by signs", budget="1/30", send=as_many),
        Named(part=part, name="F*r^2 int8, 20 %", budget="1/8", send=lambda _most: sparse(lab, density_ppm=200_000)),
    ]


def run(lab: Lab, wanted: list[Named], number: int, *, pooled: bool = True) -> Iterator[Row]:
    """The dense reference first, then every row."""
    reference = rounds(lab, Plan(name="dense", send=dense(lab), rounds=number))
    yield _row(reference, reference, part="rounds", name="dense float16 mean", budget="dense")
    if pooled:
        gain = reference.base - lab.loss(lab.pooled(lab.settings, number))
        yield Row(
            part="rounds", name="all texts in one place, as many steps", budget="-", size=0.0, gains=(gain,),
            dense=(reference.gain,), against=AGAINST,
        )  # fmt: skip
    most = budgets(lab, tuple(int(part) for part in {one.budget.removeprefix("1/") for one in wanted}))
    samples = choosing(lab)
    for one in wanted:
        merger = Merger(lab=lab, text=one.recipe, samples=samples)
        plan = Plan(name=one.name, send=merger.watching(one.send(most[one.budget])), rounds=number, merge=merger.merge)
        try:
            curve = rounds(lab, plan)
        except (MergeRefused, Diverged) as e:
            yield Row(
                part=one.part,
                name=one.name,
                budget=one.budget,
                size=0.0,
                gains=(),
                dense=(),
                against=AGAINST,
                note=str(e),
            )
            continue
        yield _row(curve, reference, part=one.part, name=one.name, budget=one.budget)


def by_flower(lab: Lab, python: str | None, folder: Path, number: int) -> Iterator[Row]:
    """Flower's FedAvg on the same members; `size` is one message of a client, as many go down as up."""
    name = "Flower FedAvg"
    if python is None:
        yield Row(
            part="flower", name=name, budget="float32", size=0.0, gains=(), dense=(), against=AGAINST,
            note="not run: no Python with flwr was named",
        )  # fmt: skip
        return
    reference = rounds(lab, Plan(name="dense", send=dense(lab), rounds=number))
    found = flower(python, folder, lab.model, number, lab.seed)
    losses = tuple(lab.loss(view) for view in found.views)
    yield Row(
        part="flower",
        name=name,
        budget="float32",
        size=float(np.mean(found.up)),
        gains=(reference.base - losses[-1],),
        dense=(reference.gain,),
        against=AGAINST,
        losses=(losses,),
        note=found.versions,
    )


def _row(curve: Curve, reference: Curve, *, part: str, name: str, budget: str) -> Row:
    return Row(
        part=part,
        name=name,
        budget=budget,
        size=float(np.mean(curve.sizes)),
        gains=(curve.gain,),
        dense=(reference.gain,),
        against=AGAINST,
        losses=(curve.losses,),
    )
