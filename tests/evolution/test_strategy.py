"""The strategy: every variant climbs, resumes to the bit, and learns nothing from what is no number."""

import numpy as np
import pytest

import namm
from namm.evolution.strategy import VARIANTS, Strategy, paired_ranks


def climb(strategy: Strategy, generations: int) -> Strategy:
    while strategy.generation < generations:
        points = strategy.ask()
        strategy.tell(points, -((points - 0.3) ** 2).sum(1))
    return strategy


def replayed(like: Strategy, variant: str) -> Strategy:
    new = Strategy(variant, 12, 0.2, 8, seed=0)
    for fitness in like.told:
        new.tell(new.ask(), fitness)
    return new


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_climbs_and_resumes_to_the_bit(variant: str) -> None:
    state = np.random.get_state()[1].copy()
    whole = climb(Strategy(variant, 12, 0.2, 8, seed=0), 80)
    assert float(np.abs(whole.mean - 0.3).max()) < 0.02
    assert whole.step_size < 0.1
    resumed = climb(replayed(climb(Strategy(variant, 12, 0.2, 8, seed=0), 25), variant), 80)
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    other = climb(Strategy(variant, 12, 0.2, 8, seed=1), 5)
    assert not np.array_equal(other.mean, climb(Strategy(variant, 12, 0.2, 8, seed=0), 5).mean)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the global generator is not ours to touch


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_tells_nothing_moves_nothing(variant: str) -> None:
    strategy = climb(Strategy(variant, 12, 0.2, 8, seed=0), 4)
    before, step = strategy.mean, strategy.step_size
    for fitness in ([np.nan] * 8, [0.5] * 8, [1.0, 2.0, 3.0] + [np.nan] * 5):
        assert not strategy.tell(strategy.ask(), fitness)
        np.testing.assert_array_equal(strategy.mean, before)
        assert strategy.step_size == step
    assert strategy.generation == 7  # they count nevertheless
    whole = climb(strategy, 80)
    assert float(np.abs(whole.mean - 0.3).max()) < 0.02
    np.testing.assert_array_equal(replayed(whole, variant).mean, whole.mean)


def test_failures_rank_last() -> None:
    broken, honest = (Strategy("full", 4, 0.1, 6, seed=0) for _ in range(2))
    fitness = np.array([3.0, np.nan, 2.0, 0.5, np.inf, 1.0])
    assert broken.tell(broken.ask(), fitness)
    honest.tell(honest.ask(), np.where(np.isfinite(fitness), fitness, -1.0))
    np.testing.assert_array_equal(broken.mean, honest.mean)


def test_paired_ranks_compare_within_a_sample() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [100.0, 50.0, 0.0], [5.0, 5.0, 9.0]])  # sample, candidate
    np.testing.assert_allclose(paired_ranks(scores), [(0 + 1 + 0.25) / 3, (0.5 + 0.5 + 0.25) / 3, (1 + 0 + 1) / 3])
    np.testing.assert_array_equal(np.isnan(paired_ranks(np.array([[1.0, np.nan], [1.0, 2.0]]))), [False, True])


def test_mistakes() -> None:
    with pytest.raises(namm.ConfigurationError, match="Did you mean 'vkd'"):
        Strategy("vkd-cma", 20, 0.1, 8, 0)
    with pytest.raises(namm.ConfigurationError, match="10 dimensions or more"):
        Strategy("vd", 4, 0.1, 8, 0)
