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
from prometheus_client.parser import text_string_to_metric_families

from node.errors import AddressError
from node.http import Address, listen, run_server
from node.serving.access.keyfile import KeyFile, made
from node.serving.access.log import AccessLog
from node.serving.api import answers as shapes
from node.serving.api.app import Keys, create_app
from node.serving.models import Serving
from protocol.ids import Digest
from tests.support.live_engine import BASE, HEAD, Live, make_serving, serve

PROMPT = "The people of the United States"
R7 = Digest("77" * 32)


def JSON(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


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
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
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


# -- what goes beyond text -------------------------------------------------------------------------------------------
def exact(answer: Any) -> dict[str, Any]:
    """The body as it came, held against the shapes of our document."""
    body: dict[str, Any] = json.loads(answer.content if isinstance(answer, httpx.Response) else answer.text)
    model = {"text_completion": shapes.Completion, "chat.completion": shapes.ChatCompletion}.get(body["object"])
    if model is not None:
        model.model_validate(body, strict=True, extra="forbid")
    return body


def test_answer_says_in_its_body_where_it_came_from(live: Live, release: Digest) -> None:
    asked = {"model": "latest", "prompt": "a", "max_tokens": 1}
    vector = live.serving.find("latest").model
    origin = {
        "model": "release-7",
        "release": release,
        "head": HEAD,
        "vector": vector,
        "asked": "latest",
        "route": None,
    }
    assert exact(post(live, "/v1/completions", asked))["fishernet"] == origin
    stream = post(live, "/v1/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}}).text
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    assert chunks[0]["fishernet"] == chunks[-1]["fishernet"] == origin
    assert stream.endswith("data: [DONE]\n\n")


def test_logprobs_of_a_completion_have_openais_shape(live: Live) -> None:
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "logprobs": 2}
    choice = exact(post(live, "/v1/completions", asked))["choices"][0]
    scores = choice["logprobs"]
    assert "".join(scores["tokens"]) == choice["text"]
    assert scores["text_offset"] == [0, 1, 2, 3, 4]
    for token, logprob, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert len(top) == 2
        assert top[token] == logprob == max(top.values()) <= 0
    stream = post(live, "/v1/completions", {**asked, "stream": True}).text
    found: list[str] = []
    for line in stream.split("\n\n"):
        if line.startswith("data: {") and (scored := json.loads(line[6:])["choices"][0]["logprobs"]):
            found += scored["tokens"]
    assert found == scores["tokens"]


def test_logprobs_of_a_chat_have_openais_shape(live: Live, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    exact(post(live, "/v1/chat/completions", {**asked, "logprobs": True}))
    scored = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, temperature=0)
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for token in logprobs.content:
        assert token.bytes == list(token.token.encode())
        assert next(top.token for top in token.top_logprobs) == token.token
        assert len(token.top_logprobs) == 3
    plain = client.chat.completions.create(**asked)
    assert plain.choices[0].logprobs is None


def test_echo_scores_the_prompt_as_a_harness_for_benchmarks_asks(live: Live) -> None:
    ids = list(PROMPT.encode())
    asked = {"model": "base", "prompt": [ids, ids[:4]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    body = exact(post(live, "/v1/completions", asked))
    for choice, given in zip(body["choices"], (ids, ids[:4]), strict=True):
        scores = choice["logprobs"]
        assert scores["tokens"][: len(given)] == [chr(i) for i in given]
        assert len(scores["tokens"]) == len(given) + 1
        assert choice["text"].startswith(bytes(given).decode())
        assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
        assert all(score < 0 for score in scores["token_logprobs"][1:])
        assert scores["text_offset"] == list(range(len(given) + 1))
    only = exact(post(live, "/v1/completions", {**asked, "max_tokens": 0}))["choices"][0]
    assert only["text"] == PROMPT
    assert only["logprobs"]["token_logprobs"] == body["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert only["finish_reason"] == "length"


def test_echoed_scores_are_those_of_drawing(live: Live) -> None:
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 0}
    drawn = exact(post(live, "/v1/completions", asked))["choices"][0]
    echoed = {**asked, "prompt": PROMPT + drawn["text"], "max_tokens": 0, "echo": True}
    scores = exact(post(live, "/v1/completions", echoed))["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[-6:] == pytest.approx(drawn["logprobs"]["token_logprobs"], abs=1e-4)


def test_json_mode_gives_json(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "JSON please"}],
            max_tokens=60,
            seed=seed,
            response_format=JSON(schema),  # type: ignore[arg-type]
        )
        assert answer.choices[0].finish_reason == "stop"
        found = json.loads(answer.choices[0].message.content or "")
        assert (set(found), found["b"] in "xy", 0 <= found["a"] <= 9) == ({"a", "b"}, True, True)
    text = client.completions.create(
        model="base", prompt="{}", max_tokens=9, extra_body={"response_format": {"type": "json_object"}}
    )
    assert text.choices[0].text.startswith("{")


def test_cuts_reach_the_engine(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 12}
    greedy = client.completions.create(**asked, temperature=0).choices[0].text
    for cut in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}):
        drawn = client.completions.create(**asked, temperature=2, seed=3, extra_body=cut).choices[0].text
        assert drawn == greedy, cut
    assert client.completions.create(**asked, temperature=2, seed=3).choices[0].text != greedy


