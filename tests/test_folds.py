"""`train --folds`: every image is predicted once, by a network that never saw it; stopped trainings go on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alexnet
from alexnet.errors import AlexNetError, Interrupted, RunError
from alexnet.folds import cross_validate as module
from alexnet.folds.predictions import Predictions
from alexnet.run import RunFolder, read_recipe
from commands import run as command
from conftest import SHORT, contents, stop_after
from official import one_line
from test_sources import save

HEAD = {"train.precision": "float32", "train.batch_size": 8}


def head_folds(photos: Path, source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return alexnet.cross_validate(
        photos, **{"folds": 3, "recipe": "head", "weights": source, "out": out, "settings": HEAD, **options}
    )


@pytest.fixture(scope="module")
def folds(photos: Path, trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return head_folds(photos, trained.path, tmp_path_factory.mktemp("folds") / "run")


def test_each_image_is_held_out_once(folds: dict[str, Any], photos: Path) -> None:
    """In each fold, from training, from validation and so from the choice of weights and of the temperature."""
    out = Path(folds["run"])
    held_out: list[str] = []
    for number in (1, 2, 3):
        recipe = read_recipe(RunFolder(out / f"fold-{number}"))
        assert (recipe.data.folds, recipe.data.fold) == (3, number)
        part = Predictions.load(out / f"fold-{number}" / "held-out.npz")
        assert set(part.folds) == {number}
        held_out += part.images
    assert sorted(held_out) == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))


def test_predictions_are_those_of_an_ordinary_run_with_that_test_set(
    folds: dict[str, Any], photos: Path, trained: alexnet.Run, tmp_path: Path
) -> None:
    settings = {**HEAD, "data.folds": 3, "data.fold": 2}
    run = alexnet.train(photos, recipe="head", weights=trained.path, out=tmp_path / "run", settings=settings)
    part = Predictions.load(Path(folds["run"]) / "fold-2" / "held-out.npz")
    evaluation = run.evaluate(split="test")
    assert run.dataset(split="test")[0].names("test") == part.images
    np.testing.assert_allclose(part.probabilities, evaluation.probabilities, atol=1e-4)
    assert run.summary["test"]["top1"] == folds["folds"][1]["top1"]


def test_figures_are_those_of_all_images_together(folds: dict[str, Any], photos: Path) -> None:
    with np.load(folds["files"]["arrays"], allow_pickle=False) as archive:
        names, labels, targets, numbers, probabilities = (
            archive[name] for name in ("images", "labels", "targets", "folds", "probabilities")
        )
    right = probabilities.argmax(1) == targets
    assert folds["images"] == len(names) == 40
    assert folds["top1"] == right.mean()
    assert [fold["top1"] for fold in folds["folds"]] == [right[numbers == number].mean() for number in (1, 2, 3)]
    assert folds["loss"] == pytest.approx(-np.log(probabilities[np.arange(40), targets]).mean(), rel=1e-5)
    low, high = folds["top1_interval"]
    assert low < folds["top1"] <= high
    assert all(high - low < fold["top1_interval"][1] - fold["top1_interval"][0] for fold in folds["folds"])
    with open(folds["files"]["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names.tolist() == sorted(names)
    assert [row["label"] for row in rows] == labels[targets].tolist() == [name.split("/")[0] for name in names]
    assert [row["predicted"] for row in rows] == labels[probabilities.argmax(1)].tolist()
    given = [float(row["label_probability"]) for row in rows]
    np.testing.assert_allclose(given, probabilities[np.arange(40), targets], atol=1e-6)


def test_folds_write_no_network_and_no_report(folds: dict[str, Any]) -> None:
    names = {path.name for path in Path(folds["run"]).rglob("*")}
    assert not names & {"model.safetensors", "model.json", "report.html", "checkpoint"}
    assert json.loads((Path(folds["run"]) / "out-of-fold.json").read_text()) == folds


def test_codes_are_computed_once(folds: dict[str, Any]) -> None:
    logs = [(Path(folds["run"]) / f"fold-{number}" / "log.txt").read_text() for number in (2, 3)]
    assert all("40 of them were there already" in log for log in logs)


def test_finished_folds_are_kept(folds: dict[str, Any], photos: Path, trained: alexnet.Run) -> None:
    before = contents(Path(folds["run"]))
    with pytest.raises(RunError, match="already holds finished folds: name another --out") as caught:
        head_folds(photos, trained.path, Path(folds["run"]))
    one_line(caught)
    assert contents(Path(folds["run"])) == before


def test_stopped_folds_go_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second fold, of three batches: the results are those without a stop."""
    settings = {**SHORT, "train.epochs": 1, "train.precision": "float32"}

    def train(out: Path, **options: Any) -> dict[str, Any]:
        return alexnet.cross_validate(photos, **{"folds": 2, "out": out, "settings": settings, **options})

    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 4)
        with pytest.raises(Interrupted, match="stopped, everything is saved; the same command goes on"):
            train(tmp_path / "run")
    with pytest.raises(RunError, match="holds unfinished folds of another training"):
        train(tmp_path / "run", folds=3)
    result = train(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("model.*"))
    parts = [Predictions.load(Path(each["files"]["arrays"])) for each in (whole, result)]
    assert np.array_equal(parts[0].probabilities, parts[1].probabilities)
    assert parts[0].images == parts[1].images


