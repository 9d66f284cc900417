"""A whole training, from a recipe to a finished run folder."""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from alexnet.data.batches import epoch_cuts
from alexnet.data.dataset import Dataset, open_dataset, preprocessing, resolve
from alexnet.data.images import Preprocessing
from alexnet.data.labels import differing_in_case
from alexnet.data.sources import open_table
from alexnet.data.statistics import measure
from alexnet.data.table import Table
from alexnet.errors import AlexNetError, Interrupted, RecipeError, RunError, listed, quoted, reason_of, shortened
from alexnet.measure.evaluate import Evaluation
from alexnet.network import kernels
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import choose_device, choose_precision, keep_freed_memory, place, reproducible
from alexnet.network.summary import stored
from alexnet.recipe import Recipe, parse
from alexnet.run import RunFolder, create, find, read_recipe, save_model, write_json, write_text
from alexnet.training import checkpoint
from alexnet.training.loop import Trainer
from alexnet.training.monitor import Monitor, environment
from alexnet.training.parallel import Parallel
from alexnet.training.pretrained import load_features
from alexnet.training.processes import ALONE, Group
from alexnet.training.stop import StopRequest
from alexnet.training.whiten import whiten

SKIPPED_SHOWN = 10  # the summary lists them all


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training: its run folder, what it trained on, and the evaluation to report (of `split`, test or val)."""

    folder: RunFolder
    dataset: Dataset
    split: str
    evaluation: Evaluation


def start(
    recipe: Recipe, out: Path, device: str | None, started: float, group: Group = ALONE, parallel: Parallel = "data"
) -> Trained:
    """Train by `recipe` into the new run folder `out`; `started` is the `time.monotonic()` that its seconds count from.

    Where processes train together, all of them call it, with the same arguments; the first writes.

    Raises:
        AlexNetError: whatever keeps it from training, in one line; `Interrupted` after a signal, with everything saved.
    """
    where = choose_device(device)
    recipe = recipe.from_anywhere().with_settings({"train.tensorboard": group.told(time.strftime(recipe.train.tensorboard))})
    with group.in_turn():  # it may be downloaded
        table = open_table(recipe.data.dataset, recipe.data.root)
    folder = create(out) if group.first else RunFolder(out)
    if group.first:
        write_text(folder.recipe, recipe.to_toml())  # from here on, --resume can begin anew
    try:
        return _train(recipe, table, folder, where, started, group, parallel, resuming=False)
    except AlexNetError as error:
        if group.first and not isinstance(error, Interrupted) and not folder.environment.exists():
            shutil.rmtree(folder.path, ignore_errors=True)  # nothing was trained: the name is free again
        raise


def resume(out: Path, device: str | None, started: float, group: Group = ALONE, parallel: Parallel = "data") -> Trained:
    """Go on with the run in `out` from its last checkpoint, or from its recipe where there is none; processes as for `start`.

    Raises:
        AlexNetError: as `start`; `RunError` where there is no run, or a finished one.
    """
    folder = find(out) if group.first else RunFolder(out)  # another machine need not have it
    if group.first and folder.summary.exists():
        more = f"alexnet train {quoted(read_recipe(folder).data.dataset)} --weights {quoted(out)}"
        anew = f"alexnet report {quoted(out)} writes its page anew"
        raise RunError(f"{out} is finished, there is nothing to resume: {more} trains a new run from what it learned ({anew})")
    text = group.told(read_recipe(folder).to_toml() if group.first else "")
    recipe = parse(tomllib.loads(text), str(folder.recipe))
    with group.in_turn():  # it may be downloaded
        table = open_table(recipe.data.dataset, recipe.data.root)
    return _train(recipe, table, folder, choose_device(device), started, group, parallel, resuming=True)


def _train(
    recipe: Recipe,
    table: Table,
    folder: RunFolder,
    device: torch.device,
    started: float,
    group: Group,
    parallel: Parallel,
    *,
    resuming: bool,
) -> Trained:
    alone = _alone(folder) if group.first else nullcontext()
    with alone, reproducible(device), StopRequest() as stop, Monitor(folder.path, device, recipe.train.tensorboard) as monitor:
        keep_freed_memory()
        try:
            fresh = not (resuming and group.told(checkpoint.exists(folder.path)))
            if device.type == "cpu" and (reason := kernels.lacking()):
                monitor.say(f"Training without the kernels in C++, more slowly: {reason}")
            with group.in_turn():
                recipe, dataset, how, network = prepare(recipe, table, device, fresh=fresh)
        except Interrupted as error:
            way_on = f"stopped before training began; go on with: alexnet train --resume {quoted(folder.path)}"
            raise Interrupted(way_on, error.code) from error
        precision = choose_precision(device, recipe.train.precision)
        if group.world > 1:  # another machine may round otherwise
            network.load_state_dict(group.told_tensors(network.state_dict()))
        trainer = Trainer(recipe, dataset, how, network, folder, monitor, started, group, parallel)
        stop.deferred = True  # from here on, the folder stays, and a signal finds something to save
        if group.first:
            write_json(folder.environment, environment(device, precision, group.world, parallel))
        together = f", {group.world} processes ({parallel} parallel)" if group.world > 1 else ""
        where = f"{device.type}, {precision}, {torch.get_num_threads()} threads{together}"
        _say_plan(monitor, recipe, dataset, folder, where, stored(network))
        if resuming and trainer.resume():
            monitor.say(f"going on in epoch {trainer.at.epoch}, batch {trainer.at.batch + 1} of {len(trainer.cuts)}")
        if group.first:
            write_text(folder.recipe, recipe.to_toml())
        try:
            trainer.fit(stop)
            return _finish(recipe, trainer, folder)
        except RunError as error:
            if not checkpoint.exists(folder.path):
                raise
            way_on = f"mend that and go on with: alexnet train --resume {quoted(folder.path)}"
            raise RunError(f"{error}. The last checkpoint is intact: {way_on}") from error


def prepare(
    recipe: Recipe, table: Table, device: torch.device, *, fresh: bool = True
) -> tuple[Recipe, Dataset, Preprocessing, AlexNet]:
    """Return what a training begins with: the recipe as resolved, the images, how they become input, and the network.

    The network is on its device; if `fresh`, with the first weights that the recipe asks for.

    Raises:
        AlexNetError: the recipe, the dataset and the network do not fit each other.
    """
    network = _network(recipe, table, device, fresh=fresh)
    recipe = resolve(recipe, table)
    dataset = open_dataset(table, preprocessing(recipe), recipe.data.workers, recipe.data)
    recipe, mean_image = measure(recipe, dataset.images("train"))
    how = preprocessing(recipe, mean_image)
    if fresh and recipe.model.whiten and not recipe.model.weights:
        whiten(network, dataset.images("train"), how, recipe.train.seed)
    return recipe, dataset, how, network


def tidy(folder: RunFolder) -> None:
    """Remove what a training that was killed at its very end has left beside a finished run.

    Raises:
        RunError: another process trains here.
    """
    with _alone(folder):
        checkpoint.remove(folder.path)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which ends with the process however it ends; leave no temporary file.

    Raises:
        RunError: another process trains here, or the folder cannot be written.
    """
    try:
        with FileLock(folder.lock, timeout=0):
            _clear(folder)
            try:
                yield
            finally:
                with suppress(PermissionError):  # Windows removes no file that is open; there filelock does so in a moment
                    folder.lock.unlink(missing_ok=True)
    except Timeout as error:
        raise RunError(f"another process is training in {folder.path}: wait for it, or stop it (Ctrl-C saves)") from error
    except PermissionError as error:
        raise RunError(f"cannot write {folder.lock}: {reason_of(error)}") from error


