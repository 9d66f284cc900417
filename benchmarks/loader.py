"""Images per second of the input pipeline, alternating with a training step on the same images and with tf.data, in one run.

The loader does everything that a batch needs before the network's forward pass: read from the cache in shuffled order, shift,
mirror, normalise, resize. Decoding is the cost of filling the cache, once per dataset: read, decode, fit, write. Training is
loader and step together, as in `training/trainer.py`. tf.data does the same work in `.venv-keras` (`tensorflow_peers.py`), in a
separate process that only computes on request. Required: loader and decoding at least 3 times as fast as the step, training at
least 0.9 times.

Reads cifar-10-batches-py and imagenette in the folder ALEXNET_TEST_DATA; the cache is a temporary folder.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from benchmarks.turns import Measured, in_turn, ratios, real_data, spread
from benchmarks.tutorial import PYTHON, asked
from torch import Tensor

import alexnet
from alexnet.data.augment import training_input
from alexnet.data.batches import Batch, SplitImages, batch_bounds, epoch_batches
from alexnet.data.cache import open_cache
from alexnet.data.dataset import open_dataset, resolve
from alexnet.data.sources import open_table
from alexnet.data.statistics import fill_statistics
from alexnet.network.device import autocast, choose_device, keep_freed_memory, resolve_precision, to_device
from alexnet.network.fast.fuse import use_bf16_gradients
from alexnet.recipe import Preprocessing, Recipe, load
from alexnet.training.optimizer import Loss, build_optimizer
from alexnet.training.schedule import input_size_at

ROUNDS = 5
WANTED = {"loader": 3.0, "decoding": 3.0, "training": 0.9}  # relative to the step's images per second


class Case(NamedTuple):
    """A dataset with recipe `fast` and `settings`, at the fraction `share` of the training, as the input size grows.

    The loader passes over `images` images; step and training take `steps` batches of `batch`.
    """

    dataset: str
    share: float
    settings: dict[str, Any]
    images: int
    batch: int
    steps: int


CASES = {
    "CIFAR-10 stored at 32, first input": Case("cifar10", 0.0, {}, 5120, 256, 1),
    "CIFAR-10 stored at 32, last input": Case("cifar10", 1.0, {}, 5120, 256, 1),
    "Imagenette at 227": Case("imagenette", 1.0, {"images.cache_size": 227, "images.input": 227}, 1000, 64, 1),
}


@dataclass(frozen=True, eq=False)
class Loader:
    """The images of a case, and how they become input; a pass is an epoch over its first `count` images."""

    case: Case
    recipe: Recipe
    preprocessing: Preprocessing
    images: SplitImages
    device: torch.device

    def inputs(self, count: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the network's inputs and the targets as in `training/trainer.py`."""
        images = SplitImages(self.images.pixels, self.images.rows[:count], self.images.targets[:count])
        cuts, workers = batch_bounds(count, self.case.batch), self.recipe.data.workers
        seed, alternate = self.recipe.train.seed, self.recipe.augment.alternating_flip
        for batch in epoch_batches(images, cuts, seed, epoch, workers=workers, alternate=alternate):
            yield self._input(batch), batch.targets.to(self.device, non_blocking=True)

    def _input(self, batch: Batch) -> Tensor:
        assert batch.draws is not None
        images = batch.images.to(self.device, non_blocking=True)
        return training_input(images, batch.draws, self.preprocessing, self.recipe.augment)


def rated(count: int, work: Callable[[], object]) -> Measured:
    """Return a pass that handles `count` images."""

    def run() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return count / (time.perf_counter() - start)

    return run


def stepping(loader: Loader, network: alexnet.AlexNet) -> Callable[[Tensor, Tensor], None]:
    """Return a training step as in `training/trainer.py`, on a given input."""
    recipe, device = loader.recipe, loader.device
    optimizer, loss_of = build_optimizer(network, recipe.optimizer), Loss(recipe.train, loader.images.targets, 10, device)
    if resolve_precision(device, recipe.train.precision) == "bfloat16":
        use_bf16_gradients(network)

    def step(images: Tensor, targets: Tensor) -> None:
        with autocast(device, recipe.train.precision):
            logits = network(images, loader.preprocessing.upscale).float()
        loss = loss_of(logits, targets)
        loss.item()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        int((logits.argmax(1) == targets).sum())

    return step


