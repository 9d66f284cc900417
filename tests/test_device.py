"""Results that must be the same on every device: run on the CPU, or on the one that ALEXNET_TEST_DEVICE names (`make gpu`).

The reference is computed on the CPU, in float64 where the layers allow it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from copy import deepcopy
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alexnet import AlexNet
from alexnet.data.augment import DRAWS, training_input
from alexnet.data.preprocessing import to_input
from alexnet.errors import AlexNetError
from alexnet.inference.forward import predict_logits
from alexnet.inference.views import views
from alexnet.network.device import (
    autocast,
    backend_settings,
    choose_device,
    has_fast_bfloat16,
    is_out_of_memory,
    processor,
    reproducible,
    to_device,
)
from alexnet.network.layers import BatchNorm, FlattenMaps
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm
from alexnet.network.variants import VARIANTS
from alexnet.recipe import Augment, Optimizer, Train
from alexnet.training.optimizer import Loss, build_optimizer, orthogonalize, set_lr
from commands import Started
from conftest import assert_near, make_preprocessing, mostly_long

NAMES = sorted(VARIANTS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return choose_device(os.environ.get("ALEXNET_TEST_DEVICE", "cpu"))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def narrow(name: str, **overrides: Any) -> AlexNet:
    """Return a narrow network without dropout, because random numbers differ between devices."""
    torch.manual_seed(0)
    return AlexNet(name, 5, width=1 / 16, **{"dropout": 0.0, **overrides})


def forward_and_backward(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, then the gradients of the input and of the parameters, on the CPU."""
    x = x.clone().requires_grad_()
    result = network(x)
    weights = numbers(*result.shape, seed=1).to(result)
    (result * weights).sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in network.parameters())]
    return [result.detach().cpu(), *(gradient.cpu() for gradient in gradients if gradient is not None)]


def compare(result: list[Tensor], expected: list[Tensor], share: float) -> None:
    assert len(result) == len(expected)
    for one, other in zip(result, expected, strict=True):
        assert_near(one.double(), other.double(), share)


@mostly_long("name", NAMES, "cifar10", "paper", "owt", "code2012")
def test_variant_forward_and_gradients_equal_float64(name: str, device: torch.device) -> None:
    network = narrow(name)
    x = numbers(2, 3, 96, 96)
    expected = forward_and_backward(narrow(name).double(), x.double())
    with reproducible(device):
        result = forward_and_backward(to_device(network, device), x.to(device))
    compare(result, expected, 2e-3)


@pytest.mark.parametrize("name", ["cifar10", "paper", "owt"])
def test_bfloat16_forward_is_near_float32(name: str, device: torch.device) -> None:
    x = numbers(2, 3, 96, 96)
    with torch.no_grad():
        expected = narrow(name).eval()(x)
        with autocast(device, "bfloat16"):
            result = to_device(narrow(name), device).eval()(x.to(device))
    assert_near(result.float().cpu(), expected, 0.05)


def test_dropout_rate(device: torch.device) -> None:
    network = to_device(narrow("cifar10", dropout=0.5), device).train()
    torch.manual_seed(0)
    layer = network.layers["dropout6"]
    kept = layer(torch.ones(1000, 50, device=device)).count_nonzero().item() / 50_000
    assert abs(kept - 0.5) < 0.02


