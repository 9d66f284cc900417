"""Find cues: properties of files and pictures, such as the format or the brightness, that give a class away.

A network learns whatever tells the classes apart. If all cats are PNG files and all dogs JPEG, it may learn the traces of JPEG.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import format_names, truncate

# How much more frequent a property has to be in some classes than in the others, as fractions of their images. Classes that
# differ by nature, such as parachutes in a blue sky, reach 0.49 among ten, and 0.63 in pairs (`make quality`).
STRONG = 0.7
CHANCE = 0.01  # probability of a cue in a dataset whose classes are alike
TRIED = 64  # values, or thresholds, of a property
COLOURLESS = 2  # levels between the channels of an image, on average; a grey photo saved as a colour JPEG has fewer


class Property(NamedTuple):
    """A property that may be a cue, and how to say that an image has it.

    Attributes:
        families: properties that depend on each other share a family; of those, the first is reported.
        above: of images with a certain value, or one above a threshold.
        below: of images with a value below a threshold.
    """

    families: tuple[str, ...]
    above: str
    below: str = ""


PROPERTIES = {
    "format": Property(("format",), "are {} files"),
    "size": Property(("size",), "are {} pixels in size"),
    "side": Property(
        ("size",), "have a shorter side of more than {:.0f} pixels", "have a shorter side of less than {:.0f} pixels"
    ),
    "aspect": Property(("size",), "are wider than {:.2f} times their height", "are narrower than {:.2f} times their height"),
    "bytes": Property(("format", "size"), "are files of more than {:,.0f} bytes", "are files of less than {:,.0f} bytes"),
    "camera": Property(("camera",), "{}"),
    "brightness": Property(
        ("brightness",), "are brighter than {:.0f} of 255 on average", "are darker than {:.0f} of 255 on average"
    ),
    "grey": Property(("colour",), "{}"),
    "colour": Property(("colour",), "are more colourful than {:.0f} of 255", "are less colourful than {:.0f} of 255"),
    "sharpness": Property(("sharpness",), "have a sharpness of more than {:.2f}", "have a sharpness of less than {:.2f}"),
}
Values = Mapping[str, float | str | None]  # of an image, by name in `PROPERTIES`


def file_values(facts: Mapping[str, Any]) -> Values:
    """Return the properties of an image file, from the facts of the data check."""
    width, height = facts["size"]
    size = {"size": f"{width}x{height}", "side": min(width, height), "aspect": width / height}
    if facts["format"] is None:  # in memory
        return size
    camera = (
        f"are from a camera of {truncate(facts['camera'], 40)!r}" if facts["camera"] else "name no camera in their metadata"
    )
    return {**size, "format": facts["format"], "bytes": facts["bytes"], "camera": camera}


def picture_values(levels: NDArray[np.uint8], sharpness: float | None) -> Values:
    """Return the properties of an image's pixels, from those or a thumbnail, H W 3, and its sharpness."""
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    colour = float((most - least).mean())
    grey = "are black and white" if colour < COLOURLESS else "are in colour"
    return {"brightness": float(levels.mean()), "colour": colour, "grey": grey, "sharpness": sharpness}


