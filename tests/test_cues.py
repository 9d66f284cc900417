"""Cues: a property that gives a class away is always found and described; classes that are alike have none."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

import alexnet
from alexnet.data.cues import Columns, Cue, Values, file_values, find_cues, picture_values

FILE = {"size": (500, 375), "bytes": 60_000, "format": "JPEG", "camera": None}
GREY = np.full((16, 16, 3), 100, dtype=np.uint8)


def values(random: np.random.Generator, **changed: object) -> Values:
    """Return properties of an image of no class in particular."""
    levels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    size = tuple(random.choice([300, 400, 500], 2).tolist())
    facts = {"size": size, "bytes": int(random.integers(10_000, 90_000)), "format": str(random.choice(["JPEG", "PNG"]))}
    facts["camera"] = random.choice([None, "Nikon"])
    return {**file_values({**facts, **changed}), **picture_values(levels, float(random.random()))}


def cues_of(rows: list[Values], targets: list[int], strong: float = 0.7) -> list[Cue]:
    columns = Columns()
    for row, one in enumerate(rows):
        columns.add(row, one)
    return find_cues(columns, np.array(targets), strong)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 40), min_size=2, max_size=12))
def test_classes_that_are_alike_have_no_cue(seed: int, sizes: list[int]) -> None:
    random = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(sizes)), sizes).tolist()
    assert cues_of([values(random) for _ in targets], targets) == []


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.lists(st.integers(14, 30), min_size=2, max_size=6), st.data())
def test_a_class_in_another_format_is_always_found(seed: int, sizes: list[int], data: st.DataObject) -> None:
    odd = data.draw(st.integers(0, len(sizes) - 1))
    random = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(sizes)), sizes).tolist()
    rows = [values(random, format="WEBP" if target == odd else random.choice(["JPEG", "PNG"])) for target in targets]
    (cue,) = cues_of(rows, targets)
    labels = [f"class {i}" for i in range(len(sizes))]
    if len(sizes) == 2 and cue.classes != (odd,):
        assert (cue.share, cue.other) == (0, 1)
    else:
        assert (cue.classes, cue.share, cue.other) == ((odd,), 1, 0)
        others = f"'class {1 - odd}'" if len(sizes) == 2 else "the others"
        assert cue.describe(labels) == f"'class {odd}': 100% are WEBP files, of {others} 0%"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"format": "PNG"}, "100% are PNG files"),
        ({"size": (640, 480)}, "100% are 640x480 pixels in size"),
        ({"bytes": 90_000}, "100% are files of more than 75,000 bytes"),
        ({"bytes": 30_000}, "100% are files of less than 45,000 bytes"),
        ({"camera": "Nikon"}, "100% are from a camera of 'Nikon'"),
    ],
)
def test_text_of_cues_of_files(changed: dict[str, object], text: str) -> None:
    rows = [file_values({**FILE, **(changed if i < 20 else {})}) for i in range(60)]
    (cue,) = cues_of(rows, [i // 20 for i in range(60)])
    assert cue.describe(["cat", "dog", "emu"]) == f"'cat': {text}, of the others 0%"


@pytest.mark.parametrize(
    ("factor", "sharpness", "text"),
    [
        (0.5, 1.5, "100% are darker than 75 of 255 on average"),
        (1.5, 1.5, "100% are brighter than 125 of 255 on average"),
        (1, 0.5, "100% have a sharpness of less than 1.00"),
    ],
)
def test_text_of_cues_of_pictures(factor: float, sharpness: float, text: str) -> None:
    rows = [
        picture_values((GREY * factor).astype(np.uint8), sharpness) if i < 20 else picture_values(GREY, 1.5) for i in range(60)
    ]
    (cue,) = cues_of(rows, [i // 20 for i in range(60)])
    assert cue.describe(["cat", "dog", "emu"]) == f"'cat': {text}, of the others 0%"


def test_colour_and_grey() -> None:
    colourful = np.broadcast_to(np.array([200, 100, 0], dtype=np.uint8), (16, 16, 3))
    dull = np.broadcast_to(np.array([110, 100, 90], dtype=np.uint8), (16, 16, 3))

    def described(one: np.ndarray) -> str:
        rows = [picture_values(one if i < 20 else dull, None) for i in range(40)]
        (cue,) = cues_of(rows, [i // 20 for i in range(40)])
        return cue.describe(["cat", "dog"])

    assert described(GREY) == "'cat': 100% are black and white, of 'dog' 0%"
    assert described(colourful) == "'cat': 100% are more colourful than 110 of 255, of 'dog' 0%"


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(40, 80), st.integers(40, 80))
def test_strength_is_the_kolmogorov_smirnov_statistic(seed: int, first: int, second: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 40, first), random.integers(12, 60, second)
    rows: list[Values] = [{"brightness": float(x)} for x in (*a, *b)]
    cues = cues_of(rows, [0] * first + [1] * second, strong=0.35)
    expected = ks_2samp(a, b).statistic
    assert [cue.strength for cue in cues] == pytest.approx([expected] if cues or expected > 0.6 else [])


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_group_of_classes_is_the_best_of_all(seed: int) -> None:
    """Of classes of the same size, no group differs more from the others in any format."""
    random = np.random.default_rng(seed)
    formats = [random.choice(["JPEG", "PNG", "WEBP"], 80, p=random.dirichlet([0.3] * 3)) for _ in range(5)]
    rows: list[Values] = [{"format": str(form)} for part in formats for form in part]
    groups = [group for count in (1, 2) for group in itertools.combinations(range(5), count)]
    best = 0.0
    for group, form in itertools.product(groups, ("JPEG", "PNG", "WEBP")):
        share = np.mean([formats[i] == form for i in group])
        other = np.mean([formats[i] == form for i in range(5) if i not in group])
        best = max(best, abs(float(share - other)))
    found = cues_of(rows, np.repeat(np.arange(5), 80).tolist())
    assert bool(found) == (best >= 0.7)
    assert not found or found[0].strength == pytest.approx(best)


def test_half_of_the_classes_in_another_format_are_one_cue() -> None:
    rows = [
        file_values({**FILE, "format": "PNG" if i // 20 in (1, 3) else "JPEG", "bytes": 50_000 if i // 20 in (1, 3) else 9_000})
        for i in range(80)
    ]
    cues = [cue.describe(["a", "b", "c", "d"]) for cue in cues_of(rows, [i // 20 for i in range(80)])]
    assert cues == ["'a', 'c': 100% are JPEG files, of the others 0%"]


def test_order_of_images_and_few_images() -> None:
    random = np.random.default_rng(0)
    rows = [values(random, format="PNG" if i % 3 else "JPEG") for i in range(90)]
    targets = [i % 3 for i in range(90)]
    shuffled = random.permutation(90)
    assert cues_of(rows, targets) == cues_of([rows[i] for i in shuffled], [targets[i] for i in shuffled])
    assert len(cues_of(rows, targets)) == 1
    assert cues_of(rows[:12], targets[:12]) == [], "four images of each class may be chance"
    assert cues_of([], []) == []
    assert cues_of(rows, [0] * 90) == []


def test_check_finds_cues(tmp_path: Path) -> None:
    for label, form in (("cat", "png"), ("dog", "jpg")):
        (tmp_path / label).mkdir()
        for i in range(12):
            random = np.random.default_rng(100 * ord(label[0]) + i)
            image = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(
                (40, 32), Image.Resampling.NEAREST
            )
            image.save(tmp_path / label / f"{i}.{form}")
    problems = alexnet.check(tmp_path).to_json()["problems"]
    assert problems == [{"image": None, "kind": "cue", "detail": "'cat': 100% are PNG files, of 'dog' 0%"}]
