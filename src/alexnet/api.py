"""The public Python API, which the command line uses too; `alexnet` exports all of it."""

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

from alexnet.ablation.plan import find_study, make_plan, vary_settings
from alexnet.ablation.run import ablate as train_plan
from alexnet.choice import WAYS
from alexnet.choice.choose import Plan as Choice
from alexnet.choice.choose import choose as run_choice
from alexnet.convert.pretrained import settings_from_weights
from alexnet.convert.write import write_keras, write_torchvision
from alexnet.data import imagenet
from alexnet.data.check import check as check
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.decode_pool import InMemoryImage
from alexnet.data.labels import labels_differing_in_case, normalize_label
from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError, DataError, ImageError, RunError, format_names, shell_quote
from alexnet.explain.attribution import Explanation, explain
from alexnet.explain.methods import DEFAULT
from alexnet.export.card import write_card
from alexnet.export.onnx import export
from alexnet.export.openvino import export_openvino
from alexnet.export.page import export_page
from alexnet.extract.extract import Maps, extract
from alexnet.files import local_path, refuse_overwrite
from alexnet.folds.cross_validate import Plan as FoldsPlan
from alexnet.folds.cross_validate import cross_validate as train_folds
from alexnet.inference.ensemble import average
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.inference.features import Features, features, stream_features
from alexnet.inference.inputs import ImageInput, to_sources
from alexnet.inference.predict import predict
from alexnet.inference.views import VIEWS
from alexnet.network.device import choose_device
from alexnet.progress import say, track
from alexnet.recipe import Recipe
from alexnet.recipe import load as load_recipe
from alexnet.report.compare import compare as compare
from alexnet.report.report import write_report
from alexnet.run import RunFolder, find, find_weights, is_epoch, load_model, read_recipe
from alexnet.search.search import add_images, search_images
from alexnet.sort import sort as sorting
from alexnet.sort.journal import How
from alexnet.training import train as training
from alexnet.training.distributed import ProcessGroup, process_group
from alexnet.training.lr_finder import LRCurve
from alexnet.training.lr_finder import draw as draw_lr_curve
from alexnet.training.lr_finder import find_lr as run_lr_finder
from alexnet.training.parallel import Parallel


