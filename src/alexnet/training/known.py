"""At the end of a training: what later images are compared with to tell whether they show any of the classes."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alexnet.data.batches import ordered_batches
from alexnet.data.dataset import open_dataset
from alexnet.data.table import Table, sample_by_class
from alexnet.errors import counted
from alexnet.inference.evaluate import Evaluation, evaluate_split
from alexnet.inference.forward import layer_outputs
from alexnet.network.known import FITTED, Known, fit_known
from alexnet.training.trainer import Trainer

BATCH = 128  # images at a time


def prepare(trainer: Trainer) -> Known:
    """Return the statistics of a sample of the training images' codes, to be calibrated on validation images."""
    targets, head = trainer.dataset.images("train").targets, trainer.network.head
    state: dict[str, Tensor] = {}
    if trainer.group.is_main:
        rows = sample_by_class(targets, FITTED)
        state = fit_known(_codes(trainer, rows), targets[rows], head.out_features).state_dict()
    state = trainer.group.broadcast_tensors(state)
    return Known.from_state(state, head.in_features, head.out_features).to(head.weight.device)


def _codes(trainer: Trainer, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the codes of training images, N units."""
    network, recipe, preprocessing = trainer.network, trainer.recipe, trainer.step.preprocessing
    if "train" in trainer.frozen:
        return trainer.frozen["train"].codes(network, recipe.train.precision, rows)
    batches = ordered_batches(trainer.dataset.images("train").subset(rows), BATCH, recipe.data.workers)
    layer, precision = network.layer_names[-2], recipe.train.precision
    return np.concatenate(
        [layer_outputs(network, batch.images, preprocessing, layer, precision).float().numpy() for batch in batches]
    )


def calibrate(trainer: Trainer, known: Known, validation: Evaluation) -> None:
    """Set the threshold by the validation images, and by the dataset's counterexamples if it has any."""
    table = trainer.dataset.table.unknown
    scores = None if table is None else _unknown_scores(trainer, known, table)
    known.calibrate(validation.scores, scores)
    if scores is not None:
        refused = float((known.margins_of(scores) < 0).mean())
        passed = float((known.margins_of(validation.scores) >= 0).mean())
        shares = f"{refused:.1%} are not known, and {passed:.1%} of the validation images are"
        trainer.monitor.say(f"threshold chosen with {counted(len(scores), 'counterexample')}: {shares}")


def _unknown_scores(trainer: Trainer, known: Known, table: Table) -> NDArray[np.float32]:
    recipe, preprocessing = trainer.recipe, trainer.step.preprocessing
    dataset = open_dataset(table, preprocessing, recipe.data.workers, None)
    settings, group = (recipe.train.precision, recipe.data.workers), trainer.group
    return evaluate_split(
        *(trainer.network, dataset, "all", preprocessing, *settings), known=known, shard=group.shard_slice, total=group.total
    ).scores
