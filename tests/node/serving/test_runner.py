"""The engine's forward pass with the test model: rows do not touch each other, and pages are shared and forgotten."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contrib.adapters import AdapterSpec, layout
from contrib.errors import BadAdapter, BadModel
from contrib.models import tiny_folder
from node.errors_serving import BadVector, ContextTooLong
from node.serving.engine.adapter import from_peft, from_vector
from node.serving.engine.cache import PAGE
from node.serving.engine.rows import Work
from node.serving.engine.runner import LlamaRunner

ALL = AdapterSpec(rank=4, alpha=8, targets=("all-linear",), seed="5e" * 32)
QV = AdapterSpec(rank=3, alpha=3, targets=("q_proj", "v_proj"), seed="5e" * 32)
TEXT = list(b"We the People of the United States, in Order to form a more perfect Union, establish Justice")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["kernels, bfloat16", "kernels, float32", "torch"])
def runner(request):
    dtype = torch.bfloat16 if "bfloat16" in request.param else torch.float32
    made = LlamaRunner(tiny_folder(), rows=6, dtype=dtype, use_kernels="kernels" in request.param)
    if "kernels" in request.param and made.kernels == "torch":
        pytest.skip("no compiler here")
    return made


def made(runner, seed, spec=ALL, strength=0.3):
    size = layout(tiny_folder(), spec).coordinates
    vector = np.random.default_rng(seed).normal(0, strength, size).astype(np.float32)
    return from_vector(vector, spec, runner.shape, runner.dtype)


def alone(runner, prompt, slot, count):
    """Logits [count, vocabulary] of a greedy answer with nothing else in the batch."""
    row = runner.open(prompt, slot, f"alone-{slot}").row
    (last,) = runner.step([Work(row=row, ids=prompt)])
    found = [last]
    for _ in range(count - 1):
        (last,) = runner.step([Work(row=row, ids=[int(last.argmax())])])
        found.append(last)
    runner.close(row, keep=False)
    return torch.cat(found)


def test_a_row_in_a_mixed_batch_gets_the_bits_it_gets_alone(runner):
    slots = [0, *(runner.activate(made(runner, n, spec)) for n, spec in enumerate((ALL, QV, ALL)))]
    prompts = [TEXT[:5], TEXT[:40], TEXT[3:4], TEXT[:61]]
    expected = [alone(runner, p, s, 6) for p, s in zip(prompts, slots, strict=True)]
    rows = [runner.open(p, s, str(s)).row for p, s in zip(prompts, slots, strict=True)]
    found = [[] for _ in rows]
    waiting = [list(p) for p in prompts]
    chunks = [5, 7, 1, 33]  # prompts are read in uneven pieces while others decode already
    while any(len(f) < 6 for f in found):
        work, reading = [], []
        for at, row in enumerate(rows):
            ids, waiting[at] = waiting[at][: chunks[at]], waiting[at][chunks[at] :]
            if len(found[at]) < 6:
                work.append(Work(row=row, ids=ids, want="none" if waiting[at] else "last"))
                reading.append(at)
        for at, logits in zip(reading, runner.step(work), strict=True):
            if logits is not None:
                found[at].append(logits)
                waiting[at] = [int(logits.argmax())]
    for row in rows:
        runner.close(row, keep=False)
    for slot in slots[1:]:
        runner.deactivate(slot)
    assert len({tuple(e.argmax(-1).tolist()) for e in expected}) == 4
    for mine, theirs in zip(found, expected, strict=True):
        if runner.kernels == "torch":  # its libraries sum in another order for another batch
            assert torch.allclose(torch.cat(mine), theirs, atol=1e-4)
            assert torch.equal(torch.cat(mine).argmax(-1), theirs.argmax(-1))
        else:
            assert torch.equal(torch.cat(mine), theirs)


def test_an_adapter_whose_numbers_overflow_does_not_touch_other_rows(runner):
    expected = alone(runner, TEXT[:20], 0, 3)
    broken = runner.activate(made(runner, 1, strength=3e37))
    bad, good = runner.open(TEXT[:9], broken, "x").row, runner.open(TEXT[:20], 0, "alone-0").row
    first, second = runner.step([Work(row=bad, ids=TEXT[:9]), Work(row=good, ids=TEXT[:20])])
    assert not torch.isfinite(first).all()
    assert torch.allclose(second, expected[:1], atol=1e-4)
    runner.close(bad, keep=False)
    again = runner.open(TEXT[:9], 0, "alone-0").row  # gets the pages that the broken row wrote
    (logits,) = runner.step([Work(row=again, ids=TEXT[:9])])
    assert torch.isfinite(logits).all()
    runner.close(again, keep=False)
    runner.close(good, keep=False)
    runner.deactivate(broken)


def test_the_second_prompt_that_begins_alike_is_read_from_its_difference_on(runner):
    first = runner.open(TEXT, 0, "base")
    assert first.cached == 0
    (expected,) = runner.step([Work(row=first.row, ids=TEXT)])
    second = runner.open(TEXT, 0, "base")  # while the first one still runs
    assert second.cached == (len(TEXT) - 1) // PAGE * PAGE
    (found,) = runner.step([Work(row=second.row, ids=TEXT[second.cached :])])
    assert torch.allclose(found, expected, atol=1e-4)
    if runner.kernels != "torch":
        assert torch.equal(found, expected)
    runner.close(first.row, keep=True)
    runner.close(second.row, keep=True)
    third = runner.open([*TEXT[:PAGE], 1, *TEXT[PAGE:]], 0, "base")
    assert third.cached == PAGE
    runner.close(third.row, keep=False)


def test_nothing_is_found_under_another_version_or_after_it_was_not_kept(runner):
    for version, keep, cached in (
        ("one", True, 0),
        ("two", True, 0),
        ("one", False, 80),
        ("three", False, 0),
        ("three", True, 0),
    ):
        opened = runner.open(TEXT, 0, version)
        assert opened.cached == cached
        runner.step([Work(row=opened.row, ids=TEXT[cached:], want="none")])
        runner.close(opened.row, keep)


def test_every_wanted_form_comes_in_one_step(runner):
    rows = [runner.open(TEXT[:7], 0, f"want-{n}").row for n in range(4)]
    wants = ("all", "none", "last", "hidden")
    every, none, last, hidden = runner.step(
        [Work(row=row, ids=TEXT[:7], want=want) for row, want in zip(rows, wants, strict=True)]
    )
    assert every.shape == (7, runner.vocabulary)
    assert every.dtype == torch.float32
    assert none is None
    assert torch.allclose(last, every[-1:], atol=1e-4)
    assert torch.allclose(runner.embed(TEXT[:7]), hidden.mean(0), atol=1e-4)
    for row in rows:
        runner.close(row, keep=False)


def test_a_prompt_over_the_context_is_refused_with_the_limit(runner):
    with pytest.raises(ContextTooLong) as refused:
        runner.open([1] * 513, 0, "base")
    assert refused.value.limit == 512
    opened = runner.open([1] * 512, 0, "base")
    with pytest.raises(ContextTooLong):
        runner.step([Work(row=opened.row, ids=[1] * 513)])
    runner.close(opened.row, keep=False)


def test_rows_and_slots_run_out_with_a_clear_error():
    runner = LlamaRunner(tiny_folder(), rows=1, slots=1, use_kernels=False)
    adapter = made(runner, 1)
    slot = runner.activate(adapter)
    assert runner.slots_free(4) == 0
    with pytest.raises(MemoryError, match="slot"):
        runner.activate(adapter)
    row = runner.open([1], slot, "a").row
    with pytest.raises(MemoryError, match="row"):
        runner.open([1], 0, "base")
    with pytest.raises(ValueError, match="uses it"):
        runner.deactivate(slot)
    runner.close(row, keep=False)
    runner.deactivate(slot)
    assert runner.slots_free(4) == 1


def test_keys_and_values_of_full_use_fit_the_pages_that_exist():
    runner = LlamaRunner(tiny_folder(), rows=3, context=40, use_kernels=False)
    for _ in range(3):  # the kept pages of one round give way to the next
        rows = [runner.open([n] * 40, 0, "base") for n in range(3)]
        runner.step([Work(row=r.row, ids=[n] * (40 - r.cached), want="none") for n, r in enumerate(rows)])
        for row in rows:
            runner.close(row.row, keep=True)


# -- adapters --------------------------------------------------------------------------------------------------------
def test_an_adapter_of_a_vector_takes_the_bytes_of_what_it_adapts(runner):
    adapter = made(runner, 1, QV)
    expected = sum(out for _, _, out in layout(tiny_folder(), QV).modules) * QV.rank * runner.dtype.itemsize
    assert adapter.nbytes == expected  # its B alone: A is the same for all versions of a charter
    assert made(runner, 2, QV).sites["qkv"].a is adapter.sites["qkv"].a
    assert set(adapter.sites) == {"qkv"}


@pytest.mark.parametrize("broken", ["short", "nan", "infinite"])
def test_a_vector_that_does_not_fit_is_refused(broken):
    runner = LlamaRunner(tiny_folder(), rows=1, use_kernels=False)
    vector = np.zeros(layout(tiny_folder(), ALL).coordinates, dtype=np.float32)
    if broken == "short":
        vector = vector[:-1]
    else:
        vector[7] = {"nan": np.nan, "infinite": np.inf}[broken]
    with pytest.raises(BadVector):
        from_vector(vector, ALL, runner.shape, runner.dtype)


GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def peft_folder(folder, config=GOOD, a=(2, 128), b=(128, 2), name=Q, fill=1.0, metadata=None):
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parts = {name.format("A"): torch.full(a, fill), name.format("B"): torch.full(b, 1.0)}
    save_file(parts, folder / "adapter_model.safetensors", metadata=metadata)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"config": {**GOOD, "peft_type": "LOHA"}}, "LOHA"),
        ({"config": {**GOOD, "use_dora": True}}, "use_dora"),
        ({"config": {**GOOD, "bias": "all"}}, "biases"),
        ({"config": {**GOOD, "r": 0}}, "rank"),
        ({"a": (2, 64)}, "takes A"),
        ({"b": (128, 3)}, "takes A"),
        ({"name": Q.replace("q_proj", "z_proj")}, "no linear module"),
        ({"name": Q.replace("lora_{}", "lora_embedding_{}")}, "no A or B"),
        ({"fill": float("nan")}, "NaN"),
        ({"metadata": {"fishernet.base": "aa" * 32}}, "was made for base"),
    ],
)
def test_a_peft_folder_that_does_not_fit_is_refused_with_the_reason(tmp_path, change, why):
    runner = LlamaRunner(tiny_folder(), rows=1, base="bb" * 32, use_kernels=False)
    peft_folder(tmp_path)
    assert from_peft(tmp_path, runner.shape, runner.dtype).rank == 2
    peft_folder(tmp_path, **change)
    with pytest.raises(BadAdapter, match=why):
        from_peft(tmp_path, runner.shape, runner.dtype)


def test_a_truncated_peft_folder_is_refused(tmp_path):
    runner = LlamaRunner(tiny_folder(), rows=1, use_kernels=False)
    peft_folder(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BadAdapter, match=r"truncated|bytes"):
        from_peft(tmp_path, runner.shape, runner.dtype)
    file.unlink()
    with pytest.raises(BadAdapter, match="no adapter_model"):
        from_peft(tmp_path, runner.shape, runner.dtype)


def test_a_model_folder_with_a_missing_tensor_is_refused(tmp_path):
    weights = load_file(tiny_folder() / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_folder() / "config.json").read_text())
    with pytest.raises(BadModel, match="up_proj\\.weight is missing"):
        LlamaRunner(tmp_path, use_kernels=False)
