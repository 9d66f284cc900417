"""Layers that PyTorch lacks or defines differently; response normalisation is in lrn.py.

`variants.py` has a record of each kind of layer in an architecture, of which `alexnet.py` builds these and PyTorch's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose moving variance averages the biased variance, as in Keras 3; PyTorch's is unbiased.

    In data-parallel training, `all_reduce` sums a tensor over all processes, so statistics are those of the whole batch.
    """

    all_reduce: Callable[[Tensor], Tensor] | None = None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, images: Tensor) -> Tensor:
        """N C H W -> N C H W."""
        if not self.training:
            return super().forward(images)
        if self.all_reduce is not None:
            return self._over_processes(images, self.all_reduce)
        unbiased = self.running_var.clone()
        normalised = nn.functional.batch_norm(
            images, self.running_mean, unbiased, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
        )
        count = images.numel() // images.shape[1]
        with torch.no_grad():
            kept = self.running_var * (1 - self.momentum)
            self.running_var.copy_(kept + (unbiased - kept) * ((count - 1) / count))
            self.num_batches_tracked.add_(1)
        return normalised

    def _over_processes(self, images: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
        sum_over_processes: Any = _SumOverProcesses.apply
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        one = wide.new_full((1,), images.numel() // images.shape[1])
        sums: Tensor = sum_over_processes(torch.cat([wide.sum((0, 2, 3)), one]), all_reduce)
        mean = (sums[:-1] / sums[-1])[:, None, None]
        squares: Tensor = sum_over_processes((wide - mean).square().sum((0, 2, 3)), all_reduce)
        variance = (squares / sums[-1].detach())[:, None, None]
        self.track(mean.flatten(), variance.flatten())
        normalised = (wide - mean) * (variance + self.eps).rsqrt()
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the moving statistics with the mean and the biased variance of a batch."""
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; the backward pass sums the gradients over processes too."""

    @staticmethod
    def forward(context: Any, x: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
        context.all_reduce = all_reduce
        return all_reduce(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.all_reduce(gradient), None


class Dropout(nn.Dropout):
    """PyTorch's dropout, with the same mask on one process and on several.

    If a process has a part of the batch or of the units, `layout` returns, for the shape of that part, the full shape and the
    slices of the part in it. The mask is drawn for the full shape and then sliced.
    """

    layout: Callable[[Sequence[int]], tuple[Sequence[int], tuple[slice, ...]]] | None = None

    def mask(self, units: Tensor) -> Tensor:
        """Return the mask: 1 for units that are kept, 0 for the others."""
        shape, slices = (units.shape, ()) if self.layout is None else self.layout(units.shape)
        mask = torch.empty(shape, dtype=units.dtype, device=units.device).bernoulli_(1 - self.p)
        return mask[slices]

    def forward(self, units: Tensor) -> Tensor:
        """N x units -> N x units."""
        if not self.training or not self.p:
            return units
        return units * self.mask(units).div_(1 - self.p)


class Dropout2012(Dropout):
    """Dropout as in the paper (section 4.2): training drops units, evaluation multiplies all outputs by 1 - `p`."""

    def forward(self, units: Tensor) -> Tensor:
        """N x units -> N x units."""
        return units * (self.mask(units) if self.training else 1 - self.p)


class FlattenMaps(nn.Module):
    """Flatten maps in the variant's order of axes, after adaptive average pooling to the variant's grid size.

    The pooling is written as two small matrix products, so it works for any ratio, up or down, on every device. It is the
    identity for maps of the grid size.
    """

    def __init__(self, grid: int, order: str) -> None:
        super().__init__()
        self.grid, self.order = grid, order

    def forward(self, maps: Tensor) -> Tensor:
        """N C H W -> N (grid * grid * C)."""
        height, width = maps.shape[2:]
        if (height, width) != (self.grid, self.grid):
            rows, columns = self._bins(height, maps), self._bins(width, maps)
            maps = torch.einsum("gh,nchw,kw->ncgk", rows, maps, columns)
        return self.vector(maps)

    def vector(self, maps: Tensor) -> Tensor:
        """N C H W -> N (H * W * C), without pooling."""
        return (maps.permute(0, 2, 3, 1) if self.order == "HWC" else maps).flatten(1)

    def fold(self, weight: Tensor, height: int, width: int) -> Tensor:
        """Fold the pooling into a dense `weight`: O (grid * grid * C) -> O (H * W * C), to apply to maps of H x W."""
        bins = torch.kron(self._bins(height, weight), self._bins(width, weight)).T  # H * W x grid * grid
        cells = bins.shape[1]
        if self.order == "HWC":
            return (bins @ weight.reshape(len(weight), cells, -1)).flatten(1)
        return (weight.reshape(len(weight), -1, cells) @ bins.T).flatten(1)

    def _bins(self, size: int, like: Tensor) -> Tensor:
        """Return the grid x size averaging matrix: bin i covers floor(i * size / grid) to ceil((i + 1) * size / grid)."""
        bins = torch.zeros(self.grid, size)
        for i in range(self.grid):
            start, end = i * size // self.grid, -(-(i + 1) * size // self.grid)
            bins[i, start:end] = 1 / (end - start)
        return bins.to(like)

    def extra_repr(self) -> str:
        """Return the constants for `print(network)`."""
        return f"grid={self.grid}, order={self.order}"
