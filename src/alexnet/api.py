"""What Python users call, and the command line too: `train`, `load`, and the `Run` that both return."""

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

from alexnet.data.check import Findings
from alexnet.data.check import check as check_table
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.sources import open_table
from alexnet.data.workers import Source
from alexnet.errors import AlexNetError, DataError, ImageError, RunError, quoted
from alexnet.measure.evaluate import Evaluation, evaluate_split
from alexnet.network.device import choose_device
from alexnet.progress import say, track
from alexnet.recipe import Recipe
from alexnet.recipe import load as load_recipe
from alexnet.run import RunFolder, find, load_model, read_json, read_recipe
from alexnet.training import job
from alexnet.training.find_rate import Curve
from alexnet.training.find_rate import draw as draw_curve
from alexnet.training.find_rate import find_rate as sweep_rates
from alexnet.training.parallel import Parallel
from alexnet.training.pretrained import settings_of
from alexnet.training.processes import Group, joined
from alexnet.use import plans
from alexnet.use.ablate import ablate as train_plan
from alexnet.use.compare import compare as compare_runs
from alexnet.use.explain import Explanation, explain
from alexnet.use.export import export
from alexnet.use.features import Features, features, stream_features
from alexnet.use.predict import find_images, predict
from alexnet.use.report import write_report
from alexnet.use.search import add_images, search_images
from alexnet.use.sheet import write_sheet

