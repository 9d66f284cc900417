"""Train a network for each fold, one after the other, and put the predictions of all folds together."""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from alexnet.data.dataset import Dataset
from alexnet.errors import AlexNetError, Interrupted, RunError, shell_quote
from alexnet.files import read_json, write_json, write_text
from alexnet.folds.predictions import Predictions
from alexnet.inference.evaluate import Evaluation
from alexnet.inference.metrics import confusion, cross_entropy, per_class, top_k, wilson_interval
from alexnet.progress import say
from alexnet.recipe import Recipe
from alexnet.run import RunFolder, create, read_model, read_recipe
from alexnet.training import train as training
from alexnet.training.pace import settings_by_pace
from alexnet.training.signals import StopRequest

LEAST = 6.0  # seconds of a training, however little of the time is left


class Plan(BaseModel):
    """`folds.json` in the folder: the number of folds, and the recipe of each training; its `minutes` are for all together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    folds: int
    recipe: Recipe


class FoldsFolder:
    """Paths of the files in the folder of a cross-validation, `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "folds.json"
        self.csv = path / "out-of-fold.csv"
        self.arrays = path / "out-of-fold.npz"
        self.results = path / "out-of-fold.json"  # what `train --folds --json` prints; exists once all folds are trained

    def fold(self, number: int) -> RunFolder:
        """Return the run folder of a fold."""
        return RunFolder(self.path / f"fold-{number}")

    def held_out(self, number: int) -> Path:
        """Return the archive of a fold's predictions."""
        return self.fold(number).path / "held-out.npz"


def cross_validate(plan: Plan, out: Path, device: str | None, started: float) -> dict[str, Any]:
    """Train a network for each fold of `plan` and return the results, which are written to `out`.

    Unfinished folds in `out` are resumed. The time counts from `started`, a `time.monotonic()`.
    """
    folder = FoldsFolder(out)
    _open(plan, folder)
    try:
        with StopRequest():
            parts = _train(plan, folder, device, started)
            return _join(folder, parts)
    except Interrupted as error:
        raise Interrupted("stopped, everything is saved; the same command goes on", error.code) from error
    except AlexNetError:
        if not any(out.glob("fold-*/environment.json")):
            shutil.rmtree(out, ignore_errors=True)  # training never began: free the folder's name
        raise


def _open(plan: Plan, folder: FoldsFolder) -> None:
    """Save the plan, or check that the folder has the same one."""
    path = folder.path
    if folder.results.exists():
        raise RunError(f"{path} already holds finished folds: name another --out (alexnet data doubts {shell_quote(path)})")
    if not folder.plan.exists():
        create(path)
        write_text(folder.plan, plan.model_dump_json(indent=2) + "\n")
    elif read_model(Plan, folder.plan) != plan:
        raise RunError(f"{path} holds unfinished folds of another training: repeat its command, or name another --out")


def _train(plan: Plan, folder: FoldsFolder, device: str | None, started: float) -> list[Predictions]:
    """Train without each fold in turn, or resume; return the predictions of each."""
    parts: list[Predictions] = []
    spent = 0.0
    for number in range(1, plan.folds + 1):
        run, path = folder.fold(number), folder.held_out(number)

        def take(dataset: Dataset, evaluation: Evaluation, number: int = number, path: Path = path) -> None:
            Predictions.of(dataset, evaluation, number).save(path)

        if not run.summary.exists():
            say(f"fold {number} of {plan.folds}")
            if run.recipe.exists():
                training.resume(run.path, device, started, take=take)
            else:
                recipe = _recipe(plan, folder, number, spent)
                training.start(recipe, run.path, device, started, take=take)
        started = time.monotonic()
        spent += read_json(run.summary)["seconds"]
        parts.append(Predictions.load(path))
        if parts[-1].dataset != parts[0].dataset:
            raise RunError(
                f"the images have changed since fold 1 was trained: begin anew with another --out than {folder.path}"
            )
    return parts


def _recipe(plan: Plan, folder: FoldsFolder, number: int, spent: float) -> Recipe:
    """Return the recipe of a fold: its share of the time that is left, settings as of the first, no weights of epochs."""
    changes: dict[str, Any] = {"data.folds": plan.folds, "data.fold": number, "train.save_epochs": "", "train.save_steps": ()}
    if minutes := plan.recipe.train.minutes:
        changes["train.minutes"] = max(LEAST, (minutes * 60 - spent) / (plan.folds - number + 1)) / 60
        if number > 1:  # another measurement of the pace may give others
            changes |= settings_by_pace(read_recipe(folder.fold(1)))
    return plan.recipe.with_settings(changes)


def _join(folder: FoldsFolder, parts: list[Predictions]) -> dict[str, Any]:
    """Write the predictions of all folds, and return their metrics."""
    whole = Predictions.join(parts)
    whole.save(folder.arrays)
    whole.write_csv(folder.csv)
    summaries = [read_json(folder.fold(number).summary) for number in range(1, len(parts) + 1)]
    folds = [
        {"fold": number, **_metrics(part), "validation_top1": summary["validation"]["top1"], "seconds": summary["seconds"]}
        for number, (part, summary) in enumerate(zip(parts, summaries, strict=True), 1)
    ]
    counts = confusion(whole.predicted, whole.targets, len(whole.labels))
    results = {
        "run": str(folder.path),
        "recipe": summaries[0]["recipe"],
        **_metrics(whole),
        "folds": folds,
        "per_class": dict(zip(whole.labels, per_class(counts), strict=True)),
        "seconds": sum(summary["seconds"] for summary in summaries),
        "skipped": summaries[0]["skipped"],
        "files": {"csv": str(folder.csv), "arrays": str(folder.arrays)},
    }
    write_json(folder.results, results)
    return results


def _metrics(predictions: Predictions) -> dict[str, Any]:
    logits, targets = np.log(np.maximum(predictions.probabilities, 1e-30)), predictions.targets
    top1 = top_k(logits, targets, 1)
    interval = list(wilson_interval(top1, len(targets)))
    return {"images": len(targets), "top1": top1, "top1_interval": interval, "loss": cross_entropy(logits, targets)}
