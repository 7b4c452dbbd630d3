"""The engine takes jobs as lines, answers each once, and changes its base without losing a request."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from contrib.adapters import AdapterSpec, layout
from contrib.merging import model_digest
from contrib.models import tiny_folder
from node.ports import Chat, Piece, Prompt, Sampling, Tokens, TokenScore, Usage
from node.serving import lines
from node.serving.engine.inbox import Inbox, Output
from node.serving.engine.loop import GRACE, Engine, Settings
from node.serving.engine.scheduler import Limits

PROMPT = "The people of the United States"
SPEC = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "seed": "5e" * 32}
OLD, NEW = "01" * 32, "02" * 32


class Process:
    """The engine's two threads in this process: jobs are written, events read; time is the test's."""

    def __init__(self, **options: Any) -> None:
        torch.set_num_threads(1)
        self.stream = io.StringIO()
        self.now = 0.0
        output = Output(self.stream)
        self.engine = Engine(output.reports(), Settings(**{"rows": 4, **options}), output.flush, lambda: self.now)
        self.inbox = Inbox(self.engine, output)
        self.numbers = itertools.count(1)

    def send(self, **job: Any) -> int:
        number = next(self.numbers)
        self.inbox.take({"id": number, **job})
        return number

    def ask(self, **job: Any) -> int:
        return self.send(**{"job": "generate", "prompt": PROMPT, "max_tokens": 12, **job})

    def events(self, number: int) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [event for event in found if event["id"] == number]

    def last(self, number: int) -> dict[str, Any] | None:
        events = self.events(number)
        return events[-1] if events and events[-1]["event"] in ("done", "error") else None

    def text(self, number: int) -> str:
        return "".join(event.get("text", "") for event in self.events(number))

    def wait(self, *numbers: int, until: Callable[[], bool] | None = None) -> list[dict[str, Any]]:
        """Turn until all these have ended; a pause while something is read in another thread."""
        for _ in range(20000):
            if all(self.last(number) for number in numbers) and (until is None or until()):
                return [event for number in numbers if (event := self.last(number))]
            if not self.engine.turn():
                time.sleep(0.002)
            self.now += 0.001
        raise AssertionError("a job did not end")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two base models of one shape."""
    other = tmp_path_factory.mktemp("base") / "other"
    shutil.copytree(tiny_folder(), other)
    weights = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    shaken = {n: (w + 0.02 * torch.randn(w.shape, generator=generator)).to(w.dtype) for n, w in weights.items()}
    save_file(shaken, other / "model.safetensors", metadata={"format": "pt"})
    return tiny_folder(), other


@pytest.fixture
def process(bases: tuple[Path, Path]) -> Process:
    found = Process()
    (done,) = found.wait(found.send(job="load", model=str(bases[0]), base=OLD, spec=SPEC))
    assert done["event"] == "done"
    assert done["context"] == 512
    return found


def adapter(folder: Path, seed: int) -> dict[str, str]:
    count = layout(tiny_folder(), AdapterSpec.parse(SPEC)).coordinates
    values = np.random.default_rng(seed).normal(0, 0.3, count).astype(np.float32)
    np.save(folder / f"{seed}.npy", values)
    return {"vector": str(folder / f"{seed}.npy"), "digest": model_digest(values)}


