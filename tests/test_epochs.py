"""The weights of single epochs (`train.save_epochs`): evaluate, predict and train from them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

import alexnet
from alexnet.errors import AlexNetError
from alexnet.report.over_training import saved_points
from alexnet.run import find
from commands import error, run
from conftest import SHORT, metrics, mostly_long, stop_after

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


@mostly_long("save_steps", ["log", (0, 3, 4, 7)], "log")
def test_weights_after_a_step_are_those_of_a_training_stopped_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: object
) -> None:
    settings = {**SETTINGS, "train.save_steps": save_steps}
    whole = alexnet.train(photos, out=tmp_path / "whole", settings=settings)
    expected = [0, 1, 2, 4, 8] if save_steps == "log" else [0, 3, 4, 7]
    files = sorted(path.stem for path in (whole.path / "epochs").glob("step-*"))
    assert files == [f"step-{steps:08}" for steps in expected]
    for steps in expected[1:3]:
        with monkeypatch.context() as patch:
            stop_after(patch, "train_step", steps)
            with pytest.raises(AlexNetError, match="resume with"):
                alexnet.train(photos, out=tmp_path / f"{steps}", settings=SETTINGS)
        stopped = safetensors.torch.load_file(tmp_path / f"{steps}" / "checkpoint" / "last" / "state.safetensors")
        kept = alexnet.load(f"{whole.path}@{steps}").network.state_dict()
        for name, tensor in kept.items():
            assert (stopped[f"network/{name}"] == tensor).all(), name
    before = alexnet.load(f"{whole.path}@0").evaluate(split="val").loss
    assert before != whole.evaluate(split="val").loss
    resumed = tmp_path / f"{expected[2]}"
    alexnet.resume(resumed)
    assert (resumed / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_points_of_a_training_are_named_after_an_at_sign(kept: Path, photos: Path, tmp_path: Path) -> None:
    of_epoch = run("evaluate", f"{kept}@epoch2", "--split", "val", "--json").stdout
    assert of_epoch == run("evaluate", epoch(kept, 2), "--split", "val", "--json").stdout
    out = error("evaluate", f"{kept}@epoch9")
    assert "no such weights" in out
    assert "'cp-0001', 'cp-0002', 'cp-0003'" in out
    assert "no such weights" in error("evaluate", f"{kept}@7")
    assert "no such weights" in error("evaluate", kept, f"{kept}@7")
    copy = Path(shutil.copytree(kept, tmp_path / "me@home"))
    assert alexnet.load(copy).path == copy
    alexnet.train(photos, out=tmp_path / "more", weights=f"{kept}@epoch1", settings={**SHORT, "train.epochs": 1})


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


# Over training


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run that kept the weights of its three epochs, of three or four steps each, and of steps; read-only."""
    settings = {**SETTINGS, "train.save_steps": "log"}
    return alexnet.train(photos, out=tmp_path_factory.mktemp("watched") / "run", settings=settings).path


def test_over_training_evaluates_all_saved_weights_in_order(watched: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(watched, tmp_path / "run"))
    whole = alexnet.load(copy)
    result = whole.over_training(split="val")
    names = [Path(point["weights"]).stem for point in result["points"]]
    per_epoch = len(metrics(copy)) and -(-int(metrics(copy)[0]["images"]) // whole.recipe.train.batch_size)
    ends = {f"cp-{number:04}": number * per_epoch for number in (1, 2, 3)}
    expected = {**{f"step-{step:08}": step for step in (0, 1, 2, 4, 8)}, **ends, "run": 3 * per_epoch}
    assert {name: point["step"] for name, point in zip(names, result["points"], strict=True)} == expected
    assert [point["step"] for point in result["points"]] == sorted(expected.values())
    assert names[-1] == "run"
    for point in result["points"]:
        alone = alexnet.load(point["weights"]).evaluate(split="val").to_json()
        assert {key: point[key] for key in ("top1", "top1_interval", "loss")} == {
            key: alone[key] for key in ("top1", "top1_interval", "loss")
        }
        assert point["epoch"] == pytest.approx(point["step"] / per_epoch)
    for number, row in enumerate(metrics(copy), 1):
        point = result["points"][names.index(f"cp-{number:04}")]
        assert point["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert (result["split"], result["images"]) == ("val", len(whole.evaluate(split="val").targets))
    with Image.open(result["figure"]) as image:
        assert min(image.size) > 300
    assert Path(result["figure"]) == copy / "over-training.png"


def test_over_training_of_an_epoch_that_the_clock_cut_short(watched: Path, tmp_path: Path) -> None:
    """Steps are counted by images, as `metrics.csv` has them."""
    copy = Path(shutil.copytree(watched, tmp_path / "run"))
    table = (copy / "metrics.csv").read_text().splitlines()
    images = int(metrics(copy)[0]["images"])
    cut = table[3].replace(f"3,{images},", "3,8,")
    assert cut != table[3]
    (copy / "metrics.csv").write_text("\n".join([*table[:3], cut]) + "\n")
    points = {point.path.stem: point.step for point in saved_points(find(copy))}
    whole = {point.path.stem: point.step for point in saved_points(find(watched))}
    assert points["cp-0003"] == points["cp-0002"] + 1 < whole["cp-0003"]


@pytest.mark.long
def test_over_training_command(watched: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(watched, tmp_path / "run"))
    result = json.loads(run("evaluate", copy, "--over-training", "--json").stdout)
    assert result == alexnet.load(f"{copy}@epoch1").over_training(), "of the whole run"
    lines = run("evaluate", copy, "--over-training").stdout.splitlines()
    assert len(lines) == len(result["points"]) + 2
    assert f"{result['points'][-1]['loss']:.4f}  kept" in lines[-2]
    rows = list(csv.DictReader(run("evaluate", copy, "--over-training", "--csv").stdout.splitlines()))
    assert [float(row["top1_low"]) for row in rows] == [point["top1_interval"][0] for point in result["points"]]
    run("evaluate", copy, copy, "--over-training", code=2)


def test_over_training_errors_are_one_line(short: Path, watched: Path, tmp_path: Path) -> None:
    assert error("evaluate", short, "--over-training").endswith(
        f"{short} saved no weights on the way: train with --set train.save_steps=log"
    )
    copy = Path(shutil.copytree(watched, tmp_path / "run"))
    (copy / "over-training.png").write_bytes(b"mine")
    assert "was not made by alexnet" in error("evaluate", copy, "--over-training")
    (copy / "summary.json").write_text("{}")
    assert "summary.json is damaged" in error("evaluate", copy, "--over-training")


def test_a_fitted_head_is_saved_as_epoch_0(photos: Path, tmp_path: Path, watched: Path) -> None:
    settings = {**SETTINGS, "model.fit_head": True, "train.epochs": 1}
    fitted = alexnet.train(photos, out=tmp_path / "run", weights=watched, settings=settings)
    assert [(point.path.stem, point.step) for point in saved_points(find(fitted.path))][:1] == [("cp-0000", 0)]
    (first, *_) = metrics(fitted.path)
    assert alexnet.load(f"{fitted.path}@epoch0").evaluate(split="val").loss == pytest.approx(float(first["val_loss"]), rel=1e-4)
