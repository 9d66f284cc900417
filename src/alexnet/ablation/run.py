"""Ablations: the same training with one thing changed, over several seeds; stopped and taken up again like any training."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from alexnet.ablation.plan import Plan, read_plan
from alexnet.ablation.results import Outcome, read_outcome, summarise, table
from alexnet.errors import AlexNetError, DivergedError, Interrupted, RunError, error_reason, shell_quote
from alexnet.files import read_json, write_json, write_text
from alexnet.progress import clock, say
from alexnet.run import RunFolder
from alexnet.training import train as training
from alexnet.training.budget import EVALUATION_COST, WARM_UP_STEPS
from alexnet.training.lr_finder import LRTrial
from alexnet.training.signals import StopRequest

TIMED = 5  # steps by which the pace is measured, after those that warm up
STARTING = 8.0  # seconds that a training takes beside its steps and evaluations


def ablate(plan: Plan | None, out: Path, device: str | None = None) -> dict[str, Any]:
    """Train what is not yet trained of a study in folder `out`, write its table and figure there, and return its results.

    Arms take turns within each seed, so a study that was stopped has compared all of them alike; it is taken up by the same
    call. A `plan` of None takes that of the folder.

    Raises:
        RunError: the folder holds another study, or something else, or cannot be written.
        AlexNetError: whatever keeps an arm from training; `Interrupted` after a signal, with everything saved.
    """
    plan = _agreed(plan, out, device)
    try:
        with StopRequest():
            trainings = _Trainings(plan, out, device)
            scales = trainings.scales()
            for seed in range(plan.seeds):
                for arm, scale in scales.items():
                    trainings.train(arm, seed, scale)
            return _write(plan, trainings, scales)
    except Interrupted as error:
        raise Interrupted(f"stopped, all is saved; go on with: alexnet ablate --out {shell_quote(out)}", error.code) from error


def _agreed(plan: Plan | None, out: Path, device: str | None) -> Plan:
    """Return the plan of the folder, which is made if it is new; `plan` must not ask for another."""
    place = out / "study.json"
    if place.exists():
        found = read_plan(place)
        if plan is not None and (differs := found.difference(plan)):
            way_on = f"go on with it (alexnet ablate --out {shell_quote(out)}) or name another --out"
            raise RunError(f"{out} holds a study of which {differs!r} is not what is asked for: {way_on}")
        return found
    if plan is None:
        raise RunError(f"{out} holds no study to go on with: start one with --study or --vary")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists and is not empty: name another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write the folder {out}: {error_reason(error)}; name another --out") from error
    if plan.minutes is not None:
        plan = plan.model_copy(update={"epochs": _epochs(plan, plan.minutes, device)})
    write_text(place, plan.model_dump_json(indent=2) + "\n")
    return plan


def _epochs(plan: Plan, minutes: float, device: str | None) -> int:
    """Return how many epochs every training gets, so that all take about `minutes`: by a few timed steps of each arm.

    The same number of images for all arms, whichever is slower; the input is the largest that the recipe grows to.
    """
    an_epoch = spent = 0.0  # seconds, of a training of the average arm
    for arm in plan.arms:
        trial = LRTrial(plan.recipe_of(arm, 0), device, progress=1.0)
        losses = trial.losses(repeat(1e-6))  # at so low a rate nothing blows up
        for _ in islice(losses, WARM_UP_STEPS):
            pass
        began = time.monotonic()
        steps = sum(1 for _ in islice(losses, TIMED))
        train, val, test = (trial.images.get(split, 0) for split in ("train", "val", "test"))
        pace = (time.monotonic() - began) / max(1, steps * min(trial.batch, train)) / len(plan.arms)
        an_epoch += pace * (train + EVALUATION_COST * val)
        spent += pace * EVALUATION_COST * (val + test)
    spent += STARTING
    epochs = max(1, int((minutes * 60 / plan.trainings - spent) / an_epoch))
    total = clock(plan.trainings * (epochs * an_epoch + spent))
    say(f"{plan.trainings} trainings of {epochs} epochs, as that takes about {total}")
    return epochs


class _Trainings:
    """The trainings of a plan, each in a run folder of its own in `out`."""

    def __init__(self, plan: Plan, out: Path, device: str | None) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.number = 0
        self._notes = out / "diverged.json"
        self.diverged: dict[str, str] = read_json(self._notes) if self._notes.exists() else {}  # they would again

    def scales(self) -> dict[str, float]:
        """Return for each arm what all its rates are multiplied by: the best for it, on a seed that is not used again.

        Where steps are counted, a rate is not tried for longer than the best one took.
        """
        plan, best = self.plan, dict[str, tuple[float, float]]()
        for scale in plan.scales:
            for arm in plan.arms:
                name, counts = f"rate{scale:g}", plan.measure == "steps"
                self.train(arm, plan.seeds, scale, name, math.ceil(best[arm][0]) if counts and arm in best else None)
                found = self.outcome(arm, name)
                cost = found.epochs if counts else -found.validation
                if found.value is not None and (arm not in best or cost < best[arm][0]):
                    best[arm] = (cost, scale)
        if plan.scales and (missing := [arm for arm in plan.arms if arm not in best]):
            raise AlexNetError(f"{missing[0]}: no rate got there; give it more epochs (--set train.epochs=…) and another --out")
        return {arm: best[arm][1] if arm in best else 1.0 for arm in plan.arms}

    def train(self, arm: str, seed: int, scale: float, name: str = "", epochs: int | None = None) -> None:
        """Train an arm with a seed, or go on with it, unless that is done; for `epochs` at most."""
        folder = self.folder(arm, name or str(seed))
        self.number += 1
        if folder.summary.exists() or folder.path.name in self.diverged:
            return
        say(f"training {self.number} of {self.plan.trainings}: {arm}, {name or f'seed {seed}'}")
        recipe, now = self.plan.recipe_of(arm, seed, scale), time.monotonic()
        if epochs is not None:
            recipe = recipe.with_settings({"train.epochs": min(epochs, recipe.train.epochs)})
        try:
            begun = folder.recipe.exists()
            if begun:
                training.resume(folder.path, self.device, now)
            else:
                training.start(recipe, folder.path, self.device, now)
        except DivergedError as error:
            say(str(error))
            self.diverged[folder.path.name] = str(error)
            write_json(self._notes, self.diverged)

    def folder(self, arm: str, name: str) -> RunFolder:
        """Return the run folder of an arm with a seed, or with a rate that is tried: its `name`."""
        return RunFolder(self.out / f"{re.sub(r'[^0-9A-Za-z.=]+', '-', arm).strip('-')}-{name}")

    def outcome(self, arm: str, name: str) -> Outcome:
        """Return what a training gave."""
        folder = self.folder(arm, name)
        if folder.path.name in self.diverged:
            return Outcome(str(folder.path), diverged=self.diverged[folder.path.name])
        return read_outcome(folder, self.plan.measure, self.plan.split)


def _write(plan: Plan, trainings: _Trainings, scales: Mapping[str, float]) -> dict[str, Any]:
    """Gather the results and write them: `results.json`, `table.md`, `ablation.png`, `ablation.svg`."""
    from alexnet.ablation.figure import draw  # with matplotlib, a second that `predict` need not wait

    runs = {arm: [trainings.outcome(arm, str(seed)) for seed in range(plan.seeds)] for arm in plan.arms}
    first = [run.value for run in next(iter(runs.values()))]
    arms = []
    for number, (arm, settings) in enumerate(plan.arms.items()):
        trained = [run.training for run in runs[arm] if run.training is not None]
        arms.append(
            {
                "arm": arm,
                "first": number == 0,
                "settings": settings,
                "lr": plan.recipe_of(arm, 0, scales[arm]).optimizer.lr if plan.scales else None,
                "claimed": plan.claimed.get(arm, ""),
                **summarise([run.value for run in runs[arm]], first, ratio=plan.measure == "steps"),
                "training": sum(trained) / len(trained) if trained else None,
                "runs": [run.to_json() for run in runs[arm]],
            }
        )
    every = [run for those in runs.values() for run in those]
    found = {
        **plan.model_dump(include={"study", "claim", "source", "measure", "split", "seeds"}),
        "aim": plan.recipe.stop.train_error,
        "epochs": plan.epochs or plan.recipe.train.epochs,
        "arms": arms,
        "how": _how(plan, every),
        "figures": [str(trainings.out / f"ablation.{kind}") for kind in ("png", "svg")],
    }
    draw(found, [Path(path) for path in found["figures"]])
    write_text(trainings.out / "table.md", table(found))
    write_json(trainings.out / "results.json", found)
    return found


def _how(plan: Plan, runs: list[Outcome]) -> str:
    """Say how it was measured."""
    images = [run.images for run in runs if run.images]
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
