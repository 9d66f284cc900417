"""Import a network that another program trained as a run folder."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alexnet.convert.formats import find_format, read_trained
from alexnet.convert.keras_weights import keras_classes, load_keras
from alexnet.convert.pretrained import fetch_imagenet1k
from alexnet.convert.torchvision import copy_weights
from alexnet.data.builtin import FASHION_LABELS
from alexnet.data.imagenet import imagenet_classes
from alexnet.errors import AlexNetError, RecipeError, WeightsError, format_names, printable, truncate
from alexnet.files import expand_user, write_json, write_text
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
EXAMPLES = {"cache_size": "256", "mean": "0", "std": "1", "upscale": "1", "views": "1"}


def import_weights(
    weights: str | Path,
    *,
    out: str | Path,
    variant: str | None = None,
    classes: Sequence[str] | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Path:
    """Make a run folder from a network that another program trained, and return its path.

    Nothing in a file is executed. The run has no dataset of its own, unless a recipe names one, and is not calibrated.

    Args:
        weights: `imagenet1k`, torchvision's AlexNet, which is downloaded, or a file, whose format is found from its content: a
            `.pth` or `.safetensors` in torchvision's layout, also inside a checkpoint; a `.keras`, `.weights.h5` or `.h5`; a
            `.caffemodel` of BVLC AlexNet or CaffeNet; an ONNX file of these or of torchvision's network.
        out: the run folder, new.
        variant: the architecture; needed for Keras, whose files do not tell it, and for Caffe files of weights alone.
        classes: labels of the outputs in order; None: ImageNet's for 1,000, those of the recipe's dataset if it has as many,
            else 0, 1, ….
        recipe: a recipe, by name or TOML file, whose `[images]` replace the preprocessing. None: that of the original; for
            Keras, of the recipe with the variant's name, else `fast`.
        settings: recipe keys to change, such as `{"images.mean": [0.5, 0.5, 0.5]}`; `images.input` defaults to the
            original's, and `train.precision` to float32.
        data_root: folder of downloads. None: as for datasets.

    Raises:
        WeightsError: the file cannot be read or does not fit the variant; the labels are too few, too many or not different.
        RecipeError: no such recipe or key, or preprocessing that would be measured on a dataset.
        VariantError: no such variant.
        DataError: the download failed.
        RunError: `out` is not empty or cannot be written.
    """
    if variant is not None:
        find_variant(variant)  # before a download
    if str(weights) == "imagenet1k":
        path = fetch_imagenet1k(variant or "owt", None if data_root is None else Path(data_root))
    else:
        path = expand_user(weights)
    read = _from_keras if find_format(path) == "keras" else _from_others
    original = read(path, variant, None if recipe is None else load_recipe(str(recipe)))
    changes = {"images.upscale": 1, "images.views": 1, "train.precision": "float32", **original.settings, **(settings or {})}
    chosen = original.recipe.with_settings({**changes, "model.variant": original.variant})
    _refuse_unmeasured(chosen)
    labels = _labels(path, original.classes, classes, chosen.data.dataset)
    config = ModelConfig.of(chosen, labels, chosen.images.resolved())
    network = config.network()
    original.load(network)
    return _write(Path(out), chosen, network, config)


class _Original(NamedTuple):
    """What a file tells: the variant, a recipe, settings that go before it, and the number of classes."""

    variant: str
    recipe: Recipe
    settings: dict[str, Any]
    classes: int
    load: Callable[[AlexNet], None]


def _from_keras(path: Path, variant: str | None, recipe: Recipe | None) -> _Original:
    if variant is None:
        raise WeightsError(f"{path} is a Keras file, which does not tell the variant: add --variant (alexnet model list)")
    recipe = recipe or load_recipe(variant if variant in names() else "fast")
    settings = {"images.input": find_variant(variant).input_size}
    return _Original(variant, recipe, settings, keras_classes(path), partial(load_keras, path))


def _from_others(path: Path, variant: str | None, recipe: Recipe | None) -> _Original:
    trained = read_trained(path, variant)
    images = trained.images if recipe is None else {"input": trained.images["input"]}
    settings = {"data.dataset": "", **{f"images.{key}": value for key, value in images.items()}}
    load = partial(copy_weights, trained.tensors, origin=str(path), head=True)
    return _Original(trained.variant, recipe or Recipe(name="imported"), settings, len(trained.tensors["head.bias"]), load)


def _refuse_unmeasured(recipe: Recipe) -> None:
    """Raise RecipeError if a setting of the images would be measured on a dataset."""
    if missing := [key for key, value in recipe.images if value in MEASURED]:
        keys = ", ".join(f"images.{key}" for key in missing)
        example = " ".join(f"--set images.{key}={EXAMPLES[key]}" for key in missing)
        problem = f"the recipe {recipe.name} measures {keys} on training images, and an import has none"
        raise RecipeError(f"{problem}: give the values that the network was trained with, for example {example}")


def _labels(file: Path, count: int, classes: Sequence[str] | None, dataset: str) -> tuple[str, ...]:
    if count < 2:
        raise WeightsError(f"{file} has {count} output; a network needs one for each class, at least 2 (softmax)")
    if classes is None:
        known = tuple(imagenet_classes().values()) if count == 1000 else LABELS.get(dataset, ())
        return known if len(known) == count else tuple(map(str, range(count)))
    if len(classes) != count:
        raise WeightsError(f"{file} has {count} outputs, but --classes names {len(classes)}: {format_names(classes)}")
    if len(set(classes)) != count or "" in classes:
        raise WeightsError(f"--classes needs {count} different names: {format_names(classes)}")
    if odd := [label for label in classes if printable(label) != label]:
        raise WeightsError(f"--classes has the name {truncate(odd[0])!r}, which has control characters")
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
