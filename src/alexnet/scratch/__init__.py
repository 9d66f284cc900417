"""AlexNet from scratch, in NumPy only: the layers, forward and backward, and the network. Start with layers.py."""

from alexnet.scratch.layers import Conv2D, Dense, Flatten, Layer, MaxPooling2D
from alexnet.scratch.network import KINDS, SCRATCH, SGD, AlexNet
from alexnet.scratch.norms import BatchNormalization, LocalResponseNormalization, MapNormalization
from alexnet.scratch.units import Dropout, ReLU, Softmax, Tanh, cross_entropy

__all__ = [
    "KINDS",
    "SCRATCH",
    "SGD",
    "AlexNet",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "LocalResponseNormalization",
    "MapNormalization",
    "MaxPooling2D",
    "ReLU",
    "Softmax",
    "Tanh",
    "cross_entropy",
]
