"""Predictions of images by networks that never saw them, in files without pickles."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alexnet.data.dataset import Dataset
from alexnet.errors import RunError, error_reason
from alexnet.files import write, write_text
from alexnet.inference.evaluate import Evaluation


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of N images.

    Attributes:
        images: their names, as in the dataset's table.
        labels: names of the classes.
        targets: their given classes, N int64.
        folds: the fold that each is in, from 1 on, N int64.
        probabilities: calibrated, N x classes float32.
        dataset: SHA-256 of the names, classes and pixels of all images that were divided into folds.
    """

    images: Sequence[str]
    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    folds: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    dataset: str

    @classmethod
    def of(cls, dataset: Dataset, evaluation: Evaluation, fold: int) -> Self:
        """Return the predictions of a fold: the test images of `dataset`, in the order of `evaluation`."""
        table, targets = dataset.table, evaluation.targets
        content = json.dumps([list(table.images), table.labels, table.targets.tolist(), dataset.sha256])
        probabilities = evaluation.probabilities.astype(np.float32)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return cls(dataset.names("test"), table.labels, targets, np.full(len(targets), fold), probabilities, digest)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the predictions of all folds, sorted by the images' names."""
        images = [image for part in parts for image in part.images]
        order = sorted(range(len(images)), key=images.__getitem__)
        targets, folds, probabilities = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("targets", "folds", "probabilities")
        )
        return cls([images[i] for i in order], parts[0].labels, targets, folds, probabilities, parts[0].dataset)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image."""
        result: NDArray[np.int64] = self.probabilities.argmax(1)
        return result

    def save(self, path: Path) -> None:
        """Write an archive of NumPy arrays, which `np.load` reads without pickles."""
        texts = {"images": list(self.images), "labels": list(self.labels), "dataset": self.dataset}
        arrays: dict[str, Any] = {name: np.array(text, dtype=np.str_) for name, text in texts.items()}

        def save(part: Path) -> None:
            with part.open("wb") as file:
                np.savez_compressed(file, targets=self.targets, folds=self.folds, probabilities=self.probabilities, **arrays)

        write(path, save)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an archive that `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                images, labels, dataset = (archive[name].tolist() for name in ("images", "labels", "dataset"))
                targets, folds, probabilities = (archive[name] for name in ("targets", "folds", "probabilities"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path} cannot be read: {error_reason(error)}") from error
        result = cls(images, tuple(labels), targets, folds, probabilities, dataset)
        count, classes = len(result.images), len(result.labels)
        fits = result.probabilities.shape == (count, classes) and result.targets.shape == result.folds.shape == (count,)
        if not fits or not ((result.targets >= 0) & (result.targets < classes)).all():
            raise RunError(f"{path} is damaged: its arrays do not belong together")
        return result

    def write_csv(self, path: Path) -> None:
        """Write a row for each image: its given label and its probability, and the predicted label and its probability."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "label", "fold", "predicted", "probability", "label_probability"])
        for image, target, fold, best, row in zip(
            self.images, self.targets, self.folds, self.predicted, self.probabilities.tolist(), strict=True
        ):
            labels = self.labels[target], int(fold), self.labels[best]
            writer.writerow([image, *labels, f"{row[best]:.6f}", f"{row[target]:.6f}"])
        write_text(path, text.getvalue())
