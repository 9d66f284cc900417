"""First weights of the first layer from the training images: the principal components of their patches, whitened.

As in the CIFAR-10 speed records (Page 2019; Jordan 2024, section 3.2), but for any kernel and any images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.data.batches import SplitImages
from alexnet.data.preprocessing import to_input
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing

IMAGES, PATCHES = 1000, 100  # enough for a covariance of 363 values: patches of an image, of so many images
FLOOR = 1e-2  # of the mean variance: components below it are noise, and are not blown up


@torch.no_grad()
def whiten(network: AlexNet, images: SplitImages, preprocessing: Preprocessing, seed: int) -> None:
    """Set the weights of `conv1`, O x 3 x K x K, so that its outputs on patches of `images` are uncorrelated and alike in size.

    The principal components come first, each with its negative, as ReLU keeps but one side; what outputs are left are random
    mixtures of them. Where pixels are upscaled, patches are of the small image, and a weight is spread over a pixel's block.
    """
    conv = network.layers["conv1"]
    assert isinstance(conv, nn.Conv2d)
    kernel, outputs = conv.kernel_size[0], conv.out_channels
    # Which of the small image's pixels each row of the kernel sees; padding shifts them.
    block = (torch.arange(kernel) + -int(conv.padding[0]) % preprocessing.scale_factor) // preprocessing.scale_factor
    cells = int(block[-1]) + 1
    spread = torch.nn.functional.one_hot(block, cells).float()
    spread = spread / spread.sum(0)  # K x cells; the weights of a block add up to its pixel's

    values, components = _components(images, preprocessing, cells, seed)
    floor = FLOOR * values.mean() + 1e-6  # images of one colour have no components at all
    filters = (components / (values + floor).sqrt()).T[: max(1, outputs // 2)]  # the largest first
    count = max(0, outputs - 2 * len(filters))
    mixed = torch.randn(count, len(filters), generator=torch.Generator().manual_seed(seed)) @ filters / len(filters) ** 0.5
    small = torch.cat([filters, -filters, mixed])[:outputs].view(outputs, 3, cells, cells)
    conv.weight.copy_(torch.einsum("ocij,hi,wj->ochw", small, spread, spread))


def _components(images: SplitImages, preprocessing: Preprocessing, cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return variances, falling, and principal components, a column each, of patches of 3 x `cells` x `cells` pixels."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images))[:IMAGES]
    x = to_input(images.take(chosen).images, preprocessing)
    windows = x.unfold(2, cells, 1).unfold(3, cells, 1)  # N 3 P P cells cells: a view, as all patches would fill the memory
    across = windows.shape[3]
    places = torch.from_numpy(rng.integers(windows.shape[2] * across, size=PATCHES))
    sample = windows[:, :, places // across, places % across].permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1).double()
    values, components = torch.linalg.eigh(torch.cov(sample.T))
    return values.flip(0).float(), components.flip(1).float()
