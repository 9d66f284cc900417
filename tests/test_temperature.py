"""The temperature that calibrates probabilities: right on few images and on those that are all right, too."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from alexnet.inference import metrics

Logits = NDArray[np.float64]
Targets = NDArray[np.int64]


def drawn(count: int, classes: int, lead: float, seed: int) -> tuple[Logits, Targets]:
    """Return logits of which one class leads, and targets drawn from their very probabilities."""
    chance = np.random.default_rng([count, classes, seed])
    logits = chance.normal(0, 1, (count, classes))
    logits[np.arange(count), chance.integers(0, classes, count)] += lead
    below = softmax(logits, axis=1).cumsum(1)
    return logits, (below[:, :-1] <= chance.random((count, 1))).sum(1)


def separable(count: int, classes: int, lead: float) -> tuple[Logits, Targets]:
    """Return logits whose largest is always right, by at least `lead`."""
    chance = np.random.default_rng([count, classes])
    targets = chance.integers(0, classes, count)
    logits = chance.uniform(0, 1, (count, classes))
    logits[np.arange(count), targets] = 1 + lead + chance.random(count)
    return logits, targets


@pytest.mark.parametrize("count", [1, 10, 180, 5000])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("lead", [0.5, 3.0, 10.0])
def test_validation_that_is_all_right_does_not_make_every_probability_100_percent(
    count: int, classes: int, lead: float
) -> None:
    logits, targets = separable(count, classes, lead)
    found = metrics.fit_temperature(logits, targets)
    wrong = (1 - softmax(logits / found, axis=1).max(1)).sum()  # images, as the probabilities have it
    assert found > 0.05
    assert found == 1.0 or wrong > 0.02
    if count <= 10 and lead == 10.0:
        assert found == 1.0, "so few cannot say that the network is surer than it was"


def test_validation_that_is_all_wrong_does_not_run_away_either() -> None:
    logits, targets = separable(200, 4, 3.0)
    found = metrics.fit_temperature(logits, (targets + 1) % 4)
    assert 5 < found < 1000
    assert np.isfinite(found)


@pytest.mark.parametrize("true", [0.2, 0.5, 2.0, 5.0])
def test_many_images_outweigh_the_prior(true: float) -> None:
    logits, targets = drawn(5000, 10, 2.0, 0)
    assert metrics.fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.06)


@pytest.mark.parametrize(("true", "count"), [(0.5, 500), (2.0, 500), (2.0, 5000)])
def test_calibration_error_falls_on_other_images(true: float, count: int) -> None:
    """As for CIFAR-10: ten classes, about nine of ten right."""
    logits, targets = drawn(count + 5000, 10, 4.0, 1)
    logits *= true
    found = metrics.fit_temperature(logits[:count], targets[:count])
    before, after = (metrics.reliability(logits[count:], targets[count:], t).error for t in (1.0, found))
    assert after < 0.5 * before
    assert after < 0.03


def test_it_does_not_depend_on_the_order_of_classes_or_a_shift_of_logits() -> None:
    logits, targets = drawn(300, 5, 3.0, 2)
    logits *= 2.0
    found = metrics.fit_temperature(logits, targets)
    assert metrics.fit_temperature(logits[:, ::-1] + 7.0, 4 - targets) == pytest.approx(found, rel=1e-4)
