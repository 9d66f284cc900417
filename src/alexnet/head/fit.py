"""Fit the last layer to the codes of training images: ridge regression, its penalty chosen by leave-one-out validation.

The targets are 1 for an image's class and 0 for the others. The codes are rotated into the eigenvectors of their Gram matrix,
of which there are no more than images. There the solution for any penalty, and what it predicts for each image when that image
is left out, are closed formulas (Golub, Heath and Wahba 1979), so that all penalties cost little more than one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.dataset import Dataset
from alexnet.errors import counted
from alexnet.head.codes import image_codes
from alexnet.inference import metrics
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing

PENALTIES = 10.0 ** np.arange(-4, 3, 0.5)  # in units of the mean eigenvalue of the Gram matrix
CHUNK = 2048  # images at a time
RANK = 1e-9  # eigenvalues below this fraction of the largest count as zero

Floats = NDArray[np.float64]
Take = Callable[[slice], NDArray[np.float32]]  # the codes of some images, N views units


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted layer, and the penalties that were tried.

    Attributes:
        weight: classes x units float64.
        bias: one number per class, float64.
        alphas: the penalties, as scikit-learn's `Ridge` takes them.
        left_out: for each penalty, what is predicted for the images when they are left out, P N classes float64.
        losses: the cross-entropy for each penalty on images left out, in nats, after scaling the predictions.
        scale: the factor of the predictions with the lowest loss, which makes logits of them.
    """

    weight: Floats
    bias: Floats
    alphas: Floats
    left_out: Floats
    losses: Floats
    scale: float

    @property
    def best(self) -> int:
        """The position of the chosen penalty."""
        return int(self.losses.argmin())


class _Rotated:
    """Codes as rows of a matrix, less their mean, in the basis of the eigenvectors of their Gram matrix.

    There are `views` rows per image. `values` are the eigenvalues.
    """

    def __init__(self, take: Take, count: int) -> None:
        self._take, self.count = take, count
        self.views, self.units = take(slice(0, 1)).shape[1:]
        self.rows = count * self.views
        self.centre = sum(x.sum(0) for _, x in self._chunks()) / self.rows
        self._centred: Floats | None = None  # all rows, if there are no more than units: then their rotation is known
        if self.rows <= self.units:
            self._centred = np.concatenate([x for _, x in self._chunks()]) - self.centre
            gram = self._centred @ self._centred.T
        else:
            gram = np.zeros((self.units, self.units))
            for _, x in self._chunks():
                gram += (x - self.centre).T @ (x - self.centre)
        values, vectors = np.linalg.eigh(gram)
        kept = values > max(values[-1] * RANK, np.finfo(float).tiny)
        self.values, self._vectors = values[kept], vectors[:, kept]

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """Yield slices of the images, each with its rotated rows."""
        if self._centred is not None:
            yield slice(0, self.count), self._vectors * np.sqrt(self.values)
            return
        for part, x in self._chunks():
            yield part, (x - self.centre) @ self._vectors

    def unrotated(self, coefficients: Floats) -> Floats:
        """Return what gives for codes what `coefficients`, rank x classes, give for their rotation: units x classes."""
        if self._centred is None:
            return np.asarray(self._vectors @ coefficients)
        return np.asarray(self._centred.T @ ((self._vectors / np.sqrt(self.values)) @ coefficients))

    def _chunks(self) -> Iterator[tuple[slice, Floats]]:
        for start in range(0, self.count, CHUNK):
            part = slice(start, min(start + CHUNK, self.count))
            yield part, self._take(part).reshape(-1, self.units).astype(np.float64)


def fit(take: Take, targets: NDArray[np.int64], classes: int) -> Head:
    """Fit a head to the codes of images with these targets; all views of an image are left out together."""
    codes, one_hot = _Rotated(take, len(targets)), np.eye(classes)[targets]
    mean, values, views = one_hot.mean(0), codes.values, codes.views
    products = np.zeros((len(values), classes))
    for part, z in codes.chunks():
        products += z.T @ (one_hot[part] - mean).repeat(views, 0)
    alphas = PENALTIES * (values.mean() if len(values) else 1.0)
    left_out = np.empty((len(alphas), len(targets), classes))
    for part, z in codes.chunks():
        for i, alpha in enumerate(alphas):
            predicted = mean + z @ (products / (values + alpha)[:, None])
            residual = one_hot[part].repeat(views, 0) - predicted
            root = (z / np.sqrt(values + alpha)).reshape(-1, views, len(values))
            hat = root @ root.transpose(0, 2, 1) + 1 / codes.rows  # the part of the hat matrix of each image's views
            outside = np.linalg.solve(np.eye(views) - hat, residual.reshape(-1, views, classes))
            left_out[i, part] = one_hot[part] - outside.mean(1)
    temperatures = np.array([metrics.fit_temperature(predicted, targets) for predicted in left_out])
    losses = np.array([metrics.cross_entropy(p / t, targets) for p, t in zip(left_out, temperatures, strict=True)])
    best = int(losses.argmin())
    scale = float(1 / temperatures[best])
    weight = scale * codes.unrotated(products / (values + alphas[best])[:, None]).T
    return Head(weight, scale * mean - weight @ codes.centre, alphas, left_out, losses, scale)


def fit_head(
    network: AlexNet, dataset: Dataset, preprocessing: Preprocessing, precision: str, mirror: bool, log: Callable[[str], object]
) -> None:
    """Fit the last layer of a network to the codes of a dataset's training images, and of their mirror images if `mirror`."""
    began, rows = time.monotonic(), dataset.table.rows("train")
    codes, targets = image_codes(network, dataset, preprocessing, precision, mirror=mirror), dataset.table.targets[rows]
    computed = time.monotonic()
    head = fit(lambda part: codes.take(rows[part]), targets, network.head.out_features)
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(head.weight))
        network.head.bias.copy_(torch.from_numpy(head.bias))
    reused = f"{codes.reused:,} of them were there already"
    log(f"codes of {counted(len(dataset.table), 'image')} in {computed - began:.1f} s, {reused}")
    accuracies = [metrics.top_k(predicted, targets, 1) for predicted in head.left_out]
    shown = ", ".join(f"{p:.2g} {top1:.1%}" for p, top1 in zip(PENALTIES[::2], accuracies[::2], strict=True))
    log(f"top-1 by penalty, each image left out in turn: {shown}")
    chosen = f"penalty {PENALTIES[head.best]:.2g}: top-1 {accuracies[head.best]:.1%}, loss {head.losses[head.best]:.3f}"
    log(f"head fitted to {counted(len(rows), 'image')} in {time.monotonic() - computed:.1f} s: left out in turn, {chosen}")
