"""Rate, loss and step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.errors import RecipeError, nearest
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Optimizer, Recipe, Schedule


def build_optimizer(network: AlexNet, settings: Optimizer) -> torch.optim.SGD:
    """Return SGD with momentum; weight decay acts on the weights of convolutions and dense layers alone.

    Each group has, beside what PyTorch knows, a `rate_factor`, for `set_rate`.

    Raises:
        RecipeError: a rate factor for a layer that the network does not have.
    """
    if unknown := sorted(set(settings.rate_factors) - set(network.layer_names)):
        raise RecipeError(f"optimizer.rate_factors names the layer {unknown[0]!r}: {nearest(unknown[0], network.layer_names)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    layers = {**dict(network.features.named_children()), "fc8": network.head}
    for name, layer in layers.items():
        for parameter in layer.parameters():
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0  # not biases, scales and shifts of norms
            groups.setdefault((decay, settings.rate_factors.get(name, 1.0)), []).append(parameter)
    listed = [{"params": p, "weight_decay": decay, "rate_factor": factor} for (decay, factor), p in groups.items()]
    fused = network.head.weight.device.type in ("cpu", "cuda")  # one pass over 58 million weights instead of three
    return torch.optim.SGD(listed, lr=settings.rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate: `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def rate_at(progress: float, peak: float, schedule: Schedule) -> float:
    """Return the learning rate at `progress` (0 to 1) of the training: up in a line to `peak`, then down in a line to 0."""
    if progress < schedule.warmup:
        return peak * progress / schedule.warmup
    return peak * max(0.0, 1 - progress) / (1 - schedule.warmup)


def build_loss(recipe: Recipe, targets: NDArray[np.int64], classes: int, device: torch.device) -> nn.CrossEntropyLoss:
    """Return the cross-entropy that the recipe asks for; `targets` are those of the training images.

    Balanced weights are images / (classes * images of the class), so a class counts alike however rare it is.
    """
    weight = None
    if recipe.train.class_weights == "balanced":
        counts = np.bincount(targets, minlength=classes)
        weight = torch.tensor(len(targets) / (classes * counts.clip(1)), dtype=torch.float32, device=device)
    return nn.CrossEntropyLoss(weight, label_smoothing=recipe.train.label_smoothing)
