"""Synthetic images for proofs and tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(kind: int, seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a noisy image, width x height: horizontal stripes for kind 0, vertical stripes for kind 1, a disc for kind 2."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    shapes = (y // 4 % 2, x // 4 % 2, (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(size) / 3) ** 2)
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray((shapes[kind][..., None] * 170 + noise).astype(np.uint8))


def class_folders(
    root: Path, count: int = 20, labels: tuple[str, ...] = ("across", "down"), size: tuple[int, int] = (40, 40)
) -> Path:
    """Create class folders of `count` images each in a folder, and return it."""
    for kind, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(kind, 100 * kind + i, size).save(root / label / f"{i:03}.png")
    return root


def heic(image: Any, **options: Any) -> bytes:
    """Return an image of Pillow or pillow-heif as a HEIC file; `tile_size` makes it a grid of tiles, as phones write."""
    from pillow_heif import from_pillow

    file = io.BytesIO()
    made = from_pillow(image) if isinstance(image, Image.Image) else image
    made.save(file, **options)
    return file.getvalue()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image encoded as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
