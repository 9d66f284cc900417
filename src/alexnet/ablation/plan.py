"""The plan of a study: its arms, seeds and budget, saved beside its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alexnet.ablation.studies import STUDIES, Study
from alexnet.errors import AlexNetError, RecipeError, RunError, suggest
from alexnet.recipe import Recipe, parse_settings


class Plan(BaseModel):
    """A study to train: `study.json` in its folder.

    `recipe` is shared by all arms, `arms` are the settings that differ, by name. Accuracy is measured on `split`. With
    `minutes`, `epochs` is such that the whole study takes about as long. Other fields are those of `Study`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    study: str
    claim: str = ""
    source: str = ""
    claimed: dict[str, str] = {}
    measure: Literal["accuracy", "steps"] = "accuracy"
    split: Literal["validation", "test"] = "validation"
    scales: tuple[float, ...] = ()
    seeds: int
    minutes: float | None = None
    epochs: int | None = None
    recipe: Recipe
    arms: dict[str, dict[str, Any]]

    @property
    def trainings(self) -> int:
        """Number of trainings; those that look for a rate may be short."""
        return len(self.arms) * (self.seeds + len(self.scales))

    def recipe_of(self, arm: str, seed: int, scale: float = 1.0) -> Recipe:
        """Return the recipe of a training: the arm's, with all learning rates times `scale`."""
        length = {} if self.epochs is None else {"train.epochs": self.epochs, "train.max_images": 0}
        recipe = self.recipe.with_settings({**length, **self.arms[arm]})
        rates = recipe.scale_lr(scale) if self.scales else {}
        return recipe.with_settings({**rates, "train.seed": recipe.train.seed + seed})

    def difference(self, other: Plan) -> str:
        """Return the first field that differs in `other`, "" if none; the images' folder and the epochs of `minutes` may."""
        ignored: Any = {"epochs": True, "recipe": {"data": {"root", "workers"}}}
        ours, theirs = (json.loads(plan.model_dump_json(exclude=ignored)) for plan in (self, other))
        return next((key for key in ours if ours[key] != theirs[key]), "")


def find_study(name: str) -> Study:
    """Return a study by name; raises AlexNetError if there is none."""
    if name not in STUDIES:
        raise AlexNetError(f"no study {name!r}: {suggest(name, STUDIES)}")
    return STUDIES[name]


def plan_study(study: Study, recipe: Recipe, settings: Mapping[str, Any], *, seeds: int, minutes: float | None = None) -> Plan:
    """Plan a study with `recipe`, and `settings` in all arms; accuracy is measured on test images, if there are any."""
    varied = {key for arm in study.arms.values() for key in arm}
    if taken := sorted(varied & set(settings)):
        raise RecipeError(f"--set {taken[0]}: the study {study.name} varies it, so it cannot be the same in all arms")
    fields = {name: getattr(study, name) for name in ("claim", "source", "claimed", "measure", "scales", "arms")}
    recipe = recipe.with_settings({**study.settings, **settings})
    return _checked(Plan(study=study.name, split="test", seeds=seeds, minutes=minutes, recipe=recipe, **fields))


def plan_variation(
    varied: Sequence[str], recipe: Recipe, settings: Mapping[str, Any], *, seeds: int, minutes: float | None = None
) -> Plan:
    """Plan a training for every combination of `varied`, such as `optimizer.lr=0.01,0.001`.

    Accuracy is measured on validation images, as the best arm is then chosen.
    """
    choices = [[parse_settings([f"{key}={value}"]) for value in values] for key, values in map(_values, varied)]
    arms = [{key: value for choice in chosen for key, value in choice.items()} for chosen in product(*choices)]
    named = {", ".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in arm.items()): arm for arm in arms}
    if len(named) < 2:
        raise RecipeError(f"--vary {' '.join(varied)}: give two values or more, as in optimizer.lr=0.01,0.001")
    return _checked(Plan(study="vary", seeds=seeds, minutes=minutes, recipe=recipe.with_settings(settings), arms=named))


def _values(text: str) -> tuple[str, list[str]]:
    """`model.pool=[3,2],[2,2]` -> ("model.pool", ["[3,2]", "[2,2]"])."""
    key, _, values = text.partition("=")
    return key.strip(), re.split(r",(?![^\[]*\])", values)


def _checked(plan: Plan) -> Plan:
    """Return the plan with absolute paths, after checking the settings of its arms."""
    plan = plan.model_copy(update={"recipe": plan.recipe.with_absolute_dataset()})
    if plan.minutes is not None and plan.recipe.train.minutes is not None:
        raise RecipeError("train.minutes is for each training and --minutes for the whole study: give one of them")
    for arm in plan.arms:
        plan.recipe_of(arm, 0)
    return plan


def read_plan(path: Path) -> Plan:
    """Return the plan in a `study.json`."""
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged, or another version of alexnet wrote it: name another --out") from error
