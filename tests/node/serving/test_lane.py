"""Many requests, adapters and ages in one batch: each answered as if it were alone, none lost, none by another adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrib.adapters import AdapterSpec
from node.errors import JobRefused
from node.errors_serving import BadVector, Busy
from node.serving.engine.embedding import Embeds
from node.serving.engine.lane import PROMPT_BESIDE
from node.serving.engine.rows import Work
from node.serving.engine.scheduler import Limits
from node.serving.engine.store import RETRY, Source
from protocol.errors import FishernetError
from tests.support.lanes import PROMPT, SPEC, Bench

LONG = PROMPT + " and of the several States" * 12


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path)


def small(tmp_path: Path, **options: Any) -> Bench:
    return Bench(folder=tmp_path, **options)


def loaded(bench: Bench, source: Source) -> None:
    """Wait until a version is in memory."""
    import time

    for _ in range(500):
        if bench.lane.load(source, bench.now):
            return
        time.sleep(0.01)
    raise AssertionError("the version did not come into memory")


# -- answers ----------------------------------------------------------------------------------------------------------
def test_answer_in_a_full_mixed_batch_is_the_answer_alone(bench: Bench) -> None:
    sources = [None, *(bench.source(seed) for seed in range(1, 5))]
    prompts = [LONG, "Gr\u00fc\u00dfe \U0001f600 aus"]
    alone = {(s, p): bench.answer(source, p) for s, source in enumerate(sources) for p in prompts}
    together = {}
    for p in prompts:
        for s, source in enumerate(sources):
            together[s, p] = bench.ask(source, p)
            bench.lane.step(bench.now)  # they join one by one, while others are being written
    bench.run()
    assert {key: heard.text() for key, heard in together.items()} == alone
    assert len(set(alone.values())) == 10, "the adapters and prompts differ, so a mix-up would show"
    for (s, _), heard in together.items():
        source = sources[s]
        assert heard.digest == (source.digest if source else "ba" * 32)


def test_drawn_answers_are_those_of_their_seeds_and_share_the_prompt(bench: Bench) -> None:
    drawn = {"temperature": 1.0, "max_tokens": 12}
    many = bench.ask(None, LONG, n=4, seed=7, **drawn)
    bench.run()
    assert [many.text(i) for i in range(4)] == [bench.answer(None, LONG, seed=7 + i, **drawn) for i in range(4)]
    fed = bench.lane.counts.tokens_prefill
    again = bench.ask(None, LONG + "!", n=8, seed=1, **drawn)
    bench.run(again)
    assert bench.lane.counts.tokens_prefill - fed < len(LONG), (
        "eight answers read the prompt once, and its beginning not at all"
    )
    assert again.usage is not None
    assert again.usage.cached_tokens > 300


def test_versions_share_no_prefix(bench: Bench) -> None:
    one, other = bench.source(1), bench.source(2)
    alone = Bench(folder=bench.folder).answer(other, LONG)
    assert bench.answer(one, LONG) != alone
    found = bench.ask(other, LONG)
    bench.run(found)
    assert found.text() == alone
    assert found.usage is not None
    assert found.usage.cached_tokens == 0


def test_echo_gives_the_prompt_with_the_scores_of_the_model(bench: Bench) -> None:
    bench.answer(None, PROMPT + " of")  # its pages are cached: the scores must be whole all the same
    found = bench.ask(None, PROMPT + " of", echo=True, logprobs=2, max_tokens=3, n=2)
    bench.run(found)
    runner, ids = bench.lane.runner, bench.lane.text.encode(PROMPT + " of")
    row = runner.open(ids, 0, "alone").row
    table = runner.step([Work(row=row, ids=ids, want="all")])[0].log_softmax(-1)
    runner.close(row, keep=False)
    for index in range(2):
        first = next(piece for piece in found.pieces if piece.index == index)
        assert first.text == PROMPT + " of"
        assert [token.id for token in first.tokens] == ids
        assert first.tokens[0].logprob is None
        for at, token in enumerate(first.tokens[1:]):
            assert token.logprob == pytest.approx(float(table[at, token.id]), abs=1e-3)
            assert len(token.top) == 2
            assert token.top[0][2] == pytest.approx(float(table[at].max()), abs=1e-3)
        assert len([t for piece in found.pieces if piece.index == index for t in piece.tokens]) == len(ids) + 3
    nothing = bench.ask(None, PROMPT, echo=True, logprobs=0, max_tokens=0)
    bench.run(nothing)
    assert (nothing.text(), nothing.finish()) == (PROMPT, "length")


def test_embedding_is_the_normalised_mean_and_does_not_depend_on_traffic(bench: Bench) -> None:
    inputs = [bench.lane.text.encode(text) for text in (PROMPT, LONG)]
    vectors = []
    for busy in (False, True):
        number = len(bench.heard) + 1
        found = bench.heard[number] = type(bench.ask())()
        if not busy:
            bench.run(*[h for n, h in bench.heard.items() if n != number])
        bench.lane.submit_embeds(
            Embeds(number=number, inputs=inputs, tenant="", arrived=bench.now, deadline=None), bench.now
        )
        bench.run()
        vectors.append(found.vectors)
    for at in range(2):
        assert float(vectors[0][at].norm()) == pytest.approx(1.0, abs=1e-5)
        assert torch.allclose(vectors[0][at], vectors[1][at], atol=1e-5)


# -- ends -------------------------------------------------------------------------------------------------------------
def test_cancelled_request_frees_its_rows_at_once(tmp_path: Path) -> None:
    bench = small(tmp_path, rows=2)
    gone = bench.ask(max_tokens=400, n=2, temperature=1.0, seed=1)
    for _ in range(8):
        bench.lane.step(bench.now)
    waits = bench.ask()
    bench.lane.step(bench.now)
    assert bench.lane.stats()["rows_busy"] == 2
    assert bench.lane.cancel(bench.number(gone), bench.now)
    assert bench.lane.stats()["rows_busy"] == 0
    bench.run(waits)
    assert gone.cancelled
    assert not gone.done
    assert bench.lane.stats()["cancelled"] == 1
    assert not bench.lane.cancel(bench.number(gone), bench.now)
    assert bench.lane.idle


def test_deadline_ends_what_waits_and_what_runs(tmp_path: Path) -> None:
    bench = small(tmp_path, rows=1)
    runs = bench.ask(max_tokens=400, temperature=1.0, seed=1, deadline=1.0)
    waits = bench.ask(n=2, deadline=0.5)
    bench.run()
    assert (runs.finish(), waits.finish(), waits.finish(1)) == ("deadline", "deadline", "deadline")
    assert 10 < len(runs.text()) < 400
    assert waits.text() == ""
    assert bench.lane.stats()["deadlines"] == 2
    assert bench.lane.stats()["rows_busy"] == 0


def test_full_queue_is_busy_and_counted(tmp_path: Path) -> None:
    bench = small(tmp_path, rows=1, limits=Limits(queue=4))
    found = [bench.ask(max_tokens=2) for _ in range(6)]
    refused = [heard for heard in found if isinstance(heard.error, Busy)]
    assert len(refused) == 4, "one organisation gets half of the queue"
    assert bench.lane.stats()["queue_full"] == 4
    bench.run()
    assert all(heard.over for heard in found)


def test_row_that_breaks_fails_alone(bench: Bench) -> None:
    np.save(bench.folder / "strong.npy", np.full(bench.coordinates, 1e38, dtype=np.float32))
    strong = Source(version="strong", path=bench.folder / "strong.npy", rank=4, spec=SPEC)  # its own numbers are finite
    alone = bench.answer()
    good, bad = bench.ask(), bench.ask(strong)
    bench.run()
    assert isinstance(bad.error, FishernetError)
    assert good.error is None
    assert good.text() == alone


def test_prompts_leave_answers_their_pace(bench: Bench) -> None:
    """A long prompt is read in pieces beside the answers, and each step gives every answer its token."""
    writing = bench.ask(max_tokens=60, temperature=1.0, seed=2)
    while not writing.pieces:
        bench.lane.step(bench.now)
    for _ in range(3):
        bench.ask(None, "y" * 400, max_tokens=1)
    steps, prefill = bench.lane.counts.steps, bench.lane.counts.tokens_prefill
    for _ in range(10):
        bench.lane.step(bench.now)
    assert bench.lane.counts.steps - steps == 10
    assert bench.lane.counts.tokens_prefill - prefill <= 10 * PROMPT_BESIDE
    assert bench.lane.counts.tokens_decode >= 10
    bench.run()


# -- adapters ---------------------------------------------------------------------------------------------------------
def test_refresh_in_place_is_another_version(bench: Bench) -> None:
    """SGLang: new weights under a loaded name were refused and the old ones served silently. Here content names a version."""
    first, second = bench.source(1), bench.source(2)
    before = bench.answer(first)
    running = bench.ask(first, max_tokens=60)
    for _ in range(10):
        bench.lane.step(bench.now)
    after = bench.answer(second)
    bench.run()
    assert before != after
    assert running.text().startswith(before)
    assert running.digest == first.digest


def test_file_that_changed_behind_its_digest_is_refused(bench: Bench) -> None:
    source, other = bench.source(1), bench.source(2)
    source.path.write_bytes(other.path.read_bytes())
    found = bench.ask(source)
    bench.run()
    assert isinstance(found.error, BadVector)
    assert "its digest is not" in str(found.error)


def test_loaded_version_is_not_read_again(bench: Bench) -> None:
    """vLLM's load_inplace read the adapter from disk at every step."""
    source = bench.source(1)
    first = bench.answer(source)
    source.path.unlink()
    assert [bench.answer(source) for _ in range(3)] == [first] * 3
    stats = bench.lane.stats()
    assert (stats["tier_hits_disk"], stats["tier_hits_active"], stats["swap_ins"]) == (1, 3, 1)


