"""Ablation: train with one thing changed, over several seeds; an interrupted study is resumed."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from alexnet.ablation.plan import Plan, read_plan
from alexnet.ablation.results import TrainingResult, read_result, summarise, table
from alexnet.errors import AlexNetError, DivergedError, Interrupted, RunError, error_reason, shell_quote
from alexnet.files import read_json, write_json, write_text
from alexnet.progress import format_duration, say
from alexnet.run import RunFolder
from alexnet.training import train as training
from alexnet.training.budget import EVALUATION_COST, WARM_UP_STEPS
from alexnet.training.lr_finder import LRTrial
from alexnet.training.signals import StopRequest

TIMED_STEPS = 5
STARTUP = 8.0  # seconds of a training outside its steps and evaluations


def ablate(plan: Plan | None, out: Path, device: str | None = None) -> dict[str, Any]:
    """Run the trainings of a study in folder `out` that are not done, write its table and figure, and return its results.

    Arms take turns within each seed, so that an interrupted study has trained all of them alike; the same call resumes it. A
    `plan` of None takes that of the folder.
    """
    plan = _saved_plan(plan, out, device)
    try:
        with StopRequest():
            trainings = _Trainings(plan, out, device)
            scales = trainings.scales()
            for seed in range(plan.seeds):
                for arm, scale in scales.items():
                    trainings.train(arm, seed, scale)
            return _write(plan, trainings, scales)
    except Interrupted as error:
        raise Interrupted(
            f"stopped, everything is saved; resume with: alexnet ablate --out {shell_quote(out)}", error.code
        ) from error


def _saved_plan(plan: Plan | None, out: Path, device: str | None) -> Plan:
    """Return the plan in `out`, saved there if the folder is new; refuse a `plan` that differs from it."""
    path = out / "study.json"
    if path.exists():
        saved = read_plan(path)
        if plan is not None and (key := saved.difference(plan)):
            hint = f"resume it (alexnet ablate --out {shell_quote(out)}) or name another --out"
            raise RunError(f"{out} holds a study of which {key!r} is not what is asked for: {hint}")
        return saved
    if plan is None:
        raise RunError(f"{out} holds no study to resume: start one with --study or --vary")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists and is not empty: name another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write the folder {out}: {error_reason(error)}; name another --out") from error
    if plan.minutes is not None:
        plan = plan.model_copy(update={"epochs": _epochs(plan, plan.minutes, device)})
    write_text(path, plan.model_dump_json(indent=2) + "\n")
    return plan


def _epochs(plan: Plan, minutes: float, device: str | None) -> int:
    """Return the epochs of each training with which all take about `minutes`, by a few timed steps of each arm.

    All arms get the same number of images, whichever is slower; the input is the largest of progressive resizing.
    """
    epoch = overhead = 0.0  # seconds, of a training of the average arm
    for arm in plan.arms:
        trial = LRTrial(plan.recipe_of(arm, 0), device, progress=1.0)
        losses = trial.losses(repeat(1e-6))  # at so low a rate nothing blows up
        for _ in islice(losses, WARM_UP_STEPS):
            pass
        start = time.monotonic()
        steps = sum(1 for _ in islice(losses, TIMED_STEPS))
        train, val, test = (trial.images.get(split, 0) for split in ("train", "val", "test"))
        pace = (time.monotonic() - start) / max(1, steps * min(trial.batch_size, train)) / len(plan.arms)
        epoch += pace * (train + EVALUATION_COST * val)
        overhead += pace * EVALUATION_COST * (val + test)
    overhead += STARTUP
    epochs = max(1, int((minutes * 60 / plan.trainings - overhead) / epoch))
    total = format_duration(plan.trainings * (epochs * epoch + overhead))
    say(f"{plan.trainings} trainings of {epochs} epochs, as that takes about {total}")
    return epochs


class _Trainings:
    """The trainings of a plan, each in a run folder of its own in `out`."""

    def __init__(self, plan: Plan, out: Path, device: str | None) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.number = 0
        self._record = out / "diverged.json"
        self.diverged: dict[str, str] = read_json(self._record) if self._record.exists() else {}  # not trained again

    def scales(self) -> dict[str, float]:
        """Return the factor of each arm's learning rates that is best for it, on a seed of its own.

        Where steps are counted, no factor is tried for longer than the best one took.
        """
        plan, best = self.plan, dict[str, tuple[float, float]]()
        for scale in plan.scales:
            for arm in plan.arms:
                name, counts = f"rate{scale:g}", plan.measure == "steps"
                self.train(arm, plan.seeds, scale, name, math.ceil(best[arm][0]) if counts and arm in best else None)
                result = self.result(arm, name)
                cost = result.epochs if counts else -result.validation
                if result.value is not None and (arm not in best or cost < best[arm][0]):
                    best[arm] = (cost, scale)
        if plan.scales and (missing := [arm for arm in plan.arms if arm not in best]):
            raise AlexNetError(f"{missing[0]}: no rate got there; give it more epochs (--set train.epochs=…) and another --out")
        return {arm: best[arm][1] if arm in best else 1.0 for arm in plan.arms}

    def train(self, arm: str, seed: int, scale: float, name: str = "", epochs: int | None = None) -> None:
        """Train an arm with a seed, for `epochs` at most, or resume it, unless that is done."""
        folder = self.folder(arm, name or str(seed))
        self.number += 1
        if folder.summary.exists() or folder.path.name in self.diverged:
            return
        say(f"training {self.number} of {self.plan.trainings}: {arm}, {name or f'seed {seed}'}")
        recipe, now = self.plan.recipe_of(arm, seed, scale), time.monotonic()
        if epochs is not None:
            recipe = recipe.with_settings({"train.epochs": min(epochs, recipe.train.epochs)})
        try:
            if folder.recipe.exists():
                training.resume(folder.path, self.device, now)
            else:
                training.start(recipe, folder.path, self.device, now)
        except DivergedError as error:
            say(str(error))
            self.diverged[folder.path.name] = str(error)
            write_json(self._record, self.diverged)

    def folder(self, arm: str, name: str) -> RunFolder:
        """Return the run folder of an arm; `name` is the seed, or the rate that is tried."""
        return RunFolder(self.out / f"{re.sub(r'[^0-9A-Za-z.=]+', '-', arm).strip('-')}-{name}")

    def result(self, arm: str, name: str) -> TrainingResult:
        """Return the result of a training."""
        folder = self.folder(arm, name)
        if folder.path.name in self.diverged:
            return TrainingResult(str(folder.path), diverged=self.diverged[folder.path.name])
        return read_result(folder, self.plan.measure, self.plan.split)


def _write(plan: Plan, trainings: _Trainings, scales: Mapping[str, float]) -> dict[str, Any]:
    """Write `results.json`, `table.md`, `ablation.png` and `ablation.svg`, and return the results."""
    from alexnet.ablation.figure import draw  # with matplotlib, a second that `predict` need not wait

    runs = {arm: [trainings.result(arm, str(seed)) for seed in range(plan.seeds)] for arm in plan.arms}
    first = [run.value for run in next(iter(runs.values()))]
    trained = {arm: [run.training for run in runs[arm] if run.training is not None] for arm in plan.arms}
    arms = [
        {
            "arm": arm,
            "first": arm == next(iter(plan.arms)),
            "settings": settings,
            "lr": plan.recipe_of(arm, 0, scales[arm]).optimizer.lr if plan.scales else None,
            "claimed": plan.claimed.get(arm, ""),
            **summarise([run.value for run in runs[arm]], first, ratio=plan.measure == "steps"),
            "training": sum(trained[arm]) / len(trained[arm]) if trained[arm] else None,
            "runs": [asdict(run) for run in runs[arm]],
        }
        for arm, settings in plan.arms.items()
    ]
    results = {
        **plan.model_dump(include={"study", "claim", "source", "measure", "split", "seeds"}),
        "aim": plan.recipe.stop.train_error,
        "epochs": plan.epochs or plan.recipe.train.epochs,
        "arms": arms,
        "how": _method(plan, [run.images for arm in runs.values() for run in arm if run.images]),
        "figures": [str(trainings.out / f"ablation.{kind}") for kind in ("png", "svg")],
    }
    draw(results, [Path(path) for path in results["figures"]])
    write_text(trainings.out / "table.md", table(results))
    write_json(trainings.out / "results.json", results)
    return results


def _method(plan: Plan, images: list[int]) -> str:
    """Describe the measurement; `images` are those of each training."""
    shown = " to ".join(f"{count:,}" for count in dict.fromkeys((min(images), max(images)))) if images else "no"
    rate = "each arm's rate the best of those tried on another seed" if plan.scales else "one rate"
    measured = {
        "accuracy": f"Top-1 is that of the {plan.split} images, differences in points; in training: that of the last epoch, "
        "on images as they are trained on.",
        "steps": "Steps are read between the means of epochs; their mean is geometric, their difference a ratio.",
    }
    return (
        f"{Path(plan.recipe.data.dataset).stem}, recipe {plan.recipe.name}: {shown} images a training, {rate}, {plan.seeds} "
        f"seeds on the same split. {measured[plan.measure]} In brackets 95 % intervals over seeds (Student's t), those of "
        "differences seed by seed."
    )