class Columns:
    """The properties of many images, 8 bytes each: numbers, NaN where unknown, or the numbers of texts."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._numbers = {name: array("d") for name in PROPERTIES}
        self._texts: dict[str, dict[str, int]] = {name: {} for name in PROPERTIES}

    def add(self, row: int, values: Values) -> None:
        """Add the properties of an image, a row of the dataset."""
        self._rows.append(row)
        for name, column in self._numbers.items():
            value = values.get(name)
            if isinstance(value, str):
                texts = self._texts[name]
                value = texts.setdefault(value, len(texts))
            column.append(math.nan if value is None else value)

    def known(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
        """Return the rows where a property is known, its values there, and the texts that they are numbers of, if any."""
        rows, values = np.array(self._rows, dtype=np.int64), np.array(self._numbers[name])
        known = ~np.isnan(values)
        return rows[known], values[known], list(self._texts[name])


@dataclass(frozen=True)
class Cue:
    """A property that a group of classes has and the others have not.

    Attributes:
        classes: positions of the group's labels.
        share: fraction of the images of the group that have it.
        other: fraction of the other images that have it.
        text: description of the property.
    """

    classes: tuple[int, ...]
    share: float
    other: float
    text: str

    @property
    def strength(self) -> float:
        """The difference of the fractions: 0 if the property says nothing about the class, 1 if it gives it away."""
        return abs(self.share - self.other)

    def describe(self, labels: Sequence[str]) -> str:
        """Describe the cue: `'cat': 94% are PNG files, of the others 3%`."""
        rest = [repr(truncate(label)) for i, label in enumerate(labels) if i not in self.classes]
        others = rest[0] if len(rest) == 1 else "the others"
        return f"{format_names(labels[i] for i in self.classes)}: {self.share:.0%} {self.text}, of {others} {self.other:.0%}"


def find_cues(columns: Columns, targets: NDArray[np.int64], strong: float = STRONG) -> list[Cue]:
    """Return the cues of a dataset, the strongest first; `targets` are the classes of its rows."""
    found, told = list[Cue](), defaultdict[str, set[int]](set)
    for name, (families, _, _) in PROPERTIES.items():
        for cue in sorted(_cues_of(name, columns, targets, strong), key=lambda cue: (-cue.strength, cue.share < cue.other)):
            if all(told[family].isdisjoint(cue.classes) for family in families):
                found.append(cue)
                for family in families:
                    told[family].update(cue.classes)
    return sorted(found, key=lambda cue: -cue.strength)


def _cues_of(name: str, columns: Columns, targets: NDArray[np.int64], strong: float) -> Iterator[Cue]:
    """Yield a cue for each value or threshold of a property that divides the classes well enough."""
    rows, values, texts = columns.known(name)
    classes, row_classes, total = np.unique(targets[rows], return_inverse=True, return_counts=True)
    marks = _common(values) if texts else _thresholds(values)
    if len(classes) < 2 or not len(marks):
        return
    having = (_count_equal if texts else _count_above)(values, marks, row_classes)
    for column, group, share, other in _divide(having, total, strong):
        above, below, mark = PROPERTIES[name].above, PROPERTIES[name].below, marks[column]
        if below and share < other:
            share, other, above = 1 - share, 1 - other, below
        yield Cue(tuple(classes[group].tolist()), share, other, above.format(texts[int(mark)] if texts else mark))


def _common(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    values, counts = np.unique(codes, return_counts=True)
    return values[np.argsort(-counts, kind="stable")[:TRIED]] if len(values) > 1 else values[:0]


def _thresholds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return thresholds that divide values into parts of about equal numbers, or into each of a few values."""
    distinct = np.unique(values)
    if len(distinct) > TRIED:
        distinct = np.unique(np.quantile(values, np.linspace(0, 1, TRIED + 1), method="nearest"))
    return (distinct[1:] + distinct[:-1]) / 2


def _count_equal(values: NDArray[np.float64], marks: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of each class have each value: classes x marks."""
    order = np.argsort(marks)
    near = order[np.searchsorted(marks[order], values).clip(max=len(marks) - 1)]
    return _table(classes, np.where(marks[near] == values, near, len(marks)), len(marks))[:, :-1]


def _count_above(values: NDArray[np.float64], marks: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of each class are above each threshold: classes x marks."""
    parts = _table(classes, np.searchsorted(marks, values), len(marks))
    return parts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]


def _table(classes: NDArray[np.int64], parts: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    """Count the images of each class in each part, 0 to `last`: classes x parts."""
    count = int(classes.max()) + 1
    return np.bincount(classes * (last + 1) + parts, minlength=count * (last + 1)).reshape(count, last + 1)


def _divide(
    having: NDArray[np.int64], total: NDArray[np.int64], strong: float
) -> Iterator[tuple[int, NDArray[np.int64], float, float]]:
    """Divide the classes into those that mostly have a property and those that mostly have not.

    Args:
        having: number of images of each class that have each property, classes x properties.
        total: number of images of each class.
        strong: difference of fractions from which on a property is a cue.

    Yields:
        The column of a property, the classes of the smaller group, and which fractions of this group and of the others have it,
        if the difference is strong, and improbable by chance.
    """
    order = np.argsort(-having / total[:, None], axis=0, kind="stable")  # classes by their fraction, for each property
    inside = np.cumsum(np.take_along_axis(having, order, axis=0), axis=0)[:-1]  # images of the first classes that have it
    count = np.cumsum(total[order], axis=0)[:-1]
    share, other = inside / count, (having.sum(axis=0) - inside) / (total.sum() - count)
    for column, cut in enumerate((share - other).argmax(axis=0).tolist()):
        here, there = float(share[cut, column]), float(other[cut, column])
        images = float(count[cut, column]), float(total.sum() - count[cut, column])
        tries = having.shape[1] * len(PROPERTIES) * math.comb(len(total), cut + 1)
        if here - there < strong or _log_chance(here - there, *images) + math.log(tries) > math.log(CHANCE):
            continue
        group, rest = order[: cut + 1, column], order[cut + 1 :, column]
        if (len(rest), rest.min()) < (len(group), group.min()):
            group, here, there = rest, there, here
        yield column, np.sort(group), here, there


def _log_chance(difference: float, images: float, others: float) -> float:
    """Return the logarithm of a bound on the probability that fractions of two samples differ this much by chance.

    It is from Hoeffding, Probability inequalities for sums of bounded random variables, 1963, equation 2.7.
    """
    return -2 * difference**2 / (1 / images + 1 / others)
