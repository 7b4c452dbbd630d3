"""Robustness: three hostile members of ten, attack by attack, on the node's own code in the simulator with the test model.

Every attack runs on the same split of the three demo texts as the reference, in which the same three members send nothing
(honest members only). kept = (base - release) / (base - reference), mean over the honest members' held-out rows at the last
release; named = the first release that leaves out something of each attacker, counted from the attack's first; silenced = honest
contributions that were refused, with the upper end of the 95 % Clopper-Pearson interval over all runs of the table. An
attack that keeps less than the floor or is not named stands in the table like the others.

    python benchmarks/bench_robustness.py [--quick] [--attacks a,b] [--seeds N] [--releases N] [--recipe TEXT] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, cache, finish, options, table

from node.simulation import config, world
from node.simulation.attackers import ATTACKS
from node.simulation.world import Outcome

REFERENCE = "silent"
QUICK = ("sign-flip", "copy", "nan")
HOSTILE, MEMBERS = 3, 10
KEPT_FLOOR, NAMED_WITHIN, SILENCED_MOST, LEAST_HONEST = 0.95, 2, 0.02, 300
HARMLESS = frozenset({"smear"})  # sends honestly: there is nothing to exclude
SETTINGS = """
[simulation]
members = {members}
releases = {releases}
seed = {seed}
[data]
kind = "demo"
rows = 900
alpha = 0.3
held_out = 0.3
[training]
steps = 8
batch = 8
length = 32
warmup = 3
fisher_sequences = 6
spread = 0.1
[collective]
rank = 8
density = 0.2
block = 256
tolerance = 0.02
norm_cap = 20.0
recipe = "{recipe}"
[evaluation]
rows = {rows}
cards = false
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one simulation showed."""

    attack: str
    seed: int
    losses: tuple[float, ...]  # nats of the honest members at each release
    base: float
    named: int | None  # the release that first left out something of every attacker
    reasons: tuple[str, ...]
    honest: int  # honest contributions that were decided on
    refused: int  # of them
    finished: bool


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="three attacks, two releases, one seed")
    parser.add_argument("--attacks", help="names, separated by commas  [default: all]")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--releases", type=int, default=4)
    parser.add_argument("--rows", type=int, default=24, help="held-out rows of one measurement")
    parser.add_argument("--recipe", default="contributor-mean/1")
    arguments = parser.parse_args()
    attacks = tuple(arguments.attacks.split(",")) if arguments.attacks else tuple(a for a in ATTACKS if a != REFERENCE)
    if arguments.quick:
        attacks, arguments.releases, arguments.rows, arguments.seeds = QUICK, 2, 12, 1
    return finish(measure(arguments, attacks), arguments, began=began)


def measure(arguments: argparse.Namespace, attacks: Iterable[str]) -> list[Figure]:
    import torch

    torch.set_num_threads(1)
    runs, references = list[Run](), dict[int, Run]()
    for seed in range(1, arguments.seeds + 1):
        references[seed] = simulate(arguments, REFERENCE, seed)
        for attack in attacks:
            runs.append(simulate(arguments, attack, seed))
            said(runs[-1], references[seed])
    return report(runs, references, arguments)


def simulate(arguments: argparse.Namespace, attack: str, seed: int) -> Run:
    """One run of the node's own code, all members in this process."""
    text = SETTINGS.format(
        members=MEMBERS, releases=arguments.releases, seed=seed, recipe=arguments.recipe, rows=arguments.rows
    )
    text += f'[[attackers]]\nattack = "{attack}"\ncount = {HOSTILE}\n'
    with tempfile.TemporaryDirectory() as folder:
        done = world.simulate(config.parse(text, source=Path("robustness.toml")), Path(folder), cache=cache())
        return _run(done, attack, seed)


