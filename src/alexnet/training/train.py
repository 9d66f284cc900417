"""Training from a recipe to a finished run folder, report included."""

import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from alexnet.convert.pretrained import load_pretrained, pretrained_mean_image
from alexnet.data.dataset import Dataset, open_dataset, resolve
from alexnet.data.labels import labels_differing_in_case
from alexnet.data.on_demand import OnDemand
from alexnet.data.resident import ResidentImages
from alexnet.data.sources import open_table
from alexnet.data.statistics import fill_statistics
from alexnet.data.table import Table
from alexnet.errors import (
    AlexNetError,
    DataError,
    Interrupted,
    RecipeError,
    RunError,
    counted,
    format_names,
    shell_quote,
    truncate,
)
from alexnet.files import hold_lock, remove_leftovers, write_json, write_text
from alexnet.head.fit import fit_head
from alexnet.inference import predictions
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import choose_device, keep_freed_memory, reproducible, resolve_precision, to_device
from alexnet.network.fast import kernels
from alexnet.network.layers import Dropout
from alexnet.network.summary import count_parameters
from alexnet.network.variants import check_effect
from alexnet.progress import say
from alexnet.recipe import Preprocessing, Recipe, parse
from alexnet.report.report import write_report
from alexnet.run import RunFolder, create, find, load_model, read_recipe, save_model
from alexnet.training import checkpoint
from alexnet.training.distributed import SINGLE, ProcessGroup
from alexnet.training.known import calibrate as calibrate_known
from alexnet.training.known import prepare as prepare_known
from alexnet.training.monitor import Monitor, environment
from alexnet.training.pace import resolve_by_pace
from alexnet.training.parallel import Parallel
from alexnet.training.signals import StopRequest
from alexnet.training.step import Step
from alexnet.training.trainer import Trainer
from alexnet.training.whitening import whiten

Taker = Callable[[Dataset, Evaluation], object]  # takes a dataset, and the evaluation of its test set

SKIPPED_SHOWN = 10  # `summary.json` lists them all


def start(
    recipe: Recipe,
    out: Path,
    device: str | None,
    started: float,
    group: ProcessGroup = SINGLE,
    parallel: Parallel = "data",
    *,
    test: bool = True,
    take: Taker | None = None,
) -> None:
    """Train by `recipe` into the new run folder `out`; without `test`, leave the test set and the report to `finish`.

    Every process of `group` calls it with the same arguments; the main one writes. The run's seconds count from `started`, a
    `time.monotonic()`. If `take` is given, it gets the dataset and the evaluation of its test set, and neither the network nor
    a report is written.
    """
    chosen_device = choose_device(device)
    check_effect(recipe.model.variant, recipe.model.overrides)
    tensorboard = group.broadcast(time.strftime(recipe.train.tensorboard))
    recipe = recipe.with_absolute_dataset().with_settings({"train.tensorboard": tensorboard})
    with group.local_main_first():  # the dataset may have to be downloaded
        table = open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data)
    folder = create(out) if group.is_main else RunFolder(out)
    if group.is_main:
        write_text(folder.recipe, recipe.to_toml())  # from here on, --resume can start over
    try:
        _train(recipe, table, folder, chosen_device, started, group, parallel, resuming=False, test=test, take=take)
    except AlexNetError as error:
        if group.is_main and not isinstance(error, Interrupted) and not folder.environment.exists():
            shutil.rmtree(folder.path, ignore_errors=True)  # training never began: free the folder's name
        raise


def resume(
    out: Path,
    device: str | None,
    started: float,
    group: ProcessGroup = SINGLE,
    parallel: Parallel = "data",
    *,
    test: bool = True,
    take: Taker | None = None,
) -> None:
    """Resume the run in `out` from its last checkpoint, or start over from its recipe if there is none.

    Every process of `group` calls it, as for `start`.
    """
    folder = find(out) if group.is_main else RunFolder(out)  # other machines need not have the folder
    if group.is_main and folder.summary.exists():
        train_more = f"alexnet train {shell_quote(read_recipe(folder).data.dataset)} --weights {shell_quote(out)}"
        advice = f"trains a new run from its weights (alexnet report {shell_quote(out)} rewrites its report)"
        raise RunError(f"{out} is finished, so there is nothing to resume: {train_more} {advice}")
    text = group.broadcast(read_recipe(folder).to_toml() if group.is_main else "")
    recipe = parse(tomllib.loads(text), str(folder.recipe))
    with group.local_main_first():  # the dataset may have to be downloaded
        table = open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data)
    _train(recipe, table, folder, choose_device(device), started, group, parallel, resuming=True, test=test, take=take)


