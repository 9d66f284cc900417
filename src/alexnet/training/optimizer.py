"""Loss and step: stochastic gradient descent in the three forms of the texts."""

from __future__ import annotations

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
from alexnet.recipe import Optimizer, Train


def orthogonalize(matrix: Tensor, rounds: int = 3) -> Tensor:
    """Return about the orthogonal matrix next to `matrix`, R x C: all its singular values near 1, its directions kept.

    By the iteration of Muon (Jordan and others 2024), X <- aX + (bA + cA^2)X with A = X X^T, which draws singular values to
    about 0.7 to 1.2. Computed in bfloat16 where that is fast, as it need not be exact; the result is float32.
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
    """Stochastic gradient descent in the three forms of the texts, one pass over memory where there are kernels.

    `pytorch`: v = momentum * v + gradient + decay * w; w -= rate * v, or with `nesterov`
    w -= rate * (gradient + decay * w + momentum * v). In the others the rate is inside the velocity, so that a lower rate acts
    on the coming gradients alone. `2012` (paper, section 5): v = momentum * v - rate * (gradient + decay * w); w += v.
    `keras` (Keras 3): w -= rate * decay * w; then v = momentum * v - rate * gradient; w += v, or with `nesterov`
    w += momentum * v - rate * gradient. `muon`: as `pytorch` with `nesterov`, but along the `orthogonalize` matrix next to the
    step, a row an output and whatever the groups; decay is taken from the weights, times the rate. Groups say which form
    theirs is, else it is `form`. Groups and state (`momentum_buffer`) are named as in `torch.optim.SGD`.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, *, form: str, nesterov: bool) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.form, self.nesterov = form, nesterov

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients; parameters without one stay."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    move = self._muon_update if group.get("form") == "muon" else self._sgd_update
                    move(weight, weight.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _muon_update(self, weight: Tensor, gradient: Tensor, rate: float, momentum: float, decay: float) -> None:
        velocity = self._velocity(weight)
        velocity.mul_(momentum).add_(gradient)
        ahead = gradient.float().add(velocity, alpha=momentum)
        weight.mul_(1 - rate * decay).sub_(orthogonalize(ahead.flatten(1)).view_as(weight), alpha=rate)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity

    def _sgd_update(self, weight: Tensor, gradient: Tensor, rate: float, momentum: float, decay: float) -> None:
        velocity = self._velocity(weight) if momentum else None
        settings = {"rate": rate, "momentum": momentum, "decay": decay}
        if fuse.step(weight, gradient, velocity, form=self.form, nesterov=self.nesterov, **settings):
            return
        if decay and self.form == "keras":
            weight.mul_(1 - rate * decay)
        elif decay:
            gradient = gradient.add(weight, alpha=decay)
        if velocity is None:
            weight.sub_(gradient, alpha=rate)
        elif self.form == "pytorch":
            velocity.mul_(momentum).add_(gradient)
            weight.sub_(gradient.add(velocity, alpha=momentum) if self.nesterov else velocity, alpha=rate)
        elif self.nesterov:
            velocity.mul_(momentum).sub_(gradient, alpha=rate)
            weight.add_(velocity, alpha=momentum).sub_(gradient, alpha=rate)
        else:
            weight.add_(velocity.mul_(momentum).sub_(gradient, alpha=rate))


def build_optimizer(network: AlexNet, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer, with a group for each parameter, whose `name` (`conv1.bias`) is for `set_rate`.

    Frozen layers take no gradient from here on.

    Raises:
        RecipeError: a rate factor for a layer, or a frozen layer, that the network does not have.
    """
    check_names(network, settings.lr_scale, "optimizer.lr_scale")
    still = frozen(network, settings)
    groups = []
    for name, layer in network.layers.items():
        for kind, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in still)
            decays = settings.decays == "all" or parameter.ndim > 1  # else not biases, scales and shifts of norms
            decay = settings.weight_decay if decays else 0.0
            group = {"params": [parameter], "weight_decay": decay, "name": f"{name}.{kind}"}
            if settings.muon_lr and parameter.ndim == 4:
                group |= {"form": "muon", "momentum": settings.muon_momentum, "factor": settings.muon_lr / settings.lr}
            groups.append(group)
    nesterov = settings.nesterov and settings.momentum > 0  # without momentum there is nothing to look ahead along
    if settings.form == "pytorch" and not settings.muon_lr and network.head.weight.device.type == "cuda":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    return SGD(groups, settings.lr, settings.momentum, form=settings.form, nesterov=nesterov)


def frozen(network: AlexNet, settings: Optimizer) -> dict[str, nn.Module]:
    """Return the layers that keep their first weights and statistics, by name.

    Raises:
        RecipeError: no such layer, or the last.
    """
    names = list(network.layer_names)
    if settings.frozen is None:
        return {}
    if settings.frozen not in names:
        raise RecipeError(f"optimizer.frozen is {settings.frozen!r}: {suggest(settings.frozen, names)}")
    if settings.frozen == names[-1]:
        raise RecipeError(
            f"optimizer.frozen is {settings.frozen!r}, the last layer: name one before it, as nothing would train"
        )
    return {name: network.layers[name] for name in names[: names.index(settings.frozen) + 1]}


def check_names(network: AlexNet, factors: Mapping[str, float], key: str) -> None:
    """Refuse factors for what the network does not have.

    Raises:
        RecipeError: naming `key` of the recipe and the nearest name.
    """
    known = {"bias"}
    for name, layer in network.layers.items():
        known |= {name, *(f"{name}.{kind}" for kind, _ in layer.named_parameters())}
    if unknown := sorted(set(factors) - known):
        raise RecipeError(f"{key} names {unknown[0]!r}: {suggest(unknown[0], known)}")


def set_lr(optimizer: torch.optim.Optimizer, rate: float, factors: Mapping[str, float] | None = None) -> None:
    """Give every group its rate: `rate` times its own factor, and the `factors` for its layer, its kind (`bias`) or both."""
    for group in optimizer.param_groups:
        layer, _, kind = group["name"].partition(".")
        factor = group.get("factor", 1.0)
        for key in (layer, "bias" if kind == "bias" and not layer.startswith("norm") else "", group["name"]):
            factor *= (factors or {}).get(key, 1.0)
        group["lr"] = rate * factor


class Loss:
    """The loss that a recipe asks for: a mean over images.

    `binary` is the mean sigmoid cross-entropy of every class against all others: what Keras 3 makes of
    `binary_crossentropy` on one-hot labels after a softmax, whose logits it finds (tutorial 001).
    Balanced weights are images / (classes * images of the class), so a class counts alike however rare it is.
    """

    def __init__(self, train: Train, targets: NDArray[np.int64], classes: int, device: torch.device) -> None:
        """`targets` are the training images'."""
        self.binary, self.smoothing, self.classes = train.loss == "binary", train.label_smoothing, classes
        self.weights: Tensor | None = None  # of the classes
        if train.class_weights == "balanced":
            counts = np.bincount(targets, minlength=classes)
            self.weights = torch.tensor(len(targets) / (classes * counts.clip(1)), dtype=torch.float32, device=device)

    def __call__(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of logits N x classes whose targets are `wanted`, N int64."""
        if not self.binary:
            weights = None if self.weights is None else self.weights.to(logits.dtype)
            return cross_entropy(logits, wanted, weights, label_smoothing=self.smoothing)
        smooth = one_hot(wanted, self.classes).to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        each = None if self.weights is None else self.weights[wanted][:, None].to(logits.dtype)
        return binary_cross_entropy_with_logits(logits, smooth, each)

    def normalizer(self, wanted: Tensor) -> float:
        """Return what a mean over images of these targets divides by: their number, or the sum of their weights."""
        if self.binary or self.weights is None:
            return len(wanted)
        return self.weights.cpu()[wanted.cpu()].double().sum().item()
