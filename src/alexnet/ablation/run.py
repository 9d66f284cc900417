"""Train the arms of a study with each seed, compare them, and write a table and a figure."""

import math
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from alexnet.ablation.plan import Plan, open_plan
from alexnet.data.batches import epoch_bounds
from alexnet.errors import DivergedError, Interrupted, RunError, counted, shell_quote
from alexnet.files import read_json, write, write_json, write_text
from alexnet.plotting import AMBER, BLUE, GREEN, GREY, ORANGE, PINK, SKY
from alexnet.progress import say
from alexnet.run import RunFolder, read_metrics, read_recipe
from alexnet.training import train as training
from alexnet.training.signals import StopRequest

Result = dict[str, Any]  # of a training

COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)  # of the arms
FORMATS = {  # how to show a study's results: titles and formats of a mean and of a difference, factor, and text for no mean
    "accuracy": ("{split} top-1 (%)", "difference to the first arm (points)", "{:.1f}", "{:+.1f}", 100, "diverged"),
    "steps": ("steps to a training error of {aim:g}", "ratio to the first arm", "{:,.0f}", "×{:.2f}", 1, "not reached"),
}


def ablate(plan: Plan | None, out: Path, device: str | None = None) -> dict[str, Any]:
    """Run the unfinished trainings of a study in folder `out`, write its table and figure, and return its results.

    Arms take turns within each seed, so that an interrupted study has trained all of them equally often; the same call resumes
    it. If `plan` is None, the plan in the folder is used.
    """
    plan = open_plan(plan, out, device)
    train = partial(train_arm, plan, out, device)
    try:
        with StopRequest():
            scales = {arm: best_scale(plan, partial(train, arm)) for arm in plan.arms}
            seeds = [{arm: train(arm, seed, scale) for arm, scale in scales.items()} for seed in range(plan.seeds)]
            return write_results(plan, seeds, scales, out)
    except Interrupted as error:
        message = f"stopped, everything is saved; resume with: alexnet ablate --out {shell_quote(out)}"
        raise Interrupted(message, error.code) from error


def best_scale(plan: Plan, train: Callable[..., Result]) -> float:
    """Return the best factor of the learning rates for the arm that `train` trains; 1 if none is tried or succeeds."""
    steps, lowest, best = plan.measure == "steps", math.inf, 1.0
    for scale in plan.scales:
        run = train(plan.seeds, scale, lowest if steps else math.inf)  # no longer than the best so far took
        cost = run["epochs"] if steps else -run["validation"]
        if run["value"] is not None and cost < lowest:
            lowest, best = cost, scale
    return best


def train_arm(plan: Plan, out: Path, device: str | None, arm: str, seed: int, scale: float, limit: float = math.inf) -> Result:
    """Train an arm with a seed, for `limit` epochs at most, or resume it, unless it is finished; return the result."""
    name = str(seed) if seed < plan.seeds else f"rate{scale:g}"
    folder = RunFolder(out / f"{re.sub(r'[^0-9A-Za-z.=]+', '-', arm).strip('-')}-{name}")
    diverged = folder.path / "diverged.txt"
    if not folder.summary.exists() and not diverged.exists():
        number = len({*out.glob("*/recipe.toml"), folder.recipe})
        say(f"training {number} of {plan.trainings}: {folder.path.name}")
        try:
            if folder.recipe.exists():
                training.resume(folder.path, device, time.monotonic())
            else:
                recipe = plan.recipe_of(arm, seed, scale)
                recipe = recipe.with_settings({"train.epochs": math.ceil(min(limit, recipe.train.epochs))})
                training.start(recipe, folder.path, device, time.monotonic())
        except DivergedError as error:
            say(str(error))
            write_text(diverged, str(error))  # so that it is not trained again
    if diverged.exists():
        nothing = {"value": None, "epochs": 0.0, "images": 0, "seconds": 0.0, "validation": 0.0, "training": None}
        return {"run": str(folder.path), **nothing, "curve": [], "diverged": diverged.read_text(encoding="utf-8")}
    return read_result(folder, plan)


