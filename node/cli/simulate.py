"""`fishernet simulate`: a whole collective in this process, under a fake network and clock. Needs no home and no peers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from node.cli.options import accepts_common, here, progress_console


@click.command()
@click.argument("config", metavar="CONFIG", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write simulation.json, curves.png and curves.svg there (curves need matplotlib).",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Instead of the one in CONFIG.")
@accepts_common
def simulate(config: Path, out: Path | None, seed: int | None) -> int:
    """Simulate the collective that CONFIG describes: real feeds, votes and merges; fake network, clock and trainer process.

    A CONFIG with a section [swarm] has no votes and no training: the node's own sync runs in up to a thousand simulated nodes, to
    show what an entry and an idle minute cost as the collective grows (bytes and hops per node, seconds of simulated time).

    The same CONFIG and seed give the same feeds and curves. Examples: configs/simulation-*.toml. Ends with code 1 when the
    releases were not reached in the simulated time, or an entry did not reach everybody.
    """
    from node.simulation import spread_config

    if spread_config.is_spread(config):
        return _swarm(spread_config.load(config), out, seed)
    return _collective(config, out, seed)


def _collective(config: Path, out: Path | None, seed: int | None) -> int:
    from node.cli.progress import staged
    from node.cli.render_simulation import simulation
    from node.home import model_cache
    from node.simulation import config as configuration
    from node.simulation import curves, report, world

    wanted = configuration.load(config)
    if seed is not None:
        wanted = configuration.seeded(wanted, seed)
    _ready(out)
    with staged(progress_console()) as progress, tempfile.TemporaryDirectory(prefix="fishernet-simulate-") as folder:
        outcome = world.simulate(wanted, Path(folder), cache=model_cache(), progress=progress)
        result: dict[str, Any] = report.build(outcome)
    _write(out, result)
    if out is not None:
        curves.draw(result, out)
    here().answer(result, simulation)
    _say(out)
    return 0 if result["end"]["finished"] else 1


def _swarm(wanted: Any, out: Path | None, seed: int | None) -> int:
    from node.cli.progress import staged
    from node.cli.render_spread import spread as table
    from node.simulation import spread, spread_config, spread_curves

    if seed is not None:
        wanted = spread_config.seeded(wanted, seed)
    _ready(out)
    with staged(progress_console()) as progress:
        result = spread.simulate(wanted, progress)
    _write(out, result)
    if out is not None:
        spread_curves.draw(result, out)
    here().answer(result, table)
    _say(out)
    return 1 if any(swarm[phase]["missing"] for swarm in result["swarms"] for phase in ("one", "burst")) else 0


def _ready(out: Path | None) -> None:
    from node.simulation import curves

    if out is not None:
        curves.need()
        out.mkdir(parents=True, exist_ok=True)


def _write(out: Path | None, result: Mapping[str, Any]) -> None:
    from node.files import write_new

    if out is not None:
        write_new(out / "simulation.json", (json.dumps(result, indent=1) + "\n").encode())


def _say(out: Path | None) -> None:
    if out is not None and not here().json:
        click.echo(f"written: {out / 'simulation.json'}, curves.png, curves.svg")
