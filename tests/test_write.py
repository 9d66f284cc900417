"""Weights written for torchvision and Keras hold the run's bytes, and load there; what cannot be held is one line."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import picture
from torch import Tensor, nn

import alexnet
from alexnet import recipe
from alexnet.convert import write
from alexnet.convert.keras_weights import load_keras
from alexnet.convert.torchvision import read_torchvision
from alexnet.convert.write import steps, write_keras, write_torchvision
from alexnet.data.preprocessing import pixels, to_input
from alexnet.errors import RunError, WeightsError
from alexnet.files import write_text
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import to_device
from alexnet.network.variants import VARIANTS, BatchNorm, Conv
from alexnet.recipe import Preprocessing
from alexnet.run import ModelConfig, create, save_epoch, save_model
from commands import error, run
from conftest import make_preprocessing
from keras_layouts import LAYOUTS, NETS, WIDTH, keras_logits, model
from official import one_line
from test_pretrained import torchvision_alexnet

MINE = b"a file of the user's"
ENDINGS = ("x.pth", "x.pt", "x.safetensors")


def config_of(variant: str, classes: int = 3, **images: Any) -> ModelConfig:
    side = VARIANTS[variant].input_size
    preprocessing = Preprocessing(**{"cache_size": side, "input": side, **images}).resolved()
    labels = tuple(f"label {i}" for i in range(classes))
    return ModelConfig(variant=variant, width=WIDTH, labels=labels, preprocessing=preprocessing)


def network_of(variant: str, classes: int = 3) -> AlexNet:
    """Return a narrow network as a run holds it, with statistics of norms that are not 0 and 1."""
    network = AlexNet(variant, classes, width=WIDTH)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, *((0.5, 2.0) if name.endswith("var") else (-0.3, 0.3)))
    return to_device(network, torch.device("cpu")).eval()


@pytest.fixture
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks that are narrower than torchvision's be written, as its own takes 244 MB."""
    monkeypatch.setattr(write, "_difference", lambda network: None)


def load_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


# torchvision


