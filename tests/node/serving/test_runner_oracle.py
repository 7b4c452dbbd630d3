"""The engine's forward pass against transformers and PEFT in float32: the one module of the runner that imports them."""

import json
import warnings

import numpy as np
import pytest
import torch

from contrib import adapters
from contrib.adapters import AdapterSpec
from contrib.llama_config import Unfit
from contrib.models import tiny_folder
from node.serving.engine.adapter import from_peft, from_vector
from node.serving.engine.fallback import FallbackRunner
from node.serving.engine.model import read_config
from node.serving.engine.rows import Work
from node.serving.engine.runner import LlamaRunner, open_runner

SPEC = AdapterSpec(rank=4, alpha=8, targets=("all-linear",), seed="5e" * 32)
PROMPTS = [list(b"The people of the United States"), list(b"Call me"), list(b"whale " * 9), list(b"A")]
TOKENS = 12
SMALL = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def greedy(runner, prompts, slots):
    """Tokens and logits of all rows, answered together: prompts in uneven chunks, then one token each."""
    rows = [runner.open(p, s, str(s)) for p, s in zip(prompts, slots, strict=True)]
    firsts = runner.step(
        [Work(row=r.row, ids=p[:-1], want="none") for r, p in zip(rows, prompts, strict=True) if p[:-1]]
    )
    assert firsts == [None] * len(firsts)
    feed = [p[-1:] for p in prompts]
    tokens, logits = [[] for _ in prompts], [[] for _ in prompts]
    for _ in range(TOKENS):
        found = runner.step([Work(row=r.row, ids=ids) for r, ids in zip(rows, feed, strict=True)])
        for at, row in enumerate(found):
            logits[at].append(row[0])
            tokens[at].append(int(row[0].argmax()))
            feed[at] = tokens[at][-1:]
    for row in rows:
        runner.close(row.row, keep=False)
    return tokens, [torch.stack(rows) for rows in logits]


def expected(model, prompt, answer):
    """transformers' logits [TOKENS, vocabulary] where it was given the same tokens."""
    with torch.inference_mode():
        return model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :].float()


def agree(model, prompt, tokens, logits):
    theirs = expected(model, prompt, tokens)
    assert theirs.argmax(-1).tolist() == tokens
    assert float((theirs - logits).abs().max()) < 1e-3


def vectors(count):
    size = adapters.layout(tiny_folder(), SPEC).coordinates
    return [np.random.default_rng(n).normal(0, 0.3, size).astype(np.float32) for n in range(count)]


def whole():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32, local_files_only=True)


def test_mixed_rows_of_strong_adapters_answer_as_peft_does():
    runner = LlamaRunner(tiny_folder(), dtype=torch.float32)
    strong = vectors(3)
    slots = [runner.activate(from_vector(v, SPEC, runner.shape, torch.float32)) for v in strong]
    tokens, logits = greedy(runner, PROMPTS, [*slots, 0])
    bare, _ = greedy(runner, PROMPTS, [0] * 4)
    for mine, base in zip(tokens[:3], bare[:3], strict=True):
        assert sum(a == b for a, b in zip(mine, base, strict=True)) <= 2  # the adapters do decide the answers
    model = whole()
    agree(model, PROMPTS[3], tokens[3], logits[3])
    peft = adapters.attach(model, SPEC).eval()
    for at, vector in enumerate(strong):
        adapters.load_b(peft, vector)
        agree(peft, PROMPTS[at], tokens[at], logits[at])


