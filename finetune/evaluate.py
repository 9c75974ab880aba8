"""Scores of a fine-tuned model on a labelled file, every example once."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from clue_jax import losses, metrics
from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file
from clue_jax.model import ClassificationModel
from clue_jax.sharding import check_batch_size, make_mesh, put_batch, state_shardings
from clue_jax.train_state import compute_dtype
from finetune.data import Rows, buckets, eval_batches, tokenize
from finetune.model import load_fine_tuned
from finetune.task import Example, Task, read_examples

_LENGTHS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Settings:
    """Evaluates a fine-tuned model directory; ends with one line of JSON."""

    model: str
    """Model directory, such as OUT/best of finetune.run."""
    input: str
    """File with labels, in the form of the task's dev file."""
    task: str | None = None
    """Name of the task (default: the model's own; another with the same labels is allowed)."""
    batch_size: int = 64
    """B, rows a step over all devices."""
    seq_len: int | None = None
    """T, longer texts are cut (default: as trained)."""
    mesh: str | None = None
    """Devices, such as data=8 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""
    confusion: str | None = None
    """Picture of the confusion matrix to write (.png or .svg)."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    mesh = make_mesh(settings.mesh)
    check_batch_size(settings.batch_size, mesh)
    loaded, task = load_fine_tuned(settings.model, settings.task, settings.input)
    try:
        data = Path(settings.input).read_bytes()
    except OSError as error:
        raise UserError(f"{settings.input}: cannot read ({error.strerror})") from error
    examples = read_examples(task, data, settings.input, labelled=True)
    seq_len = settings.seq_len or loaded.info["max_seq_length"]
    rows = tokenize(examples, loaded.tokenizer, task, seq_len)
    model = ClassificationModel(
        loaded.config.without_dropout(), len(task.labels), compute_dtype(settings.dtype)
    )
    params = {name: loaded.params[name] for name in ("bert", "classifier")}
    params = jax.device_put(params, state_shardings(params, mesh))
    logits, loss = evaluate(
        model, params, rows, settings.batch_size, seq_len, loaded.tokenizer.pad_id, task.kind, mesh
    )
    result = {"task": task.name, "examples": len(examples) // task.group}
    result |= scores(task, rows, logits) | {"loss": loss} | _by_length(task, rows, logits)
    if settings.confusion:
        if task.kind != "single":
            raise UserError("--confusion needs a task of single labels")
        _draw(task, rows, logits, settings.confusion)
        result["confusion"] = settings.confusion
    print(json.dumps(result, ensure_ascii=False))
    return result


def evaluate(
    model: ClassificationModel,
    params: Any,
    rows: Rows,
    batch_size: int,
    seq_len: int,
    pad_id: int,
    kind: str,
    mesh: Mesh,
) -> tuple[np.ndarray, float]:
    """Logits of all rows in their order, float32 [n, C], and the mean loss."""
    logits = np.zeros((len(rows), model.classes), np.float32)
    loss = 0.0
    for chosen, batch in eval_batches(rows, batch_size, buckets(seq_len), pad_id):
        some, sums = eval_step(params, put_batch(batch, mesh), model=model, kind=kind)
        logits[chosen] = np.asarray(some)[: len(chosen)]
        loss += float(sums["loss_sum"])
    return logits, loss / max(1, len(rows))


def eval_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """A batch for evaluation: at least 64 rows, divided by the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-max(64, batch_size) // ways) * ways


@functools.partial(jax.jit, static_argnames=("model", "kind"))
def eval_step(
    params: Any, batch: Any, *, model: ClassificationModel, kind: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits [B, C] of a batch, dropout off, and the sums of its loss."""
    logits = model.apply(
        {"params": params}, batch["input_ids"], batch["input_mask"], batch["segment_ids"]
    )
    return logits, losses.classification(kind, logits, batch["labels"], batch["weights"])


def scores(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, float]:
    """What a task is judged by, and more; the first of `metric_name` decides."""
    if task.kind == "score":
        return metrics.regression(rows.labels, logits[:, 0])
    if task.kind == "multi":
        return metrics.multi_label(rows.labels > 0, logits > 0)
    matrix = metrics.confusion(*grouped(task, rows.labels, logits), len(task.labels))
    return metrics.classification(matrix)


def metric_name(task: Task) -> str:
    """The score that chooses the best checkpoint."""
    return {"single": "accuracy", "multi": "micro_f1", "score": "spearman"}[task.kind]


def grouped(task: Task, labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes; where a record is several examples, one of each a record.

    Of a group, the answer is the member with the largest probability of the last class, the first
    of equals.
    """
    if task.group == 1:
        return labels, logits.argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    likely = np.exp(shifted[:, -1]) / np.exp(shifted).sum(axis=1)
    return (
        labels.reshape(-1, task.group).argmax(axis=1),
        likely.reshape(-1, task.group).argmax(axis=1),
    )


def _by_length(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, Any]:
    """Accuracy by number of tokens, for tasks of single labels."""
    if task.kind != "single" or task.group > 1:
        return {}
    lengths = np.array([len(row) for row in rows.ids])
    right = logits.argmax(axis=1) == rows.labels
    parts = {}
    for low, high in zip((0, *_LENGTHS), _LENGTHS, strict=False):
        inside = (lengths > low) & (lengths <= high)
        if inside.any():
            parts[f"{low + 1}-{high}"] = {
                "examples": int(inside.sum()),
                "accuracy": float(right[inside].mean()),
            }
    return {"by_length": parts}


def _draw(task: Task, rows: Rows, logits: np.ndarray, path: str) -> None:
    """The confusion matrix as a picture, shares of each true class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matrix = metrics.confusion(*grouped(task, rows.labels, logits), len(task.labels))
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    size = max(4.0, min(16.0, 0.45 * len(task.labels)))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class")
    if len(task.labels) <= 30:
        names: Sequence[str] = task.labels
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=7, color=colour)
    axis.set(xlabel="predicted", ylabel="true", title=task.name)
    ending = Path(path).suffix.removeprefix(".") or "png"
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format=ending, dpi=110)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    finally:
        plt.close(figure)


def answers(task: Task, examples: Sequence[Example], logits: np.ndarray) -> list[Any]:
    """The predicted label of each record, as the submission wants it."""
    if task.kind == "score":
        return [float(score) for score in logits[:, 0]]
    if task.kind == "multi":
        return [[task.labels[i] for i in np.flatnonzero(row > 0)] for row in logits]
    _, chosen = grouped(task, np.zeros(len(examples), np.int64), logits)
    return [task.labels[i] for i in chosen]


if __name__ == "__main__":
    run_command(main)