def _train(
    recipe: Recipe,
    table: Table,
    folder: RunFolder,
    device: torch.device,
    started: float,
    group: ProcessGroup,
    parallel: Parallel,
    *,
    resuming: bool,
    test: bool,
    take: Taker | None,
) -> None:
    lock = _run_lock(folder) if group.is_main else nullcontext()
    with lock, reproducible(device), StopRequest() as stop, Monitor(folder.path, device) as monitor:
        keep_freed_memory()
        try:
            fresh = not (resuming and group.broadcast(checkpoint.exists(folder.path)))
            if device.type == "cpu" and (reason := kernels.missing_reason()):
                monitor.say(f"training without the C++ kernels, which is slower: {reason}")
            recipe = resolve_by_pace(recipe, table, device, group)
            with group.local_main_first():
                recipe, dataset, preprocessing, network = load_data_and_network(
                    recipe, table, device, fresh=fresh, log=monitor.say
                )
            _compare_machines(group, dataset)
        except Interrupted as error:
            raise Interrupted(f"stopped before training began; resume with: {folder.resume_command}", error.code) from error
        precision = resolve_precision(device, recipe.train.precision)
        if group.world_size > 1:  # initial weights may differ in the last bits between machines
            network.load_state_dict(group.broadcast_tensors(network.state_dict()))
        step = Step(recipe, preprocessing, dataset.images("train"), network, group, parallel, monitor.say)
        trainer = Trainer(step, dataset, folder, monitor, stop, started)
        stop.deferred = True  # from here on, there is something to save, and the folder stays
        if group.is_main:
            facts = environment(device, precision, group.world_size, parallel, compiled=recipe.train.compile)
            write_json(folder.environment, facts | {"training_images": _kept(step, dataset)})
        processes = f", {counted(group.world_size, 'process')} ({parallel} parallel)" if group.world_size > 1 else ""
        _log_plan(trainer, folder, f"{device.type}, {precision}, {counted(torch.get_num_threads(), 'thread')}{processes}")
        resumed = resuming and trainer.session.resume()
        if resumed:
            state = trainer.state
            monitor.say(f"resuming in epoch {state.epoch}, after batch {state.batch} of {len(trainer.step.bounds)}")
        if recipe.train.epochs:
            monitor.open_tensorboard(folder.path / recipe.train.tensorboard, trainer.state.epoch)
        if monitor.tensorboard and not resumed:
            monitor.tensorboard.graph(trainer.session.config.network(), preprocessing.input_side)
            monitor.tensorboard.batch(next(step.batches(trainer.state)), preprocessing, step.augmentation(1))
        if group.is_main:
            write_text(folder.recipe, recipe.to_toml())
        try:
            trainer.fit()
            _finish(trainer, folder, test, take)
        except (RunError, DataError) as error:
            if not checkpoint.exists(folder.path):
                raise
            advice = f"The last checkpoint is intact: fix this, then resume with: {folder.resume_command}"
            raise type(error)(f"{error}. {advice}") from error
        if stop.code and (take or not test):  # received after the last step: whoever trains or tests next stops first
            raise Interrupted(f"stopped, and {folder.path} is finished", stop.code)


def _kept(step: Step, dataset: Dataset) -> str:
    """Return where training images are."""
    if isinstance(step.images, ResidentImages):
        return "device"
    return "decoded in each epoch" if isinstance(dataset.pixels, OnDemand) else "cache"


def _compare_machines(group: ProcessGroup, dataset: Dataset) -> None:
    """Raise DataError in all processes unless they have the same images, labels and splits."""
    own = dataset.fingerprint()["listing"]
    if group.sum(float(own != group.broadcast(own)))[0]:
        advice = "copy them to all, or let all decode them in each epoch: --set data.cache=none"
        raise DataError(f"{dataset.table.name}: the images, labels or splits differ between machines: {advice}")