def test_a_peft_folder_answers_as_peft_does(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = whole()
    config = LoraConfig(
        r=3,
        lora_alpha=9,
        use_rslora=True,
        target_modules=["k_proj", "up_proj", "down_proj"],
        rank_pattern={"up_proj": 5},
        alpha_pattern={"down_proj": 4},
        layers_to_transform=[1, 3],
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, part in peft.named_parameters():
            if "lora_B" in name:
                part.normal_(0, 0.5)
    peft.save_pretrained(tmp_path)
    runner = LlamaRunner(tiny_folder(), dtype=torch.float32)
    adapter = from_peft(tmp_path, runner.shape, torch.float32)
    assert sorted(adapter.sites) == ["down", "gate_up", "qkv"]
    tokens, logits = greedy(runner, PROMPTS[:2], [runner.activate(adapter), 0])
    agree(peft, PROMPTS[0], tokens[0], logits[0])
    with peft.disable_adapter():
        agree(peft, PROMPTS[1], tokens[1], logits[1])


LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
FAMILIES = {
    "llama-3": ("LlamaForCausalLM", "LlamaConfig", dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    "llama, wide heads, linear positions": (
        "LlamaForCausalLM",
        "LlamaConfig",
        dict(head_dim=16, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(num_key_value_heads=4, sliding_window=60)),
}


def make(kind, config, folder, **more):
    import transformers  # here, so that whoever only collects the tests does not pay for it

    torch.manual_seed(0)
    kind, config = getattr(transformers, kind), getattr(transformers, config)
    model = kind(config(**{**SMALL, **more})).eval()
    with torch.no_grad():
        for name, part in model.named_parameters():  # biases are born zero, and small weights give even logits
            part.copy_(torch.randn_like(part) * 0.3 + ("norm" in name and "weight" in name))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_answers_as_transformers_does(family, tmp_path):
    kind, config, more = FAMILIES[family]
    model = make(kind, config, tmp_path, **more)
    runner = LlamaRunner(tmp_path, dtype=torch.float32)
    prompts = [np.random.default_rng(n).integers(0, 97, 5 + 17 * n).tolist() for n in range(3)]
    tokens, logits = greedy(runner, prompts, [0] * 3)
    for at, prompt in enumerate(prompts):
        agree(model, prompt, tokens[at], logits[at])
    hidden = model.model(torch.tensor(prompts[1:2])).last_hidden_state[0].mean(0)
    assert torch.allclose(runner.embed(prompts[1]), hidden, atol=1e-4)


def test_a_sliding_window_shortens_the_context(tmp_path):
    make("MistralForCausalLM", "MistralConfig", tmp_path, num_key_value_heads=4, sliding_window=60)
    assert LlamaRunner(tmp_path).context == 60


def test_another_family_runs_on_transformers_with_the_same_answers(tmp_path):
    model = make("GPTNeoXForCausalLM", "GPTNeoXConfig", tmp_path)
    runner = open_runner(tmp_path, dtype=torch.float32)
    assert isinstance(runner, FallbackRunner)
    spec = AdapterSpec(rank=2, alpha=8, targets=("query_key_value", "dense_4h_to_h"), seed="5e" * 32)
    size = adapters.layout(tmp_path, spec).coordinates
    strong = [np.random.default_rng(n).normal(0, 0.5, size).astype(np.float32) for n in range(2)]
    slots = [runner.activate(from_vector(v, spec, runner.shape, torch.float32)) for v in strong]
    prompts = [np.random.default_rng(n).integers(0, 97, 6 + n).tolist() for n in range(4)]
    tokens, logits = greedy(runner, prompts, [*slots, 0, slots[0]])
    agree(model, prompts[2], tokens[2], logits[2])
    hidden = model.gpt_neox(torch.tensor(prompts[2:3])).last_hidden_state[0].mean(0)
    assert torch.allclose(runner.embed(prompts[2]), hidden, atol=1e-4)
    peft = adapters.attach(model, spec).eval()
    for at, vector in ((0, strong[0]), (1, strong[1]), (3, strong[0])):
        adapters.load_b(peft, vector)
        agree(peft, prompts[at], tokens[at], logits[at])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_what_the_forward_pass_lacks_is_named(tmp_path, change, named):
    config = json.loads((tiny_folder() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(Unfit, match=named):
        read_config(tmp_path)
