"""Folder datasets: which folders are classes, which are splits, and which are skipped."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngInfo
from proof.pictures import picture
from typer.testing import CliRunner

import alexnet
from alexnet import recipe as recipes
from alexnet.api import _default_out
from alexnet.cli import app
from alexnet.data.name_patterns import SPLIT_WORDS, split_of_folder
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.errors import DataError, RunError
from alexnet.files import MADE_BY
from alexnet.recipe import Data

OTHER_FILES = {
    **{"__MACOSX": ["train/cat/._1.png"], "logs": ["train.log"], "runs": ["a/recipe.toml", "a/model.json", "a/report.html"]},
    **{"#recycle": ["cat/1.png"], "__pycache__": ["1.png"]},
    **{"empty": [], "notes": ["read me.txt", "2020/list.csv"], ".ipynb_checkpoints": ["1.png"], "exported": ["model.onnx"]},
    **{"explained": ["filters.png", "1-explained.png"], "found": ["search.json", "exact-0.faiss"]},
    **{"study": ["study.json", "ablation.png", "a-1/recipe.toml"], "rates": ["a-lr.png", "a/recipe.toml"]},
}


def make(root: Path, files: Iterable[str]) -> Path:
    """Create files, which are not opened: their names alone mark them as images."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def make_other_files(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        make(root / name, OTHER_FILES[name])


def classes_in(*folders: str, labels: Iterable[str] = ("cat", "dog"), each: int = 1) -> list[str]:
    return [f"{folder}/{label}/{i}.png" for folder in folders for label in labels for i in range(each)]


