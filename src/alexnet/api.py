"""What Python users call, and the command line too; all that is public here is in `alexnet` as well."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.ablation.plan import find_study, plan_study, plan_variation
from alexnet.ablation.run import ablate as train_plan
from alexnet.convert.pretrained import settings_from_weights
from alexnet.data.check import Findings
from alexnet.data.check import check as check_table
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.decode_pool import InMemoryImage
from alexnet.data.labels import labels_differing_in_case, normalize_label
from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError, DataError, ImageError, RunError, format_names, shell_quote
from alexnet.explain.attribution import Explanation, explain
from alexnet.export.onnx import export
from alexnet.files import local_path, read_json, refuse_overwrite
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.inference.features import Features, features, stream_features
from alexnet.inference.inputs import ImageInput, to_sources
from alexnet.inference.predict import predict
from alexnet.inference.views import VIEWS
from alexnet.network.device import choose_device
from alexnet.progress import say, track
from alexnet.recipe import Recipe
from alexnet.recipe import load as load_recipe
from alexnet.report.compare import compare as compare_runs
from alexnet.report.report import write_report
from alexnet.run import RunFolder, find, load_model, read_recipe
from alexnet.search.search import add_images, search_images
from alexnet.training import train as training
from alexnet.training.distributed import ProcessGroup, process_group
from alexnet.training.lr_finder import LRCurve
from alexnet.training.lr_finder import draw as draw_lr_curve
from alexnet.training.lr_finder import find_lr as run_lr_finder
from alexnet.training.parallel import Parallel


class Run:
    """A folder that training left: predicts, evaluates, explains itself.

    Attributes:
        path: the folder.
        labels: names of the classes, in the order of the network's outputs.
        network: the trained network, an `AlexNet`: N 3 H W float32, normalised, in; N x classes logits out. Images of a run
            with small ones go in as they are, with how often to enlarge them: `network(x, config.preprocessing.upscale)`.
        config: what belongs to the weights: variant, labels, preprocessing, temperature.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        """Open a run.

        Args:
            path: its folder.
            device: where its network goes, such as `cpu` or `cuda:1`; None takes the accelerator, if there is one.

        Raises:
            RunError: no run there, or a damaged one.
            AlexNetError: no such device.
        """
        self.path = Path(path)
        self._folder = find(self.path)
        self.network, self.config = load_model(self._folder, choose_device(device))
        self.labels = self.config.labels

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe it was trained by, as resolved: `run.recipe.train.epochs`.

        Raises:
            RunError: its file cannot be read.
            RecipeError: a key or a value in it is wrong.
        """
        return read_recipe(self._folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What `alexnet train --json` printed: `seconds` from the command's start, shares from 0 to 1.

        It is `{"run", "recipe", "variant", "epochs", "seconds", "best_epoch", "validation", "test", "skipped"}`; `validation`
        and `test` are as `Evaluation.to_json` returns them, `test` None where there are no such images.

        Raises:
            RunError: the training has not ended, or the file is damaged.
        """
        if not self._folder.summary.exists():
            raise RunError(f"{self.path} is not finished: alexnet train --resume {shell_quote(self.path)} goes on with it")
        return read_json(self._folder.summary)

    def predict(self, images: ImageInput, top: int = 5) -> list[dict[str, Any]]:
        """Return what is on each image, in order.

        Args:
            images: one, or several in order: paths of files or folders, globs, bytes of a file, binary files, images of
                Pillow, H W 3 uint8 arrays, RGB; N H W 3 are N images.
            top: labels for each; all there are, if there are fewer.

        Returns:
            `{"image", "predictions": [{"label", "probability"}]}` for each, best first, or `{"image", "error"}` for what cannot
            be read. Probabilities are calibrated shares, 0 to 1. The name of an array is `array`, that of bytes `bytes`.

        Raises:
            DataError: a name that matches no file, or no image and not several.
            AlexNetError: `top` is no number, or less than 1.

        Note:
            A process that is forked afterwards (`os.fork`, multiprocessing's `fork`) predicts with one thread, as PyTorch's
            threads do not survive a fork, and raising their number there hangs. On a GPU, open the run in the child alone.
        """
        return list(self.stream(images, top))

    def stream(self, images: ImageInput, top: int = 5) -> Iterator[dict[str, Any]]:
        """Yield the answers of `predict` as they come, a batch in memory at a time.

        Args:
            images: as for `predict`.
            top: as for `predict`.

        Raises:
            DataError: a name that matches no file.
            AlexNetError: `top` is no number, or less than 1.
        """
        _refuse_top(top)
        sources = to_sources(images)
        # On a terminal the answers themselves show how far it is, and a bar would be drawn over them.
        shown = sources if sys.stdout.isatty() else track(sources, "Predicting", len(sources))
        return predict(self.network, self.config, shown, top)

    def evaluate(self, data: str | Path | None = None, split: str | None = None, views: int = 1) -> Evaluation:
        """Measure the run on a dataset.

        Args:
            data: a built-in name, a folder, or a CSV or Parquet file; None takes the run's own.
            split: `train`, `val` or `test`; None takes `test` where there is one, else `val`, and all of a `data` that is not
                split.
            views: of each image, whose probabilities are averaged: 1; 2, with its mirror image; 10, crops at the corners and
                in the centre with their mirror images (paper, section 4.1).

        Returns:
            Logits and targets of all images, and what follows from them; `to_json()` has the figures.

        Raises:
            DataError: no such data or split, or labels that the network does not know.
            AlexNetError: another number of views.
        """
        if views not in VIEWS:
            raise AlexNetError(f"views is {views}, but should be 1, 2 or 10")
        dataset, chosen = self.dataset(data, split)
        config, recipe = self.config, self.recipe
        return evaluate_split(
            self.network,
            dataset,
            chosen,
            config.preprocessing,
            precision=config.precision,
            workers=recipe.data.workers,
            temperature=config.temperature,
            view_count=views,
        )

    def explanations(self, images: ImageInput) -> Iterator[tuple[Any, Explanation | ImageError]]:
        """Yield each image, as it was given, with the arrays of `Explanation`, or with the reason why it cannot be read.

        Args:
            images: as for `predict`.

        Raises:
            DataError: a name that matches no file.
            AlexNetError: captum is not installed.
        """
        result = explain(self.network, self.config, to_sources(images))
        return ((source.content if isinstance(source, InMemoryImage) else source, answer) for source, answer in result)

    def explain(
        self, images: ImageInput, out: str | Path | None = None, arrays: bool = False, overwrite: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Draw for each image why the network says what it says, and yield an answer for each, in order, as they come.

        Args:
            images: as for `predict`.
            out: the folder of the pictures, `<image>-explained.png`, and of `filters.png`, the kernels of the first layer; None
                takes the folder `explain` of the run.
            arrays: write a NumPy archive beside each picture, too, with the arrays of `Explanation`.
            overwrite: replace files of these names that this program has not made, too.

        Yields:
            `{"image", "predictions": [{"label", "probability"}], "figure"}`, the last the picture's path, with `arrays` also
            `"arrays"`, the archive's; or `{"image", "error"}` for what cannot be read.

        Raises:
            DataError: a name that matches no file.
            RunError: `out` cannot be written, or holds a file of such a name that is yours and is not to `overwrite`.
            AlexNetError: captum is not installed.
        """
        from alexnet.explain.figure import write_explanations  # with matplotlib, a second that `predict` need not wait

        folder = Path(out) if out is not None else self.path / "explain"
        return write_explanations(self.network, self.config, to_sources(images), folder, arrays=arrays, overwrite=overwrite)

    def features(self, images: ImageInput, layers: Sequence[str] = ("fc7",)) -> dict[str, NDArray[np.float32]]:
        """Return what layers give for each image, computed in float32 with dropout off.

        `stream_features` is for what does not fit into memory.

        Args:
            images: as for `predict`.
            layers: names of `network.layer_names`: `conv5` are a convolution's own sums, `relu5` those after its activation.

        Returns:
            An array for each layer by name, a row for each image in order: maps N C H W, vectors N units, float32.

        Raises:
            DataError: an image that cannot be read, as all rows after it would be shifted; or none at all.
            VariantError: no such layer.
        """
        sources = to_sources(images)
        return features(self.network, self.config, track(sources, "Looking", len(sources)), layers)

    def stream_features(self, images: ImageInput, layers: Sequence[str] = ("fc7",)) -> Iterator[Features]:
        """Yield the arrays of `features` batch by batch, with the images' names; those that cannot be read are `errors`.

        Args:
            images: as for `predict`.
            layers: as for `features`.

        Raises:
            DataError: a name that matches no file.
            VariantError: no such layer.
        """
        sources = to_sources(images)
        return stream_features(self.network, self.config, track(sources, "Looking", len(sources)), layers)

    def index(self, folder: str | Path, out: str | Path | None = None, bits: int | None = None) -> dict[str, Any]:
        """Bring an index for `search` up to date with the images in a folder, beside those that it already has.

        An image's code are the numbers of the last hidden layer, after its activation (paper, section 6.1).

        Args:
            folder: images in it, and in folders inside.
            out: the index, a folder; None takes the folder `search` of the run.
            bits: length of short codes, for a search with `binary`: a multiple of 8; None is 128.

        Returns:
            `{"index", "images", "added", "bits", "skipped": [{"image", "reason"}]}`: images in all and those coded now; `bits`
            is None as long as the images are too few to learn short codes from.

        Raises:
            DataError: no such folder, or no image in it that can be read.
            RunError: an index that is damaged, of other weights or other bits, or cannot be written.
            AlexNetError: `bits` is no multiple of 8; faiss is not installed.
        """
        if not str(folder):
            raise DataError("the folder's name is empty: name the folder of the images")
        return add_images(self._search(out), self.network, self.config, Path(folder), bits)

    def search(
        self,
        images: ImageInput,
        top: int = 10,
        *,
        binary: bool = False,
        index: str | Path | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> list[dict[str, Any]]:
        """Return for each image those of an index that are most alike.

        Args:
            images: as for `predict`.
            top: how many for each; an image is no neighbour of its own.
            binary: compare short codes: faster, a little less exact.
            index: the folder that `Run.index` left; None takes the folder `search` of the run.
            out: draw a contact sheet there, a PNG, a row for each image.
            overwrite: replace a file there that this program has not made, too.

        Returns:
            `{"image", "neighbours": [{"image", "distance"}]}` for each, nearest first, full paths, or `{"image", "error"}`.
            Distances are Euclidean, between codes (paper, section 6.1), or with `binary` the number of bits that differ.

        Raises:
            DataError: a name that matches no file.
            RunError: no index, a damaged one, one of other weights or without short codes; `out` cannot be written or is a
                file of yours.
            AlexNetError: faiss is not installed; `top` is no number, or less than 1.
        """
        _refuse_top(top)
        sources = to_sources(images)
        if out is not None:
            refuse_overwrite(Path(out), overwrite)
        answers = list(search_images(self._search(index), self.network, self.config, sources, top, binary))
        if out is not None:
            from alexnet.search.contact_sheet import write_sheet  # with matplotlib, a second that `predict` need not wait

            write_sheet(Path(out), sources, answers, overwrite)
        return answers

    def export(
        self, out: str | Path | None = None, *, bare: bool = False, int8: bool = False, overwrite: bool = False
    ) -> dict[str, Any]:
        """Write the network as ONNX, once onnxruntime has been found to say the same as PyTorch.

        The file takes `image`, H W 3 uint8 of any size, and gives `probabilities`, one a class, calibrated. Images of the run's
        validation split are compared, or made-up ones where its dataset is not at hand.

        Args:
            out: the file; None takes `model.onnx` in the folder `export` of the run, `model-bare.onnx` and so on.
            bare: the network alone: `images`, N 3 I I float32, normalised, in; `logits`, N x classes, out.
            int8: in whole numbers of 8 bits, calibrated on training images: a quarter as large.
            overwrite: replace files there that this program has not made, too.

        Returns:
            `{"file", "bare", "int8", "opset", "ir_version", "onnxruntime", "bytes", "sha256", "compared_on", "images",
            "largest_difference", "close", "same_top1", "images_per_second", "top1"}`, with `int8` also `"float_bytes"`.
            `onnxruntime` is the oldest version that can read the file, as `">=1.17"`. The difference is one of
            probabilities; `close` (within 0.01) and `same_top1` are shares of the images compared, 0 to 1.

        Raises:
            RunError: the comparison failed; `out` cannot be written or is a file of yours; no dataset for `int8`.
            AlexNetError: onnx, onnxscript or onnxruntime is not installed.
        """
        name = f"model{'-bare' if bare else ''}{'-int8' if int8 else ''}.onnx"
        path = Path(out) if out is not None else self.path / "export" / name
        refuse_overwrite(path, overwrite)
        try:
            dataset = self.dataset(split="val")[0]
        except AlexNetError as error:
            say(f"the run's dataset is not at hand, made-up images take its place: {error}")
            dataset = None
        return export(self.network, self.config, dataset, path, bare=bare, int8=int8, overwrite=overwrite)

    def serve(self, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None) -> None:
        """Answer `predict` and `explain` over HTTP, until Ctrl-C or SIGTERM; the environment's ALEXNET_API_KEY is asked for.

        Args:
            host: where to listen; `0.0.0.0` lets all machines in that reach this one.
            port: 0 takes any that is free.
            threads: of the CPU; None takes one for each core.

        Raises:
            AlexNetError: the extra `serve` is not installed, or nothing can listen there.
            Interrupted: always, at the end: what had come was answered.
        """
        try:
            from alexnet.server.app import serve
        except ImportError as error:
            raise AlexNetError(
                f"serving lacks a library ({error}): pip install fastapi uvicorn python-multipart captum"
            ) from error
        _use(threads)
        serve(self._folder, self.network, self.config, host, port)

    def _search(self, path: str | Path | None) -> Path:
        return self.path / "search" if path is None else Path(path)

    def dataset(self, data: str | Path | None = None, split: str | None = None) -> tuple[Dataset, str]:
        """Return a dataset with targets in this network's order of labels, and the split of it to use.

        Args:
            data: as for `evaluate`.
            split: as for `evaluate`.

        Returns:
            The dataset, and `train`, `val`, `test` or `all`.

        Raises:
            DataError: no such data or split, or labels that the network does not know.
        """
        settings = self.recipe.data
        table = open_table(settings.dataset if data is None else data, settings.root, least=2 if data is None else 1)
        known = {normalize_label(label) for label in self.labels}
        if unknown := [label for label in table.labels if label not in self.labels and normalize_label(label) not in known]:
            in_case = next((group for group in labels_differing_in_case([*known, *unknown]) if unknown[0] in group), [])
            hint = f" (upper and lower case count: {format_names(in_case)})" if in_case else ""
            raise DataError(
                f"{table.name} has labels that the run {self.path} does not know: {format_names(unknown)}{hint}; "
                f"it knows {format_names(self.labels)}"
            )
        whole = data is not None and split is None and not table.splits.any()
        preprocessing = self.config.preprocessing
        dataset = open_dataset(table, preprocessing, settings.workers, None if whole else settings, train=data is None)
        dataset = replace(dataset, table=dataset.table.relabelled(self.labels))
        if whole:
            return dataset, "all"
        counts = dataset.table.counts()
        chosen = split or ("test" if "test" in counts else "val")
        if chosen not in counts:
            raise DataError(f"{table.name} has no split {chosen!r}: it has {', '.join(counts)}")
        return dataset, chosen

    def report(self) -> Path:
        """Write `report.html` anew and return its path.

        Raises:
            DataError: the run's dataset is not where it was.
            RunError: a file of the run is missing or damaged, or the disk is full.
        """
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
    parallel: Parallel = "data",
    started: float | None = None,
) -> Run:
    """Train a network and return the run.

    Under torchrun all processes call this, and train it together.

    Args:
        data: a folder, a CSV or Parquet file, or a built-in name (`digits`, `cifar10`, `fashion-mnist`); None: the recipe's.
        recipe: a name (`alexnet recipes list`) or a TOML file.
        out: the run folder, new; None makes one under `runs/`.
        device: such as `cpu` or `cuda:1`; None takes the accelerator, if there is one.
        threads: of the CPU; None takes one for each core.
        weights: what the features start from: a run folder (its variant is taken too), a file in torchvision's layout, or
            `imagenet1k` (both for the variant `owt`); None is as the recipe says.
        settings: the recipe's keys to change, `{"train.epochs": 5}`. `train.minutes` ends it by the clock, however many epochs
            that makes.
        parallel: what processes divide, if there are several: `data` (each batch), `towers` (one each, as in 2012: paper,
            section 3.2), or `hybrid` (each batch, but dense layers by units: Krizhevsky 2014).
        started: the `time.monotonic()`, in seconds, that the run's time counts from; None is now.

    Raises:
        DataError: a dataset that cannot be used.
        RecipeError: no such recipe or key, or a value that does not fit the dataset, the network or the processes.
        VariantError: an architecture that cannot be built.
        WeightsError: weights that cannot be read, or are another network's.
        RunError: `out` is not empty or cannot be written.
        DivergedError: the loss became infinite or not a number.
        Interrupted: a signal came; all is saved, and `resume` goes on.
        AlexNetError: no such device, or what another process said.
    """
    now = time.monotonic() if started is None else started
    with process_group() as group:
        chosen = _chosen(data, recipe, weights, {**(settings or {}), **({"train.threads": threads} if threads else {})})
        _use(chosen.train.threads)
        if out is None and group.limit:
            raise AlexNetError("name the run folder with --out, so that training finds it again when torchrun restarts it")
        folder = Path(group.broadcast(str(out if out is not None else _default_out(chosen))))
        if group.restarts and group.broadcast(RunFolder(folder).recipe.exists()):
            return _resumed(folder, device, now, group, parallel)
        training.start(chosen, folder, device, now, group, parallel)
        return _opened(folder, device, group)


def find_lr(
    data: str | Path | None = None,
    *,
    recipe: str | Path = "fast",
    out: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[LRCurve, Path]:
    """Find the learning rate to train with, in a hundred steps at rates that climb; nothing is trained.

    Args:
        data: as for `train`.
        recipe: as for `train`.
        out: as for `train`; no run is made there, but the curve is drawn beside it: `runs/a` gives `runs/a-lr.png`.
        device: as for `train`.
        threads: as for `train`.
        weights: as for `train`.
        settings: as for `train`.
        overwrite: replace a file in the drawing's place that this program has not made, too.

    Returns:
        The curve, whose `settings` are the keys to train with, and the path of its drawing.

    Raises:
        DataError: a dataset that cannot be used.
        RecipeError: no such recipe or key, or a value that does not fit the dataset or the network.
        VariantError: an architecture that cannot be built.
        WeightsError: weights that cannot be read, or are another network's.
        RunError: the drawing cannot be written, or a file of yours is there; `weights` is a folder that is no run.
        AlexNetError: the loss falls at no rate; no such device.
    """
    chosen = _chosen(data, recipe, weights, settings)
    run = Path(out) if out is not None else _default_out(chosen)
    if not run.name or run.name == "..":
        raise RunError(f"cannot draw beside {run}: name a folder that --find-lr's curve is named for, such as runs/a")
    path = run.with_name(f"{run.name}-lr.png")
    refuse_overwrite(path, overwrite)
    _use(threads)
    curve = run_lr_finder(chosen, device)
    draw_lr_curve(curve, path, overwrite)
    return curve, path


def ablate(
    data: str | Path | None = None,
    *,
    study: str | None = None,
    vary: Iterable[str] = (),
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train the same network with one thing changed, over several seeds, and return what that changed.

    Args:
        data: as for `train`; None takes the study's, or the recipe's.
        study: a name of `alexnet.ablation.studies.STUDIES`.
        vary: instead of a study, keys with their values, `["optimizer.lr=0.01,0.001"]`: every combination is trained.
        recipe: as for `train`; None takes the study's, or `fast`.
        out: the study's folder; what is not done of the study in it is done. None makes one under `runs/`.
        minutes: for all trainings together, in minutes; None trains each as long as the recipe says.
        seeds: trainings of each arm.
        settings: keys of the recipe, the same in all arms.
        device: as for `train`.
        threads: as for `train`.

    Returns:
        `{"study", "claim", "source", "measure", "split", "seeds", "aim", "epochs", "arms": [{…}], "how", "figures"}`, as in
        `results.json`. An arm has its `"values"`, one a seed, their `"mean"` and the `"difference"` to the first arm, each with
        a 95 % interval: top-1 accuracies, shares from 0 to 1, or where `"measure"` is `steps` numbers of steps, and the
        difference is then a ratio.

    Raises:
        DataError: a dataset that cannot be used.
        RecipeError: no such recipe or key, a value that is wrong, or a setting that the study varies itself.
        RunError: `out` holds another study, or something else, or cannot be written.
        Interrupted: a signal came; all is saved, and the same call goes on.
        AlexNetError: no such study; whatever else keeps an arm from training.
    """
    _use(threads)
    varied = list(vary)
    if study is None and not varied:
        return train_plan(None, Path(out or ""), device)
    row = None if study is None else find_study(study)
    chosen = load_recipe(str(recipe or (row.recipe if row else "fast")))
    dataset = data if data is not None else row.dataset if row else None
    if dataset is not None:
        chosen = chosen.with_settings({"data.dataset": str(dataset)})
    if row is None:
        plan = plan_variation(varied, chosen, settings or {}, seeds=seeds, minutes=minutes)
    else:
        plan = plan_study(row, chosen, settings or {}, seeds=seeds, minutes=minutes)
    named = chosen.model_copy(update={"name": study or "vary"})
    return train_plan(plan, Path(out) if out is not None else _default_out(named), device)


def compare(runs: Iterable[str | Path]) -> dict[str, Any]:
    """Return the figures of several runs, and the settings in which they differ.

    Args:
        runs: run folders, finished; all are compared with the first.

    Returns:
        `{"split", "runs": [{…}], "settings": {key: [value of each run]}}`: runs are compared on `test` images, or on
        `validation` where one has no others. Shares are 0 to 1, `"seconds"` those of the training; `"difference"` is top-1 less
        that of the first run, with its 95 % interval (Newcombe 1998), None for the first.

    Raises:
        RunError: no run, one that is not finished, or a damaged one.
    """
    return compare_runs([Path(run) for run in runs])


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    parallel: Parallel = "data",
    started: float | None = None,
) -> Run:
    """Go on with an unfinished run from its last checkpoint and return it.

    It need not be as many processes as before, nor divided alike.

    Args:
        path: its folder.
        device: as for `train`.
        threads: of the CPU; None takes as many as it began with.
        parallel: as for `train`.
        started: as for `train`.

    Raises:
        RunError: no run there, a finished one, or one whose checkpoints are all damaged.
        DataError: its dataset is not where it was, or has changed.
        DivergedError: the loss became infinite or not a number.
        Interrupted: a signal came; all is saved, and the same call goes on.
        AlexNetError: no such device, or what another process said.
    """
    now = time.monotonic() if started is None else started
    with process_group() as group:
        _use(threads or group.broadcast(read_recipe(find(Path(path))).train.threads if group.is_main else 0))
        return _resumed(Path(path), device, now, group, parallel)


