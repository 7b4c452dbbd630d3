"""A prompt goes to the expert whose domain is clearly nearest, and the answer says which and why."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ledger.events.grants import DataDescribed
from node import config
from node.errors import ConfigError
from node.ports import Chat, Prompt, ServedModel, Tokens, Usage
from node.serving import routing
from node.serving.names import Names
from node.serving.routing import Domain, Router, configured, decide, declared, looked_at, pieces
from protocol.ids import Digest, digest
from tests.support.live_engine import Live

CLINIC = "fever, patient, dose, nurse, blood pressure and the heart of the patient"
LAW = "court, judge, appeal, contract, statute and the lawyer of the defendant"


class Words:
    """An embedding by the words of two topics, in a large common vector with noise, as the states of a model lie."""

    def __init__(self) -> None:
        self.asked: list[list[Prompt]] = []

    async def __call__(self, inputs: Sequence[Prompt]) -> tuple[routing.Vector, Usage]:
        self.asked.append(list(inputs))
        rows = np.stack([self._one(str(text)) for text in inputs])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), Usage(
            prompt_tokens=7 * len(inputs), completion_tokens=0
        )

    @staticmethod
    def _one(text: str) -> routing.Vector:
        noise = np.random.default_rng(int(digest(text.encode())[:8], 16)).normal(0, 0.1, 1024)
        said = set(re.findall(r"\w+", text.lower()))
        found = (3.0 + noise).astype(np.float32)
        for axis, topic in enumerate((CLINIC, LAW)):
            found[8 * axis : 8 * axis + 8] += 4.0 * len(said & set(re.findall(r"\w{4,}", topic))) / len(said | {""})
        return found


def names() -> Names:
    table = Names(base=ServedModel(name="base", digest=Digest("ba" * 32), vector=None))
    for who in ("clinic", "law", "idle"):
        model = ServedModel(name=f"member/{who}", digest=digest(who.encode()), vector=Path(who))
        table = table.with_member(model)
    return table.with_release(ServedModel(name="release-1", digest=digest(b"1"), vector=Path("1"), height=1))


def router(**domains: str) -> tuple[Router, Words]:
    words = Words()
    found = Router(words)
    found.domains = {f"member/{who}": Domain(text=text, source="declared") for who, text in domains.items()}
    return found, words


def test_prompt_goes_to_the_expert_of_its_domain() -> None:
    found, _ = router(clinic=CLINIC, law=LAW)
    for prompt, expert in (
        ("a patient with fever: which dose, nurse, for the heart?", "clinic"),
        ("may the judge of the court void a contract by statute?", "law"),
    ):
        model, route = asyncio.run(found.route(prompt, names()))
        assert model.name == route.model == f"member/{expert}"
        assert route.reason == "nearest"
        assert f"member/{expert}" in route.why
        assert route.scores[0][0] == f"member/{expert}"
        assert route.prompt_tokens == 7
        assert route.why.isascii()
        assert "\n" not in route.why


def test_prompt_near_to_none_or_to_all_falls_back_to_the_latest_release_and_says_so() -> None:
    found, _ = router(clinic=CLINIC, law=LAW)
    for prompt in (CLINIC + " " + LAW, "Give me a recipe for soup."):
        model, route = asyncio.run(found.route(prompt, names()))
        assert model.name == "release-1", prompt
    assert model.name == route.model == "release-1"
    assert route.reason == "unclear"
    assert "no expert is clearly nearest" in route.why


def test_fallback_is_the_view_and_then_the_base_where_there_is_no_release() -> None:
    found, _ = router()
    view = ServedModel(name="view", digest=digest(b"v"), vector=Path("v"))
    without = names().without_release(1)
    assert asyncio.run(found.route("x", without.with_view(view)))[0] == view
    assert asyncio.run(found.route("x", without))[0].name == "base"


def test_without_any_domain_nothing_is_embedded() -> None:
    for domains in ({}, {"law": " "}):
        found, words = router(**domains)
        model, route = asyncio.run(found.route("fever of the patient", names()))
        assert (model.name, route.reason, route.prompt_tokens) == ("release-1", "no-experts", 0)
        assert not words.asked


def test_single_expert_is_compared_with_general_talk() -> None:
    found, _ = router(clinic=CLINIC)
    assert (
        asyncio.run(found.route("a patient with fever: which dose, nurse, for the heart?", names()))[0].name
        == "member/clinic"
    )
    assert asyncio.run(found.route("Give me a recipe for soup.", names()))[0].name == "release-1"


def test_expert_that_is_not_served_is_not_chosen() -> None:
    found, _ = router(clinic=CLINIC, law=LAW, gone="fever patient dose")
    model, route = asyncio.run(found.route("a patient with fever: which dose, nurse, for the heart?", names()))
    assert model.name == "member/clinic"
    assert "member/gone" not in dict(route.scores)


def test_domain_is_embedded_once_and_again_only_when_it_changes() -> None:
    found, words = router(clinic=CLINIC, law=LAW)
    for _ in range(3):
        asyncio.run(found.route("fever", names()))
    assert len(words.asked) == 1 + 2 + 3, "general texts, two domains, three prompts"
    found.domains = {**found.domains, "member/law": Domain(text=LAW + " and tax", source="configured")}
    asyncio.run(found.route("fever", names()))
    assert len(words.asked) == 1 + 2 + 3 + 2
    found.forget()
    asyncio.run(found.route("fever", names()))
    assert len(words.asked) == 1 + 2 + 3 + 2 + 4


def test_crowd_of_first_requests_embeds_each_domain_once() -> None:
    found, words = router(clinic=CLINIC, law=LAW)

    async def crowd() -> None:
        await asyncio.gather(*(found.route(f"fever {n}", names()) for n in range(20)))

    asyncio.run(crowd())
    assert len(words.asked) == 1 + 2 + 20


NEUTRAL = np.random.default_rng(3).normal(0, 0.1, (16, 8)).astype(np.float32)  # around what all texts share


def test_what_all_texts_share_is_centred_away_and_loud_coordinates_do_not_decide() -> None:
    common, loud = np.full(8, 10.0), np.array([0, 0, 0, 0, 0, 0, 0, 30.0])
    general = common + NEUTRAL + np.outer(NEUTRAL[:, 0] * 10, loud)
    general = (general / np.linalg.norm(general, axis=1, keepdims=True)).astype(np.float32)
    profiles = {n: (common + np.eye(8)[i]).astype(np.float32) for i, n in enumerate("abc")}
    for prompt in (common + np.eye(8)[1], common + np.eye(8)[1] + 0.02 * loud):
        choice = decide(prompt.astype(np.float32), profiles, general)
        assert choice.expert == "b"
        assert choice.scores[0][1] > 0.5


def test_margin_decides_between_nearest_and_unclear() -> None:
    general = (1 + NEUTRAL).astype(np.float32)
    profiles = {n: np.ones(8, dtype=np.float32) + np.eye(8, dtype=np.float32)[i] for i, n in enumerate("ab")}
    prompt = (1 + np.array([0.8, 0.5, 0, 0, 0, 0, 0, 0])).astype(np.float32)
    (first, best), (_, second) = decide(prompt, profiles, general, margin=0).scores
    gap = best - max(second, 0)
    assert gap > 0
    assert decide(prompt, profiles, general, margin=gap - 1e-6).expert == first
    assert decide(prompt, profiles, general, margin=gap + 1e-6).expert is None


def test_equal_domains_are_never_clear() -> None:
    same = np.arange(1, 9, dtype=np.float32)
    choice = decide(same, {"a": same, "b": same}, 1 + NEUTRAL)
    assert choice.expert is None
    assert all(np.isfinite(score) for _, score in choice.scores)


def test_only_the_end_of_what_the_user_said_is_looked_at() -> None:
    chat = Chat(
        messages=(
            {"role": "system", "content": "secret"},
            {"role": "user", "content": "a" * 5000},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "end"},
        )
    )
    text = looked_at(chat)
    assert isinstance(text, str)
    assert len(text) == routing.LONGEST
    assert text.endswith("a\nend")
    assert looked_at(Tokens(ids=tuple(range(1000)))) == Tokens(ids=tuple(range(488, 1000)))
    assert looked_at(Chat(messages=())) == " "


@pytest.mark.parametrize("length", [1, 599, 600, 601, 4799, 4801, 100_000])
def test_pieces_of_a_domain_are_few_and_spread_over_it(length: int) -> None:
    text = "".join(chr(97 + n * 26 // length) for n in range(length))
    found = pieces(text)
    assert 1 <= len(found) <= 8
    assert str(found[0])[0] == "a"
    if length > 4800:
        assert str(found[-1])[0] > "s"


def test_operators_texts_are_read_from_the_configuration_and_from_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text(LAW)
    experts = config.parse('[serve]\nexperts = {"member/clinic" = "fever", "member/law" = "@law.txt"}', source=tmp_path)
    assert configured(experts.serve.experts, tmp_path) == {"member/clinic": "fever", "member/law": LAW}
    for bad in ({"a": "@missing.txt"}, {"a": "  "}, {"a": "@"}):
        with pytest.raises(ConfigError, match="experts"):
            configured(bad, tmp_path)
    table = config.parse('[serve.experts]\n"member/clinic" = "fever"', source=tmp_path)
    assert config.value_of(config.literal(table.serve.experts)) == {"member/clinic": "fever"}


def test_declared_domain_is_what_the_ledger_says_about_the_data() -> None:
    text = declared(
        [
            DataDescribed(dataset="notes", tags=("oncology", "nurses"), purposes=("model-improvement",), licence="x"),
            DataDescribed(dataset="letters"),
        ]
    )
    assert text == "letters. notes: oncology, nurses, model-improvement"
    assert declared([]) == ""


def test_live_api_answers_auto_from_the_expert_of_the_prompts_domain_and_says_why(live: Live) -> None:
    serving, before = live.serving, live.serving.names
    speech = "the Congress of the United States, the Government and the people of this Union"
    code = "x1=0;y2=(x1<<3)^0xff;z[9]={'a':1,'b':[2,3]};#!/bin/sh -e;rm -rf $X/*"

    async def serve() -> None:
        for seed, name in ((61, "member/speech"), (62, "member/code")):
            path, digest = live.vector(seed)
            await serving.set_member(name, path, model=digest)
        serving.set_domains({"member/speech": speech, "member/code": code})

    def ask(model: str, content: str) -> tuple[dict[str, Any], Any]:
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
        response = httpx.post(f"http://127.0.0.1:{live.port}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return response.json(), response.headers

    try:
        live.loop.run(serve())
        for content, expert in (
            ("The Government of the United States and the Congress of the people", "member/speech"),
            ("q7=(w<<2)^0x1f;k[3]={'c':4};#!/bin/sh;rm $Y/*", "member/code"),
        ):
            body, headers = ask("auto", content)
            route = body["fishernet"]["route"]
            assert headers["x-fishernet-model"] == body["model"] == route["model"] == expert
            assert headers["x-fishernet-route"] == route["why"]
            assert route["reason"] == "nearest"
            assert set(route["scores"]) == {"member/speech", "member/code"}
            plain, _ = ask(expert, content)
            assert plain["choices"] == body["choices"]
            assert plain["fishernet"]["route"] is None
    finally:
        serving.names = before
        serving.set_domains({})
