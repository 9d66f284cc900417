"""What commands print for people: JSON and CSV, tables and summaries."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet.errors import printable, shell_quote, truncate

PROBLEMS_SHOWN = 5  # of each kind


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_csv(answers: Iterable[dict[str, Any]]) -> None:
    """Print a row for each label of each answer of `predict`."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "error"])
    for answer in answers:
        if "error" in answer:
            writer.writerow([answer["image"], "", "", "", answer["error"]])
        for rank, guess in enumerate(answer.get("predictions", ()), 1):
            writer.writerow([answer["image"], rank, guess["label"], f"{guess['probability']:.6f}", ""])


def show_predictions(answers: Iterable[dict[str, Any]]) -> None:
    """Print each image with its labels."""
    for answer in answers:
        print(printable(answer["image"]))
        if "error" in answer:
            print(printable(f"    not read: {answer['error']}"))
        for guess in answer.get("predictions", ()):
            print(f"  {guess['probability']:6.1%}  {guess['label']}")


def show_explained(answers: Iterable[dict[str, Any]]) -> None:
    """Print each image with its first label and where its picture is."""
    for answer in answers:
        best = "".join(f"{p['label']} {p['probability']:.1%}" for p in answer.get("predictions", ())[:1])
        message = f"not read: {answer['error']}" if "error" in answer else f"{best}: {answer['figure']}"
        print(printable(f"{answer['image']}: {message}"))


def show_index(result: dict[str, Any], run: Path, other: str) -> None:
    """Print what an index holds, what it leaves out, and the command to search it; `other` are its arguments, if need be."""
    for skipped in result["skipped"]:
        print(printable(f"left out {truncate(skipped['image'])}: {skipped['reason']}"), file=sys.stderr)
    short = f"short codes of {result['bits']} bits" if result["bits"] else "no short codes"
    print(f"{'index':10}  {result['index']}: {result['images']:,} images, {result['added']:,} coded now; {short}")
    print(f"{'search':10}  alexnet search query {shell_quote(run)} IMAGE…{other}")


def show_export(result: dict[str, Any]) -> None:
    """Print what `export` compared."""
    smaller = f", {result['bytes'] / result['float_bytes']:.2f} of the float file" if result["int8"] else ""
    print(printable(f"{'file':10}  {result['file']}, {result['bytes'] / 1e6:.1f} MB{smaller}"))
    print(f"{'needs':10}  onnxruntime {result['onnxruntime']} (opset {result['opset']}, IR version {result['ir_version']})")
    same = f"the same label for {result['same_top1']:.1%}, probabilities within {result['largest_difference']:.2g}"
    print(printable(f"{'compared':10}  {result['images']:,} images ({result['compared_on']}): {same}"))
    if result["top1"]:
        print(f"{'top-1':10}  {', '.join(f'{mode} {share:.2%}' for mode, share in result['top1'].items())}")
    paces = ", ".join(f"{mode} {pace:,.0f}" for mode, pace in result["images_per_second"].items())
    print(f"{'images/s':10}  {paces}, one at a time")


def show_neighbours(answers: Iterable[dict[str, Any]]) -> None:
    """Print each image with those that are nearest."""
    for answer in answers:
        print(printable(answer["image"]))
        if "error" in answer:
            print(printable(f"    not read: {answer['error']}"))
        for near in answer.get("neighbours", ()):
            print(printable(f"  {near['distance']:8.2f} away  {_from_here(near['image'])}"))