def read_result(folder: RunFolder, plan: Plan) -> Result:
    """Return the result of a finished training; its `value` is the study's measure, None if it was not reached."""
    summary, rows = read_json(folder.summary), read_metrics(folder, ("epoch", "images", "train_top1"))
    try:
        validation = summary["validation"]
        value = (summary[plan.split] or validation)["top1"]
        # An epoch's error is assigned to its middle; the error before training is that of guessing.
        curve = [(0.0, 1 - 1 / len(validation["per_class"]))]
        curve += [(max(0.0, row["epoch"] - 0.5), 1 - row["train_top1"]) for row in rows]
        result = {"run": str(folder.path), "value": value, "epochs": rows[-1]["epoch"], "seconds": float(summary["seconds"])}
        result |= {"validation": validation["top1"], "training": rows[-1]["train_top1"], "curve": curve, "diverged": ""}
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path} is damaged: remove it to train it again") from error
    if plan.measure == "steps":
        recipe = read_recipe(folder)
        aim, steps = recipe.stop.train_error, len(epoch_bounds(int(rows[0]["images"]), recipe.train))
        (left, before), (right, after) = curve[-2:]  # training ends once the error is reached
        epochs = float(np.interp(aim, (after, before), (right, left)))
        result |= {"value": epochs * steps, "epochs": epochs} if after <= aim < before else {"value": None}
    return {**result, "images": int(sum(row["images"] for row in rows if row["epoch"]))}


def write_results(plan: Plan, seeds: Sequence[Mapping[str, Any]], scales: Mapping[str, float], out: Path) -> dict[str, Any]:
    """Write `results.json`, the table and the figure of a study; `seeds` are the results of all arms, seed by seed."""
    arms: list[dict[str, Any]] = []
    for arm, settings in plan.arms.items():
        runs = [results[arm] for results in seeds]
        values, training = [run["value"] for run in runs], [run["training"] for run in runs if not run["diverged"]]
        lr = plan.recipe_of(arm, 0, scales[arm]).optimizer.lr if plan.scales else None
        row = {"arm": arm, "first": not arms, "settings": settings, "lr": lr, "claimed": plan.claimed.get(arm, "")}
        row |= summarise(values, arms[0]["values"] if arms else values, ratio=plan.measure == "steps")
        arms.append({**row, "training": fmean(training) if training else None, "runs": runs})
    study = plan.model_dump(include={"study", "claim", "source", "measure", "split", "seeds"})
    study |= {"aim": plan.recipe.stop.train_error, "epochs": plan.epochs or plan.recipe.train.epochs, "arms": arms}
    images = max(run["images"] for arm in arms for run in arm["runs"])
    number, at_rate = counted(plan.seeds, "seed"), ", at the learning rate that was best on another seed" if plan.scales else ""
    study["how"] = (
        f"{Path(plan.recipe.data.dataset).stem}, recipe {plan.recipe.name}: {number} on the same split, each training "
        f"saw up to {counted(images, 'image')}{at_rate}. "
        "In parentheses: 95 % intervals over seeds (Student's t); differences are paired by seed."
        f"{' Means are geometric.' if plan.measure == 'steps' else ''}"
    )
    study["figures"] = [str(out / f"ablation.{kind}") for kind in ("png", "svg")]
    draw(study)
    write_text(out / "table.md", table(study))
    write_json(out / "results.json", study)
    return study


def summarise(values: Sequence[float | None], first: Sequence[float | None], *, ratio: bool) -> dict[str, Any]:
    """Return an arm's `mean` over seeds and its `difference` to the `first` arm, with their 95 % intervals (Student's t).

    Differences are taken seed by seed. With `ratio`, means are geometric and the difference is a ratio. Where a value is
    missing, both are None; a single seed has no interval.
    """
    from scipy.special import stdtrit  # slow to import

    sample, other = (np.array(each, dtype=float) for each in (values, first))  # a missing value is NaN
    if ratio:
        sample, other = np.log(sample), np.log(other)
    count, result = len(sample), dict[str, Any](values=list(values))
    for name, numbers, least in (("mean", sample, 0.0), ("difference", sample - other, -1.0)):
        half = stdtrit(count - 1, 0.975) * numbers.std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
        points = numbers.mean() + half * np.array([0, -1, 1])
        mean, *interval = (np.exp(points) if ratio else points.clip(least, 1.0)).tolist()  # accuracies are 0 to 1
        missing = bool(np.isnan(mean))
        result |= {name: None if missing else mean, f"{name}_interval": None if missing or count < 2 else interval}
    return result


