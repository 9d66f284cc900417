"""From a file to what the network sees: fit, scale, normalise. Training and prediction come the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from alexnet.data import decode

Channels = tuple[float, float, float]
# No camera's picture needs more at the network; a card that says so was made to take all memory.
Side = Annotated[int, Field(ge=1, le=8192)]
PixelArray = NDArray[np.uint8] | NDArray[np.float32]


class Preprocessing(BaseModel):
    """How an image becomes the network's input; kept with the weights in `model.json`. The keys are those of `[images]`.

    Sizes are pixels a side; `mean` and `deviation`, of each channel, and `brightness` are in units of `levels`, the value of
    white. `mean_image` (S S 3 float32, grey levels 0 to 255, S = `side`) is there where `mean` names one; it is kept beside the
    weights. The last step, `enlarge`, is left to the network, whose first layer takes it for nothing: what `to_input` and the
    like return is `resized` pixels a side (I below), and goes to the network together with `enlarge`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    stored: Side | Literal["full"]
    fit: Literal["crop", "stretch"]
    filter: Literal["bicubic", "nearest"] = "bicubic"
    reduced_decode: bool
    crop: Side | None = None
    levels: Literal[1, 255] = 1
    mean: Channels | Literal["image", "image-centre", "each"] = (0.0, 0.0, 0.0)
    deviation: Channels | Literal["each"] = (1.0, 1.0, 1.0)
    mirror: bool = False
    brightness: float = 0.0
    input: Side
    resize: Literal["nearest", "bilinear"]
    antialias: bool = True
    enlarge: Side = 1
    mean_image: NDArray[np.float32] | None = Field(default=None, exclude=True, repr=False)

    @property
    def side(self) -> int:
        """Pixels a side of an image as batches hold it."""
        return self.input if self.stored == "full" else self.stored

    @property
    def resized(self) -> int:
        """Pixels a side before they are enlarged."""
        return self.input // self.enlarge

    def storing(self) -> dict[str, Any]:
        """Return the settings of `decode.stored_pixels`."""
        return self.model_dump(include={"stored", "fit", "filter", "reduced_decode"})


def stored_pixels(source: Path | NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image to what the cache holds: `stored` x `stored` x 3 uint8, or H W 3 where `stored` is full.

    In this process; files from elsewhere go through `data.workers`, which does the same in another.

    Raises:
        ImageError: as `decode.decode`.
    """
    return decode.stored_pixels(source, **how.storing())


def fitted(stored: NDArray[np.uint8], how: Preprocessing) -> PixelArray:
    """Return a stored image as batches hold it: `side` x `side` x 3, uint8, or float32 where full images are resized.

    Resized in float, so that nothing is rounded on the way to the network.
    """
    if how.stored != "full":
        return stored
    height, width = stored.shape[:2]
    if how.fit == "crop":
        left, top, right, bottom = (int(edge) for edge in decode.centre(width, height))
        stored = stored[top:bottom, left:right]
    if how.resize == "bilinear" and not how.antialias:
        return _bilinear(_bilinear(stored.astype(np.float32), 1, how.input), 0, how.input)
    x = torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1)[None]  # 1 3 H W
    result: NDArray[np.float32] = _resize(x, how.model_copy(update={"enlarge": 1}))[0].permute(1, 2, 0).numpy()
    return result


def pixels(source: Path | NDArray[np.uint8], how: Preprocessing) -> PixelArray:
    """Decode and fit an image: `side` x `side` x 3, uint8 or float32, grey levels 0 to 255.

    Raises:
        ImageError: as `decode.decode`.
    """
    return fitted(stored_pixels(source, how), how)


def to_input(images: Tensor, how: Preprocessing) -> Tensor:
    """Make a batch the network's input, on its device: N S S 3, uint8 or float -> N 3 I I float32, channels last in memory."""
    x = begin(images, how)
    if how.crop is not None:
        edge = (x.shape[1] - how.crop) // 2
        x = x[:, edge : edge + how.crop, edge : edge + how.crop]
    return finish(x, how)


def begin(images: Tensor, how: Preprocessing) -> Tensor:
    """Do what needs the whole stored image: subtract the mean image, or standardise each image by itself. N S S 3 stays.

    An image's own deviation is at least 1 / sqrt(its values), as TensorFlow's `per_image_standardization` has it.
    """
    if how.mean == "image":
        assert how.mean_image is not None
        return images.float() - torch.from_numpy(how.mean_image).to(images.device)
    if how.mean == "each":
        x = images.float()
        deviation, mean = torch.std_mean(x, (1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / deviation.clamp_min(x[0].numel() ** -0.5)
    return images


def finish(images: Tensor, how: Preprocessing) -> Tensor:
    """Do the rest, image by image or crop by crop: N S S 3 as `begin` returns it -> N 3 I I float32."""
    x, scale = images.float(), 255 / how.levels
    if how.mean == "image-centre":
        assert how.mean_image is not None
        edge, side = (how.mean_image.shape[0] - x.shape[1]) // 2, x.shape[1]
        x = x - torch.tensor(how.mean_image[edge : edge + side, edge : edge + side], device=x.device)
    elif not isinstance(how.mean, str):
        x = x - torch.tensor(how.mean, device=x.device) * scale
    if not isinstance(how.deviation, str):
        x = x / (torch.tensor(how.deviation, device=x.device) * scale)
    if how.mirror:
        x = x.flip(2)
    if how.brightness:
        x = x + how.brightness
    return _resize(x.permute(0, 3, 1, 2), how)  # N H W C -> N C H W, the memory stays


def _resize(x: Tensor, how: Preprocessing) -> Tensor:
    """Scale N 3 H W floats to N 3 I I, pixel centres at halves."""
    size = (how.resized, how.resized)
    if x.shape[2:] == size:
        return x
    if how.resize == "nearest":
        return torch.nn.functional.interpolate(x, size=size, mode="nearest-exact")
    smaller = how.antialias and how.resized < max(x.shape[2:])  # a side that grows is as without
    return torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=smaller)


def _bilinear(image: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Scale one axis of an H W 3 image to `size`, rounding where TensorFlow does: PyTorch is up to 1e-3 grey levels off it."""
    count = image.shape[axis]
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * (np.float32(count) / np.float32(size)) - np.float32(0.5)
    low, high = np.floor(at).clip(0).astype(int), np.ceil(at).clip(max=count - 1).astype(int)
    share = (at - np.floor(at)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    before = image.take(low, axis)
    result: NDArray[np.float32] = before + (image.take(high, axis) - before) * share
    return result
