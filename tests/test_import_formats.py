"""Import from torchvision, Caffe and ONNX: the run computes what a network written out here does, or there is one line."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof import foreign
from proof.foreign import data, number, real
from torch import Tensor
from torch.nn.functional import conv2d, linear, local_response_norm, max_pool2d

import alexnet
from alexnet.convert import caffe, onnx
from alexnet.convert.pretrained import load_pretrained
from alexnet.data.imagenet import imagenet_classes
from alexnet.data.preprocessing import to_input
from alexnet.errors import AlexNetError, DataError, RunError, WeightsError
from commands import error, run
from test_pretrained import NARROW, torchvision_alexnet

SMALL: dict[str, Any] = {"settings": {"model.width": NARROW}}
CLASSES = 7


def imported(content: bytes, folder: Path, **options: Any) -> alexnet.Run:
    (folder / "file").write_bytes(content)
    return alexnet.load(alexnet.import_weights(folder / "file", out=folder / "run", **{**SMALL, **options}), device="cpu")


def refused(content: bytes, folder: Path, **options: Any) -> str:
    (folder / "file").write_bytes(content)
    with pytest.raises(AlexNetError) as caught:
        alexnet.import_weights(folder / "file", out=folder / "run", **{**SMALL, **options})
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder / "file") in line
    assert len(line) < 400 + len(str(folder))
    assert not (folder / "run").exists()
    return line


# Caffe and the ONNX model zoo


@pytest.fixture(scope="module")
def tensors() -> foreign.Weights:
    return foreign.weights(CLASSES, NARROW)


def caffe_logits(network: str, tensors: foreign.Weights, image: Tensor, side: int) -> Tensor:
    """Compute the logits of an image, 256 256 3 RGB, in float64 as Caffe does."""
    edge = (256 - side) // 2
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434], dtype=torch.float64)  # BGR
    x = image[edge : edge + side, edge : edge + side].flip(2).double() - mean
    x = x.permute(2, 0, 1)[None]
    for name in foreign.names_of(network):
        weight, bias = (torch.from_numpy(array).double() for array in tensors.get(name, (np.empty(0),) * 2))
        if name.startswith("conv"):
            _, stride, padding, groups = foreign.CONVOLUTIONS[name]
            x = conv2d(x, weight, bias, stride, padding, groups=groups)
        elif name.startswith("relu"):
            x = x.relu()
        elif name.startswith("norm"):
            x = local_response_norm(x, 5, 1e-4, 0.75, 1.0)
        elif name.startswith("pool"):
            x = max_pool2d(x, 3, 2, ceil_mode=True)
        elif name.startswith("fc"):
            x = linear(x.flatten(1), weight, bias)
    return x[0]


FILES: dict[str, tuple[int, Callable[[str, foreign.Weights], bytes]]] = {
    "Caffe, V1, four axes": (227, partial(foreign.caffemodel, version=1, legacy=True)),
    "Caffe, V2": (227, foreign.caffemodel),
    "Caffe, V2, float64": (227, partial(foreign.caffemodel, double=True)),
    "ONNX, opset 3": (224, partial(foreign.zoo, opset=3)),
    "ONNX, opset 8, numbers": (224, partial(foreign.zoo, opset=8, floats=True)),
    "ONNX, opset 12": (224, partial(foreign.zoo, opset=12)),
    "ONNX, opset 12, 227 pixels": (227, partial(foreign.zoo, opset=12, side=227)),
}


@pytest.mark.parametrize("network", foreign.ORDERS)
@pytest.mark.parametrize("file", FILES)
def test_logits_of_an_imported_run_are_the_files(network: str, file: str, tensors: foreign.Weights, tmp_path: Path) -> None:
    side, write = FILES[file]
    run = imported(write(network, tensors), tmp_path)
    assert run.config.variant == network
    assert run.labels == tuple("0123456")
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8))
    expected = caffe_logits(network, tensors, image, side)
    with torch.inference_mode():
        found = run.network(to_input(image[None], run.config.preprocessing))[0]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    assert float((expected - caffe_logits(network, tensors, image.flip(2), side)).abs().max()) > 0.01, "colours count"


def test_norm_before_and_after_pooling_differ_so_the_order_of_layers_decides(tensors: foreign.Weights) -> None:
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8))
    one, other = (caffe_logits(network, tensors, image, 227) for network in foreign.ORDERS)
    assert float((one - other).abs().max() / one.abs().max()) > 1e-3


def test_images_are_prepared_as_for_caffe(tensors: foreign.Weights, tmp_path: Path) -> None:
    found = imported(foreign.caffemodel("bvlc", tensors), tmp_path).config.preprocessing
    assert (found.cache_size, found.fit, found.crop, found.input, found.value_range) == (256, "stretch", 227, 227, 255)
    assert found.mean == pytest.approx((122.679, 116.669, 104.007), abs=1e-3)
    assert found.std == (1, 1, 1)


def test_weights_alone_need_the_variant(tensors: foreign.Weights, tmp_path: Path) -> None:
    alone = foreign.caffemodel("caffenet", tensors, names=list(tensors))
    assert refused(alone, tmp_path).endswith("add --variant bvlc or --variant caffenet")
    assert imported(alone, tmp_path, variant="caffenet").config.variant == "caffenet"


def layer(name: str, kind: str, *more: bytes, bottom: str = "", top: str = "") -> bytes:
    wires = (data(3, bottom) if bottom else b"") + (data(4, top) if top else b"")
    return data(100, data(1, name) + data(2, kind) + wires + b"".join(more))


LYING: dict[str, tuple[bytes, str]] = {
    "no layers": (data(1, "AlexNet"), "holds no weights"),
    "a description": (b'\nname: "AlexNet"\nlayer {\n  name: "data"\n}\n', "is damaged, or in another format"),
    "2013": (data(2, data(1, b"")), "layout of 2013: convert it with Caffe's upgrade_net_proto_binary"),
    "another kind": (layer("norm", "BatchNorm"), "'norm' of the type 'BatchNorm', which no AlexNet here has"),
    "another kind, V1": (data(2, data(4, "x") + number(5, 39)), "'x' of the type 'number 39'"),
    "leaky": (layer("relu1", "ReLU", data(123, real(1, 0.1))), "'relu1' of the type 'ReLU' with settings that"),
    "mean pooling": (layer("pool1", "Pooling", data(121, number(1, 1))), "'pool1' of the type 'Pooling' with settings"),
    "not square": (layer("p", "Pooling", data(121, number(5, 3) + number(6, 2))), "'p' whose kernel is not square"),
    "a branch": (layer("a", "ReLU", top="x") + layer("b", "ReLU", bottom="y"), "not a chain of layers: 'b' reads 'y', not 'x'"),
    "too few values": (
        layer("fc6", "InnerProduct", data(7, data(7, data(1, b"\x03\x04")) + data(5, bytes(8)))),
        "'fc6' holds 2 values for weights of 3x4",
    ),
    "10^18 values": (
        layer("fc6", "InnerProduct", data(7, data(7, data(1, 2 * (b"\x80" * 4 + b"\x10"))) + data(5, bytes(8)))),
        "'fc6' holds 2 values for weights of 4294967296x4294967296",
    ),
    "a negative size": (
        layer("fc6", "InnerProduct", data(7, data(7, data(1, b"\xff" * 9 + b"\x01")) + data(5, b""))),
        "'fc6' holds 0 values for weights of -1",
    ),
    "another name": (layer("\x1b[31m\n", "\x1b[31m\n"), "no AlexNet here has"),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_lying_caffe_file_is_one_line(kind: str, tmp_path: Path) -> None:
    content, expected = LYING[kind]
    assert expected in refused(content, tmp_path)


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def test_other_constants_and_groups_are_named_with_the_variants(tensors: foreign.Weights, tmp_path: Path) -> None:
    good = foreign.caffemodel("bvlc", tensors)
    line = refused(changed(good, real(2, 1e-4), real(2, 1e-3)), tmp_path)
    assert "its layer 'norm1' is response normalisation with size 5, alpha 0.001, beta 0.75, k 1, where" in line
    assert "the variant 'bvlc' has response normalisation with size 5, alpha 0.0001, beta 0.75, k 1" in line
    assert "groups 1, where the variant 'bvlc' has a convolution" in refused(
        changed(good, number(5, 2), number(5, 1)), tmp_path
    )
    assert "it ends there, where" in refused(foreign.caffemodel("bvlc", tensors, names=["conv1", "relu1"]), tmp_path)
    assert "only the variants bvlc, caffenet, owt" in refused(good, tmp_path, variant="cifar10")
    assert "'norm1' is response norm" in refused(good, tmp_path, variant="caffenet")
    assert "fc6.weight" not in refused(good, tmp_path, settings={}), "the first layer that does not fit is named"


def onnx_file(change: Callable[[Any], object], tensors: foreign.Weights) -> bytes:
    model = pytest.importorskip("onnx").load_from_string(foreign.zoo("bvlc", tensors))
    change(model.graph)
    return bytes(model.SerializeToString())


def set_attribute(graph: Any, place: int, **values: Any) -> None:
    from onnx import helper

    kept = [attribute for attribute in graph.node[place].attribute if attribute.name not in values]
    del graph.node[place].attribute[:]
    graph.node[place].attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in values.items())])


LYING_ONNX: dict[str, tuple[Callable[[Any], object], str]] = {
    "another kind": (lambda g: setattr(g.node[1], "op_type", "LeakyRelu"), "of the type 'LeakyRelu', which no AlexNet"),
    "a branch": (lambda g: g.node[4].input.__setitem__(0, "data_0"), "not a chain of layers: 'conv2_1' does not read"),
    "no weights": (lambda g: g.node[0].input.__setitem__(1, "gone"), "holds no weights 'gone'"),
    "integers": (lambda g: setattr(g.initializer[0], "data_type", 6), "'conv1_w_0' that are not float16"),
    "another file": (
        lambda g: setattr(g.initializer[0], "data_location", 1),
        "has its weights in another file: save it as one",
    ),
    "too large": (lambda g: g.initializer[0].dims.append(10**12), "holds 2,178 values for weights of 6x3x11x11x10000000000"),
    "negative": (lambda g: g.initializer[0].dims.__setitem__(0, -6), "values for weights of -6x3x11x11"),
    "padding": (lambda g: set_attribute(g, 3, pads=[1, 1, 1, 1]), "'pool1_1' with padding that no AlexNet here has"),
    "rounds down": (lambda g: set_attribute(g, 3, pads=[0, 0, 0, 0]), "stride 2, rounded down, where the variant 'bvlc'"),
    "dilated": (lambda g: set_attribute(g, 0, dilations=[2, 2]), "'conv1_1' with a window that no AlexNet here has"),
    "stride 0": (lambda g: set_attribute(g, 0, strides=[0, 0]), "'conv1_1' with a window"),
    "not square": (lambda g: set_attribute(g, 0, kernel_shape=[11, 3]), "'conv1_1' with a window"),
    "automatic padding": (lambda g: set_attribute(g, 0, auto_pad="SAME_UPPER"), "'conv1_1' with a window"),
    "a factor": (lambda g: set_attribute(g, -2, alpha=2.0), "with settings that no AlexNet here has"),
    "two inputs": (lambda g: g.input.add(name="more"), "has 2 inputs, not one for images"),
    "no nodes": (lambda g: g.ClearField("node"), "holds no weights"),
}


@pytest.mark.parametrize("kind", LYING_ONNX)
def test_a_lying_onnx_file_is_one_line(kind: str, tensors: foreign.Weights, tmp_path: Path) -> None:
    change, expected = LYING_ONNX[kind]
    assert expected in refused(onnx_file(change, tensors), tmp_path)


READERS = {"caffe": caffe.layers, "onnx": onnx.layers}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    weights, folder = foreign.weights(2, 1 / 64), tmp_path_factory.mktemp("tiny")
    contents = {"caffe": foreign.caffemodel("bvlc", weights, 1), "onnx": foreign.zoo("bvlc", weights)}
    return {name: (folder / name, content) for name, content in contents.items()}


def read(form: str, path: Path, content: bytes) -> bool:
    """Read in this process, without the limits of the other; return whether the file was accepted."""
    path.write_bytes(content)
    facts, body = READERS[form](path)
    if "refused" in facts:
        assert len(facts["refused"]) < 400
        assert facts["refused"].isprintable()
        return False
    sizes = [int(np.prod(shape)) for _, _, shapes in facts["layers"] for shape in shapes]
    assert len(body) == 4 * sum(sizes)
    json.dumps(facts)
    return True


@given(st.sampled_from(sorted(READERS)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_cut_anywhere_is_refused_or_ends_at_a_layer(tiny: dict[str, tuple[Path, bytes]], form: str, at: float) -> None:
    path, content = tiny[form]
    read(form, path, content[: int(at * len(content))])


@given(st.sampled_from(sorted(READERS)), st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changed_bytes_are_refused_or_read(tiny: dict[str, tuple[Path, bytes]], form: str, draw: st.DataObject) -> None:
    path, content = tiny[form][0], bytearray(tiny[form][1])
    end = draw.draw(st.sampled_from([200, len(content)]))
    for place, value in draw.draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=5)):
        content[place] = value
    read(form, path, bytes(content))


# torchvision's layout


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return dict(torchvision_alexnet(CLASSES).state_dict())


def renamed(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {change(name): tensor for name, tensor in state.items()}


def checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """As PyTorch's example for ImageNet saves it, with arguments and NumPy's numbers."""
    parallel = renamed(state, lambda name: name.replace("features.", "features.module."))
    numbers = {"epoch": 3, "best_acc1": torch.tensor(56.5), "loss": np.float64(1.5), "rate": np.float32(0.1)}
    arguments = argparse.Namespace(arch="alexnet", data=Path("imagenet"), lr=0.1, seeds=[1, 2], mean=np.zeros(3))
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {**numbers, "arch": "alexnet", "state_dict": parallel, "optimizer": optimizer, "args": arguments}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "module": lambda state: renamed(state, lambda name: f"module.{name}"),
    "features.module": lambda state: renamed(state, lambda name: name.replace("features.", "features.module.")),
    "state_dict": lambda state: {"state_dict": renamed(state, lambda name: f"model.{name}")},
    "model": lambda state: {"model": {"state_dict": renamed(state, lambda name: f"module.model.{name}")}},
    "checkpoint": checkpoint,
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_however_they_are_wrapped(kind: str, old: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(WRAPPED[kind](state), tmp_path / "x", _use_new_zipfile_serialization=not old)
    run = imported((tmp_path / "x").read_bytes(), tmp_path)
    found = run.network.state_dict()
    assert torch.equal(found["head.weight"], state["classifier.6.weight"])
    assert torch.equal(found["features.conv1.weight"], state["features.0.weight"])
    network = alexnet.AlexNet("owt", 2, width=NARROW)
    load_pretrained(network, str(tmp_path / "file"), None)
    assert torch.equal(network.features.conv5.bias, state["features.10.bias"])
    assert (run.config.variant, run.config.preprocessing.crop, run.config.preprocessing.fit) == ("owt", 224, "torchvision")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path) -> None:
    content = safetensors.torch.save({name: tensor.to(dtype) for name, tensor in state.items()})
    found = imported(content, tmp_path).network.state_dict()["features.conv3.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, state["features.6.weight"].to(dtype).float())


@pytest.mark.long  # PyTorch's exporter takes seconds
def test_torchvisions_network_exported_to_onnx(state: dict[str, Tensor], tmp_path: Path) -> None:
    theirs = torchvision_alexnet(CLASSES).eval()
    theirs.load_state_dict(state)
    images = torch.randn(1, 3, 224, 224)
    torch.onnx.export(theirs, (images,), tmp_path / "x.onnx", dynamo=True, external_data=False, verbose=False)
    run = imported((tmp_path / "x.onnx").read_bytes(), tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(run.network(images), theirs(images), rtol=1e-4, atol=1e-6)
    assert run.config.preprocessing.mean == (0.485, 0.456, 0.406)


def saved(content: Any, folder: Path) -> bytes:
    torch.save(content, folder / "saved")
    return (folder / "saved").read_bytes()


def compressed(content: bytes, folder: Path) -> bytes:
    (folder / "one").write_bytes(content)
    with zipfile.ZipFile(folder / "one") as one, zipfile.ZipFile(folder / "two", "w", zipfile.ZIP_DEFLATED) as two:
        for name in one.namelist():
            two.writestr(name, one.read(name))
    return (folder / "two").read_bytes()


def test_what_is_not_weights_is_one_line_with_the_way_out(state: dict[str, Tensor], tmp_path: Path) -> None:
    advice = "torch.save(model.state_dict(), 'weights.pth')"
    assert advice in refused(saved(torchvision_alexnet(CLASSES), tmp_path), tmp_path)
    assert advice in refused(compressed(saved(state, tmp_path), tmp_path), tmp_path), "could unpack to any size"
    assert advice in refused(saved({**state, "more": bytearray(8)}, tmp_path), tmp_path), "could be of any size"
    assert "holds 2 networks: save one" in refused(saved({"model": state, "ema": state}, tmp_path), tmp_path)
    assert "not in the layout" in refused(saved({**state, "attention.weight": torch.zeros(2)}, tmp_path), tmp_path)
    assert "not in the layout" in refused(saved({**state, "classifier.6.bias": torch.arange(7)}, tmp_path), tmp_path)
    endless = torch.zeros(1).expand(10**9, 256)
    assert "not in the layout" in refused(saved({**state, "classifier.6.weight": endless}, tmp_path), tmp_path)
    assert "needs the variant 'owt', not 'paper'" in refused(saved(state, tmp_path), tmp_path, variant="paper")
    assert "conv1.weight is 4x3x11x11 and 64x3x11x11" in refused(saved(state, tmp_path), tmp_path, settings={})


def test_files_of_no_known_format_are_one_line(tmp_path: Path) -> None:
    for content in (b"", b"weights", b"\x89PNG\r\n", b"\0" * 99):
        assert "or not a file of trained weights: it should be a .pth" in refused(content, tmp_path)
    assert "run git lfs pull" in refused(b"version https://git-lfs.github.com/spec/v1\n", tmp_path)
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 31)
    for path, line in ((tmp_path / "large", "larger than 2 GB"), (tmp_path / "gone", "No such file"), (tmp_path, "directory")):
        with pytest.raises(WeightsError, match=line):
            alexnet.import_weights(path, out=tmp_path / "run")


# The run


def test_a_thousand_outputs_are_imagenets_classes(tmp_path: Path) -> None:
    state = torchvision_alexnet(1000).state_dict()
    run = imported(safetensors.torch.save(state), tmp_path)
    assert run.labels == tuple(imagenet_classes().values())
    (answer,) = run.predict([np.zeros((40, 60, 3), np.uint8)])
    assert {guess["label"] for guess in answer["predictions"]} <= set(run.labels)


def test_imagenet_classes_are_sorted_by_id_and_their_labels_differ() -> None:
    classes = imagenet_classes()
    assert len(classes) == len(set(classes.values())) == 1000
    assert list(classes) == sorted(classes)
    assert all(wnid[0] == "n" and len(wnid) == 9 and wnid[1:].isdecimal() for wnid in classes)
    assert all(label == label.strip() and label and "," not in label for label in classes.values())
    places = list(classes.values())
    for place, label in {
        0: "tench",
        134: "crane bird",
        281: "tabby",
        517: "crane",
        639: "maillot tank suit",
        999: "toilet tissue",
    }.items():
        assert places[place] == label


def test_classes_come_from_a_list_or_a_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save(state))
    (tmp_path / "names.txt").write_text("\n".join(f"/a/name {i}" for i in range(7)) + "\n\n", encoding="utf-8")
    command = ["import", tmp_path / "x.safetensors", "--set", f"model.width={NARROW}", "--classes"]
    run(*command, tmp_path / "names.txt", "--out", tmp_path / "a")
    assert alexnet.load(tmp_path / "a").labels[6] == "/a/name 6"
    run(*command, "a, b,c,d,e,f,g", "--out", tmp_path / "b")
    assert alexnet.load(tmp_path / "b").labels == tuple("abcdefg")
    assert "has 7 outputs, but --classes names 1001" in error(
        *command, ",".join(map(str, range(1001))), "--out", tmp_path / "c"
    )
    assert "control characters" in error(*command, "a\x07,b,c,d,e,f,g", "--out", tmp_path / "c")


def test_without_a_dataset_evaluate_and_report_say_why_and_export_goes_on(state: dict[str, Tensor], tmp_path: Path) -> None:
    run = imported(safetensors.torch.save(state), tmp_path)
    with pytest.raises(DataError, match="was imported and has no dataset of its own: name one"):
        run.evaluate()
    with pytest.raises(RunError, match=r"a report is of a training, and .* was imported"):
        run.report()
    assert run.recipe.data.dataset == ""


def test_a_recipe_replaces_the_originals_preprocessing(state: dict[str, Tensor], tmp_path: Path) -> None:
    changes = {"images.cache_size": 224, "images.mean": 0.5, "images.std": 0.25, "model.width": NARROW}
    found = imported(safetensors.torch.save(state), tmp_path, recipe="fast", settings=changes).config.preprocessing
    assert (found.mean, found.fit, found.input) == ((0.5,) * 3, "crop", 224)
