"""Temperature scaling: calibrated on few images, and on images that are all correct or all wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from alexnet.inference import metrics

Logits = NDArray[np.float64]
Targets = NDArray[np.int64]


def drawn(count: int, classes: int, lead: float, seed: int) -> tuple[Logits, Targets]:
    """Return logits in which one class leads, and targets drawn from their probabilities."""
    rng = np.random.default_rng([count, classes, seed])
    logits = rng.normal(0, 1, (count, classes))
    logits[np.arange(count), rng.integers(0, classes, count)] += lead
    below = softmax(logits, axis=1).cumsum(1)
    return logits, (below[:, :-1] <= rng.random((count, 1))).sum(1)


def separable(count: int, classes: int, lead: float) -> tuple[Logits, Targets]:
    """Return logits whose largest is always right, by at least `lead`."""
    rng = np.random.default_rng([count, classes])
    targets = rng.integers(0, classes, count)
    logits = rng.uniform(0, 1, (count, classes))
    logits[np.arange(count), targets] = 1 + lead + rng.random(count)
    return logits, targets


@pytest.mark.parametrize("count", [1, 10, 180, 5000])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("lead", [0.5, 3.0, 10.0])
def test_temperature_of_all_correct_answers_is_finite(count: int, classes: int, lead: float) -> None:
    logits, targets = separable(count, classes, lead)
    result = metrics.fit_temperature(logits, targets)
    wrong = (1 - softmax(logits / result, axis=1).max(1)).sum()  # expected number of wrong images
    assert result > 0.05
    assert result == 1.0 or wrong > 0.02
    if count <= 10 and lead == 10.0:
        assert result == 1.0, "so few images are no evidence for a lower temperature"


def test_temperature_of_all_wrong_answers_is_finite() -> None:
    logits, targets = separable(200, 4, 3.0)
    result = metrics.fit_temperature(logits, (targets + 1) % 4)
    assert 5 < result < 1000
    assert np.isfinite(result)


@pytest.mark.parametrize("true", [0.2, 0.5, 1.0, 2.0, 3.0, 5.0])
def test_temperature_prior_fades_with_images(true: float) -> None:
    logits, targets = drawn(5000, 10, 2.0, 0)
    assert metrics.fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.06)


@pytest.mark.parametrize(("true", "count"), [(0.5, 500), (2.0, 500), (2.0, 5000)])
def test_temperature_lowers_calibration_error_on_other_images(true: float, count: int) -> None:
    """As for CIFAR-10: ten classes, nine in ten correct."""
    logits, targets = drawn(count + 5000, 10, 4.0, 1)
    logits *= true
    result = metrics.fit_temperature(logits[:count], targets[:count])
    before, after = (metrics.reliability(logits[count:], targets[count:], t).error for t in (1.0, result))
    assert after < 0.5 * before
    assert after < 0.03


def test_temperature_is_invariant_to_class_order_and_logit_shift() -> None:
    logits, targets = drawn(300, 5, 3.0, 2)
    logits *= 2.0
    result = metrics.fit_temperature(logits, targets)
    assert metrics.fit_temperature(logits[:, ::-1] + 7.0, 4 - targets) == pytest.approx(result, rel=1e-4)