def _from_here(path: str) -> str:
    """Return a path as one would write it here, if it lies in this folder; an index has full paths."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def show_summary(summary: dict[str, Any]) -> None:
    """Print a finished training: figures, report, and the command to predict with."""
    from alexnet.inference.metrics import most_frequent
    from alexnet.progress import clock

    for name in ("validation", "test"):
        if summary[name]:
            print(f"{name:10}  {_accuracy(summary[name])}")
    last = summary["test"] or summary["validation"]
    label, share = most_frequent(last["per_class"])
    if last["top1_interval"][0] <= share:
        named = printable(repr(truncate(label)))
        print(
            f"{'note':10}  not significantly better than the majority-class baseline, {named} for all ({share:.1%}): "
            "train longer, add images, or check the labels"
        )
    epochs = f"{summary['epochs']} epoch{'' if summary['epochs'] == 1 else 's'}"
    print(f"{'time':10}  {clock(summary['seconds'])}, {epochs}, best {summary['best_epoch']}")
    print(f"{'report':10}  {summary['run']}/report.html")
    print(f"{'predict':10}  alexnet predict {shell_quote(summary['run'])} IMAGE…")


def show_lr_curve(result: dict[str, Any], as_json: bool) -> None:
    """Print the suggestion, and the command that was given as one that trains with it."""
    if as_json:
        print_json(result)
        return
    given = [argument for argument in sys.argv[1:] if argument not in ("--find-lr", "--overwrite", "--debug")]
    changes = [part for key, value in result["settings"].items() for part in ("--set", f"{key}={value:g}")]
    rate = result["settings"]["optimizer.lr"]
    print(f"{'lr':10}  {rate:g}, where the loss falls fastest; it rises from {result['rises_from']:.2g} on")
    print(f"{'curve':10}  {result['figure']}")
    print(f"{'train':10}  alexnet {shlex.join([*given, *changes])}")


def show_study(result: dict[str, Any]) -> None:
    """Print a study's table, and where its figure is."""
    from alexnet.ablation.results import table

    print(table(result))
    print(f"{'figure':10}  {result['figures'][0]}")
    print(f"{'compare':10}  alexnet compare {shlex.join(run['run'] for arm in result['arms'] for run in arm['runs'])}")


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = metrics["top1_interval"]
    interval = f"({low:.1%} to {high:.1%})"
    top5 = f" top-5 {metrics['top5']:.2%}," if len(metrics["per_class"]) > 5 else ""  # of five or fewer it is always 100 %
    return f"top-1 {metrics['top1']:.2%} {interval},{top5} loss {metrics['loss']:.4f}, {metrics['images']:,} images"


def print_problems(result: dict[str, Any]) -> None:
    """Print a row for each problem of a dataset, as CSV."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "kind", "detail"])
    writer.writerows([problem["image"], problem["kind"], problem["detail"]] for problem in result["problems"])


def show_problems(result: dict[str, Any]) -> None:
    """Print what is wrong with a dataset, the first few of each kind."""
    from itertools import groupby

    from alexnet.data.check import KINDS

    print(f"{result['images']:,} images of {len(result['classes'])} classes")
    if not result["problems"]:
        print("no problems found")
    for kind, alike in groupby(result["problems"], key=lambda problem: problem["kind"]):
        problems = list(alike)
        print(f"\n{len(problems):,} x {kind}: {KINDS[kind]}")
        for problem in problems[:PROBLEMS_SHOWN]:
            print(printable(f"    {truncate(problem['image'] or '')}{': ' if problem['image'] else ''}{problem['detail']}"))
        if len(problems) > PROBLEMS_SHOWN:
            print(f"    and {len(problems) - PROBLEMS_SHOWN:,} more: --csv or --json lists them all")


def show_evaluation(result: dict[str, Any]) -> None:
    """Print an evaluation, a row for each class."""
    print(_accuracy(result))
    scaling = f"before scaling {result['ece_raw']:.2%}, temperature {result['temperature']:.2f}"
    print(f"calibration error {result['ece']:.2%} ({scaling})\n")
    width = max(5, *(len(truncate(label)) for label in result["per_class"]))
    print(f"{'class':{width}}  images  precision  recall     F1")
    for label, c in result["per_class"].items():
        shares = f"{_share(c['precision']):>9}  {_share(c['recall']):>6}  {_share(c['f1']):>5}"
        print(f"{truncate(label):{width}}  {c['images']:6,}  {shares}")
    for skipped in result["skipped"]:
        print(printable(f"left out {truncate(skipped['image'])}: {skipped['reason']}"))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
