"""Dynamic batching: images of concurrent requests go through the network together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from alexnet.data.preprocessing import PixelArray

BATCH = 32
Row = NDArray[np.float64]


class Batcher:
    """Calls `forward`, in one thread, with the images that arrived while it was busy, up to `BATCH` at a time."""

    def __init__(self, forward: Callable[[list[PixelArray]], list[Row]]) -> None:
        self._forward, self._thread = forward, ThreadPoolExecutor(1, "network")
        self._queue = asyncio.Queue[tuple[PixelArray, asyncio.Future[Row | Exception]]]()

    async def submit(self, image: PixelArray) -> Row:
        """Return the probabilities of an image."""
        future: asyncio.Future[Row | Exception] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))
        if isinstance(row := await future, Exception):
            raise row
        return row

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(image, future) for image, future in batch if not future.cancelled()]  # its request took too long
            rows: Sequence[Row | Exception]
            try:
                images = [image for image, _ in batch]
                rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._forward, images) if batch else []
            except Exception as error:  # fails these requests, not the next ones
                rows = [error] * len(batch)
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.cancelled():
                    future.set_result(row)
