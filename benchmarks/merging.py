"""One table of merges: every recipe and selector at equal bytes, beside PEFT, mergekit and Flower on the same updates.

Three members (clinic, security and cinema texts) with non-IID rows. One-shot parts share stored local runs from the base;
rounds run with error feedback. Bytes are those of one member's whole signed blob (indices, values, scales, card, envelope,
signature). `kept` is the share of a reference's gain on held-out rows: of the mean of the whole float32 updates one-shot, of
the dense float16 mean of as many rounds over rounds. A "point" is one percent of the gain of Flower's FedAvg.

    python benchmarks/merging.py [--model tiny|smollm2-135m] [--quick] [--parts ..] [--seeds N] [--rounds N]
        [--flwr PYTHON] [--mergekit PYTHON] [--results FILE] [--markdown] [--plot FILE] [--json FILE]

Without --flwr and --mergekit their rows say "not run". On the real model rounds are five named rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import figures
from harness import finish, machine, options, table
from lab import SETTINGS, Lab, open_lab
from one_shot import against_cat, by_peer, by_recipe, by_selector, shot
from over_rounds import by_flower, everything, named, run
from rows import HEADER, Row, joined, lines, load, markdown, save

PARTS = ("selector", "recipe", "peer", "exact", "rounds", "flower")
REAL = "smollm2-135m"
BUDGETS = {"tiny": (8, 30), REAL: (30, 100)}
JUDGING_ROWS = {"tiny": 16, REAL: 12}  # of each member; rounds of the real model are judged by all of the lab's
TUNING_ROWS = 12  # of each member, in the first seed of the test model


def main() -> int:
    began = time.monotonic()
    arguments = _options().parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    number = 2 if arguments.quick else arguments.rounds
    found: list[Row] = []
    ran = {
        "seeds": seeds,
        "rounds": number,
        "quick": arguments.quick,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        lab = open_lab(arguments.model, Path(folder)) if arguments.parts else None
        for seed in range(seeds if lab else 0):
            one = dataclasses.replace(lab, seed=seed)
            for row in _rows(one, arguments, number, Path(folder)):
                print(f"seed {seed}: {row.part} {row.budget} {row.name} {row.mean:.3f} {row.note}", flush=True)
                found.append(row)
                if arguments.results:  # row by row: a run of hours that is killed keeps what it has
                    save(arguments.results, arguments.model, ran, joined(found))
    rows = load(arguments.results, arguments.model) if arguments.results else joined(found)
    if arguments.markdown:
        print(markdown(rows))
    else:
        table(arguments.model, HEADER, lines(rows))
    if arguments.plot:
        from merging_plot import plot

        plot(arguments.plot, arguments.model, rows)
    return finish(figures(arguments.model, rows), arguments, began=began)


def _rows(lab: Lab, arguments: argparse.Namespace, number: int, folder: Path) -> Iterator[Row]:
    """All rows of one seed."""
    parts, budgets = arguments.parts, BUDGETS[arguments.model]
    whole, lab = lab, judged_by(lab, JUDGING_ROWS[arguments.model])
    if {"selector", "recipe", "peer", "exact"} & set(parts):
        tune = TUNING_ROWS if arguments.model != REAL and not (arguments.quick or lab.seed) else 0
        one = shot(lab, tune=tune)
        if "selector" in parts:
            yield from by_selector(one, budgets)
        if "recipe" in parts:
            yield from by_recipe(one, (30,))
        if "peer" in parts:
            yield from by_peer(one, arguments.mergekit, folder)
        if "exact" in parts:
            yield against_cat(one)
    if arguments.model == REAL:
        lab = whole
    if "rounds" in parts:
        small = budgets[-1:] if arguments.quick else budgets
        wanted = named(lab) if arguments.model == REAL else everything(lab, small)
        if chosen := arguments.rows:
            wanted = [one for one in wanted if any(text in one.name for text in chosen)]
        yield from run(lab, wanted, number, pooled=not chosen)
    if "flower" in parts:
        yield from by_flower(lab, arguments.flwr, folder, number)


def judged_by(lab: Lab, rows: int) -> Lab:
    """The same laboratory with fewer rows of each member to judge by: the first of them by digest."""
    few = tuple([dataclasses.replace(sample, rows=sample.rows[:rows]) for sample in own] for own in lab.samples)
    return dataclasses.replace(lab, samples=few)


def _options() -> argparse.ArgumentParser:
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=sorted(SETTINGS), default="tiny")
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds, no search of scales")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="none: show the file")
    parser.add_argument(
        "--rows", nargs="+", metavar="TEXT", help="over rounds: only rows whose name has one of these in it"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--flwr", metavar="PYTHON", help="a Python with flwr and what contrib needs")
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python with mergekit")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep the rows there, part by part")
    parser.add_argument("--markdown", action="store_true", help="print the table for RESULTS.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw kept gain against bytes (needs matplotlib)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
