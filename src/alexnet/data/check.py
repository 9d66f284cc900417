"""Check a dataset for problems: unreadable and bad images, duplicates, leaks between splits, cues. Nothing is changed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet.data.cues import Columns, file_values, find_cues, picture_values
from alexnet.data.dataset import Dataset
from alexnet.data.decode_pool import decode_all
from alexnet.data.decode_worker import THUMBNAIL, make_thumbnail
from alexnet.data.labels import labels_differing_in_case
from alexnet.data.near_duplicates import near_duplicates
from alexnet.data.quality import measure, quality_problems, size_problems
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import ImageError, counted, format_names, truncate
from alexnet.progress import track
from alexnet.recipe import Recipe

# Kinds of problems, in the order of the report, each with advice.
KINDS = {
    "left out": "is not a labelled image, so it is not used: move it into a class folder, or ignore this",
    "missing": "is listed but does not exist, so it is not used",
    "empty": "is an empty file, so it is not used: copy it again",
    "not an image": "is not used: convert it if it is a photo (RAW and PDF are not supported), or remove it",
    "format": "has samples that do not define white, so it is not used: save it as 8- or 16-bit grey or RGB",
    "truncated": "ends too early, so it is not used: copy it again",
    "corrupt": "cannot be decoded, so it is not used: copy it again",
    "huge": "is too large to decode, so it is not used: make it smaller",
    "slow": "takes too long to decode, so it is not used: save it again",
    "animated": "has several frames: the first one is used, of a HEIC file the primary one",
    "mode": "is not 8-bit RGB or grey: it is converted",
    "metadata": "has invalid metadata: they are ignored, the pixels are used",
    "orientation": "is turned upright as its EXIF data says",
    "elongated": "is more than three times as long as it is wide, so most of it is cropped away: crop it yourself",
    "dark": "is very dark: brighten or remove it; if it has 16 bits, save it with white at 65,535",
    "over-exposed": "is white in large parts: remove it, unless it shows something white, or on white ground",
    "blur": "looks blurred, also at the size of the network's input: remove it, unless new photos will be as blurred",
    "constant": "shows nothing: remove it",
    "duplicate": "has the same pixels as another image: remove one, or correct the label",
    "near-duplicate": "looks like another image: look at both",
    "leak": "is in two splits, which makes the scores too good: remove one of the images",
    "cue": "gives a class away, so it may be learned instead of what the photos show: save and take all photos in one way, "
    "unless it is natural, as snow is bright",
    "tiny class": "has too few images to learn from: add some, or remove the class",
    "imbalance": "makes rare classes hard to learn: add images, or train with --set 'train.class_weights=\"balanced\"'",
    "case": "is the only difference between labels of different classes: if they are one class, use one spelling",
    "labels": "differ between splits: a class that is not trained on is never predicted",
}
PICTURES_MEASURED = 10_000  # images of a report: measuring a picture takes up to a millisecond
CONSTANT = 8  # levels between the lightest and the darkest pixel
TINY_CLASS = 5  # images
IMBALANCE = 10  # times as many images as the rarest class
PLAIN_MODES = ("RGB", "L")


@dataclass(frozen=True)
class Problem:
    """A problem of one image, of a class or of the whole dataset.

    Attributes:
        image: name of the image; None if the problem concerns a class or the dataset.
        kind: such as `corrupt`, `duplicate`, `leak` or `imbalance` (`alexnet.data.check.KINDS` has them all).
        detail: description of the problem.
    """

    image: str | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Findings:
    """The result of a data check.

    Attributes:
        images: number of images checked.
        classes: number of images of each class.
        problems: all problems, in the order of `KINDS`.
    """

    images: int
    classes: dict[str, int]
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """Return `{"images", "classes": {label: count}, "problems": [{"image", "kind", "detail"}]}`."""
        return {"images": self.images, "classes": self.classes, "problems": [vars(problem) for problem in self.problems]}


def check(data: str | Path | Table, data_root: str | Path | None = None, settings: Mapping[str, Any] | None = None) -> Findings:
    """Check every image of a dataset; nothing is changed.

    Time and memory grow linearly with the number of images, by about a kilobyte each.

    Args:
        data: a folder, a CSV, Parquet or JSON lines file, the name of a built-in dataset, or a `Table`.
        data_root: folder of downloaded datasets. Default: ALEXNET_DATA in the environment.
        settings: recipe keys that say how to read a table, such as `{"data.label_column": "breed"}`.

    Returns:
        The number of images, in all and by class, and the problems.

    Raises:
        DataError: the dataset does not exist, has fewer than two classes, or lacks columns.
    """
    if isinstance(data, Table):
        table = data
    else:
        reading = Recipe().with_settings(settings or {}).data
        table = open_table(data, None if data_root is None else Path(data_root), settings=reading)
    problems = [Problem(skipped.image, "left out", skipped.reason) for skipped in table.skipped]
    digests: dict[int, str] = {}  # of the pixels, by row
    thumbnails: dict[int, bytes] = {}
    columns = Columns()
    answers = decode_all("facts", table.sources(), os.cpu_count() or 1, 64)
    for row, (_, answer) in enumerate(track(answers, f"Checking {table.name}", len(table))):
        name = table.images[row]
        if isinstance(answer, ImageError):
            problems.append(Problem(name, answer.kind, str(answer)))
            continue
        problems += _image_problems(name, answer.facts)
        if answer.facts["range"] >= CONSTANT:
            digests[row] = answer.facts["pixels"]
            thumbnails[row] = answer.body
            thumbnail = np.frombuffer(answer.body, dtype=np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3)
            columns.add(row, {**file_values(answer.facts), **picture_values(thumbnail, answer.facts["quality"]["sharpness"])})
    problems += _cues(table, columns)
    if table.unknown is not None:
        others = decode_all("facts", table.unknown.sources(), os.cpu_count() or 1, 64)
        for name, (_, answer) in zip(table.unknown.images, others, strict=True):
            if isinstance(answer, ImageError):
                problems.append(Problem(name, answer.kind, str(answer)))
    problems += _duplicates(table, digests)
    unique = sorted({digest: row for row, digest in reversed(digests.items())}.values())
    stacked = np.frombuffer(b"".join(thumbnails[row] for row in unique), dtype=np.uint8).reshape(len(unique), 3 * THUMBNAIL**2)
    for i, other in near_duplicates(stacked):
        problems.append(_pair_problem(table, unique[i], unique[other], "near-duplicate", "similar to"))
    return _findings(table, problems)


def check_decoded(dataset: Dataset) -> Findings:
    """Check images that are already decoded, with progress: fewer checks than `check`, in a fraction of its time.

    Properties of files (frames, modes, orientation, format, size) and near-duplicates are not checked, and those of pictures
    (blur, light, cues) only in datasets of up to `PICTURES_MEASURED` images.
    """
    table, problems, digests, columns = dataset.table, list[Problem](), dict[int, str](), Columns()
    for row in track(range(len(table)), f"Checking {table.name}", len(table)):
        image = dataset.pixels.image(row)
        spread = int(image.max()) - int(image.min())
        if spread < CONSTANT:
            problems.append(_constant(table.images[row], spread))
        else:
            digests[row] = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if spread >= CONSTANT and len(table) <= PICTURES_MEASURED:
            picture = Image.fromarray(image)
            thumbnail = make_thumbnail(picture)
            quality = measure(picture, thumbnail)
            problems += [Problem(table.images[row], *problem) for problem in quality_problems(quality)]
            columns.add(row, picture_values(thumbnail, quality["sharpness"]))
    return _findings(table, [*problems, *_duplicates(table, digests), *_cues(table, columns)])


def _findings(table: Table, problems: list[Problem]) -> Findings:
    """Add the problems of classes and splits, and sort all by the order of `KINDS`."""
    counts = np.bincount(table.targets, minlength=len(table.labels)).tolist()
    problems = [*problems, *_group_problems(table), *_class_problems(table, counts), *_label_problems(table)]
    problems.sort(key=lambda problem: list(KINDS).index(problem.kind))
    return Findings(len(table), dict(zip(table.labels, counts, strict=True)), problems)


def _image_problems(name: str, facts: dict[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a single readable image."""
    if facts["frames"] > 1:
        yield Problem(name, "animated", f"{facts['frames']} frames")
    if facts["mode"] not in PLAIN_MODES:
        yield Problem(name, "mode", f"mode {facts['mode']}")
    if facts["metadata"]:
        yield Problem(name, "metadata", facts["metadata"])
    if facts["orientation"] != 1:
        yield Problem(name, "orientation", f"EXIF orientation {facts['orientation']}")
    for kind, detail in size_problems(*facts["size"]):
        yield Problem(name, kind, detail)
    if facts["range"] < CONSTANT:
        yield _constant(name, facts["range"])
    else:
        for kind, detail in quality_problems(facts["quality"], facts["mode"]):
            yield Problem(name, kind, detail)


