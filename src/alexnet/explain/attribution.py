"""Explain a prediction: Grad-CAM, occlusion, integrated gradients, feature maps.

All are computed in float32, at the network's input of I x I pixels, for the most probable label or another; the methods are
captum's.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from alexnet.data.decode_pool import Source
from alexnet.data.preprocessing import PixelArray, as_seen, to_input
from alexnet.errors import AlexNetError, ImageError, VariantError, suggest
from alexnet.inference.forward import classify
from alexnet.inference.predict import best, iter_images
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast
from alexnet.run import ModelConfig

PATCH = 1 / 6  # fraction of the image's side that a patch covers (occlusion); patches are half a patch apart
STEPS = 32  # on the path from a grey image (integrated gradients)
BATCH = 32


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the network made of an image.

    Attributes:
        pixels: S S 3 uint8, the image as it goes in, before its colours are scaled.
        labels: of the network's outputs.
        probabilities: float64, one a label, calibrated.
        target: position of the label that the heat maps are about.
        grad_cam: I I float32, 0 or more: where the maps of `layer` support the label (Selvaraju and others 2017).
        occlusion: I I float32: how far the label's log-odds fall when a patch there is grey (Zeiler and Fergus 2014).
        integrated_gradients: I I float32: what each pixel adds to the label's logit (Sundararajan and others 2017).
        maps: C H W float32 by convolution (`conv1` …), after its activation.
        layer: whose maps Grad-CAM looks at.
    """

    pixels: NDArray[np.uint8]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]
    target: int
    grad_cam: NDArray[np.float32]
    occlusion: NDArray[np.float32]
    integrated_gradients: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]
    layer: str

    @property
    def heat_maps(self) -> dict[str, NDArray[np.float32]]:
        """The heat maps by method, each I x I float32."""
        return {name: getattr(self, name) for name in ("grad_cam", "occlusion", "integrated_gradients")}

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` most probable labels with their probabilities, from 0 to 1, most probable first."""
        return [(each["label"], each["probability"]) for each in best(self.probabilities, self.labels, count)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name, shaped as for `Explanation`, for `numpy.savez`; feature maps under their layers' names."""
        figures = {"probabilities": self.probabilities, "target": np.array(self.target), "labels": np.array(self.labels)}
        return {"pixels": self.pixels, **figures, **self.heat_maps, **self.maps}


def explain(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], label: str | None = None, layer: str | None = None
) -> Iterator[tuple[Source, Explanation | ImageError]]:
    """Return an iterator over sources, paths or H W 3 uint8 arrays, each with its explanation or an error.

    `label` and `layer` are as for `explained`.
    """
    if label is not None and label not in config.labels:
        raise AlexNetError(f"no label {label!r}: {suggest(label, config.labels)}")
    names = network.layer_names
    if layer is not None and names.index(network.layer_name(layer)) >= names.index("flatten"):
        raise VariantError(f"layer {layer!r} has no maps for Grad-CAM: name one before flatten")
    return _explain(network, config, sources, label, layer or _last_maps(network))


def _explain(
    network: AlexNet, config: ModelConfig, sources: Iterable[Source], label: str | None, layer: str
) -> Iterator[tuple[Source, Explanation | ImageError]]:
    with closing(iter_images(sources, config.preprocessing)) as images:
        for source, image in images:
            yield source, image if isinstance(image, ImageError) else explained(network, config, image, label, layer)


def explained(
    network: AlexNet, config: ModelConfig, image: PixelArray, label: str | None = None, layer: str | None = None
) -> Explanation:
    """Explain an image S S 3, as `iter_images` yields it.

    The heat maps are about `label`, by default the most probable one. Grad-CAM looks at the maps of `layer`, by default the
    last.
    """
    preprocessing, device = config.preprocessing, next(network.parameters()).device
    x = to_input(torch.from_numpy(image.copy())[None].to(device), preprocessing)
    names = map_layers(network)
    [(calibrated, _)] = classify(network, config, [image])
    target, layer = int(calibrated.argmax()) if label is None else config.labels.index(label), layer or _last_maps(network)
    with autocast(device, "float32"):
        with torch.no_grad():
            _, maps = network.activations(x, list(names.values()), preprocessing.scale_factor)
        arguments = network, x, target, preprocessing.scale_factor
        heat = grad_cam(*arguments, layer), occlusion(*arguments), integrated_gradients(*arguments)
    feature_maps = {conv: maps[layer][0].float().cpu().numpy() for conv, layer in names.items()}
    return Explanation(as_seen(image, preprocessing), config.labels, calibrated, target, *heat, feature_maps, layer)


def map_layers(network: AlexNet) -> dict[str, str]:
    """Return for each convolution the layer that activates it: `{"conv1": "relu1", …}`."""
    names = network.layer_names
    activated = {conv: f"{network.row.activation}{conv.removeprefix('conv')}" for conv in names if conv.startswith("conv")}
    return {conv: layer for conv, layer in activated.items() if layer in names}


def shares(heat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a heat map from -1 (against the label) to 1 (for it), and the opacity to draw each pixel with, 0 to 0.85."""
    most = float(np.quantile(np.abs(heat), 0.995)) or 1.0  # a few single pixels would make all others pale
    share = (heat / most).clip(-1, 1)
    return share, np.abs(share) ** 0.7 * 0.85


def strongest(maps: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most `count` of the maps C H W, those with the greatest means, strongest first."""
    return maps[np.argsort(-maps.mean((1, 2)), kind="stable")[:count]]


def grad_cam(network: AlexNet, x: Tensor, target: int, upscale: int = 1, layer: str | None = None) -> NDArray[np.float32]:
    """Return Grad-CAM: the maps of a layer, by default the last, summed with their mean gradients as weights, clipped below 0.

    The gradient is that of the label's log-odds, which also takes the other labels' logits into account (docs/log.md).
    `network` is in evaluation mode, `x` its input, 1 3 I I, and `upscale` its factor; returns I I float32.
    """
    module = network.layers[network.layer_name(layer or _last_maps(network))]
    method = _captum().LayerGradCam(partial(_log_odds, network, target=target, upscale=upscale), module)
    heat = method.attribute(x, relu_attributions=True)
    return _numpy(interpolate(heat, size=x.shape[2:], mode="bilinear")[0, 0])


def occlusion(network: AlexNet, x: Tensor, target: int, upscale: int = 1) -> NDArray[np.float32]:
    """Return how far a label's log-odds fall when a patch is made grey, by pixel: the mean over the patches that cover it."""
    patch = max(1, round(x.shape[2] * PATCH))
    stride = max(1, patch // 2)
    method = _captum().Occlusion(partial(_log_odds, network, target=target, upscale=upscale))
    heat = method.attribute(x, (3, patch, patch), (3, stride, stride), baselines=0.0, perturbations_per_eval=BATCH)
    return _numpy(heat[0, 0])  # the same in each channel; 0 is the mean of the training images: grey


def integrated_gradients(network: AlexNet, x: Tensor, target: int, upscale: int = 1) -> NDArray[np.float32]:
    """Return the contribution of each pixel to a label's logit on the path from a grey image."""
    method = _captum().IntegratedGradients(lambda images: network(images, upscale))
    heat = method.attribute(x, baselines=0.0, target=target, n_steps=STEPS, internal_batch_size=BATCH)
    return _numpy(heat[0].sum(0))


def _last_maps(network: AlexNet) -> str:
    """Return the layer that activates the last convolution."""
    return list(map_layers(network).values())[-1]


def _captum() -> Any:
    """Import captum's methods, or raise an AlexNetError if they are not installed."""
    try:
        import captum.attr
    except ImportError as error:
        raise AlexNetError(f"explaining needs captum ({error}): pip install captum") from error
    return captum.attr


def _log_odds(network: AlexNet, x: Tensor, target: int, upscale: int) -> Tensor:
    """Log p / (1 - p) of a label, by image; unlike p, it still changes when the network is certain."""
    logits: Tensor = network(x, upscale).float()
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1)
    return logits[:, target] - others.logsumexp(1)


def _numpy(heat: Tensor) -> NDArray[np.float32]:
    return np.asarray(heat.detach().float().cpu())
