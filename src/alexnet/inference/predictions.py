"""Predictions of labelled images, a row for each: `RUN/predictions.csv`, and what `alexnet evaluate --csv` prints."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import RunError, error_reason
from alexnet.files import write_text
from alexnet.inference.evaluate import Evaluation
from alexnet.inference.metrics import log_probabilities

COLUMNS = ("split", "image", "label", "predicted", "probability", "loss")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for the images of a split.

    Attributes:
        images: names of the images, as in the dataset.
        labels: their labels.
        right: whether the predicted label is theirs, N bool.
        losses: cross-entropy in nats, before calibration, N float64.
    """

    images: Sequence[str]
    labels: Sequence[str]
    right: NDArray[np.bool_]
    losses: NDArray[np.float64]


def csv_text(evaluations: Sequence[Evaluation], more: Iterable[Sequence[str]] = ()) -> str:
    """Return evaluations as CSV: the split and the label of each image, the predicted label, its probability, and the loss.

    Probabilities are calibrated; losses are cross-entropies in nats, before calibration. The rows `more` come first.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *more])
    for evaluation in evaluations:
        writer.writerows(_rows(evaluation))
    return text.getvalue()


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    targets, labels = evaluation.targets, evaluation.labels
    losses = -log_probabilities(evaluation.logits)[np.arange(len(targets)), targets]
    predicted = evaluation.logits.argmax(1)
    for row, (image, target, first, loss) in enumerate(zip(evaluation.images, targets, predicted, losses, strict=True)):
        probability = evaluation.probabilities[row, first]
        yield evaluation.split, image, labels[target], labels[first], f"{probability:.6f}", f"{loss:.9g}"


def write(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations to a CSV file, which keeps its rows of other splits."""
    new = {evaluation.split for evaluation in evaluations}
    kept = [row for row in _read(path) if row["split"] not in new]
    write_text(path, csv_text(evaluations, ([row[name] for name in COLUMNS] for row in kept)))


def read(path: Path, split: str) -> Predictions | None:
    """Read the predictions for a split; None if there are none, as in runs of earlier versions.

    Raises:
        RunError: the file cannot be read.
    """
    rows = [row for row in _read(path) if row["split"] == split]
    right = np.array([row["predicted"] == row["label"] for row in rows], dtype=bool)
    try:
        losses = np.array([float(row["loss"]) for row in rows])
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error_reason(error)}") from error
    if not np.isfinite(losses).all():
        raise RunError(f"{path} is damaged: a loss is not a finite number")
    return Predictions([row["image"] for row in rows], [row["label"] for row in rows], right, losses) if rows else None


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
            if tuple(header) != COLUMNS:
                raise RunError(f"{path} is damaged: its columns are not {', '.join(COLUMNS)}")
            return [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read: {error_reason(error)}") from error
