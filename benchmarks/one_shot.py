"""One-shot rows: members learn once from the base, and what they learnt is sent and merged in every way there is.

All rows of a seed share the same local runs, which the laboratory keeps. Selectors differ at equal bytes under one recipe;
recipes differ on the very same blobs; PEFT and mergekit get the whole local updates in float32, as our exact mean does, and
are measured with the same rows. `kept` is held against the mean of the whole local updates.

Knows the laboratory and the peers. Invariant: no row is measured on rows that chose anything in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import products
from at_bytes import ROWS, Selector, at_budget, budgets, selectors
from extras import Merger, choosing, mean_loss
from lab import Lab, Local, Send, Sent, Turn, dense
from peers import MERGEKIT, PEFT, mergekit
from rows import Row

from contrib import merging, recipes, updates
from contrib.adapters import Vector
from contrib.errors import MergeRefused
from contrib.evaluation import Sample
from contrib.merging import Register
from protocol.ids import MemberId
from protocol.sparse import SparseUpdate

SCALES = (0.33, 0.5, 0.75, 1.5, 2.0, 3.0)
AGAINST = "mean of the whole updates"

Judge = Callable[[float, Sequence[list[Sample]]], float]  # (scale, samples) -> nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One seed: the members' local runs from the base, and what the base and the exact mean of them reach."""

    lab: Lab
    runs: Mapping[MemberId, Local]
    base: float
    mean: Vector
    reached: float
    tune: Sequence[list[Sample]]  # rows that choose a scale; none: no scale is sought

    def row(self, part: str, name: str, budget: str, size: float, judge: Judge, note: str = "") -> Row:
        """Measure one way to merge."""
        gain = self.base - judge(1.0, self.lab.samples)
        whole = self.base - self.reached
        tuned, scale = (), ()
        if self.tune:
            tried = {each: judge(each, self.tune) for each in (1.0, *SCALES)}
            best = min(tried, key=lambda each: tried[each])
            tuned = ((gain if best == 1.0 else self.base - judge(best, self.lab.samples)) / whole,)
            scale = (best,)
        return Row(
            part=part, name=name, budget=budget, size=size, gains=(gain,), dense=(whole,), against=AGAINST,
            tuned=tuned, scales=scale, note=note,
        )  # fmt: skip

    def of_vector(self, view: Vector) -> Judge:
        """How a vector is measured."""
        return lambda scale, samples: mean_loss(self.lab, view * np.float32(scale), samples)

    def of_product(self, product: products.Product) -> Judge:
        """How changes of whole weights are measured."""

        def judge(scale: float, samples: Sequence[list[Sample]]) -> float:
            scaled = {name: matrix * np.float32(scale) for name, matrix in product.items()}
            return float(np.mean(products.losses(self.lab, scaled, samples)))

        return judge

    def sent(self, send: Send) -> dict[MemberId, Sent]:
        """Everybody's first turn."""
        zero = np.zeros_like(self.mean)
        return {
            member: send(Turn(round=0, residual=zero, learnt=run.theta, moved=zero, fisher=run.fisher, member=member))
            for member, run in self.runs.items()
        }

    def registers(self, sent: Mapping[MemberId, Sent]) -> dict[MemberId, Register]:
        """What everybody sent."""
        return {member: merging.registers_of([one.update], len(self.mean)) for member, one in sent.items()}


def shot(lab: Lab, *, tune: int = 0) -> Shot:
    """The local runs of the lab's seed; `tune` rows of each member choose scales."""
    settings = dataclasses.replace(lab.settings, seed=lab.seed * 1000)
    runs = {member: lab.local(name, None, settings) for member, name in zip(lab.members, lab.names, strict=True)}
    mean = np.mean([run.theta for run in runs.values()], axis=0, dtype=np.float64).astype(np.float32)
    return Shot(
        lab=lab,
        runs=runs,
        base=lab.loss(None),
        mean=mean,
        reached=lab.loss(mean),
        tune=choosing(lab, tune) if tune else (),
    )


def by_selector(shot: Shot, parts: tuple[int, ...]) -> Iterator[Row]:
    """Every selector at every budget, merged by the contributor mean."""
    for budget, most in budgets(shot.lab, parts).items():
        for name, selector in [*selectors(8).items(), *selectors(1).items()]:
            sent = shot.sent(at_budget(shot.lab, selector, most))
            view = _merged(shot, "contributor-mean/1", shot.registers(sent))
            yield shot.row("selector", name, budget, _size(sent), shot.of_vector(view), _share(sent))


