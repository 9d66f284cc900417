"""An explanation as JSON that a page can show: pictures as data URIs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from alexnet.explain.attribution import Explanation, shares, strongest
from alexnet.inference.predict import best
from alexnet.plotting import BLUE, NEUTRAL, ORANGE, data_uri

MAPS_SHOWN = 24  # of each convolution


def explanation_json(found: Explanation, labels: int) -> dict[str, Any]:
    """Return an explanation with its best `labels`, ready for JSON.

    Heat maps are orange where they speak for the first label, blue where against, and the fainter the less; maps are grey, each
    from its least value (black) to its greatest.
    """
    return {
        "predictions": best(found.probabilities, found.labels, labels),
        "pixels": png(found.pixels),
        "heat": {name: png(tinted(getattr(found, name))) for name in ("grad_cam", "occlusion", "integrated_gradients")},
        "maps": {
            name: {"shape": list(maps.shape), "pictures": [png(grey(each)) for each in strongest(maps, MAPS_SHOWN)]}
            for name, maps in found.maps.items()
        },
    }


def tinted(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a heat map H W as colours with opacity, H W 4."""
    share, strength = shares(heat)
    neutral, against, favour = (np.array(ImageColor.getrgb(colour)) for colour in (NEUTRAL, BLUE, ORANGE))
    end = np.where(share[..., None] < 0, against, favour)
    colours = neutral + (end - neutral) * np.abs(share[..., None])
    result: NDArray[np.uint8] = np.concatenate([colours, 255 * strength[..., None]], 2).round().astype(np.uint8)
    return result


def grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a map H W as grey levels."""
    low, high = float(values.min()), float(values.max())
    result: NDArray[np.uint8] = (255 * (values - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return result


def png(picture: NDArray[np.uint8]) -> str:
    """Return a picture H W, H W 3 or H W 4 as a PNG in a data URI."""
    return data_uri(Image.fromarray(picture), "png")
