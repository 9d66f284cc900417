"""Preprocess images from file to network input, in the same way for training and prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data import decode
from alexnet.network.device import send
from alexnet.recipe import Preprocessing

PixelArray = NDArray[np.uint8] | NDArray[np.float32]


def fit_image(stored: NDArray[np.uint8], preprocessing: Preprocessing) -> PixelArray:
    """Return a cached image as batches contain it: `side` x `side` x 3, uint8, or float32 if full images are resized."""
    if preprocessing.cache_size != "full":
        return stored
    height, width = stored.shape[:2]
    if preprocessing.fit == "crop":
        left, top, right, bottom = (int(edge) for edge in decode.centre_square(width, height))
        stored = stored[top:bottom, left:right]
    if preprocessing.resize == "bilinear" and not preprocessing.antialias:
        return _bilinear(_bilinear(stored.astype(np.float32), 1, preprocessing.input_side), 0, preprocessing.input_side)
    x = torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1)[None]  # 1 3 H W
    return _resize(x, preprocessing.model_copy(update={"upscale": 1}))[0].permute(1, 2, 0).numpy()


def pixels(source: Path | NDArray[np.uint8], preprocessing: Preprocessing) -> PixelArray:
    """Decode and fit an image, in this process: `side` x `side` x 3, uint8 or float32, grey levels 0 to 255."""
    return fit_image(decode.stored_pixels(source, **preprocessing.decode_options()), preprocessing)


def as_seen(image: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the part of an image S S 3 that the network sees, with its own colours: uint8."""
    if preprocessing.crop is not None:
        edge = (image.shape[0] - preprocessing.crop) // 2
        image = image[edge : edge + preprocessing.crop, edge : edge + preprocessing.crop]
    seen: NDArray[np.uint8] = image.round().clip(0, 255).astype(np.uint8)
    return seen[:, ::-1] if preprocessing.horizontal_flip else seen


def to_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Preprocess a batch on its device: N S S 3, uint8 or float -> N 3 I I float32, channels last in memory."""
    x = standardize(images, preprocessing)
    if preprocessing.crop is not None:
        edge = (x.shape[1] - preprocessing.crop) // 2
        x = x[:, edge : edge + preprocessing.crop, edge : edge + preprocessing.crop]
    return normalize(x, preprocessing)


def standardize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Apply the steps that need the whole cached image: subtract the mean image, or standardize each image; keep N S S 3.

    Standard deviations are at least 1 / sqrt(number of values), as in TensorFlow's `per_image_standardization`.
    """
    if preprocessing.mean == "image":
        assert preprocessing.mean_image is not None
        return images.float() - _constant(preprocessing.mean_image, images)
    if preprocessing.mean == "each":
        x = images.float()
        deviation, mean = torch.std_mean(x, (1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / deviation.clamp_min(x.shape[1:].numel() ** -0.5)
    return images


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Apply the other steps to the images or crops from `standardize`: N S S 3 -> N 3 I I float32."""
    return _resize(scale_levels(images, preprocessing).permute(0, 3, 1, 2), preprocessing)  # N H W C -> N C H W, a view


def scale_levels(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Apply the steps between `standardize` and the change of size: N S S 3 -> N S S 3 float32."""
    x, scale = images.float(), 255 / preprocessing.value_range
    if preprocessing.mean == "image-centre":
        assert preprocessing.mean_image is not None
        edge, side = (preprocessing.mean_image.shape[0] - x.shape[1]) // 2, x.shape[1]
        x = x - _constant(preprocessing.mean_image[edge : edge + side, edge : edge + side], x)
    elif not isinstance(preprocessing.mean, str):
        x = x - _constant(preprocessing.mean, x) * scale
    if not isinstance(preprocessing.std, str):
        x = x / (_constant(preprocessing.std, x) * scale)
    if preprocessing.horizontal_flip:
        x = x.flip(2)
    if preprocessing.brightness:
        x = x + preprocessing.brightness
    return x


def _constant(values: Any, like: Tensor) -> Tensor:
    """Return `values` as a tensor on the device of `like`, without waiting for that device."""
    return send(torch.as_tensor(values), like.device)


def _resize(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Scale N 3 H W floats to N 3 I I, with half-pixel centres."""
    size = (preprocessing.resized, preprocessing.resized)
    if x.shape[2:] == size:
        return x
    if preprocessing.resize == "nearest":
        return torch.nn.functional.interpolate(x, size=size, mode="nearest-exact")
    antialias = preprocessing.antialias and preprocessing.resized < max(x.shape[2:])  # no effect on a side that grows
    return torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=antialias)


def _bilinear(image: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Scale one axis of an H W 3 image to `size`, with TensorFlow's rounding; PyTorch's result differs by up to 1e-3 levels."""
    count = image.shape[axis]
    source = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * (np.float32(count) / np.float32(size)) - np.float32(0.5)
    low, high = np.floor(source).clip(0).astype(int), np.ceil(source).clip(max=count - 1).astype(int)
    weight = (source - np.floor(source)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    before = image.take(low, axis)
    result: NDArray[np.float32] = before + (image.take(high, axis) - before) * weight
    return result
