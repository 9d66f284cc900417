"""The base class of all layers."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]  # float32 or float64, the same in all of a network


class Layer:
    """Base class of layers, with `parameters` and `gradients` by name; `forward` saves what `backward` needs."""

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self._saved: tuple[Any, ...] | None = None

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the output for the input `x`."""
        raise NotImplementedError

    def backward(self, gradient: Array) -> Array:
        """Return the gradient of the loss by the last input, given the one by the last output."""
        raise NotImplementedError

    def _load(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise ValueError(f"{type(self).__name__}: call forward before backward")
        return self._saved

    def _images(self, x: Array) -> Array:
        """Check the rank, and turn one image H W C into a batch of one."""
        if x.ndim not in (3, 4):
            shape = " x ".join(map(str, x.shape))
            raise ValueError(f"{type(self).__name__} takes images N x H x W x C, or one H x W x C, not {shape}")
        return x[None] if x.ndim == 3 else x