def test_prompts_of_one_request_run_side_by_side(live: Live) -> None:
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(live.serving.under_way)
            await asyncio.sleep(0.005)

    watching = asyncio.run_coroutine_threadsafe(watch(), live.loop.loop)
    body = exact(post(live, "/v1/completions", {"model": "base", "prompt": ["a", "b", "c"], "max_tokens": 300}))
    watching.cancel()
    assert len(body["choices"]) == 3
    assert max(seen) == 3


def test_embeddings_are_the_bases_and_of_length_one(client: openai.OpenAI, release: Digest) -> None:
    texts = ["a cat", "a cat", "constitutional law"]
    found = client.embeddings.create(model="base", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="base", input=texts, encoding_format="float")
    assert [item.index for item in found.data] == [0, 1, 2]
    for item, other in zip(found.data, plain.data, strict=True):
        assert item.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in item.embedding) == pytest.approx(1, abs=1e-4)
    assert found.data[0].embedding == pytest.approx(found.data[1].embedding, abs=1e-5)
    assert found.data[0].embedding != pytest.approx(found.data[2].embedding, abs=1e-2)
    assert found.usage.prompt_tokens == sum(map(len, texts))
    one = client.embeddings.create(model=BASE, input=list(b"a cat"))
    assert one.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="only the base model"):
        client.embeddings.create(model=release, input="a")


def test_timeout_of_a_request_cuts_its_answer(live: Live) -> None:
    asked = {"model": "base", "prompt": "a", "max_tokens": 500, "temperature": 0, "logit_bias": None}
    url = f"http://127.0.0.1:{live.port}/v1/completions"

    def in_time(in_body: bool) -> httpx.Response:
        """The answer of the first deadline, twice as long each time, in which this machine makes any of it."""
        for seconds in (0.01 * 2**n for n in range(12)):
            body = {**asked, "timeout": seconds} if in_body else asked
            found = httpx.post(url, json=body, headers={} if in_body else {"timeout": str(seconds)}, timeout=60)
            if found.status_code != 504:
                return found
        raise AssertionError("no token in time")

    for in_body in (True, False):
        found = exact(in_time(in_body))
        choice = found["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
        assert 0 < found["usage"]["completion_tokens"] < 500
    none = post(live, "/v1/completions", {**asked, "timeout": 1e-6})
    assert (none.status_code, none.json()["error"]["code"]) == (504, "deadline_exceeded")
    bad = httpx.post(url, json=asked, headers={"timeout": "soon"}, timeout=60)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "timeout")


