"""TIES, DARE-TIES and task arithmetic are PEFT's own where both mean the same: dense, equal weights, no ties in size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts_to_merge import MEMBERS, register

from contrib import recipes

P = 50
SEATS = MEMBERS[:4]
WEIGHTS = dict.fromkeys(SEATS, 1)


@pytest.fixture(scope="module")
def peft():
    """PEFT's merge_utils alone: importing the whole of it takes seconds."""
    found = importlib.util.find_spec("peft")
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location("merge_utils", Path(found.origin).parent / "utils" / "merge_utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dense():
    units = np.random.default_rng(0).choice(
        np.arange(1, 2**20), (4, P), replace=False
    )  # no two alike: no ties in trimming
    units *= np.random.default_rng(1).choice([-1, 1], (4, P))
    return {m: register(row) for m, row in zip(SEATS, units, strict=True)}, [torch.tensor(row / 2**24) for row in units]


def merge(text, registers):
    return recipes.merge(text, registers, WEIGHTS, 4, P)


@pytest.mark.parametrize("keep", [20, 200, 500, 900])
def test_ties_is_pefts(peft, dense, keep):
    registers, tensors = dense
    want = peft.ties(tensors, torch.ones(4), keep / 1000).numpy()
    text = "ties/1" if keep == 200 else f"ties/1:keep={keep}"
    assert np.allclose(merge(text, registers), want, rtol=1e-6, atol=0)


def test_task_arithmetic_is_pefts(peft, dense):
    registers, tensors = dense
    want = peft.task_arithmetic(tensors, torch.full((4,), 0.3)).numpy()
    assert np.allclose(merge("task-arithmetic/1", registers), want, rtol=1e-5, atol=1e-10)
    minus = peft.task_arithmetic(tensors, torch.tensor([0.3, -0.3, 0.3, 0.3])).numpy()
    assert np.allclose(
        merge(f"task-arithmetic/1:minus={int(SEATS[1][:8], 16)}", registers), minus, rtol=1e-5, atol=1e-10
    )


@pytest.mark.parametrize("drop", [100, 500, 900])
def test_dare_keeps_the_mean_as_pefts_does_and_dare_ties_is_pefts_with_our_draws(peft, dense, drop, monkeypatch):
    registers, tensors = dense
    name = "dare-ties/1" + (f":drop={drop}" if drop != 500 else "")
    from contrib.recipes import tasks

    masks = iter([tasks.draws("dare-ties/1", m, registers[m]) >= 65536 * drop // 1000 for m in sorted(SEATS)])
    monkeypatch.setattr(torch, "bernoulli", lambda _p: torch.tensor(next(masks)).double())
    order = [SEATS.index(m) for m in sorted(SEATS)]
    want = peft.dare_ties([tensors[i] for i in order], torch.ones(4), 1 - drop / 1000).numpy()
    assert np.allclose(merge(name, registers), want, rtol=1e-5, atol=1e-10)
