"""The verdict of the soak (benchmarks/swarm_soak.py): what grows is seen, what only swings is not taken for growth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HALF_HOUR = [20.0 * n for n in range(91)]


@pytest.fixture
def slope(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import swarm_soak

    return swarm_soak.slope


def noise(seed: int, size: float) -> list[float]:
    """Noise that hangs together: each sample is half the one before."""
    rng, values = random.Random(seed), [0.0]
    for _ in HALF_HOUR[1:]:
        values.append(0.5 * values[-1] + rng.gauss(0, size))
    return values


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_one_part_in_ten_an_hour_is_seen_through_noise(slope, seed):
    found = slope(HALF_HOUR, [200 + 20 * t / 3600 + n for t, n in zip(HALF_HOUR, noise(seed, 0.5), strict=True)])
    assert abs(found.hourly - 20) < 4
    assert found.share > 0.05


def test_what_only_swings_is_rarely_called_growth(slope):
    called = sum(slope(HALF_HOUR, [200 + n for n in noise(seed, 1.0)]).share != 0 for seed in range(100))
    assert called <= 15  # 5 are expected of a true 95 % interval, a few more of noise that hangs together


def test_growth_while_it_warms_up_does_not_count(slope):
    warm = [100 + min(t, 500) / 5 for t in HALF_HOUR]
    assert slope(HALF_HOUR, warm).share == 0
    assert slope(HALF_HOUR, warm, warm_up=0.0).share > 0


def test_too_few_samples_give_no_verdict(slope):
    with pytest.raises(ValueError, match="2 samples"):
        slope([0, 1], [1, 1])
