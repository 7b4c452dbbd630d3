"""Draws a simulation's report: loss, bytes, convergence and fates over the releases, as PNG and SVG.

Knows the report and matplotlib (an extra of the install), no window: Agg draws into files. Invariant: nothing is
drawn that is not in the report, and the same report gives the same SVG.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node.errors import NodeError

_FORMATS: Final = ("png", "svg")
_INK, _SOFT, _WARN, _GOOD = "#1f3a5f", "#9db4cf", "#c0392b", "#2e7d4f"


class NoPlots(NodeError):
    """Curves cannot be drawn here."""

    code = "no-plots"


def need() -> None:
    """Refuse now what could not be drawn after an hour (raises NoPlots)."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NoPlots(
            "couldn't draw curves: matplotlib is not installed",
            hint="pip install 'fishernet[plot]', or leave --out away: the numbers come with --json",
        )


def sheet() -> tuple[Any, Any]:
    """A figure of four panels that gives the same SVG for the same numbers, and the panels [2][2] (raises NoPlots)."""
    need()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "fishernet", "svg.fonttype": "none"}
    figure = Figure(figsize=(11, 7.5))  # without pyplot: there is no window, and the file's own canvas draws
    return figure, figure.subplots(2, 2, gridspec_kw={"hspace": 0.35, "left": 0.07, "right": 0.98, "bottom": 0.07})


def save(figure: Any, folder: Path) -> list[Path]:
    """Write `curves.png` and `curves.svg` into `folder`; no date stands in them."""
    paths = []
    for form in _FORMATS:
        path = folder / f"curves.{form}"
        figure.savefig(path, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
        paths.append(path)
    return paths


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `curves.png` and `curves.svg` into `folder` (raises NoPlots)."""
    figure, panels = sheet()
    releases: Sequence[Mapping[str, Any]] = report["releases"]
    numbers = [r["number"] for r in releases]
    _losses(panels[0][0], numbers, releases)
    _bytes(panels[0][1], numbers, releases)
    _convergence(panels[1][0], numbers, releases)
    _fates(panels[1][1], numbers, releases, report["attackers"])
    made = report["collective"]
    figure.suptitle(f"{made['members']} members, {len(report['attackers'])} of them hostile; {made['recipe']}")
    return save(figure, folder)


def _losses(panel: Any, numbers: list[int], releases: Sequence[Mapping[str, Any]]) -> None:
    told = [(n, r["loss"], r["base"]) for n, r in zip(numbers, releases, strict=True) if r["loss"]]
    if told:
        xs = [0, *(n for n, _, _ in told)]
        first = told[0][2]
        panel.fill_between(
            xs,
            [first["min"], *(loss["min"] for _, loss, _ in told)],
            [first["max"], *(loss["max"] for _, loss, _ in told)],
            color=_SOFT,
            alpha=0.5,
            label="members, lowest to highest",
        )
        panel.plot(xs, [first["mean"], *(loss["mean"] for _, loss, _ in told)], "o-", color=_INK, label="mean")
        panel.axhline(first["mean"], color=_WARN, linestyle=":", label="base")
        panel.legend(fontsize=8)
    _named(panel, "held-out loss of the release", "release (0: base)", "nats")


def _bytes(panel: Any, numbers: list[int], releases: Sequence[Mapping[str, Any]]) -> None:
    sent = [r["sent_per_member"] for r in releases]
    panel.plot(numbers, [s["mean"] / 1e6 for s in sent], "o-", color=_INK, label="mean")
    panel.plot(numbers, [s["max"] / 1e6 for s in sent], "--", color=_SOFT, label="most")
    panel.legend(fontsize=8)
    _named(panel, "sent by a member so far, everything counted", "release", "MB")


def _convergence(panel: Any, numbers: list[int], releases: Sequence[Mapping[str, Any]]) -> None:
    told = [(n, r["converged_s"]) for n, r in zip(numbers, releases, strict=True) if r["converged_s"] is not None]
    panel.plot([n for n, _ in told], [s for _, s in told], "o-", color=_INK)
    panel.set_ylim(bottom=0)
    _named(panel, "from the first to the last honest member that held it", "release", "simulated s")


def _fates(
    panel: Any, numbers: list[int], releases: Sequence[Mapping[str, Any]], attackers: Sequence[Mapping[str, Any]]
) -> None:
    bottom = [0] * len(numbers)
    for fate, colour in (("released", _GOOD), ("pending", _SOFT), ("refused", _WARN), ("stale", "#888888")):
        values = [r["fates"][fate] for r in releases]
        panel.bar(numbers, values, bottom=bottom, color=colour, label=fate)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    named = [a["named_at_release"] for a in attackers if a["named_at_release"] is not None]
    for number in sorted(set(named)):
        panel.axvline(number, color=_INK, linestyle=":")
        text = f"{named.count(number)} attackers named"
        panel.annotate(text, (number, max(bottom, default=1)), fontsize=7, rotation=90, va="top", ha="right")
    panel.legend(fontsize=8)
    _named(panel, "contributions by fate", "release", "contributions")


def _named(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(alpha=0.25)
    panel.xaxis.get_major_locator().set_params(integer=True)
