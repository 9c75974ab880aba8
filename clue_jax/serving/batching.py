"""Requests that come at about the same time share a batch.

There is no waiting for company: while the model is busy, what comes in queues, and is computed
together next. What is in the house is counted in tokens, and more than that is turned away at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from clue_jax.prediction.kinds import Item, Outputs

_KNOWN = 16  # batches after which their pace is believed


class Overloaded(Exception):
    """There is no room for another request now."""


class TooLarge(Exception):
    """There would not be room for a request in an empty house."""


@dataclass
class Room:
    """The tokens that a request takes up."""

    tokens: int


@dataclass(frozen=True)
class _Work:
    """Some items of a request.

    Attributes:
      key: only work of the same key is computed together.
    """

    key: Hashable
    items: Sequence[Item]
    tokens: int
    done: asyncio.Future[list[Outputs]] = field(compare=False)


class Batcher:
    """A queue before a model, or several, that share a device.

    Args:
      compute: (key, items) -> outputs of each; called in a thread of `executor`, one at a time.
      executor: of one thread.
      most: tokens of all requests that are waiting or computed.
      batch: tokens that are computed together, if there is more than one item.
      observe: called with the key and the number of items of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Item]], list[Outputs]],
        executor: Executor,
        most: int,
        batch: int,
        observe: Callable[[Any, int], None] = lambda key, items: None,
    ):
        self._compute, self._executor, self._observe = compute, executor, observe
        self._most, self._batch = most, batch
        self._waiting: deque[_Work] = deque()
        self._woken = asyncio.Event()
        self._paces: deque[float] = deque(maxlen=_KNOWN)  # seconds a token, of the last batches
        self.tokens = 0

    @contextlib.contextmanager
    def room(self, tokens: int, seconds: float) -> Iterator[Room]:
        """Room for a request, as long as the block lasts; `resize` when its size is known better.

        Args:
          tokens: of the request.
          seconds: that it may wait.

        Raises:
          Overloaded: if there is none now, or what waits takes longer than that.
          TooLarge: if there never is.
        """
        self._check(tokens)
        if self.tokens + tokens > self._most:
            raise Overloaded(f"{self.tokens} tokens are waiting, {self._most} at most")
        # The best of the last batches: what waits fills its batches, and needs no compiling.
        pace = min(self._paces) if len(self._paces) >= _KNOWN else 0.0
        if self.tokens * pace > seconds:
            raise Overloaded(f"about {self.tokens * pace:.0f} s of work are waiting")
        room = Room(tokens)
        self.tokens += tokens
        try:
            yield room
        finally:
            self.tokens -= room.tokens

    def resize(self, room: Room, tokens: int) -> None:
        """Corrects an estimate.

        Raises:
          TooLarge: see `room`.
        """
        self._check(tokens)
        self.tokens += tokens - room.tokens
        room.tokens = tokens

    def _check(self, tokens: int) -> None:
        if tokens > self._most:
            raise TooLarge(f"the request has {tokens} tokens; a request takes {self._most}")

    async def submit(self, key: Hashable, items: Sequence[Item]) -> list[Outputs]:
        """The outputs of the items, in order. Cancelled, what was not begun is not computed."""
        loop = asyncio.get_running_loop()
        parts = [
            _Work(key, part, tokens_of(part), loop.create_future())
            for part in _parts(items, self._batch)
        ]
        self._waiting.extend(parts)
        self._woken.set()
        try:
            found = await asyncio.gather(*(part.done for part in parts))
        finally:
            for part in parts:
                part.done.cancel()
        return [outputs for some in found for outputs in some]

    async def work(self) -> None:
        """Computes what comes in, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._next()
            if not batch:
                self._woken.clear()
                await self._woken.wait()
                continue
            items = [item for work in batch for item in work.items]
            self._observe(batch[0].key, len(items))
            started = time.monotonic()
            try:
                outputs = await loop.run_in_executor(
                    self._executor, self._compute, batch[0].key, items
                )
            except Exception as error:
                for work in batch:
                    if not work.done.done():
                        work.done.set_exception(error)
                continue
            tokens = max(1, sum(work.tokens for work in batch))
            self._paces.append((time.monotonic() - started) / tokens)
            given = iter(outputs)
            for work in batch:
                found = [next(given) for _ in work.items]
                if not work.done.done():
                    work.done.set_result(found)

    def _next(self) -> list[_Work]:
        """The first in the queue, and what may share its batch, in the order of arrival."""
        batch: list[_Work] = []
        left: deque[_Work] = deque()
        tokens = 0
        while self._waiting:
            work = self._waiting.popleft()
            if work.done.done():  # its request was cancelled
                continue
            if not batch or (work.key == batch[0].key and tokens + work.tokens <= self._batch):
                batch.append(work)
                tokens += work.tokens
            else:
                left.append(work)
        self._waiting = left
        return batch


def tokens_of(items: Sequence[Item]) -> int:
    """Tokens of all rows."""
    return sum(len(row.ids) for item in items for row in item.rows)


def _parts(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """Neighbours of at most so many tokens, or single ones."""
    part: list[Item] = []
    tokens = 0
    for item in items:
        own = tokens_of([item])
        if part and tokens + own > most:
            yield part
            part, tokens = [], 0
        part.append(item)
        tokens += own
    if part:
        yield part
