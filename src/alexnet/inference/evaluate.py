"""Evaluation of a network on a dataset: logits, targets, and the metrics that follow from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.batches import batch_bounds
from alexnet.data.dataset import Dataset
from alexnet.data.decode_pool import map_ahead
from alexnet.data.table import Skipped
from alexnet.inference import metrics
from alexnet.inference.forward import compute
from alexnet.network.known import SCORES, Known
from alexnet.progress import track
from alexnet.recipe import Preprocessing

BATCH = 256


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The network's output for a set of images, and its metrics.

    Attributes:
        logits: N x classes float32; with several views, the logarithms of the mean probabilities.
        targets: class indices into `labels`, N int64.
        labels: class names.
        input: C, H, W of the network's input, in pixels.
        temperature: factor that logits are divided by for calibrated probabilities, fitted on validation images (Guo and others
            2017).
        skipped: files that could not be used, each with the reason.
        known: the scores' threshold, or None.
        scores: scores of the images for `known`, N x 3 float32; without it, N x 0.
        images: names of the images, as in the dataset.
        split: `train`, `val`, `test` or `all`.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    labels: tuple[str, ...]
    input: tuple[int, int, int]
    temperature: float = 1.0
    skipped: Sequence[Skipped] = ()
    known: Known | None = None
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    images: Sequence[str] = ()
    split: str = ""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, before calibration."""
        return metrics.cross_entropy(self.logits, self.targets)

    @property
    def top1(self) -> float:
        """Top-1 accuracy, from 0 to 1."""
        return metrics.top_k(self.logits, self.targets, 1)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, classes x classes int64: rows are true classes, columns predicted ones."""
        return metrics.confusion(self.logits.argmax(1), self.targets, len(self.labels))

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated probabilities, N x classes float64."""
        result: NDArray[np.float64] = np.exp(metrics.log_probabilities(self.logits, self.temperature))
        return result

    @cached_property
    def margins(self) -> NDArray[np.float32] | None:
        """By how much the score of each image is above the threshold of `known`, N float32; None without one."""
        return None if self.known is None else self.known.margins_of(self.scores)

    def reliability(self, temperature: float = 1.0) -> metrics.Reliability:
        """Return confidence and accuracy by bins of confidence, from 0 to 1, after dividing the logits by `temperature`."""
        return metrics.reliability(self.logits, self.targets, temperature)

    def calibrated(self) -> Self:
        """Return a copy with the temperature fitted to these logits, which must be those of the validation set."""
        return replace(self, temperature=metrics.fit_temperature(self.logits, self.targets))

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as JSON.

        Returns:
            `{"images", "loss", "top1", "top1_interval": [low, high], "top5", "ece", "ece_raw", "temperature", "input",
            "per_class": {label: {"images", "precision", "recall", "f1"}}, "known": {"images", "share", "top1"} or None,
            "skipped": [{"image", "reason"}]}`. The loss is in nats, accuracies are from 0 to 1; `top1_interval` is the 95 %
            interval (Wilson 1927). `ece` is the expected calibration error, `ece_raw` the same before calibration. Recall and
            F1 of a class without images are None, and so is the precision of a class that is never predicted. `known` has the
            number, the share and the accuracy of the images that the run says it knows.
        """
        top1 = self.top1
        return {
            "images": len(self.targets),
            "loss": self.loss,
            "top1": top1,
            "top1_interval": list(metrics.wilson_interval(top1, len(self.targets))),
            "top5": metrics.top_k(self.logits, self.targets, 5),
            "ece": self.reliability(self.temperature).error,
            "ece_raw": self.reliability().error,
            "temperature": self.temperature,
            "input": list(self.input),
            "per_class": dict(zip(self.labels, metrics.per_class(self.confusion), strict=True)),
            "known": self._known(),
            "skipped": [skipped._asdict() for skipped in self.skipped],
        }

    def _known(self) -> dict[str, Any] | None:
        if self.margins is None:
            return None
        passed = self.margins >= 0
        count = int(passed.sum())
        top1 = metrics.top_k(self.logits[passed], self.targets[passed], 1) if count else None
        return {"images": count, "share": count / len(passed), "top1": top1}


def evaluate_split(
    network: nn.Module,
    dataset: Dataset,
    split: str,
    preprocessing: Preprocessing,
    precision: str,
    workers: int,
    temperature: float = 1.0,
    *,
    view_count: int | None = None,
    known: Known | None = None,
    before_batch: Callable[[], object] = lambda: None,
    shard: Callable[[int], slice] = slice,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> Evaluation:
    """Evaluate the network on a split of a dataset, or on `all` of it, and show the progress.

    `view_count` is `preprocessing.views` by default. With `known`, the images are scored, too. `workers` threads load batches
    ahead. `before_batch` is called before each batch, and may raise an error to stop. With several processes, `shard` returns
    the slice of a number of batches that this one evaluates, and `total` the sum of a tensor over all. The batches are those of
    one process, and so are the outputs, to the bit.
    """
    images, table = dataset.images(split), dataset.table
    bounds = batch_bounds(len(images), BATCH)
    mine = bounds[shard(len(bounds))]
    classes = len(table.labels)
    outputs = torch.zeros(len(images), classes + (0 if known is None else SCORES))
    batches = map_ahead(lambda ends: images.take(np.arange(*ends)), mine, workers, workers + 1)
    for (start, end), batch in zip(mine, track(batches, f"Evaluating {split}", len(mine)), strict=True):
        before_batch()
        rows = np.concatenate(compute(network, batch.images, preprocessing, precision, view_count, known), 1)
        outputs[start:end] = torch.from_numpy(rows)
    gathered = total(outputs).numpy()
    logits, scores = gathered[:, :classes].copy(), gathered[:, classes:].copy()
    shape, named = (3, preprocessing.input_side, preprocessing.input_side), (dataset.names(split), split)
    return Evaluation(logits, images.targets, table.labels, shape, temperature, table.skipped, known, scores, *named)
