"""`choose`: what is trained and kept, when the test set is looked at, and that it resumes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import alexnet
from alexnet.choice import WAYS
from alexnet.choice import choose as module
from alexnet.errors import AlexNetError, DivergedError, Interrupted, RunError
from alexnet.training import train as training
from commands import run as command
from conftest import TINY, mostly_long, stop_after, tell_time_by_steps
from official import one_line

SETTINGS = {**TINY, "train.batch_size": 8, "train.precision": "float32"}


def choose(photos: Path, source: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Choose within a minute, in which a step takes four seconds and all else no time."""
    options: dict[str, Any] = {"minutes": 1.0, "weights": source, "out": out, "settings": SETTINGS, "started": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        now = tell_time_by_steps(patch, 4.0)
        for part in (module, training):
            patch.setattr(part, "time", SimpleNamespace(monotonic=now, strftime=time.strftime))
        return alexnet.choose(photos, **{**options, **changes})


@pytest.fixture(scope="module")
def chosen(photos: Path, trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return choose(photos, trained.path, tmp_path_factory.mktemp("choice") / "run")


def test_the_run_that_validation_prefers_is_an_ordinary_run(chosen: dict[str, Any]) -> None:
    run = alexnet.load(chosen["run"])
    best = max(chosen["tries"], key=lambda tried: (tried["validation"]["top1"], -tried["validation"]["loss"]))
    assert {tried["recipe"] for tried in chosen["tries"]} == set(WAYS)
    assert chosen["kept"] == best["recipe"] == run.recipe.name
    assert run.summary["validation"] == best["validation"]
    assert run.summary["run"] == best["run"] == str(run.path)
    assert run.evaluate(split="test").to_json() == run.summary["test"] == chosen["test"]
    assert run.report().exists()
    kept = json.loads((run.path / "choice.json").read_text(encoding="utf-8"))
    assert [tried["validation"] for tried in kept["tries"]] == [tried["validation"] for tried in chosen["tries"]]


def test_the_time_is_shared(chosen: dict[str, Any]) -> None:
    """The head takes none, so the minute is for the others, which also leave time for their evaluation."""
    seconds = {tried["recipe"]: tried["seconds"] for tried in chosen["tries"]}
    assert seconds["head"] == 0
    assert 16 <= seconds["finetune"] <= 32
    assert 20 <= seconds["fast"] <= 32


def test_the_others_stay_and_never_saw_the_test_set(chosen: dict[str, Any]) -> None:
    for tried in chosen["tries"]:
        if tried["recipe"] != chosen["kept"]:
            other = alexnet.load(tried["run"])
            assert other.path.parent.name == "tries"
            assert other.summary["test"] is None
            assert not (other.path / "report.html").exists()


def test_only_the_kept_run_is_evaluated_on_the_test_set(
    photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    evaluate, from_frozen = training.evaluate_split, training.Trainer.evaluate

    def watched(network: Any, dataset: Any, split: str, *args: Any, **options: Any) -> Any:
        splits.append(split)
        return evaluate(network, dataset, split, *args, **options)

    def trainers(self: training.Trainer, split: str, *args: Any) -> Any:
        assert split != "test", "while there are others to choose from"
        return from_frozen(self, split, *args)

    monkeypatch.setattr(training, "evaluate_split", watched)
    monkeypatch.setattr(training.Trainer, "evaluate", trainers)
    choose(photos, trained.path, tmp_path / "run")
    assert splits == ["test"]


@mostly_long("evaluation", [1, 4], 4)
def test_stopped_choice_goes_on(
    evaluation: int, photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the head is evaluated, or while the network is fine-tuned; what is finished is not trained again."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, "evaluate", evaluation)
        with pytest.raises(Interrupted, match=r"the same command goes on, or: alexnet choose --out"):
            choose(photos, trained.path, out)
    head = out / "tries" / "head" / "model.safetensors"
    before = head.stat().st_mtime_ns if evaluation > 1 else None
    with pytest.raises(RunError, match="holds an unfinished choice between other trainings"):
        choose(photos, trained.path, out, minutes=2.0)
    result = choose(photos, trained.path, out)
    assert len(result["tries"]) == 3
    if before is not None:
        moved = out / "model.safetensors" if result["kept"] == "head" else head
        assert moved.stat().st_mtime_ns == before
    with pytest.raises(RunError, match="already holds a finished run"):
        alexnet.choose(out=out)


def test_killed_while_the_kept_run_is_moved(
    photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Path] = []
    rename = module.rename

    def killed(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == 3:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            choose(photos, trained.path, tmp_path / "run")
    result = choose(photos, trained.path, tmp_path / "run")
    assert alexnet.load(result["run"]).summary["test"] == result["test"]


def test_a_training_that_diverges_is_left_out(
    photos: Path, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = training.start

    def diverging(recipe: Any, *args: Any, **options: Any) -> None:
        if recipe.name == "finetune":
            raise DivergedError("the loss is nan")
        start(recipe, *args, **options)

    monkeypatch.setattr(training, "start", diverging)
    assert {tried["recipe"] for tried in choose(photos, trained.path, tmp_path / "run")["tries"]} == {"head", "fast"}


def test_a_dataset_that_cannot_be_used_leaves_no_folder(trained: alexnet.Run, tmp_path: Path) -> None:
    with pytest.raises(AlexNetError) as caught:
        choose(tmp_path / "nothing", trained.path, tmp_path / "run")
    one_line(caught)
    assert not (tmp_path / "run").exists()


def test_choose_by_the_command_line(photos: Path, trained: alexnet.Run, tmp_path: Path) -> None:
    done = command("choose", "--out", tmp_path / "run", code=1)
    assert "has no choice to resume" in done.stderr
