"""Runs that differ in their seed alone, as one row: means over seeds, and differences of means, by Student's t."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alexnet.recipe import MACHINE_KEYS, Recipe, flatten_keys

SEED = "train.seed"
LEVEL = 0.975  # two-sided intervals of 95 %


@dataclass(frozen=True)
class Difference:
    """The mean of a row minus that of a first one, over seeds.

    Attributes:
        values: the difference, and its 95 % interval.
        p: p-value of a two-sided t-test.
        how: `paired` by seed, if both rows have the same seeds, else `welch`.
    """

    values: list[float]
    p: float
    how: Literal["paired", "welch"]


def group(recipes: Sequence[Recipe]) -> list[list[int]]:
    """Return the positions of recipes that differ in nothing but the seed, and in what depends on the machine."""
    groups: dict[str, list[int]] = {}
    for position, recipe in enumerate(recipes):
        keys = flatten_keys(recipe.model_dump(mode="json"))
        kept = {key: value for key, value in keys.items() if key not in (*MACHINE_KEYS, SEED)}
        groups.setdefault(json.dumps(kept, sort_keys=True), []).append(position)
    return list(groups.values())


def mean_interval(values: Sequence[float]) -> list[float]:
    """Return the mean of accuracies of two seeds or more, and its 95 % interval."""
    mean, half = float(np.mean(values)), _half(_variance(values), len(values) - 1)
    return [mean, max(0.0, mean - half), min(1.0, mean + half)]


def difference(values: Mapping[int, float], first: Mapping[int, float]) -> Difference | None:
    """Compare accuracies by seed; None if a row has one seed, or if no seed differs, so that nothing is known of the spread."""
    if min(len(values), len(first)) < 2:
        return None
    mean = float(np.mean(list(values.values())) - np.mean(list(first.values())))
    if values.keys() == first.keys():
        how: Literal["paired", "welch"] = "paired"
        variance, freedom = _variance([values[seed] - first[seed] for seed in values]), len(values) - 1.0
    else:
        how, parts = "welch", [(_variance(list(row.values())), len(row) - 1) for row in (values, first)]
        variance = sum(part for part, _ in parts)
        freedom = variance**2 / sum(part**2 / free for part, free in parts) if variance else 1.0
    if not variance:
        return None
    from scipy.special import stdtr  # slow to import

    half = _half(variance, freedom)
    p = 2 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance)))
    return Difference([mean, max(-1.0, mean - half), min(1.0, mean + half)], p, how)


def _variance(values: Sequence[float]) -> float:
    """Return the variance of a mean; 0 for values that differ by rounding alone."""
    variance = float(np.var(values, ddof=1)) / len(values)
    return variance if variance > 1e-24 else 0.0


def _half(variance: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, LEVEL)) * math.sqrt(variance)


def merge(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the rows of runs with these seeds as one, with the means of what is measured."""
    values = [row["top1"] for row in rows]
    mean, *interval = mean_interval(values) if len(rows) > 1 else (values[0], *rows[0]["top1_interval"])
    return {
        "runs": [row["run"] for row in rows],
        "seeds": list(seeds),
        **{key: rows[0][key] for key in ("recipe", "variant", "parameters", "images")},
        "values": values,
        "top1": mean,
        "top1_interval": list(interval),
        "top1_range": [min(values), max(values)],
        **{key: float(np.mean([row[key] for row in rows])) for key in ("loss", "ece", "epochs", "seconds")},
    }