def load_data_and_network(
    recipe: Recipe, table: Table, device: torch.device, *, fresh: bool = True, log: Callable[[str], object] = say
) -> tuple[Recipe, Dataset, Preprocessing, AlexNet]:
    """Return the resolved recipe, the decoded dataset, the preprocessing, and the network on its device.

    If `fresh`, the network has the recipe's initial weights: pretrained ones, whitened filters or a fitted head included. `log`
    takes a message to the user.
    """
    recipe = resolve(recipe, table)
    torch.manual_seed(recipe.train.seed)
    drawn = not (fresh and recipe.model.weights and recipe.model.fit_head)  # else trained weights and the head replace all
    with nullcontext() if drawn else torch.device("meta"):
        network = AlexNet(recipe.model.variant, len(table.labels), width=recipe.model.width, **recipe.model.overrides)
    if recipe.images.input_side < network.smallest:
        least = f"{recipe.model.variant!r} needs {network.smallest} pixels or more"
        raise RecipeError(f"images.input is {recipe.images.input_side}, but {least}")
    if fresh and recipe.model.weights:
        load_pretrained(network, recipe.model.weights, recipe.data.root)
    to_device(network, device)
    dataset = open_dataset(table, recipe.images.resolved(), recipe.data.workers, recipe.data, cache=recipe.data.cache)
    if isinstance(dataset.pixels, OnDemand):  # so that a resumed training does the same
        recipe = recipe.with_settings({"data.cache": "none"})
    recipe, mean_image = fill_statistics(recipe, dataset.images("train"))
    if recipe.model.fit_head and mean_image is not None:
        mean_image = pretrained_mean_image(recipe.model.weights, mean_image)
    preprocessing = recipe.images.resolved(mean_image)
    if table.unknown is not None:  # needed at the end; a problem with them shows now
        skipped = open_dataset(table.unknown, preprocessing, recipe.data.workers, None).table.skipped
        dataset = replace(dataset, table=replace(dataset.table, skipped=(*dataset.table.skipped, *skipped)))
    if fresh and recipe.model.whitening_init and not recipe.model.weights:
        whiten(network, dataset.images("train"), preprocessing, recipe.train.seed)
    if fresh and recipe.model.fit_head:
        fit_head(network, dataset, preprocessing, recipe.train.precision, recipe.augment.horizontal_flip is True, log)
    return recipe, dataset, preprocessing, network


def remove_checkpoints(folder: RunFolder) -> None:
    """Remove the checkpoints of a finished run that was killed before it could remove them."""
    with _run_lock(folder):
        checkpoint.remove(folder.path)


