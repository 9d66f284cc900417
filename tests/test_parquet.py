"""Parquet listings of a dataset, with images by name or inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alexnet import Run
from alexnet.data import check, parquet
from alexnet.data.cache import open_cache
from alexnet.data.decode_pool import Answer, decode_one
from alexnet.data.sources import open_table
from alexnet.errors import DataError
from alexnet.report.samples import show_samples
from conftest import make_preprocessing
from listings import PNG, TABLES, labels_of, listing, parquet_file, refusal

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


# Parquet: typed values


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array([0, 1, 0]), ["0", "1", "0"]),
        (pa.array([False, True, None]), ["False", "True", "no label"]),
        (pa.array([0.0, 1.0, float("nan")]), ["0", "1", "no label"]),
        (pa.array([0.0, -0.0, 1e3], pa.float32()), ["0", "0", "1000"]),
        (pa.array([0.1, 2.0, 2.5], pa.float32()), ["0.1", "2", "2.5"]),
        (pa.array(np.array([1.0, 0.5], np.float16)), ["1", "0.5"]),
        (pa.array([2, 1], pa.decimal128(9, 2)), ["2", "1"]),
        (pa.array([200, 0], pa.uint8()), ["200", "0"]),
        (pa.array([2**53 + 1, -1]), ["9007199254740993", "-1"]),
        (pa.array([b"a", "ü".encode()]), ["a", "ü"]),
        (pa.array([b"a", b"b"], pa.binary(1)), ["a", "b"]),
        (pa.array(["a", "b", " ", None], pa.large_string()), ["a", "b", "no label", "no label"]),
        (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", "no label", "a"]),
        (pa.array([0, 1, None]).dictionary_encode(), ["0", "1", "no label"]),
        (pa.array(["nan", "None"]), ["nan", "None"]),
    ],
)
def test_parquet_labels_of_any_type(tmp_path: Path, column: Any, labels: list[str]) -> None:
    assert labels_of(tmp_path, column) == labels


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"a", b"\xff"]), r"row 1: label is .*\\xff'.*, which is not UTF-8 text"),
        (pa.array([1.0, float("inf")]), "row 1: label is inf"),
        (pa.array([[1], [2]]), r"the column 'label' holds list<.*>, but should hold text or whole numbers"),
        (pa.array([{"name": "a"}]), "'label' holds struct"),
        (pa.array([0, 1], pa.timestamp("us")), "'label' holds timestamp"),
        (pa.array([0, 1], pa.date32()), "'label' holds date32"),
        (pa.nulls(2), "no labelled images"),
    ],
)
def test_parquet_labels_of_other_types_are_refused(tmp_path: Path, column: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path, column)


def hugging_face(names: list[str]) -> dict[str, str]:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_parquet_class_names_of_hugging_face(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, pa.array([1, 0, -1, None]), hugging_face(["cat", "dog"]))
    assert labels == ["dog", "cat", "no label", "no label"]
    with pytest.raises(DataError, match="row 1: label is 2, but the file has names for 2 classes"):
        labels_of(tmp_path, pa.array([1, 2]), hugging_face(["cat", "dog"]))
    assert labels_of(tmp_path, pa.array([1, 0]), {"huggingface": "{}"}) == ["1", "0"]


@given(TABLES, st.sampled_from(["string", "large_string", "binary", "dictionary"]), st.integers(1, 4))
def test_parquet_text_of_any_type_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], kind: str, group: int
) -> None:
    assume(len({label for _, label in rows}) > 1)
    images, labels = (pa.array(column) for column in zip(*rows, strict=True))
    labels = labels.dictionary_encode() if kind == "dictionary" else labels.cast(kind)
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    table = open_table(parquet_file(path, {"image": images, "label": labels}, row_group_size=group))
    assert {image: label for image, label, _ in listing(table)} == dict(rows)


def test_parquet_splits(tmp_path: Path) -> None:
    columns = {"image": ["a.png", "b.png"], "label": ["1", "2"], "split": pa.array(["train", "test"]).dictionary_encode()}
    assert listing(open_table(parquet_file(tmp_path / "a.parquet", columns))) == {
        ("a.png", "1", "train"),
        ("b.png", "2", "test"),
    }
    columns["split"] = [None, "test"]
    with pytest.raises(DataError, match="'split' is empty in some rows"):
        open_table(parquet_file(tmp_path / "a.parquet", columns))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"image,label\n"])
def test_damaged_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    assert "a.parquet is not a readable Parquet file" in refusal(tmp_path / "a.parquet", content)


# Parquet: images inside


def structs(paths: list[str | None], images: list[bytes | None] = PNG) -> Any:
    return pa.array([{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)])


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (structs([f"{i}.png" for i in range(8)]), [f"{i}.png" for i in range(8)]),
        (structs(["0.png"] * 8), [f"row-{i:06}" for i in range(8)]),
        (structs([None] * 8), [f"row-{i:06}" for i in range(8)]),
        (structs([f" {i} " for i in range(8)]), [f" {i} " for i in range(8)]),
        (pa.array(PNG), [f"row-{i:06}" for i in range(8)]),
        (pa.array(PNG, pa.large_binary()), [f"row-{i:06}" for i in range(8)]),
        (pa.array([{"bytes": image} for image in PNG]), [f"row-{i:06}" for i in range(8)]),
    ],
)
@pytest.mark.parametrize("column_name", ["image", "img"])
@pytest.mark.parametrize("group", [3, 8])
def test_parquet_images(tmp_path: Path, column: Any, names: list[str], column_name: str, group: int) -> None:
    columns = {column_name: column, "labels": [0, 1] * 4}
    table = open_table(parquet_file(tmp_path / "a.parquet", columns, hugging_face(["x"]), row_group_size=group))
    assert list(table.images) == names
    for order in (range(8), range(7, -1, -1), (0, 7, 2, 5), (6, 1)):
        assert [table.source(i) for i in order] == [PNG[i] for i in order]
    assert table.select(np.array([5, 2])).source(0) == PNG[5]
    answer = decode_one("size", table.source(3), {})
    assert isinstance(answer, Answer)
    assert tuple(answer.facts["size"]) == (12, 12)


def test_parquet_images_are_read_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_SIZE", 2)
    table = open_table(parquet_file(tmp_path / "a.parquet", {"image": PNG, "label": [0, 1] * 4}, row_group_size=3))
    assert table.contents is not None
    opened: list[int] = []
    original = parquet.Images._seek

    def seek(self: parquet.Images, row: int) -> None:
        before = self._batches
        original(self, row)
        opened.extend([row] if self._batches is not before else [])
        assert len(self._batch) <= 2

    monkeypatch.setattr(parquet.Images, "_seek", seek)
    assert list(table.sources()) == PNG
    assert opened == [0]


def test_changed_parquet_is_decoded_anew(tmp_path: Path) -> None:
    preprocessing = make_preprocessing()
    file = parquet_file(tmp_path / "a.parquet", {"image": [b"\xffnone", *PNG[1:]], "label": [0, 1] * 4})
    cache = open_cache(open_table(file), preprocessing, 1)
    assert [tuple(s) for s in cache.skipped] == [("row-000000", "not an image, or of an unknown format")]
    result = check.check(open_table(file))
    assert ("row-000000", "not an image") in {(p.image, p.kind) for p in result.problems}
    parquet_file(file, {"image": structs([f"{i}.png" for i in range(8)], [None, *PNG[:0:-1]]), "label": [0, 1] * 4})
    again = open_cache(open_table(file), preprocessing, 1)
    assert [tuple(s) for s in again.skipped] == [("0.png", "the file is empty")]
    assert np.array_equal(again.pixels.image(0), cache.pixels.image(6))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a.png", "b.png"]).dictionary_encode(),
        pa.array([b"a.png", b"b.png"]),
        pa.array(
            [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        ),
        pa.array([{"path": "a.png"}, {"path": "b.png"}]),
    ],
)
def test_parquet_file_columns_of_other_types(tmp_path: Path, column: Any) -> None:
    table = open_table(parquet_file(tmp_path / "a.parquet", {"image": column, "label": [0, 1]}))
    assert listing(table) == {("a.png", "0", ""), ("b.png", "1", "")}
    assert table.source(0) == tmp_path / "a.png"


@pytest.mark.parametrize(
    "column",
    [pa.array([1, 2]), pa.array([[1], [2]]), pa.array([{"x": 1}, {"x": 2}]), pa.array([0.5, 1.0]), pa.array([True, False])],
)
def test_parquet_columns_without_images_are_refused(tmp_path: Path, column: Any) -> None:
    with pytest.raises(DataError, match=r"the column 'image' holds .*, but should hold names of files, or files as bytes"):
        open_table(parquet_file(tmp_path / "a.parquet", {"image": column, "label": [0, 1]}))


def test_shortened_parquet_is_named(tmp_path: Path) -> None:
    table = open_table(parquet_file(tmp_path / "a.parquet", {"image": PNG, "label": [0, 1] * 4}))
    parquet_file(tmp_path / "a.parquet", {"image": PNG[:2], "label": [0, 1]})
    with pytest.raises(DataError, match="has changed"):
        list(table.sources())


# Parquet: the files of a Hugging Face dataset


def hub_files(root: Path, files: dict[str, list[int]], labels: list[int] | None = None) -> Path:
    """Write Parquet files with images of `PNG`, as Hugging Face does; the classes of images 0, 1, … are cat, dog, cat …"""
    for name, rows in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        images = structs([f"{i}.png" for i in rows], [PNG[i] for i in rows])
        columns = {"image": images, "label": [i % 2 for i in rows] if labels is None else labels}
        parquet_file(root / name, columns, hugging_face(["cat", "dog"]), row_group_size=2)
    return root


TRAIN, TEST = "train-00000-of-00002", "test-00000-of-00001"


@pytest.mark.parametrize("folder", ["", "data/", "plain_text/"])
def test_folder_of_parquet_files(tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{TRAIN}.parquet": [0, 1, 2], "train-00001-of-00002.parquet": [3, 0], f"{TEST}.parquet": [4, 5]}
    root = hub_files(tmp_path / "pets", {folder + name: rows for name, rows in files.items()})
    (root / "README.md").write_text("---")
    (root / "picture.png").write_bytes(PNG[0])
    table = open_table(root)
    assert table.name == "pets"
    assert [(table.images[i], table.labels[table.targets[i]], str(table.splits[i])) for i in range(7)] == [
        *[(f"{folder}{TEST}/{i}.png", label, "test") for i, label in ((4, "cat"), (5, "dog"))],
        *[(f"{folder}{TRAIN}/{i}.png", label, "train") for i, label in ((0, "cat"), (1, "dog"), (2, "cat"))],
        *[(f"{folder}train-00001-of-00002/{i}.png", label, "train") for i, label in ((3, "dog"), (0, "cat"))],
    ]
    for order in (range(7), range(6, -1, -1), (0, 6, 2, 5, 3)):
        assert [table.source(i) for i in order] == [PNG[[4, 5, 0, 1, 2, 3, 0][i]] for i in order]
    assert table.file(0) == root / f"{folder}{TEST}.parquet"
    assert "test-00000-of-00001.parquet and 2 more: image from 'image', label from 'label'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.parquet", "validation.parquet", "test.parquet"], ["train", "val", "test"]),
        (["train-00000-of-00001-1359597a978bc4fa.parquet", "valid-00000-of-00001-70d52db3c749a935.parquet"], ["train", "val"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["train", "test"]),
        (["pets_train.parquet", "pets_test.parquet"], ["train", "test"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["", ""]),
        (["0000.parquet", "0001.parquet"], ["", ""]),
        (["all.parquet", "more.parquet"], ["", ""]),
    ],
)
def test_splits_in_names_of_parquet_files(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    table = open_table(hub_files(tmp_path, {name: [0, 1] for name in names}))
    found = dict(zip((table.file(i).relative_to(tmp_path).as_posix() for i in range(len(table))), table.splits, strict=True))
    assert found == dict(zip(names, splits, strict=True))
    assert len(set(table.images)) == 2 * len(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/train.parquet", "b/train.parquet"], "has Parquet files in 2 folders: give one of them, such as"),
        (["train.parquet", "data/train.parquet"], "has Parquet files in 2 folders: give one of them, such as .*data"),
        (["train.parquet", "extra.parquet"], "has 'extra.parquet', 'train.parquet', which are not all parts of"),
        (["mnist_train.parquet", "fashion_test.parquet"], "which are not all parts of train, val and test"),
    ],
)
def test_parquet_files_of_several_datasets_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_table(hub_files(tmp_path, {name: [0, 1] for name in names}))


def test_unlabelled_test_split_of_parquet_files(tmp_path: Path) -> None:
    hub_files(tmp_path, {"train.parquet": [0, 1, 2]})
    table = open_table(hub_files(tmp_path, {"test.parquet": [4, 5]}, labels=[-1, -1]))
    assert set(table.splits) == {""}
    assert [tuple(s) for s in table.skipped] == [("test/4.png", "no label"), ("test/5.png", "no label")]


def test_missing_parquet_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_table(hub_files(tmp_path, {"train-00003-of-00009.parquet": [0, 1]}))
    open_table(tmp_path / "train-00003-of-00009.parquet")
    message = "only 1 of 9 files train-*-of-00009.parquet are used: give a folder that has all of them"
    assert capsys.readouterr().err.count(message) == 2


def test_class_names_of_parquet_files_win_over_a_list(tmp_path: Path) -> None:
    hub_files(tmp_path, {"train.parquet": [0, 1]})
    (tmp_path / "labels.txt").write_text("x\ny\n")
    assert open_table(tmp_path).labels == open_table(tmp_path / "train.parquet").labels == ("cat", "dog")


def test_images_inside_are_read_in_bounded_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(1 << 16) for _ in range(256)]  # 16 MiB, in row groups of 1 MiB
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        parquet_file(tmp_path / name, {"image": images, "label": [0, 1] * 128}, row_group_size=16)
    table, before, largest = open_table(tmp_path), pa.total_allocated_bytes(), 0
    for source, image in zip(table.sources(), images * 2, strict=True):
        assert source == image
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert 1 << 20 <= largest < 6 << 20


def test_evaluate_parquet_equals_folders(tmp_path: Path, trained: Run, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    columns = {
        "image": structs([file.name for file in files], [file.read_bytes() for file in files]),
        "label": [file.parent.name for file in files],
    }
    in_file, in_folder = (trained.evaluate(data).to_json() for data in (parquet_file(tmp_path / "a.parquet", columns), photos))
    assert in_file == in_folder
    show_samples(open_table(tmp_path / "a.parquet"), tmp_path / "samples.png")
    assert (tmp_path / "samples.png").exists()
