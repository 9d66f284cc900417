"""Whether an image shows any of the classes: scores of its code and logits, and a threshold.

The code is the output of the last hidden layer. Three scores are added up, each in units of its spread on validation images:
energy, the log of the sum of the exponentials of the logits (Liu and others 2020); the distance of the code to the subspace of
most variance of training codes (as in ViM, Wang and others 2022), negative; and its largest cosine similarity to the mean code
of a class. None is best on all kinds of images; their sum was, of those compared in docs/log.md.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SCORES = 3
FITTED = 1000  # training images at most
VARIANCE, LARGEST = 0.9, 128  # of the codes in the subspace, and its largest number of dimensions
PASSED = 0.95  # of the validation images
PASSED_AT_LEAST = 0.9  # of them, if counterexamples set the threshold

Floats = NDArray[np.floating]


class Known(nn.Module):
    """Computes the scores of images from their codes and logits: how well each fits the classes, higher is better.

    Attributes:
        mean: mean training code, units.
        basis: orthonormal basis of the subspace, dimensions x units.
        directions: mean code of each class, of length 1, classes x units; 0 for a class that was not seen.
        spread: standard deviations of the scores on validation images; the scores are added up in these units.
        threshold: the sum from which an image counts as known.
    """

    mean: Tensor
    basis: Tensor
    directions: Tensor
    spread: Tensor
    threshold: Tensor

    def __init__(self, units: int, classes: int, dimensions: int) -> None:
        super().__init__()
        shapes = {"mean": (units,), "basis": (dimensions, units), "directions": (classes, units), "spread": (SCORES,)}
        for name, shape in (shapes | {"threshold": ()}).items():
            self.register_buffer(name, torch.zeros(shape))

    @classmethod
    def from_state(cls, state: dict[str, Tensor], units: int, classes: int) -> Self:
        """Return one with the buffers in `state`, which raises RuntimeError unless they fit a network of that size."""
        with torch.device("meta"):
            known = cls(units, classes, len(state.get("basis", ())))
        known.load_state_dict(state, assign=True)
        return known.eval()

    def forward(self, codes: Tensor, logits: Tensor) -> Tensor:
        """Return the scores of images with these codes, N units, and logits, N classes: N x 3 float32."""
        codes, logits = codes.float(), logits.float()
        centred = codes - self.mean
        outside = centred - (centred @ self.basis.T) @ self.basis
        similarity = codes @ self.directions.T / codes.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return torch.stack([logits.logsumexp(1), -outside.norm(dim=1), similarity.amax(1)], 1)

    def margins(self, scores: Tensor) -> Tensor:
        """Return by how much the weighted sum of scores, N x 3, is above the threshold, N: images from 0 on are known."""
        return (scores / self.spread).sum(1) - self.threshold

    def margins_of(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `margins` as an array."""
        return np.asarray(self.margins(torch.from_numpy(scores).to(self.spread.device)).cpu())

    def calibrate(self, scores: Floats, unknown: Floats | None = None) -> None:
        """Set spreads and threshold, so that 95 % of validation images are known; `scores` are theirs, N x 3.

        With the scores of images that show none of the classes, `unknown`, M x 3, the threshold is the one with the fewest
        mistakes, as a fraction of each of both, among those at which 90 % of the validation images are known.
        """
        spread = scores.astype(np.float64).std(0)
        spread[~(spread > 1e-6 * np.abs(scores).max(0))] = np.inf  # a score that is the same for all says nothing
        sums = (scores / spread).sum(1)
        threshold = np.quantile(sums, 1 - PASSED, method="lower")
        if unknown is not None and len(unknown):
            others = (unknown / spread).sum(1)
            candidates = np.unique(np.concatenate([sums, others]))
            own, other = (1 - np.searchsorted(np.sort(each), candidates) / len(each) for each in (sums, others))  # known
            threshold = candidates[np.argmax(np.where(own >= PASSED_AT_LEAST, own - other, -np.inf))]
        self.spread.copy_(torch.from_numpy(spread))
        self.threshold.fill_(float(threshold))


def fit_known(codes: Floats, targets: NDArray[np.int64], classes: int) -> Known:
    """Return the scores' statistics from the codes of training images, N units, and their classes; not calibrated yet."""
    x = codes.astype(np.float64)
    mean = x.mean(0)
    values, vectors = np.linalg.eigh((x - mean) @ (x - mean).T)  # from the least
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    rank = int((values > 1e-9 * values[0]).sum())
    explained = np.cumsum(values) / max(values.sum(), np.finfo(float).tiny)
    dimensions = min(int(np.searchsorted(explained, VARIANCE)) + 1, rank, LARGEST)
    basis = ((x - mean).T @ vectors[:, :dimensions] / np.sqrt(values[:dimensions])).T
    means = np.stack([x[targets == c].mean(0) if (targets == c).any() else np.zeros_like(mean) for c in range(classes)])
    directions = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    known = Known(len(mean), classes, dimensions)
    for name, value in (("mean", mean), ("basis", basis), ("directions", directions)):
        getattr(known, name).copy_(torch.from_numpy(value))
    return known.eval()
