"""Two small networks that a person would take instead of AlexNet, written from their publications; `small_recipes` trains them.

`speed_record` is airbench94, which held a speed record on CIFAR-10 (Jordan 2024, arXiv 2404.00498); `resnet18` is in table 1 of
He and others 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, unfold


def speed_record(classes: int) -> nn.Sequential:
    """Return the network of airbench94: N 3 32 32 -> N x classes."""
    layers = OrderedDict[str, nn.Module](
        whiten=nn.Conv2d(3, 24, 2),  # N 24 31 31
        gelu=nn.GELU(),
        block1=_block(24, 64),  # N 64 15 15
        block2=_block(64, 256),  # N 256 7 7
        block3=_block(256, 256),  # N 256 3 3
        pool=nn.MaxPool2d(3),
        flatten=nn.Flatten(),
        linear=nn.Linear(256, classes, bias=False),
        scale=_Scale(),
    )
    return nn.Sequential(layers)


@torch.no_grad()
def whiten(layer: nn.Conv2d, images: Tensor) -> None:
    """Freeze the filters as the scaled principal components of 2x2 patches of `images`, N 3 H W, each also negated."""
    patches = unfold(images, 2).transpose(1, 2).flatten(0, 1).double()  # each 3 * 2 * 2 values
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).float().view(12, 3, 2, 2)
    layer.weight.requires_grad_(False).copy_(torch.cat([filters, -filters]))
    if layer.bias is not None:
        layer.bias.zero_()


class _Scale(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits / 9


def _block(inputs: int, outputs: int) -> nn.Sequential:
    def convolution(channels: int) -> nn.Conv2d:
        layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(layer.weight[:channels])  # passes its input on, so that depth does no harm at first
        return layer

    def norm() -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(outputs, eps=1e-12, momentum=1 - 0.6)
        layer.weight.requires_grad_(False)
        return layer

    layers = OrderedDict[str, nn.Module](conv1=convolution(inputs), pool=nn.MaxPool2d(2), norm1=norm(), gelu1=nn.GELU())
    return nn.Sequential(layers | OrderedDict(conv2=convolution(outputs), norm2=norm(), gelu2=nn.GELU()))


def resnet18(classes: int) -> nn.Sequential:
    """Return ResNet-18: N 3 H W -> N x classes."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    blocks = [_Residual(*shape) for width in widths for shape in (width, (width[1], width[1], 1))]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        last = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last.weight)  # each block begins as its shortcut (Goyal and others 2017, section 5.1)
        self.path = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, last)
        changed = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*changed) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.path(x) + self.shortcut(x))
