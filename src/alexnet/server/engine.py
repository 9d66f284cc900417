"""Predictions and explanations: decoding in processes, the network in one thread, explanations in another.

Images of concurrent requests go through the network together (dynamic batching).
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from starlette.exceptions import HTTPException

from alexnet.data.decode_pool import decode_one
from alexnet.data.preprocessing import PixelArray, fit_image
from alexnet.errors import ImageError, printable
from alexnet.explain.attribution import explained, shares, strongest
from alexnet.inference.forward import classify
from alexnet.inference.predict import answer, best
from alexnet.network.alexnet import AlexNet
from alexnet.plotting import BLUE, NEUTRAL, ORANGE, data_uri, file_uri
from alexnet.run import ModelConfig
from alexnet.server.uploads import Upload

BATCH = 32
DECODED = 4 * BATCH  # images that are being decoded or wait for the network; all others are kept as uploaded
PREVIEW = 1600  # largest side of a preview, in pixels
LABELS_EXPLAINED, MAPS_SHOWN = 5, 24  # the most probable labels; feature maps of each convolution

Answer = tuple[NDArray[np.float64], bool | None]  # probabilities, and whether the image is known


class Engine:
    """Answers requests with a network; use within `running`."""

    def __init__(self, network: AlexNet, config: ModelConfig, views: int | None = None) -> None:
        self._network, self._config, self._views = network, config, views
        self._decoders = ThreadPoolExecutor(os.cpu_count(), "decode")  # each thread waits for a process
        self._forwarder = ThreadPoolExecutor(1, "network")
        self._explainer = ThreadPoolExecutor(1, "explain")  # predictions do not wait for explanations, which take seconds
        self._decoded = asyncio.Semaphore(DECODED)
        self._queue = asyncio.Queue[tuple[PixelArray, asyncio.Future[Answer | Exception]]]()

    def forward(self, images: list[PixelArray]) -> list[Answer]:
        """Return the answers for a batch."""
        return classify(self._network, self._config, images, self._views)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up, then compute batches while the context lasts."""
        batches = asyncio.create_task(self._compute_batches())
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "png")
        try:
            await self.predict([Upload("", file.getvalue())] * BATCH, 1)
            yield
        finally:
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches

    async def _compute_batches(self) -> None:
        """Compute the images that arrived while the network was busy, up to `BATCH` at a time, until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(image, future) for image, future in batch if not future.cancelled()]  # its request timed out
            answers: Sequence[Answer | Exception]
            try:
                images = [image for image, _ in batch]
                answers = (
                    await asyncio.get_running_loop().run_in_executor(self._forwarder, self.forward, images) if batch else []
                )
            except Exception as error:  # fails these requests only
                answers = [error] * len(batch)
            for (_, future), result in zip(batch, answers, strict=True):
                if not future.cancelled():
                    future.set_result(result)

    async def predict(self, uploads: list[Upload], top: int) -> list[dict[str, Any]]:
        """Return an answer for each image in order, in the format of `alexnet predict --json`."""
        return await asyncio.gather(*(self._predict(upload, top) for upload in uploads))

    async def _predict(self, upload: Upload, top: int) -> dict[str, Any]:
        async with self._decoded:
            image = await self._decode(upload.content)
            if isinstance(image, ImageError):
                return {"image": upload.name, "error": printable(str(image))}
            future: asyncio.Future[Answer | Exception] = asyncio.get_running_loop().create_future()
            self._queue.put_nowait((image, future))
            if isinstance(result := await future, Exception):
                raise result
        return {"image": upload.name, **answer(*result, self._config.labels, top)}

    async def _decode(self, content: bytes) -> PixelArray | ImageError:
        def decode() -> PixelArray | ImageError:
            answer = decode_one("pixels", content, preprocessing.decode_options())
            return answer if isinstance(answer, ImageError) else fit_image(answer.pixels, preprocessing)

        preprocessing = self._config.preprocessing
        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)

    async def preview(self, upload: Upload) -> dict[str, Any]:
        """Return an image as a JPEG that any browser shows; status 422 if the image cannot be read."""
        settings = {"side": PREVIEW}
        async with self._decoded:
            work = asyncio.get_running_loop().run_in_executor(self._decoders, decode_one, "preview", upload.content, settings)
            answer = await work
        if isinstance(answer, ImageError):
            raise HTTPException(422, printable(f"{upload.name}: {answer}"))
        return {"image": upload.name, "preview": file_uri(answer.body, "jpeg")}

    async def explain(self, upload: Upload) -> dict[str, Any]:
        """Return the prediction for an image with heat maps and feature maps; status 422 if the image cannot be read."""
        image = await self._decode(upload.content)
        if isinstance(image, ImageError):
            raise HTTPException(422, printable(f"{upload.name}: {image}"))
        return await asyncio.get_running_loop().run_in_executor(self._explainer, self._explain, upload.name, image)

    def _explain(self, name: str, image: PixelArray) -> dict[str, Any]:
        explanation = explained(self._network, self._config, image)
        return {
            "image": name,
            "predictions": best(explanation.probabilities, explanation.labels, LABELS_EXPLAINED),
            "pixels": png(explanation.pixels),
            "heat": {method: png(colorize(values)) for method, values in explanation.heat_maps.items()},
            "maps": {
                layer: {"shape": maps.shape, "pictures": [png(grayscale(each)) for each in strongest(maps, MAPS_SHOWN)]}
                for layer, maps in explanation.maps.items()
            },
        }


def colorize(heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a heat map H W as RGBA: orange for the label, blue against it; weak values are more transparent."""
    share, strength = shares(heat)
    neutral, against, favour = (np.array(ImageColor.getrgb(colour)) for colour in (NEUTRAL, BLUE, ORANGE))
    end = np.where(share[..., None] < 0, against, favour)
    return np.concatenate([neutral + (end - neutral) * np.abs(share[..., None]), 255 * strength[..., None]], 2)


def grayscale(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a feature map H W scaled from its minimum (black) to its maximum."""
    low, high = float(values.min()), float(values.max())
    return 255 * (values - low) / ((high - low) or 1)


def png(image: NDArray[Any]) -> str:
    """Return an image H W, H W 3 or H W 4, 0 to 255, as a PNG data URI."""
    return data_uri(Image.fromarray(image.round().astype(np.uint8)), "png")
