"""Make up an image that excites a unit: activation maximisation (Erhan and others 2009).

The image is a sum of grids from coarse to fine, which gradient ascent changes while the image is shifted at random and fades
towards grey: all keep it from patterns of single pixels, which excite a unit but show nothing (Olah and others 2017).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alexnet.data.preprocessing import as_seen, to_input
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast
from alexnet.progress import track
from alexnet.recipe import Preprocessing
from alexnet.units.units import Box, chosen_units, field_box

STEPS = 64
RATE, DECAY = 0.1, 0.03  # of the coarsest grid, relative to the size of its gradient; of each grid, towards grey
COARSEST = 4  # pixels per side of the first grid; each further one has twice as many
# Red, green and blue of three independent colours of photos, mainly brightness: of Lucid (Olah and others 2017).
COLOURS = ((0.56, 0.19, 0.04), (0.58, 0.0, -0.11), (0.58, -0.19, 0.06))
SHIFT = 1 / 16  # of the side of what the unit sees, at most
LEAK = 0.1  # gradient of a ReLU that is off, as a unit that starts at zero could not climb otherwise
NOISES = 16  # images of noise, for comparison
BATCH = 24


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images made up for units of a layer.

    Attributes:
        layer: name of the layer.
        units: numbers of its units, from 0: channels of maps, or places in a vector.
        images: U S S 3 uint8; of maps, they are for the position in the middle.
        box: the part of the images that the unit sees there.
        activations: reached, U float32.
        noise: largest activation for images of noise, U float32.
    """

    layer: str
    units: tuple[int, ...]
    images: NDArray[np.uint8]
    box: Box
    activations: NDArray[np.float32]
    noise: NDArray[np.float32]

    @property
    def dead(self) -> list[bool]:
        """Whether ascent did not bring the unit above zero, or above what noise does."""
        return [bool(value <= max(noise, 0)) for value, noise in zip(self.activations, self.noise, strict=True)]

    def to_json(self, figure: str) -> dict[str, Any]:
        """Return the result of `Run.units`."""
        rows = zip(self.units, self.activations.tolist(), self.noise.tolist(), self.dead, strict=True)
        units = [{"unit": unit, "activation": value, "noise": noise, "dead": dead} for unit, value, noise, dead in rows]
        return {"layer": self.layer, "units": units, "figure": figure, "skipped": []}


def ascend(network: AlexNet, preprocessing: Preprocessing, layer: str, units: Sequence[int] | None = None) -> Drawn:
    """Make up an image for each unit, always the same; `layer` and `units` are as for `excite`."""
    layer = network.layer_name(layer)
    device = next(network.parameters()).device
    noise = [_noise(preprocessing.side, seed) for seed in range(NOISES)]
    with autocast(device, "float32"), _leaking(network):
        with torch.no_grad():
            outputs = _middle(network, preprocessing, layer, torch.cat(noise).to(device))  # N C
        chosen = chosen_units(layer, units, outputs.shape[1])
        parts = torch.split(torch.from_numpy(chosen).to(device), BATCH)
        steps = iter(track(range(len(parts) * STEPS), "Drawing", len(parts) * STEPS))
        box = _box(network, preprocessing, layer)
        shift = round(min(preprocessing.side, box[2]) * SHIFT)
        results = [_ascend(network, preprocessing, layer, part, shift, steps) for part in parts]
        for _ in steps:  # ends the bar
            pass
    images, values = (torch.cat(each).cpu() for each in zip(*results, strict=True))
    seen = np.stack([as_seen(image, preprocessing) for image in images.numpy()])
    most = outputs.amax(0).cpu().numpy()[chosen]
    return Drawn(layer, tuple(chosen.tolist()), seen, box, values.numpy(), most)


def _ascend(
    network: AlexNet, preprocessing: Preprocessing, layer: str, units: Tensor, shift: int, steps: Iterator[int]
) -> tuple[Tensor, Tensor]:
    """Return images U S S 3 for units, grey levels, and the activations reached."""
    side, rows = preprocessing.side, torch.arange(len(units))
    sizes = [side]
    while sizes[-1] >= 2 * COARSEST:
        sizes.append(-(-sizes[-1] // 2))
    grids = [torch.stack([_start(size, int(unit)) for unit in units]).to(units.device).requires_grad_() for size in sizes]
    shifts = torch.randint(shift + 1, (STEPS, 2), generator=torch.Generator().manual_seed(0)) - shift // 2
    for step, _ in zip(range(STEPS), steps, strict=False):
        x = _image(grids, side).roll(tuple(shifts[step].tolist()), (1, 2))
        reached = _middle(network, preprocessing, layer, x)[rows, units].sum()
        gradients = torch.autograd.grad(reached, grids)
        with torch.no_grad():
            for grid, gradient in zip(grids, gradients, strict=True):
                size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
                rate = RATE * (COARSEST / grid.shape[2]) ** 0.5  # finer grids move less
                grid.mul_(1 - DECAY).add_(gradient / size, alpha=rate)
    with torch.no_grad():
        images = _image(grids, side).round()
        return images, _middle(network, preprocessing, layer, images)[rows, units].float()


def _start(size: int, seed: int) -> Tensor:
    return 0.01 * torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))


def _image(grids: Sequence[Tensor], side: int) -> Tensor:
    """Add up grids U 3 s s, from fine to coarse, and return images U S S 3 with grey levels from 0 to 255."""
    total = sum((interpolate(grid, size=(side, side), mode="bilinear") for grid in grids[1:]), grids[0])
    mixed = torch.einsum("rc,nchw->nhwr", torch.tensor(COLOURS, device=total.device), total)
    return 255 * mixed.sigmoid()


def _noise(side: int, seed: int) -> Tensor:
    return torch.randint(256, (1, side, side, 3), generator=torch.Generator().manual_seed(seed)).float()


def _middle(network: AlexNet, preprocessing: Preprocessing, layer: str, images: Tensor) -> Tensor:
    """Return the activations of a layer for images N S S 3, of maps at the position in the middle: N C."""
    outputs = network.run_layers(to_input(images, preprocessing), None, layer, preprocessing.scale_factor)
    return outputs[:, :, outputs.shape[2] // 2, outputs.shape[3] // 2] if outputs.ndim == 4 else outputs


def _box(network: AlexNet, preprocessing: Preprocessing, layer: str) -> Box:
    with torch.no_grad():
        x = to_input(_noise(preprocessing.side, 0).to(next(network.parameters()).device), preprocessing)
        shape = network.run_layers(x, None, layer, preprocessing.scale_factor).shape
    row, column = (shape[2] // 2, shape[3] // 2) if len(shape) == 4 else (0, 0)
    return field_box(network, preprocessing, layer)(row, column)


@contextmanager
def _leaking(network: AlexNet) -> Iterator[None]:
    """Let gradients through ReLUs that are off; their outputs stay as they are."""

    def leak(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        below = LEAK * inputs[0].clamp(max=0)
        return output + (below - below.detach())

    relus = [layer for layer in network.layers.values() if isinstance(layer, nn.ReLU)]
    handles = [layer.register_forward_hook(leak) for layer in relus]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
