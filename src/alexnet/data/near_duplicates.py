"""Find near-duplicates: photos that were saved again, resized, or made lighter or darker; and keep them together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from alexnet.data.decode_worker import THUMBNAIL
from alexnet.data.table import Table
from alexnet.errors import counted, truncate
from alexnet.progress import say

# Largest distance of near-duplicates, between thumbnails of mean 0 and length 1. Copies saved again differ by less than 0.05;
# the closest of 1,400 Imagenette photos (a golf ball on grass) by 0.29.
NEAR = 0.15
BITS, STEP, NEIGHBOURS = 128, 16, 8  # bits of a signature, bits between rotations, and neighbours compared in each order
# Signatures at the distance NEAR differ in 6 bits on average, with a standard deviation of 2.4; those of others in 64.
BITS_APART = 24
COMPARED = 1 << 14  # pairs at a time
CONTRAST = 2.0 * THUMBNAIL  # length of a thumbnail less its mean; below, it is almost constant and contains only noise
MOST = 30  # images that look alike; more are frames of a film or parts under one camera, each an example of its own
SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # of each byte


def look_alikes(table: Table, thumbnails: NDArray[np.uint8]) -> list[list[int]]:
    """Return the groups of near-duplicates among the images of a table, as lists of rows; `thumbnails` are N x 768 uint8.

    Images that are almost constant, or too small (their thumbnails are black), are in none. Groups of more than `MOST` images
    are left out, with a message if the table's own groups do not keep them together.
    """
    rows = np.flatnonzero(np.linalg.norm(_centred(thumbnails), axis=1) >= CONTRAST)
    groups: dict[int, list[int]] = defaultdict(list)
    for row, first in near_duplicates(thumbnails[rows]):
        groups[int(rows[first])].append(int(rows[row]))
    found = [[first, *others] for first, others in groups.items()]
    for rows_alike in found:
        if len(rows_alike) > MOST and len({_unit(table, row) for row in rows_alike}) > 1:
            names = " and ".join(truncate(table.images[row]) for row in rows_alike[:2])
            many = f"{counted(len(rows_alike), 'image')} look alike, such as {names}"
            say(
                f"{table.name}: {many}, too many for copies: they are split one by one (a column `group` keeps images together)"
            )
    return [rows_alike for rows_alike in found if len(rows_alike) <= MOST]


def join_groups(table: Table, alike: Sequence[Sequence[int]]) -> list[str]:
    """Return the group of each image after joining the table's groups and single images that look alike; empty for the others.

    A joined group is named for the first of its groups or, without any, of its images: when a copy of a photo is added, the
    photo stays where it was unless the copy's name sorts first.
    """
    joined: dict[tuple[bool, str], tuple[bool, str]] = {}

    def root(unit: tuple[bool, str]) -> tuple[bool, str]:
        while unit in joined:
            unit = joined[unit]
        return unit

    for rows in alike:
        first, *others = sorted({root(_unit(table, row)) for row in rows})
        joined |= dict.fromkeys(others, first)
    parts = {first for first in joined.values()}
    units = [root(_unit(table, row)) for row in range(len(table))]
    return ["" if single and (single, name) not in parts else name for single, name in units]


def _unit(table: Table, row: int) -> tuple[bool, str]:
    """Return what an image is split with: its group, or the image alone (True)."""
    group = table.groups[row] if table.groups else ""
    return not group, group or table.images[row]


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
    packed = np.packbits(signs, axis=1)  # N x 16
    close: list[NDArray[np.int64]] = []
    for turn in range(0, BITS, STEP):
        turned = np.roll(packed, -turn // 8, axis=1).view(">u8")  # N x 2
        order = np.lexsort((turned[:, 1], turned[:, 0]))
        pairs = np.concatenate([np.stack([order[gap:], order[:-gap]], 1) for gap in range(1, min(NEIGHBOURS + 1, count))])
        pairs = pairs[SET_BITS[packed[pairs[:, 0]] ^ packed[pairs[:, 1]]].sum(1) <= BITS_APART]
        for part in np.array_split(pairs, -(-len(pairs) // COMPARED) or 1):
            difference = _normalize(thumbnails[part[:, 0]]) - _normalize(thumbnails[part[:, 1]])
            close.append(part[np.linalg.norm(difference, axis=1) < NEAR])
    pairs = np.concatenate(close)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    firsts = {int(group): int(i) for group, i in zip(*np.unique(groups, return_index=True), strict=True)}
    yield from ((i, firsts[group]) for i, group in enumerate(groups.tolist()) if firsts[group] != i)


def _centred(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = thumbnails.astype(np.float32)
    x -= x.mean(1, keepdims=True)
    return x


def _normalize(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Remove brightness and contrast: scale to mean 0 and length 1."""
    x = _centred(thumbnails)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(CONTRAST)  # so that noise is not amplified
    return x
