"""The queue before a model: who shares a batch, who waits, who is turned away."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from clue_jax.prediction.kinds import Item
from clue_jax.prediction.programs import Row
from clue_jax.serving.batching import Batcher, Overloaded, TooLarge


def item(name: int, tokens: int = 10) -> Item:
    return Item([Row([name] * tokens, [0] * tokens)], name)


class Model:
    """Computes when it is let; remembers what came together."""

    def __init__(self):
        self.free = threading.Event()
        self.seconds = 0.0
        self.batches: list[tuple[str, list[int]]] = []

    def __call__(self, key, items):
        self.free.wait(20)
        time.sleep(self.seconds)
        self.batches.append((key, [i.source for i in items]))
        if any(i.source < 0 for i in items):
            raise RuntimeError("broken")
        return [[key, i.source] for i in items]


def play(scene, **options):
    """Runs a scene with a batcher and its model."""

    async def run():
        model = Model()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor, **{"most": 1000, "batch": 40, **options})
            working = asyncio.create_task(batcher.work())
            try:
                return await asyncio.wait_for(scene(batcher, model), 20)
            finally:
                model.free.set()
                working.cancel()

    return asyncio.run(run())


async def started(batcher, *work):
    """Tasks of work, each begun."""
    tasks = [asyncio.create_task(batcher.submit(key, items)) for key, items in work]
    await asyncio.sleep(0.05)
    return tasks


def test_what_waits_is_computed_together():
    async def scene(batcher, model):
        first = await started(batcher, ("a", [item(1)]))
        rest = await started(batcher, *(("a", [item(n)]) for n in range(2, 8)))
        model.free.set()
        found = await asyncio.gather(*first, *rest)
        assert found == [[["a", n]] for n in range(1, 8)]
        # The first was alone; then as many as fit into 40 tokens, in order.
        assert model.batches == [("a", [1]), ("a", [2, 3, 4, 5]), ("a", [6, 7])]

    play(scene)


def test_other_models_are_computed_in_the_order_of_arrival():
    async def scene(batcher, model):
        tasks = await started(
            batcher, ("a", [item(1)]), ("a", [item(2)]), ("b", [item(3)]), ("a", [item(4)])
        )
        model.free.set()
        await asyncio.gather(*tasks)
        assert model.batches == [("a", [1, 2, 4]), ("b", [3])]

    play(scene)


def test_a_large_request_is_computed_in_parts():
    async def scene(batcher, model):
        model.free.set()
        found = await batcher.submit("a", [item(n) for n in range(9)] + [item(9, 100)])
        assert found == [["a", n] for n in range(10)]
        assert [len(items) for _, items in model.batches] == [4, 4, 1, 1]

    play(scene)


def test_there_is_room_for_so_many_tokens():
    async def scene(batcher, model):
        with pytest.raises(TooLarge, match="has 1001 tokens; a request takes 1000"):
            batcher.room(1001, 9).__enter__()
        refused = pytest.raises(Overloaded, match="600 tokens are waiting, 1000 at most")
        with batcher.room(600, 9) as room:
            with refused, batcher.room(401, 9):
                pass
            batcher.resize(room, 100)
            with batcher.room(900, 9):
                assert batcher.tokens == 1000
            with pytest.raises(TooLarge):
                batcher.resize(room, 1001)
        assert batcher.tokens == 0

    play(scene)


def test_what_would_wait_too_long_is_turned_away_at_once():
    async def scene(batcher, model):
        model.free.set()
        model.seconds = 0.02
        with batcher.room(900, 0.01):
            for n in range(16):  # two tokens each
                with batcher.room(1, 0.01):
                    await batcher.submit("a", [item(n, 2)])
        with batcher.room(300, 1.0):  # about three seconds
            refused = pytest.raises(Overloaded, match="about 3 s of work are waiting")
            with refused, batcher.room(1, 1.0):
                pass
            with batcher.room(1, 60.0):
                pass

    play(scene)


def test_a_fault_reaches_its_batch_alone():
    async def scene(batcher, model):
        model.free.set()
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit("a", [item(-1)])
        assert await batcher.submit("a", [item(1)]) == [["a", 1]]

    play(scene)


def test_what_nobody_waits_for_is_not_computed():
    async def scene(batcher, model):
        busy, given_up = await started(batcher, ("a", [item(1)]), ("b", [item(2)]))
        given_up.cancel()
        await asyncio.sleep(0.05)
        model.free.set()
        await busy
        assert await batcher.submit("a", [item(3)]) == [["a", 3]]
        assert model.batches == [("a", [1]), ("a", [3])]

    play(scene)


def test_an_empty_request_is_answered():
    async def scene(batcher, model):
        assert await batcher.submit("a", []) == []

    play(scene)
