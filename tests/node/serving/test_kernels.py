"""Every kernel against its torch reference, and what happens where they can't be built."""

import ctypes
import logging
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrib.llama_config import Config
from contrib.models import tiny_folder
from node.serving.engine import kernels, ops
from node.serving.engine.adapter import Pair
from node.serving.engine.cache import PAGE
from node.serving.engine.model import Site
from node.serving.engine.ops import Batch, Segment
from node.serving.engine.rows import Work
from node.serving.engine.runner import LlamaRunner

TYPES = st.sampled_from([torch.float32, torch.bfloat16])
SIXTEENS = st.integers(1, 12).map(lambda n: 16 * n)
few = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def library():
    torch.set_num_threads(1)
    found = kernels.load()
    if found is None:
        pytest.skip("no compiler here")
    return found


def random(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found, expected, dtype=torch.float32):
    """Equal up to the last bits of the type; the sums behind it are float32 in both."""
    bound = 2e-5 if dtype == torch.float32 else 1e-2
    scale = float(expected.float().abs().max()) + 1e-6
    assert float((found.float() - expected.float()).abs().max()) <= bound * scale


@few
@given(TYPES, st.integers(1, 70), SIXTEENS, st.integers(1, 200), st.booleans(), st.integers(0, 99))
def test_linear_is_the_references(library, dtype, n, width, out, biased, seed):
    x, weight = random(seed, n, width, dtype=dtype), random(seed + 1, out, width, dtype=dtype)
    bias = random(seed + 2, out) if biased else None
    found = kernels.Packed(library, weight)(x, bias)
    close(found, ops.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    one = n // 2
    assert torch.equal(kernels.Packed(library, weight)(x[one : one + 1], bias)[0], found[one])  # alone: the same bits


@few
@given(TYPES, st.integers(1, 9), SIXTEENS, st.integers(0, 99))
def test_rms_and_gate_are_the_references(library, dtype, n, width, seed):
    x, weight = random(seed, n, width) * 9, random(seed + 1, width, dtype=dtype)
    bf16, found = dtype == torch.bfloat16, torch.empty(n, width, dtype=dtype)
    library.fn_rms(bf16, found.data_ptr(), width, x.data_ptr(), weight.data_ptr(), n, width, 1e-5)
    close(found, ops.rms(x, weight, 1e-5), dtype)
    both = random(seed + 2, n, 2 * width) * 30
    both[0, 0], both[0, 1], both[0, 2] = -500.0, 500.0, 0.0  # beyond where e^x is finite
    library.fn_gate(bf16, found.data_ptr(), width, both.data_ptr(), n, width)
    close(found, ops.gate(both, dtype), dtype)


def test_numbers_that_are_not_finite_stay_so(library):
    for dtype in (torch.float32, torch.bfloat16):
        bf16, found = dtype == torch.bfloat16, torch.empty(1, 16, dtype=dtype)
        for wrong in (float("nan"), float("inf")):
            x = torch.ones(1, 32)
            x[0, 3] = wrong
            library.fn_gate(bf16, found.data_ptr(), 16, x.data_ptr(), 1, 16)
            assert not torch.isfinite(found[0, 3])
            library.fn_rms(
                bf16, found.data_ptr(), 16, x.data_ptr(), torch.ones(16, dtype=dtype).data_ptr(), 1, 16, 1e-5
            )
            assert not torch.isfinite(found).all()


@few
@given(
    TYPES,
    st.sampled_from([(1, 1), (3, 1), (4, 2), (9, 3), (14, 2), (5, 1)]),
    st.sampled_from([16, 32, 64, 80, 128]),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_attend_is_the_references(library, dtype, heads, dim, rows, seed):
    q, kv = heads
    config = Config(
        layers=1, hidden=16, heads=q, kv_heads=kv, head_dim=dim, intermediate=16, vocabulary=9, context=99, eps=1e-5,
        theta=1e4, rope={"rope_type": "default"}, qkv_bias=False,
    )  # fmt: skip
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed)).tolist()
    segments, n = [], 0
    for start, count in rows:
        own = -(-(start + count) // PAGE)
        segments.append(Segment(begin=n, count=count, start=start, slot=0, pages=[order.pop() for _ in range(own)]))
        n += count
    batch = Batch(ids=[0] * n, segments=tuple(segments))
    keys, values = random(seed, 30, kv, dim, PAGE, dtype=dtype), random(seed + 1, 30, kv, PAGE, dim, dtype=dtype)
    angles = random(seed + 2, 99, dim // 2)
    tables, qkv = (angles.cos(), angles.sin()), random(seed + 3, n, (q + 2 * kv) * dim)
    k, v = keys.clone(), values.clone()
    for number in range(30):  # what nobody wrote may hold any bits
        if all(number not in segment.pages for segment in segments):
            k[number], v[number] = float("nan"), float("nan")
    for segment in segments:
        last, filled = segment.pages[-1], (segment.start + segment.count - 1) % PAGE + 1
        k[last, :, :, filled:], v[last, :, filled:] = float("nan"), float("nan")
    positions = torch.tensor(batch.positions)
    expected = ops.attend(qkv, config, (tables[0][positions], tables[1][positions]), keys, values, batch)
    tokens, alive = kernels.tokens_of(batch)
    shape = kernels.Heads(q, kv, dim)
    rotary = kernels.Rotary(*(table.data_ptr() for table in tables))
    found, room = torch.empty(n, q * dim, dtype=dtype), torch.empty(n, q * dim)
    library.fn_attend(
        dtype == torch.bfloat16, found.data_ptr(), q * dim, room.data_ptr(), qkv.data_ptr(), ctypes.addressof(rotary),
        ctypes.addressof(tokens), k.data_ptr(), v.data_ptr(), ctypes.addressof(shape),
    )  # fmt: skip
    assert alive
    close(found, expected, dtype)


@few
@given(
    TYPES,
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.sampled_from([1, 3, 8, 11, 16]),
    st.sampled_from([(0, 1, 2), (0, 2), (1,)]),
    st.integers(0, 99),
)
def test_bgmv_is_the_references(library, dtype, slots, rank, parts, seed):
    layers, width, outs = 2, 48, (80, 16, 32)
    site = Site(name="s", parts=("a", "b", "c"), width=width, outs=outs, layers=layers)
    table, pairs = kernels.SlotTable(3, width, outs), {}
    for slot in (1, 2):  # slot 3 has nothing at this site
        own = rank + slot - 1
        a = random(seed + slot, layers, len(parts) * own, width, dtype=dtype)
        b = random(seed + 9 * slot, layers, own, sum(outs[j] for j in parts), dtype=dtype)
        pairs[slot] = Pair(a=a, b=b, parts=parts)
        table.put(slot, pairs[slot])
    x, y = random(seed, len(slots), width, dtype=dtype), random(seed + 5, len(slots), sum(outs))
    expected = y.clone()
    groups = [(torch.tensor([i for i, s in enumerate(slots) if s == slot]), pair) for slot, pair in pairs.items()]
    ops.bgmv(expected, x, site, 1, [(tokens, pair) for tokens, pair in groups if len(tokens)])
    numbers = np.array(slots, dtype=np.int32)
    library.fn_bgmv(
        dtype == torch.bfloat16, y.data_ptr(), y.stride(0), x.data_ptr(), width, len(slots),
        ctypes.addressof(table.head), numbers.ctypes.data, 1,
    )  # fmt: skip
    close(y, expected)


def test_the_whole_pass_gives_what_torch_gives(library):
    found = []
    for native in (True, False):
        runner = LlamaRunner(tiny_folder(), rows=2, dtype=torch.float32, use_kernels=native)
        row = runner.open(list(range(40)), 0, "base").row
        (logits,) = runner.step([Work(row=row, ids=list(range(40)), want="all")])
        found.append(logits)
    close(*found)


def test_two_threads_give_the_bits_of_one(library):
    runner = LlamaRunner(tiny_folder(), rows=2, dtype=torch.float32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        row = runner.open(list(range(40)), 0, "base").row
        found += runner.step([Work(row=row, ids=list(range(40)), want="all")])
        runner.close(row, keep=False)
    torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "instructions"),
    [(["-mno-amx-bf16"], "avx512-bf16"), (["-march=x86-64-v3"], "portable"), (["-march=x86-64"], "portable")],
)
def test_every_instruction_set_gives_the_references_numbers(library, tmp_path, more, instructions):
    if instructions not in (library.instructions, "portable") and library.instructions == "portable":
        pytest.skip("this processor has no such instructions")
    other = kernels.open_library(kernels.build(tmp_path, more=more))
    assert other.instructions == instructions
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = random(1, 23, 80, dtype=dtype), random(2, 150, 80, dtype=dtype)
        packed = kernels.Packed(other, weight)
        close(packed(x), ops.linear(x.double(), weight.double()))
        assert torch.equal(packed(x[5:6])[0], packed(x)[5])


# -- building --------------------------------------------------------------------------------------------------------
def test_a_missing_compiler_only_costs_speed_and_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path))
    kernels.load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            runners = [LlamaRunner(tiny_folder(), rows=1) for _ in range(2)]
        assert [runner.kernels for runner in runners] == ["torch", "torch"]
        assert len(caplog.records) == 1
        assert "event=kernels-not-built effect=slower-answers" in caplog.text
        row = runners[0].open([1, 2], 0, "base").row
        assert torch.isfinite(runners[0].step([Work(row=row, ids=[1, 2])])[0]).all()
    finally:
        kernels.load.cache_clear()


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path):
    wrong = tmp_path / "cc"
    wrong.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho broken >&2\nexit 3\n')
    wrong.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        kernels.build(tmp_path / "cache", compiler=str(wrong))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_library_that_is_there_is_not_built_again(tmp_path):
    count = tmp_path / "count"
    fake = tmp_path / "cc"  # writes what it was asked to make
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho x >> {count}\n'
        'while [ $# -gt 1 ]; do shift; [ "$1" = -o ] && echo made > "$2"; done; exit 0\n'
    )
    fake.chmod(0o755)
    first = kernels.build(tmp_path / "cache", compiler=str(fake))
    assert kernels.build(tmp_path / "cache", compiler=str(fake)) == first
    assert count.read_text() == "x\n"
