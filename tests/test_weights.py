"""Keras weight files: each layout gives the same results as Keras' arithmetic; files that do not fit give one line."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet import AlexNet
from alexnet.convert.keras_weights import keras_classes, load_keras, slots
from alexnet.errors import WeightsError
from alexnet.network.variants import ROWS
from conftest import mostly_long
from keras_layouts import LAYOUTS, NETS, WIDTH, Array, Layers, keras, keras_logits, model, older_weights, weights_h5


def narrow(variant: str = "cifar10", classes: int = 10, width: float = WIDTH) -> AlexNet:
    return AlexNet(variant, classes, width=width).eval()


def weights_of(network: AlexNet) -> dict[str, Array]:
    return {name: value.numpy().copy() for name, value in network.state_dict().items() if "num_batches" not in name}


def same(network: AlexNet, weights: dict[str, Array]) -> bool:
    return all(np.array_equal(value, weights[name]) for name, value in weights_of(network).items())


def refused(path: Path, network: AlexNet) -> str:
    """Return the error for a file that does not load; the network is unchanged."""
    before = weights_of(network)
    with pytest.raises(WeightsError) as caught:
        load_keras(path, network)
    assert same(network, before)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    assert path.name in line
    return line


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.weights.h5"
    weights_h5(path, model())
    return path


@pytest.mark.parametrize("variant", NETS)
def test_logits_are_those_of_keras_arithmetic(variant: str, tmp_path: Path) -> None:
    layers, network = model(variant), narrow(variant)
    keras(tmp_path / "x.keras", layers)
    load_keras(tmp_path / "x.keras", network)
    side = network.row.input_size
    images = np.random.default_rng(1).normal(0, 1, (3, side, side, 3))
    expected = np.stack([keras_logits(variant, layers, image) for image in images])
    with torch.no_grad():
        found = network.double()(torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous()).numpy()
    assert expected.std(0).min() > 1e-3, "otherwise the images would not matter"
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["cifar10", "cats-dogs"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_each_layer_its_arrays(layout: str, variant: str, tmp_path: Path) -> None:
    layers, network = model(variant, 3), narrow(variant, 3)
    path = tmp_path / layout
    LAYOUTS[layout](path, layers)
    assert keras_classes(path) == 3
    load_keras(path, network)
    ours = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | torch.nn.BatchNorm2d)]
    for layer, (kind, arrays) in zip(ours, [found for found in layers if found[1]], strict=True):
        first = arrays[0].transpose(3, 2, 0, 1) if kind == "conv2d" else arrays[0].T
        assert np.array_equal(layer.weight.detach().numpy(), first)
        assert np.array_equal(layer.bias.detach().numpy(), arrays[1])
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert np.array_equal(layer.running_mean.numpy(), arrays[2])
            assert np.array_equal(layer.running_var.numpy(), arrays[3])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_variant_takes_a_file_of_its_own_shapes(row: Any, tmp_path: Path) -> None:
    network = narrow(row.name, 5)
    kinds = {"convolution": "conv2d", "dense layer": "dense", "batch normalisation": "batch_normalization"}
    chance = np.random.default_rng(0)
    layers = [(kinds[s.kind], [chance.random(shape, np.float32) for shape in s.shapes]) for s in slots(network)]
    weights_h5(tmp_path / "x.h5", layers)
    load_keras(tmp_path / "x.h5", network)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, arrays in zip(convolutions, [arrays for kind, arrays in layers if kind == "conv2d"], strict=True):
        assert np.array_equal(layer.weight.detach().numpy(), arrays[0].transpose(3, 2, 0, 1))  # H W I O -> O I H W
        assert layer.bias is None or np.array_equal(layer.bias.detach().numpy(), arrays[1])
        assert len(arrays) == 1 + (layer.bias is not None)
    assert np.array_equal(network.head.weight.detach().numpy(), layers[-1][1][0].T)


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        seen: Counter[str] = Counter()
        for kind, arrays in model():
            for number, array in enumerate(arrays):
                file[f"layers/{kind}_{seen[kind] + 7}/vars/{number}"] = array
            seen[kind] += 1
    network, expected = narrow(), narrow()
    load_keras(tmp_path / "x.h5", network)
    weights_h5(tmp_path / "y.h5", model())
    load_keras(tmp_path / "y.h5", expected)
    assert same(network, weights_of(expected))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_half_and_double_precision_load_too(dtype: type, tmp_path: Path) -> None:
    layers = [(kind, [array.astype(dtype) for array in arrays]) for kind, arrays in model()]
    weights_h5(tmp_path / "x.h5", layers)
    network = narrow()
    load_keras(tmp_path / "x.h5", network)
    assert np.array_equal(network.head.weight.detach().numpy(), layers[-1][1][0].T.astype(np.float32))


def test_nan_weights_are_loaded_unchanged(tmp_path: Path) -> None:
    layers = model()
    layers[0][1][1][:] = np.nan
    weights_h5(tmp_path / "x.h5", layers)
    network = narrow()
    load_keras(tmp_path / "x.h5", network)
    assert network.features.conv1.bias.isnan().all()


# What does not fit


@pytest.mark.parametrize(
    ("made", "wanted", "line"),
    [
        (
            ("cifar10-1x1", 10),
            ("cifar10", 10),
            "the kernel of its layer 'layers/conv2d_3' is 1x1x24x24, but conv4 of the variant 'cifar10' needs 3x3x24x24; "
            "it fits the variant 'cifar10-1x1'",
        ),
        (
            ("cats-dogs", 2),
            ("cifar10", 2),
            "the gamma of its layer 'layers/batch_normalization' is 16, but norm1 of the variant 'cifar10' needs 6; "
            "it fits the variant 'cats-dogs'",
        ),
        (
            ("cifar10", 10),
            ("annotated", 10),
            "the kernel of its layer 'layers/dense' is 576x256, but fc6 of the variant 'annotated' needs 400x256; "
            "it fits the variant 'cifar10'",
        ),
        (
            ("cifar10", 10),
            ("cifar10", 16),
            "the kernel of its layer 'layers/dense_2' is 256x10, but fc8 of the variant 'cifar10' needs 256x16; "
            "it has 10 classes, this network 16: name its classes with --classes",
        ),
        (
            ("cifar10", 10),
            ("table", 10),
            "its layer 'layers/batch_normalization' (6, 6, 6, 6) does not fit anywhere in the variant 'table'; "
            "it fits the variant 'cifar10'",
        ),
    ],
)
def test_shape_mismatch_names_both_layers_and_a_fix(
    made: tuple[str, int], wanted: tuple[str, int], line: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.keras"
    keras(path, model(*made))
    assert refused(path, narrow(*wanted)) == f"{path}: {line}"


def test_meta_network_gets_memory_only_if_the_file_fits(good: Path) -> None:
    network, expected = narrow(), narrow()
    load_keras(good, expected)
    with torch.device("meta"):
        network, other = narrow(), narrow(classes=10**6)
    load_keras(good, network)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(WeightsError, match="it has 10 classes, this network 1000000"):
        load_keras(good, other)
    assert other.head.weight.is_meta


def test_another_width_is_named(good: Path) -> None:
    assert "it fits at model.width=0.0625" in refused(good, narrow(width=1 / 8))
    assert "it fits the variant 'cifar10' at model.width=0.0625" in refused(good, narrow("annotated", width=1 / 8))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda layers: layers.pop(10), "it has no convolution for conv5 of the variant 'cifar10'; it fits no variant"),
        (
            lambda layers: layers.append(("dense", layers[-1][1])),
            "its layer 'layers/dense_3' (256x10, 10) does not fit anywhere",
        ),
        (lambda layers: layers.append(("lstm", [np.ones((2, 2, 2))])), "its layer 'layers/lstm' (2x2x2) does not fit anywhere"),
        (
            lambda layers: layers.insert(0, ("normalization", [np.ones(3), np.ones(3), np.int64(1)])),
            "its layer 'layers/normalization' (3, 3) does not fit anywhere",
        ),
        (
            lambda layers: layers[0][1].pop(),
            "its layer 'layers/conv2d' holds 11x11x3x6, but conv1 of the variant 'cifar10' kernel, bias",
        ),
        (lambda layers: layers[1][1].pop(), "holds 6, 6, 6, but norm1 of the variant 'cifar10' gamma, beta, moving mean"),
        (lambda layers: layers[1][1].append(np.ones(3)), "holds 6, 6, 6, 6, 3, but norm1"),
        (lambda layers: layers.__delitem__(slice(14, None)), "it has no dense layer"),
    ],
)
def test_layers_too_many_or_too_few_are_named(change: Callable[[Layers], object], line: str, tmp_path: Path) -> None:
    layers = model()
    change(layers)
    weights_h5(tmp_path / "x.h5", layers)
    assert line in refused(tmp_path / "x.h5", narrow())


def test_a_network_changed_by_a_recipe_is_not_taken_for_its_row(good: Path) -> None:
    network = AlexNet("cifar10", 10, width=WIDTH, norm="none")
    assert "does not fit anywhere in the variant 'cifar10'; it fits the variant 'cifar10'" in refused(good, network)


# Damaged and hostile files


def change(path: Path, do: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        do(file)


def replace(file: h5py.File, name: str, **how: Any) -> None:
    del file[name]
    file.create_dataset(name, **how)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(10, np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", 10)
    del file["layers/dense_2/vars/1"]
    file.create_virtual_dataset("layers/dense_2/vars/1", layout)


def link(file: h5py.File, to: object) -> None:
    del file["layers/dense_2/vars/1"]
    file["layers/dense_2/vars/1"] = to


BIAS = "layers/dense_2/vars/1"
HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (lambda f: link(f, h5py.SoftLink("/layers/dense_1/vars/1")), f"'/{BIAS}' is a link"),
    "dangling link": (lambda f: link(f, h5py.SoftLink("/nowhere")), f"'/{BIAS}' is a link"),
    "external link": (lambda f: link(f, h5py.ExternalLink("other.h5", "/x")), f"'/{BIAS}' is a link"),
    "external storage": (
        lambda f: replace(f, BIAS, shape=(10,), dtype="f4", external=[("other.bin", 0, 40)]),
        f"'/{BIAS}' is not stored contiguously",
    ),
    "virtual": (virtual, f"'/{BIAS}' is not stored contiguously"),
    "compressed": (
        lambda f: replace(f, BIAS, data=np.zeros(10, "f4"), compression="gzip"),
        f"'/{BIAS}' is not stored contiguously",
    ),
    "huge shape": (
        lambda f: replace(f, "layers/dense/vars/0", shape=(10**9, 10**9), dtype="f4"),
        "'/layers/dense/vars/0' of 1000000000 x 1000000000 values is not complete",
    ),
    "never written": (lambda f: replace(f, BIAS, shape=(10,), dtype="f4"), "of 10 values is not complete"),
    "objects": (
        lambda f: replace(f, BIAS, data=np.array([b"import os"] * 10, object), dtype=h5py.string_dtype()),
        f"'/{BIAS}' holds object, not float16, float32 or float64",
    ),
    "references": (lambda f: replace(f, BIAS, shape=(10,), dtype=h5py.ref_dtype), f"'/{BIAS}' holds object"),
    "bfloat16": (lambda f: replace(f, BIAS, data=np.zeros(10, "V2")), "save the model in float32"),
    "8 bits": (lambda f: replace(f, "layers/dense_2/vars/0", data=np.zeros((256, 10), "i1")), "holds int8"),
    "a group in a circle": (lambda f: f["layers"].__setitem__("again", f["layers"]), "is a name that Keras does not write"),
    "nothing": (lambda f: f.__delitem__("layers"), "no weights in the file"),
    "no name for a layer": (lambda f: f.attrs.__setitem__("layer_names", [b"conv2d"]), "names 'conv2d', which does not exist"),
    "names as numbers": (lambda f: f.attrs.__setitem__("layer_names", np.arange(3)), "'layer_names' is not a list of names"),
    "one name": (lambda f: f.attrs.__setitem__("layer_names", "conv2d"), "'layer_names' is not a list of names"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_objects_that_keras_does_not_write_are_refused_unread(kind: str, good: Path) -> None:
    do, line = HOSTILE[kind]
    (good.parent / "other.bin").write_bytes(bytes(40))
    change(good, do)
    assert line in refused(good, narrow())


def test_list_of_weights_that_do_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    older_weights(path, model())
    change(path, lambda f: f["conv2d_5"].attrs.__setitem__("weight_names", [b"gone/kernel"]))
    assert "it has no array '/conv2d_5/gone/kernel'" in refused(path, narrow())
    change(path, lambda f: f["conv2d_5"].attrs.__delitem__("weight_names"))
    assert "cannot be read as a Keras file" in refused(path, narrow())


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("reference", (2**32 - 1).to_bytes(4, "little")),  # HDF5 itself asks for 4 GB here
        ("reference", (2**40).to_bytes(12, "little")),
        pytest.param("heap", bytes(16), marks=pytest.mark.long),  # and here it never returns
        ("heap", bytes([1, 0]) + bytes(6) + bytes([255]) * 8),
    ],
)
def test_lists_of_names_that_are_damaged_take_neither_memory_nor_time(at: str, value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    older_weights(path, model())
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    place = heap + 16  # its first entry
    if at == "reference":  # 4 bytes of length, 8 of the heap's address, 4 of the index in it
        place = content.index(heap.to_bytes(8, "little"), content.index(b"layer_names\0")) - 4
    path.write_bytes(content[:place] + value + content[place + len(value) :])
    refused(path, narrow())  # the process limits both


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_is_read_in_memory_regardless_of_member_names(good: Path, tmp_path: Path) -> None:
    weights = good.read_bytes()
    strange = {"../escaped.h5": weights, "/escaped.h5": weights, "assets/../../escaped.h5": weights}
    before = sorted(tmp_path.parent.rglob("*"))
    path = zipped(tmp_path / "x.keras", {**strange, "model.weights.h5": weights})
    load_keras(path, narrow())
    assert "this zip has no model.weights.h5" in refused(zipped(path, strange), narrow())
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, path])


def test_zips_that_unpack_to_far_more_or_to_something_else(good: Path, tmp_path: Path) -> None:
    path, member = tmp_path / "x.keras", "model.weights.h5"
    zipped(path, {member: bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert "to 50,000,000 bytes: weights do not compress that well" in refused(path, narrow())
    assert "compressed in a way" in refused(zipped(path, {member: good.read_bytes()}, zipfile.ZIP_LZMA), narrow())
    assert "cannot be read as a Keras file" in refused(zipped(path, {member: b"import os"}), narrow())
    load_keras(zipped(path, {member: good.read_bytes()}, zipfile.ZIP_DEFLATED), narrow())


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    network = narrow()
    for name, content in {"empty.h5": b"", "text.h5": b"version https://git-lfs", "pickle.keras": b"\x80\x04N."}.items():
        (tmp_path / name).write_bytes(content)
        assert "not a Keras file" in refused(tmp_path / name, network)
    (tmp_path / "saved_model").mkdir()
    assert "is a folder; save the model as one file" in refused(tmp_path / "saved_model", network)
    assert "no such file" in refused(tmp_path / "gone.h5", network)


SMALL = 1 / 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    folder = tmp_path_factory.mktemp("small")
    for layout in ("x.weights.h5", "model.h5", "x.keras"):
        LAYOUTS[layout](folder / layout, model(classes=10, width=SMALL))
    return {layout: (folder / layout, (folder / layout).read_bytes()) for layout in ("x.weights.h5", "model.h5", "x.keras")}


@mostly_long("layout", ["x.weights.h5", "model.h5", "x.keras"], "x.keras")
@given(at=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_one_clear_line(small: dict[str, tuple[Path, bytes]], layout: str, at: float) -> None:
    path, content = small[layout]
    path.write_bytes(content[: int(at * len(content))])
    refused(path, narrow(width=SMALL))


@mostly_long("layout", ["x.weights.h5", "model.h5", "x.keras"], "x.keras")
@given(at=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_one_clear_line_or_loads(
    small: dict[str, tuple[Path, bytes]], layout: str, at: float, mask: int
) -> None:
    path, content = small[layout]
    changed = bytearray(content)
    changed[int(at * len(content))] ^= mask
    path.write_bytes(changed)
    network, expected = narrow(width=SMALL), narrow(width=SMALL)
    try:
        load_keras(path, network)
    except WeightsError:
        refused(path, network)
        return
    if layout == "x.keras":  # a zip file has checksums; HDF5 as written by Keras has none
        path.write_bytes(content)
        load_keras(path, expected)
        assert same(network, weights_of(expected))


def test_missing_h5py_says_what_to_install(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match="reading Keras files needs h5py: pip install h5py"):
        load_keras(good, narrow())
