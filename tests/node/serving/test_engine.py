"""The engine process answers as the plain libraries do, and every request on the version it was bound to."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrib.adapters import AdapterSpec, attach, load_b
from contrib.models import tiny_folder
from node.errors import JobRefused
from node.errors_serving import BadVector, ContextTooLong
from node.jobs import Event
from node.ports import Piece, Sampling
from tests.support.live_engine import ADAPTER, BASE, Live

PROMPT = "The people of the United States"


def ask(live: Live, **job: Any) -> tuple[str, Event]:
    texts: dict[int, str] = {}
    finishes: set[str | None] = set()

    def on_event(event: Event) -> None:
        texts[event["index"]] = texts.get(event["index"], "") + event["text"]
        finishes.add(event.get("finish_reason"))

    job = {"job": "generate", "model": "base", "prompt": PROMPT, "max_tokens": 24, **job}
    done = live.loop.run(live.serving.child.request(job, on_event, timeout=60))
    done["finish_reasons"] = finishes - {None}
    return "|".join(texts[index] for index in sorted(texts)), done


def with_vector(live: Live, seed: int, strength: float = 0.3) -> dict[str, Any]:
    path, digest = live.vector(seed, strength)
    return {"model": "adapted", "vector": str(path), "digest": digest}


@pytest.fixture(scope="module")
def reference() -> Any:
    """Greedy continuation by transformers' own `generate` on a PEFT model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
        model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
        peft = attach(model, AdapterSpec.parse(ADAPTER)).eval()

    def answer(vector: Path | None, prompt: str, tokens: int) -> str:
        size = sum(p.numel() for name, p in peft.named_parameters() if "lora_B" in name)
        load_b(peft, np.zeros(size, dtype=np.float32) if vector is None else np.load(vector))
        ids = tokenizer(prompt, return_tensors="pt")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            out = peft.generate(**ids, max_new_tokens=tokens, do_sample=False)
        return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer


@pytest.mark.slow  # the runner's own tests compare with the libraries each time
def test_greedy_answers_equal_those_of_transformers_for_base_and_adapters(live: Live, reference: Any) -> None:
    long_prompt = PROMPT + " and of the several States" * 12  # more than one chunk of the prompt
    for prompt in (PROMPT, long_prompt):
        expected = [reference(None, prompt, 24)]
        assert ask(live, prompt=prompt)[0] == expected[0]
        for seed in (1, 2):
            path, digest = live.vector(seed)
            expected.append(reference(path, prompt, 24))
            text, done = ask(live, prompt=prompt, vector=str(path), digest=digest)
            assert text == expected[-1]
            assert done["digest"] == digest
        assert len(set(expected)) == 3, "the adapters change the answer, so the comparison can fail"
        assert ask(live, prompt=prompt)[0] == expected[0], "nothing of an adapter is left in the base"


def test_answer_of_the_base_is_the_one_with_a_zero_vector(live: Live) -> None:
    path, digest = live.vector(0, strength=0.0)
    text, done = ask(live, vector=str(path), digest=digest)
    assert text == ask(live)[0]
    assert done["digest"] == digest
    assert ask(live)[1]["digest"] == BASE


def test_seed_decides_the_drawn_answer(live: Live) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.95}
    first = ask(live, **drawn, seed=7)[0]
    assert ask(live, **drawn, seed=7)[0] == first
    assert ask(live, **drawn, seed=8)[0] != first
    assert ask(live, **drawn)[0] != ask(live, **drawn)[0]


def test_several_answers_are_those_of_their_seeds(live: Live) -> None:
    drawn = {"temperature": 1.0}
    both, done = ask(live, **drawn, seed=7, n=2)
    assert both.split("|") == [ask(live, **drawn, seed=7)[0], ask(live, **drawn, seed=8)[0]]
    assert done["usage"]["completion_tokens"] == 48


def test_tiny_top_p_is_greedy(live: Live) -> None:
    assert ask(live, temperature=2.0, top_p=0.0, seed=1)[0] == ask(live)[0]


def test_answer_stops_before_a_stop_sequence_and_at_the_end_token(live: Live) -> None:
    whole = ask(live)[0]
    cut, done = ask(live, stop=[whole[5:9], "never"])
    assert cut == whole[: whole.index(whole[5:9])]
    assert done["finish_reasons"] == {"stop"}
    assert done["usage"]["completion_tokens"] < 24
    assert ask(live)[1]["finish_reasons"] == {"length"}


def test_prompt_of_token_ids_equals_its_text(live: Live) -> None:
    assert ask(live, prompt=list(PROMPT.encode()))[0] == ask(live)[0]
    with pytest.raises(JobRefused) as caught:
        ask(live, prompt=[10**9])
    assert caught.value.reason == "bad_tokens"


def test_chat_is_the_completion_of_its_template(live: Live) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße?"}]
    text = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns) + "<|im_start|>assistant\n"
    assert ask(live, prompt=None, messages=turns)[0] == ask(live, prompt=text)[0]


def test_what_does_not_fit_the_context_is_refused_with_the_limit(live: Live) -> None:
    with pytest.raises(ContextTooLong) as caught:
        ask(live, prompt="x" * 500, max_tokens=13)
    assert caught.value.limit == 512
    assert ask(live, prompt="x" * 500, max_tokens=12)[1]["usage"]["prompt_tokens"] == 500
    assert ask(live, prompt="x" * 500, max_tokens=None)[1]["usage"]["completion_tokens"] <= 12
    with pytest.raises(ContextTooLong):
        ask(live, prompt="x" * 512, max_tokens=None)


