"""Draws the report of a simulated swarm: hops, time, bytes and what an idle node sends, over the number of members.

Knows the report and matplotlib (an extra of the install), no window. Invariant: nothing is drawn that is not in the report, and
the same report gives the same SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node.simulation.curves import save, sheet

_COLOURS: Final = {"neighbours": "#1f3a5f", "ring": "#c0392b", "full": "#2e7d4f"}
Swarm = Mapping[str, Any]


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `curves.png` and `curves.svg` into `folder` (raises NoPlots)."""
    figure, panels = sheet()
    swarms: Sequence[Swarm] = report["swarms"]
    burst = report["config"]["swarm"]["burst"]
    _hops(panels[0][0], swarms)
    _lines(
        panels[0][1], swarms, lambda s: s["burst"]["seconds"]["p95"], "95 % of a burst's entries are held after", "s"
    )
    _lines(
        panels[1][0],
        swarms,
        lambda s: s["burst"]["spent"]["bytes_per_node"] / burst / 1e3,
        "sent by a node for each entry of a burst, everything counted",
        "kB",
    )
    _lines(
        panels[1][1],
        swarms,
        lambda s: s["idle"]["bytes_per_node"] / s["idle"]["seconds"] / 1e3,
        "sent by a node without news",
        "kB/s",
    )
    figure.suptitle(f"{max(s['members'] for s in swarms)} members at most; bursts of {burst} entries")
    return save(figure, folder)


def _hops(panel: Any, swarms: Sequence[Swarm]) -> None:
    """Hops of announcements and pages against what is known of random graphs and rings."""
    for topology, ours in _by_topology(swarms).items():
        xs = [s["members"] for s in ours]
        colour = _COLOURS[topology]
        panel.plot(xs, [s["burst"]["announcement_hops"]["mean"] for s in ours], "o-", color=colour, label=topology)
        panel.plot(xs, [s["burst"]["page_hops"]["mean"] for s in ours], "s--", color=colour, label=f"{topology}: pages")
        if topology != "full":
            known = [s["burst"]["theory"]["hops_mean"] for s in ours]
            panel.plot(xs, known, ":", color=colour, label=f"{topology}: theory")
    _named(panel, "hops of an entry, mean", "", logarithmic=True)


def _lines(panel: Any, swarms: Sequence[Swarm], value: Callable[[Swarm], float], title: str, unit: str) -> None:
    for topology, ours in _by_topology(swarms).items():
        xs = [s["members"] for s in ours]
        panel.plot(xs, [value(s) for s in ours], "o-", color=_COLOURS[topology], label=topology)
    _named(panel, title, unit, logarithmic=all(value(s) > 0 for s in swarms))


def _by_topology(swarms: Sequence[Swarm]) -> dict[str, list[Swarm]]:
    found: dict[str, list[Swarm]] = {}
    for swarm in swarms:
        found.setdefault(swarm["topology"], []).append(swarm)
    return found


def _named(panel: Any, title: str, unit: str, *, logarithmic: bool) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("members")
    panel.set_ylabel(unit)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log" if logarithmic else "linear")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.25, which="both")
