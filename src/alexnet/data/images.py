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
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from alexnet.errors import ImageError

# Pillow warns at 89 megapixels and refuses at twice that, before it decodes; large photos are not worth a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Preprocessing(BaseModel):
    """How an image becomes the network's input; kept with the weights in `model.json`.

    Sizes are pixels a side; `mean` and `deviation` are per channel, of values from 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stored: int
    input: int
    fit: Literal["crop", "stretch"]
    reduced_decode: bool
    resize: Literal["nearest", "bilinear"]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)


def decode(source: Path | NDArray[np.uint8], reduced_to: int = 1 << 30) -> Image.Image:
    """Return an image as upright 8-bit RGB: the one way in for pixels.

    The first frame of an animation; 16-bit levels are scaled to 8, transparency is laid on white. A JPEG may decode at
    1/2, 1/4 or 1/8 scale, as long as its shorter side is at least `reduced_to` pixels. `source` is a path, or H W 3 uint8.

    Raises:
        ImageError: the file is missing, empty, not an image, truncated or too large; the message is the reason alone.
    """
    if isinstance(source, np.ndarray):
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


def pixels(source: Path | NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """Decode and fit an image: `stored` x `stored` x 3 uint8.

    `crop` scales the shorter side to `stored` and cuts out the centre; `stretch` scales both sides.

    Raises:
        ImageError: as `decode`.
    """
    image = decode(source, how.stored if how.reduced_decode else 1 << 30)
    width, height = image.size
    if (width, height) == (how.stored, how.stored):
        return np.asarray(image)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if how.fit == "crop" else (0, 0, width, height)
    gap = 2.0 if how.reduced_decode else None
    return np.asarray(image.resize((how.stored, how.stored), Image.Resampling.BICUBIC, box=box, reducing_gap=gap))


def to_input(images: Tensor, how: Preprocessing) -> Tensor:
    """Scale and normalise a batch on its device: N S S 3 uint8 -> N 3 I I float32, channels last in memory."""
    mean = torch.tensor(how.mean, device=images.device) * 255
    deviation = torch.tensor(how.deviation, device=images.device) * 255
    x = ((images - mean) / deviation).permute(0, 3, 1, 2)  # N H W C -> N C H W, the memory stays
    if x.shape[2] == how.input:
        return x
    if how.resize == "nearest":
        return torch.nn.functional.interpolate(x, size=(how.input, how.input), mode="nearest-exact")
    smaller = how.input < x.shape[2]
    return torch.nn.functional.interpolate(x, size=(how.input, how.input), mode="bilinear", antialias=smaller)


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
