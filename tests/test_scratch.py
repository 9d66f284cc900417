"""AlexNet in NumPy: layers equal PyTorch's, gradients equal central differences, the network equals the PyTorch one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import alexnet
from alexnet import scratch
from alexnet.network.variants import ROWS, Act, BatchNorm, Conv, Dense, Drop, Flatten, LocalNorm, MapNorm, Norm, Pool, Variant
from alexnet.scratch import Layer, __main__
from conftest import mostly_long

CHANCE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed the generator before each test, regardless of the order of tests."""
    CHANCE.bit_generator.state = np.random.default_rng(0).bit_generator.state


def drawn(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return CHANCE.standard_normal(shape).astype(dtype)


def torch_images(x: np.ndarray, pad: int = 0) -> torch.Tensor:
    """Convert N H W C to N C H W, padded with zeros."""
    return F.pad(torch.from_numpy(x).permute(0, 3, 1, 2), (pad,) * 4)


def assert_near(result: np.ndarray, expected: torch.Tensor, dtype: Any) -> None:
    """Compare N H W C with N C H W."""
    expected = expected.detach().permute(0, 2, 3, 1).numpy() if expected.ndim == 4 else expected.detach().numpy()
    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(expected).max())))


DTYPES = st.sampled_from([np.float32, np.float64])
SIZES = st.integers(1, 14)


# Forward, against PyTorch