def tf_data(count: int, settings: dict[str, Any]) -> Measured:
    """Return a pass of tf.data's pipeline over `count` images."""
    work = asked("data", json.dumps(settings))
    return lambda: count / work()


def passes(case: Case, data: Path, scratch: Path) -> dict[str, Measured]:
    """Open the case's dataset in `data` and return everything to be measured on it, the step first."""
    device = choose_device()
    table = open_table(data / case.dataset if case.dataset == "imagenette" else case.dataset, data)
    recipe = resolve(load("fast").with_settings(case.settings), table)
    workers = recipe.data.workers
    with mock.patch.dict(os.environ, ALEXNET_CACHE=str(scratch)):
        images = open_dataset(table, recipe.images.resolved(), workers, recipe.data).images("train")
    recipe, mean_image = fill_statistics(recipe, images)
    network = to_device(alexnet.AlexNet(recipe.model.variant, 10, **recipe.model.overrides), device)
    preprocessing = recipe.images.resolved(mean_image)
    preprocessing = preprocessing.model_copy(update={"input": input_size_at(recipe, case.share, network.smallest)})
    chosen = np.random.default_rng(0).permutation(len(images))[: case.images]  # evenly spaced in the cache
    images = SplitImages(images.pixels, images.rows[chosen], images.targets[chosen])
    loader, few = Loader(case, recipe, preprocessing, images, device), case.steps * case.batch
    step = stepping(loader, network)
    ready, epochs = list(loader.inputs(few)), iter(range(1, 1000))
    found = {
        "step": rated(few, lambda: [step(*pair) for pair in ready]),
        "training": rated(few, lambda: [step(*pair) for pair in loader.inputs(few, next(epochs))]),
        "loader": rated(case.images, lambda: [None for _ in loader.inputs(case.images, next(epochs))]),
    }
    peer: dict[str, Any] = {
        "batch": case.batch,
        "side": preprocessing.side,
        "input": preprocessing.resized,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }
    peer |= {
        "shift": round(preprocessing.side * recipe.augment.shift),
        "horizontal_flip": recipe.augment.horizontal_flip,
        "threads": workers,
    }
    if PYTHON.exists():
        np.save(scratch / "images.npy", images.pixels.take(images.rows))
        found["tf.data, loader"] = tf_data(case.images, {**peer, "source": str(scratch / "images.npy")})
    if table.pixels is None:
        files = table.select(table.rows("train"))

        def decode() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as cache, mock.patch.dict(os.environ, ALEXNET_CACHE=cache):
                open_cache(files, preprocessing, workers)

        found["decoding"] = rated(len(files), decode)
        if PYTHON.exists():
            (scratch / "files.txt").write_text("\n".join(str(files.source(row)) for row in range(len(files))))
            found["tf.data, decoding"] = tf_data(len(files), {**peer, "source": str(scratch / "files.txt")})
    return found


def compare(name: str, case: Case, ways: dict[str, Measured]) -> dict[str, float]:
    """Time the passes in turn, print a table, and return the speeds relative to the step."""
    rates = in_turn(ways, ROUNDS)
    print(f"{name}, batches of {case.batch}, {torch.get_num_threads()} threads, {os.cpu_count()} workers")
    of_step = {}
    for way, found in rates.items():
        each = ratios(found, rates["step"])
        of_step[way] = statistics.median(each)
        wanted = f", wanted {WANTED[way]:g}" if way in WANTED else ""
        line = f"  {way:18} {spread(found, '.0f')} images/s"
        print(line + ("" if way == "step" else f"; {spread(each)} of the step{wanted}"))
    return of_step


def main(data: Path) -> None:
    """Measure every case."""
    keep_freed_memory()
    if not PYTHON.exists():
        print("no .venv-keras here: make prove installs it; tf.data was not measured")
    results = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            results[name] = compare(name, case, passes(case, data, Path(scratch)))
    print(json.dumps({"benchmark": "loader", "threads": torch.get_num_threads(), "workers": os.cpu_count(), **results}))


if __name__ == "__main__":
    main(real_data())
