"""Comparison of runs: their metrics, and the settings that differ."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alexnet.errors import RunError, format_names
from alexnet.network.summary import count_parameters
from alexnet.plotting import shorten
from alexnet.progress import format_duration
from alexnet.recipe import MACHINE_KEYS, flatten_keys
from alexnet.run import RunFolder, find, read_config, read_recipe

SPLITS = ("test", "validation")


def compare(runs: Iterable[str | Path]) -> dict[str, Any]:
    """Compare runs: their metrics, and the settings that differ.

    Args:
        runs: finished run folders; all are compared with the first.

    Returns:
        `{"split", "runs": [{…}], "settings": {key: [value of each run]}}`. Runs are compared on `test` images, or on
        `validation` if one of them has no test set. Accuracies are from 0 to 1, `"seconds"` is the training time, and
        `"difference"` is top-1 minus that of the first run, with its 95 % interval (Newcombe 1998), or None for the first. The
        interval is that of independent sets of images; on the same images it is too wide.

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
    for row in rows:
        row["difference"] = None if row is rows[0] else _difference(row, rows[0])
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


def _settings(folders: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the recipe keys that differ, with the value of each run; None if the recipe leaves it to the variant."""
    recipes = [flatten_keys(read_recipe(folder).model_dump(mode="json")) for folder in folders]
    settings = {key: [recipe[key] for recipe in recipes] for key in recipes[0] if key not in MACHINE_KEYS}
    return {key: values for key, values in settings.items() if any(value != values[0] for value in values)}


def table(comparison: dict[str, Any]) -> str:
    """Return a comparison as text: a line for each run, then a line for each setting that differs."""
    runs = comparison["runs"]
    top1, change = f"{comparison['split']} top-1", "to run 1, points"
    rows = [["", "run", top1, change, "loss", "ECE", "epochs", "time", "parameters", "variant"]]
    for number, run in enumerate(runs, 1):
        low, high = run["top1_interval"]
        points = [100 * value for value in run["difference"] or ()]
        difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*points) if points else ""
        metrics = [f"{run['top1']:.2%} ({low:.1%} to {high:.1%})", difference, f"{run['loss']:.4f}", f"{run['ece']:.2%}"]
        costs = [str(run["epochs"]), format_duration(run["seconds"]), f"{run['parameters']:,}", run["variant"]]
        rows.append([str(number), run["run"], *metrics, *costs])
    settings = [["", "setting", *map(str, range(1, len(runs) + 1))]]
    for key, values in comparison["settings"].items():
        settings.append(["", key, *(shorten("-" if value is None else str(value), 24) for value in values)])
    differing = _align(settings) if comparison["settings"] else ["their recipes are the same"]
    return "\n".join([*_align(rows), "", *differing, "", NOTE])


NOTE = "Intervals of differences assume that each run has its own test images; if they share them, the intervals are too wide."


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
