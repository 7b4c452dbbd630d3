"""`fishernet recipes`: what a charter can name, for people and for programs, without a node."""

from __future__ import annotations

import json

import pytest

from contrib.recipes import RECIPES
from node import cli


def test_every_recipe_is_listed_with_its_paper_and_whether_a_charter_may_name_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["recipes", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["recipes"]}
    assert list(found) == list(RECIPES)
    assert all(one["paper"] and one["about"] and one["absent"] and one["breakdown"] for one in found.values())
    assert {name for name, one in found.items() if not one["charter"]} == {n for n, r in RECIPES.items() if r.needs}
    assert found["ties/1"]["parameters"]["keep"] == {"default": 200, "low": 1, "high": 1000}
    assert cli.run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)


def test_one_recipe_is_shown_with_the_parameters_that_were_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "guarded-mean/1:clip=900"]) == 0
    shown = capsys.readouterr().out
    assert "900 (default 1000, 1 to 100000)" in shown
    assert "2000 (default 2000" in shown
    assert "arXiv:1911.07963" in shown
    assert cli.run(["recipes", "lorahub/1"]) == 0
    assert "needs losses" in capsys.readouterr().out


def test_an_unknown_recipe_is_refused_with_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "median/9"]) == 1
    assert "`fishernet recipes` lists them" in capsys.readouterr().err
