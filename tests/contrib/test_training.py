import re
from dataclasses import replace

import numpy as np
import pytest
from permits import to_measure, to_train

from contrib import adapters, learner, models, training
from contrib.adapters import AdapterSpec
from contrib.encoding import encode
from contrib.errors import BadAdapter, BadJob, Diverged, NothingToLearn, NotPermitted, UnknownDataset
from contrib.rows import RowStore, pair_row, text_row
from contrib.training import Settings
from protocol.ids import digest

SPEC = AdapterSpec(rank=4, alpha=8, targets=("q_proj", "v_proj"), seed="0a" * 32)
QUICK = Settings(steps=6, batch=4, length=32, lr=2e-2, warmup=2, fisher_sequences=2)
PERMITS = {name: to_train(name) for name in ("hands", "skies")}
TEXTS = [f"The bone {n} of the left hand is short, and the bone {n + 1} is long." for n in range(40)]


@pytest.fixture(scope="module")
def tiny():
    import torch

    torch.set_num_threads(1)  # as the worker does: more threads than free cores only wait for each other
    return learner.load(models.tiny_folder(), SPEC, bf16=False)


@pytest.fixture(scope="module")
def sequences(tiny):
    return list(encode([text_row(text) for text in TEXTS], tiny.codec, length=32))


def frozen_bytes(model):
    parts = sorted((n, p) for n, p in model.named_parameters() if ".lora_B." not in n)
    return digest(b"".join(part.detach().numpy().tobytes() for _, part in parts))


def test_training_lowers_the_loss_and_changes_nothing_but_b(tiny, sequences):
    before = frozen_bytes(tiny.model)
    run = training.train(tiny, sequences, None, Settings(steps=20, length=32, lr=2e-2))
    assert np.mean(run.losses[-5:]) < run.losses[0] - 0.1
    assert run.theta.any()
    assert frozen_bytes(tiny.model) == before


def test_equal_inputs_give_equal_bytes(tiny, sequences):
    one = training.train(tiny, sequences, None, QUICK)
    training.train(tiny, sequences, one.theta, QUICK)  # what the model held before does not matter
    other = training.train(tiny, sequences, None, QUICK)
    assert one.theta.tobytes() == other.theta.tobytes()
    assert one.losses == other.losses


def test_another_seed_gives_another_run(tiny, sequences):
    one = training.train(tiny, sequences, None, QUICK)
    other = training.train(tiny, sequences, None, Settings(steps=6, length=32, lr=2e-2, warmup=2, seed=1))
    assert one.losses != other.losses


def test_training_starts_from_the_view(tiny, sequences):
    run = training.train(tiny, sequences, None, Settings(steps=20, length=32, lr=2e-2))
    still = training.train(tiny, sequences, run.theta, Settings(steps=1, length=32, lr=0.0))
    assert np.array_equal(still.theta, run.theta)
    assert still.losses[0] < run.losses[0]


def test_warmup_takes_at_most_half_of_a_short_run(tiny, sequences):
    long, short = (
        training.train(tiny, sequences, None, Settings(steps=4, length=32, warmup=warmup)) for warmup in (1000, 2)
    )
    assert long.theta.tobytes() == short.theta.tobytes()


def test_every_step_is_told_with_its_loss(tiny, sequences):
    seen = []
    run = training.train(tiny, sequences, None, QUICK, on_step=lambda step, loss: seen.append((step, loss)))
    assert seen == list(enumerate(run.losses, 1))


def test_every_sequence_is_used_once_before_any_is_used_again(tiny, sequences):
    several = sequences[:8]
    run = training.train(tiny, several, None, Settings(steps=2, batch=4, length=32))
    assert run.tokens == sum(len(sequence.ids) - 1 for sequence in several)


def test_only_answers_are_learnt_from_pairs(tiny):
    row = pair_row("What is the colour of the sky over the sea?", "blue")
    sequences = list(encode([row], tiny.codec, length=64))
    run = training.train(tiny, sequences, None, Settings(steps=1, batch=1, length=64))
    assert run.tokens == len("blue") + 1  # its bytes and the end token


def test_loss_that_is_not_finite_ends_the_run(tiny, sequences):
    huge = np.full(tiny.coordinates, 3e38, np.float32)
    with pytest.raises(Diverged, match="step 1"):
        training.train(tiny, sequences, huge, QUICK)
    assert np.isfinite(training.train(tiny, sequences, None, QUICK).theta).all()


def test_view_of_another_adapter_is_refused(tiny, sequences):
    with pytest.raises(BadAdapter):
        training.train(tiny, sequences, np.zeros(3, np.float32), QUICK)


def test_nothing_to_train_on_is_said(tiny):
    with pytest.raises(NothingToLearn):
        training.train(tiny, [], None, QUICK)