def table(study: Mapping[str, Any]) -> str:
    """Return the results as Markdown: the claim and the method, then a row per arm."""
    claim = f"Claimed: {study['claim']} ({study['source']}). " if study["claim"] else ""
    lines = [" | ".join(row if claim else [row[0], *row[2:]]) for row in _rows(study)]
    lines.insert(1, " | ".join(["---"] * (lines[0].count("|") + 1)))
    return "\n".join([*textwrap.wrap(claim + study["how"], 128), "", *(f"| {line} |" for line in lines), ""])


def _rows(study: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table, the header first."""
    title, change, form, signed, factor, missing = FORMATS[study["measure"]]
    rows = [["arm", "claimed", title.format(**study), "seeds", change, "training top-1 (%)"]]
    for arm in study["arms"]:
        name = arm["arm"] + ("" if arm["lr"] is None else f" (lr {arm['lr']:g})")
        mean = _format(arm["mean"], form, factor, arm["mean_interval"]) or missing
        seeds = ", ".join(_format(value, form, factor) or missing for value in arm["values"])
        difference = "" if arm["first"] else _format(arm["difference"], signed, factor, arm["difference_interval"])
        rows.append([name, arm["claimed"], mean, seeds, difference, _format(arm["training"], "{:.1f}", 100)])
    return rows


def _format(value: float | None, form: str, factor: float, interval: Sequence[float] | None = None) -> str:
    """Return a value with its interval, as `79.3 (78.1 to 80.5)`, or "" if there is none."""
    shown = [form.format(factor * each) for each in ([] if value is None else [value, *(interval or ())])]
    return "{} ({} to {})".format(*shown) if len(shown) == 3 else "".join(shown)


def draw(study: Mapping[str, Any]) -> None:
    """Draw the figures: dots are seeds, diamonds means, and lines 95 % intervals; for steps, error curves are on the left."""
    from matplotlib import rc_context  # imported here, as it takes a second that `predict` need not wait
    from matplotlib.figure import Figure

    from alexnet import fonts

    head, *rows = _rows(study)
    _, _, form, _, factor, _ = FORMATS[study["measure"]]
    with rc_context({"axes.edgecolor": GREY, "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(9.6, max(3.0, 0.8 * len(rows) + 0.6)), layout="constrained")
        *errors, axes = figure.subplots(1, 2 if study["measure"] == "steps" else 1, squeeze=False)[0]
        for y, arm in enumerate(study["arms"]):
            colour, ends = COLOURS[y % len(COLOURS)], arm["mean_interval"] or []
            axes.plot(arm["values"], [y - 0.17] * len(arm["values"]), "o", color=colour, alpha=0.55)
            axes.plot(ends, [y + 0.12] * len(ends), color=colour, linewidth=2)
            axes.plot([arm["mean"]], [y + 0.12], "D", color=colour)
            axes.text(1.02, y, f"{rows[y][2]}\n{rows[y][4]}".strip(), transform=axes.get_yaxis_transform(), va="center")
            for run in arm["runs"] if errors else ():
                errors[0].plot(*np.array(run["curve"]).reshape(-1, 2).T, color=colour, alpha=0.8)
        axes.set_yticks(range(len(rows)), [textwrap.fill(row[0], 24) for row in rows])
        axes.set(xlabel=head[2], ylim=(len(rows) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(lambda value, _: form.format(factor * value))
        low, high = axes.get_xlim()
        axes.set_xlim((0, high) if errors else (max(0, low), min(1.005, high)))
        for left in errors:
            left.axhline(study["aim"], color=GREY, linestyle="--")
            left.set(xlabel="epochs", ylabel="training error", xlim=(0, None))
        for path in map(Path, study["figures"]):
            write(path, partial(fonts.save, figure, kind=path.suffix[1:], dpi=160))
