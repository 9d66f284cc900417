"""Import from Keras: either a run folder that predicts as Keras does, or a one-line error and no folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alexnet
from alexnet.errors import AlexNetError, RecipeError, RunError, VariantError, WeightsError, shell_quote
from alexnet.recipe import names as recipe_names
from alexnet.run import find, read_recipe
from commands import error, run
from keras_layouts import WIDTH, keras, keras_logits, model, older_model, weights_h5

PREPARED = {"images.cache_size": 227, "images.mean": [0.5, 0.5, 0.5], "images.std": [0.25, 0.25, 0.25]}
IMPORT: dict[str, Any] = {"recipe": "fast", "settings": {**PREPARED, "model.width": WIDTH}}


def test_an_imported_run_predicts_what_keras_would(tmp_path: Path) -> None:
    layers = model("cats-dogs", 2)
    keras(tmp_path / "x.keras", layers)
    out = alexnet.import_weights(
        tmp_path / "x.keras", variant="cats-dogs", classes=["cat", "dog"], out=tmp_path / "run", **IMPORT
    )
    image = np.random.default_rng(2).integers(0, 256, (227, 227, 3), np.uint8)
    logits = keras_logits("cats-dogs", layers, (image / 255 - 0.5) / 0.25)
    expected = dict(zip(("cat", "dog"), np.exp(logits) / np.exp(logits).sum(), strict=True))
    (answer,) = alexnet.load(out).predict([image])
    found = {guess["label"]: guess["probability"] for guess in answer["predictions"]}
    assert found == pytest.approx(expected, abs=0.01)  # bfloat16, if the processor supports it
    with pytest.raises(RunError, match="nothing to resume"):
        alexnet.resume(out)


@pytest.mark.parametrize(
    ("dataset", "count", "labels"),
    [
        ("cifar10", 10, ["airplane", "automobile", "bird", "cat"]),
        ("fashion-mnist", 10, ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]),
        ("cifar10", 3, ["0", "1", "2"]),
        ("digits", 10, list("0123456789")),
    ],
)
def test_labels_default_to_the_datasets_if_the_count_matches(
    dataset: str, count: int, labels: list[str], tmp_path: Path
) -> None:
    weights_h5(tmp_path / "x.h5", model(classes=count))
    settings = {**IMPORT["settings"], "data.dataset": dataset}
    out = alexnet.import_weights(tmp_path / "x.h5", variant="cifar10", recipe="fast", settings=settings, out=tmp_path / "run")
    found = json.loads((out / "model.json").read_text())["labels"]
    assert len(found) == count
    assert found[: len(labels)] == labels


def test_the_input_is_the_variants_and_the_recipe_that_of_its_name_or_fast(tmp_path: Path) -> None:
    weights_h5(tmp_path / "x.h5", model("annotated"))
    out = alexnet.import_weights(tmp_path / "x.h5", variant="annotated", settings=IMPORT["settings"], out=tmp_path / "run")
    recipe = read_recipe(find(out))
    assert recipe.name == ("annotated" if "annotated" in recipe_names() else "fast")
    assert (recipe.model.variant, recipe.images.input) == ("annotated", 224)


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        ({"classes": ["a", "b"]}, WeightsError, r"x.h5 has 10 outputs, but --classes names 2: 'a', 'b'"),
        ({"classes": ["a"] * 10}, WeightsError, "10 different names"),
        ({"variant": "cifar"}, VariantError, "did you mean 'cifar10'"),
        ({"recipe": "fats"}, RecipeError, "did you mean 'fast'"),
        ({"variant": "cifar10-1x1"}, WeightsError, "conv4 .* it fits the variant 'cifar10'"),
        ({"settings": {}}, RecipeError, r"images.cache_size, images.mean, images.std on .* --set images.cache_size=256"),
        (
            {"settings": {**PREPARED, "images.cache_size": "auto"}},
            RecipeError,
            r"measures images.cache_size on .* --set images.cache_size=",
        ),
        ({"settings": {**PREPARED, "images.size": 3}}, RecipeError, "no setting 'images.size'"),
        ({"settings": PREPARED}, WeightsError, "fits at model.width=0.0625"),
    ],
)
def test_failed_import_is_one_line_and_leaves_no_folder(
    change: dict[str, Any], kind: type[AlexNetError], line: str, tmp_path: Path
) -> None:
    weights_h5(tmp_path / "x.h5", model())
    with pytest.raises(kind, match=line) as caught:
        alexnet.import_weights(tmp_path / "x.h5", **{"variant": "cifar10", "out": tmp_path / "run", **IMPORT, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_output_and_a_million_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    weights_h5(tmp_path / "x.h5", model(classes=1))
    with pytest.raises(WeightsError, match=r"has 1 output; .* at least 2"):
        alexnet.import_weights(tmp_path / "x.h5", variant="cifar10", out=tmp_path / "run", **IMPORT)
    layers = model()
    layers[-1] = ("dense", [np.zeros((1, 10**6), np.float32), np.zeros(10**6, np.float32)])
    weights_h5(tmp_path / "x.h5", layers)
    with pytest.raises(WeightsError, match="1x1000000, but fc8"):
        alexnet.import_weights(tmp_path / "x.h5", variant="cifar10", out=tmp_path / "run", **IMPORT)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    weights_h5(tmp_path / "x.h5", model())
    with pytest.raises(RunError, match="not empty: name another --out"):
        alexnet.import_weights(tmp_path / "x.h5", variant="cifar10", out=tmp_path, **IMPORT)
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_the_command_leaves_a_run_and_says_how_to_predict(tmp_path: Path) -> None:
    older_model(tmp_path / "x.h5", model("cats-dogs", 2))
    sets = [part for key, value in IMPORT["settings"].items() for part in ("--set", f"{key}={value}")]
    command = ["import", tmp_path / "x.h5", "--variant", "cats-dogs", "--recipe", "fast", "--out", tmp_path / "run"]
    assert "--set images.mean=" in error(*command)
    done = run(*command, *sets, "--classes", "cat, dog")
    assert done.stdout == f"predict     alexnet predict {shell_quote(tmp_path / 'run')} IMAGE…\n"
    assert alexnet.load(tmp_path / "run").labels == ("cat", "dog")
