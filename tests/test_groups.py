"""Groups: images of one group, such as a patient, are on one side of every split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.data.sources import open_table
from alexnet.data.splits import RULES, split
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data
from conftest import SHORT
from test_sources import make_table, save

DATA = Data(validation=0.1, test=0.2)


def grouped(sizes: list[list[int]], more: dict[str, tuple[int, int]] | None = None) -> Table:
    """Return a table with groups of these sizes in each class, and `more` groups by name: their class and size."""
    groups = [(f"{target}-{i}", target, size) for target, row in enumerate(sizes) for i, size in enumerate(row)]
    groups += [(name, *group) for name, group in (more or {}).items()]
    rows = [(f"{name}/{i}.jpg", target, name) for name, target, size in groups for i in range(size)]
    images, targets, names = zip(*rows, strict=True)
    splits = np.full(len(rows), "", dtype="<U5")
    labels = tuple(map(str, range(len(sizes))))
    return Table("made", labels, images, np.array(targets), splits, root=Path(), groups=names)


def splits_of_groups(table: Table) -> dict[str, set[str]]:
    result = defaultdict(set)
    assert table.groups is not None
    for group, name in zip(table.groups, table.splits, strict=True):
        result[group].add(str(name))
    return result


SIZES = st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=30), min_size=2, max_size=4)


@given(SIZES, st.integers(0, 9))
def test_groups_are_whole_and_every_class_is_in_every_split(sizes: list[list[int]], seed: int) -> None:
    result = split(grouped(sizes), Data(validation=0.1, test=0.2, split_seed=seed))
    assert all(len(splits) == 1 for splits in splits_of_groups(result).values())
    for target in range(len(sizes)):
        assert set(result.splits[result.targets == target]) == {"train", "val", "test"}


@given(SIZES, st.integers(0, 9))
def test_splits_of_groups_are_stratified_to_half_a_group(sizes: list[list[int]], seed: int) -> None:
    sizes = [[*row, *[1] * 60] for row in sizes]  # so that no group is larger than a split
    result = split(grouped(sizes), Data(validation=0.1, test=0.2, split_seed=seed))
    for target, row in enumerate(sizes):
        inside = Counter(result.splits[result.targets == target])
        for name, share in (("val", 0.1), ("test", 0.2)):
            assert abs(inside[name] - sum(row) * share) <= (max(row) + 1) / 2


@given(SIZES, st.integers(0, 1000), st.integers(1, 9))
def test_adding_a_group_moves_no_more_than_its_size_and_a_group_at_each_border(
    sizes: list[list[int]], name: int, size: int
) -> None:
    sizes = [[*row, *[1] * 90] for row in sizes]
    tables = [split(grouped(sizes, more), DATA) for more in ({}, {f"new-{name}": (0, size)})]
    before, after = (dict(zip(table.images, table.splits, strict=True)) for table in tables)
    moved = sum(before[image] != after[image] for image in before)
    assert moved <= 2 * (size + 1 + max(map(max, sizes)))  # two borders: that of val, and that of test
    assert all(before[image] == after[image] for image in before if not image.startswith("0-")), "other classes do not change"


@given(st.lists(st.integers(3, 60), min_size=2, max_size=4), st.integers(0, 5))
def test_images_without_groups_are_split_as_before(sizes: list[int], seed: int) -> None:
    table = make_table({f"c{i}": n for i, n in enumerate(sizes)})
    expected = np.full(len(table), "train", dtype="<U5")
    for target, n in enumerate(sizes):
        rows = np.flatnonzero(table.targets == target)
        order = sorted(rows, key=lambda i: hashlib.sha256(f"{seed}/{table.images[i]}".encode()).digest())
        val, test = (max(1, int(n * share + 0.5)) for share in (0.1, 0.2))
        expected[order[:val]], expected[order[val : val + test]] = "val", "test"
    settings = Data(validation=0.1, test=0.2, split_seed=seed)
    assert split(table, settings).splits.tolist() == expected.tolist()
    alone = replace(table, groups=[""] * len(table))
    assert split(alone, settings).splits.tolist() == expected.tolist()


def test_groups_larger_than_a_split_are_for_training() -> None:
    for seed in range(20):
        result = split(grouped([[100, *[1] * 50]] * 2), Data(validation=0.1, test=0.2, split_seed=seed))
        assert result.counts() == {"train": 210, "val": 30, "test": 60}
        assert splits_of_groups(result)["0-0"] == {"train"}


def test_groups_of_several_classes_are_whole() -> None:
    table = make_table({"a": 60, "b": 60})
    table = replace(table, groups=[f"site {i % 12}" for i in range(120)])
    result = split(table, DATA)
    assert all(len(splits) == 1 for splits in splits_of_groups(result).values())
    assert result.counts() == {"train": 90, "val": 10, "test": 20}


def test_a_group_named_as_an_image_is_not_that_image() -> None:
    table = replace(make_table({"a": 30, "b": 30}), groups=["a/0.jpg" if i in (5, 9) else "" for i in range(60)])
    for seed in range(30):
        splits = split(table, Data(split_seed=seed)).splits
        assert splits[5] == splits[9]
        if splits[0] != splits[5]:
            return
    raise AssertionError("image 0 is always where the group is")


def test_split_of_groups_does_not_depend_on_file_order() -> None:
    table = grouped([[3, 1, 4, 1, 5, 9, 2, 6]] * 2)
    turned = table.select(np.arange(len(table))[::-1].copy())
    by_name = [dict(zip(t.images, split(t, DATA).splits, strict=True)) for t in (table, turned)]
    assert by_name[0] == by_name[1]


def test_validation_is_held_out_of_train_by_groups() -> None:
    table = grouped([[4] * 12] * 2)
    table.splits[:] = ["test" if i % 48 < 8 else "train" for i in range(96)]
    result = split(table, Data(validation=0.2, test=0.2))
    assert result.counts() == {"train": 64, "val": 16, "test": 16}
    assert all(len(splits) == 1 for splits in splits_of_groups(result).values())


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_tutorials_do_not_part_groups(rule: str) -> None:
    with pytest.raises(DataError, match=f"has groups, which data.split = '{rule}' would part: set data.split=hash"):
        split(grouped([[3] * 5] * 2), Data(split=rule))


def test_too_few_groups_are_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"0 validate it, as the images of a group stay together"):
        split(grouped([[30, 30], [30, 30]]), DATA)


# From a table to a run and back


def table_of_patients(root: Path) -> Path:
    lines = ["file,kind,patient"]
    for i in range(48):
        save(root / f"{i}.png", kind=i % 2, seed=i)
        lines.append(f"{i}.png,{i % 2},p{i // 4}")
    (root / "scans.csv").write_text("\n".join(lines))
    return root / "scans.csv"


def test_a_run_remembers_columns_names_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table_of_patients(tmp_path)
    columns = {"label_column": "kind", "group_column": "patient", "label_names": "across,down"}
    settings = {f"data.{key}": value for key, value in columns.items()}
    run = alexnet.train(file, out=tmp_path / "run", settings={**SHORT, "train.epochs": 1, **settings})
    assert run.labels == ("across", "down")
    dataset, name = run.dataset()
    assert name == "test"
    assert dataset.table.groups is not None
    assert all(len(splits) == 1 for splits in splits_of_groups(dataset.table).values())
    assert run.evaluate().to_json() == alexnet.load(tmp_path / "run").evaluate(split="test").to_json()
    (tmp_path / "new.csv").write_text("image,kind,sort\n0.png,down,1\n1.png,across,0\n")
    assert run.evaluate(tmp_path / "new.csv").to_json()["images"] == 2
    other = run.evaluate(tmp_path / "new.csv", settings={"data.label_column": "sort"}).to_json()
    assert {label: row["images"] for label, row in other["per_class"].items()} == {"across": 1, "down": 1}
    assert "label from 'kind', group from 'patient'" in capsys.readouterr().err


COLUMNS = ["--image-column", "file", "--label-column", "kind", "--group-column", "patient", "--label-names", "across,down"]


def test_commands_take_the_columns(tmp_path: Path, trained: alexnet.Run) -> None:
    file = str(table_of_patients(tmp_path))

    def output(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, *COLUMNS])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(output("data", "check", file, "--json"))["classes"] == {"across": 24, "down": 24}
    path = tmp_path / "samples.png"
    assert output("data", "show", file, "--out", str(path)) == f"{path}\n"
    assert json.loads(output("evaluate", str(trained.path), file, "--json"))["images"] == 48


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_training_commands_pass_the_columns_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def stop(data: str, *, settings: dict[str, object], **_: object) -> None:
        given.update(settings)
        raise DataError("stopped")

    monkeypatch.setattr(alexnet, command, stop, raising=False)
    vary = ["--vary", "model.dropout=0.0,0.5"] if command == "ablate" else []
    CliRunner().invoke(app, [command, "a.csv", *vary, *COLUMNS, "--split-column", "fold", "--set", "data.label_column=breed"])
    assert given == {
        **{"data.image_column": "file", "data.label_column": "breed", "data.split_column": "fold"},
        **{"data.group_column": "patient", "data.label_names": "across,down"},
    }
    result = CliRunner().invoke(app, [command, *(["--resume", "run"] if command == "train" else []), *COLUMNS])
    assert result.exit_code == 2, "a run and a study keep their columns"


def test_groups_in_two_splits_are_reported_by_check(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / f"{i}.png", kind=i % 2, seed=i)
    rows = [
        (0, "cat", "train", "p"),
        (1, "dog", "train", "q"),
        (2, "cat", "test", "q"),
        (3, "dog", "test", "q"),
        (4, "cat", "val", ""),
    ]
    rows += [(5, "dog", "val", ""), (6, "cat", "train", ""), (7, "dog", "test", "r")]
    lines = ["image,label,split,patient", *(f"{i}.png,{label},{name},{group}" for i, label, name, group in rows)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    leaks = [
        (p.image, p.detail)
        for p in alexnet.check(tmp_path / "a.csv", settings={"data.group_column": "patient"}).problems
        if p.kind == "leak"
    ]
    assert leaks == [("2.png", "of the group 'q', as 1.png is, which is in train")]
    assert all(p.kind != "leak" for p in alexnet.check(tmp_path / "a.csv").problems)
    assert open_table(tmp_path / "a.csv").groups is None