def _resumed(path: Path, device: str | None, started: float, group: ProcessGroup, parallel: Parallel) -> Run:
    folder = RunFolder(path)
    if group.restarts and group.broadcast(folder.summary.exists() and folder.report.exists()):  # killed when all was done
        return _opened(path, device, group)
    over = folder.summary.exists() and folder.metrics.exists() and not folder.report.exists()  # killed at the very end
    if not group.broadcast(over):
        training.resume(path, device, started, group, parallel)
    elif group.is_main:
        training.tidy(folder)
        Run(path, device).report()
    return _opened(path, device, group)


def check(data: str | Path, data_root: str | Path | None = None) -> Findings:
    """Look at every image of a dataset and return what is wrong with it; nothing is changed.

    Args:
        data: a built-in name, a folder, or a CSV or Parquet file.
        data_root: where downloads of built-in datasets lie; None takes ALEXNET_DATA of the environment.

    Returns:
        How many images there are, in all and of each class, and the problems; `to_json()` has it all.

    Raises:
        DataError: nothing there, fewer than two classes, columns missing.
    """
    return check_table(open_table(data, None if data_root is None else Path(data_root)))


def load(path: str | Path, device: str | None = None) -> Run:
    """Open a run folder and return the run.

    Args:
        path: as for `Run`.
        device: as for `Run`.

    Raises:
        RunError: no run there, or a damaged one.
        AlexNetError: no such device.
    """
    return Run(path, device)


