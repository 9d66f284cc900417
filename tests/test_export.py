"""Exports: the file agrees with the run on images of all kinds; a file that does not is not written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from proof.pictures import picture
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.data.decode import decode
from alexnet.data.preprocessing import pixels
from alexnet.errors import AlexNetError, RunError
from alexnet.explain.methods import heat_map
from alexnet.export import model as onnx_model
from alexnet.export.heat import has_heat
from alexnet.export.onnx import agreement, export, temporary_folder
from alexnet.files import HOST
from alexnet.inference import forward
from alexnet.inference.views import views
from alexnet.network.alexnet import AlexNet
from alexnet.network.known import fit_known
from alexnet.network.variants import VARIANTS
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig, RunFolder, save_model
from conftest import in_float32, mostly_long, needs_export

MEAN = np.random.default_rng(0).uniform(0, 255, (48, 48, 3)).astype(np.float32)
pytestmark = needs_export

# As in the recipes, but at smaller sizes.
WAYS = {
    "fast": {
        "cache_size": 32,
        "fit": "crop",
        "reduced_decode": True,
        "input": 64,
        "upscale": 2,
        "views": 2,
        "mean": (0.5, 0.4, 0.3),
    },
    "fast, photos": {"cache_size": 64, "fit": "crop", "reduced_decode": True, "input": 64, "std": (0.2, 0.3, 0.4)},
    "finetune": {"cache_size": 48, "fit": "crop", "reduced_decode": True, "crop": 40, "input": 40, "views": 10},
    "imported, torchvision": {"cache_size": 48, "fit": "torchvision", "filter": "bilinear", "crop": 40, "input": 40},
    "bilinear, reduced": {"cache_size": 48, "fit": "crop", "filter": "bilinear", "reduced_decode": True, "input": 48},
    "annotated": {
        "cache_size": "full",
        "fit": "stretch",
        "antialias": False,
        "value_range": 255,
        "horizontal_flip": True,
        "input": 50,
    },
    "annotated, cropped": {"cache_size": "full", "fit": "crop", "input": 50, "brightness": 0.2},
    "nearest, full": {"cache_size": "full", "fit": "crop", "resize": "nearest", "input": 33},
    "cats-dogs": {"cache_size": 67, "fit": "stretch", "filter": "nearest", "input": 67},
    "cifar10": {"cache_size": 32, "fit": "crop", "antialias": False, "value_range": 255, "mean": "each", "input": 67},
    "paper": {
        "cache_size": 48,
        "fit": "crop",
        "crop": 40,
        "value_range": 255,
        "mean": "image",
        "mean_image": MEAN,
        "input": 40,
    },
    "code2012": {"cache_size": 48, "fit": "stretch", "crop": 40, "mean": "image-centre", "mean_image": MEAN, "input": 20},
}
SIZES = [(1, 1), (1, 90), (300, 1), (2, 3), (40, 40), (67, 67), (64, 65), (99, 61), (500, 70), (333, 500), (900, 30), (31, 800)]


def prepared(mean_image: NDArray[np.float32] | None = None, **settings: object) -> Preprocessing:
    return Preprocessing(**settings).resolved(mean_image)


def opened(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    content = model if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def wild(network: AlexNet) -> AlexNet:
    """Give the norms non-trivial statistics, so that leaving one out would show."""
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, *((0.5, 2.0) if name.endswith("var") else (-0.3, 0.3)))
    return network.eval()


@mostly_long("name", VARIANTS, "paper")
def test_every_variant_says_the_same_in_onnxruntime(name: str) -> None:
    torch.manual_seed(0)
    network = wild(AlexNet(name, 5, width=1 / 16))
    side = network.row.input_size
    model = onnx_model.network_model(network, prepared(cache_size=side, fit="crop", input=side))
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        ours = network(images).softmax(1).numpy()
    session = opened(model)
    for count in (1, 3):
        theirs = torch.from_numpy(session.run(None, {"images": images[:count].numpy()})[0]).softmax(1).numpy()
        assert np.abs(theirs - ours[:count]).max() < 1e-4
    assert {node.domain for node in model.graph.node} == {""}, "nothing but standard operators"


@pytest.mark.long
def test_a_network_that_enlarges_small_images_comes_out_with_the_weights_that_were_trained() -> None:
    torch.manual_seed(0)
    network = wild(AlexNet("cifar10", 5, width=1 / 16))
    model = onnx_model.network_model(network, prepared(cache_size=32, fit="crop", input=128, upscale=4))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert all(np.array_equal(weights[f"{name}.weight"], network.layers[name].weight.detach()) for name in ("conv1", "fc6"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = network(images, 4).softmax(1).numpy()
    theirs = torch.from_numpy(opened(model).run(None, {"images": images.numpy()})[0]).softmax(1).numpy()
    assert np.abs(theirs - ours).max() < 1e-4


@mostly_long("way", WAYS, "cats-dogs")
def test_images_of_any_size_are_prepared_as_for_training(way: str) -> None:
    preprocessing = prepared(**WAYS[way])
    session = opened(onnx_model.preprocessing_model(preprocessing))
    white = preprocessing.value_range / min(preprocessing.std) if preprocessing.std != "each" else 4.0
    for size in SIZES:
        image = noise(*size)
        batch = torch.from_numpy(pixels(image, preprocessing).copy())[None]
        ours = torch.cat(list(views(batch, preprocessing, preprocessing.view_count))).numpy()
        theirs = session.run(None, {"image": image})[0]
        assert theirs.shape == ours.shape == (preprocessing.view_count, 3, preprocessing.resized, preprocessing.resized)
        off = np.abs(theirs - ours) / white
        assert off.max() < 3 / 255
        # In noise, one pixel in ten thousand may round the other way; bilinear weights often lie halfway between two levels.
        assert off.mean() < (1e-3 if preprocessing.filter == "bilinear" else 1e-5)


def probabilities(run: alexnet.Run, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the probabilities from `predict`, in the order of the labels."""
    found = {guess["label"]: guess["probability"] for guess in run.predict([image])[0]["predictions"]}
    return np.array([found[label] for label in run.labels])


