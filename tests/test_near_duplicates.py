"""Near-duplicates: photos saved again, resized or made lighter are on one side of every split that the program makes."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.near_duplicates import MOST, join_groups
from alexnet.data.sources import open_table
from alexnet.data.splits import RULES, folds_of, joins_look_alikes, split
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data
from alexnet.run import RunFolder, read_recipe
from conftest import make_preprocessing
from test_sources import make_table

PHOTO = make_preprocessing(cache_size=64, input=64)


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Return a picture that looks like a photo at 16 x 16 pixels: smooth patches of colour, with noise."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(patches, np.int64) + noise).clip(0, 255).astype(np.uint8))


def copies(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image saved again, resized, and made lighter."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25)
    yield Image.open(file)
    yield image.resize((2 * image.width, 2 * image.height))
    yield ImageEnhance.Brightness(image).enhance(1.15)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 15 pictures, with three copies of every third one under other names."""
    root = tmp_path_factory.mktemp("album")
    for i in range(30):
        folder = root / ("cat" if i % 2 else "dog")
        folder.mkdir(exist_ok=True)
        scene(i).save(folder / f"{i}.png")
        for number, copy in enumerate(copies(scene(i)) if i % 3 == 0 else ()):
            copy.save(folder / f"copy-{number}-of-{i}.png")
    return root


def opened(root: Path, **changes: object) -> Dataset:
    return open_dataset(open_table(root), PHOTO, 1, Data(**changes))  # type: ignore[arg-type]


def sides(table: Table) -> dict[str, set[str]]:
    """Return the splits of each picture and its copies."""
    result = defaultdict(set)
    for image, name in zip(table.images, table.splits, strict=True):
        result[Path(image).stem.rpartition("-")[2]].add(str(name))
    return result


def test_copies_of_photos_are_in_one_split(album: Path) -> None:
    parted = 0
    for seed in range(5):
        assert all(len(names) == 1 for names in sides(opened(album, split_seed=seed).table).values())
        parted += sum(
            len(names) > 1 for names in sides(opened(album, split_seed=seed, near_duplicates="ignored").table).values()
        )
    assert parted > 10, "by their names alone, they are not"


@pytest.mark.parametrize("folds", [2, 5])
def test_copies_of_photos_are_in_one_fold(album: Path, folds: int) -> None:
    held_out = defaultdict(set)
    for fold in range(1, folds + 1):
        table = opened(album, folds=folds, fold=fold).table
        assert all(len(names) == 1 for names in sides(table).values())
        for row in table.rows("test"):
            held_out[table.images[row]].add(fold)
    assert len(held_out) == len(table)
    assert all(len(numbers) == 1 for numbers in held_out.values())


def test_the_table_keeps_its_own_groups(album: Path) -> None:
    assert opened(album).table.groups is None


@pytest.mark.parametrize("side", [16, 32, 80, "full"])
def test_copies_are_found_whatever_size_the_recipe_stores(album: Path, side: int | str) -> None:
    """So that a head, fine-tuning and a training from nothing have the same test images."""
    preprocessing = make_preprocessing(cache_size=side, input=80)
    table = open_dataset(open_table(album), preprocessing, 1, Data()).table
    assert table.splits.tolist() == opened(album).table.splits.tolist()


def test_blank_and_small_images_are_no_copies(tmp_path: Path) -> None:
    for kind, side in (("blank", 80), ("small", 63)):
        for label in "ab":
            (tmp_path / kind / label).mkdir(parents=True)
            for i in range(4):
                blank = np.random.default_rng(i).integers(100, 103, (side, side, 3), dtype=np.uint8)
                image = Image.fromarray(blank) if kind == "blank" else scene(0, (side, side))
                image.save(tmp_path / kind / label / f"{i}.png")
        root = tmp_path / kind
        assert opened(root).table.splits.tolist() == split(open_table(root), Data()).splits.tolist()