def _refuse_top(top: object) -> None:
    if not isinstance(top, int) or top < 1:
        raise AlexNetError(f"top is {top!r}, but should be a whole number, 1 or more")


def _default_out(recipe: Recipe) -> Path:
    """Return `runs/<data>-<recipe>-<date>-<time>`, with a number behind it where that is there already."""
    data = recipe.data.dataset
    path = local_path(data)
    name = path.name if path.is_dir() else Path(data).stem
    run = Path("runs") / f"{name or 'data'}-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (run.name, *(f"{run.name}-{number}" for number in range(2, 100)))
    return next((run.with_name(name) for name in names if not (run.with_name(name)).exists()), run)


def _use(threads: int | None) -> None:
    """Compute with so many threads; None or 0: as many as there are."""
    if threads:
        torch.set_num_threads(threads)


def _chosen(
    data: str | Path | None, recipe: str | Path, weights: str | Path | None, settings: Mapping[str, Any] | None
) -> Recipe:
    """Return the recipe with what is asked for, data first, then what `weights` bring along, then `settings`."""
    brought = {} if weights is None else settings_from_weights(str(weights))
    changes = {**({} if data is None else {"data.dataset": str(data)}), **brought, **(settings or {})}
    return load_recipe(str(recipe)).with_settings(changes)


def _opened(path: Path, device: str | None, group: ProcessGroup) -> Run:
    """Return the finished run; processes on a machine that does not have it end here, as there is nothing left to do."""
    group.broadcast_number(1)  # once the first has written all of it
    if not path.exists():
        raise SystemExit(0)
    return Run(path, device)
