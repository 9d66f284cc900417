"""Figures against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from alexnet import AlexNet
from alexnet.data.batches import SplitImages, ordered_batches
from alexnet.data.cache import Pixels
from alexnet.inference import metrics
from alexnet.inference.evaluate import Evaluation, evaluate
from alexnet.recipe import Preprocessing


def made(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return chance.normal(0, 2, (count, classes)).astype(np.float32), chance.integers(0, classes, count)


@given(st.integers(1, 200), st.integers(2, 30), st.integers(0, 9))
@settings(max_examples=40)
def test_figures_equal_scikit_learn(count: int, classes: int, seed: int) -> None:
    logits, targets = made(count, classes, seed)
    labels = list(range(classes))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert metrics.cross_entropy(logits, targets) == pytest.approx(log_loss(targets, probabilities, labels=labels), rel=1e-6)
    for k in (1, 5):
        if k < classes and classes > 2:
            expected = top_k_accuracy_score(targets, logits, k=k, labels=labels)
            assert metrics.top_k(logits, targets, k) == pytest.approx(expected)
    counts = metrics.confusion(logits.argmax(1), targets, classes)
    assert np.array_equal(counts, confusion_matrix(targets, logits.argmax(1), labels=labels))
    found = metrics.per_class(counts)
    expected = precision_recall_fscore_support(targets, logits.argmax(1), labels=labels, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        if name == "f1":  # scikit-learn gives 0 to a class without images that is predicted
            values = np.where(counts.sum(1) > 0, values, np.nan)
        shares = [np.nan if row[name] is None else row[name] for row in found]
        np.testing.assert_allclose(shares, values, err_msg=name)


def test_top5_of_fewer_classes_is_one() -> None:
    logits, targets = made(20, 3, 0)
    assert metrics.top_k(logits, targets, 5) == 1.0


@given(st.integers(1, 1000), st.data())
def test_the_interval_is_wilsons(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_calibration_error_counts_confidence_against_accuracy() -> None:
    # Ten images at confidence 0.8 of which six are right, ten at 0.6 of which six are right: (10 * 0.2 + 10 * 0) / 20.
    high, low = np.log([0.8, 0.2]), np.log([0.6, 0.4])
    logits = np.array([high] * 10 + [low] * 10)
    targets = np.array(([0] * 6 + [1] * 4) * 2)
    assert metrics.reliability(logits, targets).error == pytest.approx(0.1)


@given(st.integers(1, 300), st.integers(2, 12), st.integers(0, 9), st.floats(0.3, 3))
@settings(max_examples=40)
def test_reliability_equals_scikit_learns_calibration_curve(count: int, classes: int, seed: int, temperature: float) -> None:
    logits, targets = made(count, classes, seed)
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    right = probabilities.argmax(1) == targets
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=metrics.BINS)
    found = metrics.reliability(logits, targets, temperature)
    filled = found.images > 0
    assert found.images.sum() == count
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    assert 0 <= found.error <= 1


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(true: float) -> None:
    logits, _ = made(20_000, 5, 1)
    chance = np.random.default_rng(2)
    targets = np.array([chance.choice(5, p=p) for p in softmax(logits.astype(np.float64), axis=1)])
    assert metrics.fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.05)


def test_the_temperature_is_1_where_the_images_cannot_tell_it_from_1() -> None:
    logits, _ = made(2_000, 5, 1)
    found = []
    for seed in range(200):
        chance = np.random.default_rng(seed)
        rows = logits[chance.integers(0, len(logits), 100)]
        targets = np.array([chance.choice(5, p=p) for p in softmax(rows.astype(np.float64), axis=1)])
        found.append(metrics.fit_temperature(rows, targets))
    assert 0.9 <= np.mean(np.array(found) == 1) < 1, "at 5 %, one in twenty is told apart by chance"


def test_the_temperature_never_makes_the_loss_of_its_own_images_worse() -> None:
    for seed in range(20):
        logits, targets = made(30, 4, seed)
        scaled = logits / metrics.fit_temperature(logits, targets)
        assert metrics.cross_entropy(scaled, targets) <= metrics.cross_entropy(logits, targets) + 1e-9


def test_the_json_has_the_keys_that_are_promised() -> None:
    logits, targets = made(50, 3, 0)
    found = Evaluation(logits, targets, ("a", "b", "c"), (3, 96, 96)).calibrated().to_json()
    assert list(found) == [
        *("images", "loss", "top1", "top1_interval", "top5", "ece", "ece_raw", "temperature", "input", "per_class", "skipped")
    ]
    assert list(found["per_class"]["a"]) == ["images", "precision", "recall", "f1"]
    assert found["input"] == [3, 96, 96]


def test_evaluation_is_the_same_for_any_batch_size_and_leaves_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 4, width=1 / 16)
    preprocessing = Preprocessing(cache_size=16, input=67, fit="crop", reduced_decode=False, resize="bilinear")
    pixels = np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)
    images = SplitImages(Pixels(pixels.ravel(), np.full((23, 2), 16), preprocessing), np.arange(23), np.arange(23) % 4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = [
        evaluate(network, ordered_batches(images, size), preprocessing, ("a", "b", "c", "d"), precision="float32")
        for size in (1, 7, 23)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.logits, found[0].logits, rtol=1e-4, atol=1e-5)
        assert np.array_equal(other.targets, found[0].targets)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
