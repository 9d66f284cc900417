"""Find photos that show too little: blurred, dark, over-exposed, or so long that most of them is cropped away.

A photo is measured as `fast` sees it: its centre square, scaled to the input. Blur that scaling hides does no harm. The limits
are from photos of Imagenette and of cats and dogs, and from degraded copies of them (`make quality`).
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.data.decode import centre_square

SIDE = 128  # pixels
SMALLEST = 64  # pixels of the shorter side; in smaller images, edges and white parts say nothing about how they were taken
LARGE = 0.99  # fraction of the differences between pixels that are no larger than those at the edges of things
WHITE = 250  # level from which a pixel is white; scaling averages the levels of several
# Of 2,400 clean photos, 7 are below BLURRED, 0 below DARK and 9 above OVEREXPOSED; of 1,000 uncropped ones, 0 above ELONGATED.
BLURRED = 0.8
DARK = 95
OVEREXPOSED = 0.35
ELONGATED = 3.0  # longer side / shorter side


class Quality(TypedDict):
    """Measures of a photo.

    Attributes:
        bright: level of the lightest part of the photo in the lightest channel, 0 to 255.
        sharpness: of edges, along rows or columns, whichever are less sharp: 2 for steps, towards 0 the wider they are. None if
            there are no edges, or if the photo is small.
        white: fraction of white pixels in the middle half, horizontally and vertically; None if the photo is small.
    """

    bright: int
    sharpness: float | None
    white: float | None


def measure(image: Image.Image, thumbnail: NDArray[np.uint8]) -> Quality:
    """Measure an RGB image, which may be reduced before to no less than `SIDE`; its thumbnail has 16 x 16 pixels."""
    bright = int(thumbnail.max())
    side = min(SIDE, *image.size)
    if side < SMALLEST:
        return {"bright": bright, "sharpness": None, "white": None}
    square = image.convert("L").resize((side, side), Image.Resampling.BOX, centre_square(*image.size), reducing_gap=1.0)
    grey = np.asarray(square).astype(np.int16)
    middle = grey[side // 4 : -(side // 4), side // 4 : -(side // 4)]
    return {"bright": bright, "sharpness": _sharpness(grey), "white": float((middle >= WHITE).mean())}


def _sharpness(grey: NDArray[np.int16]) -> float | None:
    """Return the ratio of second to first differences at edges, which does not depend on contrast.

    Camera shake blurs edges in one direction only, so rows and columns are measured separately.
    """
    ratios = []
    for lines in (grey[::2], grey[:, ::2].T):  # every other one will do
        left, middle, right = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
        slope, bend = _large(right - left), _large(left - 2 * middle + right)
        if slope == 0:
            return None
        ratios.append(2 * bend / slope)
    return min(ratios)


def _large(differences: NDArray[np.int16]) -> int:
    """Return the smallest level that at least the fraction `LARGE` of the differences do not exceed, regardless of sign."""
    counts = np.bincount(np.abs(differences).ravel())
    return int(np.searchsorted(counts.cumsum(), LARGE * differences.size))


def quality_problems(quality: Quality, mode: str = "RGB") -> Iterator[tuple[str, str]]:
    """Yield the kind and the detail of each problem of a photo, whose file has the `mode` of Pillow."""
    if quality["bright"] < DARK:
        scaled = " after scaling to 8 bits" if mode.startswith("I") else ""
        yield "dark", f"its lightest part has level {quality['bright']} of 255{scaled}"
    if quality["sharpness"] is not None and quality["sharpness"] < BLURRED:
        yield "blur", f"sharpness {quality['sharpness']:.2f}: sharp photos have more than {BLURRED:g}"
    if quality["white"] is not None and quality["white"] > OVEREXPOSED:
        yield "over-exposed", f"{quality['white']:.0%} of its middle is white"


def size_problems(width: int, height: int) -> Iterator[tuple[str, str]]:
    """Yield the problem of an image that is too long."""
    if (ratio := max(width, height) / min(width, height)) > ELONGATED:
        yield "elongated", f"{width}x{height}: the middle {1 / ratio:.0%} are used"
