"""Golden losses: loss curves of seeded runs, computed in float64 in plain PyTorch, must not change.

Run `python tests/test_golden_losses.py` to rewrite them after an intended change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from alexnet import AlexNet
from alexnet.network.device import to_device
from alexnet.network.fast import fuse, kernels
from alexnet.recipe import Optimizer
from alexnet.training.optimizer import build_optimizer
from conftest import mostly_long

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
# The rates are low enough that rounding does not grow from step to step: at 0.01, two float32 libraries diverge after three
# steps.
RUNS: dict[str, dict[str, Any]] = {
    "cifar10": {"form": "keras", "lr": 1e-4},
    "table": {"form": "2012", "lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4},
    "scratch": {"form": "pytorch", "lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
}


def losses(name: str, dtype: torch.dtype, way: Callable[[AlexNet], Callable[[Tensor], Tensor]] = lambda n: n) -> list[float]:
    """Return the loss of each of 30 steps of 32 digits; `way` returns the forward pass of a network."""
    torch.manual_seed(0)
    network = to_device(AlexNet(name, 10, width=0.25, dropout=0.0), torch.device("cpu")).to(dtype).train()
    optimizer = build_optimizer(network, Optimizer(**{"momentum": 0.0, "weight_decay": 0.0, **RUNS[name]}))
    digits, forward = load_digits(), way(network)
    images = torch.from_numpy(digits.images / 8 - 1).to(dtype)[:, None].expand(-1, 3, -1, -1)
    # otherwise many values are equal, and rounding decides max pooling
    noise = torch.randn(32, 3, 83, 83, dtype=torch.float64).to(dtype)
    result = []
    for start in range(0, 30 * 32, 32):
        small = images[start : start + 32]
        batch = (interpolate(small, size=(83, 83), mode="bilinear") + noise).contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(forward(batch), torch.from_numpy(digits.target[start : start + 32]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return result


@mostly_long("name", RUNS, "cifar10")
@pytest.mark.parametrize("fast", [False, True])
def test_golden_losses_are_unchanged(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(fuse, "enabled", lambda: False)
        monkeypatch.setattr(kernels, "library", lambda: None)
    expected = json.loads(GOLDEN.read_text())[name]
    np.testing.assert_allclose(losses(name, torch.float32), expected, rtol=0.02)
    assert expected[-1] < expected[0]


if __name__ == "__main__":
    fuse.enabled, kernels.library = (lambda: False), (lambda: None)  # type: ignore[assignment]
    GOLDEN.write_text(json.dumps({name: losses(name, torch.float64) for name in RUNS}, indent=2) + "\n")
