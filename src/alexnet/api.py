"""What Python users call, and the command line too: `train`, `load`, and the `Run` that both return."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.data.check import Findings
from alexnet.data.check import check as check_table
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.sources import open_table
from alexnet.errors import DataError, RunError
from alexnet.measure.evaluate import Evaluation, evaluate_split
from alexnet.network.device import choose_device
from alexnet.progress import track
from alexnet.recipe import Recipe
from alexnet.recipe import load as load_recipe
from alexnet.run import find, load_model, read_json, read_recipe
from alexnet.training import job
from alexnet.training.pretrained import settings_of
from alexnet.use.predict import find_images, predict
from alexnet.use.report import write_report


class Run:
    """A folder that training left: predicts, evaluates, explains itself.

    Attributes:
        path: the folder.
        labels: names of the classes, in the order of the network's outputs.
        network: the trained network, a `torch.nn.Module`: N 3 H W normalised floats in, N x classes logits out. Images of a
            run with small ones go in as they are, with how often to enlarge them: `network(x, card.preprocessing.enlarge)`.
        card: what belongs to the weights: variant, preprocessing, temperature.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        """Open the run in folder `path`; its network goes to `device` (None: the accelerator, if there is one).

        Raises:
            RunError: no run, or a damaged one.
        """
        self.path = Path(path)
        self._folder = find(self.path)
        self.network, self.card = load_model(self._folder, choose_device(device))
        self.labels = self.card.labels

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe it was trained by, as resolved."""
        return read_recipe(self._folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What `alexnet train --json` printed.

        Raises:
            RunError: the training has not ended, or the file is damaged.
        """
        if not self._folder.summary.exists():
            raise RunError(f"{self.path} is not finished: alexnet train --resume {self.path} goes on with it")
        return read_json(self._folder.summary)

    def predict(self, images: str | Path | Iterable[str | Path | NDArray[np.uint8]], top: int = 5) -> list[dict[str, Any]]:
        """Return an answer for each image, in order.

        `images` are paths of files or folders, globs, or H W 3 uint8 arrays; answers are
        `{"image", "predictions": [{"label", "probability"}]}`, best first, or `{"image", "error"}` for what cannot be read.
        """
        return list(self.stream([images] if isinstance(images, str | Path) else images, top))

    def stream(self, images: Iterable[str | Path | NDArray[np.uint8]], top: int = 5) -> Iterator[dict[str, Any]]:
        """Yield the answers of `predict` as they come, a batch in memory at a time."""
        sources = [s for item in images for s in (find_images([item]) if isinstance(item, str | Path) else [item])]
        # On a terminal the answers themselves show how far it is, and a bar would be drawn over them.
        shown = sources if sys.stdout.isatty() else track(sources, "Predicting", len(sources))
        return predict(self.network, self.card, shown, top)

    def evaluate(self, data: str | Path | None = None, split: str | None = None, views: int = 1) -> Evaluation:
        """Evaluate on a dataset: the run's own if `data` is None, else all of `data`, or its test set where it has splits.

        `split` is `train`, `val` or `test`; None takes `test` where there is one, else `val`. `views` of each image, 1, 2 (with
        the mirror image) or 10 (crops, as in 2012), are averaged. The result's `to_json()` has the figures.

        Raises:
            DataError: no such data or split, or labels that the network does not know.
        """
        dataset, chosen = self.dataset(data, split)
        card, recipe = self.card, self.recipe
        return evaluate_split(
            self.network,
            dataset,
            chosen,
            card.preprocessing,
            precision=card.precision,
            workers=recipe.data.workers,
            temperature=card.temperature,
            view_count=views,
        )

    def dataset(self, data: str | Path | None = None, split: str | None = None) -> tuple[Dataset, str]:
        """Return a dataset with targets in this network's order of labels, and the split of it to use, as for `evaluate`."""
        settings = self.recipe.data
        table = open_table(settings.dataset if data is None else data, settings.root)
        if unknown := sorted(set(table.labels) - set(self.labels)):
            raise DataError(
                f"{table.name} has labels that the run {self.path} does not know: {', '.join(map(repr, unknown))}; "
                f"it knows {', '.join(map(repr, self.labels))}"
            )
        whole = data is not None and split is None and not table.splits.any()
        dataset = open_dataset(table, self.card.preprocessing, settings.workers, None if whole else settings)
        dataset = replace(dataset, table=dataset.table.relabelled(self.labels))
        if whole:
            return dataset, "all"
        counts = dataset.table.counts()
        chosen = split or ("test" if "test" in counts else "val")
        if chosen not in counts:
            raise DataError(f"{table.name} has no split {chosen!r}: it has {', '.join(counts)}")
        return dataset, chosen

    def report(self) -> Path:
        """Write `report.html` anew and return its path."""
        dataset, split = self.dataset()
        evaluation = self.evaluate(split=split)
        return write_report(self._folder, dataset, split, evaluation)


