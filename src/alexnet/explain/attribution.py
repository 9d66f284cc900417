"""Explain a prediction: heat maps by several methods, and feature maps.

All are computed in float32, at the network's input of I x I pixels, for the most probable label or another.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.decode_pool import Source
from alexnet.data.preprocessing import PixelArray, as_seen, to_input
from alexnet.errors import AlexNetError, ImageError, VariantError, suggest
from alexnet.explain.methods import DEFAULT, check, heat_map, last_maps, map_layers
from alexnet.explain.scores import Scores, redrawn, score
from alexnet.inference.forward import classify
from alexnet.inference.predict import best, iter_images
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast
from alexnet.run import ModelConfig


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the network made of an image.

    Attributes:
        pixels: S S 3 uint8, the image as it goes in, before its colours are scaled.
        labels: of the network's outputs.
        probabilities: float64, one a label, calibrated.
        target: position of the label that the heat maps are about.
        heat_maps: I I float32, by the name of the method: orange in the figure where above 0, for the label, and blue below.
        maps: C H W float32 by convolution (`conv1` …), after its activation.
        layer: whose maps Grad-CAM looks at.
        scores: by the name of the method, how far to believe its map; empty unless asked for.
    """

    pixels: NDArray[np.uint8]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]
    target: int
    heat_maps: dict[str, NDArray[np.float32]]
    maps: dict[str, NDArray[np.float32]]
    layer: str
    scores: dict[str, Scores]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` most probable labels with their probabilities, from 0 to 1, most probable first."""
        return [(each["label"], each["probability"]) for each in best(self.probabilities, self.labels, count)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name, shaped as for `Explanation`, for `numpy.savez`; feature maps under their layers' names."""
        figures = {"probabilities": self.probabilities, "target": np.array(self.target), "labels": np.array(self.labels)}
        return {"pixels": self.pixels, **figures, **self.heat_maps, **self.maps}


def explain(
    network: AlexNet,
    config: ModelConfig,
    sources: Iterable[Source],
    label: str | None = None,
    layer: str | None = None,
    method: str | Sequence[str] = DEFAULT,
    scores: bool = False,
) -> Iterator[tuple[Source, Explanation | ImageError]]:
    """Return an iterator over sources, paths or H W 3 uint8 arrays, each with its explanation or an error.

    `label`, `layer` and `method`, the name of a method or several, are as for `explained`; with `scores`, maps have scores.
    """
    if label is not None and label not in config.labels:
        raise AlexNetError(f"no label {label!r}: {suggest(label, config.labels)}")
    names = network.layer_names
    if layer is not None and names.index(network.layer_name(layer)) >= names.index("flatten"):
        raise VariantError(f"layer {layer!r} has no maps for Grad-CAM: name one before flatten")
    anew = redrawn(network) if scores else None
    return _explain(network, config, sources, label, layer, check(method, network), anew)


def _explain(
    network: AlexNet,
    config: ModelConfig,
    sources: Iterable[Source],
    label: str | None,
    layer: str | None,
    methods: Sequence[str],
    anew: AlexNet | None,
) -> Iterator[tuple[Source, Explanation | ImageError]]:
    with closing(iter_images(sources, config.preprocessing)) as images:
        for source, image in images:
            if isinstance(image, ImageError):
                yield source, image
            else:
                yield source, explained(network, config, image, label, layer, methods, anew)


def explained(
    network: AlexNet,
    config: ModelConfig,
    image: PixelArray,
    label: str | None = None,
    layer: str | None = None,
    methods: Sequence[str] = DEFAULT,
    anew: AlexNet | None = None,
) -> Explanation:
    """Explain an image S S 3, as `iter_images` yields it.

    The heat maps are about `label`, by default the most probable one. Grad-CAM looks at the maps of `layer`, by default the
    last. `anew` is the network with its weights drawn anew (`redrawn`), if the maps are to have scores.
    """
    preprocessing, device = config.preprocessing, next(network.parameters()).device
    x = to_input(torch.from_numpy(image.copy())[None].to(device), preprocessing)
    names = map_layers(network)
    [(calibrated, _)] = classify(network, config, [image])
    target, layer = int(calibrated.argmax()) if label is None else config.labels.index(label), layer or last_maps(network)
    with autocast(device, "float32"):
        with torch.no_grad():
            _, maps = network.activations(x, list(names.values()), preprocessing.scale_factor)
        about = x, target, preprocessing.scale_factor
        heat = {name: heat_map(name, network, *about, layer) for name in methods}
        found = {} if anew is None else score(network, anew, *about, layer, config.temperature, heat)
    feature_maps = {conv: maps[layer][0].float().cpu().numpy() for conv, layer in names.items()}
    return Explanation(as_seen(image, preprocessing), config.labels, calibrated, target, heat, feature_maps, layer, found)


def shares(heat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a heat map from -1 (against the label) to 1 (for it), and the opacity to draw each pixel with, 0 to 0.85."""
    most = float(np.quantile(np.abs(heat), 0.995)) or 1.0  # a few single pixels would make all others pale
    share = (heat / most).clip(-1, 1)
    return share, np.abs(share) ** 0.7 * 0.85


def strongest(maps: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most `count` of the maps C H W, those with the greatest means, strongest first."""
    return maps[np.argsort(-maps.mean((1, 2)), kind="stable")[:count]]
