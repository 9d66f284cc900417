"""Training on several processes equals training on one."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import alexnet
import parallel_steps
from alexnet import recipe
from alexnet.errors import AlexNetError
from alexnet.files import read_json
from alexnet.run import KNOWN
from alexnet.training import train as training
from alexnet.training.distributed import launch, process_group
from commands import SECONDS, error, python, run, together
from conftest import metrics, mostly_long, stop_after
from parallel_steps import CASES, Case

STEPS = [(case, count) for case in CASES for count in (2, 4) if case.runs_on(count)]
QUICK = [
    *(
        "--set",
        "model.variant=paper",
        "--set",
        "model.width=0.0625",
        "--set",
        "model.whitening_init=false",
        "--set",
        "images.input=67",
    ),
    *("--set", "images.upscale=1", "--set", "optimizer.muon_lr=0", "--set", "optimizer.lr=0.001", "--set", "model.dropout=0.5"),
    *("--set", "train.precision=float32", "--set", "optimizer.lr_scale={}", "--set", "schedule.progressive_resize=[]"),
    *("--set", "augment.mixup=0.4", "--set", "augment.cutmix=1.0"),
]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the network's weights; rounding may turn the subspace of `Known` about an axis."""
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(KNOWN)}


def farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two tensors of the same name, relative to their norm."""
    assert ours.keys() == theirs.keys()
    differences = {name: (ours[name].double() - theirs[name].double()).norm() for name in ours}
    return max(float(d / theirs[name].double().norm().clamp_min(1e-30)) for name, d in differences.items())


def moved(last: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how much tensors have changed."""
    return {name: tensor.double() - first[name].double() for name, tensor in last.items()}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, torch.Tensor]]:
    """Return a function that returns the output of `parallel_steps.py` for a number of processes, which runs once."""
    folder = tmp_path_factory.mktemp("steps")

    @functools.cache
    def output(count: int) -> dict[str, torch.Tensor]:
        path = folder / f"{count}.safetensors"
        if count == 1:
            parallel_steps.main(str(path))
        else:
            together(count, folder / str(count), path, main=parallel_steps.main)
        return safetensors.torch.load_file(path)

    return output


@mostly_long(
    ("case", "count"),
    STEPS,
    *[(case, count) for case, count in STEPS if count == 2],
    ids=[f"{case.name} {count}" for case, count in STEPS],
)
def test_parallel_steps_equal_one_process(case: Case, count: int, steps: Callable[[int], dict[str, torch.Tensor]]) -> None:
    ours, single = (
        {name: tensor for name, tensor in steps(some).items() if name.startswith(f"{case.name}/")} for some in (count, 1)
    )
    assert single[f"{case.name}/losses"].shape == (case.steps,)
    assert farthest(ours, single) < (1e-9 if case.dtype == torch.float64 else 1e-4)
    if case.dtype == torch.float64:  # also relative to the change of the weights
        first = {name: steps(1).get(f"first {name}", torch.zeros(case.steps)) for name in single}
        assert farthest(moved(ours, first), moved(single, first)) < 1e-9


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process to compare the others with; read-only."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run("train", "digits", "--epochs", "2", *QUICK, "--out", out)
    return out


