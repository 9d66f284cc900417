"""Short binary codes of images: an auto-encoder of the codes that a hidden layer gives, with a bottleneck of bits.

The 2012 paper proposes it (section 6.1) and names Krizhevsky and Hinton's auto-encoders of 2011. Theirs are deep and start from
pixels; from the hidden layer one layer each way is enough: 128 bits find what the codes find (docs/benchmarks.md). Noise
before the bottleneck's tanh drives the hidden values apart, so that little is lost when only their signs are kept; normalising
them over the batch keeps each bit balanced.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import batch_norm

from alexnet.errors import RunError
from alexnet.progress import track

LEAST = 256  # codes to learn from
MOST = 20_000
STEPS = 800
BATCH = 256
RATE = 1e-3
NOISE = 0.5  # of hidden values whose deviation is 1


class Coder(NamedTuple):
    """The half of the auto-encoder that is kept: `weight` bits x D, `threshold` one a bit, both float32."""

    weight: Tensor
    threshold: Tensor

    @property
    def bits(self) -> int:
        """Length of the short codes."""
        return len(self.threshold)

    def encode(self, codes: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return short codes, N x bits / 8 bytes, of N x D codes."""
        hidden = _unit(codes) @ self.weight.T  # N x bits
        return np.packbits((hidden > self.threshold).numpy(), axis=1)


def learn(codes: NDArray[np.float32], bits: int) -> Coder:
    """Train the auto-encoder on N x D codes, with progress, and return its first half."""
    chance = torch.Generator().manual_seed(0)
    x = _unit(codes)
    centre, spread = x.mean(0), x.std()
    encoder, decoder = _weights(bits, x.shape[1], chance), _weights(x.shape[1], bits, chance)
    optimizer = torch.optim.Adam([encoder, decoder], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in track(range(STEPS), "Learning short codes", STEPS):
        batch = (x[torch.randint(len(x), (BATCH,), generator=chance)] - centre) / spread
        hidden = batch_norm(batch @ encoder.T, None, None, training=True)
        noisy = torch.tanh(hidden + NOISE * torch.randn(hidden.shape, generator=chance))
        loss = (noisy @ decoder.T - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
    weight = encoder.detach()
    hidden, half = (x @ weight.T).sort(0).values, len(x) // 2
    return Coder(weight, (hidden[half - 1] + hidden[half]) / 2)  # beside all of them: none is rounded to either side


def save(coder: Coder, place: Path) -> None:
    """Write a coder as safetensors."""
    safetensors.torch.save_file(coder._asdict(), place)


def load(place: Path) -> Coder:
    """Read a coder.

    Raises:
        RunError: it cannot be read.
    """
    try:
        tensors = safetensors.torch.load_file(place)
        return Coder(tensors["weight"], tensors["threshold"])
    except (OSError, safetensors.SafetensorError, LookupError) as error:
        raise RunError(f"{place} cannot be read: {error}") from error


def _weights(rows: int, columns: int, chance: torch.Generator) -> Tensor:
    weight: Tensor = torch.randn(rows, columns, generator=chance) * columns**-0.5
    return weight.requires_grad_()


def _unit(codes: NDArray[np.float32]) -> Tensor:
    """Scale codes to length 1: what a hidden layer shows is in their direction."""
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    scaled: Tensor = torch.from_numpy(codes / np.maximum(lengths, np.float32(1e-12)))
    return scaled
