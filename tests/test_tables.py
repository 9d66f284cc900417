"""Tables as people have them: columns of other names, JSON lines, metadata files, label names, and files from Excel."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proof.pictures import encoded, picture

from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data
from listings import PNG, TABLES, listing, opened, parquet_file, refusal

TWO = {("a.png", "cat", ""), ("b.png", "dog", "")}


def read(path: Path, **settings: str) -> Table:
    return open_table(path, settings=Data(**settings))


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    """Write the same table as a CSV, JSON lines or Parquet file, as the suffix says."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        return parquet_file(path, columns)
    lines = [json.dumps(row) for row in rows]
    if path.suffix == ".csv":
        lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])


# Columns


@SUFFIXES
def test_columns_by_option(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        "image": ["x.png", "y.png", "z.png"],
        "label": ["7", "8", "9"],
        "Photo File": ["a.png", "b.png", "c.png"],
        "breed": ["pug", "tabby", "pug"],
        "phase": ["train", "test", "train"],
        "fold": ["test", "train", "test"],
        "dog id": [1, 2, 1],
    }
    file = write_table(tmp_path / f"pets{suffix}", columns)
    options = {"image": "photo_file", "label": "breed", "split": "fold", "group": "dog id"}
    table = read(file, **{f"{column}_column": name for column, name in options.items()})
    assert listing(table) == {("a.png", "pug", "test"), ("b.png", "tabby", "train"), ("c.png", "pug", "test")}
    assert table.groups == ["1", "2", "1"]
    took = "image from 'Photo File', label from 'breed', split from 'fold', group from 'dog id'"
    assert capsys.readouterr().err == f"{file}: {took}\n"
    assert listing(read(file)) == {("x.png", "7", "train"), ("y.png", "8", "test"), ("z.png", "9", "train")}


@SUFFIXES
@pytest.mark.parametrize("name", ["file_name", "filename", "filepath", "path", "image_path", "img", "img_path"])
def test_common_names_of_the_image_column(tmp_path: Path, name: str, suffix: str) -> None:
    columns = {"id": [1, 2], name: ["a.png", "b.png"], "label": ["cat", "dog"]}
    assert listing(read(write_table(tmp_path / f"a{suffix}", columns))) == TWO


@pytest.mark.parametrize("name", ["class", "Category", "target", "label_name", "labels", "class label"])
def test_common_names_of_the_label_column(tmp_path: Path, name: str) -> None:
    assert listing(opened(tmp_path / "a.csv", f"file_name,{name}\na.png,cat\nb.png,dog\n")) == TWO


def test_less_common_names_count_only_without_the_others(tmp_path: Path) -> None:
    assert listing(opened(tmp_path / "a.csv", "path,img_path,category,category_name\na.png,x,cat,1\nb.png,y,dog,2\n")) == TWO
    assert "'img_path', 'img_name'" in refusal(tmp_path / "a.csv", "img_path,img_name,label\na,b,c\n")


@SUFFIXES
def test_ambiguous_columns_are_one_line_with_the_option(tmp_path: Path, suffix: str) -> None:
    columns: dict[str, list[object]] = {"file": ["a.png", "b.png"], "path": ["c.png", "d.png"], "label": [0, 1]}
    file = write_table(tmp_path / f"a{suffix}", columns)
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).startswith(
        f"{file} has several columns that may be 'image': 'file', 'path'; say which with --image-"
    )
    assert set(read(file, image_column="path").images) == {"c.png", "d.png"}
    assert set(read(file, label_column="path").images) == {"a.png", "b.png"}, "a column taken is no candidate any more"


@SUFFIXES
def test_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, suffix: str) -> None:
    file = write_table(tmp_path / f"a{suffix}", {"photo": ["a.png"], "kind": ["cat"]})
    with pytest.raises(DataError, match=r"has no column 'image': it has 'photo', 'kind'; .*--image-column"):
        read(file)
    with pytest.raises(DataError, match="has no column 'breed', given by --label-column: it has 'photo', 'kind'"):
        read(file, image_column="photo", label_column="breed")


def test_duplicate_column_names(tmp_path: Path) -> None:
    assert listing(opened(tmp_path / "a.csv", "image,note,label,note\na.png,x,cat,y\nb.png,,dog,\n")) == TWO
    assert "several columns that may be 'label': 'label', 'label'" in refusal(tmp_path / "b.csv", "image,label,label\na,b,c\n")
    with pytest.raises(DataError, match="has 2 columns 'note', given by --group-column"):
        read(tmp_path / "a.csv", group_column="note")


