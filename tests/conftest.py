"""What the tests share: a cache of their own, small folders of pictures, small trained runs."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import alexnet
from official import archive, no_proxy, server  # noqa: F401 - fixtures

# One thread, in processes that tests start too: figures do not depend on the machine's cores, and `make test` runs several
# files at once, whose threads would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# Time is never a test; and in CI, chance must not decide whether a change lands.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")

TIME_COLUMNS = {"seconds", "images_per_second", "utilisation", "memory_gb"}
TINY = {"model.width": 1 / 16, "images.input": 67, "train.batch": 32}
SHORT = {**TINY, "train.epochs": 3, "train.batch": 8}


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep decoded images out of the user's cache."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped by name where it is not."""
    folder = os.environ.get("ALEXNET_TEST_DATA")
    if not folder:
        pytest.skip("ALEXNET_TEST_DATA names no folder of real images")
    return Path(folder)


def picture(kind: int, seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a noisy picture, width x height: stripes across for kind 0, stripes down for kind 1, a disc for kind 2."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    shapes = (y // 4 % 2, x // 4 % 2, (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(size) / 3) ** 2)
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray((shapes[kind][..., None] * 170 + noise).astype(np.uint8))


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a function that fills a folder with class folders of pictures."""

    def make(root: Path, count: int = 20, labels: tuple[str, ...] = ("across", "down")) -> Path:
        for kind, label in enumerate(labels):
            (root / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(kind, 100 * kind + i).save(root / label / f"{i:03}.png")
        return root

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """A folder of two class folders with 20 pictures each; not to be changed."""
    return make_folder(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> alexnet.Run:
    """A run of a narrow network on `photos`; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "photos"
    return alexnet.train(photos, out=out, settings={**TINY, "train.epochs": 8})


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run of three epochs of four batches, never stopped; not to be changed."""
    out = tmp_path_factory.mktemp("short") / "run"
    alexnet.train(photos, out=out, settings=SHORT)
    return out


def metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `metrics.csv`, but for the columns that tell the time."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]


def weights(run: Path) -> bytes:
    """Return the bytes of a run's weights."""
    return (run / "model.safetensors").read_bytes()
