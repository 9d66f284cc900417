"""Paired comparison: McNemar's test and intervals against published figures, and their error rates in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from alexnet.inference.metrics import wilson_interval
from alexnet.inference.paired import (
    bootstrap_interval,
    compare_pairs,
    difference_interval,
    images_needed,
    mcnemar,
)
from alexnet.report.compare import _difference


@pytest.mark.parametrize(("gained", "lost", "p"), [(1, 7, 0.039), (7, 1, 0.039), (6, 16, 0.035), (0, 0, 1), (6, 6, 1)])
def test_mcnemar_equals_published_mid_p_values(gained: int, lost: int, p: float) -> None:
    """Fagerland, Lydersen and Laake (2013), the two examples."""
    assert mcnemar(gained, lost) == pytest.approx(p, abs=5e-4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (3, 9), (40, 25), (0, 12)])
def test_mcnemar_lies_below_the_exact_test(gained: int, lost: int) -> None:
    exact = binomtest(gained, gained + lost).pvalue
    point = binomtest(gained, gained + lost, alternative="less").pvalue - (
        binomtest(gained - 1, gained + lost, alternative="less").pvalue if gained else 0
    )
    assert mcnemar(gained, lost) < exact
    if gained < lost:
        assert mcnemar(gained, lost) == pytest.approx(exact - point, rel=1e-9)


def test_difference_interval_is_bonett_and_price() -> None:
    """1 against 7 of 21 pairs (Fagerland, Lydersen and Laake 2014)."""
    assert difference_interval(1, 7, 21) == pytest.approx((-0.508, -0.013), abs=5e-4)
    low, high = difference_interval(0, 0, 10)
    assert low == -high


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.3, 2, 4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def _pairs(random: np.random.Generator, count: int, gain: float, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw whether two networks are right, where the first alone is with probability `loss`, the other alone with `gain`."""
    kind = random.choice(4, size=count, p=[gain, loss, 0.7, 0.3 - gain - loss])
    return np.isin(kind, [0, 2]), np.isin(kind, [1, 2])


def test_false_alarms_are_five_percent_and_power_is_above_that_of_unpaired_intervals() -> None:
    random, trials, count = np.random.default_rng(0), 1000, 800
    alarms, found, found_unpaired = 0, 0, 0
    for _ in range(trials):
        same, first = _pairs(random, count, 0.06, 0.06)
        alarms += mcnemar(int((same & ~first).sum()), int((first & ~same).sum())) < 0.05
        better, first = _pairs(random, count, 0.08, 0.05)
        found += mcnemar(int((better & ~first).sum()), int((first & ~better).sum())) < 0.05
        rows = [{"top1": right.mean(), "top1_interval": wilson_interval(right.mean(), count)} for right in (better, first)]
        low, high = _difference(*rows)[1:]
        found_unpaired += not low <= 0 <= high
    assert binomtest(alarms, trials, 0.05).pvalue > 0.001
    assert found > found_unpaired + 200


def test_images_needed_give_a_power_of_four_in_five() -> None:
    needed = images_needed(80, 50, 1000)
    assert needed is not None
    random = np.random.default_rng(2)
    kinds = random.multinomial(needed, [0.08, 0.05, 0.87], size=2000)
    found = sum(mcnemar(int(gained), int(lost)) < 0.05 for gained, lost, _ in kinds)
    assert 0.77 < found / 2000 < 0.83
    assert images_needed(5, 5, 100) is None


def test_pairs_are_counted_and_losses_subtracted() -> None:
    right, first = np.array([True, True, False, False, True]), np.array([True, False, True, False, False])
    paired = compare_pairs(right, first, np.full(5, 0.5), np.full(5, 0.75))
    assert (paired.images, paired.gained, paired.lost) == (5, 2, 1)
    assert paired.loss_interval == pytest.approx((-0.25, -0.25))
    assert paired.to_json()["interval"] == list(paired.interval)
