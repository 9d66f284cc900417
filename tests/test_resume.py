"""Resume: a run that was stopped or killed ends bit-identical, or reports why it cannot."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from proof.pictures import class_folders, picture
from proof.torture import NARROW, SIZE, command, torture

import alexnet
from alexnet.errors import AlexNetError, DataError, RunError
from alexnet.files import HOST
from alexnet.training import budget, checkpoint, session
from alexnet.training.trainer import Trainer
from commands import Started
from conftest import (
    SHORT,
    THREADS,
    TINY,
    damaged,
    metrics,
    mostly_long,
    stop_after,
    tell_time_by_steps,
    train_until_signalled,
    weights,
)


def held_training(folder: Path, photos: Path, steps: int) -> Started:
    """Start the training `short` in a separate process, and return once it waits in a step for a signal."""
    arguments = ["train", *command(str(photos), {**SHORT, "data.workers": 1}, THREADS), "--out", folder / "a run"]
    started = Started(folder / "said", train_until_signalled, steps, *arguments)
    started.wait_until(lambda: folder.joinpath("a run", "checkpoint" if steps > 4 else "environment.json").exists())
    return started


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run of `SHORT` stopped in its second epoch, with two checkpoints; read-only."""
    out = tmp_path_factory.mktemp("once") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(photos, out=out, settings=SHORT)
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


# Stopping


