"""Compare representations of the same images: by the ranks of their dissimilarities, and by CKA, with intervals."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.files import refuse_overwrite
from alexnet.progress import track
from alexnet.rsa.figure import draw
from alexnet.rsa.measures import Floats, Kind, centred, cosines, pairs, ranked
from alexnet.rsa.representations import read_representations
from alexnet.rsa.seeds import Seeds, by_seed, mean_rdms

GROUPS = 40  # of images, left out in turn
Z_95 = 1.959964  # the 97.5th percentile of the normal distribution


def similarity(
    files: Sequence[str | Path],
    out: str | Path | None = None,
    kind: Kind = "correlation",
    resamples: int = 200,
    overwrite: bool = False,
    seeds: bool = False,
) -> dict[str, Any]:
    """Compare how layers and given matrices tell images apart.

    Two representations are compared by Spearman's correlation of their dissimilarities (Kriegeskorte and others 2008), and if
    both are features, by linear CKA (Kornblith and others 2019).

    Args:
        files: features, as `Run.extract` writes them, of which every layer is compared; and dissimilarity matrices from
            elsewhere, such as of human judgements: `.npy`, or `.csv` with or without the images' names.
        out: a PNG file for a figure. Default: none.
        kind: dissimilarity of two images' features: `correlation`, `euclidean` or `cosine`.
        resamples: number of times that the images are drawn anew, for 95 % intervals (bootstrap; those of CKA are by
            jackknife); 0 for none.
        overwrite: replace a figure that this program did not make.
        seeds: the files are features of the same layers, of networks that differ in their seed alone, a file each. A layer has
            one entry, and the similarity of two layers is the mean over all pairs of different seeds; on the diagonal, it says
            how alike a layer is from seed to seed. Intervals are over images and seeds: both are drawn anew, and left out in
            turn for CKA. With two seeds, of which none can be left out, that of CKA is over images alone.

    Returns:
        `{"images": N, "seeds": number or None, "names": […], "rdm": S, "cka": S, "figure": path or None}`, where S is
        `{"values", "low", "high"}`, a matrix of names x names each; None where CKA is not defined, or without intervals.

    Raises:
        DataError: a file cannot be read, or is not of the same images, or with `seeds`, not of the same layers.
        RunError: the figure cannot be written.
    """
    path = None if out is None else Path(out)
    if path is not None:
        refuse_overwrite(path, overwrite)
    found = read_representations([Path(file) for file in files], kind)
    group, found = by_seed(found) if seeds else (None, found)
    count, rdms, grams = len(found[0].rdm), [one.rdm for one in found], [one.gram for one in found if one.gram is not None]
    names = [one.name for one in found] if group is None else list(group.layers)
    has_gram = [one.gram is not None for one in found[: len(names)]]
    result = {
        "images": count,
        "seeds": group and group.count,
        "names": names,
        "rdm": _json(*_rank_correlations(rdms, resamples, group), [True] * len(names)),
        "cka": _json(*_alignments(grams, group, intervals=resamples > 0), has_gram),
        "figure": None if path is None else str(path),
    }
    if path is not None:
        draw(found if group is None else mean_rdms(group, found), result, path, overwrite)
    return result


def _rank_correlations(rdms: Sequence[Floats], resamples: int, seeds: Seeds | None = None) -> tuple[Floats, Floats, Floats]:
    """Return Spearman's correlations and their intervals by bootstrap over images, without pairs of an image with itself.

    With `seeds`, they are means over pairs of different seeds, and seeds are drawn anew, too.
    """
    values = cosines([ranked(pairs(rdm)) for rdm in rdms])
    random, random_seeds, count = np.random.default_rng(0), np.random.default_rng(1), len(rdms[0])
    result = values if seeds is None else seeds.mean(values)
    drawn = [result * np.nan]
    for _ in track(range(resamples), "Drawing images anew", resamples):
        rows = random.integers(count, size=count)
        others = pairs(rows[:, None] != rows)
        again = cosines([ranked(pairs(rdm[np.ix_(rows, rows)])[others]) for rdm in rdms])
        drawn.append(again if seeds is None else seeds.mean(again, seeds.draw(random_seeds)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of slices that are all nan
        low, high = np.nanquantile(np.stack(drawn), [0.025, 0.975], axis=0)
    return result, low, high


def _alignments(grams: Sequence[Floats], seeds: Seeds | None = None, *, intervals: bool) -> tuple[Floats, Floats, Floats]:
    """Return linear CKA and its intervals by a jackknife that leaves out groups of images, and with `seeds`, seeds.

    An image drawn twice, as in a bootstrap, would make any two representations more alike.
    """
    whole = cosines([centred(gram).ravel() for gram in grams]) if grams else np.empty((0, 0))
    values = whole if seeds is None else seeds.mean(whole)
    if not grams or not intervals:
        return values, values * np.nan, values * np.nan
    count = len(grams[0])
    order, groups = np.random.default_rng(0).permutation(count), min(GROUPS, count)
    left = []
    for group in track(range(groups), "Leaving out images", groups):
        rows = np.sort(np.delete(order, np.s_[group::groups]))
        again = cosines([centred(gram[np.ix_(rows, rows)]).ravel() for gram in grams])
        left.append(again if seeds is None else seeds.mean(again))
    half = Z_95 * np.sqrt((groups - 1) / groups * ((np.stack(left) - np.mean(left, 0)) ** 2).sum(0))
    half = half if seeds is None else np.hypot(half, seeds.half_width(whole))
    return values, np.maximum(values - half, 0), np.minimum(values + half, 1)


def _json(values: Floats, low: Floats, high: Floats, included: Sequence[bool]) -> dict[str, list[list[float | None]]]:
    """Return matrices over all representations as lists, with None for those not `included` and instead of nan."""
    rows = np.flatnonzero(included)
    result = {}
    for name, part in (("values", values), ("low", low), ("high", high)):
        whole = np.full((len(included), len(included)), np.nan)
        whole[np.ix_(rows, rows)] = part
        result[name] = [[None if np.isnan(value) else float(value) for value in row] for row in whole]
    return result
