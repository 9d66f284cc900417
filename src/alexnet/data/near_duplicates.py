"""Find near-duplicates: photos that were saved again, resized, or made lighter or darker."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_worker import THUMBNAIL

# Largest distance of near-duplicates, between thumbnails of mean 0 and length 1. Copies saved again differ by less than 0.05;
# the closest of 1,400 Imagenette photos (a golf ball on grass) by 0.29.
NEAR = 0.15
BITS, STEP, NEIGHBOURS = 128, 16, 8  # bits of a signature, bits between rotations, and neighbours compared in each order
COMPARED = 1 << 14  # pairs at a time


def near_duplicates(thumbnails: NDArray[np.uint8]) -> Iterable[tuple[int, int]]:
    """Yield pairs of near-duplicates among N x values uint8 thumbnails: a position, and that of the first in its group.

    A thumbnail's signature is the signs of random projections; near-duplicates differ in at most one bit of twenty. Thumbnails
    are sorted by their signatures, rotated by several offsets, and compared with a few neighbours in each order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(thumbnails)
    if count < 2:
        return
    plane = np.random.default_rng(0).standard_normal((thumbnails.shape[1], BITS), dtype=np.float32)
    signs = np.concatenate([_normalize(thumbnails[i : i + COMPARED]) @ plane > 0 for i in range(0, count, COMPARED)])
    close: list[NDArray[np.int64]] = []
    for turn in range(0, BITS, STEP):
        packed = np.packbits(np.roll(signs, -turn, axis=1), axis=1).view(">u8")  # N x 2
        order = np.lexsort((packed[:, 1], packed[:, 0]))
        pairs = np.concatenate([np.stack([order[gap:], order[:-gap]], 1) for gap in range(1, min(NEIGHBOURS + 1, count))])
        for part in np.array_split(pairs, -(-len(pairs) // COMPARED)):
            difference = _normalize(thumbnails[part[:, 0]]) - _normalize(thumbnails[part[:, 1]])
            close.append(part[np.linalg.norm(difference, axis=1) < NEAR])
    pairs = np.concatenate(close)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    firsts = {int(group): int(i) for group, i in zip(*np.unique(groups, return_index=True), strict=True)}
    yield from ((i, firsts[group]) for i, group in enumerate(groups.tolist()) if firsts[group] != i)


def _normalize(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Remove brightness and contrast: scale to mean 0 and length 1."""
    x = thumbnails.astype(np.float32)
    x -= x.mean(1, keepdims=True)
    # A nearly constant thumbnail contains only noise, which a minimal length keeps from being amplified.
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(2 * THUMBNAIL)
    return x
