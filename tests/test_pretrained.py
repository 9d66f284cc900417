"""Initial weights: torchvision's file, compared with torchvision's network written out here, and another run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proof.pictures import class_folders
from torch import Tensor, nn

import alexnet
from alexnet import recipe
from alexnet.convert import pretrained
from alexnet.convert.pretrained import load_pretrained, settings_from_weights
from alexnet.convert.torchvision import LAYERS, copy_weights, read_torchvision
from alexnet.errors import AlexNetError, DataError, RunError, WeightsError
from alexnet.run import RunFolder
from alexnet.training import train as training
from alexnet.training.trainer import Trainer
from commands import TINY_SETS
from commands import run as command
from conftest import TINY, stop_after
from official import Server, one_line, url

NARROW = 1 / 16
HEAD = ("head.weight", "head.bias")


def torchvision_alexnet(classes: int, width: float = NARROW) -> nn.Module:
    """torchvision's AlexNet (models/alexnet.py), narrower."""
    a, b, c, d, units = (round(n * width) for n in (64, 192, 384, 256, 4096))
    features = nn.Sequential(
        *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(36 * d, units), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, classes)),
    )
    parts = {"features": features, "avgpool": nn.AdaptiveAvgPool2d(6), "flatten": nn.Flatten(), "classifier": classifier}
    return nn.Sequential(OrderedDict(parts))


def saved(tensors: Any, **preprocessing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, **preprocessing)
    return buffer.getvalue()


TINY_STATE = {f"{name}.{kind}": torch.ones(2) for name in LAYERS for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(5)
    return torchvision_alexnet(7).eval()


FORMATS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "new.pth": saved,
    "old.pth": partial(saved, _use_new_zipfile_serialization=False),
    "plain.safetensors": safetensors.torch.save,
}


TINY_FILES = {name: write(dict(TINY_STATE)) for name, write in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("side", [224, 150, 300])
def test_a_file_of_torchvisions_gives_torchvisions_logits(theirs: nn.Module, name: str, side: int) -> None:
    content = FORMATS[name](OrderedDict(theirs.state_dict()))
    ours = alexnet.AlexNet("owt", 7, width=NARROW).eval()
    tensors = read_torchvision(content, Path(name))
    copy_weights(tensors, ours, name)
    ours.head.load_state_dict({kind: tensors[f"head.{kind}"] for kind in ("weight", "bias")})
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-6)


def test_at_full_width_names_and_shapes_are_those_of_its_61_million_weights() -> None:
    with torch.device("meta"):
        state = torchvision_alexnet(1000, 1.0).state_dict()
        ours = alexnet.AlexNet("owt").state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 61_100_840
    for theirs, mine in LAYERS.items():
        for kind in ("weight", "bias"):
            assert state[f"{theirs}.{kind}"].shape == ours[f"{mine}.{kind}"].shape


@pytest.mark.parametrize("name", FORMATS)
def test_features_are_copied_exactly_but_not_the_head(theirs: nn.Module, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name](dict(theirs.state_dict())))
    torch.manual_seed(1)
    network = alexnet.AlexNet("owt", 2, width=NARROW)
    head = [network.state_dict()[key].clone() for key in HEAD]
    load_pretrained(network, str(tmp_path / name), None)
    found, source = network.state_dict(), theirs.state_dict()
    for their, mine in LAYERS.items():
        if mine != "head":
            for kind in ("weight", "bias"):
                assert torch.equal(found[f"{mine}.{kind}"], source[f"{their}.{kind}"])
    assert all(torch.equal(found[key], before) for key, before in zip(HEAD, head, strict=True))


# Files that are not weights


