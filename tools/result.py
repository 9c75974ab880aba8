"""The line of JSON that ends a benchmark: its numbers, and all that is needed to get them again."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_result(result: dict[str, Any]) -> None:
    """Prints a result as one line of JSON, with the command, the date and the machine.

    Kept as a file in docs/results/, it is what tools.bench_report makes tables of.
    """
    # The command as it was typed, but for the interpreter's place.
    print(json.dumps(result | about(["python", *sys.orig_argv[1:]])))


def about(command: Sequence[str]) -> dict[str, Any]:
    """How a result came about: its command, and the day, checkout and machine of this process."""
    return {
        "command": shlex.join(command),
        "date": datetime.date.today().isoformat(),
        "revision": _revision(),
        "machine": _machine(),
        "python": platform.python_version(),
    }


def _revision() -> str | None:
    """Of the checkout, "-dirty" if something in it was changed; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> str:
    """Cores that this program may use, and the processor's name where the system tells."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{cores} cores, {name}"
