"""The report of `fishernet simulate` as tables for people; its shape is that of `node.simulation.report.build`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from node.cli.render import DASH, size, text


def simulation(out: Console, result: Mapping[str, Any]) -> None:
    """Releases, then attackers, then how it ended."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in (
        "release",
        "after",
        "loss",
        "members",
        "gain",
        "new",
        "refused",
        "left out",
        "sent each",
        "all hold it",
    ):
        table.add_column(name, justify="left" if name == "left out" else "right")
    for release in result["releases"]:
        loss, sent = release["loss"], release["sent_per_member"]
        table.add_row(
            str(release["number"]),
            _time(release["simulated_s"]),
            f"{loss['mean']:.3f}" if loss else DASH,
            f"{loss['min']:.2f} to {loss['max']:.2f}" if loss else DASH,
            f"{release['gain']:.3f}" if release["gain"] is not None else DASH,
            str(release["fresh"]),
            str(release["fates"]["refused"]),
            ", ".join(_left_out(x) for x in release["excluded"]) or DASH,
            size(round(sent["mean"])),
            f"{release['converged_s']:.1f} s" if release["converged_s"] is not None else DASH,
        )
    out.print(table)
    for each in result["attackers"]:
        at = each["named_at_release"]
        said = f"named at release {at} ({', '.join(each['reasons'])})" if at else "not named"
        out.print(f"{text(each['member'])}, {text(each['attack'])} from release {each['from_release']}: {said}")
    _ending(out, result)


def _ending(out: Console, result: Mapping[str, Any]) -> None:
    end, honest, network, cost = result["end"], result["honest"], result["network"], result["cost"]
    made = end["contributions"]
    out.print(
        f"{made['published']} contributions: {made['released']} released, {made['pending']} pending, {made['refused']} refused,"
        f" {made['stale']} stale, {made['lost']} lost; of {honest['contributions']} honest ones {honest['refused']} refused"
    )
    total = sum(network["messages"].values())
    out.print(f"{total} messages, {size(sum(network['bytes'].values()))}, {network['lost']} messages lost")
    settled = (
        f"feeds equal {end['settled_s']:.1f} s later" if end["settled_s"] is not None else "feeds never became equal"
    )
    views = "all views equal" if end["equal_views"] else "[bold red]views differ[/]"
    done = "" if end["finished"] else "[bold red]stopped before the last release[/]; "
    out.print(f"{done}{_time(end['simulated_s'])} simulated; {settled}, {views}; {end['kills']} kills")
    for note in result["notes"]:
        out.print(f"[dim]note: {text(note)}[/]")
    out.print(
        f"[dim]{cost['runs']} runs and {cost['evaluations']} measurements in {cost['cpu_s']:.0f} CPU seconds; feeds"
        f" {result['feeds'][:16]}[/]"
    )


def _left_out(exclusion: Mapping[str, Any]) -> str:
    attack = f" {exclusion['attack']}" if exclusion["attack"] else ""
    return text(f"{exclusion['member']}{attack} ({exclusion['reason']})")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