@pytest.fixture(scope="module")
def plain(trained: alexnet.Run) -> alexnet.Run:
    """The run in float32, as the file computes: bfloat16 alone may change a probability by 0.01 (proof/export.py)."""
    return in_float32(trained)


@pytest.fixture(scope="module")
def session(exported: dict[str, Any]) -> onnxruntime.InferenceSession:
    return opened(Path(exported["file"]))


def test_close_probabilities_are_recomputed_in_float32(trained: alexnet.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers in both precisions are fixed here, so that a processor's rounding decides nothing."""
    config = trained.config.model_copy(update={"precision": "bfloat16", "temperature": 2.0, "known": None})
    leads = np.array([-3.0, -0.9, -0.2, 0.0, 0.4, 1.0, 1.3, 2.0, 9.0])  # of the first logit, in bfloat16
    looked: list[tuple[str, int]] = []

    def said(
        network: AlexNet, images: torch.Tensor, preprocessing: Preprocessing, precision: str, *_: object
    ) -> forward.Outputs:
        looked.append((precision, len(images)))
        first = leads[images[:, 0, 0, 0].numpy()] + (0.01 if precision == "float32" else 0)
        logits = np.stack([first, np.zeros(len(first))], 1).astype(np.float32)
        return forward.Outputs(logits, np.empty((len(logits), 0), np.float32))

    monkeypatch.setattr(forward, "compute", said)
    monkeypatch.setattr(forward, "resolve_precision", lambda device, precision: precision)
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(len(leads))]
    found = np.stack([row for row, _ in forward.classify(trained.network, config, images)])
    narrow = 1 / (1 + np.exp(-leads / 2))
    close = np.abs(2 * narrow - 1) < forward.MARGIN
    assert close.tolist() == [False, *[True] * 5, *[False] * 3]
    assert looked == [("bfloat16", 9), ("float32", 5)]
    np.testing.assert_allclose(found[:, 0], np.where(close, 1 / (1 + np.exp(-(leads + 0.01) / 2)), narrow), rtol=1e-6)
    looked.clear()
    forward.classify(trained.network, config.model_copy(update={"precision": "float32"}), images)
    assert looked == [("float32", 9)]


