"""Loss, the three forms of SGD, and frozen layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import alexnet
from alexnet.errors import RecipeError
from alexnet.recipe import Optimizer, Recipe, Train, load
from alexnet.training.optimizer import SGD, Loss, build_optimizer, set_lr, with_our_names
from alexnet.training.schedule import epoch_settings
from alexnet.training.trainer import Trainer
from conftest import SEED, started


def test_balanced_class_weights() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    recipe = Recipe(train=Train(class_weights="balanced"))
    loss = Loss(recipe.train, targets, 2, torch.device("cpu"))
    logits, first = torch.randn(100, 2), torch.from_numpy(targets)
    each = torch.nn.functional.cross_entropy(logits, first, reduction="none")
    torch.testing.assert_close(loss(logits, first), (each[:90].mean() + each[90:].mean()) / 2)


# The step


def weight_after(optimizer: Callable[[Tensor], torch.optim.Optimizer], steps: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Return a weight that starts at 1 after steps of (gradient, rate)."""
    weight = torch.ones(3, dtype=torch.float64)
    made = optimizer(weight)
    for gradient, rate in steps:
        weight.grad = torch.from_numpy(gradient)
        made.param_groups[0]["lr"] = rate
        made.step()
    return weight.numpy()


def by_formula(form: str, nesterov: bool, momentum: float, decay: float, steps: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """The formulas of the paper (section 5) and of Keras 3, in NumPy."""
    w, v = np.ones(3), np.zeros(3)
    for gradient, rate in steps:
        if form == "keras":
            w = w - rate * decay * w
        else:
            gradient = gradient + decay * w
        v = momentum * v - rate * gradient
        w = w + (momentum * v - rate * gradient if nesterov else v)
    return w


@st.composite
def gradient_steps(draw: st.DrawFn) -> list[tuple[np.ndarray, float]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    number = draw(st.integers(1, 8))
    return [(rng.normal(size=3), rate) for rate in draw(st.lists(st.floats(0, 0.5), min_size=number, max_size=number))]


@given(gradient_steps(), st.sampled_from(["keras", "2012"]), st.booleans(), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 0.5))
def test_sgd_steps_equal_numpy(steps: Any, form: str, nesterov: bool, momentum: float, decay: float) -> None:
    def made(weight: Tensor) -> torch.optim.Optimizer:
        group = {"params": [weight], "weight_decay": decay}
        return SGD([group], 0.1, momentum, form=form, nesterov=nesterov)

    np.testing.assert_allclose(weight_after(made, steps), by_formula(form, nesterov, momentum, decay, steps), rtol=1e-12)


@given(gradient_steps(), st.booleans(), st.sampled_from([0.5, 0.9]), st.floats(0, 0.5), st.floats(0.01, 0.3))
def test_sgd_2012_equals_pytorch_at_constant_lr(steps: Any, nesterov: bool, momentum: float, decay: float, rate: float) -> None:
    steps = [(gradient, rate) for gradient, _ in steps]
    ours = weight_after(lambda w: SGD([{"params": [w], "weight_decay": decay}], rate, momentum, form="2012", nesterov=nesterov), steps)  # fmt: skip  # noqa: E501
    theirs = weight_after(lambda w: torch.optim.SGD([w], rate, momentum, weight_decay=decay, nesterov=nesterov), steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@given(gradient_steps(), st.booleans(), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 0.5))
def test_sgd_pytorch_form_equals_pytorch(steps: Any, nesterov: bool, momentum: float, decay: float) -> None:
    nesterov = nesterov and momentum > 0
    groups = {"weight_decay": decay}
    ours = weight_after(lambda w: SGD([{"params": [w], **groups}], 0.1, momentum, form="pytorch", nesterov=nesterov), steps)
    theirs = weight_after(lambda w: torch.optim.SGD([w], 0.1, momentum, weight_decay=decay, nesterov=nesterov), steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_sgd_2012_keeps_velocity_when_lr_falls() -> None:
    steps = [(np.ones(3), 0.1), (np.zeros(3), 0.0)]
    velocity = weight_after(lambda w: SGD([{"params": [w]}], 0.1, 0.9, form="2012", nesterov=False), steps)
    pytorch = weight_after(lambda w: torch.optim.SGD([w], 0.1, 0.9), steps)
    np.testing.assert_allclose(velocity, 1 - 0.1 - 0.09)
    np.testing.assert_allclose(pytorch, 1 - 0.1)


@pytest.mark.parametrize("form", ["pytorch", "keras", "2012"])
@pytest.mark.parametrize("decays", ["weights", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_build_optimizer_steps_every_weight_by_formula(form: str, decays: str, momentum: float) -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    settings = Optimizer(
        form=form, decays=decays, momentum=momentum, nesterov=True, weight_decay=0.3, lr=0.1, lr_scale={"bias": 2.0}
    )  # type: ignore[arg-type]
    optimizer = build_optimizer(network, settings)
    before = {name: p.detach().double().numpy() for name, p in network.named_parameters()}
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    for _ in range(2):
        set_lr(optimizer, 0.1, settings.lr_scale)
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()
    for name, parameter in network.named_parameters():
        is_bias = name.endswith("bias") and "norm" not in name
        decay = 0.3 if decays == "all" or (not is_bias and "norm" not in name) else 0.0
        g, w, v, rate = gradients[name].double().numpy(), before[name], 0.0, 0.2 if is_bias else 0.1
        for _ in range(2):
            w, total = (w * (1 - rate * decay), g) if form == "keras" else (w, g + decay * w)
            v = momentum * v - rate * total
            w = w + momentum * v - rate * total
        np.testing.assert_allclose(parameter.detach().numpy(), w, atol=2e-6, err_msg=name)


def test_lr_scale_of_layer_and_kind_multiply() -> None:
    optimizer = build_optimizer(alexnet.AlexNet("cifar10", 3, width=1 / 16), Optimizer())
    set_lr(optimizer, 0.5, {"conv2": 0.1, "bias": 2.0, "conv2.bias": 10.0, "conv3.weight": 0.0, "norm1.bias": 3.0})
    result = {group["name"]: group["lr"] for group in optimizer.param_groups}
    special = {"conv2.weight": 0.05, "conv2.bias": 1.0, "conv3.weight": 0.0, "norm1.bias": 1.5}
    plain = {name: 1.0 if name.endswith("bias") and not name.startswith("norm") else 0.5 for name in result}
    assert result == pytest.approx({**plain, **special}), "the shift of a norm is not a bias unless named"
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}, "nothing stays of factors before"


def test_lr_scale_of_unknown_layer_names_the_nearest(photos: Path, tmp_path: Path) -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    for name, close in (("conv1.wieght", "conv1.weight"), ("biases", "bias"), ("fc9", "fc")):
        with pytest.raises(RecipeError, match=f"optimizer.lr_scale names {name!r}: did you mean '{close}"):
            build_optimizer(network, Optimizer(lr_scale={name: 0.1}))
    with pytest.raises(RecipeError, match=r"schedule\.table names 'cnov1': did you mean 'conv1'"):
        started(tmp_path / "run", photos, **{"schedule.table": [{"epoch": 2, "lr_scale": {"cnov1": 0.0}}]})


def test_lr_scale_of_layers_that_the_variant_lacks_is_ignored_with_a_line() -> None:
    lines: list[str] = []
    network, table = alexnet.AlexNet("four-layer", 3, width=1 / 16), [{"epoch": 2, "lr_scale": {"conv4.bias": 0.0}}]
    recipe = Recipe.model_validate({"optimizer": {"lr_scale": load("fast").optimizer.lr_scale}, "schedule": {"table": table}})
    resolved = with_our_names(recipe, network, lines.append)
    assert resolved.optimizer.lr_scale == {"fc8": 0.1}
    assert resolved.schedule.table[0].lr_scale == {}
    assert [line.split(",")[0] for line in lines] == [
        "optimizer.lr_scale names 'fc6'",
        "optimizer.lr_scale names 'fc7'",
        "schedule.table names 'conv4.bias'",
    ]


def test_lr_scale_takes_the_names_of_torchvision() -> None:
    network = alexnet.AlexNet("owt", 3, width=1 / 16)
    table = [{"epoch": 2, "lr_scale": {"conv1": 0.0}}, {"epoch": 3, "lr_scale": {"features.0": 0.5}}]
    scale = {"classifier.6.bias": 3.0, "bias": 2.0, "features.0": 0.25}
    resolved = with_our_names(Recipe.model_validate({"optimizer": {"lr_scale": scale}, "schedule": {"table": table}}), network)
    assert resolved.optimizer.lr_scale == {"fc8.bias": 3.0, "bias": 2.0, "conv1": 0.25}
    assert [epoch_settings(resolved.schedule, epoch).lr_scale for epoch in (1, 2, 3)] == [{}, {"conv1": 0.0}, {"conv1": 0.5}]
    for names in (["conv1", "features.0"], ["features.0.weight", "conv1.weight"]):
        with pytest.raises(RecipeError, match=rf"optimizer\.lr_scale names {names[1]!r}, which is 'conv1.* too: name it once"):
            build_optimizer(network, Optimizer(lr_scale=dict.fromkeys(names, 0.1)))
    with pytest.raises(RecipeError, match=r"optimizer\.lr_scale names 'features\.0': "):
        build_optimizer(alexnet.AlexNet("cifar10", 3, width=1 / 16), Optimizer(lr_scale={"features.0": 0.1}))


def test_training_is_the_same_with_the_names_of_torchvision(photos: Path, tmp_path: Path) -> None:
    weights = []
    for name, conv, pool, dense in (("ours", "conv2", "pool1", "fc6"), ("theirs", "features.3", "features.2", "classifier.1")):
        table = [{"epoch": 2, "lr_scale": {f"{conv}.weight": 0.3}}]
        scale = {dense: 0.1, conv: 0.5}
        changes = {"optimizer.frozen": pool, "optimizer.lr_scale": scale, "schedule.table": table, "train.epochs": 2}
        started(tmp_path / name, photos, **{"model.variant": "owt", "schedule.kind": "constant", **changes})
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


# Frozen layers


@pytest.mark.parametrize("form", ["pytorch", "keras"])
def test_frozen_layers_keep_weights_and_statistics(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, step = [], Trainer.train_step

    def watched(self: Trainer, *args: Any) -> None:
        step(self, *args)
        stepped.append({name: p.grad is not None for name, p in self.network.named_parameters()})

    monkeypatch.setattr(Trainer, "train_step", watched)
    changes = {"optimizer.frozen": "norm3", "optimizer.form": form, "optimizer.decays": "all", "train.epochs": 2}
    started(tmp_path / "run", photos, **changes)
    torch.manual_seed(SEED)
    first = alexnet.AlexNet("cifar10", 2, width=1 / 16, batch_norm_momentum=0.1, dropout=0.1).state_dict()
    after = alexnet.load(tmp_path / "run").network.state_dict()
    still = {
        name for name in first if any(f".{layer}." in name for layer in ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3"))
    }
    assert len(still) == 21
    assert {name for name in first if torch.equal(first[name], after[name])} == still
    for gradients in stepped:
        assert {name for name, there in gradients.items() if not there} == still & set(gradients)


def test_frozen_last_layer_is_refused() -> None:
    network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
    with pytest.raises(RecipeError, match=r"optimizer\.frozen is 'fc8'.* the last layer"):
        build_optimizer(network, Optimizer(frozen="fc8"))
    with pytest.raises(RecipeError, match=r"optimizer\.frozen is 'pol5': did you mean 'pool5'"):
        build_optimizer(network, Optimizer(frozen="pol5"))
    with pytest.raises(RecipeError, match=r"optimizer\.frozen is 'classifier\.6', the last layer"):
        build_optimizer(alexnet.AlexNet("owt", 3, width=1 / 16), Optimizer(frozen="classifier.6"))
    build_optimizer(network, Optimizer(frozen="dropout7"))
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
