"""What all layers have in common."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]  # float32 or float64; all of a network in one of them


class Layer:
    """What layers have in common: arrays by name, their gradients by the same names, and the memory of the last `forward`."""

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self._kept: tuple[Any, ...] | None = None

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the layer's output for the input `x`."""
        raise NotImplementedError

    def backward(self, gradient: Array) -> Array:
        """Return the gradient by the last input, given that by the last output."""
        raise NotImplementedError

    def _recall(self) -> tuple[Any, ...]:
        if self._kept is None:
            raise ValueError(f"{type(self).__name__}: backward comes after forward, which keeps what it needs")
        return self._kept

    def _images(self, x: Array) -> Array:
        """Check the rank, and make one image H W C a batch of one."""
        if x.ndim not in (3, 4):
            shape = " x ".join(map(str, x.shape))
            raise ValueError(f"{type(self).__name__} takes images N x H x W x C, or one H x W x C, not {shape}")
        return x[None] if x.ndim == 3 else x
