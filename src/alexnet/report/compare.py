"""Comparison of runs: their metrics, and the settings that differ."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alexnet.errors import RunError, counted, format_names
from alexnet.inference import predictions
from alexnet.inference.paired import Paired, compare_pairs
from alexnet.inference.predictions import Predictions
from alexnet.network.summary import count_parameters
from alexnet.plotting import shorten
from alexnet.progress import format_duration
from alexnet.recipe import MACHINE_KEYS, Recipe, flatten_keys
from alexnet.report import seeds as by_seed
from alexnet.run import RunFolder, find, read_config, read_recipe

SPLITS = {"test": "test", "validation": "val"}  # keys of a summary, and what `predictions.csv` calls them

LEVEL = 0.05  # of significance


def compare(runs: Iterable[str | Path], seeds: bool = False) -> dict[str, Any]:
    """Compare runs: their metrics, and the settings that differ.

    Args:
        runs: finished run folders; all are compared with the first.
        seeds: make one row of runs that differ in `train.seed` alone.

    Returns:
        `{"split", "runs": [{…}], "settings": {key: [value of each run]}}`. Runs are compared on `test` images, or on
        `validation` if one of them has no test set. Accuracies are from 0 to 1, `"seconds"` is the training time, and
        `"difference"` is top-1 minus that of the first run, with its 95 % interval, or None for the first. `"paired"` has the
        fields of `Paired` if both runs predicted the same images of one dataset, and the interval is its; otherwise it is None,
        and the interval is that of independent sets of images (Newcombe 1998).

        With `seeds`, `{"split", "rows": [{…}], "settings"}`. A row has its `"runs"`, their `"seeds"` and top-1 `"values"`, and
        the mean `"top1"` with its 95 % interval over seeds (Student's t) and its range. `"difference"` and `"p"` are those of
        means over seeds, and `"how"` is `paired` if both rows have the same seeds, else `welch`. Where both have one seed,
        intervals are over images, as without `seeds`, and `"how"` is `images`; where one has, or where no seed differs, there
        is no interval, and `"how"` is None.

    Raises:
        RunError: a run is missing, unfinished or damaged, or with `seeds`, two runs of a row have the same seed.
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
    recipes = [read_recipe(folder) for folder in folders]
    compared = partial(_compare_two, rows, answers, recipes)
    if seeds:
        groups = by_seed.group(recipes)
        settings = _settings([recipes[first] for first, *_ in groups], (*MACHINE_KEYS, by_seed.SEED))
        return {"split": split, "rows": _rows_of_seeds(rows, recipes, groups, compared), "settings": settings}
    nothing = {"difference": None, "paired": None}
    whole = [{**row, **(compared(i, 0) if i else nothing)} for i, row in enumerate(rows)]
    return {"split": split, "runs": whole, "settings": _settings(recipes, MACHINE_KEYS)}


def _compare_two(
    rows: Sequence[dict[str, Any]], answers: Sequence[Predictions | None], recipes: Sequence[Recipe], i: int, first: int
) -> dict[str, Any]:
    """Return the `difference` of run `i` to run `first`, and what is `paired` about it."""
    same = recipes[i].data.dataset == recipes[first].data.dataset
    paired = _paired(answers[i], answers[first]) if same else None
    difference, *interval = _difference(rows[i], rows[first])
    return {"difference": [difference, *(paired.interval if paired else interval)], "paired": paired and paired.to_json()}


def _rows_of_seeds(
    rows: Sequence[dict[str, Any]],
    recipes: Sequence[Recipe],
    groups: Sequence[Sequence[int]],
    compared: Callable[[int, int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row for each group of runs, with its difference to the first."""
    result = list[dict[str, Any]]()
    for group in groups:
        named: dict[int, int] = {}
        for i in group:
            if (other := named.setdefault(recipes[i].train.seed, i)) != i:
                same = f"{rows[other]['run']} and {rows[i]['run']} have the same recipe"
                raise RunError(f"{same} and the seed {recipes[i].train.seed}: name one of them")
        row = by_seed.merge([rows[i] for i in group], list(named))
        row |= {"difference": None, "p": None, "how": None}
        if result:
            first = result[0]
            over_seeds = by_seed.difference(*(dict(zip(r["seeds"], r["values"], strict=True)) for r in (row, first)))
            row["difference"] = [row["top1"] - first["top1"], None, None]
            if over_seeds:
                row |= {"difference": over_seeds.values, "p": over_seeds.p, "how": over_seeds.how}
            elif len(row["runs"]) == len(first["runs"]) == 1:
                two = compared(group[0], groups[0][0])
                row |= {"difference": two["difference"], "p": two["paired"] and two["paired"]["p"], "how": "images"}
        result.append(row)
    return result


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


def _settings(recipes: Sequence[Recipe], without: Collection[str]) -> dict[str, list[Any]]:
    """Return the recipe keys that differ, with the value of each; None if the recipe leaves it to the variant."""
    flat = [flatten_keys(recipe.model_dump(mode="json")) for recipe in recipes]
    settings = {key: [recipe[key] for recipe in flat] for key in flat[0] if key not in without}
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
    notes = [note for number, run in enumerate(runs[1:], 2) for note in _notes(number, run)]
    return "\n".join([*_align(rows), "", *_differing(comparison["settings"], len(runs)), "", *notes])


def table_of_seeds(comparison: dict[str, Any]) -> str:
    """Return a comparison with `seeds` as text: a line for each row, then a line for each setting that differs."""
    head = ["", "runs", "seeds", f"{comparison['split']} top-1", "range", "to row 1, points", "p", "loss", "time", "variant"]
    lines, notes = [head], list[str]()
    for number, row in enumerate(comparison["rows"], 1):
        first, *others = row["runs"]
        low, high = row["top1_interval"]
        points = [100 * value for value in row["difference"] or () if value is not None]
        change = "{:+.1f} ({:+.1f} to {:+.1f})".format(*points) if len(points) == 3 else "".join(map("{:+.1f}".format, points))
        top1 = [f"{row['top1']:.2%} ({low:.1%} to {high:.1%})", "{:.2%} to {:.2%}".format(*row["top1_range"])]
        costs = [f"{row['loss']:.4f}", format_duration(row["seconds"]), row["variant"]]
        name = f"{first} and {len(others):,} more" if others else first
        p = "" if row["p"] is None else f"{row['p']:.3f}"
        lines.append([str(number), name, str(len(row["seeds"])), *top1, change, p, *costs])
        notes += [f"row {number}: {note}" for note in _notes_on_seeds(row)]
    differing = _differing(comparison["settings"], len(comparison["rows"]))
    return "\n".join([*_align(lines), "", *differing, "", *notes])


def _notes_on_seeds(row: dict[str, Any]) -> Iterator[str]:
    """Yield what to know about a row of seeds."""
    many = len(row["seeds"]) > 1
    yield "mean over seeds, with Student's interval" if many else "one seed, so the interval of top-1 is over images"
    if row["difference"]:
        yield {
            "paired": "the same seeds as row 1, so the difference is paired by seed (Student's t)",
            "welch": "other seeds than row 1, so the difference is that of independent ones (Welch's t)",
            "images": "row 1 has one seed as well, so the difference is over images, as without --seeds",
            None: "no interval of the difference: it takes two seeds or more in both rows, and seeds that differ",
        }[row["how"]]


def _differing(settings: dict[str, list[Any]], count: int) -> list[str]:
    """Return lines with the settings in which runs or rows differ."""
    if not settings:
        return ["their recipes are the same"]
    lines = [["", "setting", *map(str, range(1, count + 1))]]
    for key, values in settings.items():
        lines.append(["", key, *(shorten("-" if value is None else str(value), 24) for value in values)])
    return _align(lines)


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
