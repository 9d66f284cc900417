"""What is wrong with a dataset, before anyone trains on it: looked at image by image; nothing is changed."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.dataset import Dataset
from alexnet.data.decode_pool import decoded
from alexnet.data.decode_worker import THUMBNAIL
from alexnet.data.labels import labels_differing_in_case
from alexnet.data.table import SPLITS, Table
from alexnet.errors import ImageError, format_names, truncate
from alexnet.progress import track

# Kinds of problems, in the order they are told, with what to do about each.
KINDS = {
    "left out": "is no image with a label: not trained on; move it into a class folder, or ignore this",
    "missing": "is listed but not there: not trained on",
    "empty": "has no bytes: not trained on; copy it again",
    "not an image": "is not trained on: convert it, if it is a photo (HEIC, RAW and PDF are not read), or remove it",
    "format": "has samples of which none is known to be white: not trained on; save it as 8- or 16-bit grey or RGB",
    "truncated": "ends too early: not trained on; copy it again",
    "corrupt": "cannot be decoded: not trained on; copy it again",
    "huge": "is too large to decode: not trained on; make it smaller",
    "slow": "takes too long to decode: not trained on; save it anew",
    "animated": "has several frames: the first one is used",
    "mode": "is not 8-bit RGB or grey: it is converted",
    "metadata": "has odd data beside its pixels: they are left out, the pixels are used",
    "dark": "uses a small part of its 16 bits, so it is almost black: save it with white at 65,535",
    "orientation": "is turned upright as its EXIF data says",
    "constant": "shows nothing: remove it",
    "duplicate": "has the pixels of another image: remove one, or correct the label",
    "near-duplicate": "looks like another image: look at both",
    "leak": "is in one split what another image is in another: the test is too easy; remove one",
    "tiny class": "has too few images to learn from: add some, or remove the class",
    "imbalance": "makes the rare classes hard: add images, or train with --set 'train.class_weights=\"balanced\"'",
    "case": "alone tells labels apart, which are classes of their own: if they are one, give them one name",
    "labels": "differ between splits: what is not trained on cannot be found",
}
CONSTANT = 8  # levels between the lightest and the darkest pixel
DARK = 32  # the lightest level of an image whose 16 bits hold 12 or less
TINY_CLASS = 5  # images
IMBALANCE = 10  # times as many images as the rarest class
PLAIN_MODES = ("RGB", "L")
# Two thumbnails are near, if after brightness and contrast are made alike they differ by less than this share of what is in
# them. Copies that were saved anew are below 0.05; the nearest of 1,400 photos of Imagenette, grass with a golf ball, 0.29.
NEAR = 0.15
BITS, STEP, NEIGHBOURS = 128, 16, 8  # of a thumbnail's signature; its turns; neighbours that each is compared with
COMPARED = 1 << 14  # pairs at a time


@dataclass(frozen=True)
class Problem:
    """What is wrong, with one image or with all.

    Attributes:
        image: its name; None for what concerns a class or the whole.
        kind: such as `corrupt`, `duplicate`, `leak` or `imbalance` (all are in `alexnet.data.check.KINDS`).
        detail: in words.
    """

    image: str | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Findings:
    """What a look at a dataset found.

    Attributes:
        images: how many were looked at.
        classes: how many of each label.
        problems: in the order of `KINDS`.
    """

    images: int
    classes: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return `{"images", "classes": {label: count}, "problems": [{"image", "kind", "detail"}]}`."""
        return {"images": self.images, "classes": self.classes, "problems": [vars(problem) for problem in self.problems]}


def check(table: Table) -> Findings:
    """Look at every image of a dataset, with progress.

    Time and memory grow with the number of images alone: about a kilobyte each.

    Raises:
        DataError: no process can be started to decode.
    """
    problems = [Problem(skipped.image, "left out", skipped.reason) for skipped in table.skipped]
    rows, digests, thumbnails = [], [], []
    answers = decoded("facts", table.sources(), os.cpu_count() or 1, 64)
    for row, (_, answer) in enumerate(track(answers, f"Checking {table.name}", len(table))):
        name = table.images[row]
        if isinstance(answer, ImageError):
            problems.append(Problem(name, answer.kind, str(answer)))
            continue
        problems += _alone(name, answer.facts)
        if answer.facts["range"] >= CONSTANT:
            rows.append(row)
            digests.append(bytes.fromhex(answer.facts["pixels"]))
            thumbnails.append(answer.body)
    first = _firsts(digests)
    problems += _duplicates(table, rows, first)
    single = [i for i, other in enumerate(first) if i == other]
    for i, other in near(np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(len(rows), 3 * THUMBNAIL**2)[single]):
        problems.append(_pair(table, rows[single[i]], rows[single[other]], "near-duplicate", "much like"))
    return _findings(table, problems)


def check_decoded(dataset: Dataset) -> Findings:
    """Look again at images that are decoded already, with progress: a part of `check`, in a fraction of its time.

    What the files alone show (frames, modes, orientation) is not looked at, nor what only looks alike; what was left out of the
    dataset is in its table.
    """
    rows, digests, problems = [], [], list[Problem]()
    for row in track(range(len(dataset.table)), f"Checking {dataset.table.name}", len(dataset.table)):
        image = dataset.pixels.stored(row)
        spread = int(image.max()) - int(image.min())
        if spread < CONSTANT:
            problems.append(_constant(dataset.table.images[row], spread))
        else:
            rows.append(row)
            digests.append(hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest())
    return _findings(dataset.table, [*problems, *_duplicates(dataset.table, rows, _firsts(digests))])


