"""Features: activations as arrays, one row per image, in order; the network stays unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from proof.pictures import picture

import alexnet
from alexnet.convert.torchvision import read_torchvision
from alexnet.errors import AlexNetError, DataError, VariantError
from alexnet.inference.features import BATCH, features, stream_features
from alexnet.network.alexnet import AlexNet
from alexnet.network.summary import summarize
from alexnet.network.variants import VARIANTS
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig
from conftest import mostly_long
from test_pretrained import torchvision_alexnet


def config_of(network: AlexNet) -> ModelConfig:
    """Return a config that passes images into the network unchanged."""
    side = network.row.input_size
    preprocessing = Preprocessing(cache_size=side, fit="crop", reduced_decode=True, input=side, resize="bilinear").resolved()
    return ModelConfig(variant=network.row.name, labels=("a", "b"), preprocessing=preprocessing)


def arrays(count: int, side: int = 40) -> list[np.ndarray]:
    """Return images that are all different."""
    return [np.asarray(picture(i % 3, i, (side, side))) for i in range(count)]


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Four files, the third of which is not an image."""
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for i, path in enumerate(paths):
        picture(i % 3, i).save(path)
    paths[2].write_bytes(b"no image")
    return paths


@mostly_long("name", VARIANTS, "cifar10", "paper", "scratch")
def test_features_equal_layer_by_layer(name: str) -> None:
    """A layer gives the same activations when requested alone, even if the network fuses it with others."""
    torch.manual_seed(0)
    network = AlexNet(name, 2, width=1 / 16).eval()
    images, config = arrays(2, network.row.input_size), config_of(network)
    result = features(network, config, images, network.layer_names)
    sides = {layer.name: layer.output[1:] for layer in summarize(name).layers}
    assert {layer_name: array.shape[2:] for layer_name, array in result.items()} == sides
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255  # N H W C -> N C H W
    with torch.no_grad():
        _, own = network.activations(x, network.layer_names)
        for layer_name, layer in network.layers.items():
            x = layer(x)
            close = {"rtol": 1e-3, "atol": 1e-4 * max(1e-6, float(x.abs().max()))}
            np.testing.assert_allclose(result[layer_name], x, **close)
            np.testing.assert_allclose(result[layer_name], own[layer_name], **close)
    for layer_name in ("conv1", network.layer_names[-2]):
        alone = features(network, config, images, [layer_name])
        assert list(alone) == [layer_name]
        np.testing.assert_allclose(alone[layer_name], result[layer_name], rtol=1e-3, atol=1e-4)


def test_features_keep_order_and_stream_in_batches(trained: alexnet.Run) -> None:
    images, layers = arrays(2 * BATCH + 20), ("pool5", "fc7")
    whole = trained.features(images, layers)
    batches = list(trained.stream_features(iter(images), layers))
    assert [len(batch.images) for batch in batches] == [BATCH, BATCH, 20]
    assert not any(batch.errors for batch in batches)
    for layer in layers:
        np.testing.assert_array_equal(np.concatenate([batch.layers[layer] for batch in batches]), whole[layer])
    for row in (0, 1, BATCH - 1, BATCH, len(images) - 1):
        one = trained.features([images[row]], layers)
        for layer in layers:
            np.testing.assert_allclose(one[layer][0], whole[layer][row], rtol=1e-3, atol=1e-4)
    assert len({row.tobytes() for row in whole["fc7"]}) == len(images)


def test_features_of_files_equal_those_of_arrays(trained: alexnet.Run, photos: Path) -> None:
    paths = sorted((photos / "down").glob("*.png"))[:5]
    pixels = [np.asarray(picture(1, 100 + i)) for i in range(5)]
    np.testing.assert_array_equal(trained.features(paths)["fc7"], trained.features(pixels)["fc7"])
    (batch,) = trained.stream_features(paths)
    assert batch.images == [str(path) for path in paths]
    assert list(batch.layers) == ["fc7"]


def test_features_of_one_layer_may_be_asked_for_by_its_name(trained: alexnet.Run) -> None:
    images = arrays(2)
    (batch,) = trained.stream_features(images, "pool5")
    for found in (trained.features(images, "pool5"), batch.layers):
        assert list(found) == ["pool5"]
        np.testing.assert_array_equal(found["pool5"], trained.features(images, ["pool5"])["pool5"])


def test_features_stream_continues_after_unreadable_image(trained: alexnet.Run, mixed: list[Path]) -> None:
    (batch,) = trained.stream_features(mixed)
    readable = [*mixed[:2], mixed[3]]
    assert batch.images == [str(path) for path in readable]
    assert batch.errors == [{"image": str(mixed[2]), "error": "not an image, or of an unknown format"}]
    np.testing.assert_array_equal(batch.layers["fc7"], trained.features(readable)["fc7"])


