import numpy as np
import pytest

from contrib import adapters, fisher, learner, models
from contrib.adapters import AdapterSpec
from contrib.encoding import encode, encode_one
from contrib.errors import Diverged, NothingToLearn
from contrib.rows import pair_row, text_row

SPEC = AdapterSpec(rank=4, alpha=4, targets=("q_proj", "v_proj"), seed="0b" * 32)


@pytest.fixture(scope="module")
def tiny():
    import torch

    torch.set_num_threads(1)  # as the worker does: more threads than free cores only wait for each other
    return learner.load(models.tiny_folder(), SPEC, bf16=False)


@pytest.fixture(scope="module")
def sequences(tiny):
    texts = [text_row(f"A fever of {n} degrees lasts for {n % 7} days.") for n in range(9)]
    pairs = [pair_row("Is it a fever?", answer) for answer in ("yes, it is", "no")]
    return [*encode(texts, tiny.codec, length=24), *(encode_one(pair, tiny.codec, length=24) for pair in pairs)]


@pytest.fixture(scope="module")
def view(tiny):
    return np.random.default_rng(0).normal(scale=0.05, size=tiny.coordinates).astype(np.float32)


def one_at_a_time(tiny, sequences, view):
    """The definition: the squared gradient of each sequence's own mean loss, by autograd."""
    tiny.use(view)
    total = np.zeros(tiny.coordinates, np.float64)
    for sequence in sequences:
        tiny.model.zero_grad()
        losses, counted = learner.token_losses(tiny, [sequence])
        (losses.sum() / counted.sum()).backward()
        total += adapters.flatten([part.grad for part in adapters.trainable(tiny.model)]).astype(np.float64) ** 2
    tiny.model.zero_grad()
    return total / len(sequences)


def test_fisher_is_the_mean_of_squared_gradients_of_single_sequences(tiny, sequences, view):
    expected = one_at_a_time(tiny, sequences, view)
    found = fisher.diagonal(tiny, sequences, view)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=expected.max() * 1e-6)


@pytest.mark.parametrize("group", [1, 2, 3, 100])
def test_fisher_does_not_depend_on_the_grouping(tiny, sequences, view, group):
    found = fisher.diagonal(tiny, sequences, view, group=group)
    expected = fisher.diagonal(tiny, sequences, view)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=expected.max() * 1e-6)


def test_fisher_has_a_place_for_every_coordinate_and_is_never_negative(tiny, sequences, view):
    found = fisher.diagonal(tiny, sequences, view)
    assert found.shape == (tiny.coordinates,)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert (found > 0).mean() > 0.9


def test_fisher_leaves_no_trace_in_the_model(tiny, sequences, view):
    seen = []
    fisher.diagonal(tiny, sequences, view, on_sequence=seen.append)
    assert seen[-1] == len(sequences)
    assert np.array_equal(adapters.read_b(tiny.model), view)
    assert all(part.grad is None for part in adapters.trainable(tiny.model))
    assert not any(module._forward_hooks for module in tiny.model.modules())


def test_fisher_of_nothing_and_of_infinity_are_refused(tiny, sequences):
    with pytest.raises(NothingToLearn):
        fisher.diagonal(tiny, [], np.zeros(tiny.coordinates, np.float32))
    with pytest.raises(Diverged):
        fisher.diagonal(tiny, sequences, np.full(tiny.coordinates, 3e38, np.float32))
