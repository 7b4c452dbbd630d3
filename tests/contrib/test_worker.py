import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from permits import to_measure, to_train

from contrib import adapters, models
from contrib.adapters import AdapterSpec
from contrib.rows import RowStore, pair_row, text_row
from contrib.splitting import part_of
from contrib.worker import Worker

SPEC = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed="0d" * 32)
LOAD = {"job": "load", "model": str(models.tiny_folder()), "spec": SPEC.to_json()}
KEY = bytes(range(32))
SETTINGS = {"steps": 4, "batch": 2, "length": 32, "lr": 0.02, "fisher_sequences": 3}


def train(*names, **terms):
    return {name: to_train(name, **terms).to_json() for name in names}


def measure(*names, **terms):
    return {name: to_measure(name, **terms).to_json() for name in names}


TRAIN = {"job": "train", "datasets": ["fevers"], "permits": train("fevers")}
MEASURE = {"job": "evaluate", "datasets": ["fevers"], "permits": measure("fevers")}


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
    assert set(done["libraries"]) == {"torch"}  # another family is computed by transformers and peft too, and says so


def test_training_reports_steps_and_leaves_theta_and_fisher(child, rows, tmp_path):
    out = tmp_path / "run"
    events = child.ask(**TRAIN, rows=rows, view=None, settings=SETTINGS, out=str(out))
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert all(event["steps"] == 4 and event["loss"] > 0 for event in steps)
    assert [event["step"] for event in events if event["event"] == "fisher"] == [3]
    done = events[-1]
    theta, felt = np.load(done["theta"]), np.load(done["fisher"])
    assert theta.shape == felt.shape == (adapters.layout(models.tiny_folder(), SPEC).coordinates,)
    assert theta.any()
    assert (felt >= 0).all()
    assert sorted(os.listdir(out)) == ["fisher.npy", "moments.npy", "theta.npy"]
    assert done["tokens"] > 0
    assert done["seconds"] > 0


def test_views_are_measured_by_name(child, rows, tmp_path):
    out = str(tmp_path)
    theta = child.ask(**TRAIN, rows=rows, view=None, settings=SETTINGS, out=out)[-1]["theta"]
    views = {"base": None, "mine": theta}
    permits = measure("fevers", "signs")
    job = {**MEASURE, "datasets": ["fevers", "signs"], "permits": permits, "views": views}
    events = child.ask(**job, rows=rows, max_rows=20, length=32)
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
    learn = {**TRAIN, "rows": rows, "view": None, "settings": SETTINGS, "out": "/dev/null/x"}
    weigh = {**MEASURE, "rows": rows, "views": {"base": None}}
    return {
        "unknown-job": ({"job": "dance"}, "bad-job"),
        "unknown-setting": ({**learn, "settings": {"stepz": 1}}, "bad-job"),
        "setting-of-another-type": ({**learn, "settings": {"steps": "4"}}, "bad-job"),
        "no-data-sets": ({**learn, "datasets": []}, "bad-job"),
        "unknown-data-set": ({**learn, "datasets": ["absent"]}, "unknown-dataset"),
        "row-store-missing": ({**learn, "rows": rows + ".absent"}, "rows-damaged"),
        "view-missing": ({**learn, "view": rows + ".npy"}, "bad-adapter"),
        "view-is-no-vector": ({**learn, "view": rows}, "bad-adapter"),
        "out-cannot-be-written": (learn, "worker-fault"),
        "no-permit": ({**learn, "permits": {}}, "not-permitted"),
        "permit-of-another-data-set": ({**learn, "permits": {"fevers": train("signs")["signs"]}}, "not-permitted"),
        "permit-of-another-action": ({**learn, "permits": measure("fevers")}, "not-permitted"),
        "permit-to-train-for-measuring": ({**weigh, "permits": train("fevers")}, "not-permitted"),
        "permit-that-has-expired": ({**learn, "permits": train("fevers", expires_ms=1)}, "not-permitted"),
        "permit-that-makes-no-sense": ({**learn, "permits": {"fevers": {}}}, "bad-permit"),
        "permits-are-no-object": ({**learn, "permits": [1]}, "bad-job"),
        "key-that-is-none": ({**learn, "key": "secret"}, "rows-sealed"),
        "no-views": ({**weigh, "views": {}}, "bad-job"),
        "no-rows-asked": ({**weigh, "max_rows": 0}, "bad-job"),
        "short-sequences": ({**weigh, "length": 2}, "bad-job"),
    }


