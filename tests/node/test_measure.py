"""The scales: each model is measured once, on the rows as they are, and what leaves is a clipped difference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from seats import PaperTrainer, paper_permits

from contrib.merging import model_digest
from node.collective.measure import WORST, Loss, Scales, difference, save_view
from node.collective.replay import Model
from node.errors import JobRefused
from node.home import Home


def model(*values: float) -> Model:
    vector = np.array(values, dtype=np.float32)
    return Model(vector=vector, digest=model_digest(vector), registers={})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(path=tmp_path)
    found.views.mkdir()
    return found


def scales(home: Home, trainer: PaperTrainer, *datasets: str) -> Scales:
    return Scales(home, trainer, datasets, 200, permits=paper_permits)


def nats(value: float) -> Loss:
    return Loss(nats=value, rows=1, accuracy=None)


def test_a_model_is_measured_once_under_whatever_name(home: Home) -> None:
    trainer = PaperTrainer(lambda v: 4.0 + float(v.sum()))
    on = scales(home, trainer, "notes")
    first = asyncio.run(on.losses({"base": None, "candidate": model(1, 2)}))
    assert first == {
        "base": Loss(nats=4.0, rows=200, accuracy=None),
        "candidate": Loss(nats=7.0, rows=200, accuracy=None),
    }
    again = asyncio.run(on.losses({"parent": model(1, 2), "other": model(3, 0), "base": None}))
    assert {name: loss.nats for name, loss in again.items()} == {"parent": 7.0, "other": 7.0, "base": 4.0}
    assert trainer.asked == [["base", "candidate"], ["other"]]
    assert on.known(None) == first["base"]


def test_rows_that_changed_are_measured_anew(home: Home) -> None:
    trainer = PaperTrainer(lambda _v: 4.0)
    on = scales(home, trainer, "notes")
    asyncio.run(on.losses({"base": None}))
    trainer.loss = lambda _v: 3.0
    on.use(("notes",))
    assert asyncio.run(on.losses({"base": None}))["base"].nats == 3.0


def test_without_data_sets_nothing_is_measured(home: Home) -> None:
    trainer = PaperTrainer(lambda _v: 4.0)
    on = scales(home, trainer)
    assert not on.active
    assert asyncio.run(on.losses({"base": None, "x": model(1)})) == {}
    assert trainer.asked == []


def test_a_loss_that_is_not_finite_is_the_worst_where_that_is_asked_and_an_error_elsewhere(home: Home) -> None:
    trainer = PaperTrainer(lambda v: float("nan") if v.any() else 4.0)
    on = scales(home, trainer, "notes")
    found = asyncio.run(on.losses({"base": None, "poison": model(1), "zero": model(0)}, diverging=True))
    assert {name: loss.nats for name, loss in found.items()} == {"base": 4.0, "poison": WORST, "zero": 4.0}
    assert {loss.rows for loss in found.values()} == {200}
    assert asyncio.run(on.losses({"poison": model(1)}, diverging=True))["poison"].rows == 200
    with pytest.raises(JobRefused):
        asyncio.run(on.losses({"own": model(2)}))
    broken = scales(home, PaperTrainer(lambda _v: float("nan")), "notes")
    with pytest.raises(JobRefused):
        asyncio.run(broken.losses({"base": None, "x": model(1)}, diverging=True))


def test_infinite_losses_of_a_trainer_are_the_worst_too(home: Home) -> None:
    on = scales(home, PaperTrainer(lambda v: float("inf") if v.any() else 4.0), "notes")
    assert asyncio.run(on.losses({"x": model(1)}))["x"].nats == WORST


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [(4.0, 3.995, 0), (4.0, 4.3, -30), (4.0, 3.97, 3), (40.0, 4.0, 1000), (4.0, WORST, -1000), (WORST, WORST, 0)],
)
def test_what_leaves_is_a_difference_in_buckets_and_clipped(mine: float, other: float, expected: int) -> None:
    assert difference(nats(mine), nats(other)) == expected
    assert difference(None, nats(other)) is difference(nats(mine), None) is None


def test_a_view_is_kept_under_its_digest(home: Home) -> None:
    one = model(0.5, -1)
    path = save_view(home, one)
    assert path == home.view_file(one.digest)
    assert np.load(path).tobytes() == one.vector.tobytes()
    assert [p.name for p in home.views.iterdir()] == [path.name]
