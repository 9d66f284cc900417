"""What the tests share: a cache of their own, small folders of pictures, small trained runs."""

from __future__ import annotations

import csv
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from proof.pictures import class_folders

import alexnet
from alexnet import cli, recipe
from alexnet.recipe import Preprocessing
from alexnet.training import budget, session, trainer
from alexnet.training import train as training
from alexnet.training.trainer import Trainer
from official import archive, no_proxy, server  # noqa: F401 - fixtures

# One thread, in processes that tests start too, as `make test` runs several files at once, whose threads would wait for each
# other. `proof.anywhere` asks for more, and for other seeds: no outcome may depend on either.
THREADS = int(os.environ.get("ALEXNET_TEST_THREADS", "1"))
SEED = int(os.environ.get("ALEXNET_TEST_SEED", "0"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

# Neither time nor chance decides a test.
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


def seed(name: str) -> None:
    """Seed the generators that whoever draws shares, and take back the number of threads, which some runs change."""
    torch.set_num_threads(THREADS)
    number = (zlib.crc32(name.encode()) + SEED) % 2**32
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(number)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file whose fixtures cost most: workers get halves of the list, and so one of them has all of it."""
    items.sort(key=lambda item: item.path.stem != "test_parallel")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Let a fixture draw the same whatever ran before."""
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Let a test draw the same whatever ran before, and whichever of its fixtures were made already."""
    seed(item.nodeid)


def drawn_at_random(name: str) -> tuple[float, float, float]:
    """Return what `random`, NumPy and PyTorch draw first in a test of this name."""
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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped by name where it is not."""
    folder = os.environ.get("ALEXNET_TEST_DATA")
    if not folder:
        pytest.skip("ALEXNET_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two class folders with 20 pictures each; not to be changed."""
    return class_folders(tmp_path_factory.mktemp("photos") / "photos")


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


def started(out: Path, photos: Path, name: str = "fast", **changes: Any) -> list[dict[str, str]]:
    """Train narrow, in float32, without a report; return the rows of `metrics.csv`."""
    made = recipe.load(name).with_settings({"data.dataset": str(photos), **NARROW, **changes})
    training.start(made, out, "cpu", time.monotonic())
    return metrics(out)


def stop_after(monkeypatch: pytest.MonkeyPatch, method: str, calls: int) -> Callable[[], int]:
    """Let Ctrl-C arrive during call number `calls` of a method of the trainer; return a count of all calls."""
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
    """Let each step of a training take so many seconds and anything else none; return what the clock shows, from 0."""
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
    """Run `alexnet` with the arguments behind `steps`, in a process of its own, and wait in that step for a signal."""
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
    """Return another opening of a run, which computes in float32: so its answers do not depend on the images beside."""
    opened = alexnet.load(run.path)
    opened.config = opened.config.model_copy(update={"precision": "float32"})
    return opened


def make_preprocessing(**changes: Any) -> Preprocessing:
    """Return a preprocessing that leaves images of 8 pixels a side as they are, but for `changes`."""
    plain = {"cache_size": 8, "input": 8, "fit": "crop", "reduced_decode": False, "resize": "bilinear", "value_range": 255}
    return Preprocessing(**{**plain, **changes})


def assert_near(found: Any, wanted: Any, share: float = 1e-4) -> None:
    """Compare arrays: no value may be off by more than a share of the largest."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * (1 + np.abs(wanted).max())


def damaged(content: bytes, chance: random.Random, *, cut: bool) -> bytes:
    """Return a file's bytes with its end cut off somewhere, or else with one bit turned."""
    at = chance.randrange(len(content))
    return content[:at] if cut else content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
