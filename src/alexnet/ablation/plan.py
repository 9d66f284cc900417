"""The plan of a study: its arms, the recipe that they share, seeds and length; `study.json` in its folder."""

import re
import time
from collections.abc import Mapping, Sequence
from itertools import islice, product, repeat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alexnet.ablation import STUDIES
from alexnet.errors import AlexNetError, DivergedError, RecipeError, RunError, counted, shell_quote, suggest
from alexnet.files import write_text
from alexnet.progress import format_duration, say
from alexnet.recipe import Recipe, load, parse_settings
from alexnet.run import create, read_model
from alexnet.training.budget import EVALUATION_COST, WARM_UP_STEPS
from alexnet.training.lr_finder import LRTrial

TIMED_STEPS = 5
STARTUP = 8.0  # seconds of a training outside its steps and evaluations


class Plan(BaseModel):
    """A study: a table of `studies.toml`, or `study.json` in its folder.

    `arms` are recipe settings by the name of the arm, `claimed` what the source says of an arm. `measure` is the accuracy on
    `split` at the end, or the number of steps to the training error `stop.train_error`. With `scales`, each arm has its own
    best learning rate: the recipe's times one of these factors, chosen on another seed. `settings`, those of all arms, become
    part of the recipe. `epochs` of each training are those that `minutes` for all trainings allow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    study: str
    claim: str = ""
    source: str = ""
    claimed: dict[str, str] = {}
    measure: Literal["accuracy", "steps"] = "accuracy"
    split: Literal["validation", "test"] = "test"
    scales: tuple[float, ...] = ()
    seeds: int = 3
    minutes: float | None = None
    epochs: int | None = None
    recipe: Annotated[Recipe, BeforeValidator(lambda recipe: load(recipe) if isinstance(recipe, str) else recipe)]
    settings: Annotated[dict[str, Any], Field(exclude=True)] = {}
    arms: dict[str, dict[str, Any]]

    @property
    def trainings(self) -> int:
        """Number of trainings, with those that try learning rates."""
        return len(self.arms) * (self.seeds + len(self.scales))

    def recipe_of(self, arm: str, seed: int, scale: float = 1.0) -> Recipe:
        """Return the recipe of a training: the arm's, with all learning rates times `scale`."""
        length = {} if self.epochs is None else {"train.epochs": self.epochs, "train.max_images": 0}
        recipe = self.recipe.with_settings({**length, **self.arms[arm]})
        rates = recipe.scale_lr(scale) if self.scales else {}
        return recipe.with_settings({**rates, "train.seed": recipe.train.seed + seed})


def find_study(name: str) -> Plan:
    """Return a study of `studies.toml`."""
    if name not in STUDIES:
        raise AlexNetError(f"no study {name!r}: {suggest(name, STUDIES)}")
    return Plan(study=name, **{"recipe": load("fast"), **STUDIES[name]})


def vary_settings(varied: Sequence[str]) -> Plan:
    """Return a study with an arm for each combination of values, given as `optimizer.lr=0.01,0.001`."""
    pairs = (text.partition("=") for text in varied)  # values are separated by commas outside brackets
    choices = [[f"{key}={value.strip()}" for value in re.split(r",(?![^\[]*\])", values)] for key, _, values in pairs]
    arms = {", ".join(texts): parse_settings(texts) for texts in product(*choices)}
    if len(arms) < 2:
        raise RecipeError(f"--vary {' '.join(varied)}: give two values or more, as in optimizer.lr=0.01,0.001")
    # Accuracy is measured on validation images, as the best arm is then chosen.
    return Plan(study="vary", split="validation", recipe=load("fast"), arms=arms)


def make_plan(study: Plan, recipe: str | None, settings: Mapping[str, Any], seeds: int, minutes: float | None) -> Plan:
    """Return a study with its seeds and length, and with `settings` in its recipe; the recipes of all arms are checked."""
    if taken := sorted({key for arm in study.arms.values() for key in arm} & set(settings)):
        raise RecipeError(f"--set {taken[0]}: this study varies it, so it cannot be the same in all arms")
    base = (load(recipe) if recipe else study.recipe).with_settings({**study.settings, **settings}).with_absolute_dataset()
    if minutes is not None and base.train.minutes is not None:
        raise RecipeError("train.minutes is for each training and --minutes for the whole study: give one of them")
    plan = study.model_copy(update={"recipe": base, "settings": {}, "seeds": seeds, "minutes": minutes})
    for arm in plan.arms:
        plan.recipe_of(arm, 0)
    return plan


def open_plan(plan: Plan | None, out: Path, device: str | None) -> Plan:
    """Return the plan in `out`, saved there if new; raise an error if it differs in anything but the images' folder."""
    path = out / "study.json"
    if path.exists():
        saved = read_model(Plan, path)
        ignored: Any = {"epochs": True, "recipe": {"data": {"root", "workers"}}}
        ours, theirs = (each.model_dump(mode="json", exclude=ignored) for each in (saved, plan or saved))
        if differing := [key for key in ours if ours[key] != theirs[key]]:
            hint = f"resume it (alexnet ablate --out {shell_quote(out)}) or name another --out"
            raise RunError(f"{out} holds a study with another {differing[0]!r}: {hint}")
        return saved
    if plan is None:
        raise RunError(f"{out} has no study to resume: start one with --study or --vary")
    create(out)
    if plan.minutes is not None:
        plan = plan.model_copy(update={"epochs": _epochs(plan, plan.minutes, device)})
    write_text(path, plan.model_dump_json(indent=2) + "\n")
    return plan


def _epochs(plan: Plan, minutes: float, device: str | None) -> int:
    """Time a few steps; return the epochs of each training, the same for all, so that all take about `minutes` together."""
    epoch, overhead = 0.0, STARTUP  # seconds, for a training of the average arm
    for arm in plan.arms:
        trial = LRTrial(plan.recipe_of(arm, 0), device, progress=1.0)  # with the largest input
        steps = islice(trial.losses(repeat(0.0)), WARM_UP_STEPS, WARM_UP_STEPS + TIMED_STEPS + 1)
        times = [time.monotonic() for _ in steps]
        if len(times) < 2:
            raise DivergedError(f"{arm}: the loss is not finite, even before training")
        train, val, test = (trial.images.get(split, 0) for split in ("train", "val", "test"))
        pace = (times[-1] - times[0]) / (len(times) - 1) / min(trial.batch_size, train) / len(plan.arms)
        epoch += pace * (train + EVALUATION_COST * val)
        overhead += pace * EVALUATION_COST * (val + test)
    epochs = max(1, int((minutes * 60 / plan.trainings - overhead) / epoch))
    total = format_duration(plan.trainings * (epochs * epoch + overhead))
    say(f"{counted(plan.trainings, 'training')} of {counted(epochs, 'epoch')}, which take about {total}")
    return epochs