def test_features_of_unreadable_image_is_one_line(trained: alexnet.Run, mixed: list[Path]) -> None:
    with pytest.raises(
        DataError, match=r"c\.png cannot be read: not an image, or of an unknown format; leave it out"
    ) as caught:
        trained.features(mixed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_features_batch_without_readable_image_is_empty(name: str, precision: str, mixed: list[Path]) -> None:
    network = AlexNet(name, 2, width=1 / 16).eval()
    (batch,) = stream_features(network, config_of(network), [mixed[2]], network.layer_names, precision)
    assert batch.images == []
    assert batch.errors
    assert {len(array) for array in batch.layers.values()} == {0}


def test_features_of_no_image_is_an_error(trained: alexnet.Run) -> None:
    with pytest.raises(DataError, match="no images"):
        trained.features([])
    assert list(trained.stream_features([])) == []


def test_features_of_unknown_layer_names_known_ones(trained: alexnet.Run) -> None:
    for ask in (trained.features, lambda *given: list(trained.stream_features(*given))):
        with pytest.raises(VariantError, match=r"no layer 'fc9' in 'cifar10': it has conv1, .*fc8"):
            ask(arrays(1), ["fc7", "fc9"])


@pytest.mark.parametrize("training", [True, False])
def test_features_leave_the_network_unchanged(trained: alexnet.Run, training: bool) -> None:
    network = alexnet.load(trained.path).network.train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    expected = trained.features(arrays(3), ["norm1", "fc7"])
    result = features(network, trained.config, arrays(3), ["norm1", "fc7"])
    with pytest.raises(AlexNetError):
        features(network, trained.config, arrays(3), ["nothing"])
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for layer, array in expected.items():
        np.testing.assert_array_equal(result[layer], array, err_msg="dropout is off, statistics are the run's")


# torchvision's names


def test_names_of_torchvision_are_its_own_modules(tmp_path: Path) -> None:
    """The reference is torchvision's network written out, with a hook on each module."""
    theirs = torchvision_alexnet(3).eval()
    network = AlexNet("owt", 3, width=1 / 16).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    network.load_state_dict(read_torchvision((tmp_path / "x.pth").read_bytes(), tmp_path / "x.pth"))
    outputs: dict[str, torch.Tensor] = {}
    for name, module in theirs.named_modules():
        if "." in name:
            module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output.clone()))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        logits = theirs(images)
        found_logits, found = network.activations(images, list(outputs))
    assert len(outputs) == 20
    assert list(found) == list(outputs) == list(network.torchvision_names)
    for name, wanted in [("logits", logits), *outputs.items()]:
        close = {"rtol": 1e-4, "atol": 1e-5 * float(wanted.abs().max())}
        torch.testing.assert_close(found_logits if name == "logits" else found[name], wanted, **close)


def test_features_keep_the_names_that_were_given() -> None:
    network = AlexNet("owt", 2, width=1 / 16).eval()
    asked = ["classifier.4", "conv2", "features.3"]
    found = features(network, config_of(network), arrays(2, 224), asked)
    assert list(found) == asked
    np.testing.assert_array_equal(found["conv2"], found["features.3"])
    (batch,) = stream_features(network, config_of(network), arrays(2, 224), asked)
    assert all(np.array_equal(batch.layers[name], found[name]) for name in asked)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_of_torchvision_are_only_for_its_order_of_layers(name: str) -> None:
    with torch.device("meta"):
        network = AlexNet(name, width=1 / 16)
    assert bool(network.torchvision_names) == (name == "owt")
    if name != "owt":
        with pytest.raises(VariantError, match=r"no layer 'features.3' in .* torchvision's order of layers, as in 'owt'"):
            network.layer_name("features.3")


def test_names_of_torchvision_need_the_same_layers() -> None:
    with torch.device("meta"):
        tanh, without = (AlexNet("owt", width=1 / 16, **changes) for changes in ({"activation": "tanh"}, {"dropout": 0.0}))
        assert tanh.layer_name("features.1") == "tanh1"
        assert without.layer_name("classifier.6") == "fc8"
        del without.features.dropout6
    assert not without.torchvision_names, "classifier.4 would be another layer than there"
    for name in ("features.13", "classifier.7", "features", "features.-1", "features.00", "avgpool"):
        with pytest.raises(VariantError, match=f"no layer '{name}' in 'owt': it has conv1, .*fc8$"):
            tanh.layer_name(name)
