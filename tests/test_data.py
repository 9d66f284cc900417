"""From files to batches: sources, splits, decoding, cache, augmentation."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet.data.augment import COLUMNS, augment
from alexnet.data.batches import Images, epoch_batches, ordered_batches, parts
from alexnet.data.cache import cache_folder, open_cache
from alexnet.data.dataset import open_dataset
from alexnet.data.images import Preprocessing, decode, pixels, to_input
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.errors import DataError, ImageError
from alexnet.recipe import Data
from conftest import picture

HOW = Preprocessing(stored=32, input=32, fit="crop", reduced_decode=False, resize="bilinear")


def save(path: Path, kind: int = 0, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(kind, seed).save(path)


def listing(table: Table) -> set[tuple[str, str, str]]:
    return {(table.images[i], table.labels[table.targets[i]], str(table.splits[i])) for i in range(len(table))}


# Sources


def test_class_folders_are_searched_recursively_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/more/2.png", "dog/1.png", ".ipynb_checkpoints/1.png", "dog/.hidden.png", "dog/.git/3.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    table = open_table(tmp_path)
    assert listing(table) == {("cat/1.png", "cat", ""), ("cat/more/2.png", "cat", ""), ("dog/1.png", "dog", "")}
    assert {tuple(s) for s in table.skipped} == {
        ("empty", "class folder without files"),
        ("notes.txt", "not in a class folder"),
    }


def test_split_folders_go_by_their_usual_names(tmp_path: Path) -> None:
    for folder in ("Training", "valid", "test"):
        for label in ("cat", "dog"):
            save(tmp_path / folder / label / "1.png")
    assert Counter(s for _, _, s in listing(open_table(tmp_path))) == {"train": 2, "val": 2, "test": 2}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("train", "bus"):
        save(tmp_path / label / "1.png")
    assert open_table(tmp_path).labels == ("bus", "train")


@pytest.mark.parametrize("names", [("cat.9194.jpg", "dog.1.jpg"), ("cat_01.png", "dog-7.png"), ("cat (3).png", "dog (4).png")])
def test_labels_are_read_from_file_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "nothing.png"):
        save(tmp_path / "train" / name)
    table = open_table(tmp_path)
    assert table.labels == ("cat", "dog")
    assert not table.splits.any(), "train alone is a dataset that is not split yet"
    assert [s.image for s in table.skipped] == ["train/nothing.png"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_csv_names_images_relative_to_itself_or_absolute(tmp_path: Path, delimiter: str) -> None:
    save(tmp_path / "pics" / "a, b.png")
    save(tmp_path / "c.png")
    rows = [("image", "label", "split"), ('"pics/a, b.png"', "cat", "train"), (str(tmp_path / "c.png"), "dog", "validation")]
    file = tmp_path / "list.csv"
    file.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    table = open_table(file)
    assert {(label, s) for _, label, s in listing(table)} == {("cat", "train"), ("dog", "val")}
    assert all(decode(path) for i in range(2) if isinstance(path := table.source(i), Path))


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"image": ["a.png", "b.png"], "label": ["1", "2"]}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text("image,label\na.png,1\nb.png,2\n")
    assert listing(open_table(tmp_path / "list.parquet")) == listing(open_table(tmp_path / "list.csv"))


def test_a_csv_leaves_out_what_it_lists_twice_or_without_label(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("image,label\na.png,1\nb.png,2\na.png,1\na.png,2\nc.png,\n")
    reasons = [s.reason for s in open_table(file).skipped]
    assert reasons == ["listed twice", "listed twice, with another label ('2' after '1')", "no label"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,label\na.png,1\n", "no column 'image': it has 'picture', 'label'"),
        ("image,class\na.png,1\n", "no column 'label'"),
        ("", "no columns"),
        ("image,label\na.png,1\n", "one class alone, '1'"),
        ("image,label,split\na.png,1,train\nb.png,2,dev\n", "line 3: split is 'dev'"),
        ("image,label,split\na.png,1,train\nb.png,2,\n", "'split' is empty in some lines"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        open_table(file)


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    save(tmp_path / "photos" / "dog" / "1.png")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "dog" / "loop").symlink_to(tmp_path / "photos" / "dog")
    assert len(open_table(tmp_path / "photos")) == 2


# Splits


def make_table(counts: dict[str, int], splits: str = "") -> Table:
    names = [f"{label}/{i}.jpg" for label, n in counts.items() for i in range(n)]
    targets = np.repeat(np.arange(len(counts)), list(counts.values()))
    return Table("made", tuple(counts), names, targets, np.full(len(names), splits, dtype="<U5"), root=Path())


@given(st.lists(st.integers(3, 60), min_size=2, max_size=5), st.integers(0, 5))
@settings(deadline=None)
def test_splits_are_disjoint_stratified_and_whole(sizes: list[int], seed: int) -> None:
    counts = {f"c{i}": n for i, n in enumerate(sizes)}
    done = split(make_table(counts), 0.1, 0.2, seed)
    assert set(done.splits) <= {"train", "val", "test"}
    for target, n in enumerate(sizes):
        inside = Counter(done.splits[done.targets == target])
        assert inside["val"] == max(1, int(n * 0.1 + 0.5))
        assert inside["test"] == max(1, int(n * 0.2 + 0.5))
        assert inside["train"] >= 1


@given(st.integers(3, 50), st.integers(0, 10_000))
@settings(deadline=None)
def test_adding_a_file_moves_at_most_one_at_each_border(count: int, new: int) -> None:
    table = make_table({"a": count, "b": 5})
    more = replace(
        table,
        images=[*table.images, f"a/new-{new}.jpg"],
        targets=np.append(table.targets, 0),
        splits=np.append(table.splits, ""),
    )
    before = dict(zip(table.images, split(table, 0.1, 0.2, 0).splits, strict=True))
    after = dict(zip(more.images, split(more, 0.1, 0.2, 0).splits, strict=True))
    assert sum(before[name] != after[name] for name in before) <= 2


def test_the_split_does_not_depend_on_the_order_of_files() -> None:
    table = make_table({"a": 30, "b": 30})
    turned = table.select(np.arange(60)[::-1].copy())
    by_name = [dict(zip(t.images, split(t, 0.1, 0.2, 0).splits, strict=True)) for t in (table, turned)]
    assert by_name[0] == by_name[1]


def test_validation_is_held_out_of_train_and_a_declared_test_stays() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["test" if i % 4 == 0 else "train" for i in range(40)]
    done = split(table, 0.2, 0.2, 0)
    assert done.counts() == {"train": 24, "val": 6, "test": 10}
    assert (done.splits[table.splits == "test"] == "test").all()


def test_train_and_val_without_test_stay_as_they_are() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["val" if i % 4 == 0 else "train" for i in range(40)]
    assert split(table, 0.2, 0.2, 0).counts() == {"train": 30, "val": 10}


def test_labels_that_a_split_lacks_or_has_alone_are_named() -> None:
    table = make_table({"cat": 4, "dog": 4, "emu": 2})
    table.splits[:] = ["train"] * 2 + ["val"] * 2 + ["train"] * 4 + ["val"] * 2
    with pytest.raises(DataError, match="train has no images of 'emu', which val has"):
        split(table, 0.1, 0.2, 0)
    table.splits[-2:] = "train"
    with pytest.raises(DataError, match="val has no images of 'dog', 'emu'"):
        split(table, 0.1, 0.2, 0)


# Images

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 100, "TIFF", (100, 100, 100)),
        ("RGBA", (0, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), "PNG", (255, 127, 127)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "JPEG", (254, 0, 0)),
        ("F", 128.0, "TIFF", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object, kind: str, expected: tuple[int, ...]) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(Image.new(mode, (8, 8), colour), kind))  # type: ignore[arg-type]
    image = decode(file)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


def test_a_palette_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode(tmp_path / "p.png").getpixel((3, 3)) == RED


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(np.asarray(decode(tmp_path / "c.jpg")).astype(int) - RED).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_seen_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (24, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # red in the upper left corner
    undo = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "p.jpg")
    assert image.size == (24, 16)
    red, green, _ = image.getpixel((2, 2))
    assert red > 200 > 60 > green
    assert min(image.getpixel((22, 14))) > 200


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode(tmp_path / "a.gif")).astype(int) - RED).max() <= 3


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "really.jpg").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "PNG"))
    (tmp_path / "照片.txt").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "PNG"))
    assert decode(tmp_path / "really.jpg").size == decode(tmp_path / "照片.txt").size == (8, 8)


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are no images; return what is to be said of each."""
    jpeg = encoded(picture(0, 0, (200, 200)), "JPEG")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("not an image at all")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(encoded(picture(0, 0), "PNG")[:600])
    huge = encoded(Image.new("1", (40_000, 10_000)), "PNG")
    (folder / "huge.png").write_bytes(huge)
    return {
        "empty.jpg": "the file is empty",
        "text.png": "not an image",
        "cut.jpg": "truncated",
        "cut.png": "truncated|Truncated",
        "huge.png": "decompression bomb",
        "absent.png": "no such file",
    }


