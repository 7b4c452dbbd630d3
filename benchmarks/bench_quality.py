"""How near the collective comes to training on everybody's rows in one place, at equal total steps.

The bound is a pooled run: all rows in one place, as many optimisation steps as each member makes, each with as many rows as all
members take together, equally many of each member, and the best of several learning rates (all of them are printed). The rows
are the collective with the default charter (20 % of the coordinates, int8, error feedback, contributor mean): as it was
(Adam anew in every run, a Fisher pass), with Adam's moments kept from run to run, with Adam's own estimate in the Fisher's place,
and with a learning rate that every member searched for on its own training rows.

    bench_quality.py [--quick] [--json FILE]      SmolLM2-135M, one seed; --quick: the test model, three seeds
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

import lab
import numpy as np
from harness import Figure, finish, options, table
from lab import Lab, Plan

from contrib import searching, training
from contrib.training import Settings
from contrib.tuning import Wish

FLOOR = 0.92  # of the pooled gain
NAMED = "kept moments, Adam's Fisher"  # the row that the floor is for


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is compared on a model: rounds of so many steps, the collective's rate, the rates of the bound."""

    rounds: int
    settings: Settings
    rates: tuple[float, ...]
    seeds: tuple[int, ...]


SETTINGS = {
    "tiny": Setting(
        rounds=6,
        settings=Settings(steps=6, batch=8, length=64, lr=1e-2, warmup=4, fisher_sequences=16),
        rates=(3e-3, 5e-3, 7e-3, 1e-2),
        seeds=(0, 1, 2),
    ),
    "smollm2-135m": Setting(
        rounds=6,
        settings=Settings(steps=5, batch=4, length=64, lr=8e-3, warmup=4, fisher_sequences=16),
        rates=(5e-3, 8e-3, 1.4e-2),
        seeds=(0,),
    ),
}


def main() -> int:
    """Print a table for each seed and the shares of the bound; 1 when the named row misses the floor."""
    parser = options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="the test model and three seeds instead of SmolLM2")
    parser.add_argument("--seeds", type=int, nargs="*", help="others than the usual ones")
    arguments = parser.parse_args()
    began = time.monotonic()
    model = "tiny" if arguments.quick else "smollm2-135m"
    setting = SETTINGS[model]
    seeds = arguments.seeds or setting.seeds
    one = lab.open_lab(model)
    shares: dict[str, list[float]] = {}
    for seed in seeds:
        for name, share in compared(dataclasses.replace(one, seed=seed), setting).items():
            shares.setdefault(name, []).append(share)
    return finish(figures(model, shares), arguments, began=began)


def compared(one: Lab, setting: Setting) -> dict[str, float]:
    """Print the rows of one seed; each plan's share of the bound's gain."""
    base = one.loss(None)
    bounds = {rate: one.loss(bound(one, setting, rate)) for rate in setting.rates}
    best = min(bounds.values())
    rows: list[tuple[object, ...]] = [
        (f"pooled, rate {rate:g}", loss, base - loss, (base - loss) / (base - best), None)
        for rate, loss in bounds.items()
    ]
    found = {}
    for plan in plans(one, setting):
        curve = lab.rounds(one, plan)
        found[plan.name] = curve.gain / (base - best)
        rows.append((plan.name, curve.losses[-1], curve.gain, found[plan.name], sum(curve.sizes)))
    title = f"{one.model}, seed {one.seed}, {setting.rounds} rounds of {setting.settings.steps} steps, base {base:.4f}"
    table(title, ("run", "held-out loss", "gain", "of the bound", "bytes a member"), rows)
    return found


def bound(one: Lab, setting: Setting, rate: float) -> lab.Vector:
    """The pooled run at one learning rate."""
    return one.pooled(dataclasses.replace(setting.settings, lr=rate), setting.rounds)


def plans(one: Lab, setting: Setting) -> list[Plan]:
    """What is compared with the bound."""
    send = lab.sparse(one, density_ppm=200_000)
    plain = Plan(name="Adam anew, Fisher pass", send=send, rounds=setting.rounds, settings=setting.settings)
    kept = dataclasses.replace(plain, name="kept moments, Fisher pass", keep_moments=True)
    free = dataclasses.replace(setting.settings, fisher_sequences=0)
    named = dataclasses.replace(kept, name=NAMED, settings=free)
    rates = {name: searched(one, name, free) for name in one.names}
    said = ", ".join(f"{rate:g}" for rate in rates.values())
    print(f"learning rates that the members found on their own training rows: {said}")
    return [plain, kept, named, dataclasses.replace(named, name="the same, own rates", rates=rates)]


def searched(one: Lab, name: str, settings: Settings) -> float:
    """The rate that the product's search gives a member on its own training rows."""
    asked = dataclasses.replace(settings, lr=4e-3, seed=one.seed)
    codec, permits = one.learner.codec, lab.permits([name], "train")
    wish = Wish(rate=True, members=len(one.names))
    measured = searching.tuning_sequences(one.store, [name], codec, asked, permits, wish)
    sequences = training.draw(one.store, [name], codec, asked, permits, spare=True)
    return searching.search(one.learner, sequences, measured, None, asked, wish).lr


def figures(model: str, shares: dict[str, Sequence[float]] | dict[str, list[float]]) -> list[Figure]:
    """Mean over the seeds, and where there are several the worst and the spread."""
    found = []
    for name, values in shares.items():
        floor = FLOOR if name == NAMED else None
        found.append(Figure(id=f"{model}: {name}", value=float(np.mean(values)), unit="of pooled gain", floor=floor))
        if len(values) > 1:
            found.append(Figure(id=f"{model}: {name}, worst seed", value=min(values), unit="of pooled gain"))
            found.append(Figure(id=f"{model}: {name}, spread", value=float(np.std(values)), unit="of pooled gain"))
    return found


if __name__ == "__main__":
    sys.exit(main())
