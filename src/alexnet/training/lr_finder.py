"""The learning-rate finder: steps at rates that climb, and the loss they lead to (Smith 2017). Nothing of them stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.data.sources import open_table
from alexnet.errors import AlexNetError
from alexnet.files import MADE_BY, unwritable, write_output
from alexnet.network.device import choose_device, keep_freed_memory
from alexnet.plotting import BLUE, GREY, ORANGE
from alexnet.progress import track
from alexnet.recipe import Recipe
from alexnet.training.checkpoint import TrainingState
from alexnet.training.schedule import input_size_at
from alexnet.training.step import Step
from alexnet.training.train import prepare

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e2  # times the recipe's rates
SMOOTH = 3.0  # steps, the deviation of the bell that losses are averaged under
BLOWN = 4.0  # times the least loss so far: it has blown up
MARGIN = 4.0  # below the rate from which on the loss rises


class LRTrial:
    """The first steps of a training, at rates to choose; of the network nothing is kept.

    Attributes:
        recipe: as resolved for its dataset.
        images: by split, how many there are.
        pixels: a side of the network's input; `schedule.progressive_resize` may begin with smaller ones.
    """

    def __init__(self, recipe: Recipe, device: str | None = None, progress: float = 0.0) -> None:
        """Make ready to train as `recipe` says once its training has made that `progress`, 0 to 1.

        Raises:
            AlexNetError: whatever keeps it from training, in one line.
        """
        keep_freed_memory()
        table = open_table(recipe.data.dataset, recipe.data.root)
        self.recipe, dataset, how, self._network = prepare(recipe, table, choose_device(device))
        self.images = dataset.table.counts()
        self.pixels = input_size_at(self.recipe, progress, self._network.smallest)
        self._step, self._progress = Step(self.recipe, how, dataset.images("train"), self._network), progress

    @property
    def batch(self) -> int:
        """Images of a step, at most."""
        assert isinstance(self.recipe.train.batch_size, int)  # resolved
        return self.recipe.train.batch_size

    def losses(self, scales: Iterable[float]) -> Iterator[float]:
        """Take a step at the recipe's rates times each of `scales` and yield the loss before it, until that is not finite."""
        state, lr = TrainingState(), self.recipe.optimizer.lr
        scales = iter(scales)
        for state.epoch in count(1):
            augment = self._step.augmentation(state.epoch)
            state.batch = 0
            for batch in self._step.batches(state):
                if (scale := next(scales, None)) is None:
                    return
                self._step.set_lr(lr * scale, state.epoch)
                loss, _ = self._step.forward_backward(batch, augment, state, self._progress)
                if not np.isfinite(loss):
                    return
                self._step.optimizer.step()
                state.batch += 1
                yield loss


@dataclass(frozen=True, eq=False)
class LRCurve:
    """The losses of steps at rates that climb, and what follows from them.

    Attributes:
        start: the recipe, as resolved for its dataset.
        scales: what its rates were multiplied by at each of N steps, N float64.
        losses: the loss before each step in nats, N float64.
    """

    start: Recipe
    scales: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def rates(self) -> NDArray[np.float64]:
        """`optimizer.lr` of each step, N float64."""
        return self.scales * self.start.optimizer.lr

    @property
    def smooth(self) -> NDArray[np.float64]:
        """The losses, each averaged with those around it, N float64."""
        from scipy.ndimage import gaussian_filter1d

        result: NDArray[np.float64] = gaussian_filter1d(self.losses, SMOOTH, mode="nearest")
        return result

    @property
    def least(self) -> int:
        """The step with the least smooth loss: at higher rates it rises."""
        return int(self.smooth.argmin())

    @property
    def suggestion(self) -> int:
        """The step at whose rate the smooth loss falls most steeply, but well below the rate where it begins to rise.

        Raises:
            AlexNetError: at no rate does it fall.
        """
        below = self.scales <= self.scales[self.least] / MARGIN
        if not below.any():
            raise AlexNetError(
                f"the loss falls at no rate from {self.rates[0]:.2g} to {self.rates[-1]:.2g}: "
                "start from another one (--set optimizer.lr=…)"
            )
        return int(np.gradient(self.smooth)[below].argmin())

    @property
    def settings(self) -> dict[str, float]:
        """The recipe's keys to train with, each with its rate."""
        return self.start.scaled_rates(float(f"{self.scales[self.suggestion]:.2g}"))

    def to_json(self) -> dict[str, Any]:
        """Return `{"settings", "rises_from", "steps": [{"lr", "loss", "smooth"}]}`; rates are `optimizer.lr`."""
        columns = (self.rates, self.losses, self.smooth)
        steps = [{"lr": r, "loss": loss, "smooth": s} for r, loss, s in zip(*(c.tolist() for c in columns), strict=True)]
        return {"settings": self.settings, "rises_from": float(self.rates[self.least]), "steps": steps}


def find_lr(recipe: Recipe, device: str | None = None) -> LRCurve:
    """Train for a hundred steps, each at a higher rate than the one before, until the loss blows up; return the curve.

    All rates of the recipe climb together, from a thousandth of what they are to a hundred times that.

    Raises:
        AlexNetError: whatever keeps it from training, in one line.
    """
    trial = LRTrial(recipe, device)
    scales = np.geomspace(LOWEST, HIGHEST, STEPS)
    losses = list(_until_blown(track(trial.losses(scales), "Finding the rate", STEPS)))
    if len(losses) < 2:
        raise AlexNetError(f"the loss is not finite at a rate of {recipe.optimizer.lr * LOWEST:.2g}: look at the images")
    return LRCurve(trial.recipe, scales[: len(losses)], np.array(losses))


def _until_blown(losses: Iterable[float]) -> Iterator[float]:
    """Yield losses up to the first of which the running mean is far above the least one."""
    mean = least = None
    for loss in losses:
        yield loss
        mean = loss if mean is None else 0.7 * mean + 0.3 * loss
        least = mean if least is None else min(least, mean)
        if mean > BLOWN * least:
            return


def draw(curve: LRCurve, path: Path, overwrite: bool = False) -> None:
    """Draw the curve into a PNG file; its folder is made.

    Raises:
        RunError: it cannot be written, or is a user's own file and is not to `overwrite`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    from matplotlib.figure import Figure  # half a second that other commands need not wait

    from alexnet import fonts

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(curve.rates, curve.losses, color=GREY, alpha=0.5, linewidth=1, label="loss of each step")
    axes.semilogx(curve.rates, curve.smooth, color=BLUE, linewidth=2.2, label="smoothed")
    chosen, least = curve.suggestion, curve.least
    words = ", ".join(f"{key.partition('.')[2]} {value:g}" for key, value in curve.settings.items())
    axes.axvline(curve.rates[chosen], color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.plot(curve.rates[chosen], curve.smooth[chosen], "o", color=ORANGE, markersize=8, label=f"suggested: {words}")
    axes.plot(curve.rates[least], curve.smooth[least], "s", color=BLUE, markersize=6, label="from here on it rises")
    top = max(curve.smooth[: least + 1].max(), curve.smooth[0]) * 1.3
    axes.set_ylim(max(0.0, float(curve.losses.min()) - 0.03 * top), top)
    axes.set_xlabel("optimizer.lr (all other rates climb with it)")
    axes.set_ylabel("training loss")
    recipe = curve.start
    axes.set_title(f"{Path(recipe.data.dataset).stem}, recipe {recipe.name}", loc="left", parse_math=False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    mark = {"Software": MADE_BY}
    write_output(path, lambda part: fonts.save(figure, part, "png", dpi=160, metadata=mark), overwrite)
