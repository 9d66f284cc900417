"""The loss, and SGD as PyTorch, Keras and the 2012 paper define it, with Muon for convolutions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from alexnet.errors import RecipeError, suggest
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import has_fast_bfloat16
from alexnet.network.fast import fuse
from alexnet.progress import say
from alexnet.recipe import Optimizer, Recipe, Train

LAYERS = {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}  # of AlexNet; a variant may lack some


def orthogonalize(matrix: Tensor, rounds: int = 3) -> Tensor:
    """Approximate the orthogonal matrix nearest to `matrix`, R x C, which has the same singular vectors.

    Uses the Newton-Schulz iteration of Muon (Jordan and others 2024), X <- aX + (bA + cA^2)X with A = X X^T, which brings
    singular values to about 0.7 to 1.2. Computed in bfloat16 where that is fast; the result is float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result.float()


class SGD(torch.optim.Optimizer):
    """Stochastic gradient descent in one of several forms, computed in one pass over memory if the kernels are available.

    - `pytorch`: v = momentum * v + gradient + decay * w; w -= lr * v, or with `nesterov`
      w -= lr * (gradient + decay * w + momentum * v).
    - `2012` (paper, section 5): v = momentum * v - lr * (gradient + decay * w); w += v.
    - `keras` (Keras 3): w -= lr * decay * w; then v = momentum * v - lr * gradient; w += v, or with `nesterov`
      w += momentum * v - lr * gradient.
    - `muon`: `pytorch` with `nesterov`, but the update is orthogonalised (as a matrix with a row per output), and weight decay
      is decoupled: w -= lr * decay * w.

    In `2012` and `keras` the learning rate is part of the velocity: lowering it affects only later gradients. A parameter
    group may set its own `form`. Groups and state (`momentum_buffer`) are named as in `torch.optim.SGD`.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, *, form: str, nesterov: bool) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.form, self.nesterov = form, nesterov

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._muon_update if group.get("form") == "muon" else self._sgd_update
                    update(weight, weight.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _muon_update(self, weight: Tensor, gradient: Tensor, lr: float, momentum: float, decay: float) -> None:
        velocity = self._velocity(weight)
        velocity.mul_(momentum).add_(gradient)
        nesterov = gradient.float().add(velocity, alpha=momentum)
        weight.mul_(1 - lr * decay).sub_(orthogonalize(nesterov.flatten(1)).view_as(weight), alpha=lr)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity

    def _sgd_update(self, weight: Tensor, gradient: Tensor, lr: float, momentum: float, decay: float) -> None:
        velocity = self._velocity(weight) if momentum else None
        form, nesterov = self.form, self.nesterov
        if fuse.step(weight, gradient, velocity, form=form, lr=lr, momentum=momentum, decay=decay, nesterov=nesterov):
            return
        if decay and self.form == "keras":
            weight.mul_(1 - lr * decay)
        elif decay:
            gradient = gradient.add(weight, alpha=decay)
        if velocity is None:
            weight.sub_(gradient, alpha=lr)
        elif self.form == "pytorch":
            velocity.mul_(momentum).add_(gradient)
            weight.sub_(gradient.add(velocity, alpha=momentum) if self.nesterov else velocity, alpha=lr)
        elif self.nesterov:
            velocity.mul_(momentum).sub_(gradient, alpha=lr)
            weight.add_(velocity, alpha=momentum).sub_(gradient, alpha=lr)
        else:
            weight.add_(velocity.mul_(momentum).sub_(gradient, alpha=lr))


def build_optimizer(network: AlexNet, settings: Optimizer) -> torch.optim.Optimizer:
    """Build the optimizer, with a parameter group for each parameter, named as `conv1.bias`; freeze the frozen layers."""
    layer_factors(network, settings.lr_scale, "optimizer.lr_scale")
    frozen = frozen_layers(network, settings)
    groups = []
    for name, layer in network.layers.items():
        for kind, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in frozen)
            decays = settings.decays == "all" or parameter.ndim > 1  # biases and norms have one dimension
            decay = settings.weight_decay if decays else 0.0
            group = {"params": [parameter], "weight_decay": decay, "name": f"{name}.{kind}"}
            if settings.muon_lr and parameter.ndim == 4:
                group |= {"form": "muon", "momentum": settings.muon_momentum, "factor": settings.muon_lr / settings.lr}
            groups.append(group)
    nesterov = settings.nesterov and settings.momentum > 0
    if settings.form == "pytorch" and not settings.muon_lr and network.head.weight.device.type == "cuda":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    return SGD(groups, settings.lr, settings.momentum, form=settings.form, nesterov=nesterov)


def frozen_layers(network: AlexNet, settings: Optimizer) -> dict[str, nn.Module]:
    """Return the layers up to and including `optimizer.frozen`, by name."""
    if settings.frozen is None:
        return {}
    names, last = list(network.layer_names), network.torchvision_names.get(settings.frozen, settings.frozen)
    if last == "features":
        last = names[-2]
    if last not in names:
        raise RecipeError(f"optimizer.frozen is {settings.frozen!r}: {suggest(last, [*names, 'features'])}")
    if last == names[-1]:
        raise RecipeError(
            f"optimizer.frozen is {settings.frozen!r}, the last layer: name one before it, or nothing would be trained"
        )
    return {name: network.layers[name] for name in names[: names.index(last) + 1]}


def layer_factors(
    network: AlexNet, factors: Mapping[str, float], key: str, log: Callable[[str], object] = say
) -> dict[str, float]:
    """Return `factors`, the recipe's `key`, under our names of layers and parameters of the network, and `bias`.

    Those of AlexNet's layers that the variant lacks are left out, and `log` is told: a recipe serves several variants.
    """
    known, ours = {"bias": "bias"}, dict[str, float]()
    for theirs, name in [*network.torchvision_names.items(), *zip(network.layers, network.layers, strict=True)]:
        kinds = (f".{kind}" for kind, _ in network.layers[name].named_parameters())
        known |= {f"{theirs}{kind}": f"{name}{kind}" for kind in ("", *kinds)}
    for name, factor in factors.items():
        if name.partition(".")[0] in LAYERS - set(network.layers):
            log(f"{key} names {name!r}, which variant {network.row.name!r} does not have: it is ignored")
            continue
        if name not in known:
            raise RecipeError(f"{key} names {name!r}: {suggest(name, known)}")
        if known[name] in ours:
            raise RecipeError(f"{key} names {name!r}, which is {known[name]!r} too: name it once")
        ours[known[name]] = factor
    return ours


def with_our_names(recipe: Recipe, network: AlexNet, log: Callable[[str], object] = say) -> Recipe:
    """Return a recipe whose learning rate factors, in `optimizer.lr_scale` and `schedule.table`, have our names of layers."""
    optimizer, schedule = recipe.optimizer, recipe.schedule
    scale = layer_factors(network, optimizer.lr_scale, "optimizer.lr_scale", log)
    rows = ((row, layer_factors(network, row.lr_scale, "schedule.table", log)) for row in schedule.table)
    table = tuple(row.model_copy(update={"lr_scale": factors}) for row, factors in rows)
    changes = {
        "optimizer": optimizer.model_copy(update={"lr_scale": scale}),
        "schedule": schedule.model_copy(update={"table": table}),
    }
    return recipe.model_copy(update=changes)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, factors: Mapping[str, float] | None = None) -> None:
    """Set the learning rate of each group: `lr` times its own factor, and those for its layer, for `bias`, and for both."""
    for group in optimizer.param_groups:
        layer, _, kind = group["name"].partition(".")
        factor = group.get("factor", 1.0)
        for key in (layer, "bias" if kind == "bias" and not layer.startswith("norm") else "", group["name"]):
            factor *= (factors or {}).get(key, 1.0)
        group["lr"] = lr * factor


class Loss:
    """The recipe's loss, averaged over images.

    `binary` is the sigmoid cross-entropy of each class against the others, averaged over classes: what Keras 3 computes for
    `binary_crossentropy` after a softmax, because it takes the softmax's logits (tutorial 001). Balanced class weights are
    images / (classes * images of the class), so that rare classes count as much as frequent ones.
    """

    def __init__(self, train: Train, targets: NDArray[np.int64], classes: int, device: torch.device) -> None:
        """`targets` are those of all training images."""
        self.binary, self.smoothing, self.classes = train.loss == "binary", train.label_smoothing, classes
        self.weights: Tensor | None = None  # one a class
        if train.class_weights == "balanced":
            counts = np.bincount(targets, minlength=classes)
            self._cpu_weights = torch.tensor(len(targets) / (classes * counts.clip(1)), dtype=torch.float32)
            self.weights = self._cpu_weights.to(device)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits N x classes with targets N int64, or N x classes float32 of mixed images."""
        if not self.binary:
            weights = None if self.weights is None else self.weights.to(logits.dtype)
            if not targets.is_floating_point():
                return cross_entropy(logits, targets, weights, label_smoothing=self.smoothing)
            total = cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=self.smoothing)
            return total / (targets.sum() if weights is None else (targets @ weights).sum())
        labels = targets if targets.is_floating_point() else one_hot(targets, self.classes)
        smoothed = labels.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        image_weights = (
            None if self.weights is None else (labels.to(self.weights.dtype) @ self.weights)[:, None].to(logits.dtype)
        )
        return binary_cross_entropy_with_logits(logits, smoothed, image_weights)

    def normalizer(self, targets: Tensor) -> float:
        """Return the divisor of the mean over images with these targets: their number, or the sum of their weights.

        The targets are in main memory.
        """
        if self.binary or self.weights is None:
            return len(targets)
        weights = self._cpu_weights.double()
        return (targets.double() @ weights if targets.is_floating_point() else weights[targets]).sum().item()
