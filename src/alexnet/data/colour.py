"""Changes of brightness and colour of a batch of images, each with its own parameters: N S S 3 float32, levels 0 to 255."""

import torch
from torch import Tensor

from alexnet.network.device import send

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601-2, as in Pillow)


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the levels of each image by its factor, as Pillow's `ImageEnhance.Brightness` does."""
    return (images * _each(factors)).clamp_(0, 255)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance to the mean grey level of each image by its factor, as Pillow's `ImageEnhance.Contrast` does."""
    mean = _each(images.mean((1, 2)) @ send(torch.tensor(GREY), images.device))
    return (images - mean).mul_(_each(factors)).add_(mean).clamp_(0, 255)


def saturate(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of each pixel to its grey level by the image's factor, as Pillow's `ImageEnhance.Color` does."""
    grey, same = torch.tensor(GREY)[:, None].expand(3, 3), torch.eye(3)
    colours = torch.lerp(send(grey, images.device), send(same, images.device), factors[:, None, None])  # N 3 3
    return (images.flatten(1, 2) @ colours).view_as(images).clamp_(0, 255)  # several times as fast as one grey for three levels


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep so many of the highest bits of the levels of each image, as Pillow's `ImageOps.posterize` does; 8: unchanged."""
    step = _each(2 ** (8 - bits))
    return torch.lerp(images, (images / step).floor_().mul_(step), (step > 1).float())


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels from each image's threshold on, as Pillow's `ImageOps.solarize` does."""
    inverted = (images >= _each(thresholds)).float()
    return inverted.mul_(-255).add_(images).abs_()  # in less than half of the time of torch.where


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
