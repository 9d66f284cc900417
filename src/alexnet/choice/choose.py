"""Train from nothing, fit a head, and fine-tune, within a time for all; keep the run that validation prefers."""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alexnet.choice import WAYS
from alexnet.errors import AlexNetError, DivergedError, Interrupted, RunError, shell_quote
from alexnet.files import read_json, rename, write_text
from alexnet.progress import say
from alexnet.recipe import Recipe
from alexnet.run import RunFolder, create, read_model
from alexnet.training import train as training
from alexnet.training.signals import StopRequest

LEAST = 6.0  # seconds of a training, however little of the time is left


class Plan(BaseModel):
    """`choice.json` in the run folder: the time for all trainings in minutes, their recipes, and once known the one `kept`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    minutes: float
    recipes: dict[str, Recipe]
    kept: str = ""
    tries: list[dict[str, Any]] = []


def choose(plan: Plan | None, out: Path, device: str | None, started: float) -> dict[str, Any]:
    """Train by the recipes of `plan` and keep the best run in `out`; return what was tried, as `summarise` does.

    An unfinished choice in `out` is resumed; `plan` may then be None. The time counts from `started`, a `time.monotonic()`.
    """
    plan = _open(plan, out)
    try:
        with StopRequest():
            if not plan.kept:
                tries = _train(plan, out, device, started)
                best = max(tries, key=lambda tried: (tried["validation"]["top1"], -tried["validation"]["loss"]))
                plan = plan.model_copy(update={"kept": best["recipe"], "tries": tries})
                _write(plan, out)
            _keep(plan, out, device)
    except Interrupted as error:
        message = f"stopped, everything is saved; the same command goes on, or: alexnet choose --out {shell_quote(out)}"
        raise Interrupted(message, error.code) from error
    except AlexNetError:
        if not any(out.glob("tries/*/environment.json")) and not plan.kept:
            shutil.rmtree(out, ignore_errors=True)  # training never began: free the folder's name
        raise
    return summarise(plan, out)


def summarise(plan: Plan, out: Path) -> dict[str, Any]:
    """Return `{"run", "kept", "minutes", "tries": [{"recipe", "run", "validation", "epochs", "seconds"}], "test"}`."""
    folders = {name: out if name == plan.kept else _folder(out, name).path for name in plan.recipes}
    tries = [{**tried, "run": str(folders[tried["recipe"]])} for tried in plan.tries]
    summary = RunFolder(out).read_summary()
    return {"run": str(out), "kept": plan.kept, "minutes": plan.minutes, "tries": tries, "test": summary["test"]}


def _open(plan: Plan | None, out: Path) -> Plan:
    """Return the plan in `out`, saved there if new."""
    path, folder = out / "choice.json", RunFolder(out)
    if path.exists() and folder.report.exists():
        raise RunError(f"{out} already holds a finished run: name another --out")
    if path.exists():
        saved = read_model(Plan, path)
        ours, theirs = (each.model_dump(mode="json", include={"minutes", "recipes"}) for each in (saved, plan or saved))
        if ours != theirs:
            hint = f"resume it (alexnet choose --out {shell_quote(out)}) or name another --out"
            raise RunError(f"{out} holds an unfinished choice between other trainings: {hint}")
        return saved
    if plan is None:
        raise RunError(f"{out} has no choice to resume: name the images, as in alexnet choose photos/")
    create(out)
    _write(plan, out)
    return plan


def _write(plan: Plan, out: Path) -> None:
    write_text(out / "choice.json", plan.model_dump_json(indent=2) + "\n")


def _folder(out: Path, name: str) -> RunFolder:
    return RunFolder(out / "tries" / name)


def _train(plan: Plan, out: Path, device: str | None, started: float) -> list[dict[str, Any]]:
    """Train by each recipe, or resume, without a look at the test set; return the results in order."""
    tries: list[dict[str, Any]] = []
    for number, (name, recipe) in enumerate(plan.recipes.items()):
        folder = _folder(out, name)
        left = plan.minutes * 60 - sum(tried["seconds"] for tried in tries)
        share = max(LEAST, left / (len(plan.recipes) - number)) / 60
        try:
            if not folder.summary.exists():
                say(f"{number + 1} of {len(plan.recipes)}: {WAYS[name]} (recipe {name})")
                if folder.recipe.exists():
                    training.resume(folder.path, device, started, test=False)
                else:
                    training.start(recipe.with_settings({"train.minutes": share}), folder.path, device, started, test=False)
        except DivergedError as error:
            say(str(error))
            continue
        started = time.monotonic()
        summary = read_json(folder.summary)
        tries.append({"recipe": name, **{key: summary[key] for key in ("validation", "epochs", "seconds")}})
    if not tries:
        raise DivergedError(f"no training in {out} succeeded: look at the images (alexnet data check)")
    return tries


def _keep(plan: Plan, out: Path, device: str | None) -> None:
    """Move the run that is kept to `out`, evaluate it on the test set, and write its report."""
    folder = _folder(out, plan.kept).path
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        rename(path, out / path.name)
    shutil.rmtree(folder, ignore_errors=True)
    training.finish(RunFolder(out), device)
