"""The report of a simulated swarm as a table for people; its shape is that of `node.simulation.spread.simulate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from node.cli.render import DASH, size, text


def spread(out: Console, result: Mapping[str, Any]) -> None:
    """One row for each swarm, then the notes."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in (
        "members",
        "topology",
        "links",
        "hops",
        "theory",
        "page hops",
        "one entry",
        "burst p95",
        "an entry",
        "idle",
        "join",
    ):
        table.add_column(name, justify="left" if name == "topology" else "right")
    burst = result["config"]["swarm"]["burst"]
    for swarm in result["swarms"]:
        one, many, idle, join = swarm["one"], swarm["burst"], swarm["idle"], swarm["join"]
        hops, pages = many["announcement_hops"], many["page_hops"]
        table.add_row(
            str(swarm["members"]),
            text(swarm["topology"]),
            f"{swarm['connections']['mean']:.0f}",
            f"{hops['mean']:.1f}" if hops else DASH,
            f"{many['theory']['hops_mean']:.1f}",
            f"{pages['mean']:.1f}" if pages else DASH,
            _seconds(one, one["seconds"]["all"]),
            _seconds(many, many["seconds"]["p95"]),
            size(round(many["spent"]["bytes_per_node"] / burst)),
            f"{size(round(idle['bytes_per_node'] / idle['seconds']))}/s",
            f"{join['seconds']:.1f} s" if join else DASH,
        )
    out.print(table)
    for note in result["notes"]:
        out.print(f"[dim]note: {text(note)}[/]")
    out.print(f"[dim]{result['cost']['cpu_s']:.0f} CPU seconds; links of {_delays(result)}[/]")


def _seconds(phase: Mapping[str, Any], seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{seconds:.2f} s" + (f", {phase['missing']} missing" if phase["missing"] else "")


def _delays(result: Mapping[str, Any]) -> str:
    low, high = result["config"]["network"]["delay_ms"]
    return f"{low} to {high} ms"