def test_base_changes_under_load_and_no_request_fails(
    process: Process, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    versions: list[dict[str, str]] = [{}, adapter(tmp_path, 1)]
    long = [process.ask(**version, base=OLD, max_tokens=150) for version in versions]
    process.wait(until=lambda: all(process.events(number) for number in long))
    during: list[int] = []
    with process.engine._loading:  # the disk is slow
        loading = process.send(job="load", model=str(bases[1]), base=NEW, spec=SPEC)
        for turn in range(4):  # a client that has not heard of the new base asks for the old one all the time
            during.append(process.ask(**versions[turn % 2], base=OLD))
            process.wait(during[-1])
    while process.last(loading) is None:
        during.append(process.ask(**versions[len(during) % 2], base=OLD))
        process.wait(during[-1])
    assert process.last(loading)["event"] == "done"  # type: ignore[index]
    late, fresh = process.ask(base=OLD), process.ask(base=NEW)
    unnamed = process.ask()
    process.wait(*long, *during, late, fresh, unnamed)
    ends = {number: process.last(number) for number in (*long, *during, late, fresh, unnamed)}
    assert {end["event"] for end in ends.values() if end} == {"done"}
    digests = {number: end["digest"] for number, end in ends.items() if end}
    assert digests[late] == OLD
    assert digests[fresh] == digests[unnamed] == NEW
    assert process.text(fresh) == process.text(unnamed) != process.text(late)
    assert process.text(long[0]).startswith(process.text(late)), "what had begun on the old base ended on it"
    for number in during:
        assert process.text(number) == process.text(during[0 if digests[number] == OLD else 1])
    process.now += GRACE
    process.engine.turn()
    (gone,) = process.wait(process.ask(base=OLD))
    assert gone["code"] == "wrong-base"
    assert process.engine.stats()["bases"] == 1


def test_adapter_runs_only_on_the_base_it_was_made_for(
    process: Process, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    version = adapter(tmp_path, 1)
    before = process.ask(**version, base=OLD)
    process.wait(before, process.send(job="load", model=str(bases[1]), base=NEW, spec=SPEC))
    after = process.ask(**version, base=OLD)
    process.wait(after)
    assert process.text(after) == process.text(before)
    assert process.last(after)["digest"] == version["digest"]  # type: ignore[index]
    (refused,) = process.wait(process.ask(**version, base="03" * 32))
    assert refused["code"] == "wrong-base"


def test_base_that_cannot_be_loaded_leaves_the_old_one_serving(process: Process, tmp_path: Path) -> None:
    before = process.ask()
    process.wait(before)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder(), broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    for folder in (broken, tmp_path / "nowhere"):
        (failed,) = process.wait(process.send(job="load", model=str(folder), base=NEW, spec=SPEC))
        assert failed["event"] == "error"
        assert "couldn't" in failed["message"]
    after = process.ask()
    process.wait(after)
    assert process.text(after) == process.text(before)


def test_every_job_ends_once_whatever_it_is(process: Process, tmp_path: Path) -> None:
    version = adapter(tmp_path, 2)
    jobs = [
        process.ask(),
        process.ask(**version),
        process.ask(vector=str(tmp_path / "missing.npy")),
        process.ask(prompt=7),
        process.send(job="dance"),
        process.send(job="register", **version),
        process.send(job="register", vector=str(tmp_path / "missing.npy"), digest="00" * 32),
        process.send(job="embed", inputs=["a", [1, 2], {"messages": [{"role": "user", "content": "x"}]}]),
        process.send(job="embed", inputs=["x" * 600]),
        process.send(job="drop", **version),
        process.send(job="stats"),
    ]
    gone = process.ask(max_tokens=400, temperature=1.0)
    process.inbox.take({"cancel": gone})
    process.inbox.take({"cancel": 10**6})
    process.wait(*jobs, gone)
    kinds = ["done", "done", "error", "error", "error", "done", "error", "done", "error", "done", "done"]
    assert [process.last(number)["event"] for number in jobs] == kinds  # type: ignore[index]
    assert process.last(gone) == {"id": gone, "event": "done", "finish_reason": "cancelled"}
    for number in (*jobs, gone):
        assert sum(event["event"] in ("done", "error") for event in process.events(number)) == 1
    assert [event["index"] for event in process.events(jobs[7])[:-1]] == [0, 1, 2]


def test_register_that_comes_while_others_are_looked_at_is_not_lost(process: Process, tmp_path: Path) -> None:
    """The soak found it: the job was added to a list that the engine had just replaced, and its client waited for ever."""
    first = process.send(job="register", **adapter(tmp_path, 3))
    process.engine.turn()
    second = process.send(job="register", **adapter(tmp_path, 4))
    process.engine._register(process.now)
    assert [done["event"] for done in process.wait(first, second)] == ["done", "done"]


def test_engine_without_a_model_says_so_and_ends_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    process = Process()

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        process.inbox.read(
            io.BytesIO(b'not json\n{"id":1,"job":"generate","prompt":"a"}\n[]\n{"id":"x"}\n' + b"[" * 9999)
        )
    assert [event["code"] for event in process.events(1)] == ["not_loaded"]


def test_thread_sleeps_while_nothing_is_asked(bases: tuple[Path, Path]) -> None:
    process = Process(limits=Limits())
    thread = threading.Thread(target=process.engine.run)
    thread.start()
    try:
        process.send(job="load", model=str(bases[0]), base=OLD, spec=SPEC)
        while not process.last(1):
            time.sleep(0.01)
        number = process.ask()
        while not process.last(number):
            time.sleep(0.01)
        spent = []
        for _ in range(5):  # other threads of this process may be at work: the quietest moment counts
            before = time.process_time()
            time.sleep(0.2)
            spent.append(time.process_time() - before)
        assert min(spent) < 0.1
    finally:
        process.engine.stop()
        thread.join(10)
    assert not thread.is_alive()


# -- the wire ---------------------------------------------------------------------------------------------------------
TEXTS = st.text(max_size=20)
SCORES = st.builds(
    TokenScore,
    id=st.integers(0, 10**6),
    text=TEXTS,
    raw=st.binary(max_size=8),
    logprob=st.none() | st.floats(-1e3, 0),
    top=st.lists(st.tuples(TEXTS, st.binary(max_size=4), st.floats(-1e3, 0)), max_size=3).map(tuple),
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(1, 1000),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 100),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    n=st.integers(1, 8),
    logprobs=st.none() | st.integers(0, 20),
    echo=st.booleans(),
    json=st.none() | TEXTS,
)
PROMPTS = (
    TEXTS
    | st.builds(Tokens, ids=st.lists(st.integers(0, 99)).map(tuple))
    | st.builds(Chat, messages=st.lists(st.fixed_dictionaries({"role": TEXTS, "content": TEXTS})).map(tuple))
)


@settings(max_examples=60, deadline=None)
@given(sampling=SAMPLINGS, prompt=PROMPTS, tokens=st.lists(SCORES, max_size=3), text=TEXTS)
def test_what_is_written_is_read_back(sampling: Sampling, prompt: Prompt, tokens: list[TokenScore], text: str) -> None:
    def over(fields: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(fields))  # type: ignore[no-any-return]

    piece = Piece(text=text, index=3, finish="stop", tokens=tuple(tokens))
    usage = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1)
    assert lines.parse_sampling(over(lines.sampling_fields(sampling))) == sampling
    assert lines.parse_prompt(over(lines.prompt_fields(prompt))) == prompt
    assert lines.parse_piece(over(lines.piece_fields(piece))) == piece
    assert lines.parse_usage(over(lines.usage_fields(usage))) == usage
    vector = np.arange(5, dtype=np.float32) / 7
    assert np.array_equal(lines.parse_vectors([lines.vector_text(vector)] * 2), np.stack([vector, vector]))
