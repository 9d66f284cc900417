"""The report of a run: `report.html`, a single self-contained file."""

import base64
import hashlib
import time
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

import alexnet
from alexnet.data.check import KINDS, check_decoded
from alexnet.data.dataset import Dataset
from alexnet.data.on_demand import OnDemand
from alexnet.data.table import sample_by_class
from alexnet.errors import RunError, counted, shell_quote
from alexnet.files import read_json, write_text
from alexnet.inference.evaluate import Evaluation
from alexnet.inference.metrics import most_frequent, per_class, wilson_interval
from alexnet.network.filters import filter_grid
from alexnet.network.variants import variant
from alexnet.plotting import data_uri, page_text
from alexnet.run import RunFolder, read_config, read_metrics, read_recipe

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test", "all": "evaluated"}
PAIRS_SHOWN = 12
SAMPLES_SHOWN = 16
MISTAKES_SHOWN = 12
UNCERTAIN_SHOWN = 8
PROBLEMS_SHOWN = 5  # of each kind
METRICS = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")

Context = dict[str, Any]  # variables of the template


def write_report(folder: RunFolder, dataset: Dataset, split: str, evaluation: Evaluation) -> Path:
    """Write `report.html` and return its path; `evaluation` has the images of the dataset's `split`, in order."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # imported here, as `predict` starts faster without it

    from alexnet.report.charts import coverage, reliability

    templates = Environment(
        loader=PackageLoader("alexnet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"percent": "{:.1%}".format, "duration": duration, "counted": counted}
    script = (files("alexnet.report") / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # the page's policy allows only this script
    try:
        context = _run(folder, dataset) | _first_layer(folder) | {"script": script, "script_digest": digest}
    except (LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise RunError(f"a file in {folder.path} is damaged, summary.json or another: {what}") from error
    context |= _metrics(split, evaluation) | _confusion(evaluation)
    context["reliability"] = reliability(evaluation.reliability(), evaluation.reliability(evaluation.temperature))
    context["coverage"] = coverage(evaluation)
    context |= _images(dataset, split, evaluation) | _problems(dataset)
    write_text(folder.report, page_text(templates.get_template("report.html").render(context)))
    return folder.report


def duration(seconds: float) -> str:
    """Return 75.2 as `1 min 15 s`, 4000 as `1 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def _run(folder: RunFolder, dataset: Dataset) -> Context:
    """Return what the run's files contain: curves, time, recipe. An unfinished run has no summary."""
    from alexnet.report.charts import curves

    recipe = read_recipe(folder)
    history = read_metrics(folder, METRICS)
    if not history:
        raise RunError(f"{folder.metrics} has no epoch yet: resume the run with {folder.resume_command}")
    finished, table = folder.summary.exists(), dataset.table
    best = max(history, key=lambda row: (row["val_top1"], -row["val_loss"]))
    unfinished: Context = {"best_epoch": best["epoch"], "seconds": None, "validation": None}
    summary = folder.read_summary() if finished else unfinished
    kept, newest = int(summary["best_epoch"]), folder.summary if finished else folder.metrics
    if kept not in {row["epoch"] for row in history}:
        raise ValueError(f"{folder.metrics.name} has no epoch {kept}")
    facts = read_json(folder.environment).items()
    environment = [item for key, value in facts for item in (value.items() if isinstance(value, dict) else [(key, value)])]
    return {
        "version": alexnet.__version__,
        "name": table.name,
        "recipe": recipe,
        "date": time.strftime("%d %B %Y", time.localtime(newest.stat().st_mtime)).lstrip("0"),
        "finished": finished,
        "seconds": summary["seconds"],
        "epochs": int(history[-1]["epoch"]),  # 0: the head was fitted, and nothing more
        "fitted": history[0],
        "kept": kept,
        "validation": summary["validation"],
        "counts": {SPLIT_NAMES[split]: count for split, count in table.counts().items()},
        "curves": curves(history, kept) if history[-1]["epoch"] else {},
        "skipped": table.skipped,
        "recipe_text": folder.recipe.read_text(encoding="utf-8"),
        "environment": [(key.replace("_", " "), value) for key, value in environment if value not in (None, "")],
        "command": f"alexnet predict {shell_quote(folder.path)} IMAGE…",
    }


def _metrics(split: str, evaluation: Evaluation) -> Context:
    """Return the metrics, and the table of classes: worst first, those without images last."""
    counts = evaluation.confusion
    rows = [
        row | {"label": label, "predicted": int(count)}
        for label, row, count in zip(evaluation.labels, per_class(counts), counts.sum(0), strict=True)
    ]
    metrics = evaluation.to_json()
    return {
        "split": SPLIT_NAMES[split],
        "metrics": metrics,
        "top5_interval": wilson_interval(metrics["top5"], metrics["images"]),
        "baseline": most_frequent(metrics["per_class"])[1],
        "classes": sorted(rows, key=lambda row: (row["images"] == 0, row["f1"] or 0, row["recall"] or 0)),
    }


def _confusion(evaluation: Evaluation) -> Context:
    """Return the confusion matrix, as a table or an image, and the pairs of classes confused most often."""
    from alexnet.report.charts import NUMBERED, confusion_map, shades, ticks_apart

    counts, labels = evaluation.confusion, evaluation.labels
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS_SHOWN]
    pairs: list[Context] = []
    for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True):
        if wrong[true, predicted]:
            count, total = int(wrong[true, predicted]), int(counts[true].sum())
            pairs.append({"true": labels[true], "predicted": labels[predicted], "count": count, "total": total})
    most = "Most often, {true} is taken for {predicted}: {count} of {total}.".format(**pairs[0]) if pairs else "No mistakes."
    many = len(labels) > NUMBERED
    tints = shades(counts).round(2)
    return {
        "labels": labels,
        "pairs": pairs,
        "ticks_apart": ticks_apart(len(labels)) if many else 1,
        "confusion_map": confusion_map(counts, labels, f"Confusion matrix of {len(labels)} classes. {most}") if many else None,
        "matrix": [] if many else [list(zip(*row, strict=True)) for row in zip(counts.tolist(), tints.tolist(), strict=True)],
    }


def _images(dataset: Dataset, split: str, evaluation: Evaluation) -> Context:
    """Return samples drawn at random, the mistakes with the highest probability, and the least certain predictions."""
    from alexnet.report.charts import thumbnail

    probabilities = evaluation.probabilities
    predicted = evaluation.logits.argmax(1)
    wrong = np.flatnonzero(predicted != evaluation.targets)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:MISTAKES_SHOWN]
    entropy = -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)), axis=1)
    uncertain = np.argsort(-entropy, kind="stable")[:UNCERTAIN_SHOWN]
    images, names = dataset.images(split), dataset.names(split)

    def card(i: int) -> Context:
        true, (first, second) = int(evaluation.targets[i]), np.argsort(-probabilities[i], kind="stable")[:2].tolist()
        return {
            "picture": thumbnail(images.pixels.image(images.rows[i])),
            "file": names[i],
            "true": evaluation.labels[true],
            "predicted": evaluation.labels[first],
            "second": evaluation.labels[second],
            "right": true == first,
            "true_probability": float(probabilities[i, true]),
            "probability": float(probabilities[i, first]),
            "second_probability": float(probabilities[i, second]),
        }

    return {
        "samples": [card(i) for i in sample_by_class(evaluation.targets, SAMPLES_SHOWN)],
        "mistakes": [card(i) for i in worst],
        "uncertain": [card(i) for i in uncertain],
        "wrong": len(wrong),
        "pixelated": bool(images.pixels.shapes.max() < 88),
    }


def _first_layer(folder: RunFolder) -> Context:
    """Return an image of the kernels of the first layer, or None for a run that has no weights yet."""
    if not (folder.config.exists() and folder.weights.exists()):
        return {"filters": None}
    config = read_config(folder)
    with safe_open(folder.weights, "numpy") as tensors:
        weights = tensors.get_tensor("features.conv1.weight")
    towers = variant(config.variant, config.overrides).towers
    sheet = Image.fromarray(filter_grid(weights.astype(np.float32), towers))
    return {"filters": {"picture": data_uri(sheet, "png"), "count": len(weights), "size": weights.shape[2], "towers": towers}}


def _problems(dataset: Dataset) -> Context:
    """Return the problems that the data check found, by kind; it is left out if all images would have to be decoded again."""
    rows = list[Context]()
    if isinstance(dataset.pixels, OnDemand):
        return {"problems": rows, "unchecked": True}
    for kind, group in groupby(check_decoded(dataset).problems, key=lambda problem: problem.kind):
        problems = list(group)
        rows.append({"kind": kind, "meaning": KINDS[kind], "count": len(problems), "first": problems[:PROBLEMS_SHOWN]})
    return {"problems": rows, "unchecked": False}
