"""The arithmetic of the table of merges (benchmarks/rows.py, figures.py): shares, spreads, points and floors, on made-up rows."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import figures
    import rows

    return rows, figures


def row(rows: ModuleType, **given: object) -> object:
    plain = {"part": "selector", "name": "x", "budget": "1/30", "size": 100.0, "gains": (0.5,), "dense": (1.0,)}
    return rows.Row(**{**plain, "against": "dense", **given})


def test_seeds_of_one_row_are_joined_and_their_spread_is_the_sample_deviation(table):
    rows, _ = table
    (one,) = rows.joined([row(rows, gains=(0.9,), size=90.0), row(rows, gains=(1.0,), dense=(2.0,), size=110.0)])
    assert one.kept == (0.9, 0.5)
    assert one.mean == pytest.approx(0.7)
    assert one.spread == pytest.approx(0.4 / 2**0.5)
    assert one.size == 100.0


def test_rows_of_another_budget_or_part_stay_apart(table):
    rows, _ = table
    assert len(rows.joined([row(rows), row(rows, budget="1/8"), row(rows, part="recipe"), row(rows)])) == 3


def test_the_file_gives_back_what_was_kept_and_replaces_only_rows_that_ran_again(table, tmp_path):
    rows, _ = table
    file = tmp_path / "merging.json"
    rows.save(file, "tiny", {"seeds": 1}, [row(rows, losses=((2.0, 1.5),)), row(rows, part="recipe", name="mean")])
    rows.save(file, "smollm2-135m", {"seeds": 1}, [row(rows, name="other")])
    rows.save(file, "tiny", {"seeds": 1}, [row(rows, part="recipe", name="ties", gains=(), dense=(), note="not run")])
    rows.save(file, "tiny", {"seeds": 2}, [row(rows, part="recipe", name="mean", gains=(0.6, 0.7), dense=(1.0, 1.0))])
    found = {(one.part, one.name): one.gains for one in rows.load(file, "tiny")}
    assert found == {("selector", "x"): (0.5,), ("recipe", "mean"): (0.6, 0.7), ("recipe", "ties"): ()}
    assert next(one for one in rows.load(file, "tiny") if one.part == "selector").losses == ((2.0, 1.5),)
    assert [one.name for one in rows.load(file, "smollm2-135m")] == ["other"]


def test_a_row_that_did_not_run_stands_last_and_never_as_a_number(table):
    rows, _ = table
    shown = rows.lines(
        [row(rows, name="none", gains=(), dense=(), note="not run"), row(rows, name="low", gains=(0.1,))]
    )
    assert [line[1] for line in shown] == ["low", "none"]
    assert shown[1][2] == "-"


def test_points_over_flower_count_only_rows_at_a_thirtieth_of_its_bytes(table):
    rows, figures = table
    theirs = row(rows, part="flower", name="Flower FedAvg", size=3000.0, gains=(1.0, 2.0), dense=(1.0, 2.0))
    ours = row(rows, part="rounds named", name="small", size=100.0, gains=(0.99, 2.02), dense=(1.0, 2.0))
    large = row(rows, part="rounds named", name="large", size=101.0, gains=(2.0, 4.0), dense=(1.0, 2.0))
    found = {figure.id: figure for figure in figures.figures("smollm2-135m", [theirs, ours, large])}
    assert found["merging.smollm2-135m.points-over-flower (small)"].value == pytest.approx(0.0)
    assert found["merging.smollm2-135m.flower-bytes-over-ours"].value == pytest.approx(30.0)


def test_the_floor_against_flower_falls_just_below_one_point(table):
    rows, figures = table
    theirs = row(rows, part="flower", size=3000.0)

    def held(gain: float) -> bool:
        own = row(rows, part="rounds named", name="own", gains=(gain,))
        return next(f.holds for f in figures.figures("smollm2-135m", [theirs, own]) if "points" in f.id)

    assert held(0.4951)
    assert not held(0.4949)


def test_saliency_is_behind_magnitude_when_its_best_row_is(table):
    rows, figures = table
    kept = {
        "fisher-r2 int8": 0.5,
        "root-fisher-rows int1": 0.7,
        "fisher int1": 0.9,
        "magnitude int8": 0.6,
        "magnitude int1": 0.71,
    }
    found = figures.figures("smollm2-135m", [row(rows, name=name, gains=(gain,)) for name, gain in kept.items()])
    (margin,) = [figure for figure in found if "saliency" in figure.id]
    assert margin.value == pytest.approx(-0.01)
    assert not margin.holds