def test_many_images_that_look_alike_are_split_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As frames of a film are, or parts under one camera: they are too many for copies of a photo."""
    for i in range(MOST + 4):
        folder = tmp_path / ("cat" if i % 2 else "dog")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.roll(np.asarray(scene(0)), i % 2, axis=1)).save(folder / f"{i}.png")
    dataset = opened(tmp_path)
    expected = split(open_table(tmp_path), Data())
    assert dataset.table.splits.tolist() == expected.splits.tolist()
    assert f"{MOST + 4} images look alike, such as cat/1.png and cat/11.png, too many for copies" in capsys.readouterr().err


def test_a_class_of_copies_is_still_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        folder = tmp_path / ("cat" if i < 6 else "dog")
        folder.mkdir(exist_ok=True)
        scene(0 if i < 6 else i).save(folder / f"{i}.png")
    assert opened(tmp_path).table.counts() == {"train": 8, "val": 2, "test": 2}
    assert "most images of 'cat' look alike, so some of them are in different splits" in capsys.readouterr().err


def test_splits_that_are_declared_or_a_tutorials_are_kept() -> None:
    table = make_table({"a": 30, "b": 30})
    declared = replace(table, splits=np.array(["train", "val", "test"] * 20))
    pairs = [[i, i + 1] for i in range(0, 60, 2)]
    for rule in RULES:
        assert not joins_look_alikes(table, Data(split=rule))
        before = split(table, Data(split=rule)).splits.tolist()
        assert split(table, Data(split=rule), pairs).splits.tolist() == before
    assert not joins_look_alikes(declared, Data())
    assert not joins_look_alikes(open_table("digits"), Data())
    assert split(declared, Data(), pairs).splits.tolist() == declared.splits.tolist()


def test_runs_of_earlier_versions_keep_their_splits(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[data]\ndataset = "digits"\n')
    assert read_recipe(RunFolder(tmp_path)).data.near_duplicates == "ignored"
    assert Data().near_duplicates == "together"


# Properties of the split and of folds

SIZES = st.lists(st.integers(20, 60), min_size=2, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, list[list[int]]]:
    """Return a table with groups for some images, and groups of rows that look alike."""
    sizes = draw(SIZES)
    table = make_table({f"c{i}": n for i, n in enumerate(sizes)})
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    order = rng.permutation(len(table)).tolist()
    alike = [order[3 * i : 3 * i + rng.integers(2, 4)] for i in range(draw(st.integers(0, len(table) // 12)))]
    groups = [f"g{i % 40}" if rng.random() < 0.2 else "" for i in range(len(table))]
    return replace(table, groups=groups if draw(st.booleans()) else None), alike


@given(tables())
@settings(max_examples=20)
def test_joined_groups_are_connected_components(drawn: tuple[Table, list[list[int]]]) -> None:
    table, alike = drawn
    links = [(rows[0], row) for rows in alike for row in rows]
    names = table.groups or [""] * len(table)
    links += [(names.index(name), row) for row, name in enumerate(names) if name]
    one, other = (np.array(side, dtype=int) for side in zip(*links, strict=True)) if links else (np.array([], int),) * 2
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(table),) * 2)
    expected = connected_components(graph, directed=False)[1]
    units = [name or row for row, name in enumerate(join_groups(table, alike))]
    assert len(set(units)) == len(set(expected)) == len(set(zip(units, expected, strict=True)))


@given(tables(), st.integers(0, 9), st.integers(2, 6))
@settings(max_examples=20)
def test_what_looks_alike_stays_together_in_any_order(drawn: tuple[Table, list[list[int]]], seed: int, folds: int) -> None:
    table, alike = drawn
    for data in (Data(split_seed=seed), Data(split_seed=seed, folds=folds, fold=folds)):
        done = split(table, data, alike)
        assert all(len(set(done.splits[rows])) == 1 for rows in alike)
        turned = table.select(np.arange(len(table))[::-1].copy())
        again = split(turned, data, [[len(table) - 1 - row for row in rows] for rows in alike])
        assert again.splits[::-1].tolist() == done.splits.tolist()


@given(tables(), st.integers(0, 9))
@settings(max_examples=20)
def test_a_copy_of_a_photo_moves_few_others(drawn: tuple[Table, list[list[int]]], seed: int) -> None:
    """The photo, its group and a group at each border of its class may move."""
    table, alike = drawn
    table, data = replace(table, groups=None), Data(split_seed=seed)
    before = split(table, data, alike).splits
    more = replace(
        table,
        images=[*table.images, "c0/copy.jpg"],
        targets=np.append(table.targets, 0),
        splits=np.append(table.splits, ""),
    )
    after = split(more, data, [*alike, [0, len(table)]] if not any(0 in rows for rows in alike) else alike).splits[:-1]
    assert (before != after).sum() <= 3 + 2 * (1 + 3)


@given(tables(), st.integers(0, 9), st.integers(2, 6))
@settings(max_examples=20)
def test_folds_are_stratified_to_a_group(drawn: tuple[Table, list[list[int]]], seed: int, folds: int) -> None:
    table = replace(drawn[0], groups=None)
    numbers = folds_of(table, np.arange(len(table)), folds, seed)
    for target in range(len(table.labels)):
        counts = np.bincount(numbers[table.targets == target], minlength=folds + 1)[1:]
        assert counts.max() - counts.min() <= 1


def test_small_classes_are_spread_over_folds() -> None:
    table = make_table({f"c{i}": 2 for i in range(40)})
    counts = np.bincount(folds_of(table, np.arange(80), 5, 0), minlength=6)[1:]
    assert counts.min() > 5


def test_a_declared_test_split_is_set_aside() -> None:
    table = make_table({"a": 30, "b": 30})
    table = replace(table, splits=np.array(["test" if i % 5 == 0 else "train" for i in range(60)]))
    seen = np.zeros(60, dtype=int)
    for fold in (1, 2, 3):
        done = split(table, Data(folds=3, fold=fold))
        assert set(done.splits[table.rows("test")]) == {""}
        assert set(done.splits[table.rows("train")]) == {"train", "val", "test"}
        seen += done.splits == "test"
    assert seen.tolist() == [int(i % 5 > 0) for i in range(60)]


def test_too_few_images_for_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"has too few images that stand alone for 9 folds: fold \d is empty; give fewer"):
        split(make_table({"a": 3, "b": 3}), Data(folds=9, fold=1))
    alone = make_table({"a": 1, "b": 30})
    fold = int(folds_of(alone, np.arange(31), 5, 0)[0])
    with pytest.raises(DataError, match="has no readable image of 'a' outside the fold held out"):
        split(alone, Data(folds=5, fold=fold))


@pytest.mark.long
def test_recompressed_photos_are_never_parted(real_data: Path, tmp_path: Path) -> None:
    """50 photos of cats and dogs, saved again at other sizes and qualities, among 300."""
    rng, names = np.random.default_rng(0), sorted((real_data / "cats-dogs").rglob("*.jpg"))[::3][:300]
    for place, name in enumerate(names):
        image, label = Image.open(name).convert("RGB"), name.name.partition(".")[0]
        (tmp_path / label).mkdir(exist_ok=True)
        image.save(tmp_path / label / f"{place}.jpg", quality=92)
        if place % 6 == 0:
            scale, quality = rng.uniform(0.4, 1.2), int(rng.integers(20, 95))
            again = image.resize((round(image.width * scale), round(image.height * scale)))
            again.save(tmp_path / label / f"again-{place}.jpg", quality=quality)
    for side in (32, 64, 128, 256):
        for seed in range(3):
            preprocessing = make_preprocessing(cache_size=side, input=side, reduced_decode=True)
            for data in (Data(split_seed=seed), *(Data(split_seed=seed, folds=5, fold=fold) for fold in range(1, 6))):
                table = open_dataset(open_table(tmp_path), preprocessing, 2, data).table
                assert len(table) == 350
                assert all(len(names) == 1 for names in sides(table).values())
