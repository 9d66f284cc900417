"""Short binary codes of images: an auto-encoder of their codes with a bottleneck of bits.

The 2012 paper proposes it (section 6.1) and cites Krizhevsky and Hinton's auto-encoders of 2011. Those are deep and start from
pixels; starting from the hidden layer, one layer for encoding and one for decoding suffice: 128 bits find the same images as
the codes (docs/benchmarks.md). Noise before the bottleneck's tanh drives the hidden values apart, so that little is lost when
only their signs are kept; batch normalisation keeps each bit balanced.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import batch_norm

from alexnet.progress import track

MIN_CODES, MAX_CODES = 256, 20_000  # to learn from
STEPS = 800
BATCH_SIZE = 256
LR = 1e-3
NOISE = 0.5  # standard deviation, of hidden values of standard deviation 1


class Coder(NamedTuple):
    """The encoder: `weight` bits x D and a `threshold` per bit, both float32."""

    weight: Tensor
    threshold: Tensor

    def encode(self, codes: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return short codes, N x bits / 8 bytes, of N x D codes."""
        hidden = _unit(codes) @ self.weight.T  # N x bits
        return np.packbits((hidden > self.threshold).numpy(), axis=1)


def learn(codes: NDArray[np.float32], bits: int) -> Coder:
    """Train the auto-encoder on N x D codes, showing progress, and return its encoder."""
    generator = torch.Generator().manual_seed(0)
    x = _unit(codes)
    mean, std = x.mean(0), x.std()
    encoder, decoder = _weights(bits, x.shape[1], generator), _weights(x.shape[1], bits, generator)
    optimizer = torch.optim.Adam([encoder, decoder], LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in track(range(STEPS), "Learning short codes", STEPS):
        batch = (x[torch.randint(len(x), (BATCH_SIZE,), generator=generator)] - mean) / std
        hidden = batch_norm(batch @ encoder.T, None, None, training=True)
        noisy = torch.tanh(hidden + NOISE * torch.randn(hidden.shape, generator=generator))
        loss = (noisy @ decoder.T - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
    weight = encoder.detach()
    hidden, half = (x @ weight.T).sort(0).values, len(x) // 2
    return Coder(weight, (hidden[half - 1] + hidden[half]) / 2)  # between two values, so that rounding flips no bit


def _weights(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    weight: Tensor = torch.randn(rows, columns, generator=generator) * columns**-0.5
    return weight.requires_grad_()


def _unit(codes: NDArray[np.float32]) -> Tensor:
    """Scale codes to length 1, as only their direction carries the content."""
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return torch.from_numpy(codes / np.maximum(lengths, np.float32(1e-12)))
