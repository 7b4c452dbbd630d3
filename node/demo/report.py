"""What the demo found, as one JSON value and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from node.demo.nodes import DemoNode


def build(
    least_gain: float,
    nodes: Sequence[DemoNode],
    losses: Mapping[str, Mapping[str, float]],
    answers: Mapping[str, str],
    audit: Mapping[str, Any],
    phases: Mapping[str, float],
) -> dict[str, Any]:
    """Put the findings together; `holds` says whether all that the demo promises is true."""
    logs = {node.name: node.cli("log")["decisions"] for node in nodes}
    charter = nodes[0].cli("collective", "show")
    digests = {name: [d["digest"] for d in decisions if d["kind"] == "release"] for name, decisions in logs.items()}
    last = [d for d in logs[nodes[0].name] if d["kind"] == "release"]
    dense = 2 * int(charter["adapter"]["coordinates"])
    sent = {
        c["name"]: {
            "bytes": c["bytes"],
            "contributions": c["count"],
            "dense_fp16_bytes": dense * c["count"],
            "times_smaller": round(dense * c["count"] / c["bytes"], 1),
        }
        for c in (last[-1]["contributions"] if last else [])
    }
    releases = sorted({name for by in losses.values() for name in by if name.startswith("release-")})
    gains = {
        name: round(by["base"] - by[releases[-1]], 4) for name, by in losses.items() if releases and releases[-1] in by
    }
    equal = len({tuple(d) for d in digests.values()}) == 1 and len(last) >= 2
    gained = bool(gains) and len(gains) == len(nodes) and all(g >= least_gain for g in gains.values())
    return {
        "holds": equal and gained and audit.get("verdict") == "clean",
        "releases_equal_at_all_nodes": equal,
        "gain_nats": gains,
        "least_gain_nats": least_gain,
        "losses_nats": {name: {k: round(v, 4) for k, v in by.items()} for name, by in losses.items()},
        "release_digests": digests,
        "models": [d["model"] for d in last],
        "votes": [{"height": d["height"], "attempt": d["attempt"], "votes": d["votes"]} for d in last],
        "bytes": sent,
        "audit": {
            "verdict": audit.get("verdict"),
            "findings": audit.get("findings", []),
            "unchecked": audit.get("unchecked", []),
            "releases": audit.get("releases", []),
        },
        "answers": dict(answers),
        "phases_s": dict(phases),
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the result for people."""
    out = Console(highlight=False)
    out.print()
    names = sorted({k for by in result["losses_nats"].values() for k in by if k.startswith("release-")})
    table = _table("Held-out loss of each node, nats per token (lower is better)")
    for label in ("node", "base", "own adapter alone*", *names, "gain"):
        table.add_column(label, justify="left" if label == "node" else "right")
    for node, by in result["losses_nats"].items():
        cells = [_nats(by.get(k)) for k in ("base", "own", *names)]
        table.add_row(node, *cells, _nats(result["gain_nats"].get(node)))
    out.print(table)
    out.print("[dim]* what the node's first run learnt from its own rows, before anything was merged[/]")
    table = _table("Sent by each node, all releases")
    for label in ("node", "bytes", "dense fp16", "smaller"):
        table.add_column(label, justify="left" if label == "node" else "right")
    for node, sent in result["bytes"].items():
        table.add_row(node, f"{sent['bytes']:,}", f"{sent['dense_fp16_bytes']:,}", f"{sent['times_smaller']}x")
    out.print(table)
    table = _table("Wall time")
    table.add_column("phase")
    table.add_column("s", justify="right")
    for phase, seconds in result["phases_s"].items():
        table.add_row(phase, f"{seconds:.1f}")
    out.print(table)
    for model, text in result["answers"].items():
        out.print(f"[bold]{model}[/] {text!r}", markup=True)
    good = "[green]yes[/]" if result["releases_equal_at_all_nodes"] else "[red]no[/]"
    out.print(f"\nequal releases at all nodes: {good}")
    for number, digest in enumerate(next(iter(result["release_digests"].values()), []), 1):
        out.print(f"  release {number}: {digest}")
    verdict = result["audit"]["verdict"]
    out.print(f"audit from outside: [{'green' if verdict == 'clean' else 'red'}]{verdict}[/]")
    out.print("[bold green]everything holds[/]" if result["holds"] else "[bold red]not everything holds[/]")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