def test_what_is_no_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ImageError, match=reason):
            decode(tmp_path / name)


def test_crop_keeps_the_centre_and_stretch_keeps_all(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste((255, 255, 255), (32, 0, 64, 32))
    image.save(tmp_path / "wide.png")
    assert pixels(tmp_path / "wide.png", HOW).min() == 255
    stretched = pixels(tmp_path / "wide.png", HOW.model_copy(update={"fit": "stretch"}))
    assert stretched.shape == (32, 32, 3)
    assert stretched[:, 0].max() == 0
    assert stretched[:, 16].min() == 255


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1), (33, 2000)])
def test_odd_shapes_fit(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "odd.png")
    for reduced in (False, True):
        assert (pixels(tmp_path / "odd.png", HOW.model_copy(update={"reduced_decode": reduced})) == RED).all()


def test_reduced_decoding_looks_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:600, :900]
    smooth = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 6], -1)
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg", quality=95)
    whole = pixels(tmp_path / "photo.jpg", HOW).astype(float)
    reduced = pixels(tmp_path / "photo.jpg", HOW.model_copy(update={"reduced_decode": True})).astype(float)
    assert np.abs(whole - reduced).mean() < 2


def test_input_is_normalised_and_channels_last() -> None:
    how = HOW.model_copy(update={"mean": (0.5, 0.25, 0.0), "deviation": (0.5, 0.25, 1.0)})
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = to_input(images, how)
    expected = (images.numpy() / 255.0 - how.mean) / how.deviation
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    larger = to_input(images, how.model_copy(update={"input": 64}))
    expected_larger = torch.nn.functional.interpolate(
        torch.from_numpy(expected).permute(0, 3, 1, 2), scale_factor=2, mode="bilinear"
    )
    np.testing.assert_allclose(larger.numpy(), expected_larger.numpy(), atol=1e-5)