@pytest.mark.parametrize("name", ENDINGS)
def test_a_file_for_torchvision_gives_the_runs_logits_there(name: str, any_width: None, tmp_path: Path) -> None:
    network = network_of("owt")
    write_torchvision(network, config_of("owt"), tmp_path / name)
    theirs = torchvision_alexnet(3).eval()
    state = load_state(tmp_path / name)
    theirs.load_state_dict(state)
    for side in (224, 150):
        images = torch.randn(2, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(theirs(images), network(images), rtol=1e-4, atol=1e-6)
    for tensor in state.values():
        assert (tensor.dtype, tensor.is_contiguous()) == (torch.float32, True)
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel(), "it carries nothing else along"


@pytest.mark.parametrize("name", ENDINGS)
def test_torchvision_to_ours_to_torchvision_is_the_same_bytes(name: str, any_width: None, tmp_path: Path) -> None:
    theirs = torchvision_alexnet(3).state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    network = AlexNet("owt", 3, width=WIDTH)
    network.load_state_dict(read_torchvision((tmp_path / "theirs.pth").read_bytes(), tmp_path / "theirs.pth"))
    write_torchvision(to_device(network, torch.device("cpu")), config_of("owt"), tmp_path / name)
    found = load_state(tmp_path / name)
    assert {key: tensor.numpy().tobytes() for key, tensor in found.items()} == {
        key: tensor.numpy().tobytes() for key, tensor in theirs.items()
    }
    assert {key: tensor.shape for key, tensor in found.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    if name != "x.safetensors":  # which sorts them
        assert list(found) == list(theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_written_in_float32(dtype: torch.dtype, any_width: None, tmp_path: Path) -> None:
    network = network_of("owt").to(dtype)
    write_torchvision(network, config_of("owt"), tmp_path / "x.pth")
    write_keras(network, config_of("owt"), tmp_path / "x.weights.h5")
    wanted = network.head.weight.detach().float()
    assert torch.equal(load_state(tmp_path / "x.pth")["classifier.6.weight"], wanted)
    with h5py.File(tmp_path / "x.weights.h5") as file:
        assert np.array_equal(file["layers/dense_2/vars/0"][()], wanted.T)


def meta(row: Any, classes: int = 5, **overrides: Any) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(row, classes, **overrides)


OWT = VARIANTS["owt"]
FIRST = OWT.layers[0]
assert isinstance(FIRST, Conv)
FITS = [
    meta("owt"),
    meta("owt", 1000),
    meta("owt", dropout=0.2),
    meta("owt", norm="none"),
    meta("owt", towers=2),  # no layer is in groups
    meta(replace(OWT, name="mine", input_size=240, init="normal")),
    meta(replace(OWT, layers=(replace(FIRST, std=0.5, bias=1.0), *OWT.layers[1:]))),
]
DIFFERS = {
    "its own width": (meta("owt", width=0.5), r"conv1 is Conv2d\(3, 32, .* torchvision's Conv2d\(3, 64"),
    "tanh": (meta("owt", activation="tanh"), "it has tanh1 where torchvision has relu1"),
    "another pool": (meta("owt", pool=(2, 2)), r"pool1 is MaxPool2d\(kernel_size=2"),
    "another stride": (meta(replace(OWT, layers=(replace(FIRST, stride=2), *OWT.layers[1:]))), r"conv1 .*stride=\(2, 2\)"),
    "no bias": (meta(replace(OWT, layers=(replace(FIRST, bias=None), *OWT.layers[1:]))), "conv1 .*bias=False"),
    "another order of maps": (meta(replace(OWT, flatten="HWC")), "flatten is .*HWC"),
    "another grid": (meta(replace(OWT, input_size=256 + 32)), "flatten is .*grid=8"),
    "dropout of 2012": (meta(replace(OWT, dropout_scales="testing")), "dropout5 is Dropout2012"),
    "no last dropout": (meta(replace(OWT, layers=OWT.layers[:-3])), "it has fc8 where torchvision has dropout6"),
    **{name: (meta(name), "conv1 is|it has (norm1|pad1)") for name in VARIANTS if name != "owt"},
}


@pytest.mark.parametrize("network", FITS)
def test_what_torchvisions_class_holds_is_accepted(network: AlexNet) -> None:
    assert write._difference(network) is None


@pytest.mark.parametrize("why", DIFFERS)
def test_what_torchvisions_class_cannot_hold_is_one_line(why: str, tmp_path: Path) -> None:
    network, line = DIFFERS[why]
    with pytest.raises(WeightsError, match=f"torchvision's alexnet cannot hold .*: .*({line})") as caught:
        write_torchvision(network, config_of("owt"), tmp_path / "x.pth")
    one_line(caught)
    assert not list(tmp_path.iterdir())


def test_dropout_of_the_run_is_torchvisions_too(any_width: None, tmp_path: Path) -> None:
    network = AlexNet("owt", 3, width=WIDTH, dropout=0.25)
    lines = write_torchvision(network, config_of("owt"), tmp_path / "x.pth")["python"]
    assert lines[1] == "network = torchvision.models.alexnet(num_classes=3, dropout=0.25).eval()"


ODD = ["plain.pth", 'it\'s "odd".pth', "back\\slash.pth", "café ☕.safetensors", "new\nline.pth", "{}.pth", "#.pth"]


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
@pytest.mark.parametrize("name", ODD)
def test_the_lines_of_python_load_the_file(name: str, any_width: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = network_of("owt"), tmp_path / name
    lines = write_torchvision(network, config_of("owt"), path)["python"]
    assert len(lines) == 3
    models = SimpleNamespace(alexnet=lambda num_classes: torchvision_alexnet(num_classes))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(found["network"](images), network(images), rtol=1e-4, atol=1e-6)


# Keras


def stored(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return all arrays of a file by their paths, as h5py reads them."""
    found = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def by_layer(arrays: dict[str, NDArray[np.float32]], order: str) -> list[tuple[str, list[NDArray[np.float32]]]]:
    """Return arrays as layers of a network whose `order` is as in `keras_layouts`, matched by class and number as in Keras."""
    names = {"c": "conv2d", "n": "batch_normalization", "d": "dense", "p": "max_pooling2d", "f": "flatten", "-": "dropout"}
    layers = []
    for position, letter in enumerate(order):
        number = order[:position].count(letter)
        group = f"layers/{names[letter]}{f'_{number}' if number else ''}/vars"
        count = sum(key.rpartition("/")[0] == group for key in arrays)
        layers.append((names[letter], [arrays[f"{group}/{i}"] for i in range(count)]))
    return layers


@pytest.mark.parametrize("variant", NETS)
def test_a_file_for_keras_gives_the_runs_logits_there(variant: str, tmp_path: Path) -> None:
    """The reference is Keras' arithmetic in NumPy, on the arrays that h5py reads."""
    network, config = network_of(variant), config_of(variant)
    write_keras(network, config, tmp_path / "x.weights.h5")
    layers = by_layer(stored(tmp_path / "x.weights.h5"), NETS[variant].order)
    side = config.preprocessing.input
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    with torch.inference_mode():
        ours = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
    wanted = keras_logits(variant, layers, image)
    assert np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("variant", "layout"),
    [("cifar10", "x.weights.h5"), ("cifar10", "nested.h5"), ("cats-dogs", "x.keras"), ("owt", "keras2.h5")],
)
def test_keras_to_ours_to_keras_is_the_same_bytes(variant: str, layout: str, tmp_path: Path) -> None:
    layers = model(variant, 3)
    LAYOUTS[layout](tmp_path / layout, layers)
    network = AlexNet(variant, 3, width=WIDTH)
    load_keras(tmp_path / layout, network)
    write_keras(to_device(network, torch.device("cpu")), config_of(variant), tmp_path / "back.weights.h5")
    found = stored(tmp_path / "back.weights.h5")
    assert sum(len(arrays) for _, arrays in layers) == len(found)
    for (_, wanted), (_, arrays) in zip(layers, by_layer(found, NETS[variant].order), strict=True):
        assert [a.shape for a in arrays] == [a.shape for a in wanted]
        assert [(a.dtype, a.tobytes()) for a in arrays] == [(np.dtype(np.float32), a.tobytes()) for a in wanted]


def test_arrays_have_the_paths_of_keras_own_file(tmp_path: Path) -> None:
    LAYOUTS["x.weights.h5"](tmp_path / "keras.weights.h5", model("annotated", 3))
    write_keras(network_of("annotated"), config_of("annotated"), tmp_path / "ours.weights.h5")
    theirs = {name for name in stored(tmp_path / "keras.weights.h5") if not name.startswith("optimizer")}
    assert theirs == set(stored(tmp_path / "ours.weights.h5"))


@pytest.mark.parametrize("variant", ["paper", "scratch", "four-layer"])  # groups, no bias, three convolutions
def test_other_variants_come_back_from_their_keras_files(variant: str, tmp_path: Path) -> None:
    network = network_of(variant)
    write_keras(network, config_of(variant), tmp_path / "x.weights.h5")
    copy = AlexNet(variant, 3, width=WIDTH)
    load_keras(tmp_path / "x.weights.h5", copy)
    found, wanted = copy.state_dict(), network.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted if not name.endswith("num_batches_tracked"))


def test_a_row_of_ones_own_is_written_to_keras(tmp_path: Path) -> None:
    row = replace(VARIANTS["cifar10"], name="nowhere registered", norm=BatchNorm(momentum=0.5))
    network = AlexNet(row, 3, width=WIDTH).eval()
    config = config_of("cifar10").model_copy(update={"variant": row.name})
    assert write_keras(network, config, tmp_path / "x.weights.h5")["layers"] == list(network.layer_names)


def test_notes_say_what_a_keras_model_must_do_besides(tmp_path: Path) -> None:
    def notes(variant: str, **images: Any) -> list[str]:
        network = network_of(variant)
        return write_keras(network, config_of(variant, **images), tmp_path / "x.weights.h5")["notes"]

    assert notes("cifar10") == []
    (pooled,) = notes("cifar10", input=128)
    assert pooled.startswith("average the maps after pool5 from 2 x 2 to 6 x 6 (adaptive pooling)")
    rounded = network_of("cifar10")
    rounded.features.pool2.ceil_mode = True
    (note,) = write_keras(rounded, config_of("cifar10"), tmp_path / "x.weights.h5")["notes"]
    assert note.startswith("round the size of pool2 up")
    assert notes("paper") == [f"multiply by 0.5 in place of dropout{n} when predicting, as in 2012" for n in (6, 7)]


# Both


WRITERS = {"x.pth": write_torchvision, "x.safetensors": write_torchvision, "x.weights.h5": write_keras}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_reads_back_differently_is_not_written(
    name: str, any_width: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of("owt")
    WRITERS[name](network, config_of("owt"), tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    value = network.head.weight.detach()[1].numpy().tobytes()[:40]  # in the order of memory here
    if name == "x.weights.h5":
        value = np.ascontiguousarray(network.head.weight.detach().numpy().T).tobytes()[:40]
    at = content.index(value)
    content[at] ^= 1  # the last bit of a weight
    (tmp_path / name).unlink()
    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: write_bytes(path, content))
    with pytest.raises((RunError, WeightsError), match=r"not written: read back, its weights differ|is damaged"):
        WRITERS[name](network, config_of("owt"), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_its_own_files_are_replaced_and_the_users_are_not(
    name: str, any_width: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, path = network_of("owt"), tmp_path / name
    first = WRITERS[name](network, config_of("owt"), path)
    before = path.read_bytes()
    assert WRITERS[name](network, config_of("owt"), path) == first
    assert path.read_bytes() == before, "the same network is the same file"
    path.write_bytes(MINE)
    with monkeypatch.context() as patched:
        patched.setattr(write, "_plain", lambda *_: pytest.fail("it was refused after the work"))
        with pytest.raises(RunError, match="already exists and was not made by alexnet"):
            WRITERS[name](network, config_of("owt"), path)
    assert path.read_bytes() == MINE
    WRITERS[name](network, config_of("owt"), path, overwrite=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("made", ["torch.pth", "safe.safetensors", "keras.weights.h5"])
def test_weights_that_others_wrote_are_the_users(made: str, any_width: None, tmp_path: Path) -> None:
    path, state = tmp_path / made, torchvision_alexnet(3).state_dict()
    if made == "torch.pth":
        torch.save(state, path)
    elif made == "safe.safetensors":
        safetensors.torch.save_file(state, path, {"format": "pt", "note": "made by alexnet"})
    else:
        LAYOUTS["x.weights.h5"](path, model("owt", 3))
    before = path.read_bytes()
    with pytest.raises(RunError, match="not made by alexnet"):
        (write_keras if made.endswith("h5") else write_torchvision)(network_of("owt"), config_of("owt"), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["x", "x.bin", "x.h5", "x.pth.zip", "x.weights.h5", ".pth", "x.PTH"])
def test_another_ending_for_torchvision_is_one_line(name: str, any_width: None, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"should end in \.pth or \.safetensors") as caught:
        write_torchvision(network_of("owt"), config_of("owt"), tmp_path / name)
    one_line(caught)


@pytest.mark.parametrize("name", ["x", "x.h5", "x.keras", "weights.h5", "x.pth", "x.weights.H5"])
def test_another_ending_for_keras_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"should end in \.weights\.h5") as caught:
        write_keras(network_of("owt"), config_of("owt"), tmp_path / name)
    one_line(caught)


def test_keras_without_h5py_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="writing Keras files needs h5py: pip install h5py"):
        write_keras(network_of("owt"), config_of("owt"), tmp_path / "x.weights.h5")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    name: str, any_width: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left on device \(.* GB free\)") as caught:
        WRITERS[name](network_of("owt"), config_of("owt"), tmp_path / name)
    one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_missing_is_one_line(name: str, any_width: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        WRITERS[name](network_of("owt"), config_of("owt"), tmp_path / "none" / name)


# Images, in words


def follow(words: list[str], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Do to an image, H W 3, what the steps say, with Pillow and NumPy."""
    x = image.astype(np.float64)
    for step in words:
        numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", step.partition("(R")[0])]
        side = int(numbers[0]) if numbers else 0
        if step.startswith("cut out the centre"):
            top, left = (n // 2 for n in np.subtract(x.shape[:2], side))
            x = x[top : top + side, left : left + side]
        elif step.startswith("scale"):
            how = Image.Resampling[step.rpartition("(")[2].rstrip(")").split(",")[0].upper()]
            if step == words[0]:  # levels are whole numbers until here
                height, width = x.shape[:2]
                edge = abs(height - width) / 2 if "the centre square" in step else 0
                box = (edge, 0, width - edge, height) if width > height else (0, edge, width, height - edge)
                x = np.asarray(Image.fromarray(image).resize((side, side), how, box)).astype(np.float64)
            else:
                bands = [Image.fromarray(band.astype(np.float32)).resize((side, side), how) for band in x.transpose(2, 0, 1)]
                x = np.stack([np.asarray(band) for band in bands], 2).astype(np.float64)
        elif step.startswith("standardise each"):
            x = (x - x.mean()) / max(x.std(), x.size**-0.5)
        elif step.startswith("repeat every pixel"):
            x = x.repeat(side, 0).repeat(side, 1)
        elif step == "mirror from left to right":
            x = x[:, ::-1]
        else:
            verb = step.split()[0]
            values = np.array(numbers)
            x = {"divide": lambda: x / values, "subtract": lambda: x - values, "add": lambda: x + values}[verb]()  # noqa: B023
    return x


CHANNELS = st.lists(st.integers(1, 9).map(lambda n: n / 8), min_size=3, max_size=3).map(tuple)


@given(
    fit=st.sampled_from(["crop", "stretch"]),
    sizes=st.sampled_from([(40, None, 40), (40, 32, 32), (40, 32, 48), (40, None, 24), (40, None, 96)]),
    resampling=st.sampled_from(["bicubic", "nearest"]),
    value_range=st.sampled_from([1, 255]),
    mean=st.one_of(st.just("each"), CHANNELS),
    std=CHANNELS,
    flip=st.booleans(),
    brightness=st.sampled_from([0.0, 0.2]),
    upscale=st.sampled_from([1, 4]),
)
@settings(max_examples=30)
def test_the_steps_in_words_are_what_is_done_to_an_image(
    fit: Any, sizes: Any, resampling: Any, value_range: Any, mean: Any, std: Any, flip: bool, brightness: float, upscale: int
) -> None:
    cache_size, crop, size = sizes
    preprocessing = Preprocessing(
        **{"cache_size": cache_size, "crop": crop, "input": size, "fit": fit, "filter": resampling, "value_range": value_range},
        **{"mean": mean, "std": std, "horizontal_flip": flip, "brightness": brightness, "upscale": upscale},
    ).resolved()
    image = np.asarray(picture(1, 3, (60, 44)))
    wanted = to_input(torch.from_numpy(pixels(image, preprocessing).copy())[None], preprocessing)[0].permute(1, 2, 0).numpy()
    found = follow(list(steps(preprocessing)), image)
    if upscale > 1:
        wanted = wanted.repeat(upscale, 0).repeat(upscale, 1)
    assert found.shape == wanted.shape == (size, size, 3)
    white = value_range / min(std)
    assert np.abs(found - wanted).max() <= 2e-3 * max(white, np.abs(wanted).max())


@pytest.mark.parametrize(("count", "words"), [(2, "the image and its mirror image"), (10, "the crops of corners and centre, ")])
def test_the_last_step_in_words_is_the_mean_over_views(count: int, words: str) -> None:
    plain = make_preprocessing()
    *before, last = steps(plain.model_copy(update={"views": count}))
    assert before == list(steps(plain))
    assert last.startswith(f"average the probabilities of {words}")


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of torchvision's variant with random weights, made without training, with the weights of an epoch."""
    made = recipe.load("finetune").with_settings({"model.variant": "owt", "model.width": WIDTH, "images.cache_size": 256})
    config = ModelConfig.of(made, ("cat", "dog"), made.images.resolved()).model_copy(update={"temperature": 1.25})
    opened = create(tmp_path / "run")
    write_text(opened.recipe, made.to_toml())
    save_model(opened, network_of("owt", 2), config)
    save_epoch(opened.path / "epochs" / "cp-0001.safetensors", AlexNet("owt", 2, width=WIDTH), config)
    return opened.path


def test_the_command_prints_the_file_what_images_need_and_how_to_load_it(any_width: None, folder: Path, tmp_path: Path) -> None:
    lines = run("export", folder, "--torchvision", tmp_path / "x.pth").stdout.splitlines()
    size = (tmp_path / "x.pth").stat().st_size / 1e6
    assert lines[0] == f"file        {tmp_path / 'x.pth'}, {size:.1f} MB, read back and compared"
    assert "224 x 224" in lines[4]
    assert "subtract 0.485, 0.456, 0.406 (R, G, B); divide by 0.229, 0.224, 0.225 (R, G, B)" in lines[4]
    assert "softmax(logits / 1.25)" in lines[3]
    assert lines[2] == "outputs     2: 'cat', 'dog'"
    result = json.loads(run("export", folder, "--torchvision", tmp_path / "x.pth", "--json").stdout)
    assert [line[12:] for line in lines[-3:]] == result["python"]
    assert list(result) == ["file", "bytes", "sha256", "labels", "temperature", "preprocessing", "images", "python"]
    assert (result["bytes"], lines[1]) == ((tmp_path / "x.pth").stat().st_size, f"sha256      {result['sha256']}")
    assert result["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    keras = json.loads(run("export", folder, "--keras", tmp_path / "x.weights.h5", "--json").stdout)
    assert list(keras) == [*result, "layers", "notes"]
    assert keras["python"][-1] == f"model.load_weights({str(tmp_path / 'x.weights.h5')!r})"


def test_the_weights_of_an_epoch_are_written_like_a_run(any_width: None, folder: Path, tmp_path: Path) -> None:
    path = folder / "epochs" / "cp-0001.safetensors"
    run("export", path, "--torchvision", tmp_path / "x.pth")
    wanted = alexnet.load(path).network.head.weight.detach()
    assert torch.equal(load_state(tmp_path / "x.pth")["classifier.6.weight"], wanted)


def test_two_formats_at_once_are_a_usage_error(folder: Path, tmp_path: Path) -> None:
    for more in (("--keras", "x.weights.h5"), ("--bare",), ("--int8",), ("--out", "x.onnx")):
        assert "choose one of" in run("export", folder, "--torchvision", "x.pth", *more, code=2).stderr
    assert "choose one of" in run("export", folder, "--keras", "x.weights.h5", "--bare", code=2).stderr


def test_the_command_says_what_the_network_lacks(folder: Path, tmp_path: Path) -> None:
    line = error("export", folder, "--torchvision", tmp_path / "x.pth")
    assert "torchvision's alexnet cannot hold this run's network, the variant 'owt': conv1 is Conv2d(3, 4," in line


@pytest.mark.long
def test_a_network_of_full_width_is_written_to_torchvision(tmp_path: Path) -> None:
    network = to_device(AlexNet("owt", 10), torch.device("cpu")).eval()
    config = config_of("owt", 10).model_copy(update={"width": 1.0})
    result = write_torchvision(network, config, tmp_path / "x.pth")
    theirs = torchvision_alexnet(10, 1.0).eval()
    theirs.load_state_dict(load_state(tmp_path / "x.pth"))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), network(images), rtol=1e-4, atol=1e-5)
    assert result["bytes"] > 4 * 57_000_000
