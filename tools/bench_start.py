"""How long a training command takes to its first update, with and without kept programs.

The command is started in processes of its own and stopped after the first line of its log. Cold
means an empty folder of compiled programs, warm the same folder once more.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from clue_jax.errors import UserError, run_command
from tools.result import print_result


@dataclass(frozen=True)
class Settings:
    """Times COMMAND to its first update; ends with one line of JSON."""

    command: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to time, behind --: python -m finetune.run or pretraining.run with its options, but
    without --output and --log-every."""
    runs: int = 3
    """Of each, cold and warm."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    if settings.command[:2] != ("python", "-m") or settings.runs < 1:
        raise UserError("say what to time behind --, such as python -m finetune.run ...")
    cold, warm = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.runs):
            cache = Path(folder) / f"programs{number}"
            for seconds, name in ((cold, "cold"), (warm, "warm")):
                output = Path(folder) / f"{name}{number}"
                seconds.append(round(_first_update(settings.command, output, cache), 2))
    result = {
        "benchmark": "start",
        "module": settings.command[2],
        "cold_seconds": cold,
        "warm_seconds": warm,
        "cold_median": statistics.median(cold),
        "warm_median": statistics.median(warm),
        "jax": importlib.metadata.version("jax"),
    }
    print_result(result)
    return result


def _first_update(command: Sequence[str], output: Path, cache: Path) -> float:
    """Seconds from the start of a process to the first line of its log.

    Raises:
      UserError: if it ends before.
    """
    words = [sys.executable, *command[1:], "--output", str(output), "--log-every", "1"]
    given = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    given["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    started = time.perf_counter()
    said: list[str] = []
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=given
    ) as process:
        for line in process.stderr:
            if re.match(r"step \d+/", line):
                seconds = time.perf_counter() - started
                process.send_signal(signal.SIGKILL)
                process.stderr.read()
                return seconds
            said.append(line)
    raise UserError(f"{' '.join(command)}: no first update: {''.join(said[-3:]).strip()}")


if __name__ == "__main__":
    run_command(main)
