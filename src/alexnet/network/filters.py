"""Draw the kernels of the first layer as colour images, as in figure 3 of the paper."""

import numpy as np
from numpy.typing import NDArray

COLUMNS = 16
GAP = 1  # white pixels between kernels; three times as many between towers
GREY = 128


def filter_grid(weights: NDArray[np.float32], towers: int = 1) -> NDArray[np.uint8]:
    """Draw kernels O 3 K K in a grid, one pixel per weight, the `towers` below each other; return H W 3 uint8.

    Each kernel is scaled to full contrast about grey, so magnitudes cannot be compared.
    """
    count, _, size, _ = weights.shape
    strongest = np.abs(weights).max((1, 2, 3), keepdims=True)
    levels = GREY + 127 * weights / np.maximum(strongest, 1e-12)
    kernels = levels.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)  # O K K 3
    per_tower = count // towers
    columns = min(COLUMNS, per_tower)
    rows, step = -(-per_tower // columns), size + GAP
    height = rows * step - GAP
    sheet = np.full((towers * height + (towers - 1) * 3 * GAP, columns * step - GAP, 3), 255, dtype=np.uint8)
    for i, kernel in enumerate(kernels):
        tower, position = divmod(i, per_tower)
        top, left = tower * (height + 3 * GAP) + position // columns * step, position % columns * step
        sheet[top : top + size, left : left + size] = kernel
    return sheet
