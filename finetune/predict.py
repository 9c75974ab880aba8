"""Labels for every example of a file, in its order, with its ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from jax.sharding import Mesh

from clue_jax.errors import run_command
from clue_jax.files import atomic_file, json_text, write_json
from clue_jax.sharding import check_batch_size, make_mesh
from finetune.data import read_file
from finetune.evaluate import evaluate_directory
from finetune.forms import FORMS
from finetune.model import length_of, load_fine_tuned, normalizer_of
from finetune.task import Task


@dataclass(frozen=True)
class Settings:
    """Predicts a file with a fine-tuned model; the output is what CLUE's site wants."""

    model: str
    """Model directory, such as OUT/best of finetune.run."""
    input: str
    """File in the form of the task's test file; labels in it are not read."""
    output: str
    """File to write, a JSON object a line, such as tnews11_predict.json."""
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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    loaded, task = load_fine_tuned(settings.model, settings.task, settings.input)
    examples = read_file(task, settings.input, labelled=False)
    seq_len = length_of(loaded, settings.seq_len)
    mesh = make_mesh(settings.mesh)
    check_batch_size(settings.batch_size, mesh)
    count = predict(
        settings.model, task, examples, settings.output, seq_len, settings.batch_size, mesh,
        settings.dtype,
    )  # fmt: skip
    result = {"output": settings.output, "task": task.name, "rows": count}
    print(json_text(result))
    return result


def predict(
    directory: str,
    task: Task,
    examples: Sequence[Any],
    output: str | os.PathLike,
    seq_len: int,
    batch_size: int,
    mesh: Mesh,
    dtype: str | None,
) -> int:
    """Writes the predictions of a model directory in the form of the task's submission.

    Args:
      directory: of a fine-tuned model.
      task: of the examples.
      examples: in the order of the file.
      output: the file; JSON lines with an "id" and a "label" each, or one JSON object of ids and
        answers.
      seq_len: T.
      batch_size: B, which the mesh divides.
      mesh: of the devices.
      dtype: of the computation; None for the usual one.

    Returns:
      How many answers there are.
    """
    loaded, _ = load_fine_tuned(directory, task.name, str(output))
    form = FORMS[task.kind]
    rows = form.rows(examples, task, loaded.tokenizer, normalizer_of(task, loaded), seq_len)
    logits, _ = evaluate_directory(loaded, task, rows, batch_size, seq_len, mesh, dtype)
    answers = form.answers(task, rows, logits)
    if task.container == "mapping":
        write_json(output, dict(answers))
        return len(answers)
    with atomic_file(output) as file:
        for name, answer in answers:
            line = {"id": name, "label": answer, **task.answer}
            file.write((json_text(line) + "\n").encode())
    return len(answers)


if __name__ == "__main__":
    run_command(main)
