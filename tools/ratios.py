"""What benchmarks of two contenders share: runs in turn, and the ratios of the pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any


def seconds_in_turn(
    ours: Callable[[], Any], peer: Callable[[], Any], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, run one after the other so often."""
    taken: tuple[list[float], list[float]] = [], []
    for _ in range(pairs):
        for run, seconds in zip((ours, peer), taken, strict=True):
            started = perf_counter()
            run()
            seconds.append(perf_counter() - started)
    return taken


def ratios(above: Sequence[float], below: Sequence[float], digits: int) -> dict[str, float]:
    """Median, least and greatest ratio of the pairs."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    numbers = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return {f"ratio_{name}": round(number, digits) for name, number in numbers.items()}
