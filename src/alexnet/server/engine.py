"""What answers: decoding in processes, the network in one thread, explanations in another.

One server process, however many cores: the network uses all of them for each batch, decoding has processes of its own, and
what is left to the server itself is a few hundred microseconds a request. Several servers would share nothing: each would
hold the network again, smaller batches, and limits of its own that add up to nobody's.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.data.decode_pool import answer_one
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.errors import ImageError, printable
from alexnet.explain.attribution import explained
from alexnet.inference.forward import probabilities
from alexnet.inference.predict import best
from alexnet.network.alexnet import AlexNet
from alexnet.run import ModelConfig
from alexnet.server.batcher import BATCH, Batches
from alexnet.server.figures import explanation_json
from alexnet.server.limits import Limits, Refused, busy
from alexnet.server.uploads import Upload

AHEAD = 4 * BATCH  # images that are being decoded or wait, decoded, for the network; all others are as small as they came
LABELS_EXPLAINED = 5


class Engine:
    """Answers for a network; lives in one event loop, between `running`."""

    def __init__(self, network: AlexNet, config: ModelConfig, limits: Limits) -> None:
        self._network, self._config, self._limits = network, config, limits
        self._workers = os.cpu_count() or 1
        self._decoders = ThreadPoolExecutor(self._workers, "decode")  # each waits for a process
        self._explainer = ThreadPoolExecutor(1, "explain")  # not the network's: predictions need not wait for seconds
        self._batches: Batches[PixelArray, NDArray[np.float64]] = Batches(self.look)
        self._ahead = asyncio.Semaphore(AHEAD)

    def look(self, images: list[PixelArray]) -> list[NDArray[np.float64]]:
        """Return the probabilities of a batch, one row an image."""
        return list(probabilities(self._network, self._config, images))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, and have been warm once: the first request is to be as fast as the others."""
        await self._warm()
        batches = asyncio.create_task(self._batches.run())
        try:
            yield
        finally:
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches
            self._batches.close()
            for pool in (self._decoders, self._explainer):
                pool.shutdown(cancel_futures=True)

    async def _warm(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "png")
        found = await asyncio.gather(*(self._decoded(file.getvalue()) for _ in range(self._workers)))
        images = [image for image in found if not isinstance(image, ImageError)]
        for count in (1, BATCH):
            await asyncio.to_thread(self.look, [images[0]] * count)

    async def predict(self, uploads: list[Upload], top: int) -> list[dict[str, Any]]:
        """Return an answer for each image, in order, as `alexnet predict --json` has them.

        Raises:
            Refused: it takes too long, as too much else is to be done.
        """
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                return await asyncio.gather(*(self._predicted(upload, top) for upload in uploads))
        except TimeoutError as error:
            raise busy("too much is to be done") from error

    async def _predicted(self, upload: Upload, top: int) -> dict[str, Any]:
        async with self._ahead:
            with self._batches.coming():
                image = await self._decoded(upload.content)
            if isinstance(image, ImageError):
                return {"image": upload.name, "error": printable(str(image))}
            row = await self._batches.result(image)
        return {"image": upload.name, "predictions": best(row, self._config.labels, top)}

    async def _decoded(self, content: bytes) -> PixelArray | ImageError:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._pixels, content)

    def _pixels(self, content: bytes) -> PixelArray | ImageError:
        preprocessing = self._config.preprocessing
        found = answer_one("pixels", content, preprocessing.decode_options())
        return found if isinstance(found, ImageError) else fit_image(found.pixels, preprocessing)

    async def explain(self, upload: Upload) -> dict[str, Any]:
        """Return what `POST /explain` answers; not to be called for more at a time than the limits say.

        Raises:
            Refused: the image cannot be read, or it takes too long.
        """
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                image = await self._decoded(upload.content)
                if isinstance(image, ImageError):
                    raise Refused(422, printable(f"{upload.name}: {image}"))
                found = await asyncio.get_running_loop().run_in_executor(self._explainer, self._explained, image)
        except TimeoutError as error:
            raise busy("too much is to be done") from error
        return {"image": upload.name, **found}

    def _explained(self, image: PixelArray) -> dict[str, Any]:
        return explanation_json(explained(self._network, self._config, image), LABELS_EXPLAINED)
