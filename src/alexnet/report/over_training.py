"""A run over its training: how accurate the weights are that it saved on the way, as rows and as a curve."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from alexnet.data.batches import epoch_bounds
from alexnet.data.dataset import Dataset
from alexnet.errors import RunError, counted
from alexnet.files import refuse_overwrite, write_output
from alexnet.inference.evaluate import evaluate_split
from alexnet.plotting import BLUE, GREY, ORANGE
from alexnet.progress import say
from alexnet.run import RunFolder, find_weights, load_model, read_metrics, read_recipe

COLUMNS = ("weights", "step", "epoch", "top1", "top1_interval", "loss")


class Point(NamedTuple):
    """Weights that a run saved: in `path`, a file in its `epochs` or, for those that it kept in the end, its folder."""

    path: Path
    step: int
    epoch: float


def over_training(
    folder: RunFolder, points: Sequence[Point], dataset: Dataset, split: str, views: int | None, device: torch.device
) -> dict[str, Any]:
    """Evaluate weights that a run saved, and draw the curve; the result is that of `Run.over_training`."""
    recipe, figure, rows = read_recipe(folder), folder.path / "over-training.png", list[dict[str, Any]]()
    refuse_overwrite(figure)
    for number, point in enumerate(points, 1):
        say(f"weights {number} of {len(points)}: after step {point.step:,}")
        network, config = load_model(find_weights(point.path), device)
        arguments = config.preprocessing, config.precision, recipe.data.workers
        metrics = evaluate_split(network, dataset, split, *arguments, view_count=views).to_json()
        rows.append({"weights": str(point.path), **point._asdict(), **metrics})
    named = {"run": str(folder.path), "split": split, "images": rows[0]["images"], "figure": str(figure)}
    result = {**named, "points": [{name: row[name] for name in COLUMNS} for row in rows]}
    draw(result, figure, log=recipe.train.save_steps == "log")
    return result


def saved_points(folder: RunFolder) -> list[Point]:
    """Return the weights that a run saved after steps and epochs, and those it kept, in the order of their steps.

    Raises:
        RunError: it saved none on the way, or its files are damaged.
    """
    pattern, points = read_recipe(folder).train.save_epochs, list[Point]()
    files = sorted((folder.path / "epochs").glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder.path} saved no weights on the way: train with --set train.save_steps=log")
    steps, per_epoch = _steps_of_epochs(folder)
    of_epochs = {f"{pattern.format(epoch=epoch)}.safetensors": epoch for epoch in steps if pattern}
    for file in files:
        number = file.stem.removeprefix("step-")
        if file.name in of_epochs:
            points.append(Point(file, steps[of_epochs[file.name]], float(of_epochs[file.name])))
        elif number.isdecimal():
            points.append(Point(file, int(number), int(number) / per_epoch))
    if folder.summary.exists():
        points.append(Point(folder.path, *_kept(folder, steps)))
    return sorted(points, key=lambda point: point.step)


def _steps_of_epochs(folder: RunFolder) -> tuple[dict[int, int], int]:
    """Return the number of steps done after each epoch, the last of which may be cut short, and that of a whole epoch."""
    rows = {int(row["epoch"]): int(row["images"]) for row in read_metrics(folder, ("epoch", "images"))}
    ends = [end for _, end in epoch_bounds(max(rows.values()), read_recipe(folder).train)]
    counts = [sum(end <= images for end in ends) if epoch else 0 for epoch, images in rows.items()]  # epoch 0: a fitted head
    return dict(zip(rows, np.cumsum(counts).tolist(), strict=True)), len(ends)


def _kept(folder: RunFolder, steps: Mapping[int, int]) -> tuple[int, float]:
    """Return the step and the epoch of the weights that a run kept."""
    try:
        epoch = folder.read_summary()["best_epoch"]
        return steps[epoch], float(epoch)
    except LookupError as error:
        raise RunError(f"{folder.summary} is damaged: {error!r}") from error


def draw(result: Mapping[str, Any], path: Path, *, log: bool) -> None:
    """Draw accuracy, with its 95 % interval, and loss over the steps to a PNG file; `log`: steps on a logarithmic axis."""
    from matplotlib.figure import Figure  # importing it takes half a second

    from alexnet import fonts

    points = result["points"]
    steps, low, high = (np.array(column) for column in zip(*_top1(points), strict=True))
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    accuracy, loss = figure.subplots(2, 1, sharex=True)
    accuracy.fill_between(steps, 100 * low, 100 * high, color=BLUE, alpha=0.15, linewidth=0)
    for axes, key, factor, colour in ((accuracy, "top1", 100, BLUE), (loss, "loss", 1, ORANGE)):
        values = [factor * point[key] for point in points]
        axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.5, clip_on=False)
        for point in points:
            if point["weights"] == result["run"]:
                ring = {"markerfacecolor": "none", "markeredgecolor": colour, "label": "the weights that the run kept"}
                axes.plot(point["step"], factor * point[key], "o", markersize=9, clip_on=False, **ring)
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    if log:
        loss.set_xscale("symlog", linthresh=1, linscale=0.3)  # step 0 has a place, too
        loss.set_xlim(left=0)
        loss.xaxis.set_major_formatter("{x:,.0f}")
    accuracy.set_ylabel(f"{result['split']} top-1 (%), 95 % interval")
    loss.set(ylabel=f"{result['split']} loss", xlabel="training step", ylim=(0, None))
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(frameon=False, loc="best")
    title = f"{Path(result['run']).name}: {counted(result['images'], 'image')}"
    accuracy.set_title(title, loc="left", parse_math=False)
    write_output(path, partial(fonts.save, figure))


def _top1(points: Any) -> Iterator[tuple[int, float, float]]:
    for point in points:
        yield point["step"], *point["top1_interval"]
