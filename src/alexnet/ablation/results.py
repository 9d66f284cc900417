"""What the trainings of a study gave: means with their intervals, and a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from alexnet.data.batches import epoch_bounds
from alexnet.errors import RunError
from alexnet.files import read_json
from alexnet.run import RunFolder, read_metrics, read_recipe

Numbers = Sequence[float | None]  # a figure for each seed; None: diverged, or the aim was not reached
Interval = tuple[float, float]
WIDTH = 128  # characters in a line of the table's text


@dataclass(frozen=True)
class Outcome:
    """What one training gave.

    `value` is what the study measures, None if it diverged or did not get there; `epochs` are those that this took. `training`
    is the top-1 of the last epoch, `curve` the training error by epochs done.
    """

    run: str
    value: float | None = None
    epochs: float = 0.0
    images: int = 0
    seconds: float = 0.0
    validation: float = 0.0
    training: float | None = None
    curve: Sequence[tuple[float, float]] = field(default=())
    diverged: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def read_outcome(folder: RunFolder, measure: str, split: str) -> Outcome:
    """Return what a finished training gave: the accuracy on a split (`validation` where there is no such), or the steps.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    summary, recipe, rows = read_json(folder.summary), read_recipe(folder), read_metrics(folder, ("images", "train_top1"))
    try:
        validation = summary["validation"]
        accuracy = (summary[split] or validation)["top1"]
        # An epoch's error belongs to its middle; before all of them it is that of a guess.
        curve = [(0.0, 1 - 1 / len(validation["per_class"]))]
        curve += [(epoch + 0.5, 1 - row["train_top1"]) for epoch, row in enumerate(rows)]
        found: dict[str, Any] = {
            "images": int(sum(row["images"] for row in rows)),
            "seconds": float(summary["seconds"]),
            "curve": curve,
        }
        found |= {"validation": validation["top1"], "training": rows[-1]["train_top1"]}
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder.summary} or metrics.csv beside it is damaged: remove {folder.path}, and it is trained anew"
        ) from error
    if measure == "accuracy":
        return Outcome(str(folder.path), accuracy, float(len(rows)), **found)
    epochs = _crossing(curve, recipe.stop.train_error)
    steps = len(epoch_bounds(int(rows[0]["images"]), recipe.train))
    return Outcome(str(folder.path), None if epochs is None else epochs * steps, epochs or float(len(rows)), **found)


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
    """Return an arm's `mean` and what lies between it and the `first` arm, seed by seed, each with its interval.

    With `ratio`, means are geometric and the arm is divided by the first, else the first is taken from it. Where a value is
    missing, nothing can be said.
    """
    pairs = list(zip(values, first, strict=True))
    found: dict[str, Any] = {"values": list(values)}
    found |= _stated("mean", [value for value, _ in pairs], ratio=ratio)
    moves = [None if a is None or b is None else (math.log(a / b) if ratio else a - b) for a, b in pairs]
    if ratio:
        moves = [None if move is None else math.exp(move) for move in moves]
    return found | _stated("difference", moves, ratio=ratio)


def _stated(name: str, values: Numbers, *, ratio: bool) -> dict[str, Any]:
    known = [math.log(v) if ratio else v for v in values if v is not None]
    if len(known) < len(values):
        return {name: None, f"{name}_interval": None}
    middle, around = interval(known)
    lowest = 0.0 if name == "mean" else -1.0  # of a share, and of what lies between two
    back: Callable[[float], float] = math.exp if ratio else lambda edge: min(1.0, max(lowest, edge))
    return {name: back(middle), f"{name}_interval": None if around is None else [back(edge) for edge in around]}


# In words


def table(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown: the claim, the arms with what was claimed and what was measured, and how."""
    head = ["arm", "claimed", title(found), "seeds", "to the first arm", "in training"]
    rows = [head, ["---"] * len(head), *(_row(arm, found) for arm in found["arms"])]
    if not found["claim"]:
        rows = [[row[0], *row[2:]] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    said = [*textwrap.wrap(claim(found), WIDTH), ""] if found["claim"] else []
    return "\n".join([*said, *lines, "", *textwrap.wrap(found["how"], WIDTH), ""])


def claim(found: Mapping[str, Any]) -> str:
    """Return the claim with its source; "" for settings that were varied at will."""
    return f"Claimed: {found['claim']} ({found['source']})." if found["claim"] else ""


def title(found: Mapping[str, Any]) -> str:
    """Return what was measured."""
    return f"{found['split']} top-1" if found["measure"] == "accuracy" else f"steps to {100 * found['aim']:g} % training error"


def mean(arm: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return an arm's mean with its interval, as `79.3 % (78.1 to 80.5)`, or why there is none."""
    if found["measure"] == "steps":
        return _with_interval(arm, "mean", "{:,.0f}") or "not reached"
    return _with_interval(arm, "mean", "{:.1f}", " %", 100) or "diverged"


def difference(arm: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return what lies between an arm and the first, with its interval; "" for the first, and where nothing can be said."""
    if arm["first"]:
        return ""
    if found["measure"] == "steps":
        return _with_interval(arm, "difference", "{:.2f}", " times")
    return _with_interval(arm, "difference", "{:+.1f}", " points", 100)


def _row(arm: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    rate = f" (lr {arm['lr']:g})" if arm["lr"] is not None else ""
    training = "" if arm["training"] is None else f"{arm['training']:.1%}"
    alone = [{"mean": value, "mean_interval": None} for value in arm["values"]]
    seeds = ", ".join(mean(one, found).removesuffix(" %") for one in alone)
    return [f"{arm['arm']}{rate}", arm["claimed"], mean(arm, found), seeds, difference(arm, found), training.replace("%", " %")]


def _with_interval(arm: Mapping[str, Any], name: str, form: str, unit: str = "", scale: float = 1.0) -> str:
    if arm[name] is None:
        return ""
    around = [form.format(scale * edge) for edge in arm[f"{name}_interval"] or ()]
    return form.format(scale * arm[name]) + unit + (f" ({' to '.join(around)})" if around else "")
