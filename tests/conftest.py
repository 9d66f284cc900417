"""Shared fixtures: a separate cache, small folders of images, small trained runs."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import settings
from proof.pages import launched, program
from proof.pictures import class_folders

import alexnet
from alexnet import cli, recipe
from alexnet.data.table import Table
from alexnet.export.onnx import OLDEST_PYTORCH
from alexnet.recipe import Preprocessing
from alexnet.report import report
from alexnet.training import budget, session, trainer
from alexnet.training import train as training
from alexnet.training.trainer import Trainer
from official import archive, no_proxy, server  # noqa: F401 - fixtures

# Use one thread, in processes started by tests too: `make test` runs several files at once, and their threads would wait for
# each other. `proof.anywhere` sets more threads and other seeds, as no outcome may depend on either.
THREADS = int(os.environ.get("ALEXNET_TEST_THREADS", "1"))
SEED = int(os.environ.get("ALEXNET_TEST_SEED", "0"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

# Neither time nor randomness may decide a test.
settings.register_profile("ours", deadline=None, derandomize=True, database=None)
settings.load_profile("ours")

TIME_COLUMNS = {"seconds", "images_per_second", "utilisation", "memory_gb"}
TINY = {"model.width": 1 / 16, "images.input": 67, "train.batch_size": 32, "train.seed": SEED}
NARROW = {
    **{
        "model.width": 1 / 16,
        "model.whitening_init": False,
        "images.input": 67,
        "train.batch_size": 8,
        "train.precision": "float32",
    },
    "augment.alternating_flip": False,
    "train.seed": SEED,
}
SHORT = {**TINY, "train.epochs": 3, "train.batch_size": 8}

needs_export = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_PYTORCH, reason="exporting needs a newer PyTorch"
)


def mostly_long(names: str | tuple[str, ...], cases: Iterable[Any], *quick: Any, **options: Any) -> pytest.MarkDecorator:
    """Parametrize a test whose cases repeat one promise: all but those in `quick` are marked `long`."""
    cases = list(cases)
    assert all(case in cases for case in quick)
    values = [case if isinstance(names, tuple) else (case,) for case in cases]
    marks = [() if case in quick else (pytest.mark.long,) for case in cases]
    return pytest.mark.parametrize(names, [pytest.param(*v, marks=m) for v, m in zip(values, marks, strict=True)], **options)


def seed(name: str) -> None:
    """Seed the global generators, and restore the number of threads, which some runs change."""
    torch.set_num_threads(THREADS)
    number = (zlib.crc32(name.encode()) + SEED) % 2**32
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests with the most expensive fixtures first, so that one worker gets all of them; browsers are slow to start."""
    fixtures = {item: getattr(item, "fixturenames", ()) for item in items}
    items.sort(key=lambda item: (item.path.stem != "test_parallel", "exported" not in fixtures[item]))
    for item in items:
        if "browser" in fixtures[item]:
            item.add_marker(pytest.mark.long)