@given(st.data(), DTYPES, st.sampled_from([1, 2, 3]), st.sampled_from(["valid", "same", 1]))
@settings(max_examples=150)
def test_scratch_convolution_equals_pytorch(data: st.DataObject, dtype: Any, groups: int, padding: Any) -> None:
    kernel, stride = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), data.draw(st.integers(1, 4))
    pads = [{"valid": 0, "same": (k - 1) // 2}.get(padding, padding) for k in kernel]
    height, width = (data.draw(st.integers(max(1, k - 2 * p), 14)) for k, p in zip(kernel, pads, strict=True))
    x = drawn(data.draw(st.integers(1, 3)), height, width, groups * data.draw(st.integers(1, 3)), dtype=dtype)
    layer = scratch.Conv2D(2 * groups, kernel, stride, padding, groups)
    y = layer.forward(x)
    layer.parameters["bias"] = drawn(2 * groups, dtype=dtype)
    weight = torch.from_numpy(layer.parameters["weight"]).permute(3, 2, 0, 1)
    padded = F.pad(torch_images(x), (pads[1], pads[1], pads[0], pads[0]))
    expected = F.conv2d(padded, weight, torch.from_numpy(layer.parameters["bias"]), stride, groups=groups)
    assert_near(y + layer.parameters["bias"], expected, dtype)
    assert_near(layer.forward(x), expected, dtype)


@given(st.data(), DTYPES, st.sampled_from(["valid", "same"]), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=100)
def test_scratch_pooling_equals_pytorch(data: st.DataObject, dtype: Any, padding: Any, size: int, stride: int) -> None:
    pad = (size - 1) // 2 if padding == "same" else 0
    height, width = (data.draw(st.integers(max(1, size - 2 * pad), 14)) for _ in range(2))
    x = drawn(2, height, width, 3, dtype=dtype) - 1  # mostly negative, so that the padding zeros show
    assert_near(scratch.MaxPooling2D(size, stride, padding).forward(x), F.max_pool2d(torch_images(x, pad), size, stride), dtype)


@given(DTYPES, st.integers(1, 12), st.integers(0, 4), st.floats(0.5, 3), st.floats(1e-4, 1))
@settings(max_examples=60)
def test_scratch_response_norm_equals_pytorch(dtype: Any, channels: int, reach: int, bias: float, alpha: float) -> None:
    """In PyTorch, alpha is divided by the window's size."""
    x, size = drawn(2, 3, 4, channels, dtype=dtype), 2 * reach + 1
    expected = F.local_response_norm(torch_images(x), size, alpha * size, 0.75, bias)
    assert_near(scratch.LocalResponseNormalization(size, bias, alpha, 0.75).forward(x), expected, dtype)


@given(DTYPES, st.integers(2, 6), st.booleans())
@settings(max_examples=30)
def test_scratch_batch_norm_equals_pytorch_and_keras(dtype: Any, count: int, training: bool) -> None:
    x, layer = drawn(count, 3, 2, 4, dtype=dtype) * 2 + 1, scratch.BatchNormalization()
    layer.forward(x, training=True)
    mean, variance = (torch.from_numpy(layer.moving[name].copy()) for name in ("mean", "variance"))
    np.testing.assert_allclose(mean, 0.01 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(variance, 0.99 + 0.01 * x.var((0, 1, 2)), rtol=1e-4)
    expected = F.batch_norm(torch_images(x), mean, variance, training=training, eps=1e-3)
    assert_near(layer.forward(x, training), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scratch_small_layers_equal_pytorch(dtype: Any) -> None:
    x = drawn(5, 7, dtype=dtype)
    t = torch.from_numpy(x)
    dense = scratch.Dense(3)
    y = dense.forward(x)
    assert_near(y, t @ torch.from_numpy(dense.parameters["weight"]), dtype)
    assert_near(scratch.ReLU().forward(x), t.relu(), dtype)
    assert_near(scratch.Tanh().forward(x), t.tanh(), dtype)
    assert_near(scratch.Softmax().forward(100 * x), (100 * t).softmax(1), dtype)
    assert scratch.Flatten().forward(drawn(2, 3, 4, 5)).shape == (2, 60)
    loss, gradient = scratch.cross_entropy(x, np.array([0, 1, 2, 3, 6]))
    logits = t.clone().requires_grad_()
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 6]))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    assert_near(gradient, logits.grad, dtype)


def test_scratch_layers_take_the_arguments_of_tutorial_000() -> None:
    """Each call of the tutorial, on one image, with the shapes that it prints; only its dense layers are narrower here."""
    x = drawn(227, 227, 3, dtype=np.float32)
    x = scratch.Conv2D(filters=96, kernel_size=(11, 11), stride=4, padding="valid").forward(x)
    assert x.shape == (55, 55, 96)
    x = scratch.LocalResponseNormalization(depth_radius=5, bias=1.0, alpha=1e-4, beta=0.75).forward(x)
    x = scratch.MaxPooling2D(pool_size=(3, 3), stride=(2, 2), padding="valid").forward(x)
    assert x.shape == (27, 27, 96)
    assert scratch.MaxPooling2D(pool_size=(2, 2), stride=None, padding="valid").forward(x).shape == (13, 13, 96)
    x = scratch.Conv2D(filters=256, kernel_size=(5, 5), stride=1, padding="same").forward(x)
    x = scratch.MaxPooling2D(pool_size=(3, 3), stride=(2, 2), padding="valid").forward(x)
    x = scratch.Conv2D(filters=256, kernel_size=(3, 3), stride=1, padding="same").forward(x)
    x = scratch.MaxPooling2D(pool_size=(3, 3), stride=(2, 2), padding="valid").forward(x)
    assert x.shape == (6, 6, 256)
    dense = scratch.Dense(in_features=9216, out_features=40)
    x = scratch.ReLU().forward(dense.forward(x.flatten()))  # one vector counts as a batch of one
    assert x.shape == (1, 40)
    assert dense.backward(x).shape == (9216,)
    assert scratch.Softmax().forward(scratch.Dense(in_features=40, out_features=10).forward(x)).shape == (1, 10)


def test_scratch_dropout_keeps_the_mean() -> None:
    x = np.ones((200, 500))
    today, then = scratch.Dropout(0.3), scratch.Dropout(0.3, scales="testing")
    assert np.array_equal(today.forward(x), x)
    assert today.forward(x, training=True).mean() == pytest.approx(1, abs=0.02)
    assert (today.forward(x, training=True) == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert then.forward(x, training=True).mean() == pytest.approx(then.forward(x).mean(), abs=0.02)
    y = today.forward(x, training=True)
    assert np.array_equal(today.backward(x), y)


def test_scratch_single_image_equals_batch_of_one() -> None:
    x = drawn(1, 9, 8, 4)
    makers: list[Callable[[], Layer]] = [
        lambda: scratch.Conv2D(3, 3, 2, "same"),
        lambda: scratch.MaxPooling2D(3, 2),
        lambda: scratch.LocalResponseNormalization(),
        lambda: scratch.MapNormalization(),
    ]
    for make in makers:
        one, many = make(), make()
        y = one.forward(x[0])
        assert np.array_equal(y, many.forward(x)[0])
        g = drawn(*y.shape)
        assert np.array_equal(one.backward(g), many.backward(g[None])[0])


# Backward, against central differences


LAYERS: dict[str, tuple[Callable[[], Layer], tuple[int, ...]]] = {
    "conv": (lambda: scratch.Conv2D(4, 3, 2, "same"), (2, 7, 6, 3)),
    "conv, groups": (lambda: scratch.Conv2D(4, (3, 2), (1, 2), (1, 2), groups=2), (2, 5, 6, 4)),
    "conv, valid": (lambda: scratch.Conv2D(2, 4, 3, bias=False), (2, 11, 10, 2)),
    "pool": (lambda: scratch.MaxPooling2D(3, 2), (2, 8, 7, 3)),
    "pool, same": (lambda: scratch.MaxPooling2D(3, 1, "same"), (2, 4, 5, 2)),
    "dense": (lambda: scratch.Dense(4), (3, 5)),
    "response norm": (lambda: scratch.LocalResponseNormalization(5, 2.0, 0.3, 0.75), (2, 3, 2, 8)),
    "response norm, groups": (lambda: scratch.LocalResponseNormalization(3, 1.0, 0.5, 0.6, groups=2), (2, 2, 2, 6)),
    "map norm": (lambda: scratch.MapNormalization(3, 1.0, 0.4), (2, 5, 4, 2)),
    "batch norm": (lambda: scratch.BatchNormalization(), (4, 3, 2, 3)),
    "batch norm of units": (lambda: scratch.BatchNormalization(), (6, 3)),
    "relu": (lambda: scratch.ReLU(), (4, 5)),
    "tanh": (lambda: scratch.Tanh(), (4, 5)),
    "softmax": (lambda: scratch.Softmax(), (4, 5)),
    "flatten": (lambda: scratch.Flatten(), (2, 3, 2, 4)),
    "flatten, CHW": (lambda: scratch.Flatten("CHW"), (2, 3, 2, 4)),
}


def differences(f: Callable[[], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Return the gradient of `f` with respect to its input `x`, by central differences of fourth order."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        kept, values = x[index], []
        for shift in (-2, -1, 1, 2):
            x[index] = kept + shift * step
            values.append(f())
        x[index] = kept
        gradient[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return gradient


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_scratch_gradients_equal_central_differences(name: str, training: bool) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), drawn(*shape)
    y = layer.forward(x, training)
    for key, parameter in layer.parameters.items():
        layer.parameters[key] = parameter + 0.1 * drawn(*parameter.shape)
    weights = drawn(*y.shape)

    def loss() -> float:
        return float((layer.forward(x, training) * weights).sum())

    loss()
    result = {"input": layer.backward(weights), **layer.gradients}
    expected = {"input": differences(loss, x), **{key: differences(loss, array) for key, array in layer.parameters.items()}}
    assert result.keys() == expected.keys()
    for key in expected:
        assert np.linalg.norm(result[key] - expected[key]) <= 1e-6 * np.linalg.norm(expected[key]), key


# The whole network


def facts(row: Variant, width: float = 1.0, classes: int = 10) -> list[dict[str, Any]]:
    """Return a row of the variant table as plain data."""
    result: list[dict[str, Any]] = []
    pool = {"layer": "MaxPooling2D", "pool_size": row.pool[0], "stride": row.pool[1]}
    for record in row.layers:
        match record:
            case Conv():
                groups = row.towers if record.grouped else 1
                padding = (record.padding, record.padding + record.padding_after)
                conv = {"kernel_size": record.kernel, "stride": record.stride, "padding": padding, "groups": groups}
                result.append(
                    {"layer": "Conv2D", "filters": row.scaled(record.channels, width), "bias": record.bias is not None} | conv
                )
            case Dense():
                result.append({"layer": "Dense", "units": row.scaled(record.units, width)})
            case Act():
                result.append({"layer": {"relu": "ReLU", "tanh": "Tanh"}[row.activation]})
            case Norm() if isinstance(row.norm, BatchNorm):
                result.append({"layer": "BatchNormalization"})
            case Norm() if isinstance(row.norm, LocalNorm):
                n, groups = row.norm, 1 if row.norm.across else row.towers
                constants = {"depth_radius": n.size, "bias": n.k, "alpha": n.alpha, "beta": n.beta, "groups": groups}
                result.append({"layer": "LocalResponseNormalization"} | constants)
            case MapNorm():
                m = {"size": record.size, "bias": record.k, "alpha": record.alpha, "beta": record.beta}
                result.append({"layer": "MapNormalization"} | m)
            case Pool():
                result.append(pool)
            case Flatten():
                result.append({"layer": "Flatten", "order": row.flatten})
            case Drop():
                result.append({"layer": "Dropout", "rate": 0.0})
    return [*result, {"layer": "Dense", "units": classes}]


def both(row: Variant, width: float) -> tuple[alexnet.AlexNet, scratch.AlexNet, np.ndarray]:
    """Return the torch network and the NumPy one with the same weights, and a batch of images; all in float64.

    In float32, rounding may decide a ReLU or a pool, which changes whole gradients.
    """
    torch.manual_seed(0)
    ours, hand = alexnet.AlexNet(row.name, 10, width=width, dropout=0.0).double(), scratch.AlexNet(facts(row, width))
    x = drawn(2, row.input_size, row.input_size, 3)
    hand.forward(x)
    with torch.no_grad():
        for layer, (name, module) in zip(with_parameters(hand), modules(ours), strict=True):
            if row.init == "normal":
                module.weight.mul_(0.05 * module.weight[0].numel() ** -0.5 / module.weight.std() * 20)  # small ones vanish
            for key, tensor in module.named_parameters():
                layer.parameters[ours_to_hand(layer, key)] = as_hand(tensor, name)
    return ours, hand, x


def with_parameters(network: scratch.AlexNet) -> list[Layer]:
    return [layer for layer in network.layers if layer.parameters]


def modules(network: alexnet.AlexNet) -> list[tuple[str, torch.nn.Module]]:
    return [(name, module) for name, module in network.layers.items() if list(module.parameters())]


def ours_to_hand(layer: Layer, key: str) -> str:
    return {"weight": "gamma", "bias": "beta"}[key] if isinstance(layer, scratch.BatchNormalization) else key


def as_hand(tensor: torch.Tensor, name: str) -> np.ndarray:
    """O I H W -> H W I O, (out, in) -> (in, out)."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[tensor.ndim]
    return np.ascontiguousarray(tensor.detach().permute(axes).numpy())


@mostly_long("row", ROWS, *ROWS[::4], ids=lambda row: row.name)
def test_scratch_network_and_gradients_equal_torch(row: Variant) -> None:
    ours, hand, x = both(row, 0.25)
    logits = ours.train()(torch_images(x))
    loss = F.cross_entropy(logits, torch.tensor([3, 7]))
    torch.autograd.backward(loss)
    scores = hand.forward(x, training=True)
    value, gradient = scratch.cross_entropy(scores, np.array([3, 7]))
    hand.backward(gradient)
    assert np.linalg.norm(scores - logits.detach().numpy()) <= 1e-8 * np.linalg.norm(scores)
    assert value == pytest.approx(loss.item(), rel=1e-8)
    for layer, (name, module) in zip(with_parameters(hand), modules(ours), strict=True):
        for key, tensor in module.named_parameters():
            assert tensor.grad is not None
            result, expected = layer.gradients[ours_to_hand(layer, key)], as_hand(tensor.grad, name)
            assert np.linalg.norm(result - expected) <= 1e-8 * np.linalg.norm(expected), (name, key)


@pytest.mark.long
def test_scratch_default_network_is_the_tutorials() -> None:
    rows = scratch.AlexNet().summary()
    shapes = [shape for kind, shape, _ in rows if kind in ("Conv2D", "MaxPooling2D")]
    assert shapes == [
        *((55, 55, 96), (27, 27, 96), (27, 27, 256), (13, 13, 256)),
        *((13, 13, 384), (13, 13, 384), (13, 13, 256), (6, 6, 256)),
    ]
    assert sum(count for *_, count in rows) == 62_376_968
    assert rows[-1][1] == (1000,)


def test_scratch_step_is_the_papers() -> None:
    layer, optimizer = scratch.Dense(1), scratch.SGD(0.1, momentum=0.9, decay=0.01)
    layer.forward(np.ones((1, 1)))
    w, v = 2.0, 0.0
    layer.parameters = {"weight": np.array([[w]])}
    for gradient in (1.0, -3.0, 0.5):
        layer.gradients = {"weight": np.array([[gradient]])}
        optimizer.step([layer])
        v = 0.9 * v - 0.01 * 0.1 * w - 0.1 * gradient
        w += v
        assert layer.parameters["weight"][0, 0] == pytest.approx(w, rel=1e-12)


@pytest.mark.long
def test_scratch_learns_digits() -> None:
    assert __main__.main() >= 0.95


# Misuse


KINDS_WITHOUT_ARGUMENTS = [kind for name, kind in scratch.KINDS.items() if name not in ("Conv2D", "Dense")]


def after_forward(layer: Layer, x: np.ndarray) -> Layer:
    layer.forward(x)
    return layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scratch.Conv2D(4, 3).forward(drawn(5, 5)), "Conv2D takes images N x H x W x C, or one H x W x C, not 5 x 5"),
        (
            lambda: scratch.Conv2D(4, 3, groups=3).forward(drawn(1, 5, 5, 4)),
            "4 channels and 4 filters are not divisible by 3 groups",
        ),
        (lambda: scratch.Conv2D(4, 6).forward(drawn(1, 5, 5, 4)), "a window of 6x6 is larger than the image of 5x5"),
        (lambda: scratch.MaxPooling2D(3).forward(drawn(1, 2, 5, 4)), "a window of 3x3 is larger than the image of 2x5"),
        (lambda: scratch.Dense(4).forward(drawn(1, 2, 5, 4)), "put Flatten before it"),
        (
            lambda: scratch.Dense(in_features=6, out_features=4).forward(drawn(1, 5)),
            "Dense has 6 inputs, but x has 5 values a row",
        ),
        (lambda: scratch.Dense(in_features=6), r"Dense\(4096\) or Dense\(in_features=9216, out_features=4096\)"),
        (lambda: scratch.Dense(4, out_features=4), r"Dense\(4096\) or Dense\(in_features=9216, out_features=4096\)"),
        (lambda: scratch.ReLU().backward(drawn(3)), "ReLU: call forward before backward"),
        (lambda: scratch.Conv2D(4, 3).backward(drawn(3)), "Conv2D: call forward before backward"),
        (
            lambda: scratch.LocalResponseNormalization(groups=2).forward(drawn(1, 2, 2, 3)),
            "3 channels are not divisible by 2 groups",
        ),
        (lambda: scratch.BatchNormalization().forward(drawn(3)), "takes N x H x W x C or N x units, not 3"),
        (lambda: scratch.AlexNet([{"layer": "Convolution"}]), "no layer 'Convolution'"),
        *(
            (lambda kind=kind: kind().forward(np.ones((2, 8, 8, 3), np.uint8)), "float32 or float64, not uint8")
            for kind in (*KINDS_WITHOUT_ARGUMENTS, lambda: scratch.Conv2D(4, 3), lambda: scratch.Dense(4))
        ),
        *(
            (lambda kind=kind: after_forward(kind(), drawn(2, 8, 8, 3)).backward(drawn(1, 8, 8, 3)), "but the output was")
            for kind in (*KINDS_WITHOUT_ARGUMENTS, lambda: scratch.Conv2D(4, 3))
        ),
        (lambda: scratch.ReLU().forward([1.0]), "ReLU takes arrays of float32 or float64, not list"),
        (
            lambda: after_forward(scratch.Conv2D(4, 3, groups=2), drawn(1, 8, 8, 4)).forward(drawn(1, 8, 8, 6)),
            "Conv2D has weights for 4 channels, but x has 6",
        ),
        (
            lambda: after_forward(scratch.BatchNormalization(), drawn(2, 4)).forward(drawn(2, 3)),
            "BatchNormalization has parameters for 4 channels, but x has 3",
        ),
        (lambda: scratch.Conv2D(0, 3), "filters is 0, but should be a whole number, 1 or more"),
        (lambda: scratch.Conv2D(4, 2.5), "kernel_size is 2.5, but should be a whole number"),
        (lambda: scratch.Conv2D(4, 3, groups=0), "groups is 0, but"),
        (lambda: scratch.Conv2D(4, 3, stride=0), "stride is 0, but"),
        (lambda: scratch.Conv2D(4, 3, padding="SAME"), "padding is 'SAME', but should be 'valid' or 'same'"),
        (lambda: scratch.Conv2D(4, 3, padding=(1, -1)), "padding is -1, but should be a whole number, 0 or more"),
        (lambda: scratch.MaxPooling2D((3, 3, 3)), r"pool_size is \(3, 3, 3\), but should be one number or two"),
        (lambda: scratch.Dense(0), "the number of units is 0, but"),
        (lambda: scratch.Dense(in_features=0, out_features=4), "in_features is 0, but"),
        (lambda: scratch.Flatten("hwc"), "order is 'hwc', but should be 'HWC' or 'CHW'"),
        (lambda: scratch.Dropout(1), "rate is 1, but should be a number, 0 or more and below 1"),
        (lambda: scratch.Dropout(scales="test"), "scales is 'test', but should be 'training' or 'testing'"),
        (lambda: scratch.LocalResponseNormalization(0), "the window is 0, but"),
        (lambda: scratch.MapNormalization(bias=-1), "bias is -1, but should be a number, 0 or more"),
        (lambda: scratch.BatchNormalization(epsilon=float("nan")), "epsilon is nan, but"),
        (lambda: scratch.SGD(momentum="0.9"), "momentum is '0.9', but"),
        (lambda: scratch.AlexNet([{"units": 4}]), "no layer None"),
        (lambda: scratch.cross_entropy(drawn(2, 3), np.array([0.0, 1.0])), r"targets are array\(\[0., 1.\]\), but should be"),
        (lambda: scratch.cross_entropy(drawn(2, 3), np.array([0, 3])), "targets run from 0 to 3, but there are 3 classes"),
    ],
)
def test_scratch_misuse_is_explained(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