def _findings(table: Table, problems: list[Problem]) -> Findings:
    """Add what concerns classes and splits, and put all in the order of `KINDS`."""
    counts = np.bincount(table.targets, minlength=len(table.labels)).tolist()
    everything = [*problems, *_classes(table, counts), *_cases(table), *_labels(table)]
    everything.sort(key=lambda problem: list(KINDS).index(problem.kind))
    return Findings(len(table), dict(zip(table.labels, counts, strict=True)), everything)


def _alone(name: str, facts: dict[str, Any]) -> Iterator[Problem]:
    """What an image that decodes shows by itself."""
    if facts["frames"] > 1:
        yield Problem(name, "animated", f"{facts['frames']} frames")
    if facts["mode"] not in PLAIN_MODES:
        yield Problem(name, "mode", f"mode {facts['mode']}")
    if facts["metadata"]:
        yield Problem(name, "metadata", facts["metadata"])
    if facts["mode"].startswith("I") and CONSTANT <= facts["brightest"] < DARK:
        yield Problem(name, "dark", f"{facts['brightest']} of 255 levels is its lightest pixel, once scaled to 8 bits")
    if facts["orientation"] != 1:
        yield Problem(name, "orientation", f"EXIF orientation {facts['orientation']}")
    if facts["range"] < CONSTANT:
        yield _constant(name, facts["range"])


def _constant(name: str, spread: int) -> Problem:
    return Problem(name, "constant", f"{spread} of 255 levels between its lightest and darkest pixel")


def _firsts(digests: Iterable[bytes]) -> list[int]:
    """Return for each the position of the first that is the same."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(digest, i) for i, digest in enumerate(digests)]


def _duplicates(table: Table, rows: list[int], first: list[int]) -> Iterator[Problem]:
    """Yield images of the same pixels; the first of a group is the one that the others are said to be like."""
    for i, other in enumerate(first):
        if i != other:
            yield _pair(table, rows[i], rows[other], "duplicate", "the same pixels as")


def _pair(table: Table, row: int, other: int, kind: str, text: str) -> Problem:
    splits = [str(table.splits[i]) for i in (row, other)]
    labels = [truncate(table.labels[table.targets[i]]) for i in (row, other)]
    same = table.targets[row] == table.targets[other]
    detail = f"{text} {table.images[other]}"
    if splits[0] != splits[1]:
        kind, detail = "leak", f"{detail}, which is in {splits[1]}"
    if not same:
        detail += f", whose label is {labels[1]!r} and not {labels[0]!r}"
    return Problem(table.images[row], kind, detail)


def near(thumbnails: NDArray[np.uint8]) -> Iterable[tuple[int, int]]:
    """Yield (position, position of the first of its group) for thumbnails that look the same; N x values uint8.

    The signature of a thumbnail are the signs of random projections: of two that are near, at most one in twenty differs. All
    are sorted by their signatures, begun at several bits, and each is compared with a few neighbours in every order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(thumbnails)
    if count < 2:
        return
    plane = np.random.default_rng(0).standard_normal((thumbnails.shape[1], BITS), dtype=np.float32)
    signs = np.concatenate([_normal(thumbnails[i : i + COMPARED]) @ plane > 0 for i in range(0, count, COMPARED)])
    result: list[NDArray[np.int64]] = []
    for turn in range(0, BITS, STEP):
        packed = np.packbits(np.roll(signs, -turn, axis=1), axis=1).view(">u8")  # N x 2
        order = np.lexsort((packed[:, 1], packed[:, 0]))
        pairs = np.concatenate([np.stack([order[gap:], order[:-gap]], 1) for gap in range(1, min(NEIGHBOURS + 1, count))])
        result += [part[_distance(thumbnails, part) < NEAR] for part in np.array_split(pairs, -(-len(pairs) // COMPARED))]
    pairs = np.concatenate(result)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    firsts = {int(group): int(i) for group, i in zip(*np.unique(groups, return_index=True), strict=True)}
    yield from ((i, firsts[group]) for i, group in enumerate(groups.tolist()) if firsts[group] != i)


def _normal(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Take brightness and contrast away: mean 0, length 1."""
    x = thumbnails.astype(np.float32)
    x -= x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    # What is nearly flat has noise alone, which is not to count: as if it had so much contrast.
    scaled: NDArray[np.float32] = x / np.maximum(length, np.float32(2 * THUMBNAIL))
    return scaled


def _distance(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    one, other = _normal(thumbnails[pairs[:, 0]]), _normal(thumbnails[pairs[:, 1]])
    distance: NDArray[np.float32] = np.linalg.norm(one - other, axis=1)
    return distance


def _classes(table: Table, counts: list[int]) -> Iterator[Problem]:
    for label, count in zip(table.labels, counts, strict=True):
        if count < TINY_CLASS:
            yield Problem(None, "tiny class", f"{truncate(label)!r} has {count} images")
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    if counts[most] > IMBALANCE * counts[least]:
        common, rare = (truncate(table.labels[i]) for i in (most, least))
        names = f"{common!r} has {counts[most]:,} images, {rare!r} {counts[least]:,}"
        yield Problem(None, "imbalance", names)


def _cases(table: Table) -> Iterator[Problem]:
    for group in labels_differing_in_case(table.labels):
        yield Problem(None, "case", format_names(group))


def _labels(table: Table) -> Iterator[Problem]:
    inside: dict[str, set[str]] = defaultdict(set)
    for split, target in zip(table.splits.tolist(), table.targets.tolist(), strict=True):
        if split:
            inside[split].add(table.labels[target])
    everything = set().union(*inside.values())
    for split in (split for split in SPLITS if split in inside):
        if missing := sorted(everything - inside[split]):
            yield Problem(None, "labels", f"{split} has no images of {format_names(missing)}")
