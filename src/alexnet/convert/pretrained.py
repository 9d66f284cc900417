"""Pretrained weights: torchvision's for ImageNet, a file in their layout, or another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.convert.formats import read_trained
from alexnet.convert.torchvision import copy_weights
from alexnet.data.builtin import default_root
from alexnet.data.download import Source, fetch
from alexnet.errors import DataError, WeightsError, error_reason
from alexnet.files import expand_user
from alexnet.network.alexnet import AlexNet
from alexnet.run import find_weights, is_epoch, load_model, read_config, saved

# torchvision's AlexNet_Weights.IMAGENET1K_V1; its name holds a prefix of the SHA-256, and the size is an upper bound.
IMAGENET1K = Source(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "alexnet-owt-7be5be79.pth", "7be5be79", 250_000_000, False
)


def settings_from_weights(weights: str, *, images: bool = False) -> Mapping[str, Any]:
    """Return the recipe settings that `--weights` implies: the weights, their network, and if `images` their preprocessing."""
    if weights == "imagenet1k":
        return {"model.weights": weights}
    path = saved(expand_user(weights).absolute())
    if path.is_file() and not is_epoch(path):
        trained = read_trained(path)
        original = {"reduced_decode": False, **trained.images} if images else {}
        return {
            "model.weights": str(path),
            "model.variant": trained.variant,
            **{f"images.{key}": value for key, value in original.items()},
        }
    if not path.exists():
        places = "a run folder, a file in its epochs/, a file in torchvision's layout, of Caffe or of ONNX, or imagenet1k"
        raise WeightsError(f"no weights {weights!r}: name {places}")
    config = read_config(find_weights(path))
    network = {f"model.{key}": value for key, value in config.overrides.items()}
    preprocessing = {f"images.{key}": value for key, value in config.preprocessing.model_dump().items()} if images else {}
    return {
        "model.weights": str(path),
        "model.variant": config.variant,
        "model.width": config.width,
        **network,
        **preprocessing,
    }


def fetch_imagenet1k(variant: str, data_root: Path | None) -> Path:
    """Return the path of torchvision's weights, downloaded to `data_root` (None: as for datasets); `variant` must be `owt`."""
    if variant != "owt":  # before downloading 244 MB
        raise WeightsError(f"imagenet1k needs the variant 'owt', not {variant!r}: add --variant owt")
    root = data_root or default_root()
    try:
        return fetch(IMAGENET1K, root)[0]
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename or root}: {error_reason(error)}") from error


def load_pretrained(network: AlexNet, weights: str, data_root: Path | None) -> None:
    """Copy all weights except the head's into `network`, which has the variant that they were trained with.

    `weights` is a run folder, a file in its `epochs`, a file in torchvision's layout, of Caffe or of ONNX, or `imagenet1k`,
    which is downloaded to `data_root` (None: as for datasets).
    """
    path = Path(weights)
    if path.is_dir() or is_epoch(path):
        other, config = load_model(find_weights(path), torch.device("cpu"))
        tensors, variant = other.state_dict(), config.variant
    else:
        try:
            path = fetch_imagenet1k(network.row.name, data_root) if weights == "imagenet1k" else path
        except DataError as error:
            others = "start from a run of your own (--weights RUN), or from nothing (--recipe fast), which needs no download"
            raise DataError(f"{error}; or {others}") from error
        trained = read_trained(path, network.row.name)
        tensors, variant = trained.tensors, trained.variant
    copy_weights(tensors, network, f"{path} (--variant {variant})")


def pretrained_mean_image(weights: str, default: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean image that a run subtracts, S S 3; `default`, that of new images, if it has none of that size."""
    path = Path(weights)
    if not (path.is_dir() or is_epoch(path)):
        return default
    image = load_model(find_weights(path), torch.device("cpu"))[1].preprocessing.mean_image
    return image if image is not None and image.shape == default.shape else default