def test_new_versions_under_traffic_leave_memory_flat(tmp_path: Path) -> None:
    """AReaL: every new version stayed loaded until the machine hung. The longest unused goes, before the new one is read."""
    probe = small(tmp_path)
    one = probe.source(0)
    probe.answer(one)
    size = probe.lane.stats()["adapters_ram_bytes"]
    from node.serving.engine.pool import most_bytes

    most = most_bytes(probe.lane.runner.shape, SPEC_RANK, probe.lane.runner.dtype)
    limit = 2 * size + most  # two held and the room that a third may take
    bench = small(tmp_path, ram=limit, limits=Limits(max_active=2, cycle=0.2), rows=2)
    highest = 0

    def look() -> None:
        nonlocal highest
        highest = max(highest, bench.lane.stats()["adapters_ram_bytes"])

    bench.on_step = look
    found = [(bench.source(seed), bench.ask(bench.source(seed), max_tokens=8)) for seed in range(12)]
    bench.run()
    assert [heard.digest for _, heard in found] == [source.digest for source, _ in found]
    assert highest <= limit
    stats = bench.lane.stats()
    assert stats["adapters_ram"] <= 3
    assert stats["evictions_ram"] >= 9
    assert stats["evictions_active"] >= 9


SPEC_RANK = 4