def test_columns_of_a_folder_without_a_table_are_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(photos, label_column="breed").labels == ("across", "down")
    assert capsys.readouterr().err == f"{photos} has no table, so there is no column 'breed'\n"


# Groups


@SUFFIXES
def test_missing_groups_are_images_by_themselves(tmp_path: Path, suffix: str) -> None:
    columns = {"image": list("abcd"), "label": list("0101"), "group": ["p1", "p1", None, " "]}
    assert read(write_table(tmp_path / f"a{suffix}", columns)).groups == ["p1", "p1", "", ""]
    assert read(write_table(tmp_path / f"b{suffix}", {**columns, "group": [None] * 4})).groups is None
    assert opened(tmp_path / "c.csv", "image,label,group\na,0,1.0\nb,1,NaN\nc,1,nan\n").groups == ["1", "", ""]


# JSON lines


def test_json_lines_of_any_values(tmp_path: Path) -> None:
    rows = [
        '{"image": "a.png", "label": 1, "box": [1, 2], "split": "train"}',
        "",
        '{"split": "test", "label": 1.0, "image": "\\u00e4.png"}\r',
        '{"image": "c.png", "label": true, "split": "train"}',
        '{"image": "d.png", "label": 0.5, "split": "train", "objects": {"x": [{}]}}',
        '{"image": "e.png", "label": "NaN", "split": "train"}',
        '{"image": "f.png", "label": NaN, "split": "train"}',
        '{"image": "g.png", "label": null, "split": "train"}',
        '{"image": "h.png", "split": "train"}',
        '{"label": "x", "split": "train"}',
    ]
    table = opened(tmp_path / "a.jsonl", "\ufeff" + "\n".join(rows))
    labels = {image: (label, split) for image, label, split in listing(table)}
    assert labels == {
        **{"a.png": ("1", "train"), "ä.png": ("1", "test"), "c.png": ("True", "train")},
        **{"d.png": ("0.5", "train"), "e.png": ("NaN", "train")},
    }
    assert [tuple(s) for s in table.skipped] == [(f"{x}.png", "no label") for x in "fgh"] + [("line 10", "no image")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 'b.png'}", "line 2: not JSON"),
        ('{"image": "b.png", "label": "dog"} {}', "line 2: not JSON"),
        ('["b.png", "dog"]', 'line 2: ["b.png", "dog"] is not an object'),
        ('{"image": "b.png", "label": ["dog"]}', "line 2: label is ['dog'], but should be text or a number"),
        ('{"image": "b.png", "label": Infinity}', "line 2: label is inf, but should be text or a number"),
        ('{"image": {"path": "b.png"}, "label": "dog"}', "line 2: image is {'path': 'b.png'}, but should be text"),
        ('{"image": "b.png", "label": "dog", "label": "cat"}', "line 2: a key is there twice"),
        ('{"image": "b.png", "label": "dog", "x": ' + "[" * 100_000, "line 2: not JSON (nested too deeply)"),
        ('{"image": "b.png", "label": ' + "9" * 5000 + "}", "line 2: not JSON"),
        (
            '{"image": "https://example.org/b.png", "label": "dog"}',
            "line 2: image is 'https://example.org/b.png', which is not a",
        ),
        ('{"image": "b.png", "label": "dog", "split": "seg_train"}', "line 2: split is 'seg_train'"),
    ],
)
def test_damaged_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(tmp_path / "a.jsonl", '{"image": "a.png", "label": "cat"}\n' + line)


def test_json_lines_in_another_code_are_refused(tmp_path: Path) -> None:
    assert "is not UTF-8 text" in refusal(tmp_path / "a.jsonl", '{"image": "ä"}'.encode("utf-16"))


@given(TABLES, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_json_lines_of_any_text_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ascii_only: bool, end: str
) -> None:
    lines = [json.dumps({"label": label, "image": name}, ensure_ascii=ascii_only) for name, label in rows]
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(end.join(lines).encode())
    table = open_table(path, least=1)
    assert not table.skipped
    assert {image: label for image, label, _ in listing(table)} == dict(rows)


