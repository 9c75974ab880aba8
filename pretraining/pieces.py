"""Work on the pieces of a corpus: in processes of this machine, or on many machines by Beam."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from clue_jax.errors import Interrupted, UserError
from clue_jax.files import read_json, write_json
from pretraining.corpus import Piece

DONE = ".done"  # what is known of each finished piece, while a folder is being written

EngineName = Literal["local", "beam"]


@dataclass(frozen=True)
class Engine:
    """What does the work.

    Attributes:
      name: local, or beam for Apache Beam, whose runners spread the pieces over many machines.
      workers: processes of the local engine.
      options: of Beam, such as --runner=FlinkRunner.

    Raises:
      UserError: for an impossible combination.
    """

    name: EngineName
    workers: int
    options: Sequence[str] = ()

    def __post_init__(self):
        if self.workers < 1:
            raise UserError("--workers must be at least 1")
        if self.options and self.name != "beam":
            raise UserError(f"{' '.join(self.options)}: options after -- are for --engine beam")


def split_options(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A command's own arguments, and those behind `--`, which are Beam's."""
    own = list(sys.argv[1:] if argv is None else argv)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def map_pieces(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    folder: epath.PathLike,
    pieces: Sequence[Piece],
    engine: Engine,
    what: str,
) -> Iterator[Any]:
    """The results of `function` for all jobs, in order.

    Each result is kept in a file of the folder, so that work that was cut goes on with the jobs
    that have none.

    Args:
      function: a pure function of a job, whose result is a list or an object of JSON; it and the
        jobs can be pickled.
      jobs: one for each piece.
      folder: where the results are kept, in `DONE`.
      pieces: how much text each job has.
      engine: what does the work.
      what: is being done, for the display: the text done, its rate and the time left.
    """
    done = epath.Path(folder) / DONE
    done.mkdir(parents=True, exist_ok=True)
    names = [f"{what.replace(' ', '-')}-{number:05d}.json" for number in range(len(jobs))]
    # An object store has no empty folders.
    there = {path.name for path in done.iterdir()} if done.is_dir() else set()
    tasks = [Task(function, job, str(done / name)) for job, name in zip(jobs, names, strict=True)]
    left = [task for task, name in zip(tasks, names, strict=True) if name not in there]
    if engine.name == "beam":
        from pretraining.beam import run_tasks

        run_tasks(left, engine.options)
        for task in tasks:
            result = read_json(task.result)
            if isinstance(result, str):
                raise UserError(result)
            yield result
        return
    with _display(what) as progress:
        bar = progress.add_task("", total=sum(piece.stop - piece.start for piece in pieces))
        results = _results(left, engine.workers)
        for piece, task, name in zip(pieces, tasks, names, strict=True):
            result = read_json(task.result) if name in there else next(results)
            progress.advance(bar, piece.stop - piece.start)
            yield result


@dataclass(frozen=True)
class Task:
    """A job, and the file that keeps what comes out of it."""

    function: Callable[[Any], Any]
    job: Any
    result: str

    def run(self) -> Any:
        """Does the job; its file is written last."""
        result = self.function(self.job)
        write_json(self.result, result)
        return result


def _display(what: str) -> Progress:
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _results(tasks: Sequence[Task], workers: int) -> Iterator[Any]:
    if workers == 1 or len(tasks) <= 1:
        yield from map(Task.run, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _end_with_parent) as pool:
        try:
            yield from pool.map(Task.run, tasks)
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
