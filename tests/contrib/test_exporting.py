"""An export is what was released, for every program that reads it: the same logits, the same digests, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released import SPEC, card_of, export, tiny, vector_of

from contrib import exported, exporting, gguf_lora
from contrib.adapters import AdapterSpec, Vector, attach, factors, load_b
from contrib.errors import BadAdapter, BadExport, BadModel, ExportExists
from contrib.exporting import CARD, Wanted
from contrib.models import tiny_folder
from contrib.tensorfile import to_bytes
from contrib.weights import base_digest, tensors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's, not ours
ALL = AdapterSpec(rank=3, alpha=12, targets=("all-linear",), seed="c3" * 32)
IDS = [[257, 84, 104, 101, 32, 112, 101, 111, 112, 108, 101]]


def load(folder: Path, dtype: Any = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def adapted(spec: AdapterSpec, vector: Vector) -> Any:
    """Logits of our own way to put an adapter on the model."""
    model = attach(load(tiny_folder()), spec)
    load_b(model, vector)
    return logits(model.eval())


@pytest.mark.parametrize("spec", [SPEC, ALL], ids=["q,v", "all-linear"])
def test_peft_loads_the_folder_and_computes_the_very_logits_of_our_adapter(spec: AdapterSpec, tmp_path: Path) -> None:
    from peft import PeftModel

    vector = vector_of(spec, 1)
    export(tmp_path / "out", vector, spec=spec)
    ours = adapted(spec, vector)
    theirs = logits(PeftModel.from_pretrained(load(tiny_folder()), tmp_path / "out").eval())
    assert (ours - logits(load(tiny_folder()))).abs().max() > 0.1, "the adapter must change something to be seen"
    assert (ours - theirs).abs().max() <= 1e-6


def test_peft_folder_has_the_keys_and_the_settings_that_peft_itself_writes(tmp_path: Path) -> None:
    from safetensors import safe_open

    export(tmp_path / "ours", vector_of(ALL, 1), spec=ALL)
    model = attach(load(tiny_folder()), ALL)
    model.save_pretrained(tmp_path / "theirs")
    found = {}
    for name in ("ours", "theirs"):
        with safe_open(tmp_path / name / exporting.ADAPTER, "np") as file:
            shapes = {key: file.get_tensor(key).shape for key in file.keys()}  # noqa: SIM118
            found[name] = shapes, dict(file.metadata())
    assert len(found["ours"][1].pop("fishernet.base")) == 64  # ours alone: an engine refuses it on another base
    assert found["ours"] == found["theirs"]
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs"))
    assert set(ours) <= set(theirs)
    skip = {"base_model_name_or_path", "target_modules"}
    assert {key: theirs[key] for key in ours if key not in skip} == {k: v for k, v in ours.items() if k not in skip}
    assert set(ours["target_modules"]) == set(theirs["target_modules"])


def test_short_names_are_used_only_where_they_mean_exactly_the_adapted_modules() -> None:
    whole = [name for name, _, _ in factors(tiny_folder(), SPEC, vector_of(SPEC, 1))]
    assert exporting.targets(tiny_folder(), SPEC, whole) == ["q_proj", "v_proj"]
    one = AdapterSpec(rank=2, alpha=2, targets=("layers.1.self_attn.q_proj",), seed=SPEC.seed)
    modules = [name for name in whole if name.endswith("layers.1.self_attn.q_proj")]
    assert exporting.targets(tiny_folder(), one, modules) == ["layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-4), (None, 0.05), ("bfloat16", 0.5)])
def test_merged_weights_compute_the_adapters_logits(dtype: str | None, within: float, tmp_path: Path) -> None:
    vector = vector_of(ALL, 2, 0.1)
    export(tmp_path / "out", vector, format_="merged", spec=ALL, dtype=dtype)
    merged = logits(load(tmp_path / "out"))
    ours = adapted(ALL, vector)
    assert (ours - logits(load(tiny_folder()))).abs().max() > 1
    assert (ours - merged).abs().max() <= within
    told = json.loads((tmp_path / "out" / CARD).read_text())
    assert told["merged"] == base_digest(tmp_path / "out")


def test_merging_nothing_gives_the_base_itself(tmp_path: Path) -> None:
    nothing = np.zeros_like(vector_of(SPEC, 1))
    export(tmp_path / "out", nothing, format_="merged")
    assert base_digest(tmp_path / "out") == tiny().digest


def test_shards_of_the_base_stay_as_they_are_cut(tmp_path: Path) -> None:
    from contrib import folding

    base, vector = load(tiny_folder()), vector_of(SPEC, 3)
    base.save_pretrained(tmp_path / "base", max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((tiny_folder() / name).read_bytes())
    (tmp_path / "out").mkdir()
    folding.fold(tmp_path / "base", SPEC, vector, tmp_path / "out", dtype="bfloat16")
    shards = sorted(file.name for file in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == shards
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {"BF16"}
    assert (logits(load(tmp_path / "out")) - adapted(SPEC, vector)).abs().max() < 0.5


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    values = np.random.default_rng(5).normal(0, 3, 10_000).astype(np.float32)
    values[:4] = [1.00390625, 1.01171875, -0.0, 65504.0]  # two ties
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert to_bytes(values, "BF16") == theirs.tobytes()


def test_value_that_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="too large"):
        export(tmp_path / "out", vector_of(SPEC, 1, 1e5), format_="merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", [SPEC, ALL], ids=["q,v", "all-linear"])
def test_gguf_adapter_reads_back_as_what_was_written(spec: AdapterSpec, tmp_path: Path) -> None:
    vector = vector_of(spec, 4)
    export(tmp_path / "out", vector, format_="gguf-lora", spec=spec)
    alpha, parts = gguf_lora.read(tmp_path / "out" / "adapter.gguf", tiny_folder())
    wanted = factors(tiny_folder(), spec, vector)
    assert alpha == spec.alpha
    assert len(parts) == len(wanted)
    ours = {"q_proj": "attn_q", "v_proj": "attn_v", "down_proj": "ffn_down", "o_proj": "attn_output"}
    for module, a, b in wanted:
        layer, short = module.split(".")[2], module.rpartition(".")[2]
        if short in ours:
            found_a, found_b = parts[f"blk.{layer}.{ours[short]}.weight"]
            np.testing.assert_array_equal(found_a, a)
            np.testing.assert_array_equal(found_b, b)


def test_rows_of_q_and_k_stand_in_llama_cpps_order_of_the_rotary_pairs(tmp_path: Path) -> None:
    import gguf

    count = len(vector_of(ALL, 0))
    export(tmp_path / "out", np.arange(count, dtype=np.float32) / count, format_="gguf-lora", spec=ALL)
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    wanted = {name: b for name, _, b in factors(tiny_folder(), ALL, np.arange(count, dtype=np.float32) / count)}
    plain = wanted["model.layers.0.self_attn.q_proj"]  # 4 heads of 32 rows: 16 real, 16 imaginary
    written = found["blk.0.attn_q.weight.lora_b"]
    np.testing.assert_array_equal(written[:4], plain[[0, 16, 1, 17]])
    np.testing.assert_array_equal(written[32:36], plain[[32, 48, 33, 49]])
    np.testing.assert_array_equal(found["blk.0.attn_v.weight.lora_b"], wanted["model.layers.0.self_attn.v_proj"])


def test_export_reads_back_with_the_digests_of_the_release(tmp_path: Path) -> None:
    vector = vector_of(SPEC, 6)
    card = export(tmp_path / "out", vector, number=3)
    found = exported.read(tmp_path / "out")
    assert (found.release, found.number, found.model, found.base) == (card.release, 3, card.model, card.base)
    assert found.spec == SPEC
    np.testing.assert_array_equal(found.vector, vector)


def test_same_release_exported_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(tmp_path / name, vector_of(SPEC, 6))
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == ["README.md", "adapter_config.json", exporting.ADAPTER, CARD]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_every_changed_byte_of_an_export_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(out, vector_of(SPEC, 6))
    rng = np.random.default_rng(1)
    for file in sorted(out.iterdir()):
        good = file.read_bytes()
        for at in rng.integers(0, len(good), 6):
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(0, 7))
            file.write_bytes(bytes(bad))
            if file.name == CARD:
                try:
                    found = exported.read(out)
                except BadExport:
                    continue
                assert found.vector.tobytes() == vector_of(SPEC, 6).tobytes()  # a word for people was changed
            else:
                with pytest.raises(BadExport, match="changed after the export"):
                    exported.read(out)
        file.write_bytes(good)
    exported.read(out)


def test_adapter_of_another_seed_or_model_is_not_taken_for_the_release(tmp_path: Path) -> None:
    import hashlib

    for name, seed, other in (("a", 6, ALL.seed), ("b", 7, SPEC.seed)):
        out = tmp_path / name
        export(out, vector_of(SPEC, 6))
        spec = AdapterSpec(rank=SPEC.rank, alpha=SPEC.alpha, targets=SPEC.targets, seed=other)
        export(tmp_path / "other", vector_of(spec, seed), spec=spec, force=True)
        strange = (tmp_path / "other" / exporting.ADAPTER).read_bytes()
        (out / exporting.ADAPTER).write_bytes(strange)
        card = json.loads((out / CARD).read_text())
        card["files"][exporting.ADAPTER] = hashlib.sha256(strange).hexdigest()
        (out / CARD).write_text(json.dumps(card))
        with pytest.raises(BadExport, match=r"seed gives|not model"):
            exported.read(out)


def test_nothing_is_overwritten_unless_it_is_an_earlier_export_and_force_is_said(tmp_path: Path) -> None:
    out, first, second = tmp_path / "out", vector_of(SPEC, 1), vector_of(SPEC, 2)
    export(out, first)
    with pytest.raises(ExportExists, match="--force"):
        export(out, second)
    assert exported.read(out).vector.tobytes() == first.tobytes()
    export(out, second, force=True)
    assert exported.read(out).vector.tobytes() == second.tobytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ExportExists, match="no earlier export"):
        export(tmp_path / "mine", first, force=True)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_failed_export_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    out, vector = tmp_path / "out", vector_of(SPEC, 1)
    export(out, vector)

    def fail(_folder: Path) -> None:
        raise BadAdapter("couldn't sign")

    with pytest.raises(BadAdapter):
        exporting.write(
            Wanted(format="peft", out=out, force=True),
            card_of(vector_of(SPEC, 2)),
            tiny(),
            vector_of(SPEC, 2),
            finish=fail,
        )
    with pytest.raises(BadAdapter, match="not those of the release"):
        exporting.write(Wanted(format="peft", out=tmp_path / "b"), card_of(vector), tiny(), vector_of(SPEC, 2))
    assert exported.read(out).vector.tobytes() == vector.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_names_of_others_cannot_break_the_model_card(tmp_path: Path) -> None:
    vector = vector_of(SPEC, 1)
    card = card_of(vector)
    nasty = {**card.members[0], "name": "x | y\n\n# Owned <script>", "organisation": "`rm`"}
    from dataclasses import replace

    exporting.write(
        Wanted(format="peft", out=tmp_path / "out"), replace(card, members=(nasty,), licence="a\nb: c"), tiny(), vector
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# Owned" not in text
    assert "<script>" not in text
    assert '\nlicense: "a\\nb: c"\n' in text