def train(
    data: str | Path | None = None,
    *,
    recipe: str | Path = "fast",
    out: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> Run:
    """Train a network and return the run.

    Args:
        data: a built-in name, a folder, or a CSV or Parquet file; None takes the recipe's.
        recipe: a name (`alexnet recipes list`) or a TOML file.
        out: the run folder, new; None makes one under `runs/`.
        device: such as `cpu` or `cuda:1`; None takes the accelerator, if there is one.
        threads: for the CPU; None takes all cores.
        weights: what the features start from: a run folder (its variant is taken too), a file in torchvision's layout, or
            `imagenet1k`; None is as the recipe says.
        settings: the recipe's keys to change, `{"train.epochs": 5}`.
        started: the `time.monotonic()` that the run's seconds count from; None is now.

    Raises:
        AlexNetError: whatever keeps it from training, in one line.
    """
    brought = {} if weights is None else settings_of(str(weights))
    changes = {**({} if data is None else {"data.dataset": str(data)}), **brought, **(settings or {})}
    chosen = load_recipe(str(recipe)).with_settings(changes)
    if threads:
        torch.set_num_threads(threads)
    folder = Path(out) if out is not None else default_out(chosen)
    return _finished(job.start(chosen, folder, device, time.monotonic() if started is None else started), device)


def resume(path: str | Path, *, device: str | None = None, threads: int | None = None, started: float | None = None) -> Run:
    """Go on with an unfinished run from its last checkpoint and return it; arguments as for `train`.

    Raises:
        AlexNetError: no run there, or a finished one, or whatever keeps it from training.
    """
    if threads:
        torch.set_num_threads(threads)
    folder = find(Path(path))
    if folder.summary.exists() and folder.metrics.exists() and not folder.report.exists():  # it was killed at the very end
        job.tidy(folder)
        run = Run(path, device)
        run.report()
        return run
    return _finished(job.resume(Path(path), device, time.monotonic() if started is None else started), device)


def check(data: str | Path, data_root: str | Path | None = None) -> Findings:
    """Look at every image of a dataset and return what is wrong with it; nothing is changed. `to_json()` has it all.

    Args:
        data: a built-in name, a folder, or a CSV or Parquet file.
        data_root: where downloads of built-in datasets lie.

    Raises:
        DataError: nothing there, fewer than two classes, columns missing.
    """
    return check_table(open_table(data, None if data_root is None else Path(data_root)))


def load(path: str | Path, device: str | None = None) -> Run:
    """Open a run folder; see `Run`."""
    return Run(path, device)


def default_out(recipe: Recipe) -> Path:
    """Return `runs/<data>-<recipe>-<date>-<time>`."""
    return Path("runs") / f"{Path(recipe.data.dataset).stem}-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _finished(trained: job.Trained, device: str | None) -> Run:
    write_report(trained.folder, trained.dataset, trained.split, trained.evaluation)
    return Run(trained.folder.path, device)
