"""Measures of representations, in float64: dissimilarities of images, and the similarity of two representations."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["correlation", "euclidean", "cosine"]


def dissimilarities(features: Floats, kind: Kind = "correlation") -> Floats:
    """Return the representational dissimilarity matrix (RDM) of images (Kriegeskorte and others 2008), N x N.

    Args:
        features: N x units.
        kind: `correlation`, 1 minus the correlation of two images' units; `cosine`, 1 minus the cosine; or `euclidean`, the
            distance.

    Raises:
        ValueError: all units of an image have the same value, so nothing correlates with it; or are 0, for `cosine`.
    """
    if kind == "correlation":
        features = features - features.mean(1, keepdims=True)
    if kind == "euclidean":
        features = features - features.mean(0)  # the same distances, with less rounding
        squares = (features**2).sum(1)
        result: Floats = np.sqrt(np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0))
    else:
        lengths = np.linalg.norm(features, axis=1)
        if not (lengths > 0).all():
            raise ValueError(f"the units of row {int((lengths == 0).argmax())} are all the same")
        units = features / lengths[:, None]
        result = 1 - units @ units.T
    np.fill_diagonal(result, 0)
    return (result + result.T) / 2


def pairs(matrix: Floats) -> Floats:
    """Return the entries above the diagonal, row by row."""
    return matrix[np.triu_indices(len(matrix), 1)]


def ranked(values: Floats) -> Floats:
    """Return the ranks of a vector's values, less their mean; equal values share their mean rank."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    result: Floats = ranks - ranks.mean()
    return result


def gram(features: Floats) -> Floats:
    """Return the products of all pairs of images, N x N, after the mean image is subtracted."""
    features = features - features.mean(0)
    return features @ features.T


def centred(matrix: Floats) -> Floats:
    """Subtract the means of rows and columns of a matrix, and add that of all."""
    result: Floats = matrix - matrix.mean(0) - matrix.mean(1, keepdims=True) + matrix.mean()
    return result


def cosines(vectors: Sequence[Floats]) -> Floats:
    """Return the cosine of every two vectors; nan where one is 0.

    Of ranks (`ranked`) it is Spearman's correlation, and of centred products of all pairs of images, linear centred kernel
    alignment (CKA, Kornblith and others 2019): 1 for representations that differ by rotation, scale and shift alone.
    """
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    units = np.stack([vector / length if length else vector * np.nan for vector, length in zip(vectors, lengths, strict=True)])
    return units @ units.T