def _run(done: Outcome, attack: str, seed: int) -> Run:
    seen, honest = done.watch.seen, done.watch.honest[0].fold
    hostile: set[str] = set()
    named, reasons = None, set[str]()
    for release in seen:
        excluded: list[dict[str, Any]] = [x for x in release.excluded if x["attack"]]
        hostile |= {str(x["member"]) for x in excluded}
        reasons |= {str(x["reason"]) for x in excluded}
        if named is None and len(hostile) == HOSTILE:
            named = release.number
    members = {m.id for m in done.watch.honest}
    fates = [honest.fate(c) for m, published in honest.contributions.items() if m in members for c in published]
    return Run(
        attack=attack,
        seed=seed,
        losses=tuple(float(np.mean(release.losses)) for release in seen),
        base=float(np.mean(seen[0].base)),
        named=named,
        reasons=tuple(sorted(reasons)),
        honest=sum(fate in {"released", "refused"} for fate in fates),
        refused=fates.count("refused"),
        finished=done.finished,
    )


def kept(run: Run, reference: Run) -> float:
    """The part of the reference's gain that is left at the last release that both have."""
    last = min(len(run.losses), len(reference.losses)) - 1
    return (run.base - run.losses[last]) / (reference.base - reference.losses[last])


def said(run: Run, reference: Run) -> None:
    print(
        f"seed {run.seed} {run.attack}: kept {kept(run, reference):.3f}, named at release {run.named} "
        f"({', '.join(run.reasons) or 'no reason'}), honest refused {run.refused} of {run.honest}"
        f"{'' if run.finished else ', NOT FINISHED'}",
        flush=True,
    )


def upper(refused: int, of: int, share: float = 0.95) -> float:
    """The upper end of the two-sided Clopper-Pearson interval of a rate (Biometrika 26, 1934), by bisection."""
    if refused >= of:
        return 1.0
    low, high = refused / of if of else 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(refused, of, middle) > (1 - share) / 2 else (low, middle)
    return high


def _at_most(successes: int, of: int, rate: float) -> float:
    """Probability of at most so many successes, as a sum of binomial terms."""
    term = total = (1 - rate) ** of
    for n in range(1, successes + 1):
        term *= (of - n + 1) / n * rate / (1 - rate)
        total += term
    return total


def report(runs: list[Run], references: dict[int, Run], arguments: argparse.Namespace) -> list[Figure]:
    """The table, and one figure for each promise."""
    figures, rows = list[Figure](), list[tuple[object, ...]]()
    for attack in dict.fromkeys(run.attack for run in runs):
        mine = [run for run in runs if run.attack == attack]
        parts = [kept(run, references[run.seed]) for run in mine]
        named = [run.named for run in mine]
        worst = None if None in named else max(n for n in named if n is not None)
        refused, honest = sum(run.refused for run in mine), sum(run.honest for run in mine)
        reasons = sorted({reason for run in mine for reason in run.reasons})
        rows.append((attack, min(parts), float(np.ptp(parts)), worst, ", ".join(reasons) or "-", refused, honest))
        figures.append(
            Figure(id=f"robustness.{attack}.kept", value=min(parts), floor=KEPT_FLOOR, unit="of honest gain")
        )
        if attack not in HARMLESS:
            late = float(worst if worst is not None else arguments.releases + 1)
            figures.append(
                Figure(id=f"robustness.{attack}.named", value=late, floor=NAMED_WITHIN, unit="release", lower=True)
            )
    table(
        f"{HOSTILE} hostile of {MEMBERS}, {arguments.recipe}, {arguments.releases} releases, {arguments.seeds} seeds",
        ("attack", "kept (least)", "spread", "named at", "reasons", "honest refused", "of"),
        rows,
    )
    refused, honest = sum(run.refused for run in runs), sum(run.honest for run in runs)
    bound = upper(refused, honest)
    print(f"\nhonest contributions refused: {refused} of {honest}, upper end of the 95 % interval {bound:.4f}")
    floor = SILENCED_MOST if honest >= LEAST_HONEST else None  # with fewer the interval alone is wider than that
    figures.append(Figure(id="robustness.honest-refused", value=bound, floor=floor, aim=SILENCED_MOST, lower=True))
    return figures


if __name__ == "__main__":
    sys.exit(main())
