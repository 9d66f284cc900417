"""Local response normalisation, across channels (paper, section 3.3) and within maps (2012 source)."""

import torch
from torch import Tensor, nn

from alexnet.network.fast import gpu
from alexnet.network.fast.kernels import operations


class LocalResponseNorm(nn.Module):
    """Divide each value by (k + alpha * sum of squares over `size` neighbouring channels) ** beta.

    The window is centred and clipped at the first and last channel of the tower. `alpha` multiplies the sum, so
    `torch.nn.LocalResponseNorm(alpha=a)` equals this with `alpha=a / size`. Computes in float32 for any input dtype.
    """

    def __init__(self, size: int, alpha: float, beta: float, k: float, towers: int = 1) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k, self.towers = size, alpha, beta, k, towers

    def forward(self, images: Tensor, *, relu: bool = False) -> Tensor:
        """Normalise N C H W, with `relu` after a ReLU; C is a multiple of the towers. Keeps shape and dtype."""
        if self.k > 0:  # with k = 0 a kernel would compute 0 / 0 between the towers
            if operations.usable(images):
                return operations.response_norm(images, self.size, self.alpha, self.beta, self.k, self.towers, relu=relu)
            if gpu.usable(images, self.size):
                return gpu.response_norm(images, self.size, self.alpha, self.beta, self.k, self.towers, relu=relu)
        images = images.relu() if relu else images
        wide = images if images.dtype == torch.float64 else images.float()
        count, channels, height, width = wide.shape
        before, per_tower = self.size // 2, channels // self.towers
        squares = wide.square().view(count, self.towers, per_tower, height, width)  # N C H W -> N T C/T H W
        padded = nn.functional.pad(squares, (0, 0, 0, 0, before, self.size - 1 - before))
        total = padded[:, :, :per_tower].clone()
        for offset in range(1, self.size):
            total += padded[:, :, offset : offset + per_tower]
        scale = total.flatten(1, 2).mul(self.alpha).add(self.k).pow(-self.beta)
        return (wide * scale).to(images.dtype)

    def extra_repr(self) -> str:
        """Return the constants for `print(network)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, towers={self.towers}"


class LocalMapNorm(nn.Module):
    """Divide each value by (k + alpha * sum of squares over `size` x `size` pixels of its map) ** beta.

    The window is centred and clipped at the borders (2012 source, `type=rnorm`). Computes in float32 for any input dtype.
    """

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, images: Tensor) -> Tensor:
        """Normalise N C H W. Keeps shape and dtype."""
        wide = images if images.dtype == torch.float64 else images.float()
        mean = nn.functional.avg_pool2d(wide.square(), self.size, stride=1, padding=self.size // 2)  # counts the zeros
        scale = mean.mul(self.alpha * self.size**2).add(self.k).pow(-self.beta)
        return (wide * scale).to(images.dtype)

    def extra_repr(self) -> str:
        """Return the constants for `print(network)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
