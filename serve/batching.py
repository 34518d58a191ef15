"""Requests that wait while a model works go through it together, as soon as it is free.

Serve's own `@batch` closes a batch when its first request has waited long enough, busy model or not; beside a model
that takes seconds, that leaves batches of one or two. Here a batch is closed when the model can take it, so a lone
request waits for nobody and a crowd shares one pass.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Calls `work` with up to `limit` items at once, in a thread of `pool`, and hands each caller its own answer.

    A failing batch is taken apart and each item tried alone, so only the item at fault fails. An item whose caller
    has gone before its turn is left out. Batchers of one single-threaded pool never work at the same time.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Answer]], limit: int, pool: ThreadPoolExecutor) -> None:
        self._work, self._limit, self._pool = work, limit, pool
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._drain: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        """The answer to one item, or the exception that `work` raised for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._run_all())
        return await future

    async def _run_all(self) -> None:
        while self._waiting:
            batch: list[tuple[Item, asyncio.Future[Answer]]] = []
            while self._waiting and len(batch) < self._limit:
                item, future = self._waiting.popleft()
                if not future.done():
                    batch.append((item, future))
            if batch:
                await self._run(batch)

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._pool, self._work, [item for item, _ in batch])
            assert len(answers) == len(batch), f"{len(answers)} answers to {len(batch)} items"
        except Exception as error:
            if len(batch) == 1:
                future = batch[0][1]
                if not future.done():
                    future.set_exception(error)
                return
            for entry in batch:
                await self._run([entry])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
