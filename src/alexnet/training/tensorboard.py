"""TensorBoard's files: curves, the graph of layers, sample images and the confusion matrix."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.data.batches import Batch
from alexnet.files import writing
from alexnet.inference.evaluate import Evaluation
from alexnet.network.alexnet import AlexNet
from alexnet.network.summary import KINDS, sizes
from alexnet.recipe import Augment, Preprocessing

# Columns of `metrics.csv`: folder and tag, the same as those of Keras' callback. TensorBoard draws the same tag of several
# folders in one chart.
CURVES = {
    "train_loss": ("train", "epoch_loss"),
    "val_loss": ("validation", "epoch_loss"),
    "train_top1": ("train", "epoch_accuracy"),
    "val_top1": ("validation", "epoch_accuracy"),
    "lr": ("train", "epoch_learning_rate"),
}
SAMPLES = 16  # images; their tags sort after those of the curves, as TensorBoard opens the first charts only


class TensorBoard:
    """Writes a training's files for TensorBoard into `train`, `validation` and `test`, folders in `folder`."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        """`first_epoch` is 1, or the epoch in which training was resumed: what an earlier session wrote of it is hidden.

        Raises:
            ImportError: TensorBoard is not installed.
            UnicodeEncodeError: the folder's name is not UTF-8, which TensorBoard requires.
        """
        from torch.utils.tensorboard import SummaryWriter  # imported here, as it may be missing

        self.folder, self._first_epoch, self._new_writer = folder, first_epoch, SummaryWriter
        self._writers: dict[str, Any] = {}
        self._writer("train")

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            with suppress(OSError):  # a full disk has been reported already
                writer.close()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Add an epoch, a row of `metrics.csv`, to the curves."""
        with writing(self.folder):
            for column, (split, tag) in CURVES.items():
                self._writer(split).add_scalar(tag, row[column], row["epoch"])
            for writer in self._writers.values():
                writer.flush()

    def graph(self, network: AlexNet, side: int) -> None:
        """Write the graph of a network on the meta device, for images of `side` pixels: a node for each layer.

        `SummaryWriter.add_graph` traces a forward pass instead: that takes seconds, changes the moving statistics of a network
        in training mode, and shows fused operations instead of the layers.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        images = torch.empty(1, 3, side, side, device="meta")
        _, outputs = network.eval().activations(images, network.layer_names)
        graph = GraphDef()
        graph.versions.producer = 22
        _add_node(graph, "images", "input", images)
        for name, layer in network.layers.items():
            kind = next(kind for type_, kind in KINDS.items() if isinstance(layer, type_))
            _add_node(graph, name, kind, outputs[name], graph.node[-1].name)
        with writing(self.folder):
            self._writer("train").file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def batch(self, batch: Batch, preprocessing: Preprocessing, augment: Augment) -> None:
        """Write the first images of a training batch, augmented, as the network gets them."""
        from alexnet.data.augment import training_input
        from alexnet.report import samples

        assert batch.draws is not None
        shown = slice(SAMPLES + augment.mixes)
        images = training_input(batch.images[shown].cpu(), batch.draws[shown], preprocessing, augment)
        levels = np.stack([samples.to_levels(image, preprocessing) for image in images])
        with writing(self.folder):
            self._writer("train").add_images("images/batch", levels, 0, dataformats="NHWC")

    def confusion(self, evaluation: Evaluation, split: str, epoch: int) -> None:
        """Write the confusion matrix of `validation` or `test`."""
        from alexnet.fonts import set_fonts
        from alexnet.report.charts import confusion_figure

        figure = confusion_figure(evaluation.confusion, evaluation.labels)
        figure.axes[0].set(xlabel="predicted", ylabel="true")
        set_fonts(figure)
        with writing(self.folder):
            self._writer(split).add_figure("images/confusion_matrix", figure, epoch)

    def _writer(self, split: str) -> Any:
        if split not in self._writers:
            with writing(self.folder):
                self._writers[split] = self._new_writer(str(self.folder / split), purge_step=self._first_epoch)
        return self._writers[split]


def _add_node(graph: Any, name: str, kind: str, output: torch.Tensor, *inputs: str) -> None:
    """Add a layer to a `GraphDef`, with the shape of its output.

    The operation names the shape, too: TensorBoard draws five of the same operation, such as `ReLU`, as one node.
    """
    node = graph.node.add(name=name, op=f"{kind} {sizes(tuple(output.shape[1:]))}", input=inputs)
    shape = node.attr["_output_shapes"].list.shape.add()
    for size in output.shape:
        shape.dim.add(size=size)