def by_recipe(shot: Shot, parts: tuple[int, ...]) -> Iterator[Row]:
    """Every recipe on the same blobs: all coordinates in float16, then scattered int8 and rows by signs at every budget."""
    senders: dict[str, Send] = {"dense": dense(shot.lab)}
    for budget, most in budgets(shot.lab, parts).items():
        senders[f"{budget} int8"] = at_budget(shot.lab, Selector(rule=updates.DEFAULT_RULE), most)
        senders[f"{budget} signs"] = at_budget(shot.lab, Selector(rule=ROWS, bits=1, block=updates.ROW), most)
    for budget, send in senders.items():
        sent = shot.sent(send)
        registers = shot.registers(sent)
        for name in recipes.RECIPES:
            try:
                view = _merged(shot, name, registers)
            except MergeRefused as e:
                yield _missing("recipe", name, budget, str(e))
            else:
                yield shot.row("recipe", name, budget, _size(sent), shot.of_vector(view))


def by_peer(shot: Shot, python: str | None, folder: Path) -> Iterator[Row]:
    """Our exact mean and what PEFT and mergekit make of the same whole updates."""
    lab, vectors = shot.lab, [run.theta for run in shot.runs.values()]
    size = 4.0 * len(shot.mean)
    ours = products.exact(lab, shot.mean)
    yield shot.row("peer", "ours exact mean", "float32", size, shot.of_product(ours))
    for wanted in PEFT:
        made = products.by_peft(
            lab, vectors, wanted.method, weight=wanted.weight or 1 / len(vectors), density=wanted.density, seed=lab.seed
        )
        yield shot.row("peer", wanted.name, "float32", size, shot.of_product(made), _apart(ours, made))
    if python is None:
        for wanted in MERGEKIT:
            yield _missing("peer", wanted.name, "float32", "not run: no Python with mergekit was named")
        return
    base = products.base(lab)
    weights = [{name: base[name] + change for name, change in products.exact(lab, v).items()} for v in vectors]
    for wanted, made in mergekit(python, folder, base, weights, seed=lab.seed):
        if isinstance(made, str):
            yield _missing("peer", wanted.name, "float32", made)
        else:
            yield shot.row("peer", wanted.name, "float32", size, shot.of_product(made), _apart(ours, made))


def against_cat(shot: Shot) -> Row:
    """How far our product of the merged vector is from PEFT's exact one (`cat`), as a part of its largest entry.

    The vector is merged by the product's own recipe from float16 updates, and PEFT gets those very updates. The row's `gains`
    and `dense` hold this distance and 1: it is no gain.
    """
    sent = shot.sent(dense(shot.lab))
    view = _merged(shot, "contributor-mean/1", shot.registers(sent))
    vectors = [_dense(one.update) for one in sent.values()]
    made = products.by_peft(shot.lab, vectors, "cat", weight=1 / len(vectors), density=None, seed=0)
    apart = products.distance(products.exact(shot.lab, view), made)
    return Row(
        part="exact", name="our product from PEFT's cat", budget="dense", size=_size(sent), gains=(apart,), dense=(1.0,),
        against="largest entry of PEFT's product",
    )  # fmt: skip


def _dense(update: SparseUpdate) -> Vector:
    vector = np.zeros(update.coordinates, dtype=np.float32)
    vector[update.indices] = update.values()
    return vector


def _merged(shot: Shot, recipe: str, registers: Mapping[MemberId, Register]) -> Vector:
    merger = Merger(lab=shot.lab, text=recipe)
    merger.fishers = {member: run.fisher for member, run in shot.runs.items()}
    merger.learnt = {member: run.theta for member, run in shot.runs.items()}
    return merger.merge(registers)


def _apart(ours: products.Product, made: products.Product) -> str:
    apart = products.distance(made, ours)
    return "equals our mean to 1e-5" if apart <= 1e-5 else f"{apart:.1e} from our mean" if apart < 1e-2 else ""


def _size(sent: Mapping[MemberId, Sent]) -> float:
    return float(np.mean([one.size for one in sent.values()]))


def _share(sent: Mapping[MemberId, Sent]) -> str:
    return f"sends {np.mean([one.update.sent / one.update.coordinates for one in sent.values()]):.1%}"


def _missing(part: str, name: str, budget: str, cause: str) -> Row:
    return Row(part=part, name=name, budget=budget, size=0.0, gains=(), dense=(), against=AGAINST, note=cause)