def test_load_waits_for_room_instead_of_exceeding_it(tmp_path: Path) -> None:
    """TRL on vLLM: loading before unloading exceeded the allowed number. Here even a flooded version gives way in its turn."""
    probe = small(tmp_path)
    from node.serving.engine.pool import most_bytes

    most = most_bytes(probe.lane.runner.shape, SPEC_RANK, probe.lane.runner.dtype)
    bench = small(tmp_path, ram=most, limits=Limits(max_active=8, cycle=0.2), rows=2)
    held: list[int] = []
    bench.on_step = lambda: held.append(bench.lane.stats()["adapters_ram"])
    flood = [bench.ask(bench.source(1), max_tokens=8) for _ in range(30)]
    other = bench.ask(bench.source(2), max_tokens=8)
    bench.run(other)
    assert other.digest == bench.source(2).digest
    assert not all(heard.over for heard in flood), "it came before the flood had ended"
    bench.run()
    assert max(held) == 1


def test_scale_of_one_version_does_not_touch_running_streams(bench: Bench) -> None:
    """llama.cpp's scale was global: setting it changed the streams of others. Here it is in the version's own numbers."""
    weak = bench.source(1)
    loud = bench.source(1, spec=AdapterSpec(rank=4, alpha=64, targets=("q_proj", "v_proj"), seed="5e" * 32))
    loud = Source(version=loud.version + "loud", path=loud.path, rank=4, spec=loud.spec, digest=loud.digest)
    alone = bench.answer(weak, max_tokens=40)
    running = bench.ask(weak, max_tokens=40)
    for _ in range(12):
        bench.lane.step(bench.now)
    beside = bench.ask(loud, max_tokens=40)
    bench.run()
    assert running.text() == alone
    assert beside.text() != alone


