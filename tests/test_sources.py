"""Dataset sources and splits: which images, with which label, in which split."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proof.pictures import picture

from alexnet.data.decode import decode
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data


def save(path: Path, kind: int = 0, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(kind, seed).save(path)


def listing(table: Table) -> set[tuple[str, str, str]]:
    return {(table.images[i], table.labels[table.targets[i]], str(table.splits[i])) for i in range(len(table))}


def test_class_folders_are_recursive_and_skip_hidden_files(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("names", [("cat.9194.jpg", "dog.1.jpg"), ("cat_01.png", "dog-7.png"), ("cat (3).png", "dog (4).png")])
def test_labels_from_file_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "nothing.png"):
        save(tmp_path / "train" / name)
    table = open_table(tmp_path)
    assert table.labels == ("cat", "dog")
    assert not (table.splits != "").any(), "train alone is a dataset that is not split yet"
    assert [s.image for s in table.skipped] == ["train/nothing.png"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_relative_and_absolute_paths(tmp_path: Path, delimiter: str) -> None:
    save(tmp_path / "pics" / "a, b.png")
    save(tmp_path / "c.png")
    rows = [("image", "label", "split"), ('"pics/a, b.png"', "cat", "train"), (str(tmp_path / "c.png"), "dog", "validation")]
    file = tmp_path / "list.csv"
    file.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    table = open_table(file)
    assert {(label, s) for _, label, s in listing(table)} == {("cat", "train"), ("dog", "val")}
    assert all(decode(path) for i in range(2) if isinstance(path := table.source(i), Path))


def test_csv_skips_duplicates_and_missing_labels(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("image,label\na.png,1\nb.png,2\na.png,1\na.png,2\nc.png,\n")
    reasons = [s.reason for s in open_table(file).skipped]
    assert reasons == ["listed twice", "listed twice, with another label ('2' after '1')", "no label"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,label\na.png,1\n", "no column 'image': it has 'picture', 'label'"),
        ("image,kind\na.png,1\n", "no column 'label'"),
        ("", "no columns"),
        ("image,label\na.png,1\n", "only one class, '1'"),
        ("image,label,split\na.png,1,train\nb.png,2,fold3\n", "line 3: split is 'fold3'"),
        ("image,label,split\na.png,1,train\nb.png,2,\n", "'split' is empty in some rows"),
    ],
)
def test_unusable_csv_says_why(tmp_path: Path, text: str, message: str) -> None:
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


def test_folder_not_readable_is_named(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("the system lets this user read everything")
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DataError, match="locked"):
        open_table(tmp_path)


# Splits


DATA = Data(validation=0.1, test=0.2)


def make_table(counts: dict[str, int], splits: str = "") -> Table:
    names = [f"{label}/{i}.jpg" for label, n in counts.items() for i in range(n)]
    targets = np.repeat(np.arange(len(counts)), list(counts.values()))
    return Table("made", tuple(counts), names, targets, np.full(len(names), splits, dtype="<U5"), root=Path())


@given(st.lists(st.integers(3, 60), min_size=2, max_size=5), st.integers(0, 5))
def test_split_is_disjoint_stratified_and_complete(sizes: list[int], seed: int) -> None:
    counts = {f"c{i}": n for i, n in enumerate(sizes)}
    result = split(make_table(counts), Data(validation=0.1, test=0.2, split_seed=seed))
    assert set(result.splits) <= {"train", "val", "test"}
    for target, n in enumerate(sizes):
        inside = Counter(result.splits[result.targets == target])
        assert inside["val"] == max(1, int(n * 0.1 + 0.5))
        assert inside["test"] == max(1, int(n * 0.2 + 0.5))
        assert inside["train"] >= 1


@given(st.integers(3, 50), st.integers(0, 10_000))
def test_split_is_stable_when_a_file_is_added(count: int, new: int) -> None:
    table = make_table({"a": count, "b": 5})
    more = replace(
        table,
        images=[*table.images, f"a/new-{new}.jpg"],
        targets=np.append(table.targets, 0),
        splits=np.append(table.splits, ""),
    )
    before = dict(zip(table.images, split(table, DATA).splits, strict=True))
    after = dict(zip(more.images, split(more, DATA).splits, strict=True))
    assert sum(before[name] != after[name] for name in before) <= 2


def test_split_does_not_depend_on_file_order() -> None:
    table = make_table({"a": 30, "b": 30})
    turned = table.select(np.arange(60)[::-1].copy())
    by_name = [dict(zip(t.images, split(t, DATA).splits, strict=True)) for t in (table, turned)]
    assert by_name[0] == by_name[1]


def test_split_keeps_a_declared_test_set() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["test" if i % 4 == 0 else "train" for i in range(40)]
    result = split(table, Data(validation=0.2, test=0.2, split_seed=0))
    assert result.counts() == {"train": 24, "val": 6, "test": 10}
    assert (result.splits[table.splits == "test"] == "test").all()


def test_split_keeps_train_and_val_without_test() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["val" if i % 4 == 0 else "train" for i in range(40)]
    assert split(table, Data(validation=0.2, test=0.2, split_seed=0)).counts() == {"train": 30, "val": 10}


def test_labels_missing_from_a_split_are_named() -> None:
    table = make_table({"cat": 4, "dog": 4, "emu": 2})
    table.splits[:] = ["train"] * 2 + ["val"] * 2 + ["train"] * 4 + ["val"] * 2
    with pytest.raises(DataError, match="train has no images of 'emu', which val has"):
        split(table, DATA)
    table.splits[-2:] = "train"
    with pytest.raises(DataError, match="val has no images of 'dog', 'emu'"):
        split(table, DATA)


def test_class_without_readable_image_is_named() -> None:
    table = make_table({"cat": 8, "dog": 8, "emu": 2})
    with pytest.raises(DataError, match="no readable image of 'emu'"):
        split(table.select(np.arange(16)), DATA)