def test_empty_prompt_is_answered(live: Live) -> None:
    assert ask(live, prompt="")[1]["usage"]["prompt_tokens"] == 1


def test_vector_under_a_wrong_digest_is_refused(live: Live) -> None:
    path, _ = live.vector(3)
    with pytest.raises(BadVector, match="its digest is not"):
        ask(live, vector=str(path), digest="00" * 32)


def test_bad_vector_files_are_refused_with_the_reason_and_the_engine_goes_on(live: Live, tmp_path: Path) -> None:
    files = {
        "short": (np.zeros(7, dtype=np.float32), "7 coordinates"),
        "wide": (np.zeros(live.coordinates, dtype=np.float64), "float32"),
        "nan": (np.full(live.coordinates, np.nan, dtype=np.float32), "NaN"),
        "pickle": (np.array([{"a": 1}], dtype=object), "ValueError"),
    }
    for name, (values, _) in files.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for name, reason in (*((n, r) for n, (_, r) in files.items()), ("cut", "couldn't read"), ("missing", "missing")):
        with pytest.raises(BadVector, match=reason):
            ask(live, vector=str(tmp_path / f"{name}.npy"))
        job = {"job": "register", "vector": str(tmp_path / f"{name}.npy")}
        with pytest.raises(BadVector, match=reason):
            live.loop.run(live.serving.child.request(job, timeout=60))
    assert ask(live)[1]["event"] == "done"


def test_adapter_of_another_base_is_refused(live: Live) -> None:
    with pytest.raises(JobRefused, match="is not served here") as caught:
        ask(live, **with_vector(live, 4), base="00" * 32)
    assert caught.value.reason == "wrong-base"


def test_job_keeps_the_version_it_was_bound_to(live: Live) -> None:
    """Whatever is registered, replaced on disk or dropped while it runs."""
    child = live.serving.child
    named = with_vector(live, 4)
    alone = ask(live, **named, max_tokens=100)[0]
    other = live.vector(5)[0]

    async def race() -> tuple[str, str]:
        async def answer(events: list[str]) -> str:
            job = {"job": "generate", "prompt": PROMPT, "max_tokens": 100, **named}
            done = await child.request(job, lambda event: events.append(event["text"]))
            return str(done["digest"])

        texts: list[str] = []
        running = asyncio.create_task(answer(texts))
        while not texts:
            await asyncio.sleep(0.01)
        Path(named["vector"]).write_bytes(other.read_bytes())
        await child.request({"job": "register", "vector": str(other)})
        await child.request({"job": "drop", **named})
        return await running, "".join(texts)

    assert live.loop.run(race()) == (named["digest"], alone)
    with pytest.raises(BadVector):  # it is gone from memory, and what lies on disk now is not it
        ask(live, **named)


def test_scores_and_embeddings_come_through_the_process(live: Live) -> None:
    async def both() -> tuple[list[Piece], Any]:
        asked = Sampling(max_tokens=4, logprobs=3, echo=True)
        parts = [part async for part in live.serving.generate(live.serving.find("base"), PROMPT, asked)]
        return [p for p in parts if isinstance(p, Piece)], await live.serving.embed([PROMPT, "x", PROMPT])

    pieces, (vectors, usage) = live.loop.run(both())
    assert pieces[0].text == PROMPT
    tokens = [token for piece in pieces for token in piece.tokens]
    assert b"".join(token.raw for token in tokens).decode() == "".join(piece.text for piece in pieces)
    assert [token.logprob is None for token in tokens] == [True] + [False] * (len(tokens) - 1)
    assert all(len(token.top) == 3 for token in tokens[1:])
    assert vectors.shape == (3, 128)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=0.1)
    assert usage.prompt_tokens == 2 * len(PROMPT) + 1


def test_stats_count_what_was_done(live: Live) -> None:
    before = live.loop.run(live.serving.stats())
    ask(live, model="counted", **{k: v for k, v in with_vector(live, 6).items() if k != "model"})
    after: Any = live.loop.run(live.serving.stats())
    assert after["per_adapter"]["counted"] == {"requests": 1, "tokens": 24, "waiting": 0}
    assert after["tier_hits_disk"] == before["tier_hits_disk"] + 1  # type: ignore[operator]
    assert after["tokens_decode"] > before["tokens_decode"]  # type: ignore[operator]
    assert (after["requests_running"], after["rows_busy"], after["requests_waiting"]) == (0, 0, 0)


def test_jobs_that_make_no_sense_are_refused(live: Live) -> None:
    senseless: tuple[dict[str, Any], ...] = (
        {"job": "dance"},
        {"job": "generate", "model": "base"},
        {"job": "generate", "prompt": PROMPT, "temperature": "hot"},
        {"job": "generate", "prompt": PROMPT, "max_tokens": 0},
        {"job": "generate", "messages": [{"role": "user"}]},
        {"job": "generate", "prompt": PROMPT, "vector": "x.npy", "spec": {"rank": 4}},
        {"job": "embed", "inputs": []},
        {"job": "register"},
    )
    for job in senseless:
        with pytest.raises((JobRefused, BadVector)):
            live.loop.run(live.serving.child.request(job, timeout=60))
    with pytest.raises(JobRefused):
        ask(live, n=100)