def _constant(name: str, spread: int) -> Problem:
    return Problem(name, "constant", f"{spread} of 255 levels between its lightest and darkest pixel")


def _cues(table: Table, columns: Columns) -> Iterator[Problem]:
    """Yield a problem for each property that gives a class away."""
    for cue in find_cues(columns, table.targets):
        yield Problem(None, "cue", cue.describe(table.labels))


def _duplicates(table: Table, digests: dict[int, str]) -> Iterator[Problem]:
    """Yield a problem for each image with the pixels of an earlier one; `digests` are of the pixels, by row."""
    first: dict[str, int] = {}
    for row, digest in digests.items():
        if (other := first.setdefault(digest, row)) != row:
            yield _pair_problem(table, row, other, "duplicate", "the same pixels as")


def _pair_problem(table: Table, row: int, other: int, kind: str, text: str) -> Problem:
    detail = f"{text} {table.images[other]}"
    if table.splits[row] != table.splits[other]:
        kind, detail = "leak", f"{detail}, which is in {table.splits[other]}"
    if table.targets[row] != table.targets[other]:
        label, other_label = (truncate(table.labels[table.targets[i]]) for i in (row, other))
        detail += f", whose label is {other_label!r}, not {label!r}"
    return Problem(table.images[row], kind, detail)


