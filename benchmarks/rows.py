"""A row of the table of merges, the file that keeps rows, and the figures that are read off them.

Knows nothing of models. Invariant: a figure is computed from rows of the file alone, so a committed file says the same as
the run that wrote it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to merge on one model, measured once for each seed.

    `size` is bytes of one member's whole blob in one round (the mean over rounds and members); `gains` and `dense` are nats won
    against the base, by this row and by the row it is held against (`against`), seed by seed. `tuned` is the share when the
    result is multiplied by the `scales` that other held-out rows prefer: it tells a better direction from a better length.
    """

    part: str
    name: str
    budget: str
    size: float
    gains: tuple[float, ...]
    dense: tuple[float, ...]
    against: str
    losses: tuple[tuple[float, ...], ...] = ()  # held-out loss after each round, by seed
    tuned: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    note: str = ""

    @property
    def kept(self) -> tuple[float, ...]:
        """The share of the reference's gain, by seed."""
        return tuple(gain / dense for gain, dense in zip(self.gains, self.dense, strict=True))

    @property
    def mean(self) -> float:
        """The mean share over seeds; not a number for a row that did not run."""
        return float(np.mean(self.kept)) if self.gains else float("nan")

    @property
    def spread(self) -> float:
        """The standard deviation of the share over seeds (n - 1); 0 for one seed."""
        return float(np.std(self.kept, ddof=1)) if len(self.gains) > 1 else 0.0


def joined(rows: Sequence[Row]) -> list[Row]:
    """Rows of single seeds put together by part, budget and name, in the order of their first appearance."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.part, row.budget, row.name), []).append(row)
    return [
        dataclasses.replace(
            group[0],
            size=float(np.mean([row.size for row in group])),
            gains=tuple(gain for row in group for gain in row.gains),
            dense=tuple(dense for row in group for dense in row.dense),
            losses=tuple(curve for row in group for curve in row.losses),
            tuned=tuple(share for row in group for share in row.tuned),
            scales=tuple(scale for row in group for scale in row.scales),
            note="; ".join(dict.fromkeys(row.note for row in group if row.note)),
        )
        for group in groups.values()
    ]


def lines(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """The table's cells, best first within a part and budget; rows that did not run come last."""
    ordered = sorted(rows, key=lambda row: (row.part, row.budget, not row.gains, -row.mean if row.gains else 0.0))
    return [
        (
            f"{row.part} {row.budget}",
            row.name,
            row.mean if row.gains else "-",
            row.spread if len(row.gains) > 1 else "-",
            float(np.mean(row.tuned)) if row.tuned else "-",
            int(row.size) if row.size else "-",
            row.note or "",
        )
        for row in ordered
    ]


HEADER = ("part", "row", "kept", "spread", "at its best scale", "bytes", "note")


def markdown(rows: Sequence[Row]) -> str:
    """The same cells as `lines` for RESULTS.md, a table for each part and budget."""
    found: list[str] = []
    for line in lines(rows):
        group, name, kept, spread, tuned, size, note = (f"{c:.3f}" if isinstance(c, float) else str(c) for c in line)
        if f"**{group}**" not in found:
            found += ["", f"**{group}**", "", "| row | kept | at its best scale | bytes | |", "|---|---|---|---|---|"]
        shown = kept if spread == "-" else f"{kept} ± {spread}"
        found.append(f"| {name} | {shown} | {tuned} | {size if size == '-' else f'{int(size):,}'} | {note} |")
    return "\n".join(found)


def save(file: Path, model: str, ran: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Put `rows` into the file in place of the model's rows of the same names; `ran` says how they were run.

    Rows that did not run this time stay: take the file away before a run of the whole.
    """
    held = json.loads(file.read_text()) if file.is_file() else {}
    parts = held.setdefault(model, {})
    for part in dict.fromkeys(row.part for row in rows):
        own = [_plain(row) | {"ran": dict(ran)} for row in rows if row.part == part]
        names = {(row["budget"], row["name"]) for row in own}
        kept = [row for row in parts.get(part, []) if (row["budget"], row["name"]) not in names]
        parts[part] = [*kept, *own]
    file.parent.mkdir(parents=True, exist_ok=True)
    part_file = file.with_suffix(".part")
    part_file.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    part_file.rename(file)


def load(file: Path, model: str) -> list[Row]:
    """All rows of a model in the file; none if there is no file."""
    held = json.loads(file.read_text()) if file.is_file() else {}
    return [
        Row(**{key: _tuples(value) for key, value in row.items() if key != "ran"})
        for part in held.get(model, {}).values()
        for row in part
    ]


def _plain(row: Row) -> dict[str, object]:
    found = {key: _rounded(value) for key, value in dataclasses.asdict(row).items()}
    return {key: value for key, value in found.items() if value not in ((), "")} | {"gains": found["gains"]}


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_rounded(each) for each in value] if isinstance(value, tuple) else value


def _tuples(value: object) -> object:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
