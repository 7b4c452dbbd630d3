"""Draws kept gain against bytes from the rows of the table of merges.

Knows rows and matplotlib. Invariant: nothing is drawn that is not a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rows import Row

SHOWN = ("selector", "rounds selector")
TITLES = {"selector": "one shot, contributor mean", "rounds selector": "over rounds, sqrt mean, error feedback"}


def plot(file: Path, model: str, rows: Sequence[Row]) -> None:
    """Write one picture, a panel for selectors one-shot and one for selectors over rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    parts = [part for part in SHOWN if any(row.part == part and row.gains for row in rows)]
    figure, panels = pyplot.subplots(1, max(1, len(parts)), figsize=(6 * max(1, len(parts)), 4), squeeze=False)
    for panel, part in zip(panels[0], parts, strict=False):
        own = [row for row in rows if row.part == part and row.gains]
        for name in dict.fromkeys(row.name for row in own):
            line = sorted((row for row in own if row.name == name), key=lambda row: row.size)
            panel.errorbar(
                [row.size / 1000 for row in line],
                [row.mean for row in line],
                yerr=[row.spread for row in line],
                marker="o",
                capsize=3,
                label=name,
            )
        panel.axhline(1.0, color="grey", linewidth=0.8)
        panel.set_xscale("log")
        panel.set_xlabel("kB of one whole blob")
        panel.set_ylabel("share of the dense gain")
        panel.set_ylim(bottom=min(0.0, float(np.min([row.mean for row in own]))))
        panel.set_title(f"{model}: {TITLES[part]}")
        panel.legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)
