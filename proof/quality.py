"""How often `data check` calls clean photos bad, how often it finds degraded ones, and how strong the cues of real classes are.

    python -m proof.quality [FOLDER…]

FOLDERs are datasets of clean photos; without any, those of ALEXNET_TEST_DATA: Imagenette, cats and dogs, and the test images
of CIFAR-10, of which no degraded copies are made, as they are too small to be judged by details. Takes 3 minutes.
"""

import argparse
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from alexnet.data.cues import PROPERTIES, Columns, Values, file_values, find_cues, picture_values
from alexnet.data.decode import decode
from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.decode_worker import REDUCED_TO, THUMBNAIL, make_thumbnail
from alexnet.data.quality import SIDE, SMALLEST, measure, quality_problems, size_problems
from alexnet.data.sources import open_table
from alexnet.data.table import Table

DEGRADED = 4  # every fourth photo
GAMMA = 2.2  # of sRGB, roughly


def blurred(sigma: float) -> Callable[[Image.Image], Image.Image]:
    """Return Gaussian blur of `sigma` pixels of the network's input."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / SIDE))


def shaken(length: float) -> Callable[[Image.Image], Image.Image]:
    """Return horizontal motion blur of `length` pixels of the network's input."""

    def shake(image: Image.Image) -> Image.Image:
        width = round(length * min(image.size) / SIDE)
        sums = np.cumsum(np.pad(np.asarray(image, dtype=np.float32), ((0, 0), (width, 0), (0, 0)), mode="edge"), axis=1)
        return Image.fromarray(((sums[:, width:] - sums[:, :-width]) / width).clip(0, 255).astype(np.uint8))

    return shake


def exposed(factor: float, gamma: float = 1.0) -> Callable[[Image.Image], Image.Image]:
    """Return exposure: levels, or with `gamma` the light that they stand for, times `factor`."""
    return lambda image: image.point([min(255, round(level * factor ** (1 / gamma))) for level in range(256)] * 3)


DEGRADATIONS = {
    "blur, sigma 1": ("blur", blurred(1)),
    "blur, sigma 1.5": ("blur", blurred(1.5)),
    "blur, sigma 2": ("blur", blurred(2)),
    "blur, sigma 4": ("blur", blurred(4)),
    "camera shake, 5 pixels": ("blur", shaken(5)),
    "camera shake, 10 pixels": ("blur", shaken(10)),
    "levels x 0.1": ("dark", exposed(0.1)),
    "light x 0.1": ("dark", exposed(0.1, GAMMA)),
    "light x 0.2": ("dark", exposed(0.2, GAMMA)),
    "levels x 4": ("over-exposed", exposed(4)),
    "light x 4": ("over-exposed", exposed(4, GAMMA)),
    "light x 8": ("over-exposed", exposed(8, GAMMA)),
}


def kinds(image: Image.Image) -> set[str]:
    """Return the kinds of problems of an image."""
    return {kind for kind, _ in quality_problems(measure(image, make_thumbnail(image)))}


def rates_of_degraded(table: Table) -> None:
    """Print which fraction of degraded photos is found."""
    photos = [decode(source, REDUCED_TO) for source in table.sources(DEGRADED)]
    photos = [photo for photo in photos if min(photo.size) >= SMALLEST]
    if not photos:
        return
    for name, (kind, degrade) in DEGRADATIONS.items():
        found = sum(kind in kinds(degrade(photo)) for photo in photos)
        print(f"  {name:24} {kind:14} {found:5,} of {len(photos):,}, {found / len(photos):.1%}")


def strongest(rows: list[tuple[int, Values]]) -> dict[str, float]:
    """Return the strength of the strongest cue of each property, of rows of class and values; those by chance are left out."""
    found: dict[str, float] = {}
    targets = np.array([target for target, _ in rows])
    for name in PROPERTIES:
        columns = Columns()
        for row, (_, values) in enumerate(rows):
            columns.add(row, {name: values.get(name)})
        if cues := find_cues(columns, targets, 0.0):
            found[name] = cues[0].strength
    return found


def report(table: Table) -> None:
    """Print the false alarms, the detection rates and the cues of a dataset."""
    alarms, rows = Counter[str](), list[tuple[int, Values]]()
    for row, (_, answer) in enumerate(decode_all("facts", table.sources(), os.cpu_count() or 1, 64)):
        if isinstance(answer, Answer):
            facts, levels = answer.facts, np.frombuffer(answer.body, dtype=np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3)
            alarms.update(kind for kind, _ in (*quality_problems(facts["quality"]), *size_problems(*facts["size"])))
            values = {**file_values(facts), **picture_values(levels, facts["quality"]["sharpness"])}
            rows.append((int(table.targets[row]), values))
    print(f"\n{table.name}: {len(rows):,} clean photos")
    for kind in ("blur", "dark", "over-exposed", "elongated"):
        print(f"  {kind:14} {alarms[kind]:5,}, {alarms[kind] / len(rows):.2%}")
    rates_of_degraded(table)
    print(f"  cues of a class     {described([strongest(rows)])}")
    if len(table.labels) > 2:
        pairs = itertools.combinations(range(len(table.labels)), 2)
        print(f"  cues of two classes {described(strongest([row for row in rows if row[0] in pair]) for pair in pairs)}")


def described(found: Iterable[dict[str, float]]) -> str:
    """Return the largest strength of each property."""
    most: dict[str, float] = {}
    for strengths in found:
        most |= {name: max(strength, most.get(name, 0)) for name, strength in strengths.items()}
    return ", ".join(f"{name} {strength:.2f}" for name, strength in most.items()) or "none"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    data = os.environ.get("ALEXNET_TEST_DATA", "")
    for folder in parser.parse_args().folders or [Path(data, name) for name in ("imagenette", "cats-dogs", "cifar10/test")]:
        report(open_table(folder))
