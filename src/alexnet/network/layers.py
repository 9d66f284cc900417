"""The layers that PyTorch has not, or has otherwise; response normalisation has a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose moving variance takes the batch's biased variance, as Keras 3 does (PyTorch's: unbiased).

    Where other processes have the rest of the batch, `total` returns a tensor summed over all of them, and the statistics are
    the whole batch's.
    """

    total: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """N C H W -> N C H W."""
        if not self.training:
            return super().forward(images)
        if self.total is not None:
            return self._over_processes(images, self.total)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        moved = self.running_var.clone()
        normalised = nn.functional.batch_norm(
            images, self.running_mean, moved, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
        )
        count = images.numel() // images.shape[1]
        with torch.no_grad():
            kept = self.running_var * (1 - self.momentum)
            self.running_var.copy_(kept + (moved - kept) * ((count - 1) / count))
            self.num_batches_tracked.add_(1)
        return normalised

    def _over_processes(self, images: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        one = wide.new_full((1,), images.numel() // images.shape[1])
        sums = _summed(torch.cat([wide.sum((0, 2, 3)), one]), total)
        mean = (sums[:-1] / sums[-1])[:, None, None]
        variance = (_summed((wide - mean).square().sum((0, 2, 3)), total) / sums[-1].detach())[:, None, None]
        self.track(mean.flatten(), variance.flatten())
        normalised = (wide - mean) * (variance + self.eps).rsqrt()
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Let the moving statistics take those of a batch, whose variance is the biased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def _summed(x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    result: Tensor = _Summed.apply(x, total)  # type: ignore[no-untyped-call]
    return result


class _Summed(torch.autograd.Function):
    """A sum over processes: what any of them does with it comes back to all."""

    @staticmethod
    def forward(context: Any, x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        context.total = total
        return total(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.total(gradient), None


class Dropout(nn.Dropout):
    """PyTorch's dropout, that one process can also do a part of.

    Where a process has a part of the batch, or of the units, `whole` returns for the part's shape that of all together, and
    where in it the part lies. The draws are then those of one process alone, so the result is too.
    """

    whole: Callable[[Sequence[int]], tuple[Sequence[int], tuple[slice, ...]]] | None = None

    def kept(self, units: Tensor) -> Tensor:
        """Return 1 for each of the units that stays, 0 for the others."""
        shape, where = (units.shape, ()) if self.whole is None else self.whole(units.shape)
        drawn = torch.empty(shape, dtype=units.dtype, device=units.device).bernoulli_(1 - self.p)
        return drawn[where]

    def forward(self, units: Tensor) -> Tensor:
        """N x units -> N x units."""
        if not self.training or not self.p:
            return units
        return units * self.kept(units).div_(1 - self.p)


class Dropout2012(Dropout):
    """Dropout as the paper has it (section 4.2): units are left out in training, later all outputs are times 1 - `p`."""

    def forward(self, units: Tensor) -> Tensor:
        """N x units -> N x units."""
        return units * (self.kept(units) if self.training else 1 - self.p)


class FlattenMaps(nn.Module):
    """Maps to vectors in the row's order of axes; maps of another size than the row's own are first pooled to it.

    The pooling is adaptive average pooling, written as two small matrix products: it is the identity at the row's own size,
    it enlarges as well as it shrinks, and it works for any ratio on every device.
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
        """N C H W -> N (H * W * C), as they are."""
        return (maps.permute(0, 2, 3, 1) if self.order == "HWC" else maps).flatten(1)

    def fold(self, weight: Tensor, height: int, width: int) -> Tensor:
        """Return the weights O (H * W * C) that read maps of H x W as `weight`, O (grid * grid * C), reads them once pooled."""
        bins = torch.kron(self._bins(height, weight), self._bins(width, weight)).T  # H * W x grid * grid
        cells = bins.shape[1]
        if self.order == "HWC":
            return (bins @ weight.reshape(len(weight), cells, -1)).flatten(1)
        return (weight.reshape(len(weight), -1, cells) @ bins.T).flatten(1)

    def _bins(self, size: int, like: Tensor) -> Tensor:
        """Return the grid x size matrix of averages: bin i covers floor(i * size / grid) to ceil((i + 1) * size / grid)."""
        bins = torch.zeros(self.grid, size)
        for i in range(self.grid):
            start, end = i * size // self.grid, -(-(i + 1) * size // self.grid)
            bins[i, start:end] = 1 / (end - start)
        return bins.to(like)

    def extra_repr(self) -> str:
        """Show the constants in `print(network)`."""
        return f"grid={self.grid}, order={self.order}"