@mostly_long(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], (signal.SIGINT, 130))
def test_resume_after_signal_is_bit_identical(
    short: Path, photos: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out, process = tmp_path / "a run", held_training(tmp_path, photos, 6)
    process.send(number)
    message = process.end(code).stderr
    assert message.splitlines()[-1].endswith(f"resume with: alexnet train --resume '{out}'"), "as a shell takes it"
    assert "Traceback" not in message
    assert not list(out.rglob("*.part"))
    alexnet.resume(out)
    assert metrics(out) == metrics(short)
    assert weights(out) == weights(short)
    assert not (out / "checkpoint").exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL needs POSIX")
def test_resume_after_kill_is_bit_identical(short: Path, photos: Path, tmp_path: Path) -> None:
    process = held_training(tmp_path, photos, 6)
    process.send(signal.SIGKILL)
    process.end(-signal.SIGKILL)
    alexnet.resume(tmp_path / "a run")
    assert metrics(tmp_path / "a run") == metrics(short)
    assert weights(tmp_path / "a run") == weights(short)
    assert not (tmp_path / "a run" / "checkpoint").exists()


@mostly_long("steps", [1, 4, 5, 9, 12], 4, 5)
def test_resume_in_mid_epoch_is_bit_identical(
    short: Path, photos: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = stop_after(monkeypatch, "train_step", steps)
    with pytest.raises(AlexNetError, match="resume with"):
        alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    alexnet.resume(tmp_path / "run")
    assert taken() == 3 * 4, "four batches of 28 images, three epochs, none twice"
    assert metrics(tmp_path / "run") == metrics(short)
    assert weights(tmp_path / "run") == weights(short)


@mostly_long("evaluation", [1, 3, 4, 5], 3, 5)
def test_signal_stops_evaluation(
    short: Path, photos: Path, tmp_path: Path, evaluation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations 1 to 3 are those of the epochs, 4 the last one on validation images, 5 the one on test images."""
    stop_after(monkeypatch, "evaluate", evaluation)
    where = "after the last epoch" if evaluation > 3 else f"in epoch {evaluation}"
    with pytest.raises(AlexNetError, match=f"stopped {where}, everything is saved"):
        alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    run = alexnet.resume(tmp_path / "run")
    assert f"after batch {0 if evaluation > 3 else 4} of 4" in (run.path / "log.txt").read_text()
    assert metrics(run.path) == metrics(short)
    assert weights(run.path) == weights(short)
    assert run.summary["test"] == alexnet.load(short).summary["test"]


def test_resume_before_the_first_checkpoint(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.toml").write_bytes((short / "recipe.toml").read_bytes())
    (out / f"metrics.csv.{HOST}-{2**30}.part").write_text("of a process that was killed")
    alexnet.resume(out)
    assert weights(out) == weights(short)
    assert not list(out.rglob("*.part"))


def test_resume_of_finished_run(short: Path) -> None:
    with pytest.raises(RunError, match="finished"):
        alexnet.resume(short)


@pytest.mark.long
def test_lock_of_the_run_folder(photos: Path, tmp_path: Path) -> None:
    process = held_training(tmp_path, photos, 1)
    with pytest.raises(RunError, match="another process is training in"):
        alexnet.resume(tmp_path / "a run")
    process.send(signal.SIGTERM)
    process.end(143)


@pytest.mark.long
def test_resume_after_five_kills_is_bit_identical(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", 40, size=SIZE)
    outcome = torture(tmp_path, command(str(photos), {**NARROW, "train.epochs": 3}, THREADS), 5, seed=0)
    assert sum(outcome.kills.values()) == 5
    assert not outcome.faults


# By the clock


@pytest.mark.long
def test_resume_by_minutes_follows_the_journal(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop, resume from the checkpoint, then from the journal alone: the clock is not read again for the same step."""
    settings = {**TINY, "train.minutes": 0.15, "train.batch_size": 8, "schedule.progressive_resize": [[0.5, 0.9]]}
    tell_time_by_steps(monkeypatch, 0.25)
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(photos, out=tmp_path / "run", settings=settings, started=0.0)
    before = (tmp_path / "run" / "journal.txt").read_bytes()
    run = alexnet.resume(tmp_path / "run", started=1.5)
    journal = (tmp_path / "run" / "journal.txt").read_bytes()
    assert journal.startswith(before)
    assert journal.endswith(b"\n1.0\n")
    again = tmp_path / "again"
    again.mkdir()
    for name in ("recipe.toml", "journal.txt"):
        shutil.copy(run.path / name, again / name)
    tell_time_by_steps(monkeypatch, 100.0)
    alexnet.resume(again, started=0.0)
    assert metrics(again) == metrics(run.path)
    assert weights(again) == weights(run.path)
    assert (again / "journal.txt").read_bytes() == journal


def test_resume_has_the_minutes_left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**TINY, "train.minutes": 100.0, "train.batch_size": 8}
    stop_after(monkeypatch, "train_step", 3)
    with pytest.raises(AlexNetError):
        alexnet.train(photos, out=tmp_path / "run", settings=settings, started=time.monotonic() - 5000)
    left: list[float] = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: Any) -> None:
        left.append(self.budget.seconds_left(self.state))
        step(self, *args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", watched)
    with pytest.raises(AlexNetError):
        alexnet.resume(tmp_path / "run")
    assert 900 < left[0] < 1000


@given(st.lists(st.floats(0, 1)).map(sorted), st.integers(0, 30))
def test_journal_cut_off_keeps_whole_lines(shares: list[float], cut: int) -> None:
    content = "".join(f"{share!r}\n" for share in shares).encode()
    assert budget.read_journal(content) == shares
    result = budget.read_journal(content[: max(0, len(content) - cut)])
    assert result == shares[: len(result)]


# Checkpoints


def test_previous_checkpoint_is_kept(stopped: Path) -> None:
    folders = [stopped / "checkpoint" / name for name in ("last", "before")]
    states = [json.loads((folder / "state.json").read_text())["content"]["state"] for folder in folders]
    assert [(at["epoch"], at["batch"]) for at in states] == [(2, 2), (2, 0)]


@mostly_long("name", ["state.safetensors", "state.json"], "state.json")
def test_damaged_checkpoint_falls_back_to_the_previous(stopped: Path, name: str) -> None:
    rng, file = random.Random(0), stopped / "checkpoint" / "last" / name
    whole, (_, newest) = file.read_bytes(), checkpoint.read(stopped) or ({}, {})
    before = json.loads((stopped / "checkpoint" / "before" / "state.json").read_text())["content"]["state"]
    for attempt in range(100):
        file.write_bytes(damaged(whole, rng, cut=attempt % 2 == 0))
        result = checkpoint.read(stopped)
        assert result is not None
        same = name == "state.json" and result[1] == newest  # a blank replaced by another kind of blank
        assert same or result[1]["state"] == before, attempt
    file.write_bytes(whole[:-1])
    shutil.rmtree(stopped / "checkpoint" / "before")
    with pytest.raises(RunError, match=r"last is damaged, and the one before it is not intact either"):
        alexnet.resume(stopped)


def test_resume_from_previous_checkpoint_is_bit_identical(stopped: Path, short: Path) -> None:
    os.truncate(stopped / "checkpoint" / "last" / "state.safetensors", 1000)
    alexnet.resume(stopped)
    assert weights(stopped) == weights(short)
    assert metrics(stopped) == metrics(short)


def rewrite(run: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> None:
    """Change the newest checkpoint and recompute its checksum, as an attacker would."""
    tensors, state = checkpoint.read(run) or ({}, {})
    change(tensors, state)
    checkpoint.write(run, tensors, state)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, state: state.pop("state"),
        lambda tensors, state: state.update(state=[]),
        lambda tensors, state: state["state"].update(epoch="second"),
        lambda tensors, state: state["state"].update(from_the_future=1),
        lambda tensors, state: state.update(recipe="= no TOML"),
        lambda tensors, state: state.update(recipe='data = 1\nschedule.table = ["no table"]'),
        lambda tensors, state: state.update(dataset=None),
        lambda tensors, state: tensors.update({"network/head.weight": torch.zeros(1)}),
        lambda tensors, state: tensors.update({"momentum/head.weight": torch.zeros(7)}),
        lambda tensors, state: tensors.update({"elsewhere/head.weight": torch.zeros(1)}),
        lambda tensors, state: tensors.pop("network/head.weight"),
    ],
)
def test_forged_checkpoint_is_one_line(stopped: Path, change: Callable[..., Any]) -> None:
    rewrite(stopped, change)
    with pytest.raises(AlexNetError) as caught:
        alexnet.resume(stopped)
    assert "\n" not in str(caught.value)
    assert str(stopped) in str(caught.value)


def test_checkpoint_of_newer_version_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = checkpoint.read(stopped)
    assert result is not None
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
        checkpoint.write(stopped, *result)
    with pytest.raises(RunError, match="written by another version of alexnet"):
        alexnet.resume(stopped)


def test_resume_with_changed_recipe(stopped: Path) -> None:
    recipe = stopped / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 3", "epochs = 5"))
    with pytest.raises(RunError, match=r"train\.epochs was 3 and is 5; restore it"):
        alexnet.resume(stopped)


@pytest.mark.parametrize("change", ["added", "removed", "moved", "repainted"])
def test_resume_with_changed_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    photos = class_folders(tmp_path / "photos")
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError):
            alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    expected = {
        "added": "it had 40 readable images and has 41",
        "removed": "it had 40 readable images and has 39",
        "moved": "names, labels or splits differ",
        "repainted": "the pixels of images differ",
    }
    first = photos / "across" / "000.png"
    if change == "added":
        picture(0, 99).save(photos / "across" / "more.png")
    elif change == "removed":
        first.unlink()
    elif change == "moved":
        first.rename(photos / "down" / "000b.png")
    else:
        picture(0, 99).save(first)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("it trained"))
    with pytest.raises(DataError, match=expected[change]):
        alexnet.resume(tmp_path / "run")


