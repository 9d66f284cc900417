"""Damaged or hostile run files are refused in one line, or are harmless; nothing in them is executed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import alexnet
from alexnet.errors import AlexNetError
from conftest import contents, damaged, mostly_long


@pytest.fixture
def run(trained: alexnet.Run, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(trained.path, tmp_path / "run"))


def used(run: Path, photo: Path) -> Any:
    """Use a run in every way that reads its files; return its predictions."""
    opened = alexnet.load(run)
    assert opened.summary
    assert opened.recipe
    opened.report()
    return opened.predict(photo)


FILES = ["model.safetensors", "model.json", "recipe.toml", "summary.json", "metrics.csv", "environment.json"]


@mostly_long("name", FILES, "model.safetensors", "model.json", "recipe.toml")
def test_damaged_run_file_is_refused_or_harmless(run: Path, photos: Path, name: str) -> None:
    """A flipped bit may show only in a chart or a text of the report, never in a prediction."""
    rng, whole = random.Random(name), (run / name).read_bytes()
    expected = alexnet.load(run).predict(photos)
    refusals = []
    for attempt in range(30):
        (run / name).write_bytes(damaged(whole, rng, cut=attempt % 2 == 0))
        try:
            assert used(run, photos) == expected
        except AlexNetError as error:
            refusals.append(str(error))
    assert refusals
    # A damaged recipe may be valid but name another dataset, which does not exist.
    assert not [line for line in refusals if "\n" in line or not (str(run) in line or line.startswith("no dataset '"))]
    if name.startswith("model"):
        assert len(refusals) >= 28, "only changes of whitespace are accepted"


def test_metrics_without_the_epoch_that_was_kept_are_refused(run: Path) -> None:
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([lines[0], *(line.replace(line.split(",")[0], "77", 1) for line in lines[1:])]))
    with pytest.raises(AlexNetError, match=r"is damaged.* metrics\.csv has no epoch \d"):
        alexnet.load(run).report()


@pytest.mark.parametrize("name", ["model.json", "summary.json", "environment.json", "recipe.toml"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "", "\0", "x = " + "[" * 100_000])
def test_run_file_of_other_content_is_refused(run: Path, photos: Path, name: str, text: str) -> None:
    if (name, text) == ("recipe.toml", ""):
        pytest.skip("nothing in it is a recipe: all keys as they are by default")
    (run / name).write_text(text)
    with pytest.raises(AlexNetError, match=name) as caught:
        used(run, photos)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["cat", "dog\x1b[2J"]}, "control characters"),
        ({"labels": []}, "labels"),
        ({"labels": ["one", "two", "three"]}, "does not fit"),
        ({"width": 1e300}, "does not fit|cannot be used"),
        ({"temperature": 0}, "temperature"),
        ({"variant": "../../etc/passwd"}, "no variant .* define it before you load the run"),
        ({"overrides": {"__class__": "os.system"}}, "does not describe a network"),
        ({"from_the_future": 1}, "from_the_future"),
        ({"version": 4}, "written by a newer version"),
        ({"preprocessing": {"input": 67}}, "preprocessing: .*not a number"),
    ],
)
def test_hostile_model_config_is_refused(run: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((run / "model.json").read_text())
    del config["checksum"]
    (run / "model.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(AlexNetError, match=message) as caught:
        alexnet.load(run)
    assert "\n" not in str(caught.value)


def test_model_config_size_limits(run: Path) -> None:
    config = json.loads((run / "model.json").read_text())
    del config["checksum"]
    for key in ("input", "cache_size", "upscale"):
        changed = {**config, "preprocessing": {**config["preprocessing"], key: 10**9}}
        (run / "model.json").write_text(json.dumps(changed))
        with pytest.raises(AlexNetError, match=f"preprocessing.{key}"):
            alexnet.load(run)


def test_edited_model_config_needs_its_checksum_removed(run: Path, photos: Path) -> None:
    config = json.loads((run / "model.json").read_text())
    config["labels"] = ["horizontal", "vertical"]
    (run / "model.json").write_text(json.dumps(config))
    with pytest.raises(AlexNetError, match='was changed after it was written; if you changed it, remove its "checksum" too'):
        alexnet.load(run)
    del config["checksum"]
    (run / "model.json").write_text(json.dumps(config))
    assert alexnet.load(run).predict(photos / "down" / "000.png")[0]["predictions"][0]["label"] == "vertical"


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63])
def test_safetensors_header_of_wrong_length_is_refused(run: Path, length: int) -> None:
    from alexnet.files import sha256
    from alexnet.run import ModelConfig

    weights = run / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    config = ModelConfig.model_validate_json((run / "model.json").read_text()).model_copy(update={"sha256": sha256(weights)})
    (run / "model.json").write_text(config.model_copy(update={"checksum": ""}).model_dump_json())
    with pytest.raises(AlexNetError, match=r"does not fit model\.json"):
        alexnet.load(run)


OUTSIDE = [
    *('save_epochs = "../../{epoch}"', 'save_epochs = "{epoch.__class__}"'),
    *('tensorboard = "../elsewhere"', 'tensorboard = "/elsewhere"'),
]


@pytest.mark.parametrize("line", OUTSIDE)
def test_recipe_paths_stay_inside_the_run(tmp_path: Path, photos: Path, line: str) -> None:
    (tmp_path / "recipe.toml").write_text(f"[train]\n{line}\n")
    before = contents(tmp_path)
    with pytest.raises(AlexNetError, match=r"train\.(save_epochs|tensorboard)"):
        alexnet.train(photos, recipe=tmp_path / "recipe.toml", out=tmp_path / "run")
    assert contents(tmp_path) == before