def labels_and_counts(root: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    table = open_table(root)
    return table.labels, table.counts()


def skipped_names(table: Table) -> set[str]:
    return {skipped.image for skipped in table.skipped}


BESIDE = st.sets(st.sampled_from(sorted(OTHER_FILES)))


@given(st.sets(st.sampled_from(["bus", "train", "test", "tram", "val"]), min_size=2), BESIDE)
def test_class_folders_of_any_name_beside_other_files(classes: set[str], beside: set[str]) -> None:
    if not classes - {"train", "test", "val"}:
        classes |= {"bus"}
    with TemporaryDirectory() as folder:
        root = make(Path(folder), classes_in(".", labels=sorted(classes)))
        make_other_files(root, beside)
        table = open_table(root)
        assert table.labels == tuple(sorted(classes))
        assert not (table.splits != "").any()
        assert skipped_names(table) >= {name for name in beside if not name.startswith(".")}


@given(
    st.sampled_from(
        [
            *[("train", "val", "test"), ("training_set", "test_set"), ("train", "dev", "test"), ("train", "validation")],
            *[("Train", "Valid"), ("trainset", "testset"), ("TrainingSet", "ValidationSet"), ("train_images", "val_images")],
            *[("training", "testing"), ("train", "eval"), ("train", "hold-out"), ("train2017", "val2017"), ("TRAIN", "TEST")],
            *[("Trainingsdaten", "Validierung", "Testdaten"), ("entraînement", "test"), ("训练集", "验证集", "测试集")],
            *[("seg_train", "seg_test"), ("train_set", "valid_set"), ("train", "holdout"), ("images_train", "images_test")],
        ]
    ),
    st.sets(st.sampled_from(["cat", "dog", "train", "été"]), min_size=2),
    BESIDE,
    st.booleans(),
)
def test_split_folders_of_any_name_beside_other_files(
    names: tuple[str, ...], labels: set[str], beside: set[str], nested: bool
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder) / "data" if nested else Path(folder)
        make(root, classes_in(*names, labels=sorted(labels)))
        make_other_files(root, beside)
        table = open_table(folder)
        assert set(table.labels) == labels
        assert table.counts() == {split_of_folder(name)[0]: len(labels) for name in names}
        assert {Path(name).name for name in skipped_names(table)} == {name for name in beside if not name.startswith(".")}


def test_unlabelled_folder_beside_splits_is_skipped_with_a_message(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("train", "val"), "unlabelled/1.png"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {"train": 2, "val": 2})
    assert skipped_names(open_table(tmp_path)) == {"unlabelled"}


@pytest.mark.parametrize("lone", ["val", "test"])
def test_empty_split_is_skipped_with_a_message(tmp_path: Path, lone: str) -> None:
    make(tmp_path, classes_in("train", "test" if lone == "val" else "val"))
    (tmp_path / lone / "cat").mkdir(parents=True)
    assert lone not in labels_and_counts(tmp_path)[1]
    assert skipped_names(open_table(tmp_path)) == {lone}


def test_train_folder_beside_others_is_split_anew(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("train"), "unlabelled/1.png"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {})


def test_split_folders_with_labels_in_file_names(tmp_path: Path) -> None:
    make(tmp_path, [f"{s}/{label}.{i}.jpg" for s in ("train", "test") for label in ("cat", "dog") for i in (1, 2)])
    make(tmp_path, ["unlabelled/1.jpg", "unlabelled/IMG_2.jpg"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {"train": 4, "test": 4})


def test_unlabelled_test_folder_beside_class_folders(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("train", "val"), "test/IMG_1.png"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {"train": 2, "val": 2})
    assert skipped_names(open_table(tmp_path)) == {"test/IMG_1.png"}


def test_train_folder_beside_unlabelled_test_folder(tmp_path: Path) -> None:
    make(tmp_path, ["train/cat.0.jpg", "train/dog.0.jpg", "test1/1.jpg", "sampleSubmission.csv"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {})
    assert skipped_names(open_table(tmp_path)) == {"test1/1.jpg", "sampleSubmission.csv"}


def test_nested_split_folder_of_the_same_name(tmp_path: Path) -> None:
    make(tmp_path, classes_in("seg_train/seg_train", "seg_test/seg_test"))
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {"train": 2, "test": 2})


def test_nested_split_folder_with_labels_in_file_names(tmp_path: Path) -> None:
    make(tmp_path, [*(f"train/train/{label}.{i}.jpg" for label in ("cat", "dog") for i in (0, 1)), "test1/test1/1.jpg"])
    make(tmp_path, ["train/__MACOSX/1.jpg"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {})
    assert skipped_names(open_table(tmp_path)) == {"test1/test1/1.jpg", "train/__MACOSX"}


@pytest.mark.parametrize("kept", ["dog#7", "dog [7]", "dog@7", "dog~7", "dog (7)", "dog,7", "dog=7"])
def test_labels_in_file_names(tmp_path: Path, kept: str) -> None:
    others = {"labels1.txt", "notes 2020.docx", "Thumbs.db", "annotations_2.json"}
    make(tmp_path, ["cat.1.jpg", "cat_2.PNG", f"{kept}.jpg", *others])
    table = open_table(tmp_path)
    assert table.labels == ("cat", "dog")
    assert skipped_names(table) == others


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["Train_1", "Train_2", "Test_1", "Test_2"], "begins with a word that is not a class"),
        (["IMG_0001", "IMG_0002", "DSC_0001", "DSC_0002"], "begins with a word that is not a class"),
        (["IMG-20200101-WA0001", "Screenshot 1", "photo (2)"], "begins with a word that is not a class"),
        (["cat_2020-01-01_12-30-01", "cat_2020-01-02_09-00-07", "dog_2020-01-02_08-15-22"], "is a number, a time or a hash"),
        (["a1b2c3", "f00d12", "0003ab12", "9b3", "img_1_jpg.rf.a1b2c3d4e5"], "is a number, a time or a hash"),
    ],
)
def test_file_names_without_class_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    make(tmp_path, [f"{name}.jpg" for name in names])
    with pytest.raises(DataError, match=f"has no labelled images .*: its name {reason}"):
        open_table(tmp_path)
    make(tmp_path, [f"bus/{name}.jpg" for name in names] + ["train/1.jpg"])
    assert open_table(tmp_path).labels == ("bus", "train")


def test_file_names_that_begin_with_a_split_name(tmp_path: Path) -> None:
    make(tmp_path / "vehicles", ["train.1.jpg", "bus.1.jpg", "train.2.jpg", "bus.2.jpg"])
    assert labels_and_counts(tmp_path / "vehicles") == (("bus", "train"), {})
    make(tmp_path / "letters", ["E1.jpg", "E2.jpg"])
    assert open_table(tmp_path / "letters", least=1).labels == ("E",)


def test_split_dataset_beside_other_folders_is_refused(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("data/train", "data/val"), "screenshots/1.png"])
    with pytest.raises(DataError, match=r"has 'data', a dataset with splits of its own, beside 'screenshots': give .*data, or"):
        open_table(tmp_path)


def test_ambiguous_dataset_parts_are_refused(tmp_path: Path) -> None:
    for names in (("fold1", "fold2"), ("mytest", "mytrain"), ("te", "tr"), ("trein", "validatie")):
        root = make(tmp_path / names[0], classes_in(*names))
        with pytest.raises(DataError, match=f"has {names[0]!r}, {names[1]!r}, which may be parts of one dataset or classes"):
            open_table(root)
        make(root, [f"{name}/1.png" for name in names])
        assert open_table(root).labels == names
    make(tmp_path / "years", classes_in("cat", "dog", "valve", labels=("2019", "2020")))
    make(tmp_path / "years", ["cat/2021/1.png"])
    assert open_table(tmp_path / "years").labels == ("cat", "dog", "valve")


