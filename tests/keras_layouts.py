"""Keras weight files in the layout of each Keras version, and Keras' arithmetic in NumPy, to test the reader."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Layers = list[tuple[str, list[Array]]]  # class name of the layer in Keras' files, and its arrays

KERAS = {"c": "conv2d", "n": "batch_normalization", "p": "max_pooling2d", "f": "flatten", "d": "dense", "-": "dropout"}
# Numbers from which Keras names the layers of the second model of a session, here the second `cifar10`.
SECOND = {"conv2d": 5, "batch_normalization": 5, "max_pooling2d": 3, "flatten": 1, "dense": 3, "dropout": 2}
WIDTH = 1 / 16


class Net(NamedTuple):
    """A network in short: layers as letters of `KERAS`, side of the last maps, kernels, channels, padding of conv1."""

    order: str
    grid: int = 6
    kernels: tuple[int, ...] = (11, 5, 3, 3, 3)
    channels: tuple[int, ...] = (96, 256, 384, 384, 256)
    padding: int = 0


NETS = {
    "annotated": Net("cnpcnpcncncnpfd-d-d", grid=5),
    "cifar10": Net("cnpcnpcncncnpfd-d-d"),
    "cifar10-1x1": Net("cnpcnpcncncnpfd-d-d", kernels=(11, 5, 3, 1, 1)),
    "cats-dogs": Net("cpcpncccpfd-d-d"),
    "owt": Net("cpcpcccpf-d-dd", channels=(64, 192, 384, 256, 256), padding=2),
}


def model(variant: str = "cifar10", classes: int = 10, width: float = WIDTH) -> Layers:
    """Return the layers of a network with weights in Keras' layout."""
    net = NETS[variant]
    rng = np.random.default_rng(0)
    channels = [round(c * width) for c in net.channels]
    units = [net.grid**2 * channels[-1], round(4096 * width), round(4096 * width), classes]
    kernels = [(k, k, *inout) for k, inout in zip(net.kernels, pairwise([3, *channels]), strict=True)]
    shapes = iter([*kernels, *pairwise(units)])
    layers: Layers = []
    size = 3
    for letter in net.order:
        arrays: list[Array] = []
        if letter in "cd":
            shape = next(shapes)
            size = shape[-1]
            arrays = [rng.normal(0, math.prod(shape[:-1]) ** -0.5, shape), rng.normal(0, 0.1, size)]
        elif letter == "n":
            arrays = [rng.normal(1, 0.2, size), *rng.normal(0, 0.2, (2, size)), rng.uniform(0.5, 2, size)]
        layers.append((KERAS[letter], [array.astype(np.float32) for array in arrays]))
    return layers


def keras_logits(variant: str, layers: Layers, image: Array) -> Array:
    """Compute the logits of an image (H W 3) as Keras does, from arrays in Keras' shapes, in float64."""
    x = image.astype(np.float64)
    for kind, stored in layers:
        arrays = [array.astype(np.float64) for array in stored]
        if kind == "conv2d":
            kernel, bias = arrays
            first = kernel.shape[2] == 3
            around = NETS[variant].padding if first else kernel.shape[0] // 2
            x = np.pad(x, ((around, around), (around, around), (0, 0)))
            windows = sliding_window_view(x, kernel.shape[:2], (0, 1))[:: 4 if first else 1, :: 4 if first else 1]  # H W I k k
            x = np.maximum(np.tensordot(windows, kernel.transpose(2, 0, 1, 3), 3) + bias, 0)
        elif kind == "batch_normalization":
            gamma, beta, mean, variance = arrays
            x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        elif kind == "max_pooling2d":
            x = sliding_window_view(x, (3, 3), (0, 1))[::2, ::2].max((3, 4))
        elif kind == "dense":
            x = (x.reshape(-1) if x.ndim == 3 else np.maximum(x, 0)) @ arrays[0] + arrays[1]
    return x


# The layouts, group by group, as Keras 3.15 writes them for the second `cifar10` of a session; `old`: as in Keras 2


def numbered(file: h5py.Group, layers: Layers, inside: str = "") -> None:
    """`save_weights("x.weights.h5")` after some training; `inside`: the network is a layer of another model."""
    seen: Counter[str] = Counter()
    slot = 2
    for kind, arrays in layers:
        variables = file.create_group(f"{inside}layers/{kind}_{seen[kind]}/vars".replace("_0/vars", "/vars"))
        variables.attrs["name"] = f"{kind}_{seen[kind] + SECOND.get(kind, 0)}"
        seen[kind] += 1
        for number, array in enumerate(arrays):
            variables[str(number)] = array
            for _ in ("momentum", "velocity") if number < 2 else ():
                file[f"optimizer/vars/{slot}"] = np.full_like(array, 7)
                slot += 1
    file["optimizer/vars"].attrs["name"] = "adam"
    file["optimizer/vars/0"], file["optimizer/vars/1"] = np.int64(1), np.float32(0.001)
    file.create_group("vars").attrs["name"] = "sequential_1"


