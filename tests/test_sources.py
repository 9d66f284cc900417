"""Sources and splits: which images, of which class, for what."""

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
        ("image,kind\na.png,1\n", "no column 'label'"),
        ("", "no columns"),
        ("image,label\na.png,1\n", "one class alone, '1'"),
        ("image,label,split\na.png,1,train\nb.png,2,fold3\n", "line 3: split is 'fold3'"),
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


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
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
def test_splits_are_disjoint_stratified_and_whole(sizes: list[int], seed: int) -> None:
    counts = {f"c{i}": n for i, n in enumerate(sizes)}
    done = split(make_table(counts), Data(validation=0.1, test=0.2, split_seed=seed))
    assert set(done.splits) <= {"train", "val", "test"}
    for target, n in enumerate(sizes):
        inside = Counter(done.splits[done.targets == target])
        assert inside["val"] == max(1, int(n * 0.1 + 0.5))
        assert inside["test"] == max(1, int(n * 0.2 + 0.5))
        assert inside["train"] >= 1


@given(st.integers(3, 50), st.integers(0, 10_000))
def test_adding_a_file_moves_at_most_one_at_each_border(count: int, new: int) -> None:
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


def test_the_split_does_not_depend_on_the_order_of_files() -> None:
    table = make_table({"a": 30, "b": 30})
    turned = table.select(np.arange(60)[::-1].copy())
    by_name = [dict(zip(t.images, split(t, DATA).splits, strict=True)) for t in (table, turned)]
    assert by_name[0] == by_name[1]


def test_validation_is_held_out_of_train_and_a_declared_test_stays() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["test" if i % 4 == 0 else "train" for i in range(40)]
    done = split(table, Data(validation=0.2, test=0.2, split_seed=0))
    assert done.counts() == {"train": 24, "val": 6, "test": 10}
    assert (done.splits[table.splits == "test"] == "test").all()


def test_train_and_val_without_test_stay_as_they_are() -> None:
    table = make_table({"a": 20, "b": 20})
    table.splits[:] = ["val" if i % 4 == 0 else "train" for i in range(40)]
    assert split(table, Data(validation=0.2, test=0.2, split_seed=0)).counts() == {"train": 30, "val": 10}


def test_labels_that_a_split_lacks_or_has_alone_are_named() -> None:
    table = make_table({"cat": 4, "dog": 4, "emu": 2})
    table.splits[:] = ["train"] * 2 + ["val"] * 2 + ["train"] * 4 + ["val"] * 2
    with pytest.raises(DataError, match="train has no images of 'emu', which val has"):
        split(table, DATA)
    table.splits[-2:] = "train"
    with pytest.raises(DataError, match="val has no images of 'dog', 'emu'"):
        split(table, DATA)


def test_a_class_without_a_readable_image_is_named() -> None:
    table = make_table({"cat": 8, "dog": 8, "emu": 2})
    with pytest.raises(DataError, match="no readable image of 'emu'"):
        split(table.select(np.arange(16)), DATA)
