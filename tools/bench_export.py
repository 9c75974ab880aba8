"""Exported models on the dev set of a task: accuracy, difference, speed and size of each."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.features.sequences import pad_rows
from clue_jax.prediction.programs import Row, plan
from clue_jax.predictor import Predictor
from finetune.data import read_split
from finetune.tasks import TASKS
from tools import export
from tools.result import print_result

_NAMES = ("input_ids", "attention_mask", "token_type_ids")
Run = Callable[[tuple[np.ndarray, ...]], np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Compares the forms that tools.export writes on real examples; ends with one line of JSON."""

    model: str
    """Model directory of a classifier, fine-tuned on a task of CLUE."""
    data_dir: str
    """Folder or zip with the task's files."""
    limit: int | None = None
    """Examples of the dev set (default: all)."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    predictor = Predictor(settings.model)
    task = TASKS.get(predictor.model.info.get("task", ""))
    if task is None or task.kind != "single":
        raise UserError(f"{settings.model}: was not fine-tuned on a task of single labels")
    examples = read_split(task, settings.data_dir, "dev", limit=settings.limit) or []
    inputs = [{"text": x.text_a, "text_pair": x.text_b or None} for x in examples]
    labels = np.array([predictor.labels.index(x.label) for x in examples])
    items = predictor.prepare(inputs, "classification")
    rows = [item.rows[0] for item in items]
    list(predictor.compile())
    started = time.perf_counter()
    ours = np.array([output[0] for output in predictor.compute(items, "classification")])
    told = [_row("jax", ours, ours, labels, time.perf_counter() - started, _size(settings.model))]
    for form in ("onnx", "onnx-int8", "savedmodel", "stablehlo"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out"
            export.main(["--model", settings.model, "--to", form, "--output", str(path)])
            run = _RUNTIMES[form](path)
            _logits(run, rows[:64], predictor)  # warms up
            started = time.perf_counter()
            found = _logits(run, rows, predictor)
            seconds = time.perf_counter() - started
            told.append(_row(form, found, ours, labels, seconds, _size(path)))
    result = {
        "benchmark": "export",
        "task": task.name,
        "examples": len(labels),
        "rows": told,
        "jax": jax.__version__,
    }
    print_result(result)
    return result


def _row(
    runtime: str, found: np.ndarray, ours: np.ndarray, labels: np.ndarray, seconds: float,
    megabytes: float,
) -> dict[str, Any]:  # fmt: skip
    return {
        "runtime": runtime,
        "megabytes": megabytes,
        "largest_difference": float(np.abs(found - ours).max()),
        "accuracy": float((found.argmax(axis=1) == labels).mean()),
        "texts_per_second": round(len(labels) / seconds, 1),
    }


def _size(folder: str | Path) -> float:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return round(sum(path.stat().st_size for path in files) / 1e6, 2)


def _logits(run: Run, rows: list[Row], predictor: Predictor) -> np.ndarray:
    """In the batches in which the predictor computes them."""
    found = np.zeros((len(rows), len(predictor.labels)), np.float32)
    longest = predictor.longest("classification")
    for batch in plan([len(row.ids) for row in rows], longest):
        some = [(rows[i].ids, rows[i].segments) for i in batch.rows]
        padded = pad_rows(some, batch.length, predictor.tokenizer.pad_id, batch.size)
        found[batch.rows] = run(tuple(padded))[: len(some)]
    return found


def _onnx(folder: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda arrays: session.run(
        None, {n: a.astype(np.int64) for n, a in zip(_NAMES, arrays, strict=True)}
    )[0]


def _tensorflow(folder: Path) -> Run:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return lambda arrays: serve(**{n: tf.constant(a) for n, a in zip(_NAMES, arrays, strict=True)})[
        "logits"
    ].numpy()


def _program(folder: Path) -> Run:
    from clue_jax.export import stablehlo

    function = stablehlo.read(folder)
    return lambda arrays: np.asarray(function(*arrays)["logits"])


_RUNTIMES = {
    "onnx": _onnx, "onnx-int8": _onnx, "savedmodel": _tensorflow, "stablehlo": _program,
}  # fmt: skip


if __name__ == "__main__":
    run_command(main)
