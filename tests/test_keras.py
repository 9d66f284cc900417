"""The networks of the four tutorials equal Keras at full width: outputs, losses, steps, initial weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from alexnet import AlexNet
from alexnet.recipe import Optimizer, load
from alexnet.training.optimizer import Loss, build_optimizer, set_lr
from conftest import mostly_long
from keras_golden import agree, golden, inputs, relative

NETWORKS = mostly_long("question", inputs.QUESTIONS, inputs.QUESTIONS[0], ids=lambda question: question.name)

# Our names of a layer's tensors, by Keras' names.
OURS = {
    **{"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
}


def tensors(network: AlexNet) -> dict[str, Tensor]:
    """Return our tensors in Keras' order and by Keras' names: `conv1.kernel` ... `norm1.moving_variance` ... `fc8.bias`."""
    result = {}
    for name, layer in network.layers.items():
        kinds = list(inputs.DRAWS)[2:] if name.startswith("norm") else list(inputs.DRAWS)[:2]
        result |= {f"{name}.{kind}": getattr(layer, OURS[kind]).detach() for kind in kinds if hasattr(layer, OURS[kind])}
    return result


def to_keras(tensor: Tensor) -> Tensor:
    """O I H W -> H W I O; out x in -> in x out."""
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


@functools.cache
def trained(question: inputs.Question, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return our network's outputs, losses and trained weights, in the format of the golden files, as float64.

    It takes five steps in float64, and one in float32.
    """
    steps = inputs.STEPS if dtype == torch.float64 else 1
    network = AlexNet(question.name, question.classes, dropout=0.0).to(dtype)
    ours = tensors(network)
    for name, values in inputs.draw_weights((name, tuple(to_keras(t).shape)) for name, t in ours.items()):
        to_keras(ours[name]).copy_(torch.from_numpy(values))
    start = {name: tensor.clone() for name, tensor in ours.items()}
    array, numbers = inputs.draw_batch(question)
    # Contiguous: on channels-last float32 maps, PyTorch's batch norm sums less accurately (7e-6 rather than 4e-7).
    images = torch.from_numpy(array).to(dtype).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(numbers)

    recipe = load(question.name)
    optimizer = build_optimizer(network, recipe.optimizer)
    set_lr(optimizer, recipe.optimizer.lr)
    loss_of = Loss(recipe.train, numbers, question.classes, torch.device("cpu"))
    with torch.no_grad():
        logits = network.eval()(images)
    result, losses = {"logits": logits, "probabilities": logits.softmax(1)}, []
    network.train()
    for step in range(1, steps + 1):
        loss = loss_of(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step in (1, inputs.STEPS):
            result |= {f"step{step}/{name}": _summary(name, tensor, start[name]) for name, tensor in ours.items()}
    return {key: value.double().numpy() for key, value in (result | {"losses": torch.stack(losses)}).items()}


def _summary(name: str, after: Tensor, before: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in (after, after - before)]
    at = torch.from_numpy(inputs.places(name, after.numel()))
    return torch.cat([torch.stack(norms) / math.sqrt(after.numel()), to_keras(after).reshape(-1)[at].double()])


def answers(question: inputs.Question, dtype: torch.dtype, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield our arrays and Keras', for names that begin with `part`."""
    of_keras, ours = golden(question.name), trained(question, dtype)
    prefix = str(dtype).removeprefix("torch.") + "/"
    names = [key.removeprefix(prefix) for key in of_keras if key.startswith(prefix + part)]
    assert names
    assert names == [key for key in ours if key.startswith(part)]
    for name in names:
        yield ours[name], of_keras[prefix + name]


def deviation(question: inputs.Question, dtype: torch.dtype, part: str) -> float:
    return max(relative(result, expected) for result, expected in answers(question, dtype, part))


def step_deviation(question: inputs.Question, dtype: torch.dtype, step: int) -> tuple[float, float]:
    """Return the largest deviation of a tensor, and the largest relative to its change during the steps."""
    worst, worst_change = 0.0, 0.0
    for result, expected in answers(question, dtype, f"step{step}/"):
        (typical, change), off = expected[:2], np.abs(result[2:] - expected[2:]).max()
        worst = max(worst, relative(result[2:], expected[2:], typical), relative(result[:1], expected[:1]))
        worst_change = max(worst_change, off / change, relative(result[1:2], expected[1:2]))
    return worst, worst_change


@NETWORKS
def test_float64_outputs_and_losses_equal_keras(question: inputs.Question) -> None:
    for part in ("probabilities", "logits", "losses"):
        agree(f"{part}, float64", question.name, 1e-9, deviation(question, torch.float64, part))


@NETWORKS
@pytest.mark.parametrize("step", [1, inputs.STEPS])
def test_float64_training_equals_keras(question: inputs.Question, step: int) -> None:
    tensor, change = step_deviation(question, torch.float64, step)
    agree(f"weights and statistics, step {step}, float64", question.name, 1e-9, tensor)
    agree(f"their change since the start, step {step}, float64", question.name, 1e-6, change)


@pytest.mark.parametrize("number", range(len(inputs.OPTIMIZERS)))
def test_optimizer_equals_keras(number: int) -> None:
    settings = inputs.OPTIMIZERS[number]
    ours = Optimizer(form="keras", decays="all", **{**settings, "weight_decay": settings["weight_decay"] or 0.0})
    start, gradients = inputs.draw_gradients()
    network = AlexNet("cifar10", len(start), width=1 / 64).double()
    vector = network.head.bias
    vector.data.copy_(torch.from_numpy(start))
    optimizer, taken = build_optimizer(network, ours), []
    for rate, gradient in zip(inputs.RATES, gradients, strict=True):
        vector.grad = torch.from_numpy(gradient)
        set_lr(optimizer, rate)
        optimizer.step()
        taken.append(vector.detach().clone().numpy())
    off = relative(np.array(taken), golden("steps")["float64/steps"][number])
    # Keras rounds momentum and decay to float32, regardless of the weights' dtype.
    agree("steps of the optimizer, float64", f"optimizer {number + 1}", 1e-6, off)


@pytest.mark.long
@NETWORKS
def test_float32_outputs_losses_and_training_equal_keras(question: inputs.Question) -> None:
    for part in ("probabilities", "logits", "losses"):
        agree(f"{part}, float32", question.name, 1e-5, deviation(question, torch.float32, part))
    tensor, change = step_deviation(question, torch.float32, 1)
    agree("weights and statistics, step 1, float32", question.name, 1e-4, tensor)
    agree("their change since the start, step 1, float32", question.name, 1e-2, change)


@NETWORKS
def test_initial_weights_follow_keras_distribution(question: inputs.Question) -> None:
    """Kernels are uniform within Glorot's limits, by Kolmogorov-Smirnov tests against the distribution and Keras' weights."""
    torch.manual_seed(0)
    ours = tensors(AlexNet(question.name, question.classes))
    of_keras = {key.removeprefix("first/"): v for key, v in golden(question.name).items() if key.startswith("first/")}
    assert ours.keys() == of_keras.keys()
    against_law, against_keras, outside = 0.0, 0.0, 0.0
    for name, expected in of_keras.items():
        if not name.endswith("kernel"):
            assert ours[name].unique().tolist() == np.unique(expected).tolist(), name
            continue
        least, greatest, mean, spread, *sample = expected
        kernel = to_keras(ours[name])
        limit = inputs.glorot_limit(tuple(kernel.shape))
        for moment, want in ((-least, limit), (greatest, limit), (spread, limit / np.sqrt(3))):
            assert moment == pytest.approx(want, rel=0.03), f"{name}: Keras does not follow the distribution"
        assert abs(mean) < 5 * spread / np.sqrt(kernel.numel()), f"{name}: Keras does not follow the distribution"
        result = kernel.reshape(-1)[:: max(1, kernel.numel() // 20_000)].numpy()
        pairs = len(result) * len(sample) / (len(result) + len(sample))
        outside = max(outside, float(kernel.abs().max()) / limit - 1)
        against_law = max(
            against_law, scipy.stats.kstest(result, "uniform", (-limit, 2 * limit)).statistic * len(result) ** 0.5
        )
        against_keras = max(against_keras, scipy.stats.ks_2samp(result, sample).statistic * pairs**0.5)
    agree("first weights outside Glorot's limits", question.name, 1e-6, outside)
    # sqrt(n) times the Kolmogorov-Smirnov statistic: above 2.3 for one sample in 20,000.
    agree("first weights, distance from the law", question.name, 2.3, against_law)
    agree("first weights, distance from Keras'", question.name, 2.3, against_keras)
