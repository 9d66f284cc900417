"""A run folder of version 0.1, made before recipe keys were renamed, still opens; recipes with old keys are refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import alexnet
from alexnet import api
from alexnet.convert.pretrained import settings_from_weights
from alexnet.errors import AlexNetError
from alexnet.files import sha256
from alexnet.recipe import RENAMED, parse, rename_keys
from alexnet.run import RunFolder, read_recipe
from alexnet.training import checkpoint
from commands import error
from conftest import TINY, in_float32, stop_after

# `alexnet train digits --set model.width=0.004 --set train.epochs=1`, without its report and TensorBoard's file.
GOLDEN = Path(__file__).parent / "golden" / "run-0.1"
VALUES = {  # values of old keys, as TOML; the other keys are switches
    **{"stored": "8", "levels": "1", "deviation": "0.5", "enlarge": "1", "batch": "62", "rate": "0.5", "muon": "0.5"},
    **{"rate_factors": "{fc6 = 0.5}", "grow": "[[0.5, 0.5]]"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


@pytest.fixture
def run(path: Path) -> alexnet.Run:
    return in_float32(alexnet.load(path))


def old_setting(key: str) -> str:
    """Return TOML that sets an old key, in the form that `--set` takes too."""
    section, *rows, name = key.split(".")
    value = VALUES.get(name, "true")
    return f"{section}.table = [{{epoch = 1, {name} = {value}}}]" if rows else f"{key} = {value}"


def test_golden_weights_are_unchanged() -> None:
    assert sha256(GOLDEN / "model.safetensors") == json.loads((GOLDEN / "model.json").read_text())["sha256"]


def test_earlier_run_has_its_recipe_and_preprocessing_under_new_names(run: alexnet.Run) -> None:
    old = tomllib.loads((GOLDEN / "recipe.toml").read_text())
    images, preprocessing = json.loads((GOLDEN / "model.json").read_text())["preprocessing"], run.config.preprocessing
    for source in (old["images"], images):
        for name, value in source.items():
            new = RENAMED.get(f"images.{name}", f"images.{name}").removeprefix("images.")
            assert getattr(preprocessing, new) == (tuple(value) if isinstance(value, list) else value), name
    assert run.recipe.images == preprocessing
    assert run.recipe.model.whitening_init is old["model"]["whiten"]
    assert run.recipe.augment.alternating_flip is old["augment"]["alternate"]
    assert run.recipe.train.batch_size == old["train"]["batch"]
    optimizer, schedule = run.recipe.optimizer, run.recipe.schedule
    assert (optimizer.lr, optimizer.muon_lr) == (old["optimizer"]["rate"], old["optimizer"]["muon"])
    assert optimizer.lr_scale == old["optimizer"]["rate_factors"]
    assert schedule.progressive_resize == tuple(map(tuple, old["schedule"]["grow"]))


def test_earlier_run_predicts_and_evaluates_as_it_did(run: alexnet.Run) -> None:
    """These metrics were computed by version 0.1 in float32; one wrong preprocessing setting changes the loss by 0.007."""
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    [answer] = run.predict(np.stack([ramp] * 3, axis=-1), top=2)
    assert [prediction["label"] for prediction in answer["predictions"]] == ["3", "6"]
    assert [prediction["probability"] for prediction in answer["predictions"]] == pytest.approx([0.1318, 0.1162], abs=1e-3)
    evaluation, summary = run.evaluate("digits", split="val"), run.summary["validation"]
    assert len(evaluation.targets) == summary["images"]
    assert evaluation.loss == pytest.approx(2.3085, abs=1e-3)
    # The metrics in the summary were computed in bfloat16.
    assert evaluation.loss == pytest.approx(summary["loss"], abs=2e-3)
    assert evaluation.top1 == pytest.approx(summary["top1"], abs=3.5 / summary["images"])


def test_earlier_run_gets_a_report_and_is_compared(run: alexnet.Run, path: Path) -> None:
    assert "2.31" in run.report().read_text(encoding="utf-8")
    comparison = api.compare([path, path])
    assert comparison["settings"] == {}
    assert [row["loss"] for row in comparison["runs"]] == [run.summary["test"]["loss"]] * 2


@pytest.mark.long
def test_earlier_run_with_local_response_norm_has_it_after_each_convolution(tmp_path: Path, photos: Path) -> None:
    """`model.norm = "local"` meant every norm of the variant; model.json had version 1, and checkpoints had version 2."""
    settings = {**TINY, "model.norm": "local-each", "train.epochs": 1, "train.batch_size": 8}
    run = alexnet.train(photos, out=tmp_path / "run", settings=settings)
    expected = run.predict(photos)
    content = json.loads((run.path / "model.json").read_text())
    earlier = {**content, "version": 1, "overrides": {**content["overrides"], "norm": "local"}}
    (run.path / "model.json").write_text(json.dumps(earlier))
    assert alexnet.load(run.path).predict(photos) == expected
    assert api.load_recipe("fast").with_settings(settings_from_weights(str(run.path))).model.norm == "local-each"

    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "train_step", 2)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(photos, out=tmp_path / "stopped", settings={**settings, "model.norm": "local"})
    tensors, state = checkpoint.read(tmp_path / "stopped") or pytest.fail("no checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 2)
        checkpoint.write(tmp_path / "stopped", tensors, state)
    with pytest.raises(AlexNetError, match="written by another version"):
        alexnet.resume(tmp_path / "stopped")


def test_earlier_checkpoint_with_another_norm_and_without_new_keys_is_resumed(tmp_path: Path, photos: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 2)
        stop_after(patch, "train_step", 2)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(photos, out=tmp_path / "stopped", settings={**TINY, "train.epochs": 1, "train.batch_size": 8})
        tensors, state = checkpoint.read(tmp_path / "stopped") or pytest.fail("no checkpoint")
        lines = state["recipe"].splitlines()
        state["recipe"] = "\n".join(line for line in lines if line.partition(" ")[0] != "average")
        assert len(state["recipe"].splitlines()) == len(lines) - 1
        checkpoint.write(tmp_path / "stopped", tensors, state)
    assert alexnet.resume(tmp_path / "stopped").summary["epochs"] == 1


def test_earlier_recipe_is_refused_by_a_new_key_in_one_line(path: Path, tmp_path: Path) -> None:
    message = error("train", "--recipe", path / "recipe.toml", "--out", tmp_path / "out")
    assert message.endswith("no setting 'model.whiten': it is now called 'model.whitening_init'")


@pytest.mark.parametrize("key", RENAMED)
def test_renamed_key_is_refused_by_its_new_name(key: str, tmp_path: Path) -> None:
    file, expected = tmp_path / "old.toml", f"it is now called {RENAMED[key]!r}"
    file.write_text(old_setting(key))
    assert error("train", "digits", "--recipe", file, "--out", tmp_path / "out").endswith(expected)
    assert error("train", "digits", "--set", old_setting(key), "--out", tmp_path / "out").endswith(expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", RENAMED)
def test_rename_keys_maps_an_old_key_to_a_known_one(key: str) -> None:
    tree = rename_keys(tomllib.loads(f"{old_setting(key)}\nschedule.kind = 'constant'"))
    parse(tree, "recipe")
    section, *rows, name = RENAMED[key].split(".")
    assert (tree[section]["table"][0] if rows else tree[section]).keys() >= {name}


@pytest.mark.parametrize(
    ("text", "key"),
    [("data = 3", "data"), ("[schedule]\ntable = 3", "schedule.table"), ("[schedule]\ntable = ['x']", "schedule.table")],
)
def test_damaged_recipe_of_a_run_names_its_key(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(AlexNetError, match=rf"recipe\.toml: {key}"):
        read_recipe(RunFolder(tmp_path))
