"""CSV listings of a dataset."""

from __future__ import annotations

import codecs
import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alexnet.data.cache import open_cache
from alexnet.data.sources import open_table
from alexnet.errors import DataError
from conftest import make_preprocessing
from listings import TABLES, listing, opened, refusal


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
        ("image,label\nねこ.png,cat\n".encode("shift-jis"), "line 2 is not UTF-8 text: save it as CSV UTF-8"),
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
        ((tmp_path / "cat/2 ü.jpg").as_uri(), str(tmp_path / "cat/2 ü.jpg")),
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