@contextmanager
def _run_lock(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which the system releases if the process dies, and remove leftover temporary files."""
    with hold_lock(folder.lock, f"another process is training in {folder.path}: wait for it, or stop it (Ctrl-C saves)"):
        for path in (folder.path, folder.path / "epochs"):
            remove_leftovers(path)
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows cannot remove an open file; there filelock removes it afterwards
                folder.lock.unlink(missing_ok=True)


def finish(folder: RunFolder, device: str | None) -> None:
    """Evaluate a run that was trained without a look at the test set, and write its summary and report."""
    recipe, (network, config) = read_recipe(folder), load_model(folder, choose_device(device))
    table, summary = open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data), folder.read_summary()
    dataset = open_dataset(table, config.preprocessing, recipe.data.workers, recipe.data, cache=recipe.data.cache)
    split = "test" if len(dataset.table.rows("test")) else "val"
    workers, temperature = recipe.data.workers, config.temperature
    evaluation = evaluate_split(
        network, dataset, split, config.preprocessing, config.precision, workers, temperature, known=config.known
    )
    test = evaluation.to_json() if split == "test" else None
    predictions.write(folder.predictions, [evaluation])
    write_json(folder.summary, {**summary, "run": str(folder.path), "test": test})
    write_report(folder, dataset, split, evaluation)


def _finish(trainer: Trainer, folder: RunFolder, with_test: bool, take: Taker | None) -> None:
    """Calibrate on validation, evaluate the test set once, and write model, summary and report, or let `take` have the test."""
    recipe, state, table = trainer.recipe, trainer.state, trainer.dataset.table
    known = prepare_known(trainer)
    validation = trainer.evaluate("val", 1.0, known).calibrated()
    calibrate_known(trainer, known, validation)
    config = trainer.session.config.model_copy(update={"temperature": validation.temperature, "known": known})
    if trainer.group.is_main and take is None:
        save_model(folder, trainer.network, config)
    test = trainer.evaluate("test", validation.temperature, known) if with_test and len(table.rows("test")) else None
    summary = {
        "run": str(folder.path),
        "recipe": recipe.name,
        "variant": recipe.model.variant,
        "epochs": state.history[-1]["epoch"],
        "seconds": time.monotonic() - trainer.budget.started,
        "best_epoch": state.best_epoch if recipe.train.keep == "best" else state.history[-1]["epoch"],
        "kept": recipe.train.keep,
        "validation": validation.to_json(),
        "test": test.to_json() if test else None,
        "skipped": [skipped._asdict() for skipped in table.skipped],
    }
    if take is not None and test is not None:
        take(trainer.dataset, test)
        for file in (folder.weights, folder.config):  # of an earlier session, which was stopped
            file.unlink(missing_ok=True)
    if trainer.group.is_main:
        if tensorboard := trainer.monitor.tensorboard:
            tensorboard.confusion(test or validation, "test" if test else "validation", len(state.history))
        if take is None:
            predictions.write(folder.predictions, [validation, test] if test else [validation])
        write_json(folder.summary, summary)
        if with_test and take is None:
            write_report(folder, trainer.dataset, "test" if test else "val", test or validation)
        checkpoint.remove(folder.path)


def _log_plan(trainer: Trainer, folder: RunFolder, hardware: str) -> None:
    """Log the sizes of splits and batches, the network, and the notes on the dataset."""
    recipe, table, monitor = trainer.recipe, trainer.dataset.table, trainer.monitor
    train, counts = recipe.train, table.counts()
    sizes = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    chosen = "weights are chosen by validation, " if train.keep == "best" else ""
    no_test = "" if "test" in counts else f" (no test set: {chosen}test metrics stay empty)"
    length = counted(train.minutes, "minute") if train.minutes and train.epochs else counted(train.epochs, "epoch")
    side, stored = recipe.images.input_side, recipe.images.cache_size
    source = "full images" if stored == "full" else f"images stored at {stored}x{stored}"
    monitor.say(f"{table.name}: {sizes} images of {counted(len(table.labels), 'class')}{no_test}")
    batches = f"batches of up to {train.batch_size}: {len(trainer.step.bounds)} an epoch"
    rate = f"lr {recipe.optimizer.lr:g} ({recipe.schedule.kind})"
    monitor.say(f"{batches}, {length}, recipe {recipe.name}, {rate}, seed {train.seed}")
    dropped = max((layer.p for layer in trainer.network.modules() if isinstance(layer, Dropout)), default=0.0)
    dropout = f", dropout {dropped:g}" if dropped else ""
    network = f"variant {recipe.model.variant}: {count_parameters(trainer.network):,} parameters{dropout}"
    monitor.say(f"{network}, input {side}x{side} from {source}; {hardware}")
    if recipe.augment.trivial is True:
        leave = "TrivialAugment; to leave them as they are: --set augment.trivial=false"
        monitor.say(f"training images are changed at random in colour, angle and more ({leave})")
    if recipe.images.view_count > 1:
        monitor.say(f"answers are means over {recipe.images.view_count} views of each image (images.views)")
    for group in labels_differing_in_case(table.labels):
        monitor.say(f"note: {format_names(group)} differ only in upper and lower case, and are separate classes")
    validated = set(table.targets[table.rows("val")].tolist())
    if absent := [label for i, label in enumerate(table.labels) if i not in validated]:
        remedy = "add images of them" if recipe.data.split == "hash" else 'data.split = "hash" holds out images of every class'
        monitor.say(f"note: the validation set has no images of {format_names(absent)}: {remedy}")
    if table.skipped:
        monitor.say(f"left out {counted(len(table.skipped), 'file')}:")
        for skipped in table.skipped[:SKIPPED_SHOWN]:
            monitor.say(f"  {truncate(skipped.image)}: {skipped.reason}")
        if len(table.skipped) > SKIPPED_SHOWN:
            monitor.say(f"  and {len(table.skipped) - SKIPPED_SHOWN} more, in {folder.summary} at the end")