def odd_files(folder: Path) -> dict[str, Path]:
    """Write a file of each kind that is not plain RGB."""
    image, exif = picture(0, 5, (90, 60)), Image.Exif()
    exif[0x0112] = 6
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(noise(60, 90)[..., 0]))
    kinds = {"cmyk.jpg": image.convert("CMYK"), "grey.png": image.convert("L"), "palette.gif": image.convert("P")}
    kinds |= {"deep.png": Image.fromarray(noise(60, 90)[..., 0].astype(np.uint16) * 257), "clear.png": clear}
    for name, kind in kinds.items():
        kind.save(folder / name)
    image.save(folder / "turned.jpg", exif=exif)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_predict_and_the_file_say_the_same_of_files_of_all_kinds(
    plain: alexnet.Run, session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    for name, path in odd_files(tmp_path).items():
        image = np.asarray(decode(path))
        assert np.abs(session.run(None, {"image": image})[0] - probabilities(plain, image)).max() < 0.01, name


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_predict_and_the_file_say_the_same_of_images_of_any_size(
    plain: alexnet.Run, session: onnxruntime.InferenceSession, height: int, width: int, seed: int
) -> None:
    image = np.asarray(picture(seed % 3, seed, (width, height)))
    found = session.run(None, {"image": image})[0]
    assert found.shape == (2,)
    assert np.abs(found - probabilities(plain, image)).max() < 0.01


@pytest.mark.long
def test_int8_is_a_quarter_of_the_size_and_reports_its_accuracy(trained: alexnet.Run, tmp_path: Path) -> None:
    for bare in (False, True):
        place = tmp_path / f"{bare}.onnx"
        found = trained.export(place, bare=bare, int8=True)
        kept = 0 if bare else onnx_model._calibration(trained.config).ByteSize()  # of probabilities and known, in float32
        assert found["bytes"] == place.stat().st_size
        assert found["bytes"] - kept <= 0.3 * (found["float_bytes"] - kept)
        assert list(found["top1"]) == ["torch", "onnx", "int8"]
        assert found["top1"]["torch"] - found["top1"]["int8"] <= 0.1
        assert found["same_top1"] == 1
        assert found == json.loads(Path(f"{place}.json").read_text())
        quantised = [node for node in onnx.load(place).graph.node if "QuantizeLinear" in node.op_type]
        assert quantised
        assert bare or all(node.input[1].startswith("network/") for node in quantised), "none in the preprocessing"
        floats = [each.name for each in onnx.load(place).graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
        whole = sorted(name.split(".")[-2] for name in floats if name.endswith("weight") and "norm" not in name)
        assert whole == ["conv1", "fc8"], "the first and the last layer lose the most"


@pytest.mark.long
def test_compact_weights_take_a_quarter_of_the_size_and_hardly_change_the_logits() -> None:
    torch.manual_seed(0)
    network = wild(AlexNet("owt", 5, width=1 / 4))
    before = onnx_model.network_model(network, prepared(cache_size=224, fit="crop", input=224))
    size = before.ByteSize()
    after = onnx_model.compact(before)
    assert after.ByteSize() < 0.28 * size
    images = torch.randn(8, 3, 224, 224)
    with torch.no_grad():
        ours = network(images).numpy()
    theirs = opened(after).run(None, {"images": images.numpy()})[0]
    assert 0 < np.abs(theirs - ours).max() < 0.02 * ours.std()


@mostly_long("name", VARIANTS, "cifar10")
@mostly_long("activation", ["relu", "tanh"], "relu")
def test_heat_maps_of_the_file_are_those_of_grad_cam(name: str, activation: str) -> None:
    torch.manual_seed(0)
    network = wild(AlexNet(name, 5, width=1 / 16, activation=activation))
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_uniform_(layer.weight)  # so that maps are not all near 0
    side, count = network.row.input_size + 8, 1 if network.row.towers > 1 else 2  # other maps than the dense layers' grid
    assert has_heat(network)
    way = prepared(cache_size=side, fit="crop", input=side, views=count)
    images = torch.randn(count, 3, side, side)
    logits, found = opened(onnx_model.network_model(network, way, heat=True)).run(None, {"images": images.numpy()})
    target = int(torch.from_numpy(logits).softmax(1).mean(0).argmax())
    expected = heat_map("grad_cam", network, images[:1], target)
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_norms_behind_the_last_maps_leave_a_file_without_heat_maps() -> None:
    assert not has_heat(AlexNet("cifar10", 5, width=1 / 16, norm="local-each"))


def with_threshold(network: AlexNet, config: ModelConfig) -> tuple[ModelConfig, list[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return the config with a threshold, images, and their sums of scores: some above it, some below, none near."""
    known = fit_known(np.random.default_rng(0).random((30, network.head.in_features)), np.arange(30) % 5, 5)
    known.spread.fill_(1)
    images = [noise(67, 67, seed) // (seed + 1) for seed in range(8)]
    batch = torch.from_numpy(np.stack(images))
    sums = forward.compute(network, batch, config.preprocessing, "float32", known=known).scores.sum(1)
    ordered = np.sort(sums)
    gap = int(np.diff(ordered).argmax())
    known.threshold.fill_(float(ordered[gap : gap + 2].mean()))
    return config.model_copy(update={"known": known}), images, sums


@pytest.mark.long
def test_labels_and_all_that_is_needed_are_inside(tmp_path: Path) -> None:
    labels = ('a "b", c', "naïve ☃", "\udcff no UTF-8", "", "a=b;c")
    preprocessing = prepared(cache_size=67, fit="crop", input=67, views=2)
    config = ModelConfig(
        variant="cifar10", width=1 / 16, labels=labels, preprocessing=preprocessing, temperature=0.7, sha256="ab"
    )
    torch.manual_seed(0)
    network = AlexNet("cifar10", 5, width=1 / 16).eval()
    config, images, sums = with_threshold(network, config)
    place = tmp_path / "new" / "model.onnx"
    found = export(network, config, None, place)
    assert found["compared_on"] == "synthetic images"
    assert found["same_known"] == 1
    answers = [bool(opened(place).run(["known"], {"image": image})[0]) for image in images]
    assert answers == (sums >= config.known.threshold.item()).tolist()
    assert set(answers) == {True, False}
    metadata = opened(place).get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata["labels"])) == labels
    assert Preprocessing.model_validate_json(metadata["preprocessing"]) == preprocessing
    assert (metadata["variant"], metadata["input"], metadata["sha256"]) == ("cifar10", "[3, 67, 67]", "ab")
    assert metadata["version"] == alexnet.__version__
    assert str(Path(alexnet.__file__).parent).encode() not in place.read_bytes(), "no paths of this machine"
    onnx.checker.check_model(place, full_check=True)


def test_export_that_disagrees_is_removed(trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = onnx_model.network_model
    torch.manual_seed(1)
    other = AlexNet("cifar10", 2, width=1 / 16)
    monkeypatch.setattr(onnx_model, "network_model", lambda _, preprocessing, **keys: true(other, preprocessing, **keys))
    with pytest.raises(RunError, match=r"was not written: onnxruntime disagrees with PyTorch") as error:
        trained.export(tmp_path / "model.onnx", bare=True)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_next_export_removes_leftovers_of_a_killed_one_only(tmp_path: Path) -> None:
    killed, at_work, others = (f".export.a.{HOST}-{2**30}.part", f".export.b.{HOST}-{os.getpid()}.part", "film.part")
    for name in (killed, at_work, others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "float.onnx").touch()
    with temporary_folder(tmp_path / "model.onnx") as folder:
        assert folder.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {at_work, others}


@pytest.mark.parametrize("wrong", [np.nan, 0.04])
def test_nan_and_wrong_labels_fail_the_check(wrong: float) -> None:
    ours = np.full((40, 2), [0.52, 0.48])
    theirs = ours.copy()
    assert agreement(ours, theirs, Path("x"), int8=False)["same_top1"] == 1
    theirs[3] = [wrong, 1 - wrong]
    with pytest.raises(RunError, match="disagrees"):
        agreement(ours, theirs, Path("x"), int8=False)


@pytest.mark.long
def test_without_its_dataset_a_run_is_compared_on_made_up_images(
    trained: alexnet.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(trained.recipe.data.dataset, str(tmp_path / "gone")))
    config = trained.config.preprocessing.model_copy(update={"views": 2})  # of which a bare file holds one
    save_model(RunFolder(tmp_path / "run"), trained.network, trained.config.model_copy(update={"preprocessing": config}))
    run = alexnet.load(tmp_path / "run")
    found = run.export(bare=True)
    assert (found["compared_on"], found["top1"]) == ("synthetic images", None)
    assert "dataset is not available" in capsys.readouterr().err
    with pytest.raises(RunError, match="int8 needs training images"):
        run.export(int8=True)
    assert sorted(path.name for path in (run.path / "export").iterdir()) == ["model-bare.onnx", "model-bare.onnx.json"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line(
    package: str, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AlexNetError, match="pip install onnx onnxscript onnxruntime"):
        trained.export(tmp_path / "model.onnx")


def test_unwritable_output_is_reported_before_the_work(trained: alexnet.Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "model.onnx"):
        with pytest.raises(RunError, match=r"^cannot write"):
            trained.export(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_prints_what_it_compared(trained: alexnet.Run, tmp_path: Path) -> None:
    place = tmp_path / "m.onnx"
    result = CliRunner().invoke(app, ["export", str(trained.path), "--bare", "--out", str(place), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "m.onnx.json").read_text())
    assert (found["file"], found["images"], found["same_top1"]) == (str(place), 4, 1.0)
    assert found["largest_difference"] < 1e-4
    assert CliRunner().invoke(app, ["export", str(tmp_path)]).exit_code == 1


def test_export_with_older_pytorch_is_refused(trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(AlexNetError, match=r"exporting needs PyTorch 2\.11 or later, and this is 2\.9\.1"):
        trained.export(tmp_path / "model.onnx")
