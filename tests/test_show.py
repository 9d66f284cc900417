"""`data show`: sample images, and the augmented images that training uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import class_folders
from torch import Tensor
from typer.testing import CliRunner

from alexnet.cli import app
from alexnet.data.augment import DRAWS, training_input
from alexnet.data.sources import open_table
from alexnet.data.table import sample_by_class
from alexnet.recipe import Augment, Preprocessing, load, names
from alexnet.report import samples
from conftest import mostly_long


def test_show_samples_as_many_classes_as_possible() -> None:
    targets = np.repeat(np.arange(30), [1000] + [2] * 29)
    chosen = sample_by_class(targets, 24)
    assert len(set(targets[chosen].tolist())) == 24
    assert targets[chosen].tolist() == sorted(targets[chosen].tolist())
    assert np.bincount(targets[sample_by_class(targets, 60)], minlength=30).tolist() == [2] * 30
    assert sample_by_class(targets, 24).tolist() == chosen.tolist(), "the same each time"


@pytest.mark.parametrize("mean", [(0.5, 0.4, 0.3), "each"])
def test_show_recipe_draws_network_input_in_colour(mean: tuple[float, float, float] | str) -> None:
    deviation = "each" if mean == "each" else (0.2, 0.25, 0.3)
    preprocessing = Preprocessing(
        cache_size=32, input=32, fit="crop", reduced_decode=False, resize="bilinear", mean=mean, std=deviation
    )
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    x = training_input(images, torch.rand(1, len(DRAWS)), preprocessing, Augment(horizontal_flip=False))
    assert np.abs(samples.to_levels(x[0], preprocessing).astype(int) - images[0].numpy()).max() <= 1


@mostly_long("recipe", names(), "finetune", "four-layer")
def test_show_every_recipe(recipe: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "changes.png"
    result = CliRunner().invoke(app, ["data", "show", str(photos), "--recipe", recipe, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert np.asarray(Image.open(out)).std() > 20, "the image is not blank"


@mostly_long("recipe", names(), "fast", "annotated")
def test_show_draws_no_identical_copies(recipe: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a recipe has random augmentation, each image is drawn several times; where it has none, once."""
    drawn, texts, levels, text = list[int](), list[str](), samples.to_levels, Axes.text

    def record_image(image: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        drawn.append(hash(image.numpy().tobytes()))
        return levels(image, preprocessing)

    def record_text(axes: Axes, x: float, y: float, words: str, **options: Any) -> Text:
        texts.append(words)
        return text(axes, x, y, words, **options)

    monkeypatch.setattr(samples, "to_levels", record_image)
    monkeypatch.setattr(Axes, "text", record_text)
    samples.show_augmented(open_table(photos), load(recipe), tmp_path / "out.png")
    fixed, flipped = recipe in {"annotated", "cifar10", "cifar10-1x1", "four-layer"}, recipe in {"finetune", "head"}
    assert len(set(drawn)) == len(drawn) == 6 * (1 if fixed else 2 if flipped else samples.DRAWS_EACH)
    notes = "\n".join(texts)
    assert ("this recipe has no random augmentation" in notes) is fixed
    assert ("with random augmentation" in notes) is not fixed
    assert ("every image mirrored" in notes) is (recipe == "annotated")


def test_show_with_odd_names_and_unreadable_files(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", 3, ("$x_1$", "\\frac{", "猫"))
    for label in ("$x_1$", "猫"):
        (folder / label / "broken.png").write_bytes(b"\x89PNG no more")
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    out = tmp_path / "samples.png"
    result = CliRunner().invoke(app, ["data", "show", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert Image.open(out).width > 1000
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before
    assert not list(tmp_path.glob("*.part"))


def test_show_without_readable_image_is_one_line(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["data", "show", str(tmp_path), "--out", str(tmp_path / "out.png")])
    assert "none of 2 images could be read; the first, a/x.png: not an image" in str(result.exception)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("recipe", ["annotated", "fast"])
@mostly_long(("images", "name"), [(1, "photos"), (6, "photo " * 30)], (1, "photos"))
def test_show_cuts_off_no_text(images: int, name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, figures = class_folders(tmp_path / name, images, ("across", "down")), list[Figure]()
    monkeypatch.setattr(samples, "save", lambda figure, path: (figures.append(figure), path.write_bytes(b"")))
    samples.show_augmented(open_table(folder), load(recipe), tmp_path / "out.png")
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    assert max(text.get_window_extent().x1 for text in figures[0].findobj(Text)) < canvas.get_width_height()[0]