# Cache


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_the_cache_holds_what_decoding_gives_for_any_number_of_workers(photos: Path) -> None:
    table = open_table(photos)
    cache = open_cache(table, HOW, workers=1)
    first = np.array(cache.pixels)
    shutil.rmtree(cache_folder())
    again = open_cache(table, HOW, workers=4)
    assert np.array_equal(first, again.pixels)
    assert all(np.array_equal(first[i], pixels(table.source(i), HOW)) for i in range(len(table)))


def test_a_changed_added_or_removed_file_is_noticed(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(tmp_path / "photos", 4)
    before = np.array(open_cache(open_table(root), HOW, 2).pixels)
    picture(2, 9).save(root / "across" / "000.png")
    changed = np.array(open_cache(open_table(root), HOW, 2).pixels)
    assert not np.array_equal(before[0], changed[0])
    assert np.array_equal(before[1:], changed[1:])
    picture(2, 10).save(root / "down" / "new.png")
    assert len(open_cache(open_table(root), HOW, 2).rows) == 9
    (root / "down" / "new.png").unlink()
    assert len(open_cache(open_table(root), HOW, 2).rows) == 8


def test_an_old_cache_of_the_same_data_is_removed(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(tmp_path / "only-one", 4)
    for i in range(3):
        picture(2, i).save(root / "across" / "000.png")
        open_cache(open_table(root), HOW, 2)
    (folder,) = cache_folder().glob("only-one-*")
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".u8"]


def test_the_cache_is_not_made_twice(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(tmp_path / "once", 4)
    open_cache(open_table(root), HOW, 2)
    before = {p: p.stat().st_mtime_ns for p in cache_folder().glob("once-*/*")}
    open_cache(open_table(root), HOW, 2)
    assert {p: p.stat().st_mtime_ns for p in cache_folder().glob("once-*/*")} == before


def test_unreadable_files_are_left_out_listed_and_never_touched(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(tmp_path / "messy", 5)
    expected = bad_files(root / "across")
    del expected["absent.png"]
    before = contents(root)
    dataset = open_dataset(open_table(root), HOW, 2, Data())
    assert {Path(s.image).name for s in dataset.table.skipped} == set(expected)
    assert len(dataset.table) == 10
    assert contents(root) == before


def test_rows_stay_with_their_pixels_when_files_are_left_out(tmp_path: Path) -> None:
    for i, colour in enumerate([10, 20, 30, 40, 50, 60]):
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (colour, 0, (label == "b" and 255) or 0)).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "2.png").write_text("broken")
    dataset = open_dataset(open_table(tmp_path), HOW, 2, None)
    batch = next(ordered_batches(dataset.images("all"), 100))
    for name, image, target in zip(dataset.names("all"), batch.images.numpy(), batch.targets, strict=True):
        assert image[0, 0, 0] == 10 * (int(Path(name).stem) + 1)
        assert (image[0, 0, 2] == 255) == (target == 1)


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_text("broken")
    with pytest.raises(DataError, match=r"no readable image; the first, a/x\.jpg: not an image"):
        open_dataset(open_table(tmp_path), HOW, 1, Data())


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="ALEXNET_CACHE"):
        open_cache(open_table(photos), HOW, 1)


