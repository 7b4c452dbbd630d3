"""A name stands for one version at a time; requests end on the one they began with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import httpx
import numpy as np
import pytest

from node.errors import ChildDied
from node.errors_serving import BadVector, Busy, UnknownModel
from node.ports import Engine, Piece, Sampling, ServedModel, Usage
from node.serving.models import Serving
from protocol.ids import Digest
from tests.support.live_engine import BASE, Live, make_serving

PROMPT = "The people of the United States"
R1, R2, R10 = (Digest(d * 32) for d in ("a1", "a2", "aa"))


async def answer(serving: Serving, model: ServedModel, **sampling: object) -> str:
    options = Sampling(**{"max_tokens": 24, **sampling})  # type: ignore[arg-type]
    async with aclosing(serving.generate(model, PROMPT, options)) as parts:
        return "".join([part.text async for part in parts if isinstance(part, Piece)])


@pytest.fixture
def cold(live: Live) -> Serving:
    """A serving whose engine is never started."""
    del live
    return make_serving(now=lambda: 1000.0)


def test_serving_is_the_engine_port(cold: Serving) -> None:
    engine: Engine = cold
    assert [model.name for model in engine.models()] == ["base"]
    assert engine.find("base") == engine.find(BASE)


def test_names_follow_what_is_set(cold: Serving, live: Live) -> None:
    path, digest = live.vector(1)
    for height, release in ((2, R2), (10, R10), (1, R1)):
        asyncio.run(cold.set_release(height, release, path))
    asyncio.run(cold.set_view(digest, path))
    assert [model.name for model in cold.models()] == ["base", "view", "release-10", "release-2", "release-1"]
    assert cold.find("latest") == cold.find("release-10") == cold.find(R10)
    assert cold.find("view").digest == digest
    assert cold.find(R1).height == 1
    cold.drop_release(10)
    assert cold.find("latest").digest == R2


def test_unknown_name_is_answered_with_near_ones(cold: Serving, live: Live) -> None:
    asyncio.run(cold.set_release(2, R2, live.vector(1)[0]))
    with pytest.raises(UnknownModel) as caught:
        cold.find("relase-2")
    assert caught.value.near[0] == "release-2"
    with pytest.raises(UnknownModel, match="gpt-4"):
        cold.find("gpt-4")


def test_before_the_first_release_latest_says_what_to_do(cold: Serving) -> None:
    with pytest.raises(UnknownModel) as caught:
        cold.find("latest")
    assert "ask for base" in caught.value.hint


def test_bad_vector_leaves_the_old_version_served(cold: Serving, live: Live, tmp_path: Path) -> None:
    path, digest = live.vector(1)
    asyncio.run(cold.set_view(digest, path))
    np.save(tmp_path / "short.npy", np.zeros(5, dtype=np.float32))
    for bad in (tmp_path / "short.npy", tmp_path / "missing.npy", live.vector(2)[0]):
        with pytest.raises(BadVector):
            asyncio.run(cold.set_view(digest, bad))
    with pytest.raises(BadVector):
        asyncio.run(cold.set_release(1, R1, live.vector(2)[0], model=digest))
    assert cold.find("view").vector == path
    assert [model.name for model in cold.models()] == ["base", "view"]


def test_running_request_ends_on_the_version_it_began_with(live: Live) -> None:
    serving = live.serving

    async def swap() -> tuple[str, str, str]:
        old, new = live.vector(11), live.vector(12)
        await serving.set_view(old[1], old[0])
        before = serving.find("view")
        alone = await answer(serving, before, max_tokens=100)
        running = asyncio.create_task(answer(serving, before, max_tokens=100))
        await asyncio.sleep(0.1)
        await serving.set_view(new[1], new[0])
        old[0].unlink()
        after = serving.find("view")
        assert after.digest == new[1]
        return alone, await running, await answer(serving, after, max_tokens=100)

    alone, during, after = live.loop.run(swap())
    assert during == alone
    assert after != alone


def test_many_versions_under_traffic_each_answer_as_themselves(live: Live) -> None:
    serving = live.serving

    async def traffic() -> None:
        versions = []
        for height in range(1, 7):
            path, digest = live.vector(20 + height)
            await serving.set_release(height, Digest(f"{height:064x}"), path, model=digest)
            versions.append(serving.find("latest"))
        alone = [await answer(serving, version) for version in versions]
        together = await asyncio.gather(*(answer(serving, version) for version in versions for _ in range(2)))
        assert together == [text for text in alone for _ in range(2)]
        assert len(set(alone)) > 3
        for height in range(1, 7):
            serving.drop_release(height)

    live.loop.run(traffic())


def test_usage_counts_tokens(live: Live) -> None:
    async def last() -> object:
        async with aclosing(live.serving.generate(live.serving.find("base"), PROMPT, Sampling(max_tokens=5))) as parts:
            return [part async for part in parts][-1]

    used = live.loop.run(last())
    assert isinstance(used, Usage)
    assert (used.prompt_tokens, used.completion_tokens) == (len(PROMPT), 5)


def test_one_request_too_many_is_refused_at_once(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = live.serving
    monkeypatch.setattr(serving, "_most_waiting", 16)

    async def crowd() -> list[object]:
        model = serving.find("base")
        return await asyncio.gather(*(answer(serving, model) for _ in range(20)), return_exceptions=True)

    outcomes = live.loop.run(crowd())
    busy = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert len(busy) == 4
    assert len({outcome for outcome in outcomes if isinstance(outcome, str)}) == 1
    assert serving.under_way == 0


def test_deadline_ends_the_answer_where_it_stands(live: Live) -> None:
    async def late(deadline: float) -> list[object]:
        asked = Sampling(max_tokens=450, temperature=0.0)
        return [
            part async for part in live.serving.generate(live.serving.find("base"), PROMPT, asked, deadline=deadline)
        ]

    for deadline in (0.4, 0.2, 0.1, 0.05):  # seconds: a fast machine is done with 450 tokens before the first
        *pieces, usage = live.loop.run(late(deadline))
        assert isinstance(pieces[-1], Piece)
        if pieces[-1].finish == "deadline":
            break
    assert pieces[-1].finish == "deadline"
    assert isinstance(usage, Usage)
    assert 0 < usage.completion_tokens < 450


def test_request_that_is_given_up_makes_room_at_once(live: Live) -> None:
    serving = live.serving

    async def give_up() -> int:
        parts = serving.generate(serving.find("base"), PROMPT, Sampling(max_tokens=450, temperature=0.0))
        await anext(parts)
        await parts.aclose()
        assert serving.under_way == 0
        await answer(serving, serving.find("base"), max_tokens=2)
        before = await serving.stats()
        assert before["rows_busy"] == 0
        await answer(serving, serving.find("base"), max_tokens=2)
        return int((await serving.stats())["tokens_decode"]) - int(before["tokens_decode"])

    assert live.loop.run(give_up()) <= 2, "the engine does not go on with what was given up"


def test_killed_engine_ends_requests_and_streams_with_an_error_and_the_next_one_is_answered(live: Live) -> None:
    serving = live.serving
    path, digest = live.vector(31)

    async def read_stream(lines: list[str]) -> None:
        url = f"http://127.0.0.1:{live.port}/v1/completions"
        body = {"model": "base", "prompt": PROMPT, "max_tokens": 450, "temperature": 0, "stream": True}
        async with httpx.AsyncClient(timeout=150) as client, client.stream("POST", url, json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)

    async def kill() -> tuple[str, str]:
        await serving.set_release(31, R1, path, model=digest)
        model = serving.find("latest")
        before = await answer(serving, model)
        lines: list[str] = []
        reading = asyncio.create_task(read_stream(lines))
        while not lines:
            await asyncio.sleep(0.01)
        assert serving.child.pid is not None
        os.kill(serving.child.pid, signal.SIGSTOP)  # or a fast engine has answered before it dies
        queued = asyncio.create_task(answer(serving, model))
        while serving.under_way < 2:
            await asyncio.sleep(0.01)
        os.kill(serving.child.pid, signal.SIGKILL)
        with pytest.raises(ChildDied):
            await queued
        await reading
        assert '"code":"child-died"' in [line for line in lines if line][-1]
        after = await answer(serving, model)
        serving.drop_release(31)
        return before, after

    before, after = live.loop.run(kill())
    assert before == after


def test_api_and_serving_import_no_torch() -> None:
    code = (
        "import sys, node.serving.api.app, node.serving.models, node.http, node.children; "
        "bad = {'torch', 'transformers', 'peft', 'hivemind', 'libp2p'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
