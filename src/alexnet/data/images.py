"""From a file to what the network sees: decode, fit, scale, normalise. Training and prediction come the same way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from alexnet.errors import ImageError

# Pillow warns at 89 megapixels and refuses at twice that, before it decodes; large photos are not worth a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Channels = tuple[float, float, float]
PixelArray = NDArray[np.uint8] | NDArray[np.float32]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}


class Preprocessing(BaseModel):
    """How an image becomes the network's input; kept with the weights in `model.json`. The keys are those of `[images]`.

    Sizes are pixels a side; `mean` and `deviation`, of each channel, and `brightness` are in units of `levels`, the value of
    white. `mean_image` (S S 3 float32, grey levels 0 to 255, S = `side`) is there where `mean` names one; it is kept beside the
    weights. The last step, `enlarge`, is left to the network, whose first layer takes it for nothing: what `to_input` and the
    like return is `resized` pixels a side (I below), and goes to the network together with `enlarge`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    stored: int | Literal["full"]
    fit: Literal["crop", "stretch"]
    filter: Literal["bicubic", "nearest"] = "bicubic"
    reduced_decode: bool
    crop: int | None = None
    levels: Literal[1, 255] = 1
    mean: Channels | Literal["image", "image-centre", "each"] = (0.0, 0.0, 0.0)
    deviation: Channels | Literal["each"] = (1.0, 1.0, 1.0)
    mirror: bool = False
    brightness: float = 0.0
    input: int
    resize: Literal["nearest", "bilinear"]
    antialias: bool = True
    enlarge: int = 1
    mean_image: NDArray[np.float32] | None = Field(default=None, exclude=True, repr=False)

    @property
    def side(self) -> int:
        """Pixels a side of an image as batches hold it."""
        return self.input if self.stored == "full" else self.stored

    @property
    def resized(self) -> int:
        """Pixels a side before they are enlarged."""
        return self.input // self.enlarge


def decode(source: Path | NDArray[np.uint8], reduced_to: int = 1 << 30) -> Image.Image:
    """Return an image as upright 8-bit RGB: the one way in for pixels.

    The first frame of an animation; 16-bit levels are scaled to 8, transparency is laid on white. A JPEG may decode at
    1/2, 1/4 or 1/8 scale, as long as its shorter side is at least `reduced_to` pixels. `source` is a path, or H W 3 uint8.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated or too large, or the array has another form; the
            message is the reason alone.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(f"an array of {source.dtype}, {'x'.join(map(str, source.shape))}, but should be uint8, H x W x 3")
        return Image.fromarray(source)
    try:
        if source.stat().st_size == 0:
            raise ImageError("the file is empty")
        with Image.open(source) as image:
            image.draft(None, _draft_size(image, reduced_to))  # does nothing but for JPEG
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or of an unknown kind") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise ImageError(reason.splitlines()[0]) from error


def _draft_size(image: Image.Image, reduced_to: int) -> tuple[int, int]:
    """Return the smallest size that JPEG may decode at: both sides in proportion, the shorter one `reduced_to`."""
    scale = min(1.0, reduced_to / min(image.size))
    return max(1, int(image.width * scale)), max(1, int(image.height * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image, dtype=np.float64)
        levels = levels / 257 if levels.max(initial=0) > 255 else levels  # 65,535 -> 255
        return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def stored_pixels(source: Path | NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image to what the cache holds: `stored` x `stored` x 3 uint8, or H W 3 where `stored` is full.

    `crop` scales the shorter side to `stored` and cuts out the centre; `stretch` scales both sides.

    Raises:
        ImageError: as `decode`.
    """
    if how.stored == "full":
        return np.asarray(decode(source))
    image = decode(source, how.stored if how.reduced_decode else 1 << 30)
    if image.size == (how.stored, how.stored):
        return np.asarray(image)
    width, height = image.size
    box = _centre(width, height) if how.fit == "crop" else (0, 0, width, height)
    gap = 2.0 if how.reduced_decode else None
    return np.asarray(image.resize((how.stored, how.stored), FILTERS[how.filter], box=box, reducing_gap=gap))


def fitted(stored: NDArray[np.uint8], how: Preprocessing) -> PixelArray:
    """Return a stored image as batches hold it: `side` x `side` x 3, uint8, or float32 where full images are resized.

    Resized in float, so that nothing is rounded on the way to the network.
    """
    if how.stored != "full":
        return stored
    height, width = stored.shape[:2]
    if how.fit == "crop":
        left, top, right, bottom = (int(edge) for edge in _centre(width, height))
        stored = stored[top:bottom, left:right]
    if how.resize == "bilinear" and not how.antialias:
        return _bilinear(_bilinear(stored.astype(np.float32), 1, how.input), 0, how.input)
    x = torch.from_numpy(stored.astype(np.float32)).permute(2, 0, 1)[None]  # 1 3 H W
    result: NDArray[np.float32] = _resize(x, how.model_copy(update={"enlarge": 1}))[0].permute(1, 2, 0).numpy()
    return result


def pixels(source: Path | NDArray[np.uint8], how: Preprocessing) -> PixelArray:
    """Decode and fit an image: `side` x `side` x 3, uint8 or float32, grey levels 0 to 255.

    Raises:
        ImageError: as `decode`.
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


def _centre(width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of the largest square in the middle."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def typical_side(sources: Iterable[Path]) -> int | None:
    """Return the median of the images' shorter sides in pixels, read from their headers; None if none reads."""
    sides = []
    for source in sources:
        try:
            with Image.open(source) as image:
                sides.append(min(image.size))
        except Exception:  # noqa: S112 - a file that does not open is reported when it is decoded
            continue
    return int(np.median(sides)) if sides else None
