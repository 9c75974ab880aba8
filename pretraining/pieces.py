"""Work on the pieces of a corpus in processes, with progress on a terminal."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clue_jax.errors import Interrupted
from pretraining.corpus import Piece


def map_pieces(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    workers: int,
    pieces: Sequence[Piece],
    what: str,
) -> Iterator[Any]:
    """The results of `function` for all jobs, in order; it and they can be pickled.

    Args:
      function: a pure function of a job.
      jobs: one for each piece.
      workers: processes at most.
      pieces: how much text each job has.
      what: is being done, for the display: the text done, its rate and the time left.
    """
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(piece.stop - piece.start for piece in pieces))
        for piece, result in zip(pieces, _results(function, jobs, workers), strict=True):
            progress.advance(task, piece.stop - piece.start)
            yield result


def _results(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    if workers == 1 or len(jobs) == 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _end_with_parent) as pool:
        try:
            yield from pool.map(function, jobs)
        except BrokenProcessPool:
            raise Interrupted(
                "a worker process was killed (is there enough memory?); the same command goes on "
                "with what is left to do"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed; it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
