"""`fishernet recipes [NAME]`: the ways contributions can be merged, for a charter and for experiments. Needs no node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from node.cli import completing
from node.cli.options import accepts_common, here
from protocol.canon import Json

if TYPE_CHECKING:
    from rich.console import Console

    from contrib.recipes import Recipe
    from node.cli.render import Result


_EXAMPLES: Final = """\b
For example:  fishernet recipes trimmed-mean/1
              fishernet collective create --name ours --recipe guarded-mean/1:clip=1500,floor=3000
              fishernet collective amend recipe=trimmed-mean/1:cut=300
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False, shell_complete=completing.recipes)
@accepts_common
def recipes(name: str | None) -> None:
    """List the recipes, or show one: its paper, what it means by what was not sent, what it withstands.

    A charter takes a recipe as NAME, or NAME:KEY=INTEGER,... with keys in alphabetical order. Shares are in permille. What
    needs more than contributions cannot stand in a charter.
    """
    from contrib import recipes as known

    if name is None:
        here().answer({"recipes": [_shown(recipe) for recipe in known.RECIPES.values()]}, _list)
    else:
        chosen = known.parse(name)
        here().answer({**_shown(chosen.recipe), "chosen": dict(chosen.parameters)}, _one)


def _shown(recipe: Recipe) -> dict[str, Json]:
    return {
        "name": recipe.name,
        "about": recipe.about,
        "paper": recipe.paper,
        "absent": recipe.absent,
        "breakdown": recipe.breakdown,
        "equal": recipe.equal,
        "exact": recipe.exact,
        "tolerance_micronats": round(recipe.tolerance * 1_000_000),
        "needs": sorted(recipe.needs),
        "charter": not recipe.needs,
        "parameters": {
            key: {"default": value, "low": recipe.bounds[key][0], "high": recipe.bounds[key][1]}
            for key, value in recipe.parameters.items()
        },
    }


def _list(out: Console, result: Result) -> None:
    from node.cli.render import Column, table, text

    columns: list[Column] = [
        ("recipe", lambda row: text(row["name"])),
        ("what", lambda row: text(row["about"])),
        ("parameters", lambda row: text(",".join(f"{key}={one['default']}" for key, one in row["parameters"].items()))),
        ("charter", lambda row: "yes" if row["charter"] else f"no, needs {', '.join(row['needs'])}"),
    ]
    table(out, "", result["recipes"], columns, "")


def _one(out: Console, result: Result) -> None:
    from node.cli.render import text

    charter = "yes" if result["charter"] else f"no, needs {', '.join(result['needs'])}"
    bytes_ = "the same on every machine"
    if not result["exact"]:
        bytes_ = (
            f"for the same losses; machines whose losses differ agree to {result['tolerance_micronats'] / 1e6} nats"
        )
    lines = [("recipe", result["name"]), ("what", result["about"]), ("paper", result["paper"])]
    lines += [
        ("not sent", result["absent"]),
        ("withstands", result["breakdown"]),
        ("equals give", result["equal"]),
        ("bytes", bytes_),
        ("charter", charter),
    ]
    lines += [
        (key, f"{result['chosen'][key]} (default {one['default']}, {one['low']} to {one['high']})")
        for key, one in result["parameters"].items()
    ]
    for label, value in lines:
        out.print(f"[bold]{label:<12}[/]{text(value)}")
