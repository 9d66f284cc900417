"""CSV and Parquet listings of a dataset, and lists of names on standard input."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from proof.pictures import encoded, picture

from alexnet import Run
from alexnet.cli.images import image_names
from alexnet.data import check, parquet
from alexnet.data.cache import open_cache
from alexnet.data.csv_reader import MISSING, WHOLE
from alexnet.data.decode_pool import Answer, decode_one
from alexnet.data.labels import normalize_label
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.report.samples import show_samples
from conftest import make_preprocessing

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# Characters allowed in a name or a label: all except those that are stripped or refused.
WORDS = st.text(
    st.characters(
        exclude_categories=("Cs", "Cc"), exclude_characters="\\/:~\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip() and text not in (".", ".."))
LABELS = st.sampled_from(["cat", "dog"]) | WORDS.map(normalize_label).filter(
    lambda label: label and label not in MISSING and not WHOLE.fullmatch(label)
)
TABLES = st.lists(st.tuples(WORDS, LABELS), min_size=2, max_size=12, unique_by=lambda row: row[0])
PNG = [encoded(picture(i % 2, i, (12, 12)), "PNG") for i in range(8)]


def listing(table: Table) -> set[tuple[str, str, str]]:
    return {(table.images[i], table.labels[table.targets[i]], str(table.splits[i])) for i in range(len(table))}


def opened(path: Path, content: str | bytes) -> Table:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path)


def refusal(path: Path, content: str | bytes) -> str:
    """Return the one-line error for a file that cannot be read."""
    with pytest.raises(DataError) as caught:
        opened(path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


def parquet_file(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> Path:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, **options)
    return path


def labels_of(tmp_path: Path, column: Any, metadata: dict[str, str] | None = None) -> list[str]:
    """Return the labels that a Parquet file gives images 0.png, 1.png …, and `no label` for those left out."""
    names = [f"{i}.png" for i in range(len(column))]
    table = open_table(parquet_file(tmp_path / "a.parquet", {"image": names, "label": column}, metadata))
    result = {image: label for image, label, _ in listing(table)} | {image: reason for image, reason in table.skipped}
    return [result[name] for name in names]


# CSV


@given(
    TABLES,
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
)
def test_csv_of_any_dialect_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    quoting: Any,
    end: str,
    encoding: str,
    named: bool,
) -> None:
    assume(len({label for _, label in rows}) > 1)
    text = io.StringIO(newline="")
    if named:
        text.write(f"sep={delimiter}{end}")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("note", "label", "image"), *(("a, b; c\td|e", label, name) for name, label in rows)])
    table = opened(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue().encode(encoding))
    assert not table.skipped
    assert {image: label for image, label, _ in listing(table)} == dict(rows)


FORTY = [f"cat/{i}.jpg,cat" for i in range(20)] + [f"dog/{i}.jpg,dog" for i in range(20)]


@pytest.mark.parametrize("line", [2, 25, 41])
@pytest.mark.parametrize(
    "broken",
    ['"cat/x.jpg,cat', 'cat/x.jpg,"cat', 'cat/x.jpg,cat"', 'cat/"x.jpg,cat', '"cat/x.jpg"s,cat', 'cat/x.jpg,"cat" tabby'],
)
def test_csv_unclosed_quote_is_refused_with_its_line(tmp_path: Path, broken: str, line: int) -> None:
    lines = ["image,label", *FORTY]
    lines[line - 1] = broken
    assert f"a.csv, line {line}: " in refusal(tmp_path / "a.csv", "\n".join(lines))
    quoted = [",".join(f'"{field}"' for field in row.split(",")) for row in lines[1:]]
    quoted[line - 2] = broken
    assert f"a.csv, line {line}: " in refusal(tmp_path / "a.csv", "\n".join(["image,label", *quoted]))


def test_csv_two_unclosed_quotes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    swallowed = 'image,label,note\na.png,cat,"one\nb.png,dog,two\nc.png,dog,three"\nd.png,dog,\n'
    assert "line 2: a quoted field continues" in refusal(tmp_path / "a.csv", swallowed)
    assert "line 2: a quoted field continues" in refusal(tmp_path / "a.csv", 'image,label\na.png,"cat\nb.png,dog"\nc.png,dog\n')
    assert "line 2: a quoted field continues" in refusal(tmp_path / "a.csv", 'image,label\n"a.png,cat\nx.png",dog\nc.png,cat\n')


def test_csv_line_breaks_inside_quotes(tmp_path: Path) -> None:
    text = 'image,label,note\r\na.png,cat,"two\r\nlines, and\n\nmore"\r\n\r\nb.png,dog,x\r\nc.png,,y\r\n,dog,\r\n'
    table = opened(tmp_path / "a.csv", text)
    assert listing(table) == {("a.png", "cat", ""), ("b.png", "dog", "")}
    assert [tuple(s) for s in table.skipped] == [("c.png", "no label"), ("line 9", "no image")]
    if os.name == "posix":
        (tmp_path / "a\nb.png").touch()
        assert ("a\nb.png", "cat", "") in listing(opened(tmp_path / "a.csv", 'image,label\n"a\nb.png",cat\nc.png,dog\n'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\na.png,cat\nb.png,dog,extra\n", "line 3: 3 fields, but the header has 2"),
        ("image,label\n\nb,1.png,dog\n", "line 3: 3 fields"),
        ("image,label\ra.png,cat\rb.png,do\0g\r", "line 3: a NUL character"),
        ("image,label\na.png,cat\n".encode("utf-16-le"), "a NUL character"),
        ("image,label\nä.png,cat\n".encode("cp1252"), "line 2 is not UTF-8 text: save it as CSV UTF-8"),
        (codecs.BOM_UTF16_LE + b"i", "is not UTF-8 text"),
        (b"PK\x03\x04\x14\x00\x06\x00", "a NUL character"),
        (
            "cat/1.jpg,cat\ndog/1.jpg,dog\n",
            "it has 'cat/1.jpg', 'cat'; the first line must name the columns, such as image and label",
        ),
        ("image,label,Label\na,b,c\n", "several columns that may be 'label': 'label', 'Label'"),
        ("filename,path,label\na,b,c\n", "several columns that may be 'image': 'filename', 'path'"),
        ("image_id,class,category,image\n", "several columns that may be 'label': 'class', 'category'"),
        ("\n\n", "no columns"),
        ("image,label\n", "no labelled images"),
        ("image,label\n" + "a.png," + "x" * 200_000 + "\nb.png,dog\n", "line 2: a field of more than 131,072 characters"),
        ('image,label\na.png,cat\n"b.png,' + "dog\nb.png," * 40_000, "line 3: a field of more than 131,072 characters"),
        ("x" * 100_000 + ",label\na.png,cat\n", "has no column 'image'"),
        ("image,label,split\na.png,cat," + "x" * 10_000 + "\n", "line 2: split is 'xxx"),
        (
            "image,label\nhttps://example.org/a.png,cat\n",
            "line 2: image is 'https://example.org/a.png', which is not a local file: down",
        ),
        ("image,label\ns3://bucket/a.png,cat\n", "download the images"),
        ("image,label\ndata:image/png;base64,cat\n", "download the images"),
    ],
)
def test_ambiguous_csv_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path / "a.csv", content)


@pytest.mark.parametrize(
    "text",
    [
        "Image,Label\na.png,cat\nb.png,dog\n",
        ' image , "label" \na.png, "cat" \n"b.png",dog\n'.replace('" \n', '"\n'),
        "sep=;\r\nfilename;class\r\na.png;cat\r\nb.png;dog\r\n",
        '"sep=|"\nFile Name|Class\na.png|cat\nb.png|dog\n',
        '"a;b;c;d",image,label\n1,a.png,cat\n2,b.png,dog\n',
        "image_path\tCategory\na.png\tcat\nb.png\tdog",
        ",image,label\n0,a.png,cat\n1,b.png,dog\n",
        "image,label,,\na.png,cat,,\nb.png,dog\n,,,\n \n",
        "image,label\na.png,cat,,\nb.png,dog,\n",
        "image,label\na.png,cat\nimage,label\nb.png,dog\n",
        "\n\nimage,label\r\na.png,cat\rb.png,dog\n",
        "image;label;weight\na.png;cat;0,5\nb.png;dog;1,5\n",
        "image,label\n./a.png,cat\nb.png,dog\na.png,cat\n",
        "image,label\na.png,cat\nb.png,dog\nc.png,NaN\nd.png,nan\ne.png,NA\nf.png,#N/A\ng.png,<NA>\nh.png,null\n",
        "img,fine_label,coarse_label\na.png,cat,pet\nb.png,dog,pet\n",
    ],
)
def test_csv_written_by_spreadsheets(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert listing(opened(tmp_path / "a.csv", text.encode(encoding))) == {("a.png", "cat", ""), ("b.png", "dog", "")}


@pytest.mark.parametrize("text", ["image,label\na.png,0\nb.png,1\nc.png,1.0\nd.png,0.0\ne.png,nan\n"])
def test_csv_labels_1_and_1_point_0_are_one(tmp_path: Path, text: str) -> None:
    table = opened(tmp_path / "a.csv", text)
    assert [table.labels[i] for i in table.targets] == ["0", "1", "1", "0"]
    assert [tuple(s) for s in table.skipped] == [("e.png", "no label")]
    others = opened(tmp_path / "b.csv", "image,label\na,007\nb,7\nc,1.5\nd,1.0.0\ne,None\nf,v1.0\n")
    assert set(others.labels) == {"007", "7", "1.5", "1.0.0", "None", "v1.0"}


def test_csv_of_too_few_classes_lists_skipped_rows(tmp_path: Path) -> None:
    semicolons = refusal(tmp_path / "a.csv", "image,label\na.png;cat\nb.png;dog\n")
    assert semicolons.endswith("a.csv has no labelled images (2 left out, such as a.png;cat: no label)")
    assert refusal(tmp_path / "a.csv", "image,label\na.png,cat\nb.png,\n").endswith(
        "a.csv has only one class, 'cat' (1 left out, such as b.png: no label)"
    )


def test_csv_unicode_line_separators_do_not_end_a_row(tmp_path: Path) -> None:
    table = opened(tmp_path / "a.csv", "image,label,note\na.png,cat,x\u2028y\x85z\x0b\nb.png,dog,\x1c\n")
    assert listing(table) == {("a.png", "cat", ""), ("b.png", "dog", "")}


@pytest.mark.skipif(os.name != "posix", reason="paths of Windows on another system")
def test_windows_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("cat/1 ü.jpg", "odd\\name.jpg", "home/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = [
        ("cat\\1 ü.jpg", "cat/1 ü.jpg"),
        (".\\cat\\3.jpg", "cat/3.jpg"),
        ("odd\\name.jpg", "odd\\name.jpg"),
        ((tmp_path / "cat/1 ü.jpg").as_uri(), str(tmp_path / "cat/1 ü.jpg")),
        ("FILE://localhost/x/a%23b.jpg", "/x/a#b.jpg"),
        ("~/2.jpg", str(tmp_path / "home/2.jpg")),
        ("~$photo.jpg", "~$photo.jpg"),
    ]
    lines = [f"{given},{i % 2}" for i, (given, _) in enumerate(rows)]
    table = opened(tmp_path / "a.csv", "\n".join(["image,label", *lines]))
    assert list(table.images) == [expected for _, expected in rows]


@pytest.mark.skipif(os.name != "posix", reason="paths of Windows on another system")
@pytest.mark.parametrize("name", ["C:\\a.jpg", "d:/pics/a.jpg", "\\\\server\\a.jpg", "file:///C:/a.jpg", "file://server/a.jpg"])
def test_absolute_windows_paths_are_refused_elsewhere(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path / "a.csv", f"image,label\n{name},cat\n")
    assert f"line 2: image is {name!r}, a path on a Windows computer" in message


def test_long_name_is_truncated_in_messages(tmp_path: Path) -> None:
    assert "line 2: image is 'https://x" in refusal(tmp_path / "a.csv", f"image,label\nhttps://{'x' * 50_000},cat\n")
    table = opened(tmp_path / "a.csv", f"image,label\n{'x' * 50_000},cat\nb.png,dog\n")
    with pytest.raises(DataError) as caught:
        open_cache(table, make_preprocessing(), 1)
    assert len(str(caught.value)) < 400


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
    original = parquet.Contents._seek

    def seek(self: parquet.Contents, row: int) -> None:
        before = self._batches
        original(self, row)
        opened.extend([row] if self._batches is not before else [])
        assert len(self._batch) <= 2

    monkeypatch.setattr(parquet.Contents, "_seek", seek)
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


def test_folder_of_parquet_files_is_refused(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet_file(tmp_path / name, {"image": PNG, "label": [0, 1] * 4})
    with pytest.raises(DataError, match=r"has no labelled images.*: give a file .*train-00000-of-00001.parquet"):
        open_table(tmp_path)


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


# Names on standard input


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[str | Path]]:
    def names(content: bytes) -> list[str | Path]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="cp1252"))
        return image_names(["first.png", "-"])[1:]

    return names


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"\xef\xbb\xbfa.png\r\n\r\n  \r\nb.png", ["a.png", "b.png"]),
        ("a.png\r\nü.png\r\n".encode("utf-16"), ["a.png", "ü.png"]),
        (codecs.BOM_UTF16_BE + "a.png\nü.png".encode("utf-16-be"), ["a.png", "ü.png"]),
        (b"./a.png\0./b\nc.png\0./d\r.png\0", ["./a.png", "./b\nc.png", "./d\r.png"]),
        (b"./a.png\0./b.png\0\n", ["./a.png", "./b.png"]),
        ("a\u2028b.png\n".encode(), ["a\u2028b.png"]),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_image_names_on_stdin(stdin: Callable[[bytes], list[str | Path]], content: bytes, names: list[str]) -> None:
    assert stdin(content) == list(map(Path, names))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input has no file names"),
        (b" \n\0", "standard input has no file names"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "standard input is an image, but - stands for a list of names"),
        (b"\x89PNG\r\n\x1a\n\0\0", "standard input is an image, but - stands for a list of names"),
    ],
)
def test_stdin_without_names_is_refused(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(DataError, match=message):
        image_names(["-"])


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_image_names_not_utf8_on_stdin(stdin: Callable[[bytes], list[str | Path]]) -> None:
    assert [os.fsencode(name) for name in stdin(b"\xff.png\n\xc3\xa9.png\n")] == [b"\xff.png", b"\xc3\xa9.png"]


@given(
    st.lists(WORDS, min_size=1),
    st.sampled_from(["\n", "\r\n", "\0"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
)
def test_image_names_on_stdin_read_back(names: list[str], end: str, encoding: str, ended: bool) -> None:
    content = (end.join(names) + (end if ended or len(names) == 1 else "")).encode(encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), encoding="utf-8"))
        assert image_names(["-"]) == [Path(name) for name in names]


@pytest.mark.parametrize("column", ["split", "Subset", "set", "partition", "Usage", "phase", "data_split"])
def test_csv_split_column_names(tmp_path: Path, column: str) -> None:
    table = opened(tmp_path / "a.csv", f"image,label,{column}\na,1,'train'\nb,2,Test set\nc,2, train \n")
    assert table.splits.tolist() == ["train", "test", "train"]
    assert "line 2: split is 'PublicTest'" in refusal(tmp_path / "a.csv", f"image,label,{column}\na,1,PublicTest\n")


def test_csv_split_names_equal_those_of_folders(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("image,label,split\na.png,1,training\nb.png,2,Dev\nc.png,1,holdout\n", encoding="utf-8")
    assert open_table(file).splits.tolist() == ["train", "val", "test"]
    file.write_text("image,label,split\na.png,1,train\nb.png,2,dev\nc.png,2,val\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 4: split is 'val' here and 'dev' before: write 'val' for both"):
        open_table(file)