# Files from Excel


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_csv_of_excel(tmp_path: Path, encoding: str, delimiter: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("Datei", "label", "Notiz"),
        ("Käfer 1.png", "Käfer", f'"zwei{end}Zeilen"'),
        ("b.png", "Öl", "à l’été – 20 €"),
        ("c.png", "", ""),
    ]
    file = tmp_path / "a.csv"
    file.write_bytes(end.join(delimiter.join(row) for row in rows).encode(encoding))
    table = read(file, image_column="Datei")
    assert listing(table) == {("Käfer 1.png", "Käfer", ""), ("b.png", "Öl", "")}
    assert [tuple(s) for s in table.skipped] == [("c.png", "no label")]
    assert ("line 2 is not UTF-8 text, so it is read as Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("label", "encoding"),
    [
        ("кошка", "cp1251"),
        ("кошка", "koi8-r"),
        ("猫在这里", "gbk"),
        ("ねこ", "shift-jis"),
        ("żółw", "cp1250"),
        ("γάτα", "cp1253"),
    ],
)
def test_csv_in_other_codes_is_refused_rather_than_read_wrongly(tmp_path: Path, label: str, encoding: str) -> None:
    content = f"image,label\na.png,{label}\nb.png,dog\n".encode(encoding)
    assert "a.csv, line 2 is not UTF-8 text: save it as CSV UTF-8" in refusal(tmp_path / "a.csv", content)


# Paths


