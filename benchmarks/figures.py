"""The figures of the table of merges, read off its rows; those of the real model have floors.

Knows rows alone. Invariant: no figure appears for what did not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from harness import Figure
from rows import Row

REAL = "smollm2-135m"
POINTS = -1.0  # within one point of Flower's FedAvg
SMALLER = 30.0  # at this part of its bytes


def figures(model: str, rows: Sequence[Row]) -> list[Figure]:
    """All figures that the rows allow."""
    ran = [row for row in rows if row.gains]
    return [*_selectors(model, ran), *_exact(model, ran), *_order(model, ran), *_flower(model, ran)]


def _selectors(model: str, rows: Sequence[Row]) -> list[Figure]:
    found = []
    for part in ("selector", "rounds selector"):
        for budget in sorted({row.budget for row in rows if row.part == part}):
            kept = {row.name: row.mean for row in rows if row.part == part and row.budget == budget}
            saliency = [value for name, value in kept.items() if "fisher" in name and not name.startswith("fisher int")]
            length = [value for name, value in kept.items() if name.startswith("magnitude")]
            if saliency and length:
                margin = max(saliency) - max(length)  # each with the bits that suit it
                slug = f"merging.{model}.{part.replace(' ', '-')}.{budget}.saliency-over-magnitude"
                found.append(Figure(id=slug, value=margin, unit="of the gain", floor=0.0 if model == REAL else None))
    return found


def _exact(model: str, rows: Sequence[Row]) -> list[Figure]:
    return [
        Figure(
            id=f"merging.{model}.product-from-cat", value=row.gains[0], unit="of its largest", floor=1e-5, lower=True
        )
        for row in rows
        if row.part == "exact"
    ]


def _order(model: str, rows: Sequence[Row]) -> list[Figure]:
    """What the best recipe has over the contributor mean, on the same blobs."""
    found = []
    for part in ("recipe", "rounds recipe"):
        for budget in sorted({row.budget for row in rows if row.part == part}):
            kept = {row.name: row.mean for row in rows if row.part == part and row.budget == budget}
            plain = kept.get("contributor-mean/1")
            if plain is not None:
                best = max(kept, key=lambda name: kept[name])
                slug = f"merging.{model}.{part.replace(' ', '-')}.{budget}.best-over-mean ({best})"
                found.append(Figure(id=slug, value=kept[best] - plain, unit="of the gain"))
    return found


def _flower(model: str, rows: Sequence[Row]) -> list[Figure]:
    """The best row over rounds at a thirtieth of Flower's bytes or less, in points of Flower's gain."""
    theirs = next((row for row in rows if row.part == "flower"), None)
    if theirs is None:
        return []
    small = [
        row
        for row in rows
        if row.part.startswith("rounds ") and len(row.gains) >= len(theirs.gains) and row.size * SMALLER <= theirs.size
    ]
    if not small:
        return []
    points = {row: _points(row, theirs) for row in small}
    best = max(small, key=lambda row: points[row])
    floor = POINTS if model == REAL else None
    return [
        Figure(id=f"merging.{model}.points-over-flower ({best.name})", value=points[best], unit="points", floor=floor),
        Figure(
            id=f"merging.{model}.flower-bytes-over-ours", value=theirs.size / best.size, unit="times", floor=SMALLER
        ),
    ]


def _points(row: Row, theirs: Row) -> float:
    return float(np.mean([100 * (own / other - 1) for own, other in zip(row.gains, theirs.gains, strict=False)]))
