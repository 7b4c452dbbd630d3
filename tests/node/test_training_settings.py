from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keeper import Desk
from seats import Table

from node.cli import render_training
from node.data import residual
from node.sections import AUTO, Train
from node.training import runs, settings
from node.training.runs import Ran
from protocol.ids import Digest, digest

EPOCH, OTHER = digest(b"epoch"), digest(b"other")
BOTH = Train(steps=AUTO, learning_rate=AUTO)
FOUND = {"steps": 5, "planned": 6, "lr": 0.008, "trials": [{"lr": 0.004, "curve": []}, {"lr": 0.008, "curve": []}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def ran(folder: Path, chosen: dict[str, Any], *, run: str = "01", epoch: Digest = EPOCH, moments: bool = True) -> Ran:
    (home := folder / run).mkdir()
    for name in ("view_vector", "theta", "fisher", "moments"):
        np.save(home / f"{name}.npy", np.zeros(2, np.float32))
    made = Ran(
        run=run,
        epoch=epoch,
        view=digest(b"view"),
        view_vector=home / "view_vector.npy",
        theta=home / "theta.npy",
        fisher=home / "fisher.npy",
        datasets=("notes",),
        purpose="model-improvement",
        train_root=digest(b"train"),
        held_out_root=digest(b"held out"),
        train_rows=9,
        steps=5,
        tokens=10,
        seconds=0.1,
        before=4.0,
        after=3.5,
        libraries={},
        moments=home / "moments.npy" if moments else None,
        chosen=chosen,
    )
    runs.keep(home, made)
    return made


def planned(
    config: Train, *before: Ran, epoch: Digest = EPOCH, datasets: tuple[str, ...] = ("notes",), **more: Any
) -> settings.Plan:
    return settings.plan(config, before, epoch=epoch, datasets=datasets, seed=3, **more)


def test_numbers_are_used_as_they_are_and_nothing_is_searched() -> None:
    plan = planned(Train(steps=7, learning_rate=0.01))
    assert (plan.settings["steps"], plan.settings["lr"], plan.settings["seed"]) == (7, 0.01, 3)
    assert plan.tuning is None
    assert planned(Train(early_stop=True)).tuning == {"rate": False, "steps": False, "members": 1}


def test_a_choice_is_searched_for_once_and_remembered_for_the_epoch(folder: Path) -> None:
    first = planned(BOTH)
    assert first.tuning == {"rate": True, "steps": True, "members": 1}
    one = ran(folder, settings.told(BOTH, first, FOUND))
    second = planned(BOTH, one)
    assert second.tuning == {"rate": False, "steps": False, "members": 1}  # still watched, no longer searched
    assert (second.settings["steps"], second.settings["lr"]) == (6, 0.008)
    two = ran(folder, settings.told(BOTH, second, {"steps": 4, "planned": 6, "lr": 0.008, "trials": None}), run="02")
    third = planned(BOTH, two)  # the folder of the search itself is gone by now
    assert (third.settings, third.tuning) == (second.settings, second.tuning)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (BOTH, {"epoch": OTHER}),
        (BOTH, {"datasets": ("notes", "calls")}),
        (BOTH.model_copy(update={"batch": 8}), {}),
        (BOTH.model_copy(update={"steps": 9}), {}),
    ],
)
def test_a_choice_for_another_question_is_searched_for_again(folder: Path, config: Train, more: dict[str, Any]) -> None:
    one = ran(folder, settings.told(BOTH, planned(BOTH), FOUND))
    plan = planned(config, one, **more)
    assert plan.tuning is not None
    assert plan.tuning["rate"]
    assert plan.settings["lr"] == settings.FIRST_RATE


def test_steps_given_for_one_run_are_no_answer_for_the_next(folder: Path) -> None:
    once = planned(BOTH, steps=50)
    assert once.settings["steps"] == 50
    assert once.tuning == {"rate": False, "steps": False, "members": 1}
    one = ran(folder, settings.told(BOTH, once, {"steps": 50, "planned": 50, "lr": 0.004, "trials": None}))
    assert planned(BOTH, one).tuning == {"rate": True, "steps": True, "members": 1}


def test_rows_too_few_to_tune_on_leave_the_question_open(folder: Path) -> None:
    first = planned(BOTH)
    one = ran(
        folder, settings.told(BOTH, first, {"steps": 10, "planned": 10, "lr": 0.004, "trials": None, "untuned": True})
    )
    assert planned(BOTH, one).tuning == {"rate": True, "steps": True, "members": 1}


def test_moments_are_gone_on_from_within_their_epoch_only_and_where_that_is_wanted(folder: Path) -> None:
    one, config = ran(folder, {}), Train()
    assert planned(config, one).moments == one.moments
    assert planned(config, one, epoch=OTHER).moments is None
    assert planned(config.model_copy(update={"keep_moments": False}), one).moments is None
    assert planned(config, replace(one, moments=None)).moments is None
    assert planned(config).moments is None


def test_a_run_kept_on_disk_reads_back_with_what_was_chosen_and_without_moments_too(folder: Path) -> None:
    one = ran(folder, settings.told(BOTH, planned(BOTH), FOUND))
    two = ran(folder, {}, run="02", moments=False)
    assert list(runs.finished(folder)) == [one, two]
    assert one.moments is not None
    residual.forget_moments(folder)
    assert not one.moments.exists()
    assert next(iter(runs.finished(folder))).run == "01"  # the run itself is whole: its moments may be lost


def test_an_operator_reads_what_was_tried_and_why_a_run_ended(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    result = {"run": "01", "steps": 5, "learning_rate": 0.008, "planned": 6, "stopped": True, "trials": FOUND["trials"]}
    render_training.trained(Console(width=200), result)
    said = capsys.readouterr().out
    assert "learning rate 0.008 (tried alone: 0.004, 0.008), 6 steps" in said
    assert "stopped early" in said
    render_training.trained(Console(width=200), {"learning_rate": 0.004, "untuned": True})
    assert "not tuned" in capsys.readouterr().out


def test_a_contribution_says_how_it_was_trained_and_the_next_one_goes_on_from_there(tmp_path: Path) -> None:
    table = Table(tmp_path)
    try:
        desk = Desk(table)
        desk.pupil.chosen = {**FOUND, "curve": [[0, 4.0], [5, 3.0], [6, 3.1]], "resumed": False, "untuned": False}
        first = desk.run(steps=AUTO, learning_rate=AUTO)
        assert (first["steps"], first["planned"], first["learning_rate"]) == (5, 6, 0.008)
        assert (first["trials"], first["stopped"]) == (FOUND["trials"], False)
        assert desk.pupil.jobs[0].tuning == {"rate": True, "steps": True, "members": 3}
        assert desk.pupil.jobs[0].moments is None
        assert desk.rounds.progress["last"] == {"steps": 5, "learning_rate": 0.008}
        desk.pupil.chosen = {"steps": 6, "planned": 6, "lr": 0.008, "trials": None, "resumed": True}
        second = desk.run(steps=AUTO, learning_rate=AUTO)
        asked = desk.pupil.jobs[1]
        assert (asked.settings["steps"], asked.settings["lr"]) == (6, 0.008)
        assert asked.tuning == {"rate": False, "steps": False, "members": 3}
        assert asked.moments == desk.seat.home.run_folder(first["run"]) / "moments.npy"
        assert (second["resumed"], second["trials"]) == (True, None)
    finally:
        table.close()
