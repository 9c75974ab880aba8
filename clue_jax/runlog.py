"""What a run shows and leaves behind: `metrics.jsonl`, TensorBoard files, a progress bar."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clue_jax.files import json_text, write_text

Item = TypeVar("Item")


def show_warnings() -> None:
    """Warnings of a command are lines of their own words on standard error.

    absl, which orbax brings, has given the root logger a handler by then, which would put level and
    module before each.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))


class RunLog:
    """Records named numbers by step, and shows how far a run is.

    Args:
      directory: of the run; `metrics.jsonl` and `tensorboard/` are made in it.
      start_step: entries of later steps, left by a run that was cut, are removed.
      steps: the length of the run.
      silent: record and show nothing, as all but one of several processes do.
    """

    def __init__(
        self, directory: str | os.PathLike, start_step: int, steps: int, silent: bool = False
    ):
        self._silent = silent
        if silent:
            return
        from tensorboardX import SummaryWriter

        self._path = Path(directory) / "metrics.jsonl"
        self._drop_after(start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(
            str(Path(directory) / "tensorboard"), purge_step=start_step + 1 if start_step else None
        )
        self._console = Console(stderr=True)
        self._steps = steps
        self._started = time.monotonic()
        self._start_step = start_step
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=steps, completed=start_step, numbers=""
        )

    def __enter__(self) -> RunLog:
        if not self._silent:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._silent:
            return
        self._progress.stop()
        self._file.close()
        self._tensorboard.close()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._silent:
            return
        self._progress.update(self._task, completed=step)

    def write(
        self, step: int, numbers: dict[str, float], shown: dict[str, float] | None = None
    ) -> None:
        """Records numbers of a step in the files, and shows them, or others in their place."""
        if self._silent:
            return
        self._file.write(json_text({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()
        pairs = (numbers if shown is None else shown).items()
        text = "  ".join(f"{name} {_short(value)}" for name, value in pairs)
        self._progress.update(self._task, completed=step, numbers=text)
        if not self._console.is_terminal:
            self._console.print(
                f"step {step}/{self._steps}  {text}  {self._time_left(step)} left",
                highlight=False,
                soft_wrap=True,
            )

    def _time_left(self, step: int) -> str:
        done = step - self._start_step
        spent = time.monotonic() - self._started
        left = int(spent / done * (self._steps - step)) if done else 0
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def _drop_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # a line that a kill cut short
        write_text(self._path, "".join(kept))


def _short(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def progress(items: Sequence[Item], unit: str) -> Iterator[Item]:
    """The items one by one, with a bar, a rate and the time left on a terminal; silent elsewhere.

    Args:
      items: what is to be done.
      unit: what they are, in the plural.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(unit, total=len(items), rate="")
        for done, item in enumerate(items, 1):
            yield item
            rate = done / (time.monotonic() - started)
            bar.update(task, completed=done, rate=f"{rate:,.1f} {unit}/s")
