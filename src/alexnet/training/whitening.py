"""Initial filters of the first layer: whitened principal components of patches of the training images.

As in the CIFAR-10 speed records (Page 2019; Jordan 2024, section 3.2), for any kernel size and any images.
"""

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.data.batches import SplitImages
from alexnet.data.preprocessing import to_input
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Preprocessing

IMAGES, PATCHES = 1000, 100  # images, and patches of each: enough for the covariance of 363 values
# added to each variance, relative to the mean variance: components far below it are noise, which must not be amplified
FLOOR = 1e-2


@torch.no_grad()
def whiten(network: AlexNet, images: SplitImages, preprocessing: Preprocessing, seed: int) -> None:
    """Set the weights of `conv1`, O x 3 x K x K, so that its outputs on `images` are uncorrelated and of equal variance.

    The first filters are principal components, each also negated, as ReLU keeps only one side; the others are random mixtures
    of them. If images are upscaled, patches are taken before that, and each weight is divided over the block of its pixel.
    """
    conv = network.layers["conv1"]
    assert isinstance(conv, nn.Conv2d)
    kernel, outputs = conv.kernel_size[0], conv.out_channels
    # The pixel, before upscaling, that each row of the kernel sees; padding shifts them.
    block = (torch.arange(kernel) + -int(conv.padding[0]) % preprocessing.scale_factor) // preprocessing.scale_factor
    cells = int(block[-1]) + 1
    spread = torch.nn.functional.one_hot(block, cells).float()
    spread = spread / spread.sum(0)  # K x cells; the weights of a block sum to that of its pixel

    values, components = _components(images, preprocessing, cells, seed)
    floor = FLOOR * values.mean() + 1e-6  # for images of a single colour all variances are 0
    filters = (components / (values + floor).sqrt()).T[: max(1, outputs // 2)]  # the largest first
    count = max(0, outputs - 2 * len(filters))
    mixed = torch.randn(count, len(filters), generator=torch.Generator().manual_seed(seed)) @ filters / len(filters) ** 0.5
    small = torch.cat([filters, -filters, mixed])[:outputs].view(outputs, 3, cells, cells)
    conv.weight.copy_(torch.einsum("ocij,hi,wj->ochw", small, spread, spread))


def _components(images: SplitImages, preprocessing: Preprocessing, cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the variances, in descending order, and principal components (columns) of patches of 3 x cells x cells pixels."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images))[:IMAGES]
    x = to_input(images.take(chosen).images, preprocessing)
    windows = x.unfold(2, cells, 1).unfold(3, cells, 1)  # N 3 P P cells cells, a view
    width = windows.shape[3]
    positions = torch.from_numpy(rng.integers(windows.shape[2] * width, size=PATCHES))
    sample = windows[:, :, positions // width, positions % width].permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1).double()
    values, components = torch.linalg.eigh(torch.cov(sample.T))
    return values.flip(0).float(), components.flip(1).float()