class Run:
    """A trained network in its run folder.

    Attributes:
        path: the run folder.
        labels: class names, in the order of the network's outputs.
        network: the `AlexNet`. It maps normalised images, N 3 H W float32, to logits, N x classes float32. If the run upscales
            its images, pass them small, with the factor: `network(x, config.preprocessing.upscale)`.
        config: variant, labels, preprocessing, and temperature.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        """Open a run.

        Args:
            path: run folder, or weights that it saved on the way, which are not calibrated: after an epoch
                (`train.save_epochs`), such as `runs/a@epoch3` or `runs/a/epochs/cp-0003.safetensors`, or after a step
                (`train.save_steps`), such as `runs/a@512`.
            device: such as `cpu` or `cuda:1`. Default: an accelerator if available.

        Raises:
            RunError: the run is missing or damaged.
            AlexNetError: the device does not exist.
        """
        self._folder = find_weights(Path(path))
        self.path = self._folder.path
        self.network, self.config = load_model(self._folder, choose_device(device))
        self.labels = self.config.labels

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe of the training, as in `run.recipe.train.epochs`.

        Raises:
            RunError: the recipe's file cannot be read.
            RecipeError: it has an unknown key or an invalid value.
        """
        return read_recipe(self._folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the training, as `alexnet train --json` prints it.

        `{"run", "recipe", "variant", "epochs", "seconds", "best_epoch", "kept", "validation", "test", "skipped"}`.
        `best_epoch` is the epoch whose weights were kept: `kept` is `best` or `last`, as `train.keep` of the recipe.
        `validation` and `test` are as `Evaluation.to_json` returns them; `test` is None without a test set. `seconds` count
        from the start of the command.

        Raises:
            RunError: the training is unfinished, or the file is damaged.
        """
        return self._folder.read_summary()

    def predict(self, images: ImageInput, top: int = 5, views: int | None = None) -> list[dict[str, Any]]:
        """Predict the labels of images.

        Args:
            images: one image or an iterable of them. An image is a path, a folder, a glob pattern, the bytes of a file, an open
                binary file, a Pillow image, or an RGB array, H W 3 uint8; an array N H W 3 is N images.
            top: number of labels per image.
            views: number of views of each image, as for `evaluate`; their probabilities are averaged.

        Returns:
            For each image, in order, `{"image", "predictions": [{"label", "probability"}], "known"}`, most probable first, or
            `{"image", "error"}` if it cannot be read. Probabilities are calibrated, from 0 to 1. `known` is false if the image
            seems to show none of the labels: 95 % of the validation images are known. It is missing for runs of earlier
            versions, weights of one epoch and imported networks. Arrays are named `array`, bytes `bytes`.

        Raises:
            DataError: `images` is of an unsupported type, or a pattern matches no file.
            AlexNetError: `top` is not a positive integer, or `views` is not 1, 2 or 10.

        Note:
            PyTorch's threads do not survive a fork: a process forked after this call (`os.fork`, or multiprocessing's `fork`)
            predicts with one thread. On a GPU, open the run in the child process only.
        """
        return list(self.stream(images, top, views))

    def stream(self, images: ImageInput, top: int = 5, views: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the results of `predict` one by one, with one batch of images in memory at a time.

        `images`, `top`, `views` and the errors are as for `predict`.
        """
        _check_top(top)
        _check_views(views)
        sources = to_sources(images)
        # On a terminal, results are printed as they arrive, and a progress bar would overwrite them.
        tracked = sources if sys.stdout.isatty() else track(sources, "Predicting", len(sources))
        return predict(self.network, self.config, tracked, top, views)

    def sort(
        self, images: ImageInput, folder: str | Path, how: How = "copy", top: int = 5, views: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Sort image files into a folder for each predicted label, and yield the results of `predict`.

        Images that are not known go into the folder `unsure`. No file is replaced. After an interruption, the same call
        continues; `undo_sort(folder)` takes everything back.

        Args:
            images: as for `predict`, but files only: paths, folders or patterns.
            folder: folder to sort into, new or from the same call before.
            how: `copy` the files, `move` them, or make symbolic links (`link`).
            top: number of labels per image in the results.
            views: as for `predict`.

        Yields:
            As `predict`, with `"sorted"`, the new path. Images that cannot be read stay where they are.

        Raises:
            DataError: as for `predict`, or an image is not a file or lies in `folder`.
            RunError: `folder` holds other files, was sorted in another way, or cannot be written.
            AlexNetError: `top` is not a positive integer, or `views` is not 1, 2 or 10.
        """
        sources = to_sources(images)
        journal = sorting.open_folder(Path(folder), how)
        return sorting.sort(journal, self.stream(sorting.unsorted(journal, sources), top, views), self.labels)

    def evaluate(
        self,
        data: str | Path | None = None,
        split: str | None = None,
        views: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Evaluate the run on a dataset.

        Args:
            data: a folder, a CSV, Parquet or JSON lines file, or the name of a built-in dataset. Default: the run's own.
            split: `train`, `val` or `test`. Default: `test` if there is one, else `val`; all images if `data` has no splits.
            views: number of views averaged per image. 1: the image; 2: also its mirror image; 10: crops of the corners and the
                centre, and their mirror images (paper, section 4.1). Default: the recipe's `images.views`.
            settings: recipe keys that say how to read a table, such as `{"data.label_column": "breed"}`. Default: the run's.

        Returns:
            The logits and targets of all images, with their metrics.

        Raises:
            DataError: the dataset or the split does not exist, or has labels that the network does not know.
            AlexNetError: `views` is not 1, 2 or 10.
        """
        _check_views(views)
        dataset, split = self.dataset(data, split, settings)
        config, workers = self.config, self.recipe.data.workers
        options: dict[str, Any] = {"view_count": views, "known": config.known}
        return evaluate_split(
            self.network, dataset, split, config.preprocessing, config.precision, workers, config.temperature, **options
        )

    def over_training(
        self,
        data: str | Path | None = None,
        split: str | None = None,
        views: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Evaluate all weights that the run saved on the way, and draw the curve to `over-training.png` in its folder.

        `data`, `split`, `views`, `settings` and the errors are as for `evaluate`. `train.save_steps` and `train.save_epochs`
        of the recipe say when weights are saved.

        Returns:
            `{"run", "split", "images", "figure", "points": [{"weights", "step", "epoch", "top1", "top1_interval", "loss"}]}`,
            in the order of the training steps. `load` opens `weights`: a file, or the run's folder for the weights that it
            kept. `epoch` counts passes over the training images, and may be a fraction.

        Raises:
            RunError: the run saved no weights on the way, some are damaged, or the figure cannot be written.
        """
        from alexnet.report.over_training import over_training, saved_points

        _check_views(views)
        points = saved_points(self._folder)
        device = next(self.network.parameters()).device
        return over_training(self._folder, points, *self.dataset(data, split, settings), views, device)

    def explanations(
        self,
        images: ImageInput,
        label: str | None = None,
        layer: str | None = None,
        method: str | Sequence[str] = DEFAULT,
        scores: bool = False,
    ) -> Iterator[tuple[Any, Explanation | ImageError]]:
        """Yield each image as given, with its `Explanation`, or with an `ImageError` if it cannot be read.

        `images` are as for `predict`, and `label`, `layer`, `method`, `scores` and the errors as for `explain`.
        """
        results = explain(self.network, self.config, to_sources(images), label, layer, method, scores)
        return ((source.content if isinstance(source, InMemoryImage) else source, result) for source, result in results)

    def explain(
        self,
        images: ImageInput,
        out: str | Path | None = None,
        arrays: bool = False,
        overwrite: bool = False,
        label: str | None = None,
        layer: str | None = None,
        method: str | Sequence[str] = DEFAULT,
        scores: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Draw a figure that explains the prediction of each image, and yield the results in order.

        Args:
            images: as for `predict`.
            out: folder to write to: `<image>-explained.png` for each image, and `filters.png`, the kernels of the first layer.
                Default: `explain` in the run folder.
            arrays: also write the arrays of `Explanation` to a NumPy archive per image.
            overwrite: also replace files that this program did not make.
            label: what the heat maps are about. Default: the most probable label of each image.
            layer: whose maps Grad-CAM looks at, such as `relu3`. Default: the activation of the last convolution.
            method: one heat map or several: `grad_cam`, `occlusion`, `integrated_gradients`, `saliency`, `smooth_grad`,
                `input_x_gradient`, `guided_backprop`, `deconvolution`, `guided_grad_cam`, `gradient_shap`, `deep_lift`,
                `feature_ablation`, `kernel_shap`.
            scores: also say how far to believe each map; this takes several times as long.

        Yields:
            `{"image", "predictions": [{"label", "probability"}], "figure"}`, where `figure` is a path, and with `arrays` also
            `"arrays"`, the path of the archive; or `{"image", "error"}` if the image cannot be read. With `scores`, also
            `"scores"`: by method, the fields of `alexnet.explain.scores.Scores`.

        Raises:
            DataError: as for `predict`.
            RunError: `out` cannot be written, or holds a file that this program did not make.
            VariantError: there is no such layer, or it has no maps.
            AlexNetError: there is no such label or method, the method does not suit the network, or captum is not installed.
        """
        from alexnet.explain.figure import write_explanations  # importing matplotlib takes a second

        folder = Path(out) if out is not None else self._results("explain")
        files: dict[str, Any] = {"arrays": arrays, "overwrite": overwrite}
        about: dict[str, Any] = {"label": label, "layer": layer, "method": method, "scores": scores}
        return write_explanations(self.network, self.config, to_sources(images), folder, **files, **about)

    def features(self, images: ImageInput, layers: str | Sequence[str] = "fc7") -> dict[str, NDArray[np.float32]]:
        """Return the activations of layers, computed in float32.

        Use `stream_features` if they do not fit into memory.

        Args:
            images: as for `predict`.
            layers: one name or several, from `network.layer_names`: `conv5` is the output of a convolution, `relu5` that of
                its activation. Torchvision's names, from `network.torchvision_names`, such as `features.10`, are accepted too.

        Returns:
            An array for each layer, under the name given, with a row for each image, in order: feature maps N C H W or vectors
            N units, float32.

        Raises:
            DataError: there is no image, or one cannot be read.
            VariantError: a layer does not exist.
        """
        sources = to_sources(images)
        layers = [layers] if isinstance(layers, str) else layers
        return features(self.network, self.config, track(sources, "Computing features", len(sources)), layers)

    def stream_features(self, images: ImageInput, layers: str | Sequence[str] = "fc7") -> Iterator[Features]:
        """Yield `Features`, the activations of one batch of images at a time; unreadable images are in its `errors`.

        `images` and `layers` are as for `features`.
        """
        sources = to_sources(images)
        layers = [layers] if isinstance(layers, str) else layers
        return stream_features(self.network, self.config, track(sources, "Computing features", len(sources)), layers)

    def units(
        self,
        images: ImageInput | None,
        layer: str,
        units: Sequence[int] | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Draw what excites the units of a layer: the part that the unit sees of the images that do so most, or one made up.

        Args:
            images: as for `predict`. None: an image is made up for each unit by gradient ascent, always the same.
            layer: as for `features`.
            units: numbers of units, from 0. Default: the first 24.
            out: PNG file to draw. Default: `units-LAYER.png`, or `ascent-LAYER.png`, in the run folder.
            overwrite: replace a file that this program did not make.

        Returns:
            `{"layer", "units": [{"unit", "images": [{"image", "value", "box": [top, left, height, width]}]}], "figure",
            "skipped": [{"image", "error"}]}`. Each unit has up to nine images, the most exciting first, with its activation and
            the box that it sees, in pixels of the image as it goes in, which may reach over the border. Without
            images, each unit has `{"unit", "activation", "noise", "dead"}` instead: the activation reached, of maps at the
            position in the middle, the largest there for images of noise, and whether the first is not above both it and zero.

        Raises:
            DataError: no image can be read.
            VariantError: there is no such layer or unit.
            RunError: the figure cannot be written.
        """
        from alexnet.units.ascent import ascend
        from alexnet.units.figure import draw, draw_made_up
        from alexnet.units.units import boxes, excite, to_json

        kind = "ascent" if images is None else "units"
        default = self._results(f"{kind}-{self.network.layer_name(layer)}").with_suffix(".png")
        path = default if out is None else local_path(out)
        refuse_overwrite(path, overwrite)
        if images is None:
            drawn = ascend(self.network, self.config.preprocessing, layer, units)
            draw_made_up(drawn, path, overwrite)
            return drawn.to_json(str(path))
        sources = to_sources(images)
        excited = excite(self.network, self.config, sources, layer, units)
        places = boxes(self.network, self.config.preprocessing, excited)
        draw(excited, places, sources, self.config.preprocessing, path, overwrite)
        return to_json(excited, sources, places, path)

    def extract(
        self,
        images: ImageInput,
        layers: str | Sequence[str],
        out: str | Path,
        maps: Maps = "keep",
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write the activations of layers, computed in float32, to a file; a call that was stopped goes on where it was.

        Memory does not grow with the number of images. The file has an array for each layer, with a row for each image that can
        be read, and `images`, their names in the same order. Until it is complete, `OUT.partial` holds what is done.

        Args:
            images: as for `predict`, but files.
            layers: as for `features`.
            out: a file that ends in `.npz` (NumPy), `.h5` or `.hdf5` (HDF5, by h5py) or `.mat` (MATLAB 5, up to 2 GB a layer),
                or a folder that ends in `.zarr` (Zarr 3, by zarr).
            maps: what becomes of feature maps: `keep` (N C H W), `mean` or `max` over height and width (N C), or `flat`
                (N C*H*W).
            overwrite: replace a file that this program did not make; a folder that it did not make is never replaced.

        Returns:
            `{"file", "images", "layers": {name: shape}, "bytes", "errors": [{"image", "error"}]}`.

        Raises:
            DataError: there is no image, none can be read, or the ending is unknown.
            VariantError: a layer does not exist.
            RunError: the file cannot be written.
        """
        layers = [layers] if isinstance(layers, str) else layers
        return extract(self.network, self.config, to_sources(images), layers, local_path(out), maps, overwrite)

    def index(self, folder: str | Path, out: str | Path | None = None, bits: int | None = None) -> dict[str, Any]:
        """Index the images of a folder for `search`, or update the index.

        The code of an image is the activation of the last hidden layer (paper, section 6.1).

        Args:
            folder: folder of images, subfolders included.
            out: index folder to create or to add to. Default: `search` in the run folder.
            bits: length of the binary codes, a multiple of 8. Default: 128.

        Returns:
            `{"index", "images", "added", "bits", "skipped": [{"image", "reason"}]}`: `images` counts all in the index, `added`
            the new ones. `bits` is None while there are too few images to learn binary codes from.

        Raises:
            DataError: the folder does not exist, or has no image that can be read.
            RunError: the index is damaged, belongs to other weights, has codes of another length, or cannot be written.
            AlexNetError: `bits` is not a multiple of 8, or faiss is not installed.
        """
        if not str(folder):
            raise DataError("the folder's name is empty: name the folder of the images")
        return add_images(self._index_path(out), self.network, self.config, Path(folder), bits)

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
        """Find the most similar images of an index.

        Args:
            images: as for `predict`.
            top: number of neighbours per image; an image is not its own neighbour.
            binary: compare binary codes, which is faster and less exact.
            index: folder that `Run.index` wrote. Default: `search` in the run folder.
            out: also draw a contact sheet to this PNG file, with a row for each image.
            overwrite: replace `out` even if this program did not make it.

        Returns:
            For each image, in order, `{"image", "neighbours": [{"image", "distance"}]}`, nearest first, with absolute paths, or
            `{"image", "error"}` if it cannot be read. Distances are Euclidean, between codes (paper, section 6.1); with
            `binary`, the number of differing bits.

        Raises:
            DataError: as for `predict`.
            RunError: the index is missing, damaged, belongs to other weights, or lacks binary codes; `out` cannot be written or
                holds a file that this program did not make.
            AlexNetError: `top` is not a positive integer, or faiss is not installed.
        """
        _check_top(top)
        sources = to_sources(images)
        if out is not None:
            refuse_overwrite(Path(out), overwrite)
        results = list(search_images(self._index_path(index), self.network, self.config, sources, top, binary))
        if out is not None:
            from alexnet.search.contact_sheet import write_sheet  # importing matplotlib takes a second

            write_sheet(Path(out), sources, results, overwrite)
        return results

    def export(
        self, out: str | Path | None = None, *, bare: bool = False, int8: bool = False, overwrite: bool = False
    ) -> dict[str, Any]:
        """Export the network to ONNX, and verify it in onnxruntime before the file is written.

        The model maps `image`, H W 3 uint8 of any size, to `probabilities`, one a class, calibrated, and to `known`, a bool: it
        is false if the image seems to show none of the classes. It is verified on validation images, or on random ones if the
        dataset is not available.

        Args:
            out: file to write. Default: `model.onnx`, `model-bare.onnx` and so on, in `export` in the run folder, with a model
                card, `README.md`, as the Hugging Face hub reads it.
            bare: export without preprocessing: `images`, N 3 I I float32, normalised, to `logits`, N x classes.
            int8: quantise to 8-bit integers, calibrated on training images, for a quarter of the size.
            overwrite: also replace files that this program did not make.

        Returns:
            `{"file", "bare", "int8", "opset", "ir_version", "onnxruntime", "bytes", "sha256", "compared_on", "images",
            "largest_difference", "close", "same_top1", "same_known", "images_per_second", "top1"}`, with `int8` also
            `"float_bytes"`. `onnxruntime` is the oldest version that can read the file, as `">=1.17"`. `largest_difference` is
            one of probabilities; `close` (within 0.01), `same_top1` and `same_known` are fractions of the compared images, from
            0 to 1; `same_known` is None if the file does not say what is known.

        Raises:
            RunError: verification failed; `out` cannot be written or holds a file that this program did not make; `int8` needs
                the dataset.
            AlexNetError: onnx, onnxscript or onnxruntime is not installed.
        """
        name = f"{self._folder.weights.stem}{'-bare' if bare else ''}{'-int8' if int8 else ''}.onnx"
        path = Path(out) if out is not None else self.path / "export" / name
        card = path.with_name("README.md") if out is None and not bare else None
        for file in filter(None, (path, card)):
            refuse_overwrite(file, overwrite)
        dataset = self._compared_on()
        result = export(self.network, self.config, dataset, path, bare=bare, int8=int8, overwrite=overwrite)
        if card is not None:
            write_card(card, self._folder, self.config, dataset, path.name, overwrite)
        return result

    def export_page(self, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Export a web page that needs no server: the network runs in the visitor's browser, and no photo leaves it.

        The folder can be put on any host of files. The weights take 8 and 16 bits. The network is verified in onnxruntime, and
        the page in Chromium if it is installed (`CHROMIUM` is its path); the folder's `comparison.json` has the result.

        Args:
            out: folder to write.
            overwrite: also replace files that this program did not make.

        Returns:
            As for `export`, with `"page"`, the folder, `"page_bytes"`, its size, and `"browser"`: `{"program", "images",
            "unread", "largest_difference", "close", "same_top1"}`, or None if there is none.

        Raises:
            RunError: verification failed; `out` cannot be written or holds files that this program did not make.
            AlexNetError: a library for exporting, or onnxruntime-web, is missing.
        """
        return export_page(self.network, self.config, self._compared_on(), self._folder, Path(out), overwrite=overwrite)

    def export_openvino(self, file: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Export the network for OpenVINO, and verify it there before the files are written.

        Inputs and outputs are those of `export`; labels and preprocessing are in the `rt_info`, under `framework`. Weights
        take 16 bits. It is verified in float32; on processors with bfloat16, OpenVINO computes in that unless
        `INFERENCE_PRECISION_HINT` is f32.

        Args:
            file: a name that ends in `.xml`; the weights go to `.bin` beside it.
            overwrite: also replace files that this program did not make.

        Returns:
            `{"file", "openvino", "bytes", "sha256"}`, of the weights, and how it compares, as for `export`.

        Raises:
            RunError: verification failed; the file cannot be written, or exists and was not made by this program.
            AlexNetError: OpenVINO or a library for exporting is not installed, or the name has another ending.
        """
        return export_openvino(self.network, self.config, self._compared_on(), Path(file), overwrite=overwrite)

    def _compared_on(self) -> Dataset | None:
        """Return the run's dataset, which exports are compared on; None if it is not available."""
        try:
            return self.dataset(split="val")[0]
        except AlexNetError as error:
            say(f"the run's dataset is not available, comparing on random images instead: {error}")
            return None

    def export_torchvision(self, file: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Write the weights as a state dict for `torchvision.models.alexnet`, and read them back to verify.

        Only networks of the variant `owt` at its full width fit into torchvision's class; the number of classes is free.

        Args:
            file: a name that ends in `.pth` (tensors alone, for `torch.load` with `weights_only=True`) or `.safetensors`.
            overwrite: also replace a file that this program did not make.

        Returns:
            `{"file", "bytes", "sha256", "labels", "temperature", "preprocessing", "images", "python"}`: `python` are the lines
            of code that load the file, and `images` what an image needs first, step by step, in words. The run's probabilities
            are the softmax of the logits divided by `temperature`.

        Raises:
            WeightsError: torchvision's class cannot hold the network, or the name has another ending.
            RunError: the file cannot be written, or exists and was not made by this program.
        """
        return write_torchvision(self.network, self.config, Path(file), overwrite)

    def export_keras(self, file: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Write the weights for `model.load_weights` of Keras 3, and read them back to verify.

        The model is the tutorial's for its variant, or any with convolutions, dense layers and batch norms in the same order,
        whose `Flatten` reads maps as H, W, C.

        Args:
            file: a name that ends in `.weights.h5`.
            overwrite: as for `export_torchvision`.

        Returns:
            As for `export_torchvision`, with `"layers"`, the names of all layers in order, and `"notes"`, what the model must
            do besides these layers to predict as the run does.

        Raises:
            WeightsError: h5py is not installed, or the name has another ending.
            RunError: as for `export_torchvision`.
        """
        return write_keras(self.network, self.config, Path(file), overwrite)

    def serve(self, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None, views: int | None = None) -> None:
        """Serve `predict` and `explain` over HTTP until Ctrl-C or SIGTERM.

        If ALEXNET_API_KEY is set in the environment, clients must send that key.

        Args:
            host: address to listen on; `0.0.0.0` accepts connections from other machines.
            port: 0 takes a free one.
            threads: number of CPU threads. Default: one per core.
            views: as for `predict`.

        Raises:
            AlexNetError: a library is not installed, the address is not available, or `views` is not 1, 2 or 10.
            Interrupted: the server was stopped, after answering all requests; there is no other way to return.
        """
        try:
            from alexnet.server.app import serve
        except ImportError as error:
            needed = "fastapi uvicorn python-multipart captum"
            raise AlexNetError(f"serving lacks a library ({error}): pip install {needed}") from error
        _check_views(views)
        _set_threads(threads)
        serve(self._folder, self.network, self.config, host, port, views)

    def dataset(
        self, data: str | Path | None = None, split: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> tuple[Dataset, str]:
        """Open a dataset, with targets in the order of the network's labels.

        `data`, `split` and `settings` are as for `evaluate`.

        Returns:
            The dataset, and the split to use: `train`, `val`, `test` or `all`.

        Raises:
            DataError: as for `evaluate`.
        """
        optional = {} if data is None else {"data.split_column": None, "data.group_column": None}  # which `data` may lack
        own = self.recipe.with_settings({**optional, **(settings or {})}).data
        if data is None and not own.dataset:
            raise DataError(f"the run {self.path} was imported and has no dataset of its own: name one")
        table = open_table(own.dataset if data is None else data, own.root, 2 if data is None else 1, own)
        table = replace(table, labels=imagenet.as_named(table.labels, self.labels))
        known = {normalize_label(label) for label in self.labels}
        if unknown := [label for label in table.labels if label not in self.labels and normalize_label(label) not in known]:
            alike = next((group for group in labels_differing_in_case([*known, *unknown]) if unknown[0] in group), [])
            hint = f" (upper and lower case count: {format_names(alike)})" if alike else ""
            problem = f"{table.name} has labels that the run {self.path} does not know: {format_names(unknown)}{hint}"
            raise DataError(f"{problem}; it knows {format_names(self.labels)}")
        unsplit = data is not None and split is None and not (table.splits != "").any()
        preprocessing = self.config.preprocessing
        splits = None if unsplit else own
        dataset = open_dataset(table, preprocessing, own.workers, splits, train=data is None, cache=own.cache)
        dataset = replace(dataset, table=dataset.table.with_labels(self.labels))
        if unsplit:
            return dataset, "all"
        counts = dataset.table.counts()
        split = split or ("test" if "test" in counts else "val")
        if split not in counts:
            raise DataError(f"{table.name} has no split {split!r}: it has {', '.join(counts)}")
        return dataset, split

    def report(self) -> Path:
        """Rewrite `report.html` and return its path.

        Raises:
            DataError: the run's dataset has moved.
            RunError: a file of the run is missing or damaged, the disk is full, these are the weights of an epoch, or the run
                was imported.
        """
        if is_epoch(self._folder.weights):
            raise RunError(f"a report is of a whole run: alexnet report {shell_quote(self.path)}")
        if self.summary["validation"] is None:
            raise RunError(
                f"a report is of a training, and the run {self.path} was imported: alexnet evaluate it on DATA instead"
            )
        dataset, split = self.dataset()
        return write_report(self._folder, dataset, split, self.evaluate(split=split))

    def _index_path(self, path: str | Path | None) -> Path:
        return self._results("search") if path is None else Path(path)

    def _results(self, name: str) -> Path:
        """Return the default folder of results, in the run folder: those of an epoch's weights have one of their own."""
        weights = self._folder.weights
        return self.path / (f"{name}-{weights.stem}" if is_epoch(weights) else name)


def evaluate(
    runs: Sequence[str | Path | Run],
    data: str | Path | None = None,
    split: str | None = None,
    views: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Evaluation:
    """Evaluate several runs as an ensemble, which answers with the mean of their probabilities (paper, section 6).

    Args:
        runs: one run or more, with the same labels.
        data: as for `Run.evaluate`. Default: the dataset of the runs, which must have split it alike.
        split: as for `Run.evaluate`.
        views: as for `Run.evaluate`.
        settings: as for `Run.evaluate`.
        device: as for `Run`.

    Returns:
        The evaluation of the mean, which is not calibrated; that of the run if there is only one.

    Raises:
        DataError: as for `Run.evaluate`, or the runs have other labels or other images.
    """
    if not runs:
        raise DataError("no runs: name one or more")
    opened = [run if isinstance(run, Run) else Run(run, device) for run in runs]
    for run in opened[1:]:
        if run.labels != opened[0].labels:
            raise DataError(f"{run.path} has other labels than {opened[0].path}, or in another order: evaluate them one by one")
    if data is None and len({run.recipe.data.dataset for run in opened}) > 1:
        raise DataError(
            f"{format_names(run.path for run in opened)} were trained on other datasets: name the one to evaluate on"
        )
    evaluations = []
    for run in opened:
        evaluations.append(run.evaluate(data, split, views, settings))
        if evaluations[-1].images != evaluations[0].images:
            reason = f"{run.path} has another split than {opened[0].path}, so it may have trained on these images"
            raise DataError(f"{reason}: name a dataset that is new to all of them")
    return evaluations[0] if len(evaluations) == 1 else average(evaluations)


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
    """Train a network and return its run. Under torchrun, call this in every process.

    Args:
        data: a folder, a CSV, Parquet or JSON lines file, or a built-in dataset (`digits`, `cifar10`, `fashion-mnist`,
            `imagenette`, `cats-dogs`, `imagenet`). Default: the recipe's.
        recipe: a name (`alexnet recipes list`) or a TOML file.
        out: run folder to create. Default: a new one in `runs/`.
        device: such as `cpu` or `cuda:1`. Default: an accelerator if available.
        threads: number of CPU threads. Default: one per core.
        weights: initial weights of the features: a run folder or a file in its `epochs`, whose variant is taken too, a file in
            torchvision's layout, or `imagenet1k` (the latter two for the variant `owt`). Default: the recipe's.
        settings: recipe keys to change, as `{"train.epochs": 5}`. `train.minutes` limits the time instead of the epochs;
            `data.image_column`, `data.label_column`, `data.split_column` and `data.group_column` name the columns of a table.
        parallel: how several processes divide the work: `data` (each batch), `towers` (a tower each, as in 2012; paper, section
            3.2), or `hybrid` (each batch, but the units of dense layers; Krizhevsky 2014).
        started: `time.monotonic()`, in seconds, from which the run's time counts. Default: now.

    Raises:
        DataError: the dataset cannot be used.
        RecipeError: the recipe or a key does not exist, or a value does not suit the dataset, the network or the processes.
        VariantError: the architecture cannot be built.
        WeightsError: the weights cannot be read, or belong to another network.
        RunError: `out` is not empty or cannot be written.
        DivergedError: the loss is not finite.
        Interrupted: a signal stopped the training; everything is saved, and `resume` continues it.
        AlexNetError: the device does not exist, or another process failed.
    """
    now = time.monotonic() if started is None else started
    with process_group() as group:
        settings = {**(settings or {}), **({"train.threads": threads} if threads else {})}
        resolved = _load_recipe(data, recipe, weights, settings)
        _set_threads(resolved.train.threads)
        if out is None and group.max_restarts:
            raise AlexNetError("name the run folder with --out, so that training finds it again when torchrun restarts it")
        path = Path(group.broadcast(str(out if out is not None else _default_out(resolved))))
        if group.restarts and group.broadcast(RunFolder(path).recipe.exists()):
            return _resume(path, device, now, group, parallel)
        training.start(resolved, path, device, now, group, parallel)
        return _open_finished(path, device, group)


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
    """Find a learning rate with a range test: 100 steps at increasing rates. No run is created.

    Args:
        data: as for `train`.
        recipe: as for `train`.
        out: run folder that the plot is named after: `runs/a` gives `runs/a-lr.png`.
        device: as for `train`.
        threads: as for `train`.
        weights: as for `train`.
        settings: as for `train`.
        overwrite: replace the plot's file even if this program did not make it.

    Returns:
        The curve, whose `settings` are the suggested recipe keys, and the path of its plot.

    Raises:
        RunError: the plot cannot be written, or would replace a file that this program did not make.
        AlexNetError: as for `train`, or the loss does not decrease at any rate.
    """
    resolved = _load_recipe(data, recipe, weights, settings)
    run = Path(out) if out is not None else _default_out(resolved)
    if not run.name or run.name == "..":
        raise RunError(f"the curve of --find-lr cannot be named after {run}: name a folder such as runs/a")
    path = run.with_name(f"{run.name}-lr.png")
    refuse_overwrite(path, overwrite)
    _set_threads(threads)
    curve = run_lr_finder(resolved, device)
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
    """Run an ablation study: train with one setting changed, over several seeds, and compare.

    Args:
        data: as for `train`. Default: the study's, else the recipe's.
        study: a name in `alexnet.ablation.STUDIES`.
        vary: instead of a study, recipe keys and their values, as `["optimizer.lr=0.01,0.001"]`; every combination is trained.
        recipe: as for `train`. Default: the study's, else `fast`.
        out: study folder to create. Given without `study` and `vary`, the study in it is resumed. Default: a new one in
            `runs/`.
        minutes: time limit for all trainings together, in minutes. Default: the recipe's epochs for each.
        seeds: number of trainings per arm.
        settings: recipe keys to change in all arms.
        device: as for `train`.
        threads: as for `train`.

    Returns:
        `{"study", "claim", "source", "measure", "split", "seeds", "aim", "epochs", "arms": [{…}], "how", "figures"}`, as in
        `results.json`. An arm has its `"values"`, one a seed, their `"mean"`, and the `"difference"` to the first arm, both
        with a 95 % interval. Values are top-1 accuracies, from 0 to 1; if `"measure"` is `steps`, they are numbers of steps,
        and the difference is a ratio.

    Raises:
        RecipeError: as for `train`, or `settings` has a key that the study varies.
        RunError: `out` cannot be written, or holds something other than this study.
        Interrupted: a signal stopped the study; everything is saved, and the same call resumes it.
        AlexNetError: as for `train`, or the study does not exist.
    """
    _set_threads(threads)
    variations = list(vary)
    if study is None and not variations:
        return train_plan(None, Path(out or ""), device)
    chosen = vary_settings(variations) if study is None else find_study(study)
    changes = {**({} if data is None else {"data.dataset": str(data)}), **(settings or {})}
    plan = make_plan(chosen, None if recipe is None else str(recipe), changes, seeds, minutes)
    named = plan.recipe.model_copy(update={"name": plan.study})
    return train_plan(plan, Path(out) if out is not None else _default_out(named), device)


def choose(
    data: str | Path | None = None,
    *,
    minutes: float = 15.0,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    threads: int | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train from nothing, fit a head to trained features, fine-tune, and keep the run that validation prefers.

    Args:
        data: as for `train`.
        minutes: time for all trainings together; the head takes seconds, the others share the rest.
        weights: initial weights of the head's features and of fine-tuning, as for `train`. Default: `imagenet1k`.
        out: run folder to create; the trainings that are not kept stay in its folder `tries`. An unfinished choice in it is
            resumed, and `data` may then be left out. Default: `runs/<data>-choice`.
        settings: recipe keys to change in all trainings, as `{"train.seed": 1}`.
        device: as for `train`.
        threads: as for `train`.
        started: as for `train`.

    Returns:
        `{"run", "kept", "minutes", "tries": [{"recipe", "run", "validation", "epochs", "seconds"}], "test"}`; `kept` is the
        name of a recipe. `validation` and `test` are as `Evaluation.to_json` returns them; the test set is evaluated for the
        run that is kept alone, and None if there is none.

    Raises:
        RunError: `out` is not empty, holds another choice, or cannot be written.
        Interrupted: a signal stopped the trainings; everything is saved, and the same call continues.
        AlexNetError: as for `train`.
    """
    now = time.monotonic() if started is None else started
    _set_threads(threads)
    if data is None:
        return run_choice(None, Path(out or ""), device, now)
    changes = {**(settings or {}), **({"train.threads": threads} if threads else {})}
    recipes = {
        name: _load_recipe(data, name, None if name == "fast" else weights, changes).with_absolute_dataset() for name in WAYS
    }
    path = local_path(recipes["fast"].data.dataset)
    named = Path("runs") / f"{path.name if path.is_dir() else path.stem}-choice"
    return run_choice(Choice(minutes=minutes, recipes=recipes), Path(out) if out is not None else named, device, now)


def cross_validate(
    data: str | Path | None = None,
    *,
    folds: int = 5,
    recipe: str | Path = "fast",
    out: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    weights: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train a network for each fold of the images, without that fold, and predict every image by the one that never saw it.

    Folds are stratified; images of a group, and near-duplicates, are in the same fold. If the dataset declares a test split,
    its images are in no fold, and nothing looks at them. A recipe's own rule for validation images is replaced by `hash`.

    Args:
        data: as for `train`.
        folds: number of folds, 2 or more.
        recipe: as for `train`.
        out: folder to create; unfinished folds in it are resumed. Default: `runs/<data>-<recipe>-<folds>-folds`.
        device: as for `train`.
        threads: as for `train`.
        weights: as for `train`.
        settings: as for `train`; `train.minutes` is the time for all folds together.
        started: as for `train`.

    Returns:
        `{"run", "recipe", "images", "top1", "top1_interval": [low, high], "loss", "folds": [{"fold", "images", "top1",
        "top1_interval", "loss", "validation_top1", "seconds"}], "per_class", "seconds", "skipped", "files": {"csv",
        "arrays"}}`, as in `out-of-fold.json`. Accuracies are from 0 to 1, with their 95 % intervals (Wilson 1927); the loss is
        in nats, of calibrated probabilities. `csv` has a row for each image, and `arrays` is a NumPy archive with the
        probabilities of all classes.

    Raises:
        RunError: `out` holds finished folds, other ones, or something else; or the images changed between the folds.
        DataError: the dataset cannot be used, or has too few images for so many folds.
        Interrupted: a signal stopped the trainings; everything is saved, and the same call continues.
        AlexNetError: `folds` is below 2; or as for `train`.
    """
    now = time.monotonic() if started is None else started
    if not isinstance(folds, int) or folds < 2:
        raise AlexNetError(f"folds is {folds!r}, but should be a whole number, 2 or more")
    _set_threads(threads)
    changes = {**(settings or {}), **({"train.threads": threads} if threads else {}), "data.split": "hash"}
    resolved = _load_recipe(data, recipe, weights, changes).with_absolute_dataset()
    path = local_path(resolved.data.dataset)
    named = Path("runs") / f"{path.name if path.is_dir() else path.stem}-{resolved.name}-{folds}-folds"
    return train_folds(FoldsPlan(folds=folds, recipe=resolved), Path(out) if out is not None else named, device, now)


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    parallel: Parallel = "data",
    started: float | None = None,
) -> Run:
    """Resume an unfinished run from its last checkpoint, and return it.

    The number of processes and `parallel` may change between sessions.

    Args:
        path: run folder.
        device: as for `train`.
        threads: number of CPU threads. Default: as before.
        parallel: as for `train`.
        started: as for `train`.

    Raises:
        RunError: the run is missing or finished, or all of its checkpoints are damaged.
        DataError: the dataset has moved or changed.
        DivergedError: the loss is not finite.
        Interrupted: a signal stopped the training; everything is saved, and the same call continues it.
        AlexNetError: the device does not exist, or another process failed.
    """
    now = time.monotonic() if started is None else started
    with process_group() as group:
        _set_threads(threads or group.broadcast(read_recipe(find(Path(path))).train.threads if group.is_main else 0))
        return _resume(Path(path), device, now, group, parallel)


def _resume(path: Path, device: str | None, started: float, group: ProcessGroup, parallel: Parallel) -> Run:
    folder = RunFolder(path)
    if group.restarts and group.broadcast(folder.summary.exists() and folder.report.exists()):  # killed after the report
        return _open_finished(path, device, group)
    lacks_report = folder.summary.exists() and folder.metrics.exists() and not folder.report.exists()  # killed before it
    if not group.broadcast(lacks_report):
        training.resume(path, device, started, group, parallel)
    elif group.is_main:
        training.remove_checkpoints(folder)
        Run(path, device).report()
    return _open_finished(path, device, group)


def load(path: str | Path, device: str | None = None) -> Run:
    """Open a run and return it; `path`, `device` and the errors are as for `Run`."""
    return Run(path, device)


def _check_top(top: object) -> None:
    if not isinstance(top, int) or top < 1:
        raise AlexNetError(f"top is {top!r}, but should be a whole number, 1 or more")


def _default_out(recipe: Recipe) -> Path:
    """Return `runs/<data>-<recipe>-<date>-<time>`, with a number appended if that exists."""
    data = recipe.data.dataset
    path = local_path(data)
    name = path.name if path.is_dir() else Path(data).stem
    run = Path("runs") / f"{name or 'data'}-{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (run.name, *(f"{run.name}-{number}" for number in range(2, 100)))
    return next((run.with_name(name) for name in names if not (run.with_name(name)).exists()), run)


def _check_views(views: int | None) -> None:
    if views not in (None, *VIEWS):
        raise AlexNetError(f"views is {views}, but should be 1, 2 or 10")


def _set_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None and 0 leave it as it is."""
    if threads:
        torch.set_num_threads(threads)


def _load_recipe(
    data: str | Path | None, recipe: str | Path, weights: str | Path | None, settings: Mapping[str, Any] | None
) -> Recipe:
    """Load a recipe and change it: first the dataset, then what `weights` require, then `settings`."""
    loaded = load_recipe(str(recipe))
    required = {} if weights is None else settings_from_weights(str(weights), images=loaded.model.fit_head)
    changes = {**({} if data is None else {"data.dataset": str(data)}), **required, **(settings or {})}
    return loaded.with_settings(changes)


def _open_finished(path: Path, device: str | None, group: ProcessGroup) -> Run:
    """Open a finished run; on machines that do not have its folder, exit."""
    group.broadcast_number(1)  # wait until the main process has written all of it
    if not path.exists():
        raise SystemExit(0)
    return Run(path, device)
