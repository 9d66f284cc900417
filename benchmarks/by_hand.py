"""AlexNet in NumPy: one image forward, compared with loops as in a tutorial, and with PyTorch; and memory for eight images.

The loops go over rows, columns, and filters or channels, with the product or maximum of one window inside; weights are given.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import numpy as np
import torch
from benchmarks.turns import in_turn, ratios, spread, timed

import alexnet
from alexnet import scratch

ROUNDS = 20
MEMORY = """
import resource, numpy as np
from alexnet import scratch
network, image = scratch.AlexNet(), np.random.default_rng(0).standard_normal((8, 227, 227, 3)).astype(np.float32)
network.forward(image[:1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
network.forward(image)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def convolution(x: np.ndarray, layer: scratch.Conv2D) -> np.ndarray:
    """Slide each kernel over one image, position by position."""
    weight, stride = layer.parameters["weight"], layer.stride[0]
    size, filters = weight.shape[0], weight.shape[3]
    pad = (size - 1) // 2 if layer.padding == "same" else 0
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    side = (x.shape[0] - size) // stride + 1
    y = np.zeros((side, side, filters), np.float32)
    for i in range(side):
        for j in range(side):
            window = x[i * stride : i * stride + size, j * stride : j * stride + size]
            for f in range(filters):
                y[i, j, f] = np.sum(window * weight[..., f])
    return y


def pooling(x: np.ndarray) -> np.ndarray:
    """Take the maximum of each 3x3 window, stride 2, channel by channel."""
    side = (x.shape[0] - 3) // 2 + 1
    y = np.zeros((side, side, x.shape[2]), np.float32)
    for i in range(side):
        for j in range(side):
            for c in range(x.shape[2]):
                y[i, j, c] = np.max(x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c])
    return y


def norm(x: np.ndarray) -> np.ndarray:
    """Normalise each value over five neighbouring channels."""
    squares, y = x * x, np.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for c in range(x.shape[2]):
                y[i, j, c] = x[i, j, c] / (1 + 1e-4 * np.sum(squares[i, j, max(0, c - 2) : c + 3])) ** 0.75
    return y


def looped(network: scratch.AlexNet, image: np.ndarray) -> np.ndarray:
    """Run the network on one image with loops."""
    x = image
    for layer in network.layers:
        match layer:
            case scratch.Conv2D():
                x = convolution(x, layer)
            case scratch.MaxPooling2D():
                x = pooling(x)
            case scratch.LocalResponseNormalization():
                x = norm(x)
            case scratch.Dense():
                x = x.reshape(1, -1) @ layer.parameters["weight"] + layer.parameters["bias"]
            case scratch.ReLU():
                x = np.maximum(x, 0)
    return x


if __name__ == "__main__":
    network, ours = scratch.AlexNet(), alexnet.AlexNet("scratch").eval()
    image = np.random.default_rng(0).standard_normal((227, 227, 3)).astype(np.float32)
    fast = network.forward(image[None])
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    pairs = {
        "by hand": timed(lambda: network.forward(image[None])),
        "PyTorch, float32": timed(lambda: ours(batch)),
    }
    with torch.inference_mode():
        found = in_turn(pairs, ROUNDS)
    found |= in_turn({"loops": timed(lambda: looped(network, image))}, 3, warm_up=0)
    slow = looped(network, image)
    assert np.allclose(slow, fast, rtol=1e-3, atol=1e-3 * np.abs(fast).max())
    for name, times in found.items():
        print(f"{name:18} median {1000 * statistics.median(times):9.1f} ms, {1000 * min(times):.1f} to {1000 * max(times):.1f}")
    loops = statistics.median(found["loops"]) / statistics.median(found["by hand"])
    times = ratios(found["by hand"], found["PyTorch, float32"])
    print(f"{loops:.0f} times as fast as the loops")
    print(f"{spread(times)} times PyTorch's time")
    before, after = map(int, subprocess.check_output([sys.executable, "-c", MEMORY], text=True).split())
    print(f"eight images: {after / 1e6:.2f} GB in all at most, {before / 1e6:.2f} GB with one")
    result = {"loops": loops, "pytorch": statistics.median(times), "peak_gb": after / 1e6}
    print(json.dumps({"benchmark": "by_hand", **result}))