class Evil:
    """An object that creates a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_execute_something_does_not(theirs: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "executed"
    state = {**theirs.state_dict(), "features.0.weight": Evil(folder)}
    contents = [
        saved(state),
        saved(state, _use_new_zipfile_serialization=False),
        pickle.dumps(Evil(folder)),
        saved(Evil(folder)),
    ]
    for content in contents:
        (tmp_path / "evil.pth").write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_pretrained(alexnet.AlexNet("owt", 2, width=NARROW), str(tmp_path / "evil.pth"), None)
        line = one_line(caught)
        assert "evil.pth" in line
        assert "weights_only" not in line, "torch's advice is to execute it"
        assert not folder.exists()
    pickle.loads(contents[2])
    assert folder.exists(), "pickle would have created it"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("stop.pth", b"."),
        ("none.pth", saved(None)),
        ("text.pth", b"not weights at all\n"),
        ("list.pth", saved([torch.zeros(3)])),
        ("numbers.pth", saved({1: torch.zeros(3)})),
        ("empty.safetensors", b""),
        ("text.safetensors", b"not weights at all\n" * 9),
        ("pickle.safetensors", saved({})),
        ("other.pth", saved({"fc.weight": torch.zeros(3)})),
        ("other.safetensors", safetensors.torch.save({"fc.weight": torch.zeros(3)})),
        ("words.pth", saved(dict.fromkeys(TINY_STATE, "word"))),
    ],
)
def test_a_file_that_is_none_of_torchvisions_is_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is (damaged, or not|not in the layout)") as caught:
        load_pretrained(alexnet.AlexNet("owt", 2, width=NARROW), str(tmp_path / name), None)
    assert len(one_line(caught)) < 200 + len(str(tmp_path))


@given(st.sampled_from(sorted(FORMATS)), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
def test_a_file_cut_anywhere_is_one_line(name: str, at: float) -> None:
    content = TINY_FILES[name]
    with pytest.raises(WeightsError, match="is damaged, or not") as caught:
        read_torchvision(content[: int(at * len(content))], Path(name))
    one_line(caught)


@given(st.sampled_from(sorted(FORMATS)), st.data())
@settings(max_examples=150)
def test_changed_bytes_are_one_line_or_load(name: str, data: st.DataObject) -> None:
    content = bytearray(TINY_FILES[name])
    end = data.draw(st.sampled_from([300, len(content)]))  # the first bytes hold the names and dtypes
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=5)):
        content[place] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does it show warnings of libraries
        try:
            found = read_torchvision(bytes(content), Path(name))
        except WeightsError:
            return
    assert len(found) == len(TINY_STATE)
    assert all(isinstance(tensor, Tensor) for tensor in found.values())


def test_another_network_is_named_with_both_shapes_and_nothing_is_copied(theirs: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(saved(theirs.state_dict()))
    wide = alexnet.AlexNet("owt", 2, width=1 / 8)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"weights\.pth .* does not fit the variant 'owt': conv1\.weight is 4x3x11x11 and 8x3x11x11"
    ):
        load_pretrained(wide, str(file), None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())
    with pytest.raises(WeightsError, match=r"needs the variant 'owt', not 'cifar10': add --variant owt") as caught:
        load_pretrained(alexnet.AlexNet("cifar10", 2, width=NARROW), str(file), None)
    one_line(caught)


@pytest.mark.parametrize(
    ("theirs", "ours", "line"),
    [
        ("table", "cifar10", r"A has no norm1\.weight, which the variant 'cifar10' needs"),
        ("cifar10", "table", r"A has norm1\.bias, which the variant 'table' does not have"),
        ("cifar10", "cats-dogs", r"A has norm1\.bias, which the variant 'cats-dogs' does not have"),
        ("cifar10", "cifar10-1x1", r"conv4\.weight is 24x24x3x3 and 24x24x1x1 there and here"),
        ("cifar10", "scratch", r"A has conv1\.bias, which the variant 'scratch' does not have"),
    ],
)
def test_weights_of_another_variant_are_refused_whichever_has_more(theirs: str, ours: str, line: str) -> None:
    state, network = alexnet.AlexNet(theirs, 3, width=NARROW).state_dict(), alexnet.AlexNet(ours, 2, width=NARROW)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=line):
        copy_weights(state, network, "A")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    for name in ("imagenet", str(tmp_path / "nothing.pth")):
        with pytest.raises(
            WeightsError,
            match=r"no weights .*: name a run folder, a file in its epochs/, a file in torchvision's",
        ):
            settings_from_weights(name)
    with pytest.raises(RunError, match="is not a run folder"):
        settings_from_weights(str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot read .*gone\.pth: No such file"):
        load_pretrained(alexnet.AlexNet("owt", 2, width=NARROW), str(tmp_path / "gone.pth"), None)


# From a run


@pytest.fixture(scope="module")
def first_weights(trained: alexnet.Run) -> dict[str, Tensor]:
    """Return the network's weights, as the run's file has them."""
    tensors = safetensors.torch.load_file(trained.path / "model.safetensors")
    return {name: tensors[name] for name in trained.network.state_dict()}


def test_weights_of_a_run_bring_its_variant_width_and_exact_features(
    trained: alexnet.Run, first_weights: dict[str, Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Load into a network of three classes; its head is redrawn from the seed."""
    began: list[dict[str, Tensor]] = []
    fit = Trainer.fit

    def watched(self: Trainer, *args: Any) -> None:
        began.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        fit(self, *args)

    monkeypatch.setattr(Trainer, "fit", watched)
    data = class_folders(tmp_path / "more", 8, ("across", "disc", "down"))
    small = {"images.input": 67, "train.epochs": 1, "train.batch_size": 8, "train.seed": 3, "model.fit_head": False}
    run = alexnet.train(data, recipe="finetune", out=tmp_path / "run", weights=trained.path, settings=small)
    assert (run.config.variant, run.config.width) == ("cifar10", 1 / 16)
    assert run.config.overrides == trained.config.overrides
    assert run.recipe.model.weights == str(trained.path)
    (before,) = began
    for name, tensor in first_weights.items():
        if name not in HEAD:
            assert torch.equal(before[name], tensor), name
    torch.manual_seed(3)
    fresh = alexnet.AlexNet("cifar10", 3, width=NARROW, **run.config.overrides).state_dict()
    assert all(torch.equal(before[name], fresh[name]) for name in HEAD)
    # `finetune` freezes the layers up to pool5.
    after = run.network.state_dict()
    for name, tensor in first_weights.items():
        still = name.startswith("features.") and not name.startswith("features.fc")
        assert torch.equal(after[name], tensor) == still, name