@pytest.mark.parametrize(
    "layer",
    [
        LocalResponseNorm(5, 1e-4, 0.75, 2.0, towers=2),
        LocalResponseNorm(5, 2e-5, 0.75, 1.0),
        LocalMapNorm(3, 1e-3, 0.75, 1.0),
        BatchNorm(8),
        FlattenMaps(6, "HWC"),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_equal_float64(layer: nn.Module, training: bool, device: torch.device) -> None:
    x = numbers(3, 8, 9, 9) * 10
    exact, layer = deepcopy(layer).train(training).double(), deepcopy(layer).train(training)
    expected = forward_and_backward(exact, x.double())
    with reproducible(device):
        result = forward_and_backward(layer.to(device), x.to(device))
    compare(result, expected, 1e-4)
    compare([value.cpu() for value in layer.buffers()], list(exact.buffers()), 1e-4)


@pytest.mark.parametrize("upscale", [1, 4])
def test_upscaling_equals_cpu(upscale: int, device: torch.device) -> None:
    x = numbers(2, 3, 96 // upscale, 96 // upscale)
    with torch.no_grad(), autocast(device, "float32"):
        assert_near(
            to_device(narrow("cifar10"), device).eval()(x.to(device), upscale).cpu(), narrow("cifar10").eval()(x, upscale)
        )


SETTINGS = {
    "mean and deviation": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "value_range": 1},
    "mean image": {"mean": "image", "mean_image": np.full((8, 8, 3), 100, np.float32)},
    "its centre": {"mean": "image-centre", "mean_image": np.full((8, 8, 3), 100, np.float32), "crop": 6, "input": 6},
    "each image by itself": {"mean": "each", "std": "each"},
    "larger": {"input": 11},
    "smaller": {"input": 5},
    "nearest": {"input": 12, "resize": "nearest"},
    "crop, mirror, brightness": {"crop": 6, "input": 6, "horizontal_flip": True, "brightness": -0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_preprocessing_equals_cpu(name: str, device: torch.device) -> None:
    preprocessing, images = make_preprocessing(**SETTINGS[name]), pixels(3, 8)
    assert_near(to_input(images.to(device), preprocessing).cpu(), to_input(images, preprocessing), 1e-5)
    for result, expected in zip(views(images.to(device), preprocessing, 10), views(images, preprocessing, 10), strict=True):
        assert_near(result.cpu(), expected, 1e-5)


CHANGES = {
    "shift, mirror, flip": {"shift": 0.25, "horizontal_flip": True, "vertical_flip": True},
    "affine": {"rotation": 20.0, "translation": 0.1, "shear": 10.0, "zoom": (0.8, 1.2)},
    "crop": {"crop": True, "horizontal_flip": True},
    "resized crop": {"area": (0.2, 0.9), "horizontal_flip": True},
    "recolouring": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "mixing": {"erasing": 0.5, "mixup": 0.4, "cutmix": 1.0},
    "trivial": {"trivial": True},
    "colour": {"colour_noise": 0.1, "colour_axes": ((0.1, 0.2, 0.3), (0.3, 0.1, 0.0), (0.0, 0.1, 0.2))},
}


@pytest.mark.parametrize("name", CHANGES)
def test_augmentation_equals_cpu(name: str, device: torch.device) -> None:
    changes = Augment.model_validate(CHANGES[name])
    preprocessing = make_preprocessing(cache_size=16, **({"crop": 12, "input": 12} if changes.crop else {"input": 16}))
    images, draws = pixels(6, 16), torch.rand(6, len(DRAWS), generator=torch.Generator().manual_seed(3))
    result = training_input(images.to(device), draws, preprocessing, changes)
    assert_near(result.cpu(), training_input(images, draws, preprocessing, changes), 1e-3)


@pytest.mark.parametrize("kind", ["cross-entropy", "binary"])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_loss_equals_cpu(kind: str, weights: str, device: torch.device) -> None:
    targets = np.array([0, 1, 2, 0, 1, 0])
    train = Train.model_validate({"loss": kind, "class_weights": weights, "label_smoothing": 0.1})
    logits, expected = numbers(6, 3), torch.from_numpy(targets)
    ours, theirs = Loss(train, targets, 3, device), Loss(train, targets, 3, CPU)
    assert_near(ours(logits.to(device), expected.to(device)).cpu(), theirs(logits, expected), 1e-5)
    assert ours.normalizer(expected) == pytest.approx(theirs.normalizer(expected))


STEPS = {
    "pytorch": {"form": "pytorch", "nesterov": True},
    "2012": {"form": "2012"},
    "keras": {"form": "keras", "nesterov": True},
    "without momentum": {"momentum": 0.0},
    "muon": {"muon_lr": 0.1, "nesterov": True},
}


def stepped(device: torch.device, settings: dict[str, Any]) -> list[Tensor]:
    """Return the weights after three steps with the same gradients, at changing learning rates."""
    network = to_device(narrow("cifar10"), device)
    optimizer = build_optimizer(
        network, Optimizer.model_validate({"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, **settings})
    )
    for step in range(3):
        for i, parameter in enumerate(network.parameters()):
            parameter.grad = (numbers(*parameter.shape, seed=10 * i + step) * 0.01).to(device)
        set_lr(optimizer, 0.01 / (step + 1))
        optimizer.step()
    return [parameter.detach().cpu() for parameter in network.parameters()]


@pytest.mark.parametrize("form", STEPS)
def test_optimizer_steps_equal_cpu(form: str, device: torch.device) -> None:
    compare(stepped(device, STEPS[form]), stepped(CPU, STEPS[form]), 0.02 if form == "muon" else 1e-5)


def test_muon_matrix_is_nearly_orthogonal(device: torch.device) -> None:
    values = torch.linalg.svdvals(orthogonalize(numbers(24, 60).to(device), rounds=5).cpu())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_training_steps_are_bit_identical(device: torch.device) -> None:
    def trained() -> list[Tensor]:
        network = to_device(narrow("cifar10"), device).train()
        optimizer = build_optimizer(network, Optimizer(lr=0.01, momentum=0.9, nesterov=True))
        x, targets = numbers(16, 3, 96, 96).to(device), (torch.arange(16) % 5).to(device)
        with reproducible(device):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, "bfloat16" if has_fast_bfloat16(device) else "float32"):
                    logits = network(x).float()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
        return [value.cpu() for value in network.state_dict().values()]

    for result, expected in zip(trained(), trained(), strict=True):
        assert torch.equal(result, expected)


def torch_settings() -> tuple[object, ...]:
    """Return all that `reproducible` sets, by PyTorch's new names and by its earlier ones, which may contradict them."""

    def read(name: str) -> object:
        try:
            return attrgetter(name)(torch)
        except RuntimeError:
            return "contradiction"

    settings = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = "contradiction"
    precisions = (f"backends.{part}.fp32_precision" for part in ("cuda.matmul", "mkldnn.matmul", "cudnn.conv", "cudnn.rnn"))
    earlier = ("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32")
    return (*settings, matmul, *map(read, (*precisions, *earlier)))


CALLERS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "matrix products in TF32": lambda: torch.set_float32_matmul_precision("high"),
    "the same by the new name": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "convolutions without TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "determinism": lambda: torch.use_deterministic_algorithms(True),
}


@mostly_long("caller", CALLERS, "the same by the new name")
def test_reproducible_restores_torch_settings(caller: str, device: torch.device, tmp_path: Path) -> None:
    """In a process of its own, as what a caller had set is not undone."""
    Started(tmp_path / "said", check_reproducible, caller, device).end()


def check_reproducible(caller: str, name: str) -> None:
    CALLERS[caller]()
    before, exact = torch_settings(), ("highest", "ieee", "ieee", "ieee", "ieee", False, False)
    for where in (torch.device(name), torch.device("meta")):  # any device other than a CPU
        for _ in range(2):
            with reproducible(where), autocast(where, "float32"):
                assert where.type == "cpu" or torch_settings() == (True, True, False, False, ":4096:8", *exact)
                settings = backend_settings(where)
                assert list(settings.values()) == ([] if where.type == "cpu" else ["ieee", "ieee", False, True, ":4096:8"])
            assert torch_settings() == before


class Small(nn.Module):
    """A network on a device that has memory for three images."""

    def __init__(self, message: str, most: int = 3) -> None:
        super().__init__()
        self.weight, self.message, self.most = nn.Parameter(torch.ones(())), message, most

    def forward(self, images: Tensor, upscale: int) -> Tensor:
        if len(images) > self.most:
            raise RuntimeError(self.message)
        return images.mean((2, 3)) * self.weight


@pytest.mark.parametrize("message", ["CUDA out of memory", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_out_of_memory_halves_the_batch(message: str, device: torch.device) -> None:
    images, preprocessing = pixels(11, 8), make_preprocessing()
    assert is_out_of_memory(RuntimeError(message))
    expected = predict_logits(Small(message, 11).to(device), images, preprocessing)
    assert_near(predict_logits(Small(message).to(device), images, preprocessing), expected, 1e-6)
    with pytest.raises(AlexNetError, match="too small for one image"):
        predict_logits(Small(message, 0).to(device), images, preprocessing)
    with pytest.raises(RuntimeError, match="something else"):
        predict_logits(Small("something else").to(device), images, preprocessing)


def test_bfloat16_detection_in_older_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    processor_info = processor()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or platform.machine() != "x86_64":
        assert not processor().get("avx512_bf16")
    else:
        assert [bool(processor().get(name)) for name in ("avx512_bf16", "amx_bf16")] == [
            bool(processor_info.get(name)) for name in ("avx512_bf16", "amx_bf16")
        ]