@pytest.mark.parametrize("name", bad_jobs(""))
def test_bad_job_is_an_error_event_and_costs_nothing_else(child, rows, name):
    job, code = bad_jobs(rows)[name]
    event = child.ask(**job)[-1]
    assert (event["event"], event["code"]) == ("error", code), event
    assert event["message"].startswith("couldn't ")
    good = child.ask(**MEASURE, rows=rows, views={"base": None}, max_rows=2, length=32)
    assert good[-1]["event"] == "done"


def test_job_before_load_and_bad_model_are_errors(fresh, rows, tmp_path):
    first = fresh.ask(**MEASURE, rows=rows, views={"base": None})
    assert first[-1]["code"] == "bad-job"
    assert fresh.ask(**{**LOAD, "model": str(tmp_path)})[-1]["code"] == "wrong-model"
    assert fresh.ask(**{**LOAD, "spec": {"rank": 4}})[-1]["code"] == "bad-adapter"
    assert fresh.end() == (0, "")


def test_killed_worker_leaves_no_half_result(fresh, rows, tmp_path):
    fresh.ask(**LOAD)
    out = tmp_path / "run"
    settings = {**SETTINGS, "steps": 100_000}
    job = {"id": 1, **TRAIN, "rows": rows, "settings": settings, "out": str(out)}
    fresh.send(json.dumps(job))
    assert fresh.read()["event"] == "step"
    fresh.process.send_signal(signal.SIGTERM)  # no handler: the default ends it at once
    assert fresh.process.wait(timeout=60) == -signal.SIGTERM
    assert not out.exists()


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    """A sealed store in which most rows, and the prompts of all, are none of the worker's business."""
    path = tmp_path_factory.mktemp("sealed") / "rows.db"
    rows = [replace(pair_row(f"CANARY prompt {n}", f"open answer {n}"), tags=("open",)) for n in range(60)]
    secret = [replace(pair_row(f"CANARY {n}", f"CANARY answer {n % 2}"), tags=("secret",)) for n in range(60)]
    with RowStore.open(path, key=KEY) as store:
        store.add("d", [*rows, *secret], 300_000)
    return str(path)


def test_canaries_outside_the_permit_reach_no_result_of_a_job(child, canaries, tmp_path):
    narrow = {"tags_all": ("open",), "columns": ("completion",)}
    common = {"rows": canaries, "datasets": ["d"], "key": KEY.hex()}
    made = {}
    for name, terms in (("narrow", narrow), ("wide", {})):
        out = tmp_path / name
        trained = child.ask(
            job="train", **common, permits=train("d", **terms), view=None, settings=SETTINGS, out=str(out)
        )
        measured = child.ask(job="evaluate", **common, permits=measure("d", **terms), views={"base": None}, length=32)
        assert (trained[-1]["event"], measured[-1]["event"]) == ("done", "done")
        files = b"".join(file.read_bytes() for file in sorted(out.iterdir()))
        assert "CANARY" not in json.dumps([trained, measured])
        assert b"CANARY" not in files
        made[name] = (trained[-1]["tokens"], measured[-1]["views"]["base"])
    assert made["narrow"][1]["rows"] < made["wide"][1]["rows"]
    held = [n for n in range(60) if part_of(pair_row(f"CANARY prompt {n}", "x").split_key(), 300_000) == "held_out"]
    with RowStore.open(tmp_path / "only.db") as store:
        store.add("d", [pair_row("", f"open answer {n}") for n in held], 1_000_000)
    only = {"rows": str(tmp_path / "only.db"), "datasets": ["d"], "permits": measure("d")}
    alone = child.ask(job="evaluate", **only, views={"base": None}, length=32)[-1]["views"]["base"]
    assert made["narrow"][1] == alone, (
        "a store that holds what the permit shows, and nothing else, gives the same numbers"
    )


