"""Training on several processes: whatever they divide, the result is that of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import alexnet
from alexnet.run import read_json
from conftest import metrics
from parallel_steps import CASES, Case

HERE = Path(__file__).parent
COUNTS = (1, 2, 4)
QUICK = [
    *("--set", "model.variant=paper", "--set", "model.width=0.0625", "--set", "model.whiten=false", "--set", "images.input=67"),
    *("--set", "images.enlarge=1", "--set", "optimizer.muon=0", "--set", "optimizer.rate=0.001", "--set", "model.dropout=0.5"),
    *("--set", "train.precision=float32", "--set", "optimizer.rate_factors={}", "--set", "schedule.grow=[]"),
]


def torchrun(processes: int, *arguments: str | Path, restarts: int = 0) -> list[str]:
    """Return the command that runs a script or a module in so many processes."""
    how = [f"--nproc-per-node={processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *how, *map(str, arguments)]


def run(*command: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == expect, done.stderr
    return done


def train(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `alexnet train`."""
    return run(sys.executable, "-m", "alexnet", "train", *arguments, expect=expect)


def only_line(failed: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed command said, if it is a single clear line."""
    lines = [line for line in failed.stderr.splitlines() if line.startswith("alexnet: ")]
    assert len(lines) == 1
    assert "Traceback" not in failed.stderr
    return lines[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two tensors of the same name, as a share of their norm."""
    assert ours.keys() == theirs.keys()
    differences = {name: (ours[name].double() - theirs[name].double()).norm() for name in ours}
    return max(float(d / theirs[name].double().norm().clamp_min(1e-30)) for name, d in differences.items())


def moved(last: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how far tensors have moved."""
    return {name: tensor.double() - first[name].double() for name, tensor in last.items()}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, torch.Tensor]]:
    """Return for each number of processes what `parallel_steps.py` wrote."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    for count in COUNTS:
        place, script = folder / f"{count}.safetensors", HERE / "parallel_steps.py"
        run(*([sys.executable, script, place] if count == 1 else torchrun(count, script, place)))
        found[count] = safetensors.torch.load_file(place)
    return found


@pytest.mark.parametrize(
    ("case", "count"),
    [pytest.param(case, count, id=f"{case.name} {count}") for case in CASES for count in COUNTS[1:] if case.runs_on(count)],
)
def test_losses_and_weights_of_twenty_steps_are_those_of_one_process(
    case: Case, count: int, steps: dict[int, dict[str, torch.Tensor]]
) -> None:
    ours, alone = (
        {name: tensor for name, tensor in steps[some].items() if name.startswith(f"{case.name}/")} for some in (count, 1)
    )
    assert alone[f"{case.name}/losses"].shape == (20,)
    assert farthest(ours, alone) < (1e-9 if case.dtype == torch.float64 else 1e-4)
    if case.dtype == torch.float64:  # of what the weights moved by, too
        first = {name: steps[1].get(f"first {name}", torch.zeros(20)) for name in alone}
        assert farthest(moved(ours, first), moved(alone, first)) < 1e-9


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, to compare the others with."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train("digits", "--epochs", "2", *QUICK, "--out", out)
    return out


@pytest.mark.parametrize("parallel", ["data", "towers", "hybrid"])
def test_a_run_of_two_processes_is_that_of_one_and_is_used_alike(parallel: str, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = train("digits", "--epochs", "2", *QUICK, "--processes", "2", "--parallel", parallel, "--out", out, "--json")
    assert json.loads(done.stdout) == read_json(out / "summary.json")
    assert done.stderr.count("epoch 2/2") == 1, "the first alone speaks"
    assert "2 processes" in done.stderr
    assert read_json(out / "environment.json")["parallel"] == parallel
    assert farthest(weights(out), weights(alone)) < 1e-4
    for ours, theirs in zip(metrics(out), metrics(alone), strict=True):
        for key in ("images", "train_loss", "train_top1", "val_loss", "val_top1"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-4), key
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    assert alexnet.load(out).summary["test"]["top1"] == pytest.approx(alexnet.load(alone).summary["test"]["top1"], abs=0.003)


def test_norms_of_their_own_are_evaluated_as_they_are_saved(tmp_path: Path) -> None:
    out, own = tmp_path / "run", ("--set", "train.synchronised_norm=false", "--set", "model.width=0.0625")
    train("digits", "--epochs", "1", *own, "--set", "train.precision=float32", "--processes", "2", "--out", out)
    run = alexnet.load(out)
    found = run.evaluate(split="val")
    assert found.loss == pytest.approx(run.summary["validation"]["loss"], rel=1e-4)


def stopped(out: Path, *how: str) -> None:
    """Train, and send SIGINT once an epoch is over."""
    command = [sys.executable, "-m", "alexnet", "train", "digits", "--epochs", "2", *QUICK, *how, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("epoch 1/2"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, said
    assert said.count("all is saved; go on with: alexnet train --resume") == 1
    assert (out / "checkpoint" / "last").exists()


@pytest.mark.parametrize(("first", "then"), [(4, 1), (1, 4)])
def test_a_run_that_was_stopped_goes_on_with_another_number_of_processes(
    first: int, then: int, alone: Path, tmp_path: Path
) -> None:
    ways = {1: (), 4: ("--processes", "4", "--parallel", "hybrid")}
    out = tmp_path / "run"
    stopped(out, *ways[first])
    train("--resume", out, *ways[then])
    assert farthest(weights(out), weights(alone)) < 1e-4


TWICE = """
from alexnet.training import processes

for _ in range(3):
    with processes.joined() as group:
        print(group.sum(group.rank + 1.0))
"""


def test_a_script_trains_more_than_once(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    assert run(*torchrun(4, tmp_path / "twice.py")).stdout.replace("\n", "") == "[10.0]" * 12  # lines of four processes mix


IN_TURN = """
import os, sys, time
import alexnet
from alexnet.training import job

opened = job.open_table

def slow(*given):
    with open(sys.argv[1], "a") as log:
        print("begin", os.environ["RANK"], file=log, flush=True)
        time.sleep(1)
        found = opened(*given)
        print("end", os.environ["RANK"], file=log, flush=True)
        return found

job.open_table = slow
settings = {"model.width": 1 / 16, "train.epochs": 1, "train.max_images": 0}
alexnet.train("digits", out=sys.argv[2], settings=settings)
"""


def test_one_process_of_a_machine_downloads_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(IN_TURN)
    run(*torchrun(2, tmp_path / "slow.py", tmp_path / "log", tmp_path / "run"))
    assert (tmp_path / "log").read_text().splitlines() == ["begin 0", "end 0", "begin 1", "end 1"]


def kill_one(parent: int, number: int) -> None:
    """Kill one of the processes that a process has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(children[number % len(children)]), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_a_killed_worker_costs_nothing_under_torchrun(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return torchrun(2, "-m", "alexnet", "train", "digits", "--epochs", "3", *QUICK, "--out", out, restarts=1)

    run(*command(tmp_path / "whole"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if line.startswith("epoch 1/3") and "epoch 1/3" not in said:  # it comes again, if no checkpoint was written yet
            kill_one(process.pid, 1)
        said += line
    assert process.wait(120) == 0, said
    assert said.count("batches of up to") == 2, "it began twice"
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_worker_killed_when_all_is_done_costs_nothing_either(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(alone)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for again in (["digits", "--out", alone], ["--resume", alone]):
        assert json.loads(train(*again, "--json").stdout) == read_json(alone / "summary.json")
    assert farthest(weights(alone), before) == 0


WRONG: dict[str, tuple[Callable[[], list[str]], str]] = {
    "towers": (lambda: ["--processes", "2", "--parallel", "towers"], "--variant paper or code2012"),
    "hybrid": (lambda: ["--processes", "2", "--parallel", "hybrid", "--variant", "four-layer"], "hidden dense layers"),
    "nobody": (lambda: ["--parallel", "hybrid"], "add --processes 2"),
    "batches": (lambda: ["--processes", "3", "--set", "train.batch=2"], "raise train.batch"),
    "no data": (lambda: ["nowhere", "--processes", "2"], "nowhere"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_divided_is_said_once(what: str, tmp_path: Path) -> None:
    arguments, expected = WRONG[what]
    assert expected in only_line(train(*arguments(), "--out", tmp_path / "run", expect=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", [["digits", "--out"], ["--resume"]])
def test_what_only_the_first_can_find_wrong_ends_all_in_one_line(way: list[str], alone: Path) -> None:
    assert str(alone) in only_line(train(*way, alone, "--processes", "2", expect=1))


LEAVES = """
import sys
from alexnet.errors import AlexNetError
from alexnet.training.processes import joined

try:
    with joined() as group:
        if group.rank == int(sys.argv[1]):
            raise AlexNetError("its disk is full")
        group.sum(1)
except AlexNetError as error:
    print(f"{error}, {group.rank} knows", flush=True)
"""


@pytest.mark.parametrize("who", [0, 1])
def test_whoever_leaves_with_a_reason_all_know_it(who: int, tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    said = run(*torchrun(2, script, str(who))).stdout
    assert all(f"its disk is full, {rank} knows" in said for rank in (0, 1))