def named(group: h5py.Group, layers: Layers, names: Sequence[str] | None = None, old: bool = False) -> None:
    """The older layout: `layer_names`, and in each layer `weight_names`; `old`: as h5py 2 and Keras 2 wrote the names."""
    seen: Counter[str] = Counter()
    stored_names = []

    def put(target: h5py.Group, attribute: str, values: list[str]) -> None:
        texts = [name.encode() for name in values]
        target.attrs[attribute] = np.array(texts, "S") if old and values else texts

    for position, (kind, arrays) in enumerate(layers):
        name = names[position] if names else f"{kind}_{seen[kind] + SECOND[kind]}"
        seen[kind] += 1
        parts = ("kernel", "bias") if len(arrays) == 2 else ("gamma", "beta", "moving_mean", "moving_variance")
        paths = [f"{name}/{part}:0" if old else f"sequential_1/{name}/{part}" for part, _ in zip(parts, arrays, strict=False)]
        layer = group.create_group(name)
        put(layer, "weight_names", paths)
        for path, array in zip(paths, arrays, strict=True):
            layer.create_dataset(path, array.shape, dtype=array.dtype)[:] = array
        stored_names.append(name)
    put(group, "layer_names", stored_names)
    put(group.create_group("top_level_model_weights"), "weight_names", [])
    group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"3.15.1"


def weights_h5(path: Path, layers: Layers) -> None:
    with h5py.File(path, "w") as file:
        numbered(file, layers)


def nested_weights_h5(path: Path, layers: Layers) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("layers/sequential/layers/random_flip/vars").attrs["name"] = "random_flip"
        file["layers/sequential/layers/random_flip/seed_generator/vars/0"] = np.array([1, 2], np.uint32)
        numbered(file, layers, "layers/sequential_1/")


def keras(path: Path, layers: Layers, inner: Callable[[Path, Layers], None] = weights_h5) -> None:
    inner(path.with_suffix(".inner"), layers)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Sequential"}')
        archive.write(path.with_suffix(".inner"), "model.weights.h5")
    path.with_suffix(".inner").unlink()


def older_weights(path: Path, layers: Layers) -> None:
    with h5py.File(path, "w") as file:
        named(file, layers)


def keras_2_weights(path: Path, layers: Layers) -> None:
    with h5py.File(path, "w") as file:
        named(file, layers, old=True)


def own_names(path: Path, layers: Layers) -> None:
    with h5py.File(path, "w") as file:
        named(file, layers, [f"{chr(ord('z') - i)}_mine" for i in range(len(layers))])


def older_model(path: Path, layers: Layers) -> None:
    """`save("x.h5")` after some training: the file also has the state of the optimizer."""
    with h5py.File(path, "w") as file:
        named(file.create_group("model_weights"), layers)
        file.attrs["model_config"], file.attrs["training_config"] = b'{"class_name": "Sequential"}', b"{}"
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "3.15.1"
        state: dict[str, Any] = {"adam/iteration": np.int64(1), "adam/learning_rate": np.float32(0.001)}
        for kind, arrays in layers:
            for part, array in zip(("kernel", "bias") if len(arrays) == 2 else ("gamma", "beta"), arrays, strict=False):
                number = sum(f"_{kind}_" in name and f"_{part}_m" in name for name in state) + SECOND[kind]
                for slot in ("momentum", "velocity"):
                    state[f"adam/sequential_1_{kind}_{number}_{part}_{slot}"] = np.full_like(array, 7)
        for name, array in state.items():
            file[f"optimizer_weights/{name}"] = array
        file["optimizer_weights"].attrs["weight_names"] = [name.encode() for name in state]


def nested_older_model(path: Path, layers: Layers) -> None:
    """A nested model is a single layer in this layout, and moving statistics come after all trainable weights."""
    trained = {f"sequential_5/{kind}_{i}": arrays[:2] for i, (kind, arrays) in enumerate(layers) if arrays}
    still = {f"sequential_5/{kind}_{i}": arrays[2:] for i, (kind, arrays) in enumerate(layers) if len(arrays) == 4}
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"sequential_4", b"sequential_5"]
        group.create_group("sequential_4").attrs["weight_names"] = []
        inside, stored_names = group.create_group("sequential_5"), []
        for some, parts in ((trained, ("first", "second")), (still, ("moving_mean", "moving_variance"))):
            for name, arrays in some.items():
                for part, array in zip(parts, arrays, strict=True):
                    stored_names.append(f"{name}/{part}".encode())
                    inside[f"{name}/{part}"] = array
        inside.attrs["weight_names"] = stored_names


LAYOUTS: dict[str, Callable[[Path, Layers], None]] = {
    "x.weights.h5": weights_h5,
    "nested.weights.h5": nested_weights_h5,
    "x.keras": keras,
    "weights.h5": older_weights,
    "keras2.h5": keras_2_weights,
    "own.h5": own_names,
    "model.h5": older_model,
    "nested.h5": nested_older_model,
}
