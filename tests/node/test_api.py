"""The official client understands every answer and every refusal; a client that leaves frees the engine."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from node.errors import AddressError
from node.http import Address, listen, run_server
from node.serving.api import create_app
from node.serving.models import Serving
from protocol.ids import Digest
from tests.support.live_engine import BASE, HEAD, Live, make_serving, serve

PROMPT = "The people of the United States"
R7 = Digest("77" * 32)


@pytest.fixture(scope="module")
def release(live: Live) -> Iterator[Digest]:
    """A served release of height 7, whose adapter changes the answer."""
    path, digest = live.vector(77)
    live.loop.run(live.serving.set_release(7, R7, path, model=digest))
    yield R7
    live.serving.drop_release(7)


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client() as found:
        yield found


@contextmanager
def served(live: Live, serving: Serving, **options: Any) -> Iterator[int]:
    """A second API server; yields its port."""
    other = Live(loop=live.loop, serving=serving, folder=live.folder, coordinates=live.coordinates)

    async def start() -> tuple[asyncio.Event, asyncio.Task[None]]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(other, stop, ready, **options))
        other.port = await ready
        return stop, task

    async def end(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        stop.set()
        await task

    stop, task = live.loop.run(start())
    try:
        yield other.port
    finally:
        live.loop.run(end(stop, task))


def post(live: Live, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{live.port}{path}", json=body, timeout=150)


# -- answers ---------------------------------------------------------------------------------------------------------
def test_completion_names_its_version_and_the_ledger_head(client: openai.OpenAI, release: Digest) -> None:
    raw = client.completions.with_raw_response.create(model="latest", prompt=PROMPT, max_tokens=8, temperature=0)
    answer = raw.parse()
    assert answer.model == "release-7"
    assert answer.system_fingerprint == f"fn-{release[:12]}-{HEAD[:12]}"
    assert raw.headers["x-fishernet-release"] == release
    assert raw.headers["x-fishernet-head"] == HEAD
    assert raw.headers["x-fishernet-model"] == "release-7"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (31, 8, 39)
    by_digest = client.completions.create(model=release, prompt=PROMPT, max_tokens=8, temperature=0)
    base = client.completions.create(model="base", prompt=PROMPT, max_tokens=8, temperature=0)
    assert by_digest.choices[0].text == answer.choices[0].text != base.choices[0].text
    assert base.model == "base"


def test_streamed_completion_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 20, "seed": 5, "temperature": 1}
    whole = client.completions.create(**asked)
    raw = client.completions.with_raw_response.create(**asked, stream=True)
    assert raw.headers["x-fishernet-release"] == BASE
    chunks = list(raw.parse())
    assert len(chunks) > 10, "tokens come one by one"
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_streamed_chat_opens_with_the_role_and_ends_with_usage(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "base",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Grüße "}, {"type": "text", "text": "😀"}]},
        ],
        "max_completion_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"


def test_several_prompts_and_answers_are_numbered_through(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "max_tokens": 6, "temperature": 1, "seed": 3, "n": 2}
    texts = client.completions.create(prompt=["We the people", PROMPT], **asked)
    both = client.completions.create(prompt=[list(b"We the people"), list(PROMPT.encode())], **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in texts.choices] == [choice.text for choice in both.choices]
    single = client.completions.create(prompt=PROMPT, **asked)
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in single.choices]
    assert both.usage is not None
    assert both.usage.completion_tokens == 24
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(prompt=PROMPT, stream=True, **asked):
        streamed[chunk.choices[0].index] = streamed.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert [streamed[0], streamed[1]] == [choice.text for choice in single.choices]


def test_stop_sequence_is_not_part_of_the_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    cut = client.completions.create(**asked, stop=whole[4:7]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(whole[4:7])]
    chunks = client.completions.create(**asked, stop=[whole[4:7]], stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut.text


def test_completion_without_a_limit_has_16_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt=PROMPT, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_models_are_listed_and_found_by_every_name(client: openai.OpenAI, release: Digest) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert list(listed)[:2] == ["base", "latest"]
    assert listed["release-7"].owned_by == "clinic"
    assert listed["release-7"].root == listed["latest"].root == release  # type: ignore[attr-defined]
    assert listed["release-7"].parent == BASE  # type: ignore[attr-defined]
    assert client.models.retrieve("latest").id == client.models.retrieve(release).id == "release-7"


def test_new_version_is_served_without_a_restart(live: Live, client: openai.OpenAI) -> None:
    answers = []
    for seed in (41, 42):
        path, digest = live.vector(seed)
        live.loop.run(live.serving.set_view(digest, path))
        raw = client.completions.with_raw_response.create(model="view", prompt=PROMPT, max_tokens=16, temperature=0)
        assert raw.headers["x-fishernet-release"] == digest
        answers.append(raw.parse().choices[0].text)
    assert answers[0] != answers[1]


def test_labels_and_neutral_values_are_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "a"}],
        max_tokens=1,
        user="me",
        metadata={"a": "b"},
        presence_penalty=0,
        logprobs=False,
        response_format={"type": "text"},
    )
    assert len(answer.choices) == 1


# -- refusals --------------------------------------------------------------------------------------------------------
def test_unknown_model_is_not_found_and_near_names_are_given(client: openai.OpenAI, release: Digest) -> None:
    del release
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="relase-7", prompt="a")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "release-7" in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_a_bad_request_with_openais_code(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt="x" * 600, max_tokens=4, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "512" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"n": 5}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": None}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": "\ud800"}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": [70000]}, "bad_tokens", None),
        ({"stop": ["a"] * 9}, "invalid_value", "stop"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"logprobs": 3}, "unknown_parameter", "logprobs"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", None),
        ({"model": ""}, "invalid_value", "model"),
    ],
)
def test_fault_of_a_request_is_named(live: Live, change: dict[str, Any], code: str, param: str | None) -> None:
    body = json.dumps({"model": "base", "prompt": PROMPT, "max_tokens": 1, **change})
    url = f"http://127.0.0.1:{live.port}/v1/completions"
    found = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60)
    error = found.json()["error"]
    assert (found.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("couldn't ")


def test_refusal_names_the_parameter_that_was_meant(live: Live) -> None:
    error = post(live, "/v1/completions", {"model": "base", "prompt": "a", "temprature": 1}).json()["error"]
    assert "did you mean temperature?" in error["message"]


def test_requests_that_are_no_requests_get_the_same_shape(live: Live) -> None:
    url = f"http://127.0.0.1:{live.port}"
    answers = {
        "missing_required_parameter": post(live, "/v1/chat/completions", {"model": "base"}),
        "invalid_json": httpx.post(f"{url}/v1/completions", content=b"{", headers={"content-type": "application/json"}),
        "not_found": httpx.get(f"{url}/v2/models"),
        "method_not_allowed": httpx.get(f"{url}/v1/completions"),
        "request_too_large": post(live, "/v1/completions", {"model": "base", "prompt": "x" * (5 << 20)}),
        "unknown_parameter": post(
            live, "/v1/chat/completions", {"model": "base", "messages": [{"role": "user", "content": "a", "x": 1}]}
        ),
    }
    for code, answer in answers.items():
        assert answer.json()["error"]["code"] == code, answer.text
        assert 400 <= answer.status_code < 500
    assert httpx.post(f"{url}/v1/completions", content=b'{"model":"base","prompt":"a"}').status_code == 400


def test_body_that_grows_beyond_the_limit_is_refused(live: Live) -> None:
    def flood() -> Iterator[bytes]:
        yield b'{"model":"base","prompt":"'
        for _ in range(80):
            yield b"x" * 65536
        yield b'"}'

    url = f"http://127.0.0.1:{live.port}/v1/completions"
    with suppress(httpx.WriteError):  # the server may close before it has read all
        found = httpx.post(url, content=flood(), headers={"content-type": "application/json"}, timeout=60)
        assert found.json()["error"]["code"] == "request_too_large"


def test_fault_of_a_chat_message_is_named(live: Live) -> None:
    for message in ({"role": "king", "content": "a"}, {"role": "user", "content": [{"type": "image_url"}]}, {}):
        found = post(live, "/v1/chat/completions", {"model": "base", "messages": [message]})
        assert found.status_code == 400
        assert found.json()["error"]["param"] == "messages"


def test_keys_are_asked_for_when_they_are_configured(live: Live) -> None:
    with served(live, live.serving, api_keys=("sesame", "other")) as port:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer sesam"}, {"authorization": "Basic sesame"}):
            refused = httpx.get(f"{url}/v1/models", headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as client:
            assert next(iter(client.models.list())).id == "base"


def test_crowd_is_told_to_come_back(live: Live) -> None:
    serving = live.serving
    before, serving._most_waiting = serving._most_waiting, 0
    try:
        for stream in (False, True):
            found = post(live, "/v1/completions", {"model": "base", "prompt": "a", "stream": stream})
            assert found.status_code == 429
            assert int(found.headers["retry-after"]) >= 1
            assert found.json()["error"]["type"] == "rate_limit_error"
    finally:
        serving._most_waiting = before


def test_engine_that_cannot_load_is_unavailable(live: Live, tmp_path: Path) -> None:
    broken = make_serving()
    broken.child.command = type(broken.child.command)(name="engine", argv=("/nonexistent/python",))
    with served(live, broken) as port:
        found = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "base", "prompt": "a"}, timeout=60)
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "child-died"


def test_health_follows_the_ready_flags(live: Live) -> None:
    url = f"http://127.0.0.1:{live.port}/health"
    assert httpx.get(url).json()["status"] == "ok"
    live.ready["network"] = False
    try:
        found = httpx.get(url)
        assert (found.status_code, found.json()["status"]) == (503, "starting")
        assert found.json()["ready"] == {"engine": True, "network": False}
    finally:
        del live.ready["network"]


# -- connections -----------------------------------------------------------------------------------------------------
def idle_within(live: Live, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while live.serving.under_way and time.monotonic() < end:
        time.sleep(0.02)
    return live.serving.under_way == 0


def test_client_that_leaves_a_stream_frees_the_engine(live: Live, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="base", prompt="a", max_tokens=500, temperature=1, stream=True, logit_bias=None
    )
    next(iter(stream))
    assert live.serving.under_way == 1
    stream.close()
    assert idle_within(live, 2)
    since = time.monotonic()
    client.completions.create(model="base", prompt="a", max_tokens=1)
    assert time.monotonic() - since < 1.5, "the engine does not go on with what nobody reads"


def test_client_that_leaves_before_the_answer_frees_the_engine(live: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port)
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 500, "temperature": 1, "n": 4})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    time.sleep(0.3)
    assert live.serving.under_way == 1
    connection.close()
    assert idle_within(live, 2)


def test_answers_are_not_mixed_up_between_clients(live: Live, client: openai.OpenAI) -> None:
    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="x", max_retries=0) as crowd:
            answers = await asyncio.gather(
                *(crowd.completions.create(model="base", prompt=PROMPT, max_tokens=8, seed=i % 4) for i in range(12))
            )
            return [answer.choices[0].text for answer in answers]

    found = asyncio.run(many())
    assert found[:4] == found[4:8] == found[8:]
    assert len(set(found)) > 1


def test_stop_of_the_server_ends_streams_and_frees_the_port(live: Live) -> None:
    with served(live, live.serving) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 500, "temperature": 1, "stream": True, "n": 4})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read(50)
        since = time.monotonic()
    assert time.monotonic() - since < 3
    assert idle_within(live, 2)
    connection.close()
    listen(Address(port=port)).close()


def test_port_in_use_is_an_error_that_says_so() -> None:
    with listen(Address()) as taken, pytest.raises(AddressError, match="in use"):
        listen(Address(port=taken.getsockname()[1]))
    with pytest.raises(AddressError):
        listen(Address(host="no.such.host.invalid"))


def test_unix_socket_is_private_and_a_stale_one_is_replaced(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    app = create_app(live.serving, live.facts)

    async def probe() -> tuple[int, str]:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run_server(app, Address(uds=path), on_ready=ready.set_result))
        await ready
        mode = path.stat().st_mode & 0o777
        with pytest.raises(AddressError):
            await run_server(app, Address(uds=path))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            status = (await client.get("http://node/health")).json()["status"]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return mode, status

    assert asyncio.run(probe()) == (0o600, "ok")
    assert not path.exists()


def test_log_lines_name_counts_and_no_text(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fishernet"):
        post(live, "/v1/completions", {"model": "base", "prompt": "canary-in-a-mine", "max_tokens": 2})
    line = next(record.getMessage() for record in caplog.records if record.name == "fishernet.api")
    assert re.fullmatch(r"answered model=base digest=\w{12} prompt_tokens=16 completion_tokens=2 ms=\d+", line)
    assert "canary" not in caplog.text