@mostly_long("parallel", ["data", "towers", "hybrid"], "data")
def test_run_of_two_processes_equals_one(parallel: str, single: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "run", ["--parallel", parallel, "--json"]
    command = ["train", "digits", "--epochs", "2", *QUICK, "--out", out, *options]
    if parallel == "hybrid":
        process = python("-m", "alexnet", *command, "--processes", "2")
    else:
        process = together(2, tmp_path / "said", *command)
    assert json.loads(process.stdout) == read_json(out / "summary.json")
    assert process.stderr.count("epoch 2/2") == 1, "the first alone speaks"
    assert "2 processes" in process.stderr
    assert read_json(out / "environment.json")["parallel"] == parallel
    assert farthest(weights(out), weights(single)) < 1e-4
    for ours, theirs in zip(metrics(out), metrics(single), strict=True):
        for key in ("images", "train_loss", "train_top1", "val_loss", "val_top1"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-4), key
    assert {path.name for path in out.iterdir()} == {path.name for path in single.iterdir()}
    assert alexnet.load(out).summary["test"]["top1"] == pytest.approx(alexnet.load(single).summary["test"]["top1"], abs=0.003)


def evaluate_in_parts(out: str, path: str) -> None:
    """Evaluate a run on all processes; each writes the outputs that it has in the end."""
    from alexnet.data.dataset import open_dataset
    from alexnet.data.sources import open_table
    from alexnet.inference import evaluate

    evaluate.BATCH = 16  # several batches for each, and one more for some
    opened = alexnet.load(path, device="cpu")
    preprocessing, known = opened.config.preprocessing, opened.config.known
    settings = recipe.load("fast").data
    dataset = open_dataset(open_table("digits", settings=settings), preprocessing, 1, settings)
    with process_group() as group:
        shared = {"shard": group.shard_slice, "total": group.total}
        found = evaluate.evaluate_split(opened.network, dataset, "val", preprocessing, "float32", 1, known=known, **shared)  # type: ignore[arg-type]
    safetensors.torch.save_file(
        {"logits": torch.from_numpy(found.logits), "scores": torch.from_numpy(found.scores)}, f"{out}-{group.rank}"
    )


def test_sharded_evaluation_is_bit_identical(single: Path, tmp_path: Path) -> None:
    """Each process has all outputs, those of one process."""
    counts = (1, 2, 3)
    for count in counts:
        together(count, tmp_path / f"said {count}", tmp_path / str(count), single, main=evaluate_in_parts)
    alone = (tmp_path / "1-0").read_bytes()
    assert len(safetensors.torch.load(alone)["logits"]) > 16 * max(counts)
    assert all((tmp_path / f"{count}-{rank}").read_bytes() == alone for count in counts for rank in range(count))


@pytest.mark.long
def test_unsynchronised_norm_evaluates_as_saved(tmp_path: Path) -> None:
    out, own = tmp_path / "run", ("--set", "train.synchronised_norm=false", "--set", "model.width=0.0625")
    precise = ("--set", "train.precision=float32")
    together(2, tmp_path / "said", "train", "digits", "--epochs", "1", *own, *precise, "--out", out)
    opened = alexnet.load(out)
    result = opened.evaluate(split="val")
    assert result.loss == pytest.approx(opened.summary["validation"]["loss"], rel=1e-4)


# Stop and resume


HOLD = """
import os, time
if "RANK" in os.environ:
    from alexnet.training.trainer import Trainer
    step = Trainer.train_step
    def held(self, *args):
        while self.state.epoch == 2 and self.group.restarts == 0 and self.session._stop.code is None:
            time.sleep(0.01)
        step(self, *args)
    Trainer.train_step = held
"""


@pytest.fixture
def held(tmp_path: Path) -> dict[str, str]:
    """The environment in which trainings of several processes wait for a signal in their second epoch."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOLD)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@pytest.mark.long
def test_resume_by_one_process(single: Path, tmp_path: Path, held: dict[str, str]) -> None:
    """Send SIGINT to the launching process once an epoch is over."""
    out, options = tmp_path / "run", ["--processes", "2", "--parallel", "hybrid"]
    command = [sys.executable, "-m", "alexnet", "train", "digits", "--epochs", "2", *QUICK, *options, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=held)
    assert process.stderr is not None
    message = ""
    for line in process.stderr:
        message += line
        if line.startswith("epoch 1/2"):
            process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130, message
    assert message.count("everything is saved; resume with: alexnet train --resume") == 1
    assert (out / "checkpoint" / "last").exists()
    alexnet.resume(out)
    assert farthest(weights(out), weights(single)) < 1e-4


@pytest.mark.long
def test_resume_by_four_processes(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 12)
        assert "resume with" in run("train", "digits", "--epochs", "2", *QUICK, "--out", out, code=130).stderr
    together(4, tmp_path / "said", "train", "--resume", out, "--parallel", "hybrid")
    assert farthest(weights(out), weights(single)) < 1e-4


def print_sums() -> None:
    for _ in range(3):
        with process_group() as group:
            print(group.sum(group.rank + 1.0))


def test_training_twice_in_one_torchrun_script(tmp_path: Path) -> None:
    assert together(4, tmp_path / "said", main=print_sums).stdout.split() == ["[10.0]"] * 12


def train_slowly(log: str, out: str) -> None:
    opened = training.open_table

    def slow(*given: Any, **options: Any) -> Any:
        with Path(log).open("a") as file:
            print("begin", os.environ["RANK"], file=file, flush=True)
            time.sleep(0.3)
            result = opened(*given, **options)
            print("end", os.environ["RANK"], file=file, flush=True)
            return result

    training.open_table = slow
    alexnet.train("digits", out=out, settings={"model.width": 1 / 16, "train.epochs": 1, "train.max_images": 0})


@pytest.mark.long
def test_local_main_downloads_first(tmp_path: Path) -> None:
    together(2, tmp_path / "said", tmp_path / "log", tmp_path / "run", main=train_slowly)
    assert (tmp_path / "log").read_text().splitlines() == ["begin 0", "end 0", "begin 1", "end 1"]


def kill_one(parent: int, number: int) -> None:
    """Kill one of the child processes of a process."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(children[number % len(children)]), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_torchrun_restarts_a_killed_worker(tmp_path: Path, held: dict[str, str]) -> None:
    def command(out: Path) -> list[str]:
        options = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--max-restarts=1"]
        training = ["-m", "alexnet", "train", "digits", "--epochs", "3", *QUICK, "--out", str(out)]
        return ["-m", "torch.distributed.run", *options, *training]

    python(*command(tmp_path / "whole"))
    process = subprocess.Popen([sys.executable, *command(tmp_path / "killed")], stderr=subprocess.PIPE, text=True, env=held)
    assert process.stderr is not None
    message = ""
    for line in process.stderr:
        if line.startswith("epoch 1/3") and "epoch 1/3" not in message:  # the line is repeated if nothing was saved yet
            kill_one(process.pid, 1)
        message += line
    assert process.wait(SECONDS) == 0, message
    assert message.count("batches of up to") == 2, "it began twice"
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_torchrun_restart_after_training_is_done(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(single)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for again in (["digits", "--out", single], ["--resume", single]):
        assert json.loads(run("train", *again, "--json").stdout) == read_json(single / "summary.json")
    assert farthest(weights(single), before) == 0


# What cannot be done


def one_line(message: str) -> str:
    """Return the error of several processes that failed, if it is a single clear line."""
    lines = [line for line in message.splitlines() if line.startswith("alexnet: ")]
    assert len(lines) == 1, message
    assert "Traceback" not in message
    return lines[0]


WRONG: dict[str, tuple[list[str], int, str]] = {
    "towers": (["digits", "--parallel", "towers"], 2, "--variant paper or code2012"),
    "hybrid": (["digits", "--parallel", "hybrid", "--variant", "four-layer"], 2, "hidden dense layers"),
    "compiled": (["digits", "--set", "train.compile=true"], 2, "needs a single process"),
    "batches": (["digits", "--set", "train.batch_size=2"], 3, "raise train.batch_size"),
}


@mostly_long("what", WRONG, "hybrid")
def test_parallel_conflict_is_one_line(what: str, tmp_path: Path) -> None:
    arguments, processes, expected = WRONG[what]
    process = together(processes, tmp_path / "said", "train", *arguments, "--out", tmp_path / "run", code=1)
    assert expected in one_line(process.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_parallel_unknown_dataset_is_one_line(tmp_path: Path) -> None:
    process = python("-m", "alexnet", "train", "nowhere", "--processes", "2", "--out", tmp_path / "run", code=1)
    assert "nowhere" in one_line(process.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_parallel_needs_no_resolvable_host_name(tmp_path: Path) -> None:
    code = (
        "import socket, sys; from alexnet.training.distributed import launch\n"
        "socket.getfqdn = lambda *_: 'no-such-machine.invalid'\n"
        "sys.exit(launch(2, ['train', 'nowhere', '--out', sys.argv[1]], None))\n"
    )
    assert "nowhere" in one_line(python("-c", code, tmp_path / "run", code=1).stderr)


@pytest.mark.parametrize(("device", "advice"), [(None, "there are 2: add --device cpu"), ("cuda:1", "use cuda$")])
def test_each_process_needs_a_gpu(device: str | None, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(AlexNetError, match=advice):
        launch(3, ["train", "digits"], device)


def test_parallel_needs_two_processes(tmp_path: Path) -> None:
    assert "add --processes 2" in error("train", "digits", "--parallel", "hybrid", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@mostly_long("options", [["digits", "--out"], ["--resume"]], ["--resume"])
def test_main_process_error_ends_all_in_one_line(options: list[str], single: Path, tmp_path: Path) -> None:
    assert str(single) in one_line(together(2, tmp_path / "said", "train", *options, single, code=1).stderr)


def leave(rank: str) -> None:
    try:
        with process_group() as group:
            if group.rank == int(rank):
                raise AlexNetError("its disk is full")
            group.sum(1)
    except AlexNetError as error:
        print(f"{error}, {group.rank} knows", flush=True)


@pytest.mark.parametrize("leaver", [0, 1])
def test_error_of_any_process_reaches_all(leaver: int, tmp_path: Path) -> None:
    message = together(2, tmp_path / "said", leaver, main=leave).stdout
    assert all(f"its disk is full, {rank} knows" in message for rank in (0, 1))
