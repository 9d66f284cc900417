"""Results of a study: means with their confidence intervals, and a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from alexnet.data.batches import epoch_bounds
from alexnet.errors import RunError
from alexnet.files import read_json
from alexnet.run import RunFolder, read_metrics, read_recipe

Numbers = Sequence[float | None]  # one per seed; None: diverged, or the aim was not reached
Interval = tuple[float, float]
WIDTH = 128  # characters in a line of the table's text


@dataclass(frozen=True)
class TrainingResult:
    """Result of one training of an arm.

    `value` is what the study measures, None if the training diverged or did not reach the aim; `epochs` are those it took.
    `training` is the top-1 of the last epoch, `curve` the training error by epochs done.
    """

    run: str
    value: float | None = None
    epochs: float = 0.0
    images: int = 0
    seconds: float = 0.0
    validation: float = 0.0
    training: float | None = None
    curve: Sequence[tuple[float, float]] = ()
    diverged: str = ""


def read_result(folder: RunFolder, measure: str, split: str) -> TrainingResult:
    """Return the result of a finished training: the accuracy on `split` (else on validation images), or the steps."""
    summary, recipe, rows = read_json(folder.summary), read_recipe(folder), read_metrics(folder, ("images", "train_top1"))
    try:
        validation = summary["validation"]
        # An epoch's error belongs to its middle; before all of them it is that of a guess.
        curve = [(0.0, 1 - 1 / len(validation["per_class"]))]
        curve += [(epoch + 0.5, 1 - row["train_top1"]) for epoch, row in enumerate(rows)]
        result = TrainingResult(
            run=str(folder.path),
            value=(summary[split] or validation)["top1"],
            epochs=float(len(rows)),
            images=int(sum(row["images"] for row in rows)),
            seconds=float(summary["seconds"]),
            validation=validation["top1"],
            training=rows[-1]["train_top1"],
            curve=curve,
        )
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder.summary} or metrics.csv beside it is damaged: remove {folder.path}, and it is trained anew"
        ) from error
    if measure == "accuracy":
        return result
    epochs = _crossing(curve, recipe.stop.train_error)
    steps = len(epoch_bounds(int(rows[0]["images"]), recipe.train))
    return replace(result, value=None if epochs is None else epochs * steps, epochs=epochs or result.epochs)


def _crossing(curve: Sequence[tuple[float, float]], aim: float) -> float | None:
    """Return after how many epochs the error first is at `aim`, on straight lines between points; None: it never is."""
    for (left, before), (right, after) in pairwise(curve):
        if before <= aim:
            return left
        if after <= aim:
            return left + (before - aim) / (before - after) * (right - left)
    return None


def interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Return the mean of `values` and its 95 % interval (Student's t); None for a single value, which has none."""
    middle = fmean(values)
    if len(values) < 2:
        return middle, None
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return middle, (middle - half, middle + half)


def summarise(values: Numbers, first: Numbers, *, ratio: bool) -> dict[str, Any]:
    """Return an arm's `mean` and its `difference` to the `first` arm, seed by seed, each with its interval.

    With `ratio`, means are geometric and the difference is a ratio. Where a value is missing, both are None.
    """
    pairs = zip(values, first, strict=True)
    moves = [None if a is None or b is None else a / b if ratio else a - b for a, b in pairs]
    return {
        "values": list(values),
        **_mean_and_interval("mean", values, ratio=ratio, least=0.0),
        **_mean_and_interval("difference", moves, ratio=ratio, least=-1.0),
    }


def _mean_and_interval(name: str, values: Numbers, *, ratio: bool, least: float) -> dict[str, Any]:
    known = [math.log(value) if ratio else value for value in values if value is not None]
    if len(known) < len(values):
        return {name: None, f"{name}_interval": None}
    middle, around = interval(known)
    back: Callable[[float], float] = math.exp if ratio else lambda edge: min(1.0, max(least, edge))  # accuracies: 0 to 1
    return {name: back(middle), f"{name}_interval": None if around is None else [back(edge) for edge in around]}


# Text


def table(study: Mapping[str, Any]) -> str:
    """Return the results as Markdown: the claim, a row per arm, the method."""
    head = ["arm", "claimed", title(study), "seeds", "to the first arm", "in training"]
    rows = [head, ["---"] * len(head), *(_row(arm, study) for arm in study["arms"])]
    if not study["claim"]:
        rows = [[row[0], *row[2:]] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    claimed = [*textwrap.wrap(claim(study), WIDTH), ""] if study["claim"] else []
    return "\n".join([*claimed, *lines, "", *textwrap.wrap(study["how"], WIDTH), ""])


def claim(study: Mapping[str, Any]) -> str:
    """Return the claim with its source; "" for settings that were varied at will."""
    return f"Claimed: {study['claim']} ({study['source']})." if study["claim"] else ""


def title(study: Mapping[str, Any]) -> str:
    """Return what was measured."""
    return f"{study['split']} top-1" if study["measure"] == "accuracy" else f"steps to {100 * study['aim']:g} % training error"


def mean(arm: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Return an arm's mean with its interval, as `79.3 % (78.1 to 80.5)`, or why there is none."""
    if study["measure"] == "steps":
        return _with_interval(arm, "mean", "{:,.0f}") or "not reached"
    return _with_interval(arm, "mean", "{:.1f}", " %", 100) or "diverged"


def difference(arm: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Return the difference of an arm to the first, with its interval; "" for the first, and where a value is missing."""
    if arm["first"]:
        return ""
    if study["measure"] == "steps":
        return _with_interval(arm, "difference", "{:.2f}", " times")
    return _with_interval(arm, "difference", "{:+.1f}", " points", 100)


def _row(arm: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    rate = f" (lr {arm['lr']:g})" if arm["lr"] is not None else ""
    training = "" if arm["training"] is None else f"{arm['training']:.1%}"
    each = [{"mean": value, "mean_interval": None} for value in arm["values"]]
    seeds = ", ".join(mean(one, study).removesuffix(" %") for one in each)
    return [f"{arm['arm']}{rate}", arm["claimed"], mean(arm, study), seeds, difference(arm, study), training.replace("%", " %")]


def _with_interval(arm: Mapping[str, Any], name: str, form: str, unit: str = "", scale: float = 1.0) -> str:
    if arm[name] is None:
        return ""
    around = [form.format(scale * edge) for edge in arm[f"{name}_interval"] or ()]
    return form.format(scale * arm[name]) + unit + (f" ({' to '.join(around)})" if around else "")
