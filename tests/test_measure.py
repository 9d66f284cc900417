"""Evaluation metrics compared with scikit-learn, SciPy and PyTorch."""

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
from torch.nn.functional import binary_cross_entropy_with_logits

from alexnet import AlexNet
from alexnet.data.dataset import Dataset
from alexnet.data.pixels import Pixels
from alexnet.data.table import Table
from alexnet.inference import evaluate, metrics
from alexnet.inference.evaluate import Evaluation
from alexnet.recipe import Preprocessing


def random_logits(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (count, classes)).astype(np.float32), rng.integers(0, classes, count)


@given(st.integers(1, 200), st.integers(2, 30), st.integers(0, 9))
@settings(max_examples=40)
def test_metrics_equal_scikit_learn_and_torch(count: int, classes: int, seed: int) -> None:
    logits, targets = random_logits(count, classes, seed)
    labels = list(range(classes))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert metrics.cross_entropy(logits, targets) == pytest.approx(log_loss(targets, probabilities, labels=labels), rel=1e-6)
    binary = binary_cross_entropy_with_logits(torch.tensor(logits).double(), torch.eye(classes).double()[targets])
    assert metrics.sigmoid_cross_entropy(logits, targets) == pytest.approx(binary.item(), rel=1e-12)
    for k in (1, 5):
        if k < classes and classes > 2:
            expected = top_k_accuracy_score(targets, logits, k=k, labels=labels)
            assert metrics.top_k(logits, targets, k) == pytest.approx(expected)
    counts = metrics.confusion(logits.argmax(1), targets, classes)
    assert np.array_equal(counts, confusion_matrix(targets, logits.argmax(1), labels=labels))
    result = metrics.per_class(counts)
    expected = precision_recall_fscore_support(targets, logits.argmax(1), labels=labels, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        if name == "f1":  # scikit-learn gives 0 to a class that has no images but is predicted
            values = np.where(counts.sum(1) > 0, values, np.nan)
        shares = [np.nan if row[name] is None else row[name] for row in result]
        np.testing.assert_allclose(shares, values, err_msg=name)


def test_top5_of_fewer_classes_is_one() -> None:
    logits, targets = random_logits(20, 3, 0)
    assert metrics.top_k(logits, targets, 5) == 1.0


@given(st.integers(1, 1000), st.data())
def test_wilson_interval(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # Ten images at confidence 0.8, six of them right, and ten at 0.6, six of them right: (10 * 0.2 + 10 * 0) / 20.
    high, low = np.log([0.8, 0.2]), np.log([0.6, 0.4])
    logits = np.array([high] * 10 + [low] * 10)
    targets = np.array(([0] * 6 + [1] * 4) * 2)
    assert metrics.reliability(logits, targets).error == pytest.approx(0.1)


@given(st.integers(1, 300), st.integers(2, 12), st.integers(0, 9), st.floats(0.3, 3))
@settings(max_examples=40)
def test_reliability_equals_scikit_learns_calibration_curve(count: int, classes: int, seed: int, temperature: float) -> None:
    logits, targets = random_logits(count, classes, seed)
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    right = probabilities.argmax(1) == targets
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=metrics.BINS)
    result = metrics.reliability(logits, targets, temperature)
    filled = result.images > 0
    assert result.images.sum() == count
    np.testing.assert_allclose(result.accuracy[filled], accuracy)
    np.testing.assert_allclose(result.confidence[filled], confidence)
    assert 0 <= result.error <= 1


def test_temperature_stays_1_without_evidence() -> None:
    logits, _ = random_logits(2_000, 5, 1)
    result = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = logits[rng.integers(0, len(logits), 100)]
        targets = np.array([rng.choice(5, p=p) for p in softmax(rows.astype(np.float64), axis=1)])
        result.append(metrics.fit_temperature(rows, targets))
    assert 0.9 <= np.mean(np.array(result) == 1) < 1, "at 5 %, one in twenty differs by chance"


def test_temperature_never_raises_the_loss() -> None:
    for seed in range(20):
        logits, targets = random_logits(30, 4, seed)
        scaled = logits / metrics.fit_temperature(logits, targets)
        assert metrics.cross_entropy(scaled, targets) <= metrics.cross_entropy(logits, targets) + 1e-9


def test_evaluation_json_keys() -> None:
    logits, targets = random_logits(50, 3, 0)
    result = Evaluation(logits, targets, ("a", "b", "c"), (3, 96, 96)).calibrated().to_json()
    assert list(result) == [
        *("images", "loss", "top1", "top1_interval", "top5", "ece", "ece_raw", "temperature", "input", "per_class", "known"),
        "skipped",
    ]
    assert list(result["per_class"]["a"]) == ["images", "precision", "recall", "f1"]
    assert result["input"] == [3, 96, 96]


def test_evaluation_does_not_depend_on_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 4, width=1 / 16)
    preprocessing = Preprocessing(cache_size=16, input=67, fit="crop", reduced_decode=False, resize="bilinear")
    pixels = np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)
    table = Table("t", ("a", "b", "c", "d"), [str(i) for i in range(23)], np.arange(23) % 4, np.full(23, "val"))
    dataset = Dataset(table, Pixels(pixels.ravel(), np.full((23, 2), 16), preprocessing))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    result = []
    for size in (1, 7, 23):
        monkeypatch.setattr(evaluate, "BATCH", size)
        result.append(evaluate.evaluate_split(network, dataset, "val", preprocessing, precision="float32", workers=1))
    for other in result[1:]:
        np.testing.assert_allclose(other.logits, result[0].logits, rtol=1e-4, atol=1e-5)
        assert np.array_equal(other.targets, result[0].targets)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
