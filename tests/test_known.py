"""Images of none of the classes: the score against NumPy in float64, the threshold, and what all commands say."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import orth
from scipy.special import logsumexp

import alexnet
from alexnet.data.sources import open_table
from alexnet.data.table import sample_by_class
from alexnet.errors import RunError
from alexnet.files import sha256
from alexnet.network.known import LARGEST, VARIANCE, fit_known
from alexnet.recipe import Data
from alexnet.run import RunFolder, load_model, read_recipe, save_model
from alexnet.training import known as finishing
from commands import error, run
from conftest import SHORT


def codes(count: int, units: int, rank: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return codes of three classes, as they are after an activation, of about this rank."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    spread = rng.normal(size=(count, rank)) * np.geomspace(3, 0.1, rank)
    means = np.abs(rng.normal(size=(3, units))) * 4
    x = means[targets] + spread @ rng.normal(size=(rank, units)) / np.sqrt(units) + 0.01 * rng.normal(size=(count, units))
    return np.maximum(x, 0).astype(np.float32), targets


@pytest.mark.parametrize(("count", "units", "rank"), [(200, 64, 8), (40, 300, 20), (400, 512, 300)])
def test_scores_equal_numpy(count: int, units: int, rank: int) -> None:
    x, targets = codes(count, units, rank)
    known = fit_known(x, targets, 4)  # nothing of the last class
    new, logits = codes(30, units, rank, seed=1)[0], np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32) * 5
    found = known(torch.from_numpy(new), torch.from_numpy(logits)).numpy()

    mean = x.astype(np.float64).mean(0)
    _, singular, axes = np.linalg.svd(x - mean, full_matrices=False)
    explained = np.cumsum(singular**2) / (singular**2).sum()
    dimensions = len(known.basis)
    assert dimensions == LARGEST or explained[dimensions - 1] >= VARIANCE - 1e-6
    assert dimensions == 1 or explained[dimensions - 2] < VARIANCE + 1e-6, "no more than needed"
    basis = orth(axes[:dimensions].T)
    outside = (new - mean) - (new - mean) @ basis @ basis.T
    means = np.stack([x[targets == c].astype(np.float64).mean(0) for c in range(3)])
    cosines = new @ means.T / np.linalg.norm(new, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    expected = np.stack([logsumexp(logits, 1), -np.linalg.norm(outside, axis=1), cosines.max(1)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


SCORES = st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3), min_size=1, max_size=60).map(
    lambda rows: np.array(rows, np.float32)
)


@given(SCORES)
def test_at_least_95_percent_of_the_validation_images_are_known(scores: NDArray[np.float32]) -> None:
    known = fit_known(*codes(20, 8, 3), 3)
    known.calibrate(scores)
    passed = known.margins_of(scores) >= -1e-3 * (1 + np.abs(known.threshold.item()))  # rounding of the sum to float32
    assert passed.mean() >= 0.95


@given(st.integers(0, 1000))
def test_counterexamples_give_the_threshold_with_the_fewest_mistakes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, other = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(-1, 1, size=(25, 3)).astype(np.float32)
    known = fit_known(*codes(20, 8, 3), 3)
    known.calibrate(own, other)
    ours, theirs = ((x / own.astype(np.float64).std(0)).sum(1) for x in (own, other))
    mistakes = [(ours < t).mean() + (theirs >= t).mean() for t in (*ours, *theirs) if (ours >= t).mean() >= 0.9]
    near = 1e-4  # thresholds are kept in float32
    found = (ours < known.threshold.item() - near).mean() + (theirs >= known.threshold.item() + near).mean()
    assert found <= min(mistakes) + 1e-9
    assert (ours >= known.threshold.item() - near).mean() >= 0.9


def test_all_codes_equal_and_a_score_that_never_changes() -> None:
    x, targets = np.ones((6, 5), np.float32), np.arange(6) % 2
    known = fit_known(x, targets, 2)
    scores = known(torch.from_numpy(x), torch.zeros(6, 2)).numpy()
    known.calibrate(scores)
    assert (known.margins_of(scores) >= 0).all()
    assert np.isfinite(known.margins_of(scores)).all()


def test_a_run_says_what_it_knows(trained: alexnet.Run, photos: Path) -> None:
    answers = trained.predict(sorted(photos.rglob("*.png"))[:6] or sorted(photos.rglob("*.*"))[:6])
    assert all(type(answer["known"]) is bool for answer in answers)
    validation = trained.evaluate(split="val")
    assert validation.margins is not None
    assert (validation.margins >= 0).mean() >= 0.95
    found = trained.summary["validation"]["known"]
    assert found == {"images": 4, "share": 1.0, "top1": trained.summary["validation"]["top1"]}
    state = safetensors.torch.load_file(trained.path / "model.safetensors")
    assert {name for name in state if name.startswith("known.")} == {
        "known.mean", "known.basis", "known.directions", "known.spread", "known.threshold"
    }  # fmt: skip


def strange(trained: alexnet.Run, folder: Path, threshold: float) -> alexnet.Run:
    """Return a copy of a run with another threshold."""
    network, config = load_model(RunFolder(trained.path), torch.device("cpu"))
    shutil.copytree(trained.path, folder)
    config.known.threshold.fill_(threshold)
    save_model(RunFolder(folder), network, config)
    return alexnet.load(folder, "cpu")


def test_every_output_names_an_unknown_image(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    stern, image = strange(trained, tmp_path / "stern", 1e6), next(path for path in photos.rglob("*.*") if path.is_file())
    assert stern.predict(image)[0]["known"] is False
    assert json.loads(run("predict", stern.path, image, "--json").stdout)[0]["known"] is False
    assert "  unknown: perhaps none of the labels" in run("predict", stern.path, image).stdout.splitlines()
    assert "unknown" not in run("predict", trained.path, image).stdout
    rows = list(csv.DictReader(io.StringIO(run("predict", stern.path, image, "--csv").stdout)))
    assert {row["known"] for row in rows} == {"false"}
    sorted_to = [Path(row["sorted"]) for row in stern.sort(image, tmp_path / "out")]
    assert sorted_to == [tmp_path / "out" / "unsure" / image.name]


def test_with_views_probabilities_are_means(trained: alexnet.Run, photos: Path) -> None:
    image = next(path for path in photos.rglob("*.*") if path.is_file())
    array = np.asarray(Image.open(image).convert("RGB"))

    def first(found: list[dict[str, object]]) -> dict[str, float]:
        return {each["label"]: each["probability"] for each in found[0]["predictions"]}  # type: ignore[index, attr-defined]

    both = first(trained.predict(array, views=2))
    assert sum(both.values()) == pytest.approx(1)
    mirrored = first(trained.predict(np.ascontiguousarray(array[:, ::-1]), views=2))
    assert mirrored == pytest.approx(both, abs=1e-3), "an image and its mirror image have the same two views"
    with pytest.raises(alexnet.AlexNetError, match="views is 3, but should be 1, 2 or 10"):
        trained.predict(array, views=3)


def test_a_file_that_lies_about_its_size_is_one_line(trained: alexnet.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.path, copy)
    state = safetensors.torch.load_file(copy / "model.safetensors")
    for name, value in (("known.mean", torch.zeros(3)), ("known.basis", torch.zeros(2, 2)), ("known.more", torch.zeros(1))):
        safetensors.torch.save_file({**state, name: value}, copy / "model.safetensors")
        config = json.loads((copy / "model.json").read_text()) | {"sha256": sha256(copy / "model.safetensors"), "checksum": ""}
        (copy / "model.json").write_text(json.dumps(config))
        assert "does not fit model.json" in error("predict", copy, "x.png")
    safetensors.torch.save_file({k: v for k, v in state.items() if k != "known.mean"}, copy / "model.safetensors")
    (copy / "model.json").write_text(json.dumps(config | {"sha256": sha256(copy / "model.safetensors")}))
    with pytest.raises(RunError, match="does not fit"):
        alexnet.load(copy)


# Counterexamples


@pytest.fixture
def with_none(photos: Path, tmp_path: Path) -> Path:
    """The photos, and eight of something else in a folder `none`."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "none").mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "none" / f"{number}.png")
    return folder


