"""A server under load: what it can do, how long answers take at 70 % of that and at five times,
whether its memory stays what it is, and whether it stops without losing a request.

The clients run on the same cores as the server; a machine of its own for them would show more.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.predictor import Predictor
from tools.bench_predict import mix
from tools.result import print_result

_TEXTS = 280  # different inputs
_SLOW = 50  # connections that send a piece and then nothing


@dataclass(frozen=True)
class Settings:
    """Puts a server of one model under load; ends with one line of JSON."""

    model: str
    """Model directory of a classifier."""
    data_dir: str
    """Folder with CLUE's zips, see tools.bench_predict."""
    texts: int = 8
    """Texts of a request."""
    seconds: float = 20.0
    """How long each load lasts."""
    soak: float = 0.0
    """Seconds for which memory is watched at 70 %, after the other loads; 0 for not at all."""
    queue_tokens: int = 65536
    """Tokens that may wait in the server, as tools.serve takes it."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    try:
        import aiohttp
    except ImportError as error:
        raise UserError("the clients need aiohttp: pip install aiohttp") from error
    # Every connection is a file.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    inputs = mix(settings.data_dir, _TEXTS)
    bare = _bare(settings.model, inputs)
    bodies = [
        json.dumps({"inputs": [inputs[(i + j) % len(inputs)] for j in range(settings.texts)]})
        for i in range(len(inputs))
    ]
    with _server(settings) as (process, port, started):
        result = asyncio.run(_loads(settings, process, port, bodies, aiohttp))
    bare = max(bare, _bare(settings.model, inputs))  # the pace of the machine may have changed
    capacity = result["requests_per_second"] * settings.texts
    result = {
        "benchmark": "serve",
        "model": Path(settings.model).name,
        "texts_a_request": settings.texts,
        "bare_texts_per_second": round(bare, 1),
        "server_texts_per_second": round(capacity, 1),
        "of_bare": round(capacity / bare, 3),
        "seconds_until_ready": round(started, 1),
        **result,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print_result(result)
    return result


def _bare(model: str, inputs: list[Any]) -> float:
    """Texts a second of the model without a server, all texts at once, the better of two."""
    predictor = Predictor(model)
    predictor.predict(inputs)  # compiles
    rates = []
    for _ in range(2):
        started = time.perf_counter()
        predictor.predict(inputs)
        rates.append(len(inputs) / (time.perf_counter() - started))
    return max(rates)


@contextmanager
def _server(settings: Settings) -> Iterator[tuple[subprocess.Popen, int, float]]:
    """A server process, its port, and the seconds until it was ready."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.serve", "--model", f"m={settings.model}", "--port", "0",
             "--queue-tokens", str(settings.queue_tokens)],
            stderr=log,
        )  # fmt: skip
        try:
            port = 0
            while True:
                time.sleep(0.05)
                if process.poll() is not None:
                    log.seek(0)
                    raise UserError(f"the server stopped: {log.read()[-500:]}")
                log.seek(0)
                lines = [json.loads(line) for line in log.read().splitlines() if line[:1] == "{"]
                port = next((x["port"] for x in lines if "port" in x), 0)
                if any("is ready" in x["message"] for x in lines):
                    break
            yield process, port, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(90)


