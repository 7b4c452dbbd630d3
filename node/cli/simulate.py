"""`fishernet simulate`: a whole collective in this process, under a fake network and clock. Needs no home and no peers."""

from __future__ import annotations

import json
import tempfile
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

    The same CONFIG and seed give the same feeds and curves. Examples: configs/simulation-*.toml. Ends with code 1 when the
    releases were not reached in the simulated time.
    """
    from node.cli.progress import staged
    from node.cli.render_simulation import simulation
    from node.files import write_new
    from node.home import model_cache
    from node.simulation import config as configuration
    from node.simulation import curves, report, world

    wanted = configuration.load(config)
    if seed is not None:
        wanted = configuration.seeded(wanted, seed)
    if out is not None:
        curves.need()
        out.mkdir(parents=True, exist_ok=True)
    with staged(progress_console()) as progress, tempfile.TemporaryDirectory(prefix="fishernet-simulate-") as folder:
        outcome = world.simulate(wanted, Path(folder), cache=model_cache(), progress=progress)
        result: dict[str, Any] = report.build(outcome)
    if out is not None:
        write_new(out / "simulation.json", (json.dumps(result, indent=1) + "\n").encode())
        curves.draw(result, out)
    here().answer(result, simulation)
    if out is not None and not here().json:
        click.echo(f"written: {out / 'simulation.json'}, curves.png, curves.svg")
    return 0 if result["end"]["finished"] else 1
