"""The output of commands: JSON, CSV, tables and summaries."""

import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from itertools import combinations, combinations_with_replacement, groupby
from pathlib import Path
from typing import Any

from alexnet.errors import counted, format_names, printable, shell_quote, truncate

PROBLEMS_SHOWN = 5  # of each kind
DOUBTS_SHOWN = 20


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_result(result: dict[str, Any], print_text: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    """Print a result as JSON, or else by `print_text`."""
    (print_json if as_json else print_text)(result)


def print_jsonl(results: Iterable[dict[str, Any]]) -> None:
    """Print results as they arrive, one JSON object per line."""
    for result in results:
        print(json.dumps(result, ensure_ascii=False), flush=True)


def print_extracted(result: dict[str, Any]) -> None:
    """Print the result of `features`: the file and its arrays, and the images that could not be read."""
    print(printable(f"{'file':10}  {result['file']}, {result['bytes'] / 1e6:.1f} MB, {counted(result['images'], 'image')}"))
    for layer, shape in result["layers"].items():
        print(f"{layer:10}  {' x '.join(map(str, shape))}")
    for error in result["errors"]:
        print(printable(f"left out {truncate(error['image'])}: {error['error']}"))


def print_predictions_csv(results: Iterable[dict[str, Any]]) -> None:
    """Print the results of `predict` as CSV, a row per label."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "known", "error"])
    for result in results:
        if "error" in result:
            writer.writerow([result["image"], "", "", "", "", result["error"]])
        known = str(result["known"]).lower() if "known" in result else ""
        for rank, prediction in enumerate(result.get("predictions", ()), 1):
            writer.writerow([result["image"], rank, prediction["label"], f"{prediction['probability']:.6f}", known, ""])


def print_predictions(results: Iterable[dict[str, Any]]) -> None:
    """Print the results of `predict`: each image with its labels."""
    for result in results:
        print(printable(result["image"]))
        if "error" in result:
            print(printable(f"    not read: {result['error']}"))
        if result.get("known") is False:
            print("  unknown: perhaps none of the labels")
        for prediction in result.get("predictions", ()):
            print(f"  {prediction['probability']:6.1%}  {prediction['label']}")
        if "sorted" in result:
            print(printable(f"  sorted  {result['sorted']}"))


def print_undone(result: dict[str, Any]) -> None:
    """Print the result of `predict --undo`: what was taken back, and what was kept."""
    for kept in result["kept"]:
        print(printable(f"kept {kept['image']}: {kept['reason']}"), file=sys.stderr)
    print(printable(f"{result['folder']}: {counted(result['undone'], 'image')} taken back, {len(result['kept']):,} kept"))


def print_explanations(results: Iterable[dict[str, Any]]) -> None:
    """Print the results of `explain`: each image with its most probable label, the path of its figure, and scores."""
    for result in results:
        best = "".join(f"{p['label']} {p['probability']:.1%}" for p in result.get("predictions", ())[:1])
        message = f"not read: {result['error']}" if "error" in result else f"{best}: {result['figure']}"
        print(printable(f"{result['image']}: {message}"))
        if scores := result.get("scores"):
            print(f"  {'':20}  deletion  (random)  insertion  (random)  correlation with random weights")
        for method, score in (scores or {}).items():
            areas = f"{score['deletion']:8.3f} {score['random_deletion']:9.3f} {score['insertion']:10.3f}"
            correlation = score["redrawn_correlation"]
            end = "undefined" if correlation is None else f"{correlation:.2f}"
            print(f"  {method:20}  {areas} {score['random_insertion']:9.3f}  {end}")


def print_index(result: dict[str, Any], run: Path, options: str) -> None:
    """Print the size of an index, the images it skipped, and the command, with `options`, that searches it."""
    for skipped in result["skipped"]:
        print(printable(f"left out {truncate(skipped['image'])}: {skipped['reason']}"), file=sys.stderr)
    codes = f"binary codes of {result['bits']} bits" if result["bits"] else "no binary codes"
    print(f"{'index':10}  {result['index']}: {counted(result['images'], 'image')}, {result['added']:,} added; {codes}")
    print(f"{'search':10}  alexnet search query {shell_quote(run)} IMAGE…{options}")


def print_export(result: dict[str, Any]) -> None:
    """Print the result of `export`: the file, and how it compares with the run."""
    smaller = f", {result['bytes'] / result['float_bytes']:.2f} of the float file" if result.get("int8") else ""
    print(printable(f"{'file':10}  {result['file']}, {result['bytes'] / 1e6:.1f} MB{smaller}"))
    if "opset" in result:
        print(f"{'needs':10}  onnxruntime {result['onnxruntime']} (opset {result['opset']}, IR version {result['ir_version']})")
    same = f"the same label for {result['same_top1']:.1%}, probabilities within {result['largest_difference']:.2g}"
    print(printable(f"{'compared':10}  {counted(result['images'], 'image')} ({result['compared_on']}): {same}"))
    if result["top1"]:
        print(f"{'top-1':10}  {', '.join(f'{mode} {share:.2%}' for mode, share in result['top1'].items())}")
    paces = ", ".join(f"{mode} {pace:,.0f}" for mode, pace in result["images_per_second"].items())
    print(f"{'images/s':10}  {paces}, one at a time")


def print_page(result: dict[str, Any]) -> None:
    """Print the result of an exported page: how it compares with the run, and how to look at it."""
    print_export(result)
    if found := result["browser"]:
        same = f"the same label for {found['same_top1']:.1%}, probabilities within {found['largest_difference']:.2g}"
        unread = f"; {found['unread']:,} it cannot read" if found["unread"] else ""
        print(printable(f"{'browser':10}  {counted(found['images'], 'image')} in {found['program']}: {same}{unread}"))
    print(printable(f"{'page':10}  {result['page']}, {result['page_bytes'] / 1e6:.1f} MB: put it on any host of files"))
    print(printable(f"{'look':10}  python -m http.server --directory {shell_quote(result['page'])}"))


def print_weights(result: dict[str, Any]) -> None:
    """Print the result of an export of weights: the file, what images need, and how to load it."""
    print(printable(f"{'file':10}  {result['file']}, {result['bytes'] / 1e6:.1f} MB, read back and compared"))
    print(f"{'sha256':10}  {result['sha256']}")
    print(printable(f"{'outputs':10}  {len(result['labels']):,}: {format_names(result['labels'])}"))
    if result["temperature"] != 1:
        print(f"{'calibrated':10}  the run's probabilities are softmax(logits / {result['temperature']:.6g})")
    print(printable(f"{'images':10}  RGB: {'; '.join(result['images'])}"))
    if "layers" in result:
        print(f"{'layers':10}  {' '.join(result['layers'])}")
    for note in result.get("notes", ()):
        print(f"{'note':10}  {note}")
    for number, line in enumerate(result["python"]):
        print(printable(f"{'' if number else 'load':10}  {line}"))


def print_neighbours(results: Iterable[dict[str, Any]], sheet: Path | None) -> None:
    """Print the results of `search query`, each image with its nearest neighbours, and the path of the contact sheet."""
    for result in results:
        print(printable(result["image"]))
        if "error" in result:
            print(printable(f"    not read: {result['error']}"))
        for neighbour in result.get("neighbours", ()):
            path = neighbour["image"]  # absolute
            shown = os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
            print(printable(f"  {neighbour['distance']:8.2f} away  {shown}"))
    if sheet is not None:
        print(sheet)


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary of a training: metrics, report, and the command to predict with."""
    from alexnet.inference.metrics import most_frequent
    from alexnet.progress import format_duration

    for name in ("validation", "test"):
        if summary[name]:
            print(f"{name:10}  {_accuracy(summary[name])}")
    last = summary["test"] or summary["validation"]
    label, baseline = most_frequent(last["per_class"])
    if last["top1_interval"][0] <= baseline:
        worse = f"not significantly better than the majority-class baseline, {printable(repr(truncate(label)))} for all"
        print(f"{'note':10}  {worse} ({baseline:.1%}): train longer, add images, or check the labels")
    epochs = counted(summary["epochs"], "epoch")
    kept = f"weights of epoch {summary['best_epoch']} kept, the {'best on validation' if summary['kept'] == 'best' else 'last'}"
    print(f"{'time':10}  {format_duration(summary['seconds'])}, {epochs}, {kept}")
    print(f"{'report':10}  {summary['run']}/report.html")
    print(f"{'predict':10}  alexnet predict {shell_quote(summary['run'])} IMAGE…")


def print_choice(result: dict[str, Any]) -> None:
    """Print the table of `choose`, and what is kept of it."""
    from alexnet.choice import WAYS
    from alexnet.progress import format_duration
    from alexnet.run import RunFolder

    print(f"{'recipe':10}  {'':26}  validation top-1            loss    time")
    for tried in result["tries"]:
        metrics, recipe = tried["validation"], tried["recipe"]
        low, high = metrics["top1_interval"]
        accuracy = f"{metrics['top1']:7.2%} ({low:.1%} to {high:.1%})"
        row = f"{recipe:10}  {WAYS[recipe]:26}  {accuracy:26}  {metrics['loss']:.3f}  {format_duration(tried['seconds']):>5}"
        print(f"{row}  {'kept' if recipe == result['kept'] else ''}".rstrip())
    print()
    print_summary(RunFolder(Path(result["run"])).read_summary())


def print_folds(result: dict[str, Any]) -> None:
    """Print the accuracies of a cross-validation, where its files are, and the command that trains the final network."""
    from alexnet.inference.metrics import most_frequent
    from alexnet.progress import format_duration

    for fold in result["folds"]:
        low, high = fold["top1_interval"]
        shown = f"top-1 {fold['top1']:7.2%} ({low:.1%} to {high:.1%}), {counted(fold['images'], 'image')}"
        print(f"{'fold ' + str(fold['fold']):10}  {shown}, {format_duration(fold['seconds'])}")
    low, high = result["top1_interval"]
    whole = f"top-1 {result['top1']:7.2%} ({low:.1%} to {high:.1%}), {counted(result['images'], 'image')}"
    print(f"{'all':10}  {whole}, loss {result['loss']:.4f}")
    label, baseline = most_frequent(result["per_class"])
    if low <= baseline:
        worse = f"not significantly better than the majority-class baseline, {printable(repr(truncate(label)))} for all"
        print(f"{'note':10}  {worse} ({baseline:.1%})")
    print(printable(f"{'images':10}  {result['files']['csv']}"))
    print(printable(f"{'doubts':10}  alexnet data doubts {shell_quote(result['run'])}"))
    print(f"{'train':10}  {_final_command(len(result['folds']))}")


def _final_command(folds: int) -> str:
    """Return the command that trains on all images by the options of this one: no test set is needed after the folds."""
    kept: list[str] = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--folds", "--out", "--minutes"):
            value = value if equals else next(arguments, "")
            kept += ["--minutes", f"{float(value) / folds:g}"] if name == "--minutes" else []
        elif argument not in ("--json", "--debug"):
            kept.append(argument)
    return f"alexnet {shlex.join([*kept, '--set', 'data.test=0'])}"


def print_lr_suggestion(result: dict[str, Any]) -> None:
    """Print the suggested learning rate, and the command that trains with it."""
    given = [argument for argument in sys.argv[1:] if argument not in ("--find-lr", "--overwrite", "--debug")]
    changes = [part for key, value in result["settings"].items() for part in ("--set", f"{key}={value:g}")]
    lr = result["settings"]["optimizer.lr"]
    print(f"{'lr':10}  {lr:g}, where the loss falls fastest; it rises from {result['rises_from']:.2g} on")
    print(f"{'curve':10}  {result['figure']}")
    print(f"{'train':10}  alexnet {shlex.join([*given, *changes])}")


def print_comparison(result: dict[str, Any]) -> None:
    """Print the tables of `compare`."""
    from alexnet.report.compare import table, table_of_seeds

    for line in (table_of_seeds if "rows" in result else table)(result).splitlines():
        print(printable(line))


def print_study(result: dict[str, Any]) -> None:
    """Print the table of a study, and the path of its figure."""
    from alexnet.ablation.run import table

    print(table(result))
    print(f"{'figure':10}  {result['figures'][0]}")
    print(f"{'compare':10}  alexnet compare {shlex.join(run['run'] for arm in result['arms'] for run in arm['runs'])}")


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = metrics["top1_interval"]
    interval = f"({low:.1%} to {high:.1%})"
    top5 = f" top-5 {metrics['top5']:.2%}," if len(metrics["per_class"]) > 5 else ""  # always 100 % otherwise
    return f"top-1 {metrics['top1']:.2%} {interval},{top5} loss {metrics['loss']:.4f}, {counted(metrics['images'], 'image')}"


def print_problems_csv(result: dict[str, Any]) -> None:
    """Print the problems of a dataset as CSV, a row per problem."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "kind", "detail"])
    writer.writerows([problem["image"], problem["kind"], problem["detail"]] for problem in result["problems"])


def print_problems(result: dict[str, Any]) -> None:
    """Print the problems of a dataset, the first few of each kind."""
    from alexnet.data.check import KINDS

    print(f"{counted(result['images'], 'image')} of {counted(len(result['classes']), 'class')}")
    if not result["problems"]:
        print("no problems found")
    for kind, same_kind in groupby(result["problems"], key=lambda problem: problem["kind"]):
        problems = list(same_kind)
        print(f"\n{len(problems):,} x {kind}: {KINDS[kind]}")
        for problem in problems[:PROBLEMS_SHOWN]:
            print(printable(f"    {truncate(problem['image'] or '')}{': ' if problem['image'] else ''}{problem['detail']}"))
        if len(problems) > PROBLEMS_SHOWN:
            print(f"    and {len(problems) - PROBLEMS_SHOWN:,} more: --csv or --json lists them all")


def print_shards(result: dict[str, Any]) -> None:
    """Print how many shards were written, and what was left out."""
    print(printable(f"{counted(result['images'], 'image')} in {counted(len(result['shards']), 'shard')} in {result['folder']}"))
    for one in result["skipped"][:DOUBTS_SHOWN]:
        print(printable(f"left out: {truncate(one['image'])}: {one['error']}"))
    if len(result["skipped"]) > DOUBTS_SHOWN:
        print(f"and {len(result['skipped']) - DOUBTS_SHOWN:,} more: --json lists them all")


def print_doubts(result: dict[str, Any]) -> None:
    """Print the most doubtful labels of a dataset, and the files that were written."""
    doubts = result["doubts"]
    print(f"{counted(len(doubts), 'doubtful label')} among {counted(result['images'], 'image')}")
    shown = doubts[:DOUBTS_SHOWN]
    columns = {name: [printable(truncate(doubt[name], 30)) for doubt in shown] for name in ("label", "likely")}
    width, other = (max(map(len, (name, *texts))) for name, texts in columns.items())
    if shown:
        print(f"\n{'label':{width}}          {'likely':{other}}          image")
    for doubt, label, likely in zip(shown, columns["label"], columns["likely"], strict=True):
        given, best = (f"{doubt[f'{name}_probability']:6.1%}" for name in ("label", "likely"))
        print(printable(f"{label:{width}}  {given}  {likely:{other}}  {best}  {truncate(doubt['image'])}"))
    if len(doubts) > len(shown):
        print(f"and {len(doubts) - len(shown):,} more: --csv FILE or --json lists them all")
    for name in ("csv", "page"):
        if result[name]:
            print(printable(f"{name:10}  {result[name]}"))
    if doubts and not result["page"]:
        print(f"\nlook at them: alexnet data doubts {shell_quote(result['run'])} --page doubts.html")


def print_evaluation(result: dict[str, Any]) -> None:
    """Print an evaluation: the metrics, then a row per class."""
    print(_accuracy(result))
    scaling = f"before scaling {result['ece_raw']:.2%}, temperature {result['temperature']:.2f}"
    print(f"calibration error {result['ece']:.2%} ({scaling})")
    if known := result["known"]:
        right = f", {known['top1']:.1%} of them right" if known["images"] else ""
        print(f"known {known['share']:.1%} of the images{right}")
    print()
    width = max(5, *(len(truncate(label)) for label in result["per_class"]))
    print(f"{'class':{width}}  images  precision  recall     F1")
    for label, metrics in result["per_class"].items():
        cells = ("–" if metrics[key] is None else f"{metrics[key]:.1%}" for key in ("precision", "recall", "f1"))
        precision, recall, f1 = cells
        print(f"{truncate(label):{width}}  {metrics['images']:6,}  {precision:>9}  {recall:>6}  {f1:>5}")
    for skipped in result["skipped"]:
        print(printable(f"left out {truncate(skipped['image'])}: {skipped['reason']}"))


def print_curve(result: dict[str, Any]) -> None:
    """Print an evaluation over training: a line for each of the weights, and the figure."""
    print(f"{'step':>10}  {'epoch':>7}  {result['split'] + ' top-1':26}    loss  weights")
    for point in result["points"]:
        low, high = point["top1_interval"]
        top1 = f"{point['top1']:7.2%} ({low:.1%} to {high:.1%})"
        name = "kept" if point["weights"] == result["run"] else Path(point["weights"]).stem
        print(printable(f"{point['step']:10,}  {point['epoch']:7.2f}  {top1:26}  {point['loss']:.4f}  {name}"))
    print(printable(f"{counted(result['images'], 'image')}; 95 % intervals in brackets; figure {result['figure']}"))


def print_curve_csv(result: dict[str, Any]) -> None:
    """Print an evaluation over training as CSV, a row for each of the weights."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["weights", "step", "epoch", "top1", "top1_low", "top1_high", "loss"])
    for point in result["points"]:
        writer.writerow([*(point[key] for key in ("weights", "step", "epoch", "top1")), *point["top1_interval"], point["loss"]])


def print_similarity(result: dict[str, Any]) -> None:
    """Print the result of `similarity`: a line for each pair, and the figure."""
    seeds = f", {counted(result['seeds'], 'seed')}, each layer of one with those of the others" if result["seeds"] else ""
    print(f"{counted(result['images'], 'image')}{seeds}; 95 % intervals in brackets")
    names = [printable(name) for name in result["names"]]
    width = max(map(len, names))
    for key, title in (("rdm", "rank correlation of dissimilarities"), ("cka", "linear CKA")):
        print(f"\n{title}")
        for i, j in (combinations_with_replacement if result["seeds"] else combinations)(range(len(names)), 2):
            value, low, high = (result[key][part][i][j] for part in ("values", "low", "high"))
            interval = "" if low is None else f"  ({low:.3f} to {high:.3f})"
            if value is not None:
                print(f"{names[i]:{width}}  {names[j]:{width}}  {value:6.3f}{interval}")
    if result["figure"]:
        print()
        print(printable(f"{'figure':10}  {result['figure']}"))


def print_units(result: dict[str, Any]) -> None:
    """Print the result of `units`: a line for each unit with its activation, for which image, and the figure."""
    for unit in result["units"]:
        if "images" in unit:
            value, text = unit["images"][0]["value"], truncate(unit["images"][0]["image"])
        else:
            value, text = unit["activation"], "dead" if unit["dead"] else f"noise {unit['noise']:.3f}"
        print(printable(f"{result['layer']} unit {unit['unit']:<5} {value:8.3f}  {text}"))
    print(printable(f"{'figure':10}  {result['figure']}"))
    for skipped in result["skipped"]:
        print(printable(f"left out {truncate(skipped['image'])}: {skipped['error']}"))
