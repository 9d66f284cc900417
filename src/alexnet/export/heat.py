"""Grad-CAM in operations that ONNX has: the gradient of the layers behind the last feature maps, written out.

Grad-CAM weighs each map by its mean gradient, so only the sum of the gradient over a map's positions is needed. Pooling, to
maxima or to a grid, moves the gradient but leaves that sum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import BatchNorm, Dropout2012, FlattenMaps

ACTIVATIONS = nn.ReLU, nn.Tanh
FOLLOWED = (*ACTIVATIONS, nn.Linear, nn.Dropout, nn.MaxPool2d, BatchNorm, FlattenMaps)  # layers whose gradient `heat` knows


def has_heat(network: AlexNet) -> bool:
    """Return whether all layers behind the last feature maps are of a kind that `heat` follows."""
    return all(isinstance(layer, FOLLOWED) for layer in _behind(network.layers).values())


def heat(layers: Mapping[str, nn.Module], outputs: Mapping[str, Tensor], target: Tensor, side: int) -> Tensor:
    """Return the map of the log-odds of label `target`, one number, for the first image: `side` x `side`, nowhere below 0.

    `outputs` are those of the layers, by name, in evaluation mode.
    """
    behind = _behind(layers)
    maps = outputs[list(layers)[-1 - len(behind)]][0]  # C H W
    logits = outputs[list(layers)[-1]][:1]
    label = torch.arange(logits.shape[1]) == target
    gradient = label.float() - logits.masked_fill(label, -torch.inf).softmax(1)  # 1 x units, then 1 C: a sum for each map
    for name, layer in reversed(behind.items()):
        gradient = _through(layer, outputs[name][:1], gradient)
    found = (gradient[0, :, None, None] * maps).sum(0).relu() / (maps.shape[1] * maps.shape[2])
    return interpolate(found[None, None], size=(side, side), mode="bilinear")[0, 0]


def _behind(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the layers behind the last feature maps, those that the last convolution's activation returns."""
    names = list(layers)
    last = max(i for i in range(names.index("flatten")) if isinstance(layers[names[i]], ACTIVATIONS))
    return {name: layers[name] for name in names[last + 1 :]}


def _through(layer: nn.Module, output: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a layer's input, given that of its output; of maps, 1 C, summed over their positions."""
    match layer:
        case nn.Linear():
            return gradient @ layer.weight
        case nn.ReLU():
            return gradient * (output > 0)
        case nn.Tanh():
            return gradient * (1 - output.square())
        case Dropout2012():
            return gradient * (1 - layer.p)
        case BatchNorm():
            return gradient * layer.weight * (layer.running_var + layer.eps).rsqrt()
        case FlattenMaps(order="HWC"):
            return gradient.reshape(1, layer.grid**2, -1).sum(1)
        case FlattenMaps():
            return gradient.reshape(1, -1, layer.grid**2).sum(2)
        case _:
            return gradient  # dropout, which does nothing here, and pooling
