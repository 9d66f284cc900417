"""Import a network trained with Keras as a run folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet.convert.keras_weights import keras_classes, load_keras
from alexnet.data.builtin import FASHION_LABELS
from alexnet.errors import AlexNetError, RecipeError, WeightsError, format_names
from alexnet.files import write_json, write_text
from alexnet.network.alexnet import AlexNet
from alexnet.network.variants import variant as find_variant
from alexnet.recipe import Recipe, names
from alexnet.recipe import load as load_recipe
from alexnet.run import ModelConfig, create, save_model

# Names of the outputs, in the datasets' own numbering, which Keras uses too.
LABELS: dict[str, tuple[str, ...]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion-mnist": FASHION_LABELS,
}
MEASURED = ("auto", "channels", "one", "image", "image-centre")  # settings of `[images]` that are measured on a dataset
EXAMPLES = {"cache_size": "256", "mean": "0", "std": "1", "upscale": "1"}


def import_keras(
    file: str | Path,
    *,
    variant: str,
    classes: Sequence[str] | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path,
) -> Path:
    """Make a run folder from a Keras file and return its path.

    Args:
        file: `.keras`, `.weights.h5` or `.h5`.
        variant: the architecture that the file was made with.
        classes: labels of the outputs in order; None: those of the recipe's dataset if it has as many, else 0, 1, ….
        recipe: how images were preprocessed: a name or a TOML file; None: that of the variant's name, else `fast`.
        settings: recipe keys to change, such as `{"images.mean": [0.5, 0.5, 0.5]}`; `images.input` defaults to the variant's,
            and `train.precision` to float32, as in Keras.
        out: the run folder, new.

    Raises:
        WeightsError: the file cannot be read or does not fit the variant; the number of classes is wrong.
        RecipeError: no such recipe or key, or preprocessing that would be measured on a dataset.
        VariantError: no such variant.
        RunError: `out` is not empty or cannot be written.
    """
    file, row = Path(file), find_variant(variant)
    name = recipe or (variant if variant in names() else "fast")
    # As in Keras: float32, and no upscaling.
    start = {"images.input": row.input_size, "images.upscale": 1, "train.precision": "float32"}
    changes = {**start, **(settings or {}), "model.variant": variant}
    chosen = load_recipe(str(name)).with_settings(changes)
    _refuse_unmeasured(chosen)
    labels = _labels(file, keras_classes(file), classes, chosen.data.dataset)
    config = ModelConfig.of(chosen, labels, chosen.images.resolved())
    network = config.network()
    load_keras(file, network)
    return _write(Path(out), chosen, network, config)


def _refuse_unmeasured(recipe: Recipe) -> None:
    """Raise RecipeError if a setting of the images would be measured on a dataset."""
    if missing := [key for key, value in recipe.images if value in MEASURED]:
        keys = ", ".join(f"images.{key}" for key in missing)
        example = " ".join(f"--set images.{key}={EXAMPLES[key]}" for key in missing)
        problem = f"the recipe {recipe.name} measures {keys} on training images, and an import has none"
        raise RecipeError(f"{problem}: give the values used with Keras, for example {example}")


def _labels(file: Path, count: int, classes: Sequence[str] | None, dataset: str) -> tuple[str, ...]:
    if count < 2:
        raise WeightsError(f"{file} has {count} output; a network needs one for each class, at least 2 (softmax)")
    if classes is None:
        known = LABELS.get(dataset, ())
        return known if len(known) == count else tuple(map(str, range(count)))
    if len(classes) != count:
        raise WeightsError(f"{file} has {count} outputs, but --classes names {len(classes)}: {format_names(classes)}")
    if len(set(classes)) != count or "" in classes:
        raise WeightsError(f"--classes needs {count} different names: {format_names(classes)}")
    return tuple(classes)


def _write(out: Path, recipe: Recipe, network: AlexNet, config: ModelConfig) -> Path:
    folder = create(out)
    try:
        write_text(folder.recipe, recipe.to_toml())
        save_model(folder, network, config)
        untrained = {"epochs": 0, "seconds": 0, "best_epoch": 0, "kept": "last"}
        summary = {"run": str(out), "recipe": recipe.name, "variant": config.variant, **untrained}
        write_json(folder.summary, summary | {"validation": None, "test": None, "skipped": ()})
    except AlexNetError:
        shutil.rmtree(out)
        raise
    return out
