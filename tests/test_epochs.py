"""The weights of single epochs (`train.save_epochs`): evaluate, predict and train from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

import alexnet
from alexnet.errors import AlexNetError
from commands import error, run
from conftest import SHORT, metrics, stop_after

SETTINGS = {**SHORT, "train.save_epochs": "cp-{epoch:04d}", "train.keep": "last", "train.precision": "float32"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run that kept the weights of its three epochs; read-only."""
    settings = {**SETTINGS, "images.mean": "image", "model.activation": "tanh"}
    return alexnet.train(photos, out=tmp_path_factory.mktemp("kept") / "run", settings=settings).path


def epoch(folder: Path, number: int) -> Path:
    return folder / "epochs" / f"cp-{number:04}.safetensors"


def test_evaluate_weights_of_each_epoch(kept: Path) -> None:
    for number, row in enumerate(metrics(kept), 1):
        result = json.loads(run("evaluate", epoch(kept, number), "--split", "val", "--json").stdout)
        assert result["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
        assert result["top1"] == float(row["val_top1"])


def test_predict_with_weights_of_an_epoch(kept: Path, photos: Path, tmp_path: Path) -> None:
    image = sorted(photos.rglob("*.png"))[0]
    whole, early, last = (alexnet.load(path) for path in (kept, epoch(kept, 1), epoch(kept, 3)))
    assert [opened.path for opened in (early, last)] == [kept, kept]
    expected, before, after = (opened.features(image)["fc7"] for opened in (whole, early, last))
    assert after == pytest.approx(expected, abs=1e-4)
    assert before != pytest.approx(expected, abs=1e-4)
    assert "tanh1" in early.network.layer_names, "the recipe changed the variant"
    [printed] = json.loads(run("predict", epoch(kept, 1), image, "--json").stdout)
    assert printed["predictions"] == early.predict(image)[0]["predictions"]


def test_train_from_weights_of_an_epoch(kept: Path, photos: Path, tmp_path: Path) -> None:
    run("train", photos, "--weights", epoch(kept, 2), "--out", tmp_path / "run", "--epochs", 1, "--set", "optimizer.frozen=fc7",
        "--set", "images.input=67")  # fmt: skip
    recipe = alexnet.load(tmp_path / "run").recipe
    assert (recipe.model.width, recipe.model.activation, recipe.model.weights) == (1 / 16, "tanh", str(epoch(kept, 2)))
    before, after = (safetensors.torch.load_file(path) for path in (epoch(kept, 2), tmp_path / "run" / "model.safetensors"))
    assert (after["features.conv5.weight"] == before["features.conv5.weight"]).all()


def test_weights_of_an_epoch_of_a_stopped_training(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run with `keep = "last"` has no model.json yet."""
    stop_after(monkeypatch, "train_step", 6)
    with pytest.raises(AlexNetError, match="resume with"):
        alexnet.train(photos, out=tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run" / "model.json").exists()
    assert alexnet.load(epoch(tmp_path / "run", 1)).labels == ("across", "down")


def test_weights_of_an_epoch_from_an_earlier_version(kept: Path, tmp_path: Path) -> None:
    """They have no metadata: model.json of the run describes the network."""
    copy = Path(shutil.copytree(kept, tmp_path / "run"))
    tensors = safetensors.torch.load_file(epoch(kept, 2))
    safetensors.torch.save_file(tensors, epoch(copy, 2))
    expected, result = (alexnet.load(epoch(folder, 2)) for folder in (kept, copy))
    assert result.config.temperature == 1.0
    assert result.evaluate(split="val").loss == expected.evaluate(split="val").loss
    del tensors["mean_image"]
    safetensors.torch.save_file(tensors, epoch(copy, 2))
    with pytest.raises(AlexNetError, match="has no mean image"):
        alexnet.load(epoch(copy, 2))


def test_report_is_of_the_run_not_of_an_epoch(kept: Path) -> None:
    before = (kept / "report.html").read_bytes()
    assert error("report", epoch(kept, 1)).endswith(f"a report is of a whole run: alexnet report {kept}")
    assert (kept / "report.html").read_bytes() == before


def test_damaged_or_misplaced_weights_of_an_epoch_are_one_line(kept: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(kept, tmp_path / "run"))
    epoch(copy, 1).write_bytes(epoch(copy, 1).read_bytes()[:-100])
    assert "cp-0001.safetensors" in error("evaluate", epoch(copy, 1))
    alone = Path(shutil.copy(epoch(kept, 2), tmp_path))
    assert f"{alone} is a file: name a run folder, or a file in its epochs/" in error("evaluate", alone)
    assert error("evaluate", epoch(kept, 9)).endswith("cp-0009.safetensors: no such file")
    assert error("train", "--resume", epoch(kept, 1)).endswith("cp-0001.safetensors is a file, not a run folder")


@pytest.mark.parametrize("part", ["config", "variant", "sha256", "dtype", "values"])
def test_weights_of_an_epoch_with_a_flipped_bit_are_refused(kept: Path, tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(kept, tmp_path / "run"))
    content = bytearray(epoch(copy, 1).read_bytes())
    content[len(content) - 100 if part == "values" else content.index(part.encode())] ^= 1
    epoch(copy, 1).write_bytes(content)
    expected = "is damaged: the SHA-256 of its weights differs" if part == "values" else "cannot be"
    for use in (["evaluate"], ["train", copy, "--out", tmp_path / "more", "--weights"]):
        assert f"cp-0001.safetensors {expected}" in error(*use, epoch(copy, 1))


def test_results_of_epochs_are_kept_apart(kept: Path, photos: Path, tmp_path: Path) -> None:
    copy, image = Path(shutil.copytree(kept, tmp_path / "run")), sorted(photos.rglob("*.png"))[0]
    for path in (epoch(copy, 1), copy):
        opened = alexnet.load(path)
        list(opened.explain(image))
        opened.index(photos)
    nearest = [alexnet.load(path).search(image, 1)[0]["neighbours"][0] for path in (epoch(copy, 1), copy)]
    assert nearest[0]["distance"] != nearest[1]["distance"]
    expected = {"explain", "explain-cp-0001", "search", "search-cp-0001"}
    assert {path.name for path in copy.iterdir()} >= expected
