from dataclasses import replace

import numpy as np
import pytest
from permits import to_measure

from contrib import evaluation, learner, models, training
from contrib.adapters import AdapterSpec
from contrib.encoding import encode
from contrib.errors import Diverged, NothingToLearn, NotPermitted, UnknownDataset
from contrib.evaluation import Sample
from contrib.rows import RowStore, pair_row, text_row

SPEC = AdapterSpec(rank=4, alpha=8, targets=("all-linear",), seed="0c" * 32)
PERMITS = {name: to_measure(name) for name in ("texts", "labels")}
TEXTS = tuple(text_row(f"Patient {n} came with a cough and went with a {'smile' * (n % 5)}.") for n in range(30))


@pytest.fixture(scope="module")
def tiny():
    import torch

    torch.set_num_threads(1)  # as the worker does: more threads than free cores only wait for each other
    return learner.load(models.tiny_folder(), SPEC, bf16=False)


def test_base_loss_is_the_models_own_loss(tiny):
    found = evaluation.held_out_loss(tiny, [Sample(rows=TEXTS)], None, length=32)
    import torch
    from transformers import AutoModelForCausalLM

    nats, tokens = 0.0, 0
    whole = AutoModelForCausalLM.from_pretrained(models.tiny_folder(), dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        for sequence in encode(TEXTS, tiny.codec, length=32):
            ids = torch.tensor([sequence.ids])
            nats += whole(input_ids=ids, labels=ids).loss.item() * (len(sequence.ids) - 1)
            tokens += len(sequence.ids) - 1
    assert found.tokens == tokens
    assert found.rows == 30
    assert found.accuracy is None
    assert found.nats == pytest.approx(nats / tokens, rel=1e-5)


def test_batching_and_padding_do_not_change_the_loss(tiny):
    rows = tuple(pair_row(f"How many is {'one ' * (n % 7)}?", str(n % 7)) for n in range(20))
    one, many = (evaluation.held_out_loss(tiny, [Sample(rows=rows)], None, length=48, batch=b) for b in (1, 20))
    assert one.nats == pytest.approx(many.nats, rel=1e-5)
    assert (one.tokens, one.rows) == (many.tokens, many.rows) == (40, 20)


def test_zero_view_is_the_base_model(tiny):
    samples = [Sample(rows=TEXTS)]
    zero = evaluation.held_out_loss(tiny, samples, np.zeros(tiny.coordinates, np.float32), length=32)
    assert zero == evaluation.held_out_loss(tiny, samples, None, length=32)


def test_label_accuracy_rises_with_training_and_comes_beside_nats(tiny):
    rows = [pair_row(f"{n} {'good' if n % 2 else 'bad'}: ", "yes" if n % 2 else "no") for n in range(60)]
    sample = [Sample(rows=tuple(rows[:20]), labels=("no", "yes"))]
    before = evaluation.held_out_loss(tiny, sample, None, length=32)
    sequences = list(encode(rows[20:], tiny.codec, length=32))
    run = training.train(tiny, sequences, None, training.Settings(steps=30, batch=8, length=32, lr=2e-2))
    after = evaluation.held_out_loss(tiny, sample, run.theta, length=32)
    assert before.accuracy is not None
    assert after.accuracy == 1.0 > before.accuracy
    assert after.nats < before.nats


def test_accuracy_looks_at_label_sets_only(tiny):
    rows = (pair_row("a", "x"), pair_row("b", "y"))
    assert evaluation.held_out_loss(tiny, [Sample(rows=rows)], None, length=32).accuracy is None


def test_loss_that_is_not_finite_is_an_error_not_a_number(tiny):
    with pytest.raises(Diverged):
        evaluation.held_out_loss(tiny, [Sample(rows=TEXTS)], np.full(tiny.coordinates, 3e38, np.float32), length=32)


def test_nothing_to_measure_is_said(tiny):
    with pytest.raises(NothingToLearn):
        evaluation.held_out_loss(tiny, [], None)


@pytest.fixture
def store(tmp_path):
    with RowStore.open(tmp_path / "rows.db") as opened:
        opened.add("texts", TEXTS, 500_000)
        opened.add("labels", [pair_row(f"Is {n} even?", "no" if n % 2 else "yes") for n in range(40)], 500_000)
        yield opened


def test_sample_is_held_out_smallest_digest_first_and_grows_by_adding(store):
    small = [row for s in evaluation.sample(store, ["texts", "labels"], 7, PERMITS) for row in s.rows]
    large = [row for s in evaluation.sample(store, ["texts", "labels"], 14, PERMITS) for row in s.rows]
    held = [
        *store.rows("texts", "held_out", permit=to_measure("texts")),
        *store.rows("labels", "held_out", permit=to_measure("labels")),
    ]
    assert len(small) == 7
    assert set(small) < set(large) <= set(held)
    assert max(row.digest() for row in small) < min(row.digest() for row in set(held) - set(small))


def test_sample_does_not_depend_on_order_of_arrival(store, tmp_path):
    with RowStore.open(tmp_path / "other.db") as other:
        other.add("texts", TEXTS[::-1], 500_000)
        assert evaluation.sample(other, ["texts"], 5, PERMITS) == evaluation.sample(store, ["texts"], 5, PERMITS)


def test_labels_stay_with_their_data_set(store):
    texts, labels = evaluation.sample(store, ["texts", "labels"], 100, PERMITS)
    assert texts.labels == ()
    assert labels.labels == ("no", "yes")


def test_sample_of_nothing_is_refused(store):
    with pytest.raises(UnknownDataset):
        evaluation.sample(store, ["absent"], 5, PERMITS)
    with pytest.raises(NothingToLearn):
        evaluation.sample(store, [], 5, PERMITS)


def test_canaries_outside_the_permit_reach_no_sample_and_no_label(tmp_path):
    rows = [pair_row(f"open {n}", "yes" if n % 2 else "no") for n in range(40)]
    secret = [replace(pair_row(f"CANARY {n}", "CANARY-LABEL"), tags=("private",)) for n in range(40)]
    with RowStore.open(tmp_path / "canaries.db") as store:
        assert store.add("d", [*rows, *secret], 500_000).labels == ("CANARY-LABEL", "no", "yes")
        (seen,) = evaluation.sample(store, ["d"], 100, {"d": to_measure("d")})
        assert "CANARY" in str(seen)
        (shown,) = evaluation.sample(store, ["d"], 100, {"d": to_measure("d", tags_none=("private",))})
        assert "CANARY" not in str(shown)
        assert shown.labels == ("no", "yes")
        with pytest.raises(NothingToLearn):
            evaluation.sample(store, ["d"], 100, {"d": to_measure("d", columns=("prompt",))})
        with pytest.raises(NotPermitted):
            evaluation.sample(store, ["d"], 100, {})