def test_masks_are_skipped_with_a_message(tmp_path: Path) -> None:
    make(tmp_path / "classes", classes_in("COVID", "Normal", labels=("images", "masks")))
    assert labels_and_counts(tmp_path / "classes") == (("COVID", "Normal"), {})
    table = open_table(tmp_path / "classes")
    assert list(table.images) == ["COVID/images/0.png", "Normal/images/0.png"]
    assert skipped_names(table) == {"COVID/masks", "Normal/masks"}
    make(tmp_path / "voc", ["JPEGImages/1.jpg", "SegmentationClass/1.png"])
    with pytest.raises(DataError, match="only one class, 'JPEGImages'"):
        open_table(tmp_path / "voc")
    make(tmp_path / "real", classes_in(".", labels=("masks", "no masks")))
    assert open_table(tmp_path / "real").labels == ("masks", "no masks")


def test_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("archive/PetImages"), "readme.txt"])
    with pytest.raises(DataError, match=r"'archive': if the folders in it are the classes, give .*PetImages$"):
        open_table(tmp_path)


def test_csv_beside_unlabelled_images_is_named(tmp_path: Path) -> None:
    make(tmp_path, ["train/1.jpg", "test/2.jpg", "train.csv"])
    with pytest.raises(DataError, match=r"\(3 left out, such as .*jpg: no label .*\): give a file .*train.csv$"):
        open_table(tmp_path)


def test_too_deep_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("alexnet.data.sources.read_folder", deep)
    with pytest.raises(DataError, match="has too many levels of folders"):
        open_table(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="folder names are bytes on Linux only")
def test_class_name_not_utf8_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ["dog/1.png", f"{os.fsdecode(b'caf' + bytes([0xE9]))}/1.png"])
    with pytest.raises(DataError, match="has the label 'caf\ufffd', which is not UTF-8: rename it"):
        open_table(tmp_path)


def test_splits_inside_class_folders(tmp_path: Path) -> None:
    make(tmp_path, classes_in("cat", "dog", labels=("train", "val")))
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {"train": 2, "val": 2})
    make(tmp_path, ["dog/stray.png"])
    assert labels_and_counts(tmp_path) == (("cat", "dog"), {}), "not all are in splits"


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    make(tmp_path, classes_in("train", "val", "dev"))
    with pytest.raises(DataError, match="has 'dev', 'val', each of which could be val"):
        open_table(tmp_path)


def test_folders_that_may_be_classes_or_splits_are_refused(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("train", labels=("2019", "2020")), *classes_in("bus", labels=("2019", "2020"))])
    with pytest.raises(DataError, match="has 'train' and 'bus', all with folders in them, which may be splits or classes"):
        open_table(tmp_path)


def test_splits_without_train_are_refused(tmp_path: Path) -> None:
    make(tmp_path, classes_in("val", "test", each=3))
    with pytest.raises(DataError, match="has no images to train on, only 'test', 'val'"):
        split(open_table(tmp_path), Data())


@given(st.sampled_from(sorted(SPLIT_WORDS)), st.sampled_from(["{}", "{}_set", "{}set", "my {} images", "{}-data"]))
def test_split_names_in_every_spelling(word: str, form: str) -> None:
    for name in (form.format(word), form.format(word).upper(), form.format(word).title()):
        assert split_of_folder(name)[0] == SPLIT_WORDS[word]
    assert split_of_folder("cat") == ("", "cat")
    assert split_of_folder("trainer")[0] == split_of_folder("contest")[0] == ""


def test_image_without_suffix_makes_a_class(photos: Path, tmp_path: Path) -> None:
    image = next(photos.rglob("*.png")).read_bytes()
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1").write_bytes(image)
    assert open_table(tmp_path).labels == ("cat", "dog")


def test_run_inside_a_class_folder_is_skipped(tmp_path: Path) -> None:
    make(tmp_path, [*classes_in("."), "cat/runs/a/recipe.toml", "cat/runs/a/explain/1-explained.png"])
    table = open_table(tmp_path)
    assert list(table.images) == ["cat/0.png", "dog/0.png"]
    assert skipped_names(table) == {"cat/runs"}


def test_pdf_is_named_where_it_is_left_out(tmp_path: Path) -> None:
    flat, pets = make(tmp_path / "flat", ["cat.1.png", "dog.1.png"]), make(tmp_path / "pets", classes_in("."))
    (pets / "scans").mkdir()
    for folder in (flat, pets / "scans"):
        (folder / "letter.pdf").write_bytes(b"%PDF-1.7")
    named = "a PDF or PostScript file: save its pages as PNG"
    reasons = [[(skipped.image, skipped.reason) for skipped in open_table(root).skipped] for root in (flat, pets)]
    assert reasons == [[("letter.pdf", named)], [("scans", f"no images in it, but {named}")]]