def _clear(folder: RunFolder) -> None:
    """Remove the temporary files that a killed process may have left."""
    for part in (*folder.path.glob("*.part"), *(folder.path / "epochs").glob("*.part")):
        part.unlink(missing_ok=True)


def _network(recipe: Recipe, table: Table, device: torch.device, *, fresh: bool) -> AlexNet:
    """Build the network on its device with its first weights: by the recipe's seed, or if `fresh` those that it starts from."""
    torch.manual_seed(recipe.train.seed)
    network = AlexNet(recipe.model.variant, len(table.labels), width=recipe.model.width, **recipe.model.overrides)
    if recipe.images.input < network.smallest:
        raise RecipeError(
            f"images.input is {recipe.images.input}, but {recipe.model.variant!r} needs {network.smallest} pixels or more"
        )
    if fresh and recipe.model.weights:
        load_features(network, recipe.model.weights, recipe.data.root)
    return place(network, device)


def _finish(recipe: Recipe, trainer: Trainer, folder: RunFolder) -> Trained:
    """Calibrate on validation, look at the test set once, write model and summary."""
    validation = trainer.evaluate("val").calibrated()
    card = trainer.card().model_copy(update={"temperature": validation.temperature})
    if trainer.group.first:
        save_model(folder, trainer.network, card)
    table = trainer.dataset.table
    test: Evaluation | None = trainer.evaluate("test", validation.temperature) if len(table.rows("test")) else None
    history = trainer.at.history
    summary = {
        "run": str(folder.path),
        "recipe": recipe.name,
        "variant": recipe.model.variant,
        "epochs": len(history),
        "seconds": time.monotonic() - trainer.budget.started,
        "best_epoch": trainer.at.best_epoch if recipe.train.keep == "best" else len(history),
        "validation": validation.to_json(),
        "test": test.to_json() if test else None,
        "skipped": [skipped._asdict() for skipped in table.skipped],
    }
    if trainer.group.first:
        write_json(folder.summary, summary)
        checkpoint.remove(folder.path)
    return Trained(folder, trainer.dataset, "test" if test else "val", test or validation)


