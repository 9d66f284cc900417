"""Runs side by side: their figures, and the settings in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet.errors import RunError, format_names, shell_quote
from alexnet.files import read_json
from alexnet.progress import clock
from alexnet.recipe import MACHINE_KEYS, flat
from alexnet.run import RunFolder, find, read_config, read_recipe

SPLITS = ("test", "validation")
Interval = Sequence[float]


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of finished runs, and the keys of their recipes that differ.

    `{"split", "runs": [...], "settings": {key: [value of each run]}}`. Runs are compared on their test images, or on
    validation images where one of them has no others. `difference` is top-1 less that of the first run, with a 95 % interval as
    for two sets of images (Newcombe 1998): on the same images it is rather too wide.

    Raises:
        RunError: no run, one that is not finished, or a damaged one.
    """
    folders = [_finished(path) for path in paths]
    summaries = [read_json(folder.summary) for folder in folders]
    try:
        split = next(name for name in SPLITS if all(summary[name] for summary in summaries))
        rows = [_row(folder, summary, split) for folder, summary in zip(folders, summaries, strict=True)]
    except (LookupError, TypeError, StopIteration) as error:
        raise RunError(f"a summary.json of {format_names(paths)} is damaged: {error!r}") from error
    for row in rows:
        row["difference"] = None if row is rows[0] else _difference(row, rows[0])
    return {"split": split, "runs": rows, "settings": _settings(folders)}


def _finished(path: Path) -> RunFolder:
    folder = find(path)
    if not folder.summary.exists():
        raise RunError(f"{path} is not finished: alexnet train --resume {shell_quote(path)} goes on with it")
    return folder


def _row(folder: RunFolder, summary: dict[str, Any], split: str) -> dict[str, Any]:
    result, config = summary[split], read_config(folder)
    return {
        "run": str(folder.path),
        "recipe": summary["recipe"],
        "variant": summary["variant"],
        "parameters": sum(weights.numel() for weights in config.network().parameters()),
        **{key: result[key] for key in ("images", "top1", "top1_interval", "loss", "ece")},
        **{key: summary[key] for key in ("epochs", "seconds")},
    }


def _difference(row: dict[str, Any], first: dict[str, Any]) -> list[float]:
    """Return top-1 of `row` less that of `first`, and its interval: from both runs' own (Newcombe's hybrid score)."""
    (p, low, high), (q, below, above) = ((r["top1"], *r["top1_interval"]) for r in (row, first))
    return [p - q, p - q - math.hypot(p - low, above - q), p - q + math.hypot(high - p, q - below)]


def _settings(folders: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the keys of the recipes that differ, with each run's value; None where a recipe leaves it to the variant."""
    recipes = [flat(read_recipe(folder).model_dump(mode="json")) for folder in folders]
    values = {key: [each[key] for each in recipes] for key in recipes[0] if key not in MACHINE_KEYS}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def table(comparison: dict[str, Any]) -> str:
    """Return what `compare` found as text: a line for each run, and below a line for each setting that differs."""
    runs = comparison["runs"]
    head = [
        "",
        "run",
        f"{comparison['split']} top-1",
        "to run 1, points",
        "loss",
        "ECE",
        "epochs",
        "time",
        "parameters",
        "variant",
    ]
    rows = [head]
    for number, run in enumerate(runs, 1):
        low, high = run["top1_interval"]
        moved = (
            "" if run["difference"] is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * d for d in run["difference"]))
        )
        figures = [f"{run['top1']:.2%} ({low:.1%} to {high:.1%})", moved, f"{run['loss']:.4f}", f"{run['ece']:.2%}"]
        size = [str(run["epochs"]), clock(run["seconds"]), f"{run['parameters']:,}", run["variant"]]
        rows.append([str(number), run["run"], *figures, *size])
    settings = [["", "setting", *(str(number) for number in range(1, len(runs) + 1))]]
    settings += [["", key, *map(_short, values)] for key, values in comparison["settings"].items()]
    return "\n".join(
        [*_aligned(rows), "", *(_aligned(settings) if comparison["settings"] else ["their recipes are the same"]), "", NOTE]
    )


NOTE = "The interval of a difference takes each run's images for others: where they are the same, it is rather too wide."


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
