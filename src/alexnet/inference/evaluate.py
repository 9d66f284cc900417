"""A network and batches -> an `Evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.data.batches import Batch, batch_bounds, ordered_batches
from alexnet.data.dataset import Dataset
from alexnet.data.table import Skipped
from alexnet.inference import metrics
from alexnet.inference.forward import predict_logits
from alexnet.progress import track
from alexnet.recipe import Preprocessing

BATCH = 256


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the network said of a set of images, and what follows from it.

    Attributes:
        logits: N x classes float32; of several views, the logarithms of mean probabilities.
        targets: the position of each image's class in `labels`, N int64.
        labels: names of the classes.
        input: the network's C, H, W, in pixels.
        temperature: the factor by which logits are too large for probabilities, by the validation images (Guo and others 2017).
        skipped: files that were left out, each with its reason.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    labels: tuple[str, ...]
    input: tuple[int, int, int]
    temperature: float = 1.0
    skipped: Sequence[Skipped] = ()

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, before calibration."""
        return metrics.cross_entropy(self.logits, self.targets)

    @property
    def top1(self) -> float:
        """Share of images, 0 to 1, whose class has the largest logit."""
        return metrics.top_k(self.logits, self.targets, 1)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts, classes x classes int64, by true class (rows) and predicted class (columns)."""
        return metrics.confusion(self.logits.argmax(1), self.targets, len(self.labels))

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """N x classes float64, calibrated with the temperature."""
        result: NDArray[np.float64] = np.exp(metrics.log_probabilities(self.logits, self.temperature))
        return result

    def reliability(self, temperature: float = 1.0) -> metrics.Reliability:
        """Return how far probabilities, of logits divided by `temperature`, can be believed: in bins, shares from 0 to 1."""
        return metrics.reliability(self.logits, self.targets, temperature)

    def calibrated(self) -> Evaluation:
        """Return this with the temperature that fits its own logits best: for the validation set alone."""
        return replace(self, temperature=metrics.fit_temperature(self.logits, self.targets))

    def to_json(self) -> dict[str, Any]:
        """Return the figures under their fixed keys; shares from 0 to 1, the loss in nats.

        Returns:
            `{"images", "loss", "top1", "top1_interval": [low, high], "top5", "ece", "ece_raw", "temperature", "input",
            "per_class": {label: {"images", "precision", "recall", "f1"}}, "skipped": [{"image", "reason"}]}`: the interval
            holds with 95 % (Wilson 1927); a class without images has None for recall and F1, one that is never predicted None
            for precision; `ece` is the expected calibration error, `ece_raw` that before calibration.
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
            "skipped": [skipped._asdict() for skipped in self.skipped],
        }


def evaluate_split(
    network: nn.Module,
    dataset: Dataset,
    split: str,
    preprocessing: Preprocessing,
    *,
    precision: str,
    workers: int,
    temperature: float = 1.0,
    view_count: int = 1,
    before_batch: Callable[[], object] = lambda: None,
    shard: Callable[[int], slice] = slice,
    gather: Callable[[Tensor, int], Tensor] = lambda logits, _: logits,
) -> Evaluation:
    """Evaluate the network on a split of a dataset (or on `all` of it), with progress; `workers` threads read ahead.

    `view_count` is the number of views of each image (inference/views.py). `before_batch` is called before each batch; what it
    raises ends the evaluation. Of several processes each evaluates the `shard` that it returns of so many images, and `gather`
    returns all logits for its own.
    """
    images, table = dataset.images(split), dataset.table
    ours = images.cut(shard(len(images)))

    def batches() -> Iterator[Batch]:
        for batch in ordered_batches(ours, BATCH, workers):
            before_batch()
            yield batch

    shown = track(batches(), f"Evaluating {split}", len(batch_bounds(len(ours), BATCH)))
    result = evaluate(
        network, shown, preprocessing, table.labels, precision=precision, temperature=temperature, view_count=view_count
    )
    logits = gather(torch.from_numpy(result.logits), len(images)).numpy()
    return replace(result, logits=logits, targets=images.targets, skipped=table.skipped)


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    *,
    precision: str = "auto",
    temperature: float = 1.0,
    view_count: int = 1,
) -> Evaluation:
    """Run the network over the batches, without gradients and with dropout off."""
    logits, targets = [np.empty((0, len(labels)), np.float32)], [np.empty(0, np.int64)]  # there may be no batch
    for batch in batches:
        logits.append(predict_logits(network, batch.images, preprocessing, precision, view_count))
        targets.append(batch.targets.numpy())
    return Evaluation(
        np.concatenate(logits), np.concatenate(targets), labels, (3, preprocessing.input, preprocessing.input), temperature
    )
