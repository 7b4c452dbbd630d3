import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from contrib import adapters, models
from contrib.adapters import AdapterSpec
from contrib.rows import RowStore, pair_row, text_row

SPEC = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed="0d" * 32)
LOAD = {"job": "load", "model": str(models.tiny_folder()), "spec": SPEC.to_json()}
SETTINGS = {"steps": 4, "batch": 2, "length": 32, "lr": 0.02, "fisher_sequences": 3}


class Child:
    """A real worker process and the lines it says."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "contrib.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.number = 0

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, **job):
        """The events of one job; the last is done or error."""
        self.number += 1
        self.send(json.dumps({"id": self.number, **job}))
        events = [self.read()]
        while events[-1]["event"] not in ("done", "error"):
            events.append(self.read())
        assert {event["id"] for event in events} == {self.number}
        return events

    def end(self):
        self.process.stdin.close()
        rest = self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(timeout=120), rest

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def child():
    started = Child()
    try:
        assert started.ask(**LOAD)[-1]["event"] == "done"
        yield started
        assert started.end() == (0, "")
    finally:
        started.kill()


@pytest.fixture
def fresh():
    started = Child()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.db"
    with RowStore.open(path) as store:
        store.add("fevers", [text_row(f"A fever of {n} degrees for {n % 7} days.") for n in range(60)], 300_000)
        store.add("signs", [pair_row(f"Is {n} even?", "no" if n % 2 else "yes") for n in range(60)], 300_000)
    return str(path)


def test_load_tells_shape_and_libraries(child):
    done = child.ask(**LOAD)[-1]
    assert done["coordinates"] == adapters.layout(models.tiny_folder(), SPEC).coordinates
    assert set(done["libraries"]) == {"torch", "transformers", "peft"}


def test_training_reports_steps_and_leaves_theta_and_fisher(child, rows, tmp_path):
    out = tmp_path / "run"
    events = child.ask(job="train", rows=rows, datasets=["fevers"], view=None, settings=SETTINGS, out=str(out))
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert all(event["steps"] == 4 and event["loss"] > 0 for event in steps)
    assert [event["step"] for event in events if event["event"] == "fisher"] == [3]
    done = events[-1]
    theta, felt = np.load(done["theta"]), np.load(done["fisher"])
    assert theta.shape == felt.shape == (adapters.layout(models.tiny_folder(), SPEC).coordinates,)
    assert theta.any()
    assert (felt >= 0).all()
    assert sorted(os.listdir(out)) == ["fisher.npy", "theta.npy"]
    assert done["tokens"] > 0
    assert done["seconds"] > 0


def test_views_are_measured_by_name(child, rows, tmp_path):
    out = str(tmp_path)
    theta = child.ask(job="train", rows=rows, datasets=["fevers"], view=None, settings=SETTINGS, out=out)[-1]["theta"]
    views = {"base": None, "mine": theta}
    events = child.ask(job="evaluate", rows=rows, datasets=["fevers", "signs"], views=views, max_rows=20, length=32)
    assert [event["view"] for event in events[:-1]] == ["base", "mine"]
    found = events[-1]["views"]
    assert set(found["base"]) == {"nats", "tokens", "rows", "accuracy"}
    assert found["base"]["rows"] == found["mine"]["rows"] == 20
    assert found["mine"]["nats"] < found["base"]["nats"]
    assert 0 <= found["base"]["accuracy"] <= 1


def test_garbage_is_answered_and_the_next_job_runs(child):
    for line in ("not json", "[1]", "17", "[" * 5000):
        child.send(line)
        assert child.read()["code"] == "bad-job"
    assert child.ask(**LOAD)[-1]["event"] == "done"


def bad_jobs(rows):
    train = {
        "job": "train",
        "rows": rows,
        "datasets": ["fevers"],
        "view": None,
        "settings": SETTINGS,
        "out": "/dev/null/x",
    }
    measure = {"job": "evaluate", "rows": rows, "datasets": ["fevers"], "views": {"base": None}}
    return {
        "unknown-job": ({"job": "dance"}, "bad-job"),
        "unknown-setting": ({**train, "settings": {"stepz": 1}}, "bad-job"),
        "setting-of-another-type": ({**train, "settings": {"steps": "4"}}, "bad-job"),
        "no-data-sets": ({**train, "datasets": []}, "bad-job"),
        "unknown-data-set": ({**train, "datasets": ["absent"]}, "unknown-dataset"),
        "row-store-missing": ({**train, "rows": rows + ".absent"}, "rows-damaged"),
        "view-missing": ({**train, "view": rows + ".npy"}, "bad-adapter"),
        "view-is-no-vector": ({**train, "view": rows}, "bad-adapter"),
        "out-cannot-be-written": (train, "worker-fault"),
        "no-views": ({**measure, "views": {}}, "bad-job"),
        "no-rows-asked": ({**measure, "max_rows": 0}, "bad-job"),
        "short-sequences": ({**measure, "length": 2}, "bad-job"),
    }


@pytest.mark.parametrize("name", bad_jobs(""))
def test_bad_job_is_an_error_event_and_costs_nothing_else(child, rows, name):
    job, code = bad_jobs(rows)[name]
    event = child.ask(**job)[-1]
    assert (event["event"], event["code"]) == ("error", code), event
    assert event["message"].startswith("couldn't ")
    good = child.ask(job="evaluate", rows=rows, datasets=["fevers"], views={"base": None}, max_rows=2, length=32)
    assert good[-1]["event"] == "done"


def test_job_before_load_and_bad_model_are_errors(fresh, rows, tmp_path):
    first = fresh.ask(job="evaluate", rows=rows, datasets=["fevers"], views={"base": None})
    assert first[-1]["code"] == "bad-job"
    assert fresh.ask(**{**LOAD, "model": str(tmp_path)})[-1]["code"] == "wrong-model"
    assert fresh.ask(**{**LOAD, "spec": {"rank": 4}})[-1]["code"] == "bad-adapter"
    assert fresh.end() == (0, "")


def test_killed_worker_leaves_no_half_result(fresh, rows, tmp_path):
    fresh.ask(**LOAD)
    out = tmp_path / "run"
    settings = {**SETTINGS, "steps": 100_000}
    job = {"id": 1, "job": "train", "rows": rows, "datasets": ["fevers"], "settings": settings, "out": str(out)}
    fresh.send(json.dumps(job))
    assert fresh.read()["event"] == "step"
    fresh.process.send_signal(signal.SIGTERM)  # no handler: the default ends it at once
    assert fresh.process.wait(timeout=60) == -signal.SIGTERM
    assert not out.exists()


def test_what_libraries_print_does_not_reach_the_events():
    code = (
        "import sys, os; from contrib import worker\n"
        "worker.Worker.serve = lambda self, lines: (print('noise'), os.write(1, b'more'), self.answer('{}'))\n"
        "worker.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="", timeout=150)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["error"]
    assert "noise" in done.stderr
    assert "more" in done.stderr


def test_worker_starts_without_torch():
    code = "import sys, contrib.worker; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
