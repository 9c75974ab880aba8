"""Time and memory of a conversion, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from clue_jax.config import PRESETS
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.merge import nest
from clue_jax.convert.names import shapes
from clue_jax.convert.target import write
from clue_jax.errors import UserError, run_command
from tools.result import print_result

_HEAVY = ("jax", "tensorflow", "torch", "transformers", "orbax")


@dataclass(frozen=True)
class Settings:
    """Converts a preset's model with random weights both ways; ends with one line of JSON."""

    preset: Literal["tiny", "tiny3l312", "tiny3l768", "base", "large"] = "large"
    """Size of the model, both pretraining heads included."""
    runs: int = 3
    """Conversions each way; the median is given."""
    dtype: Literal["bfloat16", "float16"] | None = None
    """Round the numbers on the way; the files on the way back are then not those before."""
    work: str | None = None
    """Folder for the files, which are removed again (default: the system's)."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    config = PRESETS[settings.preset]
    random = np.random.default_rng(0)
    params = nest(
        {path: random.random(shape, np.float32) for path, shape in shapes(config).items()}
    )
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        place = Path(folder)
        write(LoadedModel(config, params, None, {}, "random numbers"), place / "tf", "tf")
        del params
        size = (place / "tf" / "bert_model.ckpt.data-00000-of-00001").stat().st_size
        to_model, to_tf = [], []
        for i in range(settings.runs):
            options = ["--dtype", settings.dtype] if settings.dtype else []
            to_model.append(_convert(place / "tf", place / f"model{i}", "model", options))
            options = ["--dtype", "float32"] if settings.dtype else []
            to_tf.append(_convert(place / f"model{i}", place / f"tf{i}", "tf", options))
            if settings.dtype:
                continue
            for name in ("index", "data-00000-of-00001"):
                same = subprocess.run(
                    ["cmp", place / f"tf/bert_model.ckpt.{name}",
                     place / f"tf{i}/bert_model.ckpt.{name}"], check=False,
                )  # fmt: skip
                if same.returncode:
                    raise UserError(f"bert_model.ckpt.{name} is not the one converted")
    result = {
        "benchmark": "convert",
        "preset": settings.preset,
        "weights_mb": round(size / 1e6, 1),
        "to_model": _summary(to_model),
        "to_tf": _summary(to_tf),
        "memory_limit_mb": round(1.3 * size / 1e6 + 300, 1),
        "dtype": settings.dtype or "float32",
        "round_trip_equal": None if settings.dtype else True,
    }
    print_result(result)
    return result


def _convert(source: Path, target: Path, form: str, options: list[str]) -> dict[str, Any]:
    """Runs tools.convert in a process of its own and measures it from within."""
    code = (
        "import json, sys; from tools import convert; convert.main(sys.argv[1:]);"
        # Not getrusage: its peak may be that of the process which started this one.
        "status = open('/proc/self/status').read();"
        "print(json.dumps({'peak_kb': int(status.split('VmHWM:')[1].split()[0]),"
        f"'loaded': [m for m in {_HEAVY!r} if m in sys.modules]}}))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target), "--to", form, *options],
        cwd=Path(__file__).parent.parent, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    if done.returncode:
        raise UserError(f"the conversion failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": [round(run["seconds"], 2) for run in runs],
        "median_seconds": round(float(np.median([run["seconds"] for run in runs])), 2),
        "peak_mb": round(max(run["peak_kb"] for run in runs) * 1024 / 1e6, 1),
        "heavy_packages_loaded": sorted({name for run in runs for name in run["loaded"]}),
    }


if __name__ == "__main__":
    run_command(main)