Images = str | Path | Iterable[str | Path | NDArray[np.uint8]]  # names of files, folders and globs; H W 3 arrays


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
            raise RunError(f"{self.path} is not finished: alexnet train --resume {quoted(self.path)} goes on with it")
        return read_json(self._folder.summary)

    def predict(self, images: Images, top: int = 5) -> list[dict[str, Any]]:
        """Return an answer for each image, in order.

        `images` are paths of files or folders, globs, or H W 3 uint8 arrays; answers are
        `{"image", "predictions": [{"label", "probability"}]}`, best first, or `{"image", "error"}` for what cannot be read.
        """
        return list(self.stream(images, top))

    def stream(self, images: Images, top: int = 5) -> Iterator[dict[str, Any]]:
        """Yield the answers of `predict` as they come, a batch in memory at a time."""
        sources = _sources(images)
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

    def explanations(self, images: Images) -> Iterator[tuple[Source, Explanation | ImageError]]:
        """Yield each image, as for `predict`, with its `Explanation` as arrays, or with the reason why it cannot be read.

        Raises:
            AlexNetError: captum is not installed.
        """
        return explain(self.network, self.card, _sources(images))

    def explain(self, images: Images, out: str | Path | None = None, arrays: bool = False) -> Iterator[dict[str, Any]]:
        """Draw for each image why the network says what it says, and yield an answer for each, in order, as they come.

        Answers are `{"image", "predictions": [{"label", "probability"}], "figure"}`, with `arrays` also `"arrays"`, the path of
        a NumPy archive of all that is drawn, or `{"image", "error"}`. Files lie in `out`, as `<image>-explained.png`, and with
        them `filters.png`, the kernels of the first layer; None is the folder `explain` of the run.

        Raises:
            RunError: `out` cannot be written.
            AlexNetError: captum is not installed.
        """
        from alexnet.use.explain_figure import write_explanations  # with matplotlib, a second that `predict` need not wait

        folder = Path(out) if out is not None else self.path / "explain"
        return write_explanations(self.network, self.card, _sources(images), folder, arrays=arrays)

    def features(self, images: Images, layers: Sequence[str] = ("fc7",)) -> dict[str, NDArray[np.float32]]:
        """Return what the layers named give for each image, in order: maps N C H W, vectors N units, float32.

        `images` are those of `predict`, `layers` names of `network.layer_names`: `conv5` are a convolution's own sums, `relu5`
        those after its activation. Computed in float32, dropout off. `stream_features` is for what does not fit into memory.

        Raises:
            DataError: an image that cannot be read, as all rows after it would be shifted; or none at all.
            VariantError: no such layer.
        """
        sources = _sources(images)
        return features(self.network, self.card, track(sources, "Looking", len(sources)), layers)

    def stream_features(self, images: Images, layers: Sequence[str] = ("fc7",)) -> Iterator[Features]:
        """Yield the arrays of `features` batch by batch, with the images' names; those that cannot be read are `errors`."""
        sources = _sources(images)
        return stream_features(self.network, self.card, track(sources, "Looking", len(sources)), layers)

    def index(self, folder: str | Path, out: str | Path | None = None, bits: int | None = None) -> dict[str, Any]:
        """Bring an index for `search` up to date with the images in `folder`, beside those that it already has.

        The index lies in `out`; None is the folder `search` of the run. Short codes for a search with `binary` have `bits`,
        None is 128. Returns `{"index", "images", "added", "bits", "skipped": [{"image", "reason"}]}`.

        Raises:
            AlexNetError: no image, an index that is damaged, of other weights or other bits; faiss is not installed.
        """
        return add_images(self._search(out), self.network, self.card, Path(folder), bits)

    def search(
        self,
        images: Images,
        top: int = 10,
        *,
        binary: bool = False,
        index: str | Path | None = None,
        out: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Return for each image, as for `predict`, the `top` most alike of an index, as `index` left it in that folder.

        Answers are `{"image", "neighbours": [{"image", "distance"}]}`, nearest first, or `{"image", "error"}`. Distances are
        Euclidean, between codes of the last hidden layer, or with `binary` the bits in which short codes differ. With `out` a
        contact sheet is drawn there, a PNG.

        Raises:
            AlexNetError: no index, a damaged one, or one of other weights; faiss is not installed.
        """
        sources = _sources(images)
        answers = list(search_images(self._search(index), self.network, self.card, sources, top, binary))
        if out is not None:
            write_sheet(Path(out), sources, answers)
        return answers

    def export(self, out: str | Path | None = None, *, bare: bool = False, int8: bool = False) -> dict[str, Any]:
        """Write the network as ONNX to `out`, once onnxruntime has been found to say the same as PyTorch.

        The file takes an image, H W 3 uint8 of any size, and gives calibrated probabilities; `bare`, it takes batches as the
        network does and gives logits. `int8` is a quarter as large, and calibrated on training images. None as `out` is
        `model.onnx` in the folder `export` of the run, `model-bare.onnx` and so on. Images of the run's validation split are
        compared, or made-up ones where its dataset is not at hand. Returns what `alexnet.use.export.export` does.

        Raises:
            RunError: the comparison failed; `out` cannot be written; no dataset for `int8`.
            AlexNetError: onnx, onnxscript or onnxruntime is not installed.
        """
        name = f"model{'-bare' if bare else ''}{'-int8' if int8 else ''}.onnx"
        place = Path(out) if out is not None else self.path / "export" / name
        try:
            dataset = self.dataset(split="val")[0]
        except AlexNetError as error:
            say(f"the run's dataset is not at hand, made-up images take its place: {error}")
            dataset = None
        return export(self.network, self.card, dataset, place, bare=bare, int8=int8)

    def serve(self, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None) -> None:
        """Answer `predict` and `explain` over HTTP, until Ctrl-C or SIGTERM; the environment's ALEXNET_API_KEY is asked for.

        Raises:
            AlexNetError: the extra `serve` is not installed, or nothing can listen there.
            Interrupted: always, at the end: what had come was answered.
        """
        try:
            from alexnet.use.serving.server import serve
        except ImportError as error:
            raise AlexNetError(f"serving needs FastAPI and uvicorn ({error}): pip install 'alexnet[serve]'") from error
        _use(threads)
        serve(self._folder, self.network, self.card, host, port)

    def _search(self, place: str | Path | None) -> Path:
        return self.path / "search" if place is None else Path(place)

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
    parallel: Parallel = "data",
    started: float | None = None,
) -> Run:
    """Train a network and return the run.

    Under torchrun all processes call this, and train it together.

    Args:
        data: a built-in name, a folder, or a CSV or Parquet file; None takes the recipe's.
        recipe: a name (`alexnet recipes list`) or a TOML file.
        out: the run folder, new; None makes one under `runs/`.
        device: such as `cpu` or `cuda:1`; None takes the accelerator, if there is one.
        threads: for the CPU; None takes all cores.
        weights: what the features start from: a run folder (its variant is taken too), a file in torchvision's layout, or
            `imagenet1k`; None is as the recipe says.
        settings: the recipe's keys to change, `{"train.epochs": 5}`.
        parallel: what processes divide, if there are several (`alexnet.training.parallel`).
        started: the `time.monotonic()` that the run's seconds count from; None is now.

    Raises:
        AlexNetError: whatever keeps it from training, in one line.
    """
    now = time.monotonic() if started is None else started
    with joined() as group:
        chosen = _chosen(data, recipe, weights, {**(settings or {}), **({"train.threads": threads} if threads else {})})
        _use(chosen.train.threads)
        if out is None and group.limit:
            raise AlexNetError("name the run folder with --out, so that training finds it again when torchrun restarts it")
        folder = Path(group.told(str(out if out is not None else default_out(chosen))))
        if group.restarts and group.told(RunFolder(folder).recipe.exists()):
            return _resumed(folder, device, now, group, parallel)
        return _finished(job.start(chosen, folder, device, now, group, parallel), device, group)


def find_rate(
    data: str | Path | None = None,
    *,
    recipe: str | Path = "fast",
    out: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Curve, Path]:
    """Find the learning rate to train with, without training: return the curve of a hundred steps, and its drawing's path.

    Arguments are those of `train`; `curve.settings` are the keys to train with. The drawing lies beside `out`, under its name
    with `-rate.png`.

    Raises:
        AlexNetError: whatever keeps it from training; or the loss falls at no rate.
    """
    chosen = _chosen(data, recipe, weights, settings)
    _use(threads)
    curve = sweep_rates(chosen, device)
    run = Path(out) if out is not None else default_out(chosen)
    place = run.with_name(f"{run.name}-rate.png")
    draw_curve(curve, place)
    return curve, place


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
        study: a name of `alexnet.use.studies.STUDIES`.
        vary: instead of a study, keys with their values, `["optimizer.rate=0.01,0.001"]`: every combination is trained.
        recipe: as for `train`; None takes the study's, or `fast`.
        out: the study's folder; what is not done of the study in it is done. None makes one under `runs/`.
        minutes: for all trainings together; None trains each as long as the recipe says.
        seeds: trainings of each arm.
        settings: keys of the recipe, the same in all arms.
        device: as for `train`.
        threads: as for `train`.

    Raises:
        AlexNetError: no such study or key, a folder of another study, or whatever keeps an arm from training.
    """
    _use(threads)
    varied = list(vary)
    if study is None and not varied:
        return train_plan(None, Path(out or ""), device)
    row = None if study is None else plans.find_study(study)
    chosen = load_recipe(str(recipe or (row.recipe if row else "fast")))
    dataset = data if data is not None else row.dataset if row else None
    if dataset is not None:
        chosen = chosen.with_settings({"data.dataset": str(dataset)})
    if row is None:
        plan = plans.plan_variation(varied, chosen, settings or {}, seeds=seeds, minutes=minutes)
    else:
        plan = plans.plan_study(row, chosen, settings or {}, seeds=seeds, minutes=minutes)
    named = chosen.model_copy(update={"name": study or "vary"})
    return train_plan(plan, Path(out) if out is not None else default_out(named), device)


def compare(runs: Iterable[str | Path]) -> dict[str, Any]:
    """Return the figures of several runs, and the settings in which they differ; see `alexnet.use.compare`.

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
    """Go on with an unfinished run from its last checkpoint and return it; as for `train`; `threads`: as it began with.

    It need not be as many processes as before, nor divided alike.

    Raises:
        AlexNetError: no run there, or a finished one, or whatever keeps it from training.
    """
    now = time.monotonic() if started is None else started
    with joined() as group:
        _use(threads or group.told(read_recipe(find(Path(path))).train.threads if group.first else 0))
        return _resumed(Path(path), device, now, group, parallel)


def _resumed(path: Path, device: str | None, started: float, group: Group, parallel: Parallel) -> Run:
    folder = RunFolder(path)
    if group.restarts and group.told(folder.summary.exists() and folder.report.exists()):  # killed when all was done
        return _opened(path, device, group)
    over = folder.summary.exists() and folder.metrics.exists() and not folder.report.exists()  # killed at the very end
    if not group.told(over):
        return _finished(job.resume(path, device, started, group, parallel), device, group)
    if group.first:
        job.tidy(folder)
        Run(path, device).report()
    return _opened(path, device, group)


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


def _use(threads: int | None) -> None:
    """Compute with so many threads; None or 0: as many as there are."""
    if threads:
        torch.set_num_threads(threads)


def _chosen(
    data: str | Path | None, recipe: str | Path, weights: str | Path | None, settings: Mapping[str, Any] | None
) -> Recipe:
    """Return the recipe with what is asked for, data first, then what `weights` bring along, then `settings`."""
    brought = {} if weights is None else settings_of(str(weights))
    changes = {**({} if data is None else {"data.dataset": str(data)}), **brought, **(settings or {})}
    return load_recipe(str(recipe)).with_settings(changes)


def _sources(images: Images) -> list[Source]:
    """Return paths for names of files, folders and globs; arrays stay."""
    given = [images] if isinstance(images, str | Path) else images
    return [s for item in given for s in (find_images([item]) if isinstance(item, str | Path) else [item])]


def _finished(trained: job.Trained, device: str | None, group: Group) -> Run:
    if group.first:
        write_report(trained.folder, trained.dataset, trained.split, trained.evaluation)
    return _opened(trained.folder.path, device, group)


def _opened(path: Path, device: str | None, group: Group) -> Run:
    """Return the finished run; processes on a machine that does not have it end here, as there is nothing left to do."""
    group.agreed(1)  # once the first has written all of it
    if not path.exists():
        raise SystemExit(0)
    return Run(path, device)
