"""Runs a command and keeps the line of JSON that it ends with as a result of docs/results/."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import write_json
from tools.plot_metrics import read_metrics
from tools.result import about

_HELD_OUT = ("held_out/", "dev/")  # before the names of what is no training


@dataclass(frozen=True)
class Settings:
    """Runs COMMAND and keeps its result, with its seconds, its memory and the machine."""

    command: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to run, behind --: python -m MODULE OPTIONS; it ends with one line of JSON."""
    output: str
    """File to write, such as docs/results/finetune_tnews.json."""
    curve: str | None = None
    """Folder of the run that the command makes: what it measured on held-out data, by step, is
    kept as "curve"."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    if not settings.command:
        raise UserError("say what to run behind --: python -m tools.record --output FILE -- ...")
    started = time.monotonic()
    ran = " ".join(settings.command)
    if not Path(settings.output).parent.is_dir():
        raise UserError(f"{settings.output}: its folder is not there")
    # Asked before: what is changed meanwhile is not what ran.
    how = about(settings.command) | {"jax": importlib.metadata.version("jax")}
    line = _last_line(settings.command)
    seconds = time.monotonic() - started
    try:
        result = json.loads(line)
    except ValueError as error:
        raise UserError(f"{ran}: does not end with a line of JSON but with {line!r}") from error
    if not isinstance(result, dict):
        raise UserError(f"{ran}: does not end with an object of JSON but with {line}")
    # Of the largest process among those that ran; macOS counts bytes, Linux KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    kept = result | {"command_seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}
    write_json(settings.output, kept | how)
    if settings.curve:
        kept["curve"] = held_out(Path(settings.curve))
        write_json(settings.output, kept | how)
    print(json.dumps({"output": settings.output, "command_seconds": kept["command_seconds"]}))
    return kept | how


def _last_line(command: Sequence[str]) -> str:
    """The last line that a command prints; all of them are shown."""
    words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
    last = ""
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line if line.strip() else last
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be run ({error.strerror})") from error
    if process.returncode:
        raise UserError(f"{' '.join(command)}: ended with status {process.returncode}")
    return last.strip()


def held_out(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run by step, their names without what says that they are held out."""
    found = []
    for entry in read_metrics(run):
        named = {
            name.removeprefix(prefix): value
            for prefix in _HELD_OUT
            for name, value in entry.items()
            if name.startswith(prefix)
        }
        if named:
            found.append({"step": entry["step"], **named})
    if not found:
        raise UserError(f"{run}: a run without evaluations has no curve")
    return found


if __name__ == "__main__":
    run_command(main)