def _say_plan(monitor: Monitor, recipe: Recipe, dataset: Dataset, folder: RunFolder, where: str, parameters: int) -> None:
    """Say what will be trained on what: sizes of the splits and batches first."""
    table, train = dataset.table, recipe.train
    counts = table.counts()
    sizes = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    no_test = "" if "test" in counts else " (no test set: validation chooses, test figures stay empty)"
    batches = len(epoch_cuts(counts["train"], train))
    length = f"{train.minutes:g} minutes" if train.minutes else f"{train.epochs} epochs"
    side = recipe.images.stored
    stored = "full images" if side == "full" else f"images stored at {side}x{side}"
    monitor.say(f"{table.name}: {sizes} images of {len(table.labels)} classes{no_test}")
    monitor.say(f"batches of up to {train.batch}: {batches} an epoch, {length}, recipe {recipe.name}, seed {train.seed}")
    monitor.say(
        f"variant {recipe.model.variant}: {parameters:,} parameters, input {recipe.images.input}x{recipe.images.input} "
        f"from {stored}; {where}"
    )
    for group in differing_in_case(table.labels):
        monitor.say(f"note: {listed(group)} differ in upper and lower case alone and are classes of their own")
    if table.skipped:
        monitor.say(f"left out {len(table.skipped)} files:")
        for skipped in table.skipped[:SKIPPED_SHOWN]:
            monitor.say(f"  {shortened(skipped.image)}: {skipped.reason}")
        if len(table.skipped) > SKIPPED_SHOWN:
            monitor.say(f"  and {len(table.skipped) - SKIPPED_SHOWN} more, in {folder.summary} at the end")
    monitor.say(f"curves: tensorboard --logdir {quoted(folder.path / train.tensorboard)}")