def test_resume_of_a_checkpoint_that_hashed_pixels_otherwise(stopped: Path, short: Path) -> None:
    result = checkpoint.read(stopped)
    assert result is not None
    result[1]["dataset"]["pixels"] = result[1]["dataset"].pop("digests")[::-1]
    checkpoint.write(stopped, *result)
    assert weights(alexnet.resume(stopped).path) == weights(short)


def test_resume_with_moved_dataset(stopped: Path, short: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere")
    recipe = stopped / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(photos), str(tmp_path / "elsewhere")))
    alexnet.resume(stopped)
    assert weights(stopped) == weights(short)


# Disks


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of files to `size` bytes; larger writes fail as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_failed_save_keeps_the_last_checkpoint(stopped: Path) -> None:
    result = checkpoint.read(stopped)
    assert result is not None
    size = (stopped / "checkpoint" / "last" / "state.safetensors").stat().st_size
    for limit in random.Random(0).sample(range(size), 30):
        with limit_file_size(limit), pytest.raises(RunError, match=r"cannot write .*GB free"):
            checkpoint.write(stopped, *result)
        assert not (stopped / "checkpoint" / "next").exists()
    again = checkpoint.read(stopped)
    assert again is not None
    assert again[1] == result[1]
    assert safetensors.torch.save(again[0]) == safetensors.torch.save(result[0])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root on Linux")
def test_full_disk_while_training_is_one_line(
    short: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CHECKPOINT_SHARE", math.inf)  # one after each epoch, regardless of the time it takes
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        size = sum(tensor.nbytes for tensor in safetensors.torch.load_file(short / "model.safetensors").values())
        filler = disk / "filler"
        filler.write_bytes(bytes(24 * 2**20 - round(5 * size)))  # one checkpoint, thrice the weights, fits; two do not
        with pytest.raises(RunError, match=r"cannot write .*The last checkpoint is intact: fix this, then resume with"):
            alexnet.train(photos, out=disk / "run", settings=SHORT)
        filler.unlink()
        alexnet.resume(disk / "run")
        assert weights(disk / "run") == weights(short)
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_run_folder_removed_while_training(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def removing(self: Trainer, *args: Any) -> None:
        step(self, *args)
        if self.state.epoch == 2:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(Trainer, "train_step", removing)
    with pytest.raises(RunError, match=f"cannot write .*{tmp_path}/run"):
        alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    assert not (tmp_path / "run").exists()


# Memory


def test_out_of_memory_splits_into_microbatches(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a device with memory for three images at a time. Without batch norm, the weights are those of whole batches."""
    plain = {
        **SHORT,
        "model.variant": "owt",
        "model.whitening_init": False,
        "train.precision": "float32",
        "optimizer.muon_lr": 0.0,
        "augment.mixup": 0.5,
    }
    whole = alexnet.train(photos, out=tmp_path / "whole", settings=plain)
    forward = alexnet.AlexNet.forward

    def small(self: alexnet.AlexNet, images: torch.Tensor, upscale: int = 1) -> torch.Tensor:
        if self.training and len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, upscale)

    monkeypatch.setattr(alexnet.AlexNet, "forward", small)
    run = alexnet.train(photos, out=tmp_path / "run", settings=plain)
    message = capsys.readouterr().err
    assert message.count("memory is too small for") == 2
    assert "7 images at once: from here on, gradients are accumulated over micro-batches of 4" in message
    assert "4 images at once: from here on, gradients are accumulated over micro-batches of 2" in message
    for name, tensor in run.network.state_dict().items():
        torch.testing.assert_close(tensor, whole.network.state_dict()[name], rtol=1e-3, atol=1e-5)