def test_a_cache_larger_than_the_disk_is_refused_with_both_sizes(photos: Path) -> None:
    with pytest.raises(DataError, match=r"[\d.]+ GB are needed, [\d.]+ GB are free"):
        open_cache(open_table(photos), HOW.model_copy(update={"stored": 1_000_000}), 1)


# Batches


def made_images(count: int) -> Images:
    values = np.zeros((count, 2, 2, 3), np.uint8)
    values[:, 0, 0, 0], values[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return Images(values, np.arange(count), np.arange(count))


@given(st.integers(1, 700), st.integers(1, 130), st.integers(0, 3), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_batches_hold_every_image_of_the_epoch_once(count: int, size: int, epoch: int, workers: int) -> None:
    found = list(epoch_batches(made_images(count), size, seed=1, epoch=epoch, workers=workers))
    assert sorted(torch.cat([b.targets for b in found]).tolist()) == list(range(count))
    sizes = [len(b.targets) for b in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    for batch in found:
        assert (batch.images[:, 0, 0, 0].long() + 256 * batch.images[:, 0, 0, 1].long()).tolist() == batch.targets.tolist()


@given(st.integers(2, 300), st.integers(1, 50), st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_batches_are_the_same_for_any_workers_and_start(count: int, size: int, start: int) -> None:
    images = made_images(count)
    whole = list(epoch_batches(images, size, seed=3, epoch=2, workers=1))
    later = list(epoch_batches(images, size, seed=3, epoch=2, start=start, workers=4))
    assert len(later) == max(0, len(whole) - start)
    for a, b in zip(whole[start:], later, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert a.draws is not None
        assert b.draws is not None
        assert torch.equal(a.draws, b.draws)


def test_epochs_and_seeds_differ() -> None:
    images = made_images(100)
    orders = {tuple(next(epoch_batches(images, 100, seed, epoch)).targets.tolist()) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_cuts_are_the_fewest_and_even() -> None:
    assert parts(10, 4) == [(0, 3), (3, 6), (6, 10)]
    assert parts(8, 4) == [(0, 4), (4, 8)]
    assert parts(0, 4) == []


# Augmentation


def test_an_augmented_image_is_a_shift_of_the_image_or_of_its_mirror() -> None:
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    draws = torch.rand(40, COLUMNS)
    found = augment(images, draws, shift=0.125, mirror=True)
    mirrored = 0
    for image, changed, draw in zip(images.numpy(), found.numpy(), draws, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = {(y, x): padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
        mirror = bool(draw[2] < 0.5)
        mirrored += mirror
        plain = changed[:, ::-1] if mirror else changed
        matches = [at for at, crop in crops.items() if np.array_equal(crop, plain)]
        assert len(matches) == 1, (mirror, draw)
        assert matches[0][0] == min(4, int(draw[0] * 5))
    assert 8 < mirrored < 32


def test_without_shift_and_mirror_images_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(augment(images, torch.rand(4, COLUMNS), shift=0.0, mirror=False), images)
    flipped = augment(images, torch.zeros(4, COLUMNS), shift=0.0, mirror=True)
    assert torch.equal(flipped, images.flip(2))


def test_all_shifts_are_equally_likely() -> None:
    row = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(4000, 32, 32, 3)
    found = augment(row, torch.rand(4000, COLUMNS, generator=torch.Generator().manual_seed(0)), shift=0.125, mirror=False)
    counts = Counter(found[:, 0, 16, 0].tolist())
    assert set(counts) == set(range(12, 21))
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_decoding_warns_of_nothing(photos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(photos / "across" / "000.png")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("the system lets this user read everything")
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DataError, match="locked"):
        open_table(tmp_path)