def test_queue_a_b_a_a_with_one_slot_runs_b(tmp_path: Path) -> None:
    """SGLang with one slot starved B. The bound is proven in test_scheduler; this is the real engine."""
    bench = small(tmp_path, limits=Limits(max_active=1, cycle=0.3), rows=2)
    a, b = bench.source(1), bench.source(2)
    bench.ask(a)
    second = bench.ask(b)
    later = [bench.ask(a) for _ in range(40)]
    bench.run(second)
    assert second.digest == b.digest
    assert bench.now <= 2 * 0.3 + 2 * 0.3, "two cycles, and the longest answer: 16 tokens of 0.01 s and a prompt"
    assert sum(not heard.over for heard in later) > 20
    bench.run()


def test_slow_load_holds_up_nobody_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from node.serving.engine import store

    slow, fast = bench.source(1), bench.source(2)
    gate = threading.Event()
    real = store.load

    def gated(source: Source, *rest: Any) -> Any:
        if source is slow:
            assert gate.wait(60)
        return real(source, *rest)

    bench.lane._tiers._store._load = gated  # type: ignore[misc]  (the disk, slowed down)
    waits = bench.ask(slow)
    others = [bench.ask(), bench.ask(fast), bench.ask(fast)]
    bench.run(*others)
    assert not waits.over
    gate.set()
    bench.run()
    assert waits.digest == slow.digest


def test_bad_adapters_are_refused_with_the_reason_and_tried_again_later(bench: Bench) -> None:
    source = bench.source(1)
    whole = source.path.read_bytes()
    source.path.write_bytes(whole[:100])
    for _ in range(2):
        found = bench.ask(source)
        bench.run()
        assert isinstance(found.error, BadVector)
    source.path.write_bytes(whole)
    remembered = bench.ask(source)
    bench.run()
    assert isinstance(remembered.error, BadVector), (
        "an error is remembered for a while, so that nobody hammers the disk"
    )
    assert bench.lane.stats()["load_errors"] == 1
    bench.now += RETRY
    assert bench.answer(source)
    for values in (np.zeros(7, np.float32), np.full(bench.coordinates, np.nan, np.float32)):
        np.save(bench.folder / "bad.npy", values)
        version = f"bad{len(values)}{values[0]}"
        bad = Source(version=version, path=bench.folder / "bad.npy", rank=4, spec=source.spec)
        found = bench.ask(bad)
        bench.run()
        assert isinstance(found.error, BadVector)


def test_adapter_larger_than_all_memory_is_refused(tmp_path: Path) -> None:
    bench = small(tmp_path, ram=1000)
    found = bench.ask(bench.source(1))
    assert found.error is not None
    assert "all adapters together may take 1000" in str(found.error)


def test_dropped_version_ends_its_requests_and_then_leaves_memory(bench: Bench) -> None:
    source = bench.source(1)
    alone = bench.answer(source, max_tokens=40)
    running = bench.ask(source, max_tokens=40)
    for _ in range(8):
        bench.lane.step(bench.now)
    bench.lane.drop(source.version)
    assert bench.lane.stats()["adapters_active"] == 1
    bench.run()
    assert running.text() == alone
    assert bench.lane.stats()["adapters_active"] == bench.lane.stats()["adapters_ram_bytes"] == 0


def test_drop_of_a_loaded_unused_version_frees_it_at_once(bench: Bench) -> None:
    source = bench.source(1)
    loaded(bench, source)
    assert bench.lane.stats()["adapters_ram"] == 1
    bench.lane.drop(source.version)
    assert bench.lane.stats()["adapters_ram"] == 0


def test_failing_step_ends_its_requests_and_not_the_engine(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    real = bench.lane.runner.step

    def broken(_work: Any) -> Any:
        raise RuntimeError("out of device memory")

    found = [bench.ask(), bench.ask(bench.source(1))]
    bench.lane.step(bench.now)
    bench.lane.runner.step = broken
    bench.run(found[0])
    bench.lane.runner.step = real
    assert isinstance(found[0].error, RuntimeError)
    bench.run()
    assert bench.lane.stats()["rows_busy"] == 0
    assert bench.answer()
    assert "out of device memory" in capsys.readouterr().err
    assert not isinstance(found[0].error, JobRefused)