class Seeding:
    """Hooks that seed each fixture and each test by its name, regardless of what ran before.

    This is a plugin because the hooks of a folder's conftest.py are not called for fixtures of the session.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        seed(fixturedef.argname)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        seed(item.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Seeding())


def drawn_at_random(name: str) -> tuple[float, float, float]:
    """Return the first random numbers from `random`, NumPy and PyTorch in a test of this name."""
    seed(name)
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep decoded images out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["ALEXNET_CACHE"] = str(cache)
    if sys.platform == "linux" and "PYTEST_XDIST_WORKER" in os.environ:  # compiled once for all workers
        shared = tmp_path_factory.getbasetemp().parent / "kernels"
        shared.mkdir(exist_ok=True)
        (cache / "kernels").symlink_to(shared)


@pytest.fixture(autouse=True)
def _no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the charts out of the reports of trainings, as they take half of a short one's time; `Run.report` draws them."""
    if request.node.get_closest_marker("long"):
        return
    charts = {"curves": lambda *_: {}, "reliability": lambda *_: {"svg": "", "finding": ""}, "coverage": lambda *_: None}

    def write_report(*given: Any) -> Path:
        with patch.multiple("alexnet.report.charts", **charts):
            return report.write_report(*given)

    monkeypatch.setattr(training, "write_report", write_report)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images, or skip the test without it."""
    folder = os.environ.get("ALEXNET_TEST_DATA")
    if not folder:
        pytest.skip("ALEXNET_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with 20 images each; read-only."""
    return class_folders(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> alexnet.Run:
    """A run of a narrow network on `photos`; read-only."""
    out = tmp_path_factory.mktemp("runs") / "photos"
    return alexnet.train(photos, out=out, settings={**SHORT, "train.epochs": 8})


@pytest.fixture(scope="session")
def exported(trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the export of a copy of `trained` found: its `file` is beside the card and the comparison; read-only."""
    return alexnet.load(shutil.copytree(trained.path, tmp_path_factory.mktemp("exported") / "photos")).export()


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """An uninterrupted run of three epochs of four batches; read-only."""
    out = tmp_path_factory.mktemp("short") / "run"
    alexnet.train(photos, out=out, settings=SHORT)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, or skip the test without it or playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page was not opened")
    if not program():
        pytest.skip("no Chromium: the page was not opened")
    with sync_api.sync_playwright() as play:
        found = launched(play)
        yield found
        found.close()


def metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `metrics.csv`, without the columns that depend on time."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]


def weights(run: Path) -> bytes:
    """Return the bytes of a run's weights."""
    return (run / "model.safetensors").read_bytes()


def started(out: Path, photos: Path, name: str = "fast", **changes: Any) -> list[dict[str, str]]:
    """Train a narrow network in float32, without a report; return the rows of `metrics.csv`."""
    made = recipe.load(name).with_settings({"data.dataset": str(photos), **NARROW, **changes})
    training.start(made, out, "cpu", time.monotonic())
    return metrics(out)


def stop_after(monkeypatch: pytest.MonkeyPatch, method: str, calls: int) -> Callable[[], int]:
    """Raise SIGINT in the call with number `calls` of a trainer's method; return a function that returns the call count."""
    count, original = 0, getattr(Trainer, method)

    def counted(self: Trainer, *args: Any) -> Any:
        nonlocal count
        count += 1
        if method != "train_step" and count == calls:
            signal.raise_signal(signal.SIGINT)
        result = original(self, *args)
        if method == "train_step" and count == calls:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Trainer, method, counted)
    return lambda: count


def tell_time_by_steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Callable[[], float]:
    """Replace the clock with one that advances by `seconds` at each training step; return a function that reads it."""
    now, step = 0.0, Trainer.train_step

    def timed(self: Trainer, *args: Any) -> None:
        nonlocal now
        step(self, *args)
        now += seconds

    monkeypatch.setattr(Trainer, "train_step", timed)
    for module in (budget, session, trainer):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    return lambda: now


def train_until_signalled(steps: str, *_: str) -> None:
    """Run `alexnet` with the other arguments and wait for a signal in that step; the entry point of a separate process."""
    count, step = 0, Trainer.train_step

    def waiting(self: Trainer, *args: Any) -> None:
        nonlocal count
        count += 1
        while count == int(steps) and self.session._stop.code is None:
            time.sleep(0.005)
        step(self, *args)

    Trainer.train_step = waiting  # type: ignore[method-assign]
    del sys.argv[1]
    cli.main()


def in_float32(run: alexnet.Run) -> alexnet.Run:
    """Reload a run in float32, where predictions do not depend on the other images of a batch."""
    opened = alexnet.load(run.path)
    opened.config = opened.config.model_copy(update={"precision": "float32"})
    return opened


def photos_of(side: int, count: int = 1000) -> Table:
    """Return a table of black photos of two classes in memory."""
    pixels = np.zeros((count, side, side, 3), np.uint8)
    return Table("photos", ("a", "b"), [f"{i}" for i in range(count)], np.arange(count) % 2, np.full(count, ""), pixels=pixels)


def make_preprocessing(**changes: Any) -> Preprocessing:
    """Return a preprocessing that leaves images of 8 x 8 pixels unchanged, except for `changes`."""
    plain = {"cache_size": 8, "input": 8, "fit": "crop", "reduced_decode": False, "resize": "bilinear", "value_range": 255}
    return Preprocessing(**{**plain, **changes})


def assert_near(result: Any, expected: Any, share: float = 1e-4) -> None:
    """Assert that no value of two arrays differs by more than `share` of the largest."""
    result, expected = (np.asarray(x, np.float64) for x in (result, expected))
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= share * (1 + np.abs(expected).max())


def damaged(content: bytes, rng: random.Random, *, cut: bool) -> bytes:
    """Return a file's bytes truncated at random, or with one random bit flipped."""
    at = rng.randrange(len(content))
    return content[:at] if cut else content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