@dataclass
class _Seen:
    """What clients saw: statuses, and the seconds of answers with 200 and with 429."""

    statuses: Counter[str] = field(default_factory=Counter)
    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As numbers."""
        numbers: dict[str, Any] = {"statuses": dict(self.statuses)}
        for name, seconds in (("", self.served), ("refused_", self.refused)):
            if seconds:
                p50, p99 = np.percentile(seconds, (50, 99)) * 1000
                numbers |= {f"{name}p50_ms": round(p50, 1), f"{name}p99_ms": round(p99, 1)}
        return numbers


async def _loads(
    settings: Settings, process: subprocess.Popen, port: int, bodies: list[str], aiohttp: Any
) -> dict[str, Any]:
    address = f"http://127.0.0.1:{port}/v1/models/m:predict"

    def session() -> Any:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(120)
        return aiohttp.ClientSession(connector=connector, timeout=timeout)

    # When the server stops, clients shall hold the connections of a usual load, not the hundreds
    # that an overload left them: one that is closed while idle is no answer that was lost.
    async with session() as of_loads, session() as of_drain:

        async def ask(i: int, seen: _Seen, session: Any = of_loads) -> None:
            started = time.perf_counter()
            try:
                async with session.post(address, data=bodies[i % len(bodies)]) as answer:
                    await answer.read()
                    status = answer.status
            except aiohttp.ClientConnectorError:
                seen.statuses["not connected"] += 1
                return
            except (aiohttp.ClientError, OSError) as error:
                seen.statuses[type(error).__name__] += 1
                return
            seconds = time.perf_counter() - started
            seen.statuses[str(status)] += 1
            if status in (200, 429):
                (seen.served if status == 200 else seen.refused).append(seconds)

        await _closed(ask, 4, min(settings.seconds, 5.0))  # warms up both sides
        capacity = await _closed(ask, 16, settings.seconds)
        rate = len(capacity.served) / settings.seconds
        seventy = await _open(ask, 0.7 * rate, settings.seconds)
        before = _memory(process.pid)
        fivefold = await _open(ask, 5 * rate, settings.seconds)
        after = _memory(process.pid)
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(_SLOW)]
        for i, (_, writer) in enumerate(slow):
            head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\n"
            writer.write(head + (b"Content-Length: 99\r\n\r\n{" if i % 2 else b""))
        with_slow = await _open(ask, 0.7 * rate, settings.seconds)
        for _, writer in slow:
            writer.close()
        soak = await _soak(ask, 0.7 * rate, settings.soak, process.pid)
        drain = await _drain(partial(ask, session=of_drain), 0.7 * rate, process)
    return {
        "requests_per_second": round(rate, 2),
        "at_70_percent": seventy.told(),
        "at_5_times": fivefold.told() | {"memory_mb": [before, after]},
        "with_slow_clients": with_slow.told() | {"slow_clients": _SLOW},
        **soak,
        "drain": drain,
    }


async def _closed(ask: Any, clients: int, seconds: float) -> _Seen:
    """So many clients, each with a request after the other."""
    seen, end = _Seen(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        i = number * 17
        while time.perf_counter() < end:
            await ask(i, seen)
            i += 1

    await asyncio.gather(*(client(n) for n in range(clients)))
    return seen


async def _open(ask: Any, rate: float, seconds: float) -> _Seen:
    """Requests at random times, so many a second, whatever becomes of those before."""
    seen, numbers = _Seen(), random.Random(0)
    tasks = []
    at = start = time.perf_counter()
    while at < start + seconds:
        at += numbers.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(len(tasks), seen)))
    await asyncio.gather(*tasks)
    return seen


async def _soak(ask: Any, rate: float, seconds: float, process: int) -> dict[str, Any]:
    """Memory of the server in MB, every tenth of the time."""
    if not seconds:
        return {}
    memory = [_memory(process)]
    statuses: Counter[str] = Counter()
    for _ in range(10):
        statuses += (await _open(ask, rate, seconds / 10)).statuses
        memory.append(_memory(process))
    return {"soak": {"seconds": seconds, "statuses": dict(statuses), "memory_mb": memory}}


async def _drain(ask: Any, rate: float, process: subprocess.Popen) -> dict[str, Any]:
    """What became of the requests when the server was told to stop in the midst of them."""
    load = asyncio.create_task(_open(ask, rate, 6.0))
    await asyncio.sleep(3.0)
    process.send_signal(signal.SIGTERM)
    started = time.perf_counter()
    seen = await load
    code = await asyncio.to_thread(process.wait, 90)
    lost = {
        name: count
        for name, count in seen.statuses.items()
        if name not in ("200", "429", "not connected")
    }
    seconds = round(time.perf_counter() - started, 1)
    return {"statuses": dict(seen.statuses), "lost": lost, "exit": code, "seconds": seconds}


def _memory(process: int) -> int:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


if __name__ == "__main__":
    run_command(main)
