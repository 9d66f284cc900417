"""Images of many requests -> the network, a batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 32
WINDOW = 0.005  # seconds that a batch waits for images that are still being decoded, and for no others


class Batches(Generic[Item, Result]):
    """Gathers items and gives them to `work`, many at a time, in one thread.

    While the network is at work, what comes gathers by itself. When it is not, the first to come waits for those that are on
    their way, no longer than `WINDOW`; alone, it does not wait at all.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]]) -> None:
        self._work, self._thread = work, ThreadPoolExecutor(1, "network")
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._coming = 0
        self._some, self._enough = asyncio.Event(), asyncio.Event()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Say that an item is on its way, while the context lasts."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._note()

    async def result(self, item: Item) -> Result:
        """Return what `work` makes of an item."""
        found: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, found))
        self._note()
        return await found

    def _note(self) -> None:
        if self._waiting:
            self._some.set()
        if len(self._waiting) >= BATCH or not self._coming:
            self._enough.set()

    async def run(self) -> None:
        """Work for ever; to be cancelled."""
        while True:
            await self._some.wait()
            if self._coming and len(self._waiting) < BATCH:
                self._enough.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(WINDOW):
                        await self._enough.wait()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self._some.clear()
            if wanted := [(item, found) for item, found in batch if not found.cancelled()]:  # some gave up waiting
                await self._batch(wanted)

    async def _batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, [item for item, _ in batch])
            results = await work
        except Exception as error:  # all of them are told, and the next batch is tried
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            return
        for (_, found), result in zip(batch, results, strict=True):
            if not found.done():
                found.set_result(result)

    def close(self) -> None:
        """End the thread when it has done its work."""
        self._thread.shutdown(cancel_futures=True)