def test_metrics_count_and_time_requests(live: Live) -> None:
    post(live, "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 3, "temperature": 0})
    post(live, "/v1/completions", {"model": "nothing-like-it", "prompt": "a"})
    found = httpx.get(f"http://127.0.0.1:{live.port}/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
    }
    assert samples["fishernet_requests_total", ("base", "completions", "200")] >= 1
    assert samples["fishernet_requests_total", ("", "completions", "404")] >= 1
    assert samples["fishernet_tokens_total", ("answer", "base")] >= 3
    assert samples["fishernet_ttft_seconds_count", ("base",)] >= 1
    assert samples["fishernet_itl_seconds_count", ("base",)] >= 1
    assert samples["fishernet_engine_up", ()] == 1
    assert samples["fishernet_engine_tokens_decode_total", ()] >= 1
    for name in ("rows", "rows_busy", "requests_waiting", "adapters_active", "adapters_ram_bytes"):
        assert (f"fishernet_engine_{name}", ()) in samples
    for name in ("tier_hits_ram", "swap_ins", "evictions_active"):
        assert (f"fishernet_engine_{name}_total", ()) in samples
    assert "nothing-like-it" not in found.text


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
        ({"n": 9}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": None}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": "\ud800"}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": [70000]}, "bad_tokens", None),
        ({"stop": ["a"] * 9}, "invalid_value", "stop"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": 1.5}, "invalid_value", "min_p"),
        ({"timeout": 0}, "invalid_value", "timeout"),
        ({"presence_penalty": 0.5}, "unsupported_value", "presence_penalty"),
        ({"best_of": 2}, "invalid_value", "best_of"),
        ({"prompt": ["a"] * 17}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 9, "n": 8}, "invalid_value", "prompt"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format"),
        ({"response_format": JSON({"type": "objec"})}, "bad_schema", "response_format"),
        ({"response_format": JSON({"not": {}})}, "bad_schema", "response_format"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
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


def test_health_is_life_and_ready_says_what_is_missing(live: Live) -> None:
    url = f"http://127.0.0.1:{live.port}"
    live.ready["network"] = False
    try:
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "node": "clinic"}
        found = httpx.get(f"{url}/ready")
        assert (found.status_code, found.json()["status"], found.json()["missing"]) == (503, "starting", ["network"])
    finally:
        del live.ready["network"]
    found = httpx.get(f"{url}/ready")
    assert (found.status_code, found.json()["ready"], found.json()["missing"]) == (200, {"engine": True}, [])
    assert found.json()["head"] == HEAD


# -- keys ------------------------------------------------------------------------------------------------------------
def test_keys_of_the_configuration_are_asked_for(live: Live) -> None:
    with served(live, live.serving, api_keys=("sesame", "other")) as port:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200
        for headers in ({}, {"authorization": "Bearer sesam"}, {"authorization": "Basic sesame"}):
            for path in ("/v1/models", "/v1/models/base", "/metrics"):
                refused = httpx.get(f"{url}{path}", headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as client:
            assert next(iter(client.models.list())).id == "base"


def test_key_reaches_as_far_as_it_says_and_every_decision_is_counted(
    live: Live, release: Digest, tmp_path: Path
) -> None:
    file, revoked = KeyFile(tmp_path / "api.json"), set[str]()
    counts = AccessLog(lambda: 1)

    def judge(grants: tuple[str, ...], purpose: str, now: int) -> tuple[str, ...]:
        return ("revoked",) if revoked & set(grants) else ()

    narrow, secret = made(now=1, models=("release-*",), purposes=("triage", "billing"), grants=("aa" * 32,))
    file.add(narrow)
    asked = {"model": "latest", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    bearer = {"authorization": f"Bearer {secret}"}
    with (
        served(live, live.serving, keys=Keys(file=file, judge=judge, log=counts)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=60) as http_,
    ):
        assert http_.post("/v1/completions", json=asked, headers={"x-fishernet-purpose": "billing"}).status_code == 200
        assert "data: [DONE]" in http_.post("/v1/completions", json={**asked, "stream": True}).text
        denied = http_.post("/v1/completions", json={**asked, "model": "base"})
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "model")
        assert denied.json()["error"]["type"] == "permission_error"
        assert http_.post("/v1/embeddings", json={"model": "base", "input": "a"}).status_code == 403
        assert [model["id"] for model in http_.get("/v1/models").json()["data"]] == ["release-7"]
        assert http_.get("/v1/models/base").status_code == 404
        unknown = http_.post("/v1/completions", json={**asked, "model": "bases"}).json()["error"]
        assert unknown["code"] == "model_not_found"
        assert "did you mean base" not in unknown["message"]
        other = http_.post("/v1/completions", json=asked, headers={"x-fishernet-purpose": "research"})
        assert (other.status_code, other.json()["error"]["code"]) == (403, "purpose")
        revoked.add("aa" * 32)
        ended = http_.post("/v1/completions", json=asked)
        assert (ended.status_code, ended.json()["error"]["code"]) == (403, "revoked")
        file.revoke(narrow.id, 1)
        assert http_.post("/v1/completions", json=asked).status_code == 401
    written: list[Any] = []
    counts.write(written.append)
    found = {(s.purpose, s.model, s.reason): (s.requests, s.answer_tokens) for s in written[0].served}
    assert found == {
        ("billing", release, ""): (1, 2),
        ("triage", release, ""): (1, 2),
        ("triage", BASE, "model"): (2, 0),
        ("research", release, "purpose"): (1, 0),
        ("triage", release, "revoked"): (1, 0),
    }
    assert PROMPT not in json.dumps(written[0].to_json())


def test_rate_of_a_key_is_a_reason_to_come_back(live: Live, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "api.json")
    slow, secret = made(now=1, requests_per_minute=1)
    file.add(slow)
    with served(live, live.serving, keys=Keys(file=file)) as port:
        url, headers = f"http://127.0.0.1:{port}/v1/completions", {"authorization": f"Bearer {secret}"}
        asked = {"model": "base", "prompt": "a", "max_tokens": 1}
        assert httpx.post(url, json=asked, headers=headers, timeout=60).status_code == 200
        late = httpx.post(url, json=asked, headers=headers, timeout=60)
        assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(late.headers["retry-after"]) <= 60


# -- connections -----------------------------------------------------------------------------------------------------
def idle_within(live: Live, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while live.serving.under_way and time.monotonic() < end:
        time.sleep(0.02)
    return live.serving.under_way == 0


def test_client_that_leaves_a_stream_frees_the_engine(live: Live, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="base", prompt="a", max_tokens=500, temperature=0, stream=True, logit_bias=None
    )
    next(iter(stream))
    assert live.serving.under_way == 1
    stream.close()
    assert idle_within(live, 30)
    client.completions.create(model="base", prompt="a", max_tokens=1)
    stats = live.loop.run(live.serving.stats())
    assert stats["rows_busy"] == 0, "the engine does not go on with what nobody reads"


def test_client_that_leaves_before_the_answer_frees_the_engine(live: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port)
    body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 500, "temperature": 0, "n": 4})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    end = time.monotonic() + 60
    while not live.serving.under_way:
        assert time.monotonic() < end
        time.sleep(0.01)
    connection.close()
    assert idle_within(live, 30)


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
        body = json.dumps({"model": "base", "prompt": "a", "max_tokens": 500, "temperature": 0, "stream": True, "n": 4})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read(50)
        since = time.monotonic()
    assert time.monotonic() - since < 3
    assert idle_within(live, 30)
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
    assert re.fullmatch(
        r"event=answered model=base digest=\w{12} key=- prompt_tokens=16 completion_tokens=2 ms=\d+", line
    )
    assert "canary" not in caplog.text
