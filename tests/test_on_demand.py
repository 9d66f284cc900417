"""Training on images that are decoded whenever they are taken: the same bytes as from the cache."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from proof.pictures import class_folders

import alexnet
from alexnet import cli
from alexnet.data import cache, on_demand
from alexnet.data.cache import open_cache
from alexnet.data.dataset import open_dataset
from alexnet.data.on_demand import OnDemand
from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError, DataError
from alexnet.recipe import Data, Preprocessing
from alexnet.run import read_recipe
from alexnet.training import session
from alexnet.training.distributed import ProcessGroup
from alexnet.training.train import _compare_machines
from alexnet.training.trainer import Trainer
from commands import together
from conftest import SHORT, metrics, mostly_long, stop_after, weights

ON_DEMAND = {**SHORT, "data.cache": "none"}


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as shards of eight, unchanged."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet.data.pack.MOST", 8)
        alexnet.shard(photos, folder, side=None)
    return folder


@mostly_long("settings", [{}, {"images.cache_size": "full"}, {"train.batch_size": 5}], {})
def test_the_same_network_from_disk_and_on_demand(
    shards: Path, tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = alexnet.train(shards, out=tmp_path / "kept", settings={**SHORT, **settings})
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail("builds a cache"))
    run = alexnet.train(shards, out=tmp_path / "run", settings={**ON_DEMAND, **settings})
    assert weights(run.path) == weights(kept.path)
    assert metrics(run.path) == metrics(kept.path)
    assert run.evaluate().to_json() == kept.evaluate().to_json()
    assert "Not checked, as the images" in (run.path / "report.html").read_text(encoding="utf-8")


def test_a_stopped_training_goes_on(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = alexnet.train(shards, out=tmp_path / "whole", settings=ON_DEMAND)
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(shards, out=tmp_path / "stopped", settings=ON_DEMAND)
    assert weights(alexnet.resume(tmp_path / "stopped").path) == weights(whole.path)


@pytest.mark.long
def test_two_processes_read_their_parts_of_shards(shards: Path, tmp_path: Path) -> None:
    """The same losses as from the cache; from run to run, and on the disk or on demand, the same bytes."""
    own = [word for key, value in {**SHORT, "optimizer.muon_lr": 0}.items() for word in ("--set", f"{key}={value}")]
    for name, cached in (("kept", "disk"), ("run", "none"), ("again", "none")):
        together(2, tmp_path / f"said {name}", "train", shards, *own, "--set", f"data.cache={cached}", "--out", tmp_path / name)
    assert weights(tmp_path / "run") == weights(tmp_path / "kept") == weights(tmp_path / "again")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "kept")


def train_and_die(steps: str, *_: str) -> None:
    """Run `alexnet` with the other arguments, save after each step, and die in that one; for a separate process."""
    session.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    count, step = 0, Trainer.train_step

    def dying(self: Trainer, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == int(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *args)

    Trainer.train_step = dying  # type: ignore[method-assign]
    del sys.argv[1]
    cli.main()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL needs POSIX")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_goes_on_from_within_a_shard(shards: Path, processes: int, tmp_path: Path) -> None:
    own = [word for key, value in {**ON_DEMAND, "optimizer.muon_lr": 0}.items() for word in ("--set", f"{key}={value}")]
    together(processes, tmp_path / "said whole", "train", shards, *own, "--out", tmp_path / "whole")
    kill = tmp_path / "killed"
    together(processes, tmp_path / "said killed", 6, "train", shards, *own, "--out", kill, main=train_and_die, code=-9)
    assert (kill / "checkpoint").exists()
    together(processes, tmp_path / "said resumed", "train", "--resume", kill)
    assert weights(kill) == weights(tmp_path / "whole")


def test_a_full_disk(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    table, images = open_table(photos), Preprocessing(cache_size=16, input=16)
    assert isinstance(open_cache(table, images, 1, "auto").pixels, OnDemand)
    assert "photos: images are decoded again in each epoch, as 0.0 GB are needed" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"cannot cache decoded images in .* are needed, but only 0\.0 GB are free"):
        open_cache(table, images, 1, "disk")
    run = alexnet.train(photos, out=tmp_path / "run", settings={**SHORT, "train.epochs": 1})
    assert read_recipe(run._folder).data.cache == "none"


def test_the_pixels_are_those_of_the_cache(photos: Path) -> None:
    table = open_table(photos)
    rows = np.random.default_rng(0).permutation(len(table))
    for size in (16, 100, "full"):
        images = Preprocessing(cache_size=size, input=24)  # type: ignore[arg-type]
        kept, anew = open_cache(table, images, 1).pixels, open_cache(table, images, 1, "none").pixels
        np.testing.assert_array_equal(anew.take(rows), kept.take(rows))
        np.testing.assert_array_equal(anew.image(3), kept.image(3))


def test_an_image_that_cannot_be_read_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = class_folders(tmp_path / "photos")
    monkeypatch.setattr(Trainer, "fit", spoil(photos, Trainer.fit))
    with pytest.raises(DataError, match=r"photos: .* cannot be read: no such file; remove it") as raised:
        alexnet.train(photos, out=tmp_path / "run", settings=ON_DEMAND)
    assert "\n" not in str(raised.value)


def spoil(folder: Path, fit: object) -> object:
    def fit_spoiled(trainer: object) -> None:
        for file in folder.rglob("*.png"):
            file.unlink()
        fit(trainer)  # type: ignore[operator]

    return fit_spoiled


def test_parquet_is_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(class_folders(tmp_path / "photos").rglob("*.*"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "photos.parquet")
    table = open_table(tmp_path / "photos.parquet")
    with pytest.raises(DataError, match="can only be read in order: make shards of them"):
        on_demand.decode_on_demand(table, Preprocessing(cache_size=16, input=16), [])
    alexnet.shard(tmp_path / "photos.parquet", tmp_path / "shards", side=None)
    assert len(open_table(tmp_path / "shards")) == len(files)


def test_machines_with_different_splits_are_refused(photos: Path) -> None:
    table, images = open_table(photos), Preprocessing(cache_size=16, input=16)
    here, there = (open_dataset(table, images, 1, Data(split_seed=seed)) for seed in (0, 1))

    class Group:
        def broadcast(self, _: str) -> str:
            return str(there.fingerprint()["listing"])

        def sum(self, number: float) -> list[float]:
            return [number]

    _compare_machines(cast(ProcessGroup, Group()), there)
    with pytest.raises(DataError, match=r"photos: the images, labels or splits differ between machines: .* data\.cache=none"):
        _compare_machines(cast(ProcessGroup, Group()), here)
