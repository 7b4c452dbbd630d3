import hashlib
import subprocess
import sys

import numpy as np
import pytest

from contrib import adapters, models
from contrib.adapters import AdapterSpec
from contrib.errors import BadAdapter
from protocol.errors import Malformed

SEED = "5e" * 32
QV = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed=SEED)
ALL = AdapterSpec(rank=2, alpha=2, targets=("all-linear",), seed=SEED)


@pytest.fixture
def base():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(models.tiny_folder(), dtype=torch.float32, local_files_only=True)


def test_frozen_a_has_the_same_bytes_on_every_machine():
    a = adapters.frozen_a(SEED, "model.layers.0.self_attn.q_proj", 16, 576)
    assert a.shape == (16, 576)
    assert set(np.unique(a)) == {np.float32(-1 / 24), np.float32(1 / 24)}
    found = hashlib.sha256(a.astype("<f4").tobytes()).hexdigest()
    assert found == "c55506d38d77c1a4b6f80d138d31b7f45a14dee164f6611353d2b50c9d5e79f9"


def test_frozen_a_is_the_documented_stream_of_bits():
    stream = hashlib.shake_256(
        b"fishernet/frozen-a/v1\0" + b"\x5e" * 32 + b"\0\0\0\x03" + b"\0\0\0\x05" + b"layers.0.q"
    ).digest(2)
    signs = [1 if stream[n // 8] >> n % 8 & 1 else -1 for n in range(15)]
    found = adapters.frozen_a(SEED, "layers.0.q", 3, 5)
    assert np.array_equal(np.sign(found).reshape(-1), signs)
    assert set(np.abs(found).reshape(-1)) == {np.float32(5**-0.5)}


def test_frozen_a_depends_on_seed_name_rank_and_width():
    one = adapters.frozen_a(SEED, "m", 4, 64)
    others = [
        adapters.frozen_a("5f" * 32, "m", 4, 64),
        adapters.frozen_a(SEED, "n", 4, 64),
        adapters.frozen_a(SEED, "m", 5, 64)[:4],
    ]
    assert not any(np.array_equal(one, other) for other in others)
    assert abs(np.sign(one).mean()) < 0.25


@pytest.mark.parametrize("spec", [QV, ALL], ids=["q_proj,v_proj", "all-linear"])
def test_layout_without_torch_names_what_peft_trains_in_the_same_order(base, spec):
    layout = adapters.layout(models.tiny_folder(), spec)
    model = adapters.attach(base, spec)
    assert tuple(adapters.modules(model)) == layout.modules
    assert layout.coordinates == len(adapters.read_b(model))
    assert layout.modules == tuple(sorted(layout.modules))
    trainable = [name for name, part in model.named_parameters() if part.requires_grad]
    assert len(trainable) == len(layout.modules)
    assert all(".lora_B." in name for name in trainable)


def test_layout_needs_no_torch():
    code = (
        "import sys; from contrib import adapters, models\n"
        f"adapters.layout(models.tiny_folder(), adapters.AdapterSpec.parse({QV.to_json()!r}))\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_linear_leaves_embeddings_and_head_alone():
    names = [name for name, _, _ in adapters.layout(models.tiny_folder(), ALL).modules]
    assert len(names) == 4 * 7
    assert not any("embed" in name or "head" in name for name in names)


def test_b_vector_is_row_by_row_in_order_of_module_names(base):
    import torch

    model = adapters.attach(base, QV)
    layout = adapters.layout(models.tiny_folder(), QV)
    vector = np.arange(layout.coordinates, dtype=np.float32)
    adapters.load_b(model, vector)
    assert np.array_equal(adapters.read_b(model), vector)
    name, _, out = layout.modules[0]
    first = dict(model.named_parameters())[f"base_model.model.{name}.lora_B.default.weight"]
    assert torch.equal(first, torch.arange(out * 4, dtype=torch.float32).view(out, 4))


def test_attached_adapter_computes_base_plus_scale_b_a(base):
    import torch

    name = "model.layers.1.self_attn.v_proj"
    module = base.get_submodule(name)
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0))
    before = module(x)
    model = adapters.attach(base, QV)
    layer = model.get_base_model().get_submodule(name)
    assert torch.equal(layer(x), before)
    rng = np.random.default_rng(0)
    adapters.load_b(model, rng.normal(size=adapters.read_b(model).shape).astype(np.float32))
    a = torch.from_numpy(adapters.frozen_a(SEED, name, 4, module.in_features))
    b = layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), before + 2.0 * (x @ a.T @ b.T))


def test_two_adapters_stand_on_one_model(base):
    model = adapters.attach(adapters.attach(base, QV), QV, name="second")
    ones = np.ones_like(adapters.read_b(model))
    adapters.load_b(model, ones, name="second")
    assert not adapters.read_b(model).any()
    assert np.array_equal(adapters.read_b(model, name="second"), ones)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vector_that_is_not_finite_is_refused_and_changes_nothing(base, value):
    model = adapters.attach(base, QV)
    vector = np.ones_like(adapters.read_b(model))
    vector[-1] = value
    with pytest.raises(BadAdapter, match="infinities or NaN"):
        adapters.load_b(model, vector)
    assert not adapters.read_b(model).any()


def test_vector_of_another_length_is_refused(base):
    model = adapters.attach(base, QV)
    with pytest.raises(BadAdapter, match="coordinates where the model takes"):
        adapters.load_b(model, np.zeros(7, np.float32))


def test_target_that_matches_nothing_is_named(base):
    spec = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "w_proj"), seed=SEED)
    with pytest.raises(BadAdapter, match="w_proj"):
        adapters.layout(models.tiny_folder(), spec)
    with pytest.raises(BadAdapter, match="w_proj"):
        adapters.attach(base, spec)


def test_spec_survives_its_json_with_the_charters_further_keys():
    assert AdapterSpec.parse({**QV.to_json(), "coordinates": 1}) == QV


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": "4"},
        {"rank": True},
        {"alpha": 1 << 20},
        {"targets": []},
        {"targets": ["a b"]},
        {"seed": 5},
    ],
)
def test_spec_with_a_bad_part_is_refused(change):
    with pytest.raises(BadAdapter):
        AdapterSpec.parse({**QV.to_json(), **change})


def test_spec_with_a_bad_seed_or_missing_part_is_refused():
    with pytest.raises(Malformed):
        AdapterSpec.parse({**QV.to_json(), "seed": "xyz"})
    with pytest.raises(BadAdapter):
        AdapterSpec.parse(None)
