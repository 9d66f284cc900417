"""Rate, loss and step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.recipe import Optimizer, Recipe, Schedule


def build_optimizer(network: nn.Module, settings: Optimizer) -> torch.optim.SGD:
    """Return SGD with momentum; weight decay acts on the weights of convolutions and dense layers alone."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},  # biases, scales and shifts of norms
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")  # one pass over 58 million weights instead of three
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused)


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