def test_changed_images_are_noticed(
    photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    for i in range(24):
        save(root / f"{'across' if i % 2 == 0 else 'down'}" / f"{i}.png", kind=i % 2, seed=i)
    load = module.Predictions.load

    def changing(path: Path) -> Predictions:
        save(root / "down" / "new.png", kind=1, seed=99)
        return load(path)

    monkeypatch.setattr(module.Predictions, "load", changing)
    with pytest.raises(RunError, match="the images have changed since fold 1 was trained: begin anew with another --out"):
        head_folds(root, trained.path, tmp_path / "run")


def test_minutes_are_for_all_folds(photos: Path, trained: alexnet.Run, tmp_path: Path) -> None:
    result = head_folds(photos, trained.path, tmp_path / "run", folds=2, settings={**HEAD, "train.minutes": 3.0})
    minutes = [read_recipe(RunFolder(tmp_path / "run" / f"fold-{number}")).train.minutes for number in (1, 2)]
    assert minutes[0] == 1.5
    assert minutes[1] == pytest.approx(3.0 - result["folds"][0]["seconds"] / 60)


def test_a_declared_test_set_is_never_looked_at(trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    for i in range(36):
        part = "test" if i % 3 == 0 else "train"
        save(root / part / ("across" if i % 2 == 0 else "down") / f"{i}.png", kind=i % 2, seed=i)
    result = head_folds(root, trained.path, tmp_path / "run", folds=2)
    assert result["images"] == 24
    assert all(name.startswith("train/") for name in Predictions.load(Path(result["files"]["arrays"])).images)


def test_a_dataset_that_cannot_be_used_leaves_no_folder(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    for data, number in ((tmp_path / "nothing", 3), (photos, 30)):
        with pytest.raises(AlexNetError) as caught:
            head_folds(data, trained.path, tmp_path / "run", folds=number)
        one_line(caught)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [1, 0, 2.5])
def test_folds_are_two_or_more(number: Any, photos: Path) -> None:
    with pytest.raises(AlexNetError, match=f"folds is {number}, but should be a whole number, 2 or more"):
        alexnet.cross_validate(photos, folds=number)


def test_folds_by_the_command_line(photos: Path, trained: alexnet.Run, tmp_path: Path) -> None:
    options = ["--recipe", "head", "--weights", trained.path, "--folds", 2, "--minutes", 8, "--out", tmp_path / "run"]
    done = command("train", photos, *options, "--set", "train.precision=float32")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["fold", "fold", "all", "images", "doubts", "train"]
    assert lines[-1].endswith(
        f"--recipe head --weights {trained.path} --minutes 4 --set train.precision=float32 --set data.test=0"
    )
    assert "one process" in command("train", photos, "--folds", 2, "--processes", 2, code=2).stderr
    assert "keeps its recipe" in command("train", "--resume", tmp_path / "run", "--folds", 2, code=2).stderr


def test_damaged_predictions_are_refused(folds: dict[str, Any], tmp_path: Path) -> None:
    content = Path(folds["files"]["arrays"]).read_bytes()
    for number, damaged in enumerate((b"", content[:-9], b"PK" + content[40:])):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read") as caught:
            Predictions.load(path)
        one_line(caught)
