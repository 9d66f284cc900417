"""`data doubts`: confident learning as the paper defines it, the list, and the page with which a person corrects labels."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proof.pages import OVERFLOW
from proof.pictures import class_folders

import alexnet
from alexnet.data.sources import open_table
from alexnet.doubts.confident import confident_joint, doubtful
from alexnet.errors import AlexNetError, DataError
from commands import error
from commands import run as command
from official import one_line

# Confident learning


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return given classes, some of them wrong, and probabilities that know the true ones more or less."""
    classes, count = draw(st.integers(2, 5)), draw(st.integers(5, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    true = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + draw(st.integers(0, 4)) * np.eye(classes)[true]
    targets = np.where(rng.random(count) < 0.2, rng.integers(0, classes, count), true)
    p = np.exp(logits)
    return targets, p / p.sum(1, keepdims=True)


@given(problems())
@settings(max_examples=40)
def test_confident_joint_is_the_papers(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """Northcutt, Jiang and Chuang 2021, equations 1 to 3, image by image; for several confident classes as cleanlab."""
    targets, p = problem
    classes = p.shape[1]
    members = [[i for i, t in enumerate(targets) if t == k] for k in range(classes)]
    thresholds = [sum(p[i, k] for i in members[k]) / len(members[k]) if members[k] else 2.0 for k in range(classes)]
    counts = np.zeros((classes, classes))
    for i, t in enumerate(targets):
        if confident := [k for k in range(classes) if p[i, k] >= thresholds[k] - 1e-6]:
            counts[t, confident[0] if len(confident) == 1 else p[i].argmax()] += 1
    for k in range(classes):
        counts[k, k] = max(1, counts[k, k])
    expected = counts / counts.sum(1, keepdims=True) * [[len(rows)] for rows in members]
    result = confident_joint(targets, p)
    assert np.abs(result - expected).max() < 1
    assert result.sum(1).tolist() == [len(rows) for rows in members]


@given(problems())
@settings(max_examples=40)
def test_doubtful_labels_are_those_with_the_largest_margins_and_the_least_probable_come_first(
    problem: tuple[np.ndarray, np.ndarray],
) -> None:
    targets, p = problem
    joint, expected = confident_joint(targets, p), set()
    for i in range(p.shape[1]):
        for j in set(range(p.shape[1])) - {i}:
            rows = sorted(np.flatnonzero(targets == i), key=lambda row: p[row, i] - p[row, j])
            expected |= {row for row in rows[: joint[i, j]] if p[row].argmax() != i}
    found = doubtful(targets, p)
    assert set(found.tolist()) == expected
    assert (np.diff(p[found, targets[found]]) >= 0).all()


def test_right_labels_are_not_doubted() -> None:
    targets = np.arange(90) % 3
    assert len(doubtful(targets, np.eye(3)[targets] * 0.8 + 0.2 / 3)) == 0
    assert len(doubtful(np.zeros(0, dtype=int), np.zeros((0, 3)))) == 0


def test_wrong_labels_are_found_among_good_predictions() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(600) % 4
    wrong = rng.permutation(600)[:30]
    targets = true.copy()
    targets[wrong] = (true[wrong] + rng.integers(1, 4, 30)) % 4
    p = np.exp(rng.normal(size=(600, 4)) + 6 * np.eye(4)[true])
    found = doubtful(targets, p / p.sum(1, keepdims=True))
    assert len(set(found) & set(wrong)) >= 28
    assert len(set(found) - set(wrong)) <= 2
    assert set(found[:20]) <= set(wrong)


# The list

WRONG = ("across/003.png", "across/007.png", "down/011.png")


@pytest.fixture(scope="module")
def mislabelled(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the photos with groups; three have the wrong label, and names are not plain."""
    root = tmp_path_factory.mktemp("mislabelled")
    rows = []
    for place, file in enumerate(sorted(photos.rglob("*.png"))):
        name = file.relative_to(photos).as_posix()
        copy = root / f'a, "b" ü/{name}'
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        label = {"across": "down", "down": "across"}[file.parent.name] if name in WRONG else file.parent.name
        rows.append((copy.relative_to(root).as_posix(), label, f"g,{place // 2}"))
    with (root / "photos.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("image", "label", "group"), *rows])
    return root / "photos.csv"


@pytest.fixture(scope="module")
def folds(mislabelled: Path, trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "run"
    settings = {"train.precision": "float32", "train.batch_size": 8}
    alexnet.cross_validate(mislabelled, folds=4, recipe="head", weights=trained.path, out=out, settings=settings)
    return out


def names(doubts: list[dict[str, Any]]) -> list[str]:
    return [doubt["image"].partition("/")[2] for doubt in doubts]


def test_wrong_labels_come_first(folds: Path) -> None:
    result = alexnet.find_doubts(folds)
    assert result["images"] == 40
    assert set(names(result["doubts"])[:3]) == set(WRONG)
    for doubt in result["doubts"][:3]:
        assert doubt["likely"] == doubt["image"].split("/")[1] != doubt["label"]
        assert doubt["likely_probability"] > doubt["label_probability"]


def test_doubts_are_printed_and_written(folds: Path, tmp_path: Path) -> None:
    done = command("data", "doubts", folds, "--csv", tmp_path / "doubts.csv", "--page", tmp_path / "doubts.html")
    result = json.loads(command("data", "doubts", folds, "--json").stdout)
    assert done.stdout.startswith(f"{len(result['doubts'])} doubtful labels among 40 images")
    with (tmp_path / "doubts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [doubt["image"] for doubt in result["doubts"]]
    assert all(row["image"] in done.stdout for row in rows[:3])
    assert "already exists" in error("data", "doubts", folds, "--csv", tmp_path / "doubts.csv")
    command("data", "doubts", folds, "--csv", tmp_path / "doubts.csv", "--page", tmp_path / "doubts.html", "--overwrite")


def test_what_has_no_folds_is_refused_with_advice(trained: alexnet.Run, folds: Path, tmp_path: Path) -> None:
    assert "--folds 5" in error("data", "doubts", trained.path)
    assert "is one network, which has seen the labels" in error("data", "doubts", trained.path)
    assert "no folds in" in error("data", "doubts", tmp_path)
    unfinished = shutil.copytree(folds, tmp_path / "run")
    (unfinished / "out-of-fold.json").unlink()
    assert "has folds that are not trained yet: repeat the command" in error("data", "doubts", unfinished)


def test_a_page_of_another_dataset_is_refused(folds: Path, mislabelled: Path, tmp_path: Path) -> None:
    text = mislabelled.read_text(encoding="utf-8")
    try:
        mislabelled.write_text(text.replace("down", "up"), encoding="utf-8")
        with pytest.raises(DataError, match="has changed since its folds were trained") as caught:
            alexnet.find_doubts(folds, page=tmp_path / "page.html")
    finally:
        mislabelled.write_text(text, encoding="utf-8")
    one_line(caught)
    assert not (tmp_path / "page.html").exists()


def folds_of_labels(labels: tuple[str, ...], trained: alexnet.Run, folder: Path) -> Path:
    """Return two folds of pictures with these labels, six each."""
    class_folders(folder / "photos", 6, labels)
    settings = {"train.precision": "float32", "train.batch_size": 8}
    options: dict[str, Any] = {"recipe": "head", "weights": trained.path, "out": folder / "run", "settings": settings}
    alexnet.cross_validate(folder / "photos", folds=2, **options)
    return folder / "run"


def test_counterexamples_are_in_the_corrected_table(trained: alexnet.Run, tmp_path: Path) -> None:
    run = folds_of_labels(("across", "down", "none"), trained, tmp_path)
    assert alexnet.find_doubts(run, page=tmp_path / "page.html")["images"] == 12
    text = (tmp_path / "page.html").read_text(encoding="utf-8").split('<script type="application/json" id="data">')[1]
    data = json.loads(text.split("</script>")[0])
    written = dict(zip(data["columns"]["image"], (data["labels"][i] for i in data["columns"]["label"]), strict=True))
    assert written == {file.as_posix(): file.parent.name for file in (tmp_path / "photos").rglob("*.png")}


@pytest.mark.parametrize(("label", "reason"), [("NA", "a missing one"), ("1.0", "a number")])
def test_labels_that_a_csv_file_cannot_hold_are_refused(label: str, reason: str, trained: alexnet.Run, tmp_path: Path) -> None:
    folds_of_labels((label, "other"), trained, tmp_path)
    with pytest.raises(AlexNetError, match=f"would be read as {reason}: rename"):
        alexnet.find_doubts(tmp_path / "run", page=tmp_path / "page.html")


# The page


@pytest.fixture
def tab(browser: Any, folds: Path, tmp_path: Path) -> Iterator[Any]:
    """The page, offline; an error in it or a request fails the test."""
    context, wrong = browser.new_context(viewport={"width": 360, "height": 800}, offline=True, accept_downloads=True), []
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda fault: wrong.append(str(fault)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    alexnet.find_doubts(folds, page=tmp_path / "doubts.html")
    page.goto((tmp_path / "doubts.html").as_uri())
    yield page
    assert page.evaluate(OVERFLOW) == 0
    context.close()
    assert wrong == []


def corrected(tab: Any, out: Path) -> dict[str, tuple[str, str]]:
    """Download the CSV file with a key; return the label and group of each image in it, as `train` reads it elsewhere."""
    with tab.expect_download() as download:
        tab.keyboard.press("d")
    download.value.save_as(out)
    table = open_table(out)
    assert table.groups is not None
    assert all(table.file(row).is_file() for row in range(len(table)))
    labels = (table.labels[target] for target in table.targets)
    return dict(zip(table.images, zip(labels, table.groups, strict=True), strict=True))


def before(table: Path) -> dict[str, tuple[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return {str(table.parent / row["image"]): (row["label"], row["group"]) for row in csv.DictReader(file)}


def test_labels_are_corrected_with_the_keyboard_alone(tab: Any, folds: Path, mislabelled: Path, tmp_path: Path) -> None:
    first, second, third = (mislabelled.parent / doubt["image"] for doubt in alexnet.find_doubts(folds)["doubts"][:3])
    expected = before(mislabelled)
    assert corrected(tab, tmp_path / "a" / "same.csv") == expected, "nothing was decided"
    for key in ("j", "w", "o", "r", "k", "k", "k"):
        tab.keyboard.press(key)
    (label, group) = expected[str(first)]
    expected[str(first)] = "down" if label == "across" else "across", group
    del expected[str(second)]
    assert corrected(tab, tmp_path / "b" / "new.csv") == expected
    assert third.is_file()
    tab.reload()
    assert corrected(tab, tmp_path / "c" / "again.csv") == expected, "what was decided is kept"
    for key in ("j", "l", "ArrowUp", "ArrowUp", "ArrowUp", "Escape", "j", "u"):
        tab.keyboard.press(key)
    restored = corrected(tab, tmp_path / "d" / "restored.csv")
    assert restored[str(first)][0] == "across", "the first label of the list"
    assert restored[str(second)] == before(mislabelled)[str(second)]


def test_the_page_shows_its_keys_and_what_was_decided(tab: Any) -> None:
    keys = tab.locator(".keys kbd").all_inner_texts()
    assert keys == ["R", "W", "O", "U", "J", "↓", "K", "↑", "L", "D"]
    assert tab.locator("#command").inner_text() == "alexnet train photos-corrected.csv"
    tab.locator("input[value=out]").first.check()
    assert "1 of" in tab.locator("#count").inner_text()
    assert tab.locator("#count").inner_text().endswith("0 corrected, 1 left out")
    assert tab.locator(".photo img").first.evaluate("image => image.naturalWidth") == 40
