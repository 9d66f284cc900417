"""Local response normalisation: across channels and within maps, compared with NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alexnet.network.fast.kernels import operations
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm


def response_norm(x: np.ndarray, g: np.ndarray, norm: LocalResponseNorm) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised maps and the gradient of sum(g * maps), by the formula of section 3.3."""
    channels = x.shape[1]
    per_tower = channels // norm.towers

    def window(i: int) -> slice:
        first = i // per_tower * per_tower
        low = max(first, i - norm.size // 2)
        return slice(low, min(first + per_tower, i - norm.size // 2 + norm.size))

    s = np.stack([norm.k + norm.alpha * (x[:, window(i)] ** 2).sum(1) for i in range(channels)], 1)
    gradient = g * s**-norm.beta
    for i in range(channels):
        inner = 2 * norm.alpha * norm.beta * g[:, i] * x[:, i] * s[:, i] ** (-norm.beta - 1)
        gradient[:, window(i)] -= x[:, window(i)] * inner[:, None]
    return x * s**-norm.beta, gradient


@given(
    towers=st.integers(1, 3),
    per_tower=st.integers(1, 9),
    size=st.integers(1, 7),
    side=st.integers(1, 5),
    constants=st.tuples(st.floats(1e-5, 1), st.floats(0.1, 2), st.floats(0.5, 3)),
    seed=st.integers(0, 99),
)
@settings(max_examples=80)
def test_response_norm_equals_numpy_with_towers(
    towers: int, per_tower: int, size: int, side: int, constants: tuple[float, float, float], seed: int
) -> None:
    norm = LocalResponseNorm(size, *constants, towers=towers)
    generator = np.random.default_rng(seed)
    x, g = generator.standard_normal((2, 2, towers * per_tower, side, side)) * 3
    expected, expected_gradient = response_norm(x, g, norm)
    maps = torch.from_numpy(x).requires_grad_()
    result = norm(maps)
    (gradient,) = torch.autograd.grad(result, maps, torch.from_numpy(g))
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-10, atol=1e-11)


@given(size=st.sampled_from([1, 3, 5]), side=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_map_norm_equals_numpy(size: int, side: int, seed: int) -> None:
    norm = LocalMapNorm(size, 0.03, 0.75, 1.0)
    generator = np.random.default_rng(seed)
    x, g = generator.standard_normal((2, 2, 3, side, side)) * 3
    reach = size // 2
    spots = [
        (y, z, slice(max(0, y - reach), y + reach + 1), slice(max(0, z - reach), z + reach + 1))
        for y, z in np.ndindex(side, side)
    ]
    s = np.ones_like(x)
    for y, z, rows, columns in spots:
        s[:, :, y, z] += norm.alpha * (x[:, :, rows, columns] ** 2).sum((2, 3))
    expected = g * s**-norm.beta
    for y, z, rows, columns in spots:
        inner = 2 * norm.alpha * norm.beta * g[:, :, y, z] * x[:, :, y, z] * s[:, :, y, z] ** (-norm.beta - 1)
        expected[:, :, rows, columns] -= x[:, :, rows, columns] * inner[..., None, None]
    maps = torch.from_numpy(x).requires_grad_()
    result = norm(maps)
    (gradient,) = torch.autograd.grad(result, maps, torch.from_numpy(g))
    np.testing.assert_allclose(result.detach().numpy(), x * s**-norm.beta, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-10, atol=1e-11)


@given(
    per_tower=st.integers(1, 9),
    towers=st.integers(1, 3),
    size=st.sampled_from([1, 3, 5]),
    alpha=st.sampled_from([1e-4, 0.5]),
    channels_last=st.booleans(),
)
@settings(max_examples=60)
def test_response_norm_equals_the_formula(per_tower: int, towers: int, size: int, alpha: float, channels_last: bool) -> None:
    x = torch.randn(2, per_tower * towers, 3, 4) * 10
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    norm = LocalResponseNorm(size, alpha, 0.75, 2.0, towers)
    expected, _ = response_norm(x.double().numpy(), np.zeros(x.shape), norm)
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(norm(x.double()).numpy(), expected, rtol=1e-12)
    rounded = norm(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    np.testing.assert_allclose(rounded.float().numpy(), expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("usable", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("norm", [LocalResponseNorm(5, 1e-4, 0.75, 2.0, towers=2), LocalMapNorm(5, 1e-4, 0.75, 1.0)])
def test_response_norm_of_empty_batch(norm: nn.Module, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when no file of a batch can be read."""
    if not usable:
        monkeypatch.setattr(operations, "usable", lambda _: False)
    assert norm(torch.empty(0, 8, 5, 5)).shape == (0, 8, 5, 5)
