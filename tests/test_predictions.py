"""Predictions image by image, and several runs that answer together."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import alexnet
from alexnet.errors import DataError
from alexnet.inference.predictions import COLUMNS
from commands import error, run
from conftest import SEED, SHORT


@pytest.fixture(scope="module")
def seeds(photos: Path, short: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ by seed; read-only."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in (1, 2):
        alexnet.train(photos, out=folder / str(seed), settings={**SHORT, "train.seed": SEED + seed})
    return [short, folder / "1", folder / "2"]


def read(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV text."""
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_per_image_adds_up_to_the_summary(short: Path) -> None:
    summary = alexnet.load(short).summary
    rows = read((short / "predictions.csv").read_text())
    assert tuple(rows[0]) == COLUMNS
    for split, name in (("val", "validation"), ("test", "test")):
        own = [row for row in rows if row["split"] == split]
        assert len(own) == summary[name]["images"]
        assert np.mean([row["label"] == row["predicted"] for row in own]) == summary[name]["top1"]
        assert np.mean([float(row["loss"]) for row in own]) == pytest.approx(summary[name]["loss"], rel=1e-6)
    assert {row["split"] for row in rows} == {"val", "test"}


def test_rows_are_what_predict_says(short: Path, photos: Path) -> None:
    rows = read(run("evaluate", short, "--csv").stdout)
    answers = alexnet.load(short).predict([photos / row["image"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        first = answer["predictions"][0]
        assert row["predicted"] == first["label"]
        assert float(row["probability"]) == pytest.approx(first["probability"], abs=0.01)  # bfloat16
        assert row["image"].startswith(row["label"])


def test_csv_of_a_split_of_all_images(short: Path, photos: Path) -> None:
    assert {row["split"] for row in read(run("evaluate", short, photos, "--csv").stdout)} == {"all"}
    assert {row["split"] for row in read(run("evaluate", short, "--split", "train", "--csv").stdout)} == {"train"}
    assert "--json and --csv" in run("evaluate", short, "--csv", "--json", code=2).stderr


def test_runs_together_average_probabilities(seeds: list[Path]) -> None:
    alone = [alexnet.load(path).evaluate() for path in seeds]
    together = alexnet.evaluate(seeds)
    mean = np.mean([torch.from_numpy(one.logits).double().softmax(1).numpy() for one in alone], axis=0)
    np.testing.assert_allclose(together.probabilities, mean, rtol=1e-5)
    assert together.temperature == 1
    assert together.images == alone[0].images
    assert json.loads(run("evaluate", *seeds, "--json").stdout) == together.to_json()
    assert together.loss <= np.mean([one.loss for one in alone])  # by Jensen's inequality


def test_one_run_is_itself_and_the_last_name_may_be_a_dataset(seeds: list[Path], photos: Path) -> None:
    own = alexnet.load(seeds[0]).evaluate(photos)
    assert alexnet.evaluate(seeds[:1], photos).to_json() == own.to_json()
    assert json.loads(run("evaluate", seeds[0], photos, "--json").stdout) == own.to_json()
    two = json.loads(run("evaluate", *seeds[:2], photos, "--json").stdout)
    assert two == alexnet.evaluate(seeds[:2], photos).to_json()
    assert two["images"] == own.to_json()["images"]


def test_runs_that_cannot_answer_together(seeds: list[Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name one or more"):
        alexnet.evaluate([])
    assert "no dataset" in error("evaluate", *seeds[:2], tmp_path / "nothing")
    alexnet.train(photos, out=tmp_path / "split", settings={**SHORT, "data.split_seed": 5})
    assert "has another split than" in error("evaluate", seeds[0], tmp_path / "split")
    alexnet.evaluate([seeds[0], tmp_path / "split"], photos)
    shutil.copytree(photos, tmp_path / "photos")
    alexnet.train(tmp_path / "photos", out=tmp_path / "copy", settings=SHORT)  # its images have the same names
    assert "were trained on other datasets: name the one to evaluate on" in error("evaluate", seeds[0], tmp_path / "copy")
    alexnet.evaluate([seeds[0], tmp_path / "copy"], photos)
    assert alexnet.compare([seeds[0], tmp_path / "copy"])["runs"][1]["paired"] is None
    (tmp_path / "photos" / "down").rename(tmp_path / "photos" / "up")
    alexnet.train(tmp_path / "photos", out=tmp_path / "labels", settings=SHORT)
    assert "has other labels than" in error("evaluate", seeds[0], tmp_path / "labels")