def test_the_command_starts_from_a_run_and_another_variant_does_not_fit(
    trained: alexnet.Run, photos: Path, tmp_path: Path
) -> None:
    sets = [*TINY_SETS, "--set", "optimizer.frozen=fc7", "--epochs", 1, "--json"]
    done = command("train", photos, "--weights", trained.path, "--out", tmp_path / "run", *sets)
    assert json.loads(done.stdout)["variant"] == "cifar10"
    first, after = (safetensors.torch.load_file(path / "model.safetensors") for path in (trained.path, tmp_path / "run"))
    assert all(torch.equal(first[name], after[name]) == (name not in HEAD) for name in trained.network.state_dict())
    with pytest.raises(WeightsError, match=r"has norm1\.bias, which the variant 'cats-dogs' does not have"):
        alexnet.train(photos, weights=trained.path, out=tmp_path / "no", settings={"model.variant": "cats-dogs"})
    assert not (tmp_path / "no").exists()


def test_a_damaged_run_is_refused_before_anything_is_made(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        alexnet.train(photos, weights=tmp_path / "damaged", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# torchvision's ImageNet weights


@pytest.fixture
def imagenet1k(theirs: nn.Module, server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A narrow file that the server offers and `imagenet1k` expects, by a prefix of its checksum as in the real name."""
    content = saved(theirs.state_dict())
    server.files["/alexnet.pth"] = content
    start = hashlib.sha256(content).hexdigest()[:8]
    source = pretrained.IMAGENET1K._replace(url=url(server, "alexnet.pth"), file=f"alexnet-owt-{start}.pth", sha256=start)
    monkeypatch.setattr(pretrained, "IMAGENET1K", source._replace(size=len(content) + 1000))
    return content


def features_loaded(root: Path) -> dict[str, Tensor]:
    network = alexnet.AlexNet("owt", 2, width=NARROW)
    load_pretrained(network, "imagenet1k", root)
    return network.state_dict()


def test_imagenet1k_is_downloaded_once_and_found_under_the_data_root(
    imagenet1k: bytes, theirs: nn.Module, server: Server, tmp_path: Path
) -> None:
    wanted = theirs.state_dict()["features.0.weight"]
    assert torch.equal(features_loaded(tmp_path)["features.conv1.weight"], wanted)
    assert (tmp_path / pretrained.IMAGENET1K.file).read_bytes() == imagenet1k
    server.files.clear()
    assert torch.equal(features_loaded(tmp_path)["features.conv1.weight"], wanted)
    assert len(server.ranges) == 1


def test_another_variant_is_refused_before_anything_is_fetched(imagenet1k: bytes, server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="imagenet1k needs the variant 'owt', not 'paper': add --variant owt"):
        load_pretrained(alexnet.AlexNet("paper", 2, width=NARROW), "imagenet1k", tmp_path)
    assert not server.ranges


def test_a_damaged_copy_or_another_file_from_the_server_is_refused(imagenet1k: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / pretrained.IMAGENET1K.file).write_bytes(imagenet1k[:-1])
    with pytest.raises(DataError, match=r"alexnet-owt-\w+\.pth: damaged, or not http") as caught:
        features_loaded(tmp_path / "a")
    one_line(caught)
    server.files["/alexnet.pth"] = saved({"features.0.weight": torch.zeros(3)})
    with pytest.raises(DataError, match="wrong checksum") as caught:
        features_loaded(tmp_path / "b")
    one_line(caught)
    server.files.clear()
    with pytest.raises(
        DataError, match=r"the download stopped after 0 bytes \(status 404\).*ALEXNET_DATA, or in training --data-root"
    ) as caught:
        features_loaded(tmp_path / "c")
    one_line(caught)


def test_finetune_starts_from_imagenet1k_under_the_data_root(
    imagenet1k: bytes, server: Server, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / pretrained.IMAGENET1K.file).write_bytes(imagenet1k)
    small = {"model.width": NARROW, "train.epochs": 1, "data.root": str(tmp_path), "images.input": 70, "images.crop": 70}
    small |= {"images.cache_size": 80, "train.keep": "last"}
    run = alexnet.train(photos, recipe="finetune", out=tmp_path / "run", settings=small)
    wanted = read_torchvision(imagenet1k, Path("x.pth"))
    after = run.network.state_dict()
    assert all(torch.equal(after[name], wanted[name]) == ("conv" in name) for name in wanted if name not in HEAD)
    assert not server.ranges
    assert run.config.preprocessing.mean == (0.485, 0.456, 0.406)


# Going on


def test_a_run_that_was_stopped_goes_on_without_the_weights_it_started_from(
    theirs: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(safetensors.torch.save(dict(theirs.state_dict())))
    keys = {"data.dataset": str(photos), "model.weights": str(file), "train.epochs": 2, "train.batch_size": 8}
    made = recipe.load("fast").with_settings({**TINY, "model.variant": "owt", **keys, "optimizer.frozen": "conv2"})
    training.start(made, tmp_path / "whole", "cpu", time.monotonic())
    stop_after(monkeypatch, "train_step", 3)
    with pytest.raises(AlexNetError, match="resume with"):
        training.start(made, tmp_path / "stopped", "cpu", time.monotonic())
    file.unlink()
    training.resume(tmp_path / "stopped", "cpu", time.monotonic())
    whole, stopped = (RunFolder(tmp_path / name).weights.read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(tmp_path / "whole" / "recipe.toml", begun)
    with pytest.raises(WeightsError, match=r"cannot read .*weights\.safetensors: No such file"):
        training.resume(begun, "cpu", time.monotonic())  # no checkpoint: training starts over, and needs them