def draw_pictures(*places: Path) -> None:
    """Write images as the commands do: with this program's mark."""
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = PngInfo()
        mark.add_text("Software", MADE_BY)
        picture(0, 0).save(path, pnginfo=mark)


def test_pictures_drawn_by_commands_are_skipped(tmp_path: Path) -> None:
    pets, flat = make(tmp_path / "pets", classes_in(".")), make(tmp_path / "flat", ["cat.1.png", "dog.1.png"])
    make(pets, ["runs/a/recipe.toml", "cat/2-explained.png"])  # the last is the user's own
    draw_pictures(pets / "runs" / "samples.png", pets / "runs" / "a" / "alike.png")
    draw_pictures(pets / "cat" / "0-explained.png", pets / "cat" / "filters.png", flat / "shown1.png")
    table = open_table(pets)
    assert list(table.images) == ["cat/0.png", "cat/2-explained.png", "dog/0.png"]
    assert skipped_names(table) == {"runs", "cat/0-explained.png", "cat/filters.png"}
    assert open_table(flat).labels == ("cat", "dog")
    assert skipped_names(open_table(flat)) == {"shown1.png"}


def test_default_out_is_unique_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    chosen = recipes.load("fast").with_settings({"data.dataset": "digits"})
    names = []
    for _ in range(3):
        names.append(_default_out(chosen).name)
        _default_out(chosen).mkdir(parents=True)
    first = "digits-fast-20260101-000000"
    assert names == [first, f"{first}-2", f"{first}-3"]


@pytest.mark.parametrize("data", [".", "./", "../photos/.", "..", "../../photos"])
def test_default_out_is_named_after_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    make(tmp_path / "photos", classes_in("."))
    monkeypatch.chdir(tmp_path / "photos" / ("cat" if data.startswith("..") and data != "../photos/." else ""))
    chosen = recipes.load("fast").with_settings({"data.dataset": data})
    assert _default_out(chosen).name.startswith("photos-fast-")
    assert Path(chosen.with_absolute_dataset().data.dataset) == (tmp_path / "photos").resolve()
    assert open_table(data).name == "photos"


def test_resume_of_finished_run_says_how_to_train_more(short: Path) -> None:
    with pytest.raises(RunError, match=r"alexnet train \S.*photos'? --weights \S.*'? trains a new run from its weights"):
        alexnet.resume(short)
    result = CliRunner().invoke(app, ["train", "--resume", str(short), "--epochs", "20"])
    assert result.exit_code == 2
    assert "--weights RUN --epochs N" in " ".join(result.stderr.replace("│", " ").split())


def test_evaluate_folder_that_lacks_a_class(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    label = trained.labels[0]
    (tmp_path / "some" / "test").mkdir(parents=True)
    (tmp_path / "some" / "test" / label).symlink_to(photos / label)
    for data in (tmp_path / "some", tmp_path / "some" / "test"):
        rows = trained.evaluate(data).to_json()["per_class"]
        assert rows[label]["images"] == 20
        assert rows[label]["recall"] is not None
        assert rows[trained.labels[1]]["recall"] is rows[trained.labels[1]]["f1"] is None
    result = CliRunner().invoke(app, ["evaluate", str(trained.path), str(tmp_path / "some")])
    assert result.exit_code == 0, result.output
    assert next(line for line in result.stdout.splitlines() if line.startswith(trained.labels[1])).endswith("–      –")
    as_json = CliRunner().invoke(app, ["evaluate", str(trained.path), str(tmp_path / "some"), "--json"])
    assert json.loads(as_json.stdout)["per_class"][trained.labels[1]]["recall"] is None


def test_evaluate_splits_with_different_labels(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    for name, labels in (("train", trained.labels), ("test", trained.labels[:1])):
        (tmp_path / name).mkdir()
        for label in labels:
            (tmp_path / name / label).symlink_to(photos / label)
    assert trained.evaluate(tmp_path).to_json()["images"] == 20


def test_thousands_of_unknown_labels_are_truncated(trained: alexnet.Run, tmp_path: Path) -> None:
    make(tmp_path, [f"class-{i:04}/1.png" for i in range(1300)])
    with pytest.raises(DataError, match=r"does not know: 'class-0000', .* and 1,290 more; it knows") as caught:
        trained.evaluate(tmp_path)
    assert len(str(caught.value)) < 600
