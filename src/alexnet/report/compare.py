"""Comparison of runs: their metrics, and the settings that differ."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alexnet.errors import RunError, counted, format_names
from alexnet.inference import predictions
from alexnet.inference.paired import Paired, compare_pairs
from alexnet.inference.predictions import Predictions
from alexnet.network.summary import count_parameters
from alexnet.plotting import shorten
from alexnet.progress import format_duration
from alexnet.recipe import MACHINE_KEYS, flatten_keys
from alexnet.run import RunFolder, find, read_config, read_recipe

SPLITS = {"test": "test", "validation": "val"}  # keys of a summary, and what `predictions.csv` calls them

LEVEL = 0.05  # of significance


def compare(runs: Iterable[str | Path]) -> dict[str, Any]:
    """Compare runs: their metrics, and the settings that differ.

    Args:
        runs: finished run folders; all are compared with the first.

    Returns:
        `{"split", "runs": [{…}], "settings": {key: [value of each run]}}`. Runs are compared on `test` images, or on
        `validation` if one of them has no test set. Accuracies are from 0 to 1, `"seconds"` is the training time, and
        `"difference"` is top-1 minus that of the first run, with its 95 % interval, or None for the first. `"paired"` has the
        fields of `Paired` if both runs predicted the same images of one dataset, and the interval is its; otherwise it is None,
        and the interval is that of independent sets of images (Newcombe 1998).

    Raises:
        RunError: a run is missing, unfinished or damaged.
    """
    folders = [find(Path(run)) for run in runs]
    summaries = [folder.read_summary() for folder in folders]
    try:
        split = next(name for name in SPLITS if all(summary[name] for summary in summaries))
        rows = [_row(folder, summary, split) for folder, summary in zip(folders, summaries, strict=True)]
    except (LookupError, TypeError, StopIteration) as error:
        raise RunError(f"a summary.json of {format_names(folder.path for folder in folders)} is damaged: {error!r}") from error
    answers = [predictions.read(folder.predictions, SPLITS[split]) for folder in folders]
    for row, own, folder in zip(rows, answers, folders, strict=True):
        if folder.predictions.exists() and len(own.images if own else ()) != row["images"]:
            raise RunError(
                f"{folder.predictions} is damaged: it should have {counted(row['images'], 'row')} of {SPLITS[split]}"
            )
        same = read_recipe(folder).data.dataset == read_recipe(folders[0]).data.dataset
        paired = _paired(own, answers[0]) if same and row is not rows[0] else None
        row["difference"] = None if row is rows[0] else _difference(row, rows[0])
        row["paired"] = paired.to_json() if paired else None
        if paired:
            row["difference"][1:] = paired.interval
    return {"split": split, "runs": rows, "settings": _settings(folders)}


def _row(folder: RunFolder, summary: dict[str, Any], split: str) -> dict[str, Any]:
    result, config = summary[split], read_config(folder)
    return {
        "run": str(folder.path),
        "recipe": summary["recipe"],
        "variant": summary["variant"],
        "parameters": count_parameters(config.network()),
        **{key: result[key] for key in ("images", "top1", "top1_interval", "loss", "ece")},
        **{key: summary[key] for key in ("epochs", "seconds")},
    }


def _difference(row: dict[str, Any], first: dict[str, Any]) -> list[float]:
    """Return top-1 of `row` minus that of `first`, and its interval by Newcombe's hybrid score method."""
    (p, low, high), (q, below, above) = ((r["top1"], *r["top1_interval"]) for r in (row, first))
    return [p - q, p - q - math.hypot(p - low, above - q), p - q + math.hypot(high - p, q - below)]


def _paired(own: Predictions | None, first: Predictions | None) -> Paired | None:
    """Compare two runs by their predictions, if they are of the same images with the same labels."""
    if own is None or first is None:
        return None
    order = {image: i for i, image in enumerate(first.images)}
    if len(own.images) != len(order) or not all(image in order for image in own.images):
        return None
    rows = [order[image] for image in own.images]
    if list(own.labels) != [first.labels[i] for i in rows]:
        return None
    return compare_pairs(own.right, first.right[rows], own.losses, first.losses[rows])


def _settings(folders: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the recipe keys that differ, with the value of each run; None if the recipe leaves it to the variant."""
    recipes = [flatten_keys(read_recipe(folder).model_dump(mode="json")) for folder in folders]
    settings = {key: [recipe[key] for recipe in recipes] for key in recipes[0] if key not in MACHINE_KEYS}
    return {key: values for key, values in settings.items() if any(value != values[0] for value in values)}


def table(comparison: dict[str, Any]) -> str:
    """Return a comparison as text: a line for each run, then a line for each setting that differs."""
    runs = comparison["runs"]
    top1, change = f"{comparison['split']} top-1", "to run 1, points"
    rows = [["", "run", top1, change, "p", "loss", "ECE", "epochs", "time", "parameters", "variant"]]
    for number, run in enumerate(runs, 1):
        low, high = run["top1_interval"]
        points = [100 * value for value in run["difference"] or ()]
        difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*points) if points else ""
        p = f"{run['paired']['p']:.3f}" if run["paired"] else ""
        metrics = [f"{run['top1']:.2%} ({low:.1%} to {high:.1%})", difference, p, f"{run['loss']:.4f}", f"{run['ece']:.2%}"]
        costs = [str(run["epochs"]), format_duration(run["seconds"]), f"{run['parameters']:,}", run["variant"]]
        rows.append([str(number), run["run"], *metrics, *costs])
    settings = [["", "setting", *map(str, range(1, len(runs) + 1))]]
    for key, values in comparison["settings"].items():
        settings.append(["", key, *(shorten("-" if value is None else str(value), 24) for value in values)])
    differing = _align(settings) if comparison["settings"] else ["their recipes are the same"]
    notes = [note for number, run in enumerate(runs[1:], 2) for note in _notes(number, run)]
    return "\n".join([*_align(rows), "", *differing, "", *notes])


def _notes(number: int, run: dict[str, Any]) -> Iterator[str]:
    """Yield what to know about the difference of run `number` to the first."""
    paired = run["paired"]
    if paired is None:
        yield f"run {number}: other images than run 1, or no predictions.csv, so the interval is that of independent sets"
        return
    low, high = paired["loss_interval"]
    both = f"of the same {counted(paired['images'], 'image')}, it alone gets {paired['gained']:,} right, and run 1 alone"
    yield f"run {number}: {both} {paired['lost']:,}; loss {low:+.4f} to {high:+.4f}"
    if paired["p"] >= LEVEL and paired["needed"]:
        needed = counted(paired["needed"], "image")
        yield f"run {number}: this may be chance (p by McNemar's test); to be sure takes about {needed}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