@SUFFIXES
@pytest.mark.skipif(os.name != "posix", reason="paths of Windows on another system")
def test_one_file_under_several_paths_is_one_image(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (tmp_path / "x.png").write_bytes(PNG[3])
    names = ["../x.png", "y.png", str(tmp_path / "x.png"), "./more/../y.png", "more\\..\\y.png", str(tmp_path / "z.png")]
    table = read(write_table(folder / f"a{suffix}", {"image": names, "label": ["cat", "dog", "cat", "cat", "dog", "emu"]}))
    assert listing(table) == {("../x.png", "cat", ""), ("y.png", "dog", ""), (str(tmp_path / "z.png"), "emu", "")}
    source = table.source(list(table.images).index("../x.png"))
    assert isinstance(source, Path)
    assert source.read_bytes() == PNG[3]
    other = "listed twice, with another label ('cat' after 'dog')"
    assert [s.reason for s in table.skipped] == ["listed twice", other, "listed twice"]


# Label names


NAMES = "cat\ndog\nemu\n"


@SUFFIXES
@pytest.mark.parametrize("name", ["labels.txt", "classes.txt"])
def test_label_numbers_get_the_names_beside_the_table(
    tmp_path: Path, suffix: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(f"\ufeff{NAMES}", encoding="utf-8")
    table = read(write_table(tmp_path / f"a{suffix}", {"image": ["a.png", "b.png", "c.png"], "label": [2, 0, 2]}))
    assert listing(table) == {("a.png", "emu", ""), ("b.png", "cat", ""), ("c.png", "emu", "")}
    assert f"class names are those in {tmp_path / name}" in capsys.readouterr().err


@SUFFIXES
def test_label_numbers_get_given_names(tmp_path: Path, suffix: str) -> None:
    file = write_table(tmp_path / f"a{suffix}", {"image": ["a.png", "b.png"], "label": [2, 0]})
    assert read(file).labels == ("0", "2")
    named = {("a.png", "emu", ""), ("b.png", "cat", "")}
    assert listing(read(file, label_names="cat, dog,emu")) == named
    (tmp_path / "labels.txt").write_text("x\ny\nz\n")
    (tmp_path / "mine.txt").write_text(NAMES)
    assert listing(read(file, label_names=str(tmp_path / "mine.txt"))) == named, "a given file takes precedence"


def test_label_names_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1 001.Black footed Albatross\n2 002.Auklet\n")  # as in CUB-200-2011
    table = opened(tmp_path / "a.csv", "image,label\na.png,2\nb.png,1\n")
    assert listing(table) == {("a.png", "002.Auklet", ""), ("b.png", "001.Black footed Albatross", "")}


def test_text_labels_stay_beside_label_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(NAMES)
    assert listing(opened(tmp_path / "a.csv", "image,label\na.png,cat\nb.png,0\n")) == {
        ("a.png", "cat", ""),
        ("b.png", "0", ""),
    }
    assert listing(read(tmp_path / "a.csv", label_names="cat,0")) == {("a.png", "cat", ""), ("b.png", "0", "")}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\ndog\n", "has names for 0 to 1, but there is the label 2; to number from 1, begin the lines"),
        (b"cat\ndog\ncat\n", "labels 0 and 2 have the same name, 'cat'"),
        (b"cat\n\nemu\n", "the name of label 1 is empty"),
        (b"a.png 0\nb.png 2\nc.png 1\n", "lists files, such as 'a.png 0'"),
        (b"", "has names for no label"),
        (b"\xff\n", "cannot read the label names"),
    ],
)
def test_file_beside_the_table_that_has_no_names_is_not_used(
    tmp_path: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    assert opened(tmp_path / "a.csv", "image,label\na.png,2\nb.png,1\n").labels == ("1", "2")
    assert reason in capsys.readouterr().err
    if b"png" not in content:
        with pytest.raises(DataError, match=reason.partition(";")[0]):
            read(tmp_path / "a.csv", label_names=str(tmp_path / "labels.txt"))


@pytest.mark.parametrize(
    ("names", "message"),
    [("no.txt", "no file 'no.txt' of label names"), ("cat,dog", "cat,dog has names for 0 to 1, but there is the label 2")],
)
def test_given_names_that_do_not_suit_are_refused(tmp_path: Path, names: str, message: str) -> None:
    opened(tmp_path / "a.csv", "image,label\na.png,2\nb.png,1\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv", label_names=names)
    opened(tmp_path / "a.csv", "image,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"label names are for numbers, but there are the labels 'x', 'y'|no file"):
        read(tmp_path / "a.csv", label_names=names)


# Folders with metadata files, as Hugging Face's ImageFolder


def folder_of_images(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(i % 2, i, (12, 12)), "PNG"))
    return root


@SUFFIXES
def test_folder_with_metadata(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_images(tmp_path / "pets", ["1.png", "more/2.png", "3.png", "4.png"])
    columns = {"file_name": ["1.png", "more/2.png", "3.png"], "label": ["cat", "dog", "cat"], "text": ["x", "y", "z"]}
    write_table(root / f"metadata{suffix}", columns)
    table = open_table(root)
    assert listing(table) == {("1.png", "cat", ""), ("more/2.png", "dog", ""), ("3.png", "cat", "")}
    assert [tuple(s) for s in table.skipped] == [("4.png", "not in the metadata")]
    source = table.source(list(table.images).index("more/2.png"))
    assert isinstance(source, Path)
    assert source.read_bytes() == encoded(picture(1, 1, (12, 12)), "PNG")
    assert "image from 'file_name', label from 'label'" in capsys.readouterr().err


@SUFFIXES
def test_split_folders_with_metadata(tmp_path: Path, suffix: str) -> None:
    root = folder_of_images(tmp_path / "pets", ["train/1.png", "train/2.png", "test/1.png", "validation/1.png"])
    write_table(root / "train" / f"metadata{suffix}", {"file_name": ["1.png", "2.png"], "label": [0, 1]})
    write_table(root / "test" / f"metadata{suffix}", {"file_name": ["1.png"], "label": [1]})
    write_table(root / "validation" / f"metadata{suffix}", {"file_name": ["1.png"], "label": [0]})
    (root / "classes.txt").write_text("cat\ndog")
    assert listing(open_table(root)) == {
        *{("train/1.png", "cat", "train"), ("train/2.png", "dog", "train")},
        *{("test/1.png", "dog", "test"), ("validation/1.png", "cat", "val")},
    }


def test_one_metadata_file_of_split_folders(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path, ["train/1.png", "train/2.png", "test/1.png"])
    (root / "metadata.csv").write_text("file_name,label\ntrain/1.png,cat\ntrain/2.png,dog\ntest/1.png,cat\n")
    assert set(open_table(root).splits) == {"train", "test"}
    (root / "metadata.csv").write_text("file_name,label\ntrain/1.png,cat\ntrain/2.png,dog\n")
    assert set(open_table(root).splits) == {""}, "train alone is a dataset that is not split yet"


def test_metadata_without_labels_leaves_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_images(tmp_path, ["cat/1.png", "dog/2.png"])
    (root / "metadata.csv").write_text("file_name,caption\ncat/1.png,one\ndog/2.png,two\n")
    assert listing(open_table(root)) == {("cat/1.png", "cat", ""), ("dog/2.png", "dog", "")}
    assert f"not used: {root / 'metadata.csv'} has no column 'label'" in capsys.readouterr().err
    assert listing(read(root, label_column="caption")) == {("cat/1.png", "one", ""), ("dog/2.png", "two", "")}


def test_two_metadata_files_are_refused(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"has 'metadata.csv', 'metadata.jsonl': keep one of them"):
        open_table(tmp_path)
