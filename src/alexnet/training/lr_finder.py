"""The learning-rate finder: a range test of steps at increasing rates (Smith 2017). The trained weights are discarded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError
from alexnet.files import write_output, writing
from alexnet.network.device import choose_device, keep_freed_memory
from alexnet.plotting import BLUE, GREY, ORANGE
from alexnet.progress import track
from alexnet.recipe import Recipe
from alexnet.training.checkpoint import TrainingState
from alexnet.training.pace import resolve_by_pace
from alexnet.training.step import Step
from alexnet.training.train import load_data_and_network

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e2  # times the recipe's rates
SMOOTHING = 3.0  # steps, the standard deviation of the Gaussian filter
DIVERGED = 4.0  # times the lowest running mean of the loss: the test ends
MARGIN = 4.0  # the suggestion is lower than the rate with the lowest loss, by this factor or more


class LRTrial:
    """The first steps of a training, at given learning rates."""

    def __init__(self, recipe: Recipe, device: str | None = None, progress: float = 0.0) -> None:
        """Set up a training by `recipe`, in its state when the fraction `progress` of it is done."""
        keep_freed_memory()
        table = open_table(recipe.data.dataset, recipe.data.root, settings=recipe.data)
        chosen_device = choose_device(device)
        recipe = resolve_by_pace(recipe, table, chosen_device)
        self.recipe, dataset, preprocessing, self._network = load_data_and_network(recipe, table, chosen_device)
        self.images = dataset.table.counts()  # by split
        self._step, self._progress = Step(self.recipe, preprocessing, dataset.images("train"), self._network), progress

    @property
    def batch_size(self) -> int:
        """The largest number of images per step."""
        assert isinstance(self.recipe.train.batch_size, int)  # resolved
        return self.recipe.train.batch_size

    def losses(self, scales: Iterable[float]) -> Iterator[float]:
        """Take a step at the recipe's rates times each of `scales`, and yield the loss before it; stop if it is not finite."""
        state, lr = TrainingState(), self.recipe.optimizer.lr
        scales = iter(scales)
        for state.epoch in count(1):
            augment = self._step.augmentation(state.epoch)
            state.batch = 0
            for batch in self._step.batches(state):
                if (scale := next(scales, None)) is None:
                    return
                self._step.set_lr(lr * scale, state.epoch)
                loss = float(self._step.forward_backward(batch, augment, state, self._progress)[0])
                if not np.isfinite(loss):
                    return
                self._step.update()
                state.batch += 1
                yield loss


@dataclass(frozen=True, eq=False)
class LRCurve:
    """The losses of a range test, and the learning rate that they suggest.

    Attributes:
        recipe: the recipe, resolved for its dataset.
        scales: the factor of its learning rates at each of N steps, N float64.
        losses: the loss before each step in nats, N float64.
    """

    recipe: Recipe
    scales: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def rates(self) -> NDArray[np.float64]:
        """`optimizer.lr` of each step, N float64."""
        return self.scales * self.recipe.optimizer.lr

    @property
    def smooth(self) -> NDArray[np.float64]:
        """The losses, smoothed by a Gaussian filter, N float64."""
        from scipy.ndimage import gaussian_filter1d

        return np.asarray(gaussian_filter1d(self.losses, SMOOTHING, mode="nearest"))

    @property
    def lowest(self) -> int:
        """The step with the lowest smoothed loss; at higher rates, the loss rises."""
        return int(self.smooth.argmin())

    @property
    def suggestion(self) -> int:
        """The step where the smoothed loss falls fastest, at a rate well below that of the lowest loss.

        Raises:
            AlexNetError: the loss does not decrease at any rate.
        """
        below = self.scales <= self.scales[self.lowest] / MARGIN
        if not below.any():
            rates = f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}"
            advice = "start from another one (--set optimizer.lr=…)"
            raise AlexNetError(f"the loss does not fall at any rate from {rates}: {advice}")
        return int(np.gradient(self.smooth)[below].argmin())

    @property
    def settings(self) -> dict[str, float]:
        """The suggested learning rates, by recipe key."""
        return self.recipe.scale_lr(float(f"{self.scales[self.suggestion]:.2g}"))

    def to_json(self) -> dict[str, Any]:
        """Return `{"settings", "rises_from", "steps": [{"lr", "loss", "smooth"}]}`; rates are `optimizer.lr`."""
        columns = (self.rates, self.losses, self.smooth)
        steps = [{"lr": r, "loss": loss, "smooth": s} for r, loss, s in zip(*(c.tolist() for c in columns), strict=True)]
        return {"settings": self.settings, "rises_from": float(self.rates[self.lowest]), "steps": steps}


def find_lr(recipe: Recipe, device: str | None = None) -> LRCurve:
    """Train for 100 steps at increasing rates, or until the loss diverges; return the curve.

    All learning rates of the recipe are scaled together, from 1/1000 to 100 times their values.
    """
    trial = LRTrial(recipe, device)
    scales = np.geomspace(LOWEST, HIGHEST, STEPS)
    losses = list(_until_diverged(track(trial.losses(scales), "Finding the learning rate", STEPS)))
    if len(losses) < 2:
        raise AlexNetError(f"the loss is not finite at a rate of {recipe.optimizer.lr * LOWEST:.2g}: check the images")
    return LRCurve(trial.recipe, scales[: len(losses)], np.array(losses))


def _until_diverged(losses: Iterable[float]) -> Iterator[float]:
    """Yield losses until their running mean is far above its minimum."""
    mean = lowest = None
    for loss in losses:
        yield loss
        mean = loss if mean is None else 0.7 * mean + 0.3 * loss
        lowest = mean if lowest is None else min(lowest, mean)
        if mean > DIVERGED * lowest:
            return


def draw(curve: LRCurve, path: Path, overwrite: bool = False) -> None:
    """Plot the curve to a PNG file; its folder is created if needed."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    from matplotlib.figure import Figure  # importing it takes half a second

    from alexnet import fonts

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(curve.rates, curve.losses, color=GREY, alpha=0.5, linewidth=1, label="loss of each step")
    axes.semilogx(curve.rates, curve.smooth, color=BLUE, linewidth=2.2, label="smoothed")
    suggestion, lowest = curve.suggestion, curve.lowest
    settings = ", ".join(f"{key.partition('.')[2]} {value:g}" for key, value in curve.settings.items())
    axes.axvline(curve.rates[suggestion], color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)))
    suggested = f"suggested: {settings}"
    axes.plot(curve.rates[suggestion], curve.smooth[suggestion], "o", color=ORANGE, markersize=8, label=suggested)
    axes.plot(curve.rates[lowest], curve.smooth[lowest], "s", color=BLUE, markersize=6, label="lowest loss")
    top = max(curve.smooth[: lowest + 1].max(), curve.smooth[0]) * 1.3
    axes.set_ylim(max(0.0, float(curve.losses.min()) - 0.03 * top), top)
    axes.set_xlabel("optimizer.lr (all other rates are scaled with it)")
    axes.set_ylabel("training loss")
    axes.set_title(f"{Path(curve.recipe.data.dataset).stem}, recipe {curve.recipe.name}", loc="left", parse_math=False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    write_output(path, partial(fonts.save, figure, dpi=160), overwrite)
