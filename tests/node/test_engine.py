"""The engine process answers as the plain libraries do, and every request on the vector it was bound to."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrib.adapters import AdapterSpec, attach, load_b
from contrib.models import tiny_folder
from node.errors import ContextTooLong, JobRefused
from node.jobs import Event
from tests.support.live_engine import ADAPTER, Live

PROMPT = "The people of the United States"


def ask(live: Live, **job: Any) -> tuple[str, Event]:
    texts: dict[int, str] = {}

    def on_event(event: Event) -> None:
        texts[event["index"]] = texts.get(event["index"], "") + event["text"]

    job = {"job": "generate", "model": "base", "prompt": PROMPT, "max_tokens": 24, **job}
    done = live.loop.run(live.serving.child.request(job, on_event, timeout=60))
    return "|".join(texts[index] for index in sorted(texts)), done


def with_vector(live: Live, seed: int, strength: float = 0.3) -> dict[str, Any]:
    path, digest = live.vector(seed, strength)
    return {"model": digest, "vector": str(path), "digest": digest}


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


def test_greedy_answers_equal_those_of_transformers_for_base_and_adapters(live: Live, reference: Any) -> None:
    long_prompt = PROMPT + " and of the several States" * 12  # more than one chunk of the prompt
    for prompt in (PROMPT, long_prompt):
        expected = [reference(None, prompt, 24)]
        assert ask(live, prompt=prompt)[0] == expected[0]
        for seed in (1, 2):
            path, digest = live.vector(seed)
            expected.append(reference(path, prompt, 24))
            assert ask(live, prompt=prompt, model=digest, vector=str(path))[0] == expected[-1]
        assert len(set(expected)) == 3, "the adapters change the answer, so the comparison can fail"
        assert ask(live, prompt=prompt)[0] == expected[0], "nothing of an adapter is left in the base"


def test_answer_of_the_base_is_the_one_with_a_zero_vector(live: Live) -> None:
    zero = {"model": "zero", "vector": None}
    live.loop.run(live.serving.child.request({"job": "register", "name": "zero", "vector": None}))
    assert ask(live, **zero)[0] == ask(live)[0]


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
    assert done["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] < 24
    assert ask(live)[1]["finish_reason"] == "length"


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
    with pytest.raises(JobRefused) as caught:
        ask(live, model="other", vector=str(path), digest="00" * 32)
    assert caught.value.reason == "bad-vector"


def test_bad_vector_files_are_refused_and_the_engine_goes_on(live: Live, tmp_path: Path) -> None:
    files = {
        "short": np.zeros(7, dtype=np.float32),
        "wide": np.zeros(live.coordinates, dtype=np.float64),
        "nan": np.full(live.coordinates, np.nan, dtype=np.float32),
        "pickle": np.array([{"a": 1}], dtype=object),
    }
    for name, values in files.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for name in (*files, "cut", "missing"):
        with pytest.raises(JobRefused) as caught:
            ask(live, model=name, vector=str(tmp_path / f"{name}.npy"))
        assert caught.value.reason == "bad-vector", name
    assert ask(live)[1]["event"] == "done"


def test_job_keeps_the_vector_it_was_bound_to(live: Live) -> None:
    import asyncio

    child = live.serving.child
    named = with_vector(live, 4)
    alone = ask(live, **named)[0]
    other = live.vector(5)[0]

    async def race() -> str:
        async def answer(events: list[str]) -> None:
            job = {"job": "generate", "prompt": PROMPT, "max_tokens": 24, "model": named["model"]}
            await child.request(job, lambda event: events.append(event["text"]))

        busy = asyncio.create_task(
            child.request({"job": "generate", "model": "base", "prompt": PROMPT, "max_tokens": 200})
        )
        await asyncio.sleep(0.05)
        texts: list[str] = []
        queued = asyncio.create_task(answer(texts))
        await asyncio.sleep(0.05)
        await child.request({"job": "register", "name": named["model"], "vector": str(other)})
        await child.request({"job": "drop", "name": named["model"]})
        await asyncio.gather(busy, queued)
        return "".join(texts)

    assert live.loop.run(race()) == alone
    with pytest.raises(JobRefused) as caught:
        ask(live, model=named["model"])
    assert caught.value.reason == "unknown_adapter"


def test_jobs_that_make_no_sense_are_refused(live: Live) -> None:
    for job in ({"job": "dance"}, {"job": "generate", "model": "base"}):
        with pytest.raises(JobRefused):
            live.loop.run(live.serving.child.request(job))
    with pytest.raises(JobRefused):
        ask(live, n=100)


def test_engine_that_is_given_no_model_says_so_and_ends_with_its_input() -> None:
    jobs = b'not json\n{"id":1,"job":"generate","model":"base","prompt":"a"}\n[]\n{"id":"x"}\n'
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "node.serving.engine"],
        input=jobs,
        capture_output=True,
        timeout=60,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0
    assert not done.stdout or b"not_loaded" in done.stdout