def test_data_key_comes_with_the_job_and_stands_nowhere_else(child, canaries, tmp_path):
    job = {**TRAIN, "rows": canaries, "datasets": ["d"], "permits": train("d"), "view": None, "settings": SETTINGS}
    out = str(tmp_path / "run")
    assert child.ask(**job, out=out)[-1]["code"] == "rows-sealed"
    assert child.ask(**job, out=out, key=("00" * 32))[-1]["code"] == "rows-sealed"
    assert child.ask(**job, out=out, key=KEY.hex())[-1]["event"] == "done"
    wrong = child.ask(**{**job, "settings": {"steps": 0}}, out=out, key=KEY.hex())
    assert wrong[-1]["event"] == "error"
    assert KEY.hex() not in json.dumps(wrong)
    process = Path(f"/proc/{child.process.pid}")
    if process.exists():
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert KEY.hex().encode() not in told
        assert KEY not in told
    assert child.ask(**job, out=out)[-1]["code"] == "rows-sealed", "no job inherits the key of another"


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


def test_a_fault_never_repeats_the_words_of_a_row():
    class Broken(Worker):
        def _run(self, job, emit):
            raise ValueError("CANARY")

    out = io.StringIO()
    Broken(out).answer('{"id":1,"job":"train"}')
    event = json.loads(out.getvalue())
    assert (event["event"], event["code"]) == ("error", "worker-fault")
    assert "ValueError at test_worker.py:" in event["message"]
    assert "CANARY" not in event["message"]


def test_worker_starts_without_torch():
    code = "import sys, contrib.worker; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tuned_run_tells_its_trials_and_what_it_chose_and_is_repeatable(child, rows, tmp_path):
    job = {**TRAIN, "rows": rows, "view": None, "settings": {**SETTINGS, "fisher_sequences": 0}}
    tuned = {"tuning": {"rate": True, "steps": False, "sequences": 4}}
    events = child.ask(**job, **tuned, out=str(tmp_path / "one"))
    done, trials = events[-1], [event for event in events if event["event"] == "trial"]
    assert [trial["trial"] for trial in trials] == list(range(1, len(trials) + 1))
    assert done["trials"] == [{"lr": trial["lr"], "curve": trial["curve"]} for trial in trials]
    assert 3 <= len(trials) <= trials[0]["most"] == 5
    assert done["lr"] in [trial["lr"] for trial in trials]
    assert done["steps"] <= done["planned"] == 4
    assert not any(event["event"] == "fisher" for event in events)  # Adam's own estimate
    again = child.ask(**job, **tuned, out=str(tmp_path / "two"))[-1]
    assert (again["lr"], again["trials"], again["curve"]) == (done["lr"], done["trials"], done["curve"])
    for name in ("theta", "fisher", "moments"):
        assert Path(again[name]).read_bytes() == Path(done[name]).read_bytes()


def test_a_run_goes_on_from_moments_and_one_that_cannot_begins_anew(child, rows, tmp_path):
    job = {**TRAIN, "rows": rows, "view": None, "settings": {**SETTINGS, "fisher_sequences": 0}}
    first = child.ask(**job, out=str(tmp_path / "first"))[-1]
    second = child.ask(**job, moments=first["moments"], out=str(tmp_path / "second"))[-1]
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert Path(second["theta"]).read_bytes() != Path(first["theta"]).read_bytes()
    np.save(tmp_path / "other.npy", np.zeros(7, np.float32))
    (tmp_path / "broken.npy").write_bytes(Path(first["moments"]).read_bytes()[:100])
    for name in ("other.npy", "broken.npy", "absent.npy"):
        anew = child.ask(**job, moments=str(tmp_path / name), out=str(tmp_path / "anew"))[-1]
        assert not anew["resumed"]
        assert Path(anew["theta"]).read_bytes() == Path(first["theta"]).read_bytes()


def test_too_few_rows_to_tune_on_are_told_and_trained_on(child, tmp_path):
    with RowStore.open(tmp_path / "few.db") as store:
        store.add("fevers", [text_row("A fever of 40 degrees."), text_row("A fever of 39 degrees.")], 0)
    job = {**TRAIN, "rows": str(tmp_path / "few.db"), "view": None, "settings": SETTINGS}
    done = child.ask(**job, tuning={"rate": True}, out=str(tmp_path / "run"))[-1]
    assert (done["untuned"], done["trials"], done["lr"]) == (True, None, SETTINGS["lr"])


@pytest.mark.parametrize("tuning", [[], {"rates": True}, {"rate": 1}, {"sequences": 2}, {"sequences": "many"}])
def test_a_tuning_that_makes_no_sense_is_refused(child, rows, tmp_path, tuning):
    job = {**TRAIN, "rows": rows, "view": None, "settings": SETTINGS}
    assert child.ask(**job, tuning=tuning, out=str(tmp_path / "run"))[-1]["code"] == "bad-job"
