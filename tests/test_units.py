"""What excites a unit: the largest activations of a set, and the part of the image on which each depends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from proof.pictures import picture

import alexnet
from alexnet.data.preprocessing import pixels, to_input
from alexnet.errors import DataError, RunError, VariantError
from alexnet.units import ascent
from alexnet.units.figure import GREY, SIDE, draw_made_up
from alexnet.units.units import IMAGES
from commands import error, run
from conftest import make_preprocessing, mostly_long


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """140 images, more than a batch; read-only."""
    folder = tmp_path_factory.mktemp("some")
    paths = [folder / f"{i:03}.png" for i in range(140)]
    for i, path in enumerate(paths):
        picture(i % 3, i, (24, 24)).save(path)
    return paths


@mostly_long("layer", ["conv1", "relu2", "pool5", "fc7"], "conv1", "fc7")
def test_the_most_exciting_images_are_those_of_the_features(
    trained: alexnet.Run, some: list[Path], tmp_path: Path, layer: str
) -> None:
    units = [0, 3]
    result = trained.units(some, layer, units, tmp_path / "u.png")
    values = trained.features(some, layer)[layer]
    most = values.reshape(len(some), values.shape[1], -1).max(2)
    for unit, found in zip(units, result["units"], strict=True):
        assert found["unit"] == unit
        order = np.argsort(-most[:, unit], kind="stable")[:IMAGES]
        assert [row["image"] for row in found["images"]] == [str(some[i]) for i in order]
        np.testing.assert_allclose([row["value"] for row in found["images"]], most[order, unit], rtol=1e-6)
    assert len(trained.units(some, layer, out=tmp_path / "u.png")["units"]) == min(24, values.shape[1])


@pytest.mark.parametrize("layer", ["conv1", "relu2", "relu3"])
def test_the_unit_depends_on_nothing_outside_its_box(
    trained: alexnet.Run, some: list[Path], tmp_path: Path, layer: str
) -> None:
    """Grey outside the box leaves the activation as it was, and grey inside changes it."""
    [found] = trained.units(some, layer, [1], tmp_path / "u.png")["units"]
    preprocessing, network = trained.config.preprocessing, trained.network
    for row in found["images"][:3]:
        image = pixels(Path(row["image"]), preprocessing)
        top, left, height, width = row["box"]
        inside = np.zeros(image.shape[:2], bool)
        inside[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1] = True  # one for the change of size
        outside_grey, inside_grey = np.where(inside[..., None], image, 128), np.where(inside[..., None], 128, image)

        def most(array: np.ndarray) -> float:
            x = to_input(torch.from_numpy(array.copy())[None], preprocessing)
            with torch.no_grad():
                maps = network.activations(x, [layer], preprocessing.scale_factor)[1][layer]
            return float(maps[0, 1].max())

        assert most(image) == pytest.approx(row["value"], rel=1e-4)
        assert most(outside_grey) >= row["value"] * (1 - 1e-4)
        if not inside.all():
            assert most(inside_grey) <= row["value"] * (1 + 1e-4)


def test_the_figure_has_a_row_for_each_unit(trained: alexnet.Run, some: list[Path], tmp_path: Path) -> None:
    trained.units(some[:4], "conv1", [2, 0, 1], tmp_path / "u.png")
    with Image.open(tmp_path / "u.png") as image:
        assert image.height > 3 * SIDE
        assert image.width > 4 * SIDE
        assert len(image.getcolors(1 << 24) or []) > 100
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    with pytest.raises(RunError, match="was not made by alexnet"):
        trained.units(some[:4], "conv1", [0], tmp_path / "mine.png")


def test_units_errors_are_one_line(trained: alexnet.Run, some: list[Path], tmp_path: Path) -> None:
    for wrong in ([10_000], [-1], [10**20], []):
        with pytest.raises(VariantError, match="conv1 has units from 0 to"):
            trained.units(some[:2], "conv1", wrong, tmp_path / "u.png")
    with pytest.raises(VariantError, match="no layer 'conv9'"):
        trained.units(some[:2], "conv9", None, tmp_path / "u.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 image can be read"):
        trained.units([tmp_path / "bad.png"], "conv1", None, tmp_path / "u.png")
    assert "should be numbers" in run("units", trained.path, some[0], "--units", "a", code=2).stderr
    assert "no layer" in error("units", trained.path, some[0], "--layer", "conv9")


def test_units_command(trained: alexnet.Run, some: list[Path], tmp_path: Path) -> None:
    given = ("units", trained.path, *some[:5], "--layer", "relu3", "--units", "1,2", "--out", tmp_path / "u.png")
    result = json.loads(run(*given, "--json").stdout)
    assert [unit["unit"] for unit in result["units"]] == [1, 2]
    assert str(tmp_path / "u.png") in run(*given).stdout
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert "left out" in run(*given, tmp_path / "bad.png", code=1).stdout


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascent, "STEPS", 24)


@mostly_long("layer", ["conv1", "relu3", "fc7", "fc8"], "conv1", "fc8")
def test_an_image_made_up_excites_more_than_any_of_many(
    trained: alexnet.Run, some: list[Path], tmp_path: Path, layer: str
) -> None:
    """More than photos anywhere, and than images of noise, unless the unit is dead: then nothing is drawn."""
    units = list(range(min(6, len(trained.labels)))) if layer == "fc8" else list(range(6))
    result = trained.units(None, layer, units, tmp_path / "u.png")
    noise = [np.random.default_rng(i).integers(0, 256, (67, 67, 3), dtype=np.uint8) for i in range(40)]
    others = [trained.features(images, layer)[layer] for images in (some, noise)]
    most = np.concatenate([values.reshape(*values.shape[:2], -1).max(2) for values in others]).max(0)
    assert [unit["unit"] for unit in result["units"]] == units
    for unit in result["units"]:
        if unit["dead"]:
            assert unit["activation"] <= max(unit["noise"], 0)
        else:
            assert unit["activation"] > unit["noise"]
            assert unit["activation"] > most[unit["unit"]]
    assert not all(unit["dead"] for unit in result["units"])


@pytest.mark.usefixtures("quick")
def test_the_activation_is_that_of_the_image_and_the_same_again(trained: alexnet.Run, tmp_path: Path) -> None:
    drawn = ascent.ascend(trained.network, trained.config.preprocessing, "relu2", [3, 0])
    again = ascent.ascend(trained.network, trained.config.preprocessing, "relu2", [3, 0])
    np.testing.assert_array_equal(drawn.images, again.images)
    if trained.config.preprocessing.crop is None and not trained.config.preprocessing.horizontal_flip:
        x = to_input(torch.from_numpy(drawn.images), trained.config.preprocessing)
        with torch.no_grad():
            maps = trained.network.activations(x, ["relu2"], trained.config.preprocessing.scale_factor)[1]["relu2"]
        middle = maps[[0, 1], [3, 0], maps.shape[2] // 2, maps.shape[3] // 2]
        np.testing.assert_allclose(drawn.activations, middle, rtol=1e-3, atol=1e-4)
    assert not any(layer._forward_hooks for layer in trained.network.layers.values())
    assert all(parameter.grad is None for parameter in trained.network.parameters())


@pytest.mark.usefixtures("quick")
def test_a_dead_unit_is_said_and_not_drawn(tmp_path: Path) -> None:
    network = alexnet.AlexNet("owt", 2, width=1 / 16).eval()
    with torch.no_grad():
        network.features.conv2.weight[1] = 0
        network.features.conv2.bias[1] = -1
    drawn = ascent.ascend(network, make_preprocessing(input=67, cache_size=67), "relu2", [0, 1])
    assert drawn.dead == [False, True]
    draw_made_up(drawn, tmp_path / "u.png", overwrite=False)
    with Image.open(tmp_path / "u.png") as image:
        width, height = image.size
        assert image.convert("RGB").getpixel((width - 40, height - 40)) == GREY
        assert len(image.crop((width - 160, height - 150, width - 10, height - 10)).getcolors() or []) == 1
        assert len(image.crop((10, height - 150, 160, height - 10)).getcolors(1 << 24) or []) > 100


@pytest.mark.usefixtures("quick")
def test_a_unit_that_starts_at_zero_climbs() -> None:
    """ReLUs that are off pass no gradient, but ascent lets some through."""
    network, plain = alexnet.AlexNet("owt", 2, width=1 / 16).eval(), make_preprocessing(input=67, cache_size=67)
    before = ascent.ascend(network, plain, "conv2", [1])
    with torch.no_grad():
        network.features.conv2.bias[1] -= float(before.noise[0] + 0.2 * (before.activations[0] - before.noise[0]))
    drawn = ascent.ascend(network, plain, "relu2", [1])
    assert drawn.noise.tolist() == [0]
    assert drawn.dead == [False]


@pytest.mark.usefixtures("quick")
def test_units_command_without_images(trained: alexnet.Run, tmp_path: Path) -> None:
    given = ("units", trained.path, "--layer", "fc8", "--units", "1,0", "--out", tmp_path / "u.png")
    result = json.loads(run(*given, "--json").stdout)
    assert [list(unit) for unit in result["units"]] == [["unit", "activation", "noise", "dead"]] * 2
    assert [unit["unit"] for unit in result["units"]] == [1, 0]
    assert "fc8 unit 1" in run(*given).stdout
    assert "fc8 has units from 0 to" in error(*given[:4], "--units", "99", "--out", tmp_path / "u.png")
