"""Networks that differ in their seed alone: layers are compared between different seeds, and the values averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alexnet.errors import DataError, format_names
from alexnet.rsa.measures import Floats
from alexnet.rsa.representations import Representation


@dataclass(frozen=True)
class Seeds:
    """A number of seeds, each with the same layers.

    Matrices over all representations have those of the first seed first, in the order of the layers.
    """

    count: int
    layers: tuple[str, ...]

    def mean(self, values: Floats, drawn: Floats | None = None) -> Floats:
        """Return the similarity of layers, layers x layers: its mean over all pairs of different seeds.

        `drawn` says how often each seed counts, one each by default; without two different seeds, the result is nan.
        """
        times = np.ones(self.count) if drawn is None else drawn
        weights = np.outer(times, times)
        np.fill_diagonal(weights, 0)  # a network is the same as itself
        parts = values.reshape(self.count, len(self.layers), self.count, len(self.layers))
        total: Floats = np.einsum("iajb,ij->ab", parts, weights)
        return total / weights.sum() if weights.any() else total * np.nan

    def draw(self, random: np.random.Generator) -> Floats:
        """Draw as many seeds, some of them several times; return how often each was drawn."""
        return np.bincount(random.integers(self.count, size=self.count), minlength=self.count).astype(float)

    def half_width(self, values: Floats) -> Floats:
        """Return half the 95 % interval of `mean` over seeds, by a jackknife; 0 for two seeds, as it leaves one out."""
        from scipy.special import stdtrit  # slow to import

        if self.count < 3:
            return self.mean(values) * 0
        left = np.stack([self.mean(values, 1 - np.eye(self.count)[seed]) for seed in range(self.count)])
        error = np.sqrt((self.count - 1) / self.count * ((left - left.mean(0)) ** 2).sum(0))
        half: Floats = stdtrit(self.count - 1, 0.975) * error  # Student's, as seeds are few
        return half


def by_seed(found: Sequence[Representation]) -> tuple[Seeds, list[Representation]]:
    """Sort features from one file a seed by file and layer.

    Raises:
        DataError: there are fewer than two files, one is no file of features, or of other layers, or equal to another.
    """
    files = list(dict.fromkeys(one.path for one in found))
    layers = tuple(one.layer for one in found if one.path == files[0])
    if matrices := [one.path for one in found if one.gram is None]:
        raise DataError(f"{matrices[0]} is a dissimilarity matrix, not features of a seed: leave it out, or --seeds")
    if len(files) < 2:
        raise DataError(f"{files[0]} is of one seed: name a file for each seed, with the same layers")
    ordered = list[Representation]()
    for path in files:
        own = {one.layer: one for one in found if one.path == path}
        if set(own) != set(layers):
            raise DataError(f"{path} has the layers {format_names(own)}, but {files[0]} {format_names(layers)}")
        for start in range(0, len(ordered), len(layers)):
            if all(np.array_equal(one.rdm, own[one.layer].rdm) for one in ordered[start : start + len(layers)]):
                raise DataError(f"{path} has the same features as {ordered[start].path}: name a file for each seed")
        ordered += [own[layer] for layer in layers]
    return Seeds(len(files), layers), ordered


def mean_rdms(seeds: Seeds, found: Sequence[Representation]) -> list[Representation]:
    """Return the layers with the mean of their dissimilarities over seeds, for the figure."""
    size = len(seeds.layers)
    return [replace(one, rdm=np.mean([each.rdm for each in found[i::size]], 0)) for i, one in enumerate(found[:size])]