def _class_problems(table: Table, counts: list[int]) -> Iterator[Problem]:
    for label, count in zip(table.labels, counts, strict=True):
        if count < TINY_CLASS:
            yield Problem(None, "tiny class", f"{truncate(label)!r} has {counted(count, 'image')}")
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    if counts[most] > IMBALANCE * counts[least]:
        common, rare = (truncate(table.labels[i]) for i in (most, least))
        yield Problem(None, "imbalance", f"{common!r} has {counted(counts[most], 'image')}, {rare!r} {counts[least]:,}")
    for group in labels_differing_in_case(table.labels):
        yield Problem(None, "case", format_names(group))


def _group_problems(table: Table) -> Iterator[Problem]:
    """Yield a problem for the first image of each group in another split than the group's first image."""
    first: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for row, group in enumerate(table.groups or ()):
        split, other = str(table.splits[row]), first.setdefault(group, row)
        if group and split != table.splits[other] and (group, split) not in seen:
            seen.add((group, split))
            detail = f"of the group {truncate(group)!r}, as {table.images[other]} is, which is in {table.splits[other]}"
            yield Problem(table.images[row], "leak", detail)


def _label_problems(table: Table) -> Iterator[Problem]:
    labels = {split: {table.labels[i] for i in table.targets[table.rows(split)]} for split in table.counts()}
    for split, present in labels.items():
        if missing := sorted(set().union(*labels.values()) - present):
            yield Problem(None, "labels", f"{split} has no images of {format_names(missing)}")
