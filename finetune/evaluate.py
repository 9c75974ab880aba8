"""Scores of a fine-tuned model on a labelled file, every example once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from clue_jax import losses
from clue_jax.convert.loaded import LoadedModel
from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, json_text
from clue_jax.model.layers import MASK_BIAS
from clue_jax.sharding import check_batch_size, make_mesh, put_batch, state_shardings
from clue_jax.train_state import compute_dtype
from finetune.data import read_file
from finetune.forms import FORMS, Logits
from finetune.forms.labels import confusion
from finetune.model import (
    TaskModel,
    build_model,
    head_of,
    length_of,
    load_fine_tuned,
    normalizer_of,
)
from finetune.rows import Rows, buckets, eval_batches
from finetune.task import Task


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
    examples = read_file(task, settings.input, labelled=True)
    seq_len = length_of(loaded, settings.seq_len)
    normalize = normalizer_of(task, loaded)
    rows = FORMS[task.kind].rows(examples, task, loaded.tokenizer, normalize, seq_len)
    logits, loss = evaluate_directory(
        loaded, task, rows, settings.batch_size, seq_len, mesh, settings.dtype
    )
    form = FORMS[task.kind]
    result = {"task": task.name, "examples": len(examples) // task.group}
    result |= form.scores(task, rows, logits) | {"loss": loss} | form.details(task, rows, logits)
    if settings.confusion:
        if task.kind != "single":
            raise UserError("--confusion needs a task of single labels")
        _draw(task, rows, logits, settings.confusion)
        result["confusion"] = settings.confusion
    print(json_text(result))
    return result


def evaluate_directory(
    loaded: LoadedModel,
    task: Task,
    rows: Rows,
    batch_size: int,
    seq_len: int,
    mesh: Mesh,
    dtype: str | None,
) -> tuple[Logits, float]:
    """Logits and mean loss of a fine-tuned model; see `evaluate`."""
    model = build_model(task, loaded.config.without_dropout(), compute_dtype(dtype))
    params = {name: loaded.params[name] for name in ("bert", head_of(task))}
    params = jax.device_put(params, state_shardings(params, mesh))
    pad_id = loaded.tokenizer.pad_id
    return evaluate(model, params, rows, batch_size, seq_len, pad_id, task.kind, mesh)


def evaluate(
    model: TaskModel,
    params: Any,
    rows: Rows,
    batch_size: int,
    seq_len: int,
    pad_id: int,
    kind: str,
    mesh: Mesh,
) -> tuple[Logits, float]:
    """Logits of all units in their order, and the mean loss.

    Returns:
      float32 [n, C]; where logits are as long as the row, an array for each unit: [2, T] for spans,
      [T, C] for tags, T its own length.
    """
    logits: list[Any] = [None] * len(rows)
    loss = weight = 0.0
    for chosen, batch in eval_batches(rows, batch_size, buckets(seq_len), pad_id):
        some, sums = eval_step(params, put_batch(batch, mesh), model=model, kind=kind)
        store(logits, rows, chosen, np.asarray(some), kind)
        loss += float(sums["loss_sum"])
        weight += float(sums["weight_sum"])
    return together(logits, kind), loss / max(1.0, weight)


def store(logits: list[Any], rows: Rows, chosen: np.ndarray, some: np.ndarray, kind: str) -> None:
    """Puts the logits of a batch in the places of its units, without padding."""
    for i, array in zip(chosen, some, strict=False):
        length = rows.lengths[i]
        if kind == "spans":
            array = array[:, :length].copy()
        elif kind == "tags":
            array = array[:length].copy()
        logits[i] = array


def together(logits: list[Any], kind: str) -> Logits:
    """The logits of all units as one array, where they are equally long."""
    if FORMS[kind].per_token:
        return logits
    return np.stack(logits) if logits else np.zeros((0, 1), np.float32)


def is_blind(logits: Logits, kind: str) -> bool:
    """Whether a model answers the same whatever it reads, as one that training has undone does.

    No output of such a model varies by more than 0.01 nats (standard deviation) over all units, and
    over all positions where each has its own.
    """
    if kind == "choice":
        outputs = np.reshape(logits, (-1, 1))
    elif kind == "spans":
        outputs = np.concatenate(logits, axis=1).T
    else:
        outputs = np.concatenate(logits) if kind == "tags" else np.asarray(logits)
    if len(outputs) < 2 or not np.isfinite(outputs).all():
        return False
    deviations = [x[x > MASK_BIAS / 2].std() for x in outputs.T]  # what is masked is no output
    return max(deviations) < 0.01


def eval_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """A batch for evaluation: at least 64 rows, divided by the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-max(64, batch_size) // ways) * ways


@functools.partial(jax.jit, static_argnames=("model", "kind"))
def eval_step(
    params: Any, batch: Any, *, model: TaskModel, kind: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of a batch, dropout off, and the sums of its loss."""
    logits = model.apply(
        {"params": params}, batch["input_ids"], batch["input_mask"], batch["segment_ids"]
    )
    return logits, losses.task_loss(kind, logits, batch["labels"], batch["weights"])


def _draw(task: Task, rows: Rows, logits: np.ndarray, path: str) -> None:
    """The confusion matrix as a picture, shares of each true class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matrix = confusion(task, rows, logits)
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


if __name__ == "__main__":
    run_command(main)