def test_counterexamples_are_no_class(with_none: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = open_table(with_none)
    assert (table.labels, len(table)) == (("across", "down"), 40)
    assert table.unknown is not None
    assert len(table.unknown) == 8
    assert "'none' is not a class but 8 images of other things" in capsys.readouterr().err
    assert open_table(with_none, settings=Data(none_label="")).labels == ("across", "down", "none")
    shutil.rmtree(with_none / "down")
    assert open_table(with_none).labels == ("across", "none"), "as there is only one other"
    assert "'none' is a class here" in capsys.readouterr().err


def test_damaged_counterexamples_are_named(with_none: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (with_none / "none" / "bad.png").write_bytes(b"")
    assert [problem.image for problem in alexnet.check(with_none).problems if problem.kind == "empty"] == ["none/bad.png"]
    made = alexnet.train(with_none, out=tmp_path / "run", settings={**SHORT, "train.epochs": 1})
    assert made.summary["skipped"] == [{"image": "none/bad.png", "reason": "the file is empty"}]
    assert "none/bad.png: the file is empty" in capsys.readouterr().err


def test_counterexamples_set_the_threshold(with_none: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    scored = finishing._unknown_scores

    def watched(*arguments: object) -> NDArray[np.float32]:
        scores = scored(*arguments)  # type: ignore[arg-type]
        seen.append(len(scores))
        return scores

    monkeypatch.setattr(finishing, "_unknown_scores", watched)
    made = alexnet.train(with_none, out=tmp_path / "run", settings={**SHORT, "train.epochs": 2})
    assert seen == [8]
    assert made.labels == ("across", "down")
    assert made.summary["test"]["images"] == 8


def test_none_stays_a_class_of_an_earlier_run(trained: alexnet.Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    text = (trained.path / "recipe.toml").read_text()
    assert 'none_label = "none"' in text
    folder.recipe.write_text(text)
    assert read_recipe(folder).data.none_label == "none"
    folder.recipe.write_text(text.replace('none_label = "none"\n', ""))
    assert read_recipe(folder).data.none_label == ""


def test_samples_for_the_statistics_have_every_class() -> None:
    targets = np.repeat([0, 1, 2], [5000, 3, 40])
    rows = sample_by_class(targets, 100)
    assert np.bincount(targets[rows]).tolist() == [57, 3, 40]