def test_narrow_weights_compute_what_plain_autocast_computes(tiny, sequences):
    import torch

    narrow = learner.load(models.tiny_folder(), SPEC, bf16=True)
    view = np.full(tiny.coordinates, 0.01, np.float32)
    narrow.use(view)
    tiny.use(view)
    with torch.no_grad():
        fast, counted = learner.token_losses(narrow, sequences[:3])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain, _ = learner.token_losses(tiny, sequences[:3])
        exact, _ = learner.token_losses(tiny, sequences[:3])
    assert torch.equal(fast, plain)
    assert abs((fast.sum() - exact.sum()) / counted.sum()) < 0.02


def test_steps_have_the_bytes_of_torchs_adamw():
    import torch

    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(5, 3)), torch.nn.Parameter(torch.zeros(7))] for _ in range(2))
    adam, reference = training.Adam(ours), torch.optim.AdamW(theirs, weight_decay=0.0)
    for step in range(1, 30):
        reference.param_groups[0]["lr"] = lr = 1e-3 * step
        for own, other in zip(ours, theirs, strict=True):
            own.grad = other.grad = torch.randn(own.shape, generator=generator)
        adam.step(lr)
        reference.step()
        assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True)), step


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": 0}, {"length": 4}, {"length": 1 << 20}, {"lr": -1.0}, {"lr": float("nan")}, {"clip": 0.0}],
)
def test_settings_that_cannot_train_are_refused(change):
    with pytest.raises(BadJob):
        Settings(**change)


@pytest.fixture
def store(tmp_path):
    with RowStore.open(tmp_path / "rows.db") as opened:
        opened.add("hands", [text_row(text) for text in TEXTS])
        opened.add("skies", [pair_row(f"colour of sky {n}?", "blue") for n in range(20)])
        yield opened


def test_drawn_sequences_are_enough_repeatable_and_from_training_rows_only(tiny, store):
    drawn = training.draw(store, ["hands", "skies"], tiny.codec, QUICK, PERMITS)
    assert drawn == training.draw(store, ["hands", "skies"], tiny.codec, QUICK, PERMITS)
    assert drawn != training.draw(store, ["hands", "skies"], tiny.codec, Settings(steps=6, length=32, seed=9), PERMITS)
    assert len(drawn) == QUICK.steps * QUICK.batch
    everything = b"".join(bytes(t for t in sequence.ids if t < 256) for sequence in drawn)
    assert not any(
        row.text.encode() in everything for row in store.rows("hands", "held_out", permit=to_measure("hands"))
    )


def test_drawing_from_an_unknown_data_set_is_refused(tiny, store):
    with pytest.raises(UnknownDataset):
        training.draw(store, ["feet"], tiny.codec, QUICK, PERMITS)
    with pytest.raises(NothingToLearn):
        training.draw(store, [], tiny.codec, QUICK, PERMITS)


def texts_of(drawn):
    return b"\0".join(bytes(t for t in sequence.ids if t < 256) for sequence in drawn).decode()


def test_canaries_outside_the_permit_reach_no_drawn_sequence(tiny, tmp_path):
    hidden = {
        "tag": [replace(pair_row(f"tagged {n}", f"CANARY-TAG {n}"), tags=("withdrawn",)) for n in range(20)],
        "untagged": [pair_row(f"untagged {n}", f"CANARY-UNTAGGED {n}") for n in range(20)],
        "column": [replace(pair_row(f"CANARY-COLUMN {n}", f"answer {n}"), tags=("consented",)) for n in range(20)],
    }
    with RowStore.open(tmp_path / "canaries.db") as store:
        store.add("d", [row for rows in hidden.values() for row in rows], 300_000)
        store.add("held", [pair_row(f"held {n}", f"CANARY-HELD {n}") for n in range(20)], 1_000_000)
        all_of_it = {name: to_train(name) for name in ("d", "held")}
        everything = texts_of(training.draw(store, ["d", "held"], tiny.codec, QUICK, all_of_it))
        assert {"CANARY-TAG", "CANARY-UNTAGGED", "CANARY-COLUMN"} <= set(re.findall("CANARY-[A-Z]+", everything))
        permit = to_train("d", tags_all=("consented",), tags_none=("withdrawn",), columns=("completion",))
        for seed in range(20):
            drawn = training.draw(
                store, ["d", "held"], tiny.codec, Settings(steps=6, length=32, seed=seed), {**all_of_it, "d": permit}
            )
            assert "answer" in texts_of(drawn)
            assert "CANARY" not in texts_of(drawn)


def test_drawing_without_a_permit_for_each_data_set_is_refused(tiny, store):
    for permits in ({}, {"hands": to_train("hands")}, {**PERMITS, "skies": to_measure("skies")}):
        with pytest.raises(NotPermitted):
            training.draw(store, ["hands", "skies"], tiny.codec, QUICK, permits)


def test_b_is_what_the_optimizer_gets(tiny):
    assert sum(part.numel() for part in adapters.trainable(tiny.model)) == tiny.coordinates
