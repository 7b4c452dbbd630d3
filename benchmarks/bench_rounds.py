"""Quality per byte over rounds: sparse updates with error feedback against the same charter at density 1 with fp16 values.

Three members with texts of their own (clinic, security, cinema) learn, send and merge four times. Every byte of a
contribution counts: coordinates, scales, signs, card, envelope, signature. kept = (base - loss) / (base - loss of the dense
run) after the last round; times = bytes of the dense run over bytes of this one, per member, all rounds. Local runs are kept
in the cache and used again where model, view, rows and settings are the same.

    python benchmarks/bench_rounds.py [--quick] [--all] [--seeds N] [--json FILE]

`--quick` runs the test model: reported, not judged (its adapter has a quarter of the coordinates, and the same card).
`--all` adds the rows that lost (see contrib/LOG.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import lab as laboratory
import numpy as np
from harness import Figure, finish, options, table
from lab import Curve, Lab, Plan, Send

from contrib import updates

JUDGED = "smollm2-135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One charter's numbers, and what must hold of it on the judged model: (kept, times fewer bytes)."""

    name: str
    density_ppm: int
    bits: int = 1
    block: int = 16
    rule: str = updates.ROW_RULE
    recipe: str = "contributor-mean/1"
    own: float = 0.0
    keep: float = 1.0
    floor: tuple[float, float] | None = None

    def plan(self, lab: Lab) -> Plan:
        """The row as a plan of the laboratory."""
        return Plan(name=self.name, send=self._send(lab), recipe=self.recipe, own=self.own)

    def _send(self, lab: Lab) -> Send:
        return laboratory.sparse(
            lab, density_ppm=self.density_ppm, bits=self.bits, rule=self.rule, block=self.block, keep=self.keep
        )


FINAL = (
    Row(name="rows-1bit-50%", density_ppm=500_000, floor=(0.95, 30.0)),
    Row(name="rows-1bit-15%", density_ppm=150_000, floor=(0.90, 100.0)),
)
OTHERS = (
    Row(name="scattered-8bit-20%", density_ppm=200_000, bits=8, block=256, rule="fisher-r2"),
    Row(name="scattered-1bit-4.5%", density_ppm=45_000, bits=1, block=64, rule="fisher-r2"),
)


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="the test model instead of the judged one")
    parser.add_argument("--all", action="store_true", help="also the rows that lost")
    parser.add_argument("--seeds", type=int, default=1, help="how many independent sequences of local runs")
    arguments = parser.parse_args()
    model = "tiny" if arguments.quick else JUDGED
    found = measure(model, FINAL + (OTHERS if arguments.all else ()), arguments)
    return finish(found, arguments, began=began)


def measure(model: str, rows: Sequence[Row], arguments: argparse.Namespace) -> list[Figure]:
    """Run the dense reference and every row for each seed."""
    found: list[tuple[Row, float, float]] = []
    lines = []
    for seed in range(arguments.seeds):
        lab = laboratory.open_lab(model, seed=seed)
        dense = laboratory.rounds(lab, Plan(name="dense fp16", send=laboratory.dense(lab)))
        lines.append(_line(seed, dense, dense))
        for row in rows:
            curve = laboratory.rounds(lab, row.plan(lab))
            lines.append(_line(seed, curve, dense))
            found.append((row, laboratory.kept(curve, dense), _times(curve, dense)))
    header = ["sends", "seed", "gain after each round", "bytes a round", "times", "kept"]
    table(f"{model}: three members, {dense.name} as the reference", header, lines)
    return [figure for row in rows for figure in _figures(row, found, judged=model == JUDGED)]


def _times(curve: Curve, dense: Curve) -> float:
    return sum(dense.sizes) / sum(curve.sizes)


def _line(seed: int, curve: Curve, dense: Curve) -> list[str]:
    gains = " ".join(f"{curve.base - loss:.4f}" for loss in curve.losses)
    size = f"{np.mean(curve.sizes):,.0f}"
    return [curve.name, str(seed), gains, size, f"{_times(curve, dense):.1f}", f"{laboratory.kept(curve, dense):.3f}"]


def _figures(row: Row, found: Sequence[tuple[Row, float, float]], *, judged: bool) -> list[Figure]:
    kept, times = (float(np.mean([one[place] for one in found if one[0] is row])) for place in (1, 2))
    floors = row.floor if row.floor and judged else (None, None)
    return [
        Figure(id=f"rounds-{row.name}-kept", value=kept, unit="of the dense gain", floor=floors[0]),
        Figure(id=f"rounds-{row.name}-times", value=times, unit="times fewer bytes", floor=floors[1]),
    ]


if __name__ == "__main__":
    sys.exit(main())
