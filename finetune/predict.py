"""Labels for every example of a file, in its order, with its ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from jax.sharding import Mesh

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file
from clue_jax.model import ClassificationModel
from clue_jax.sharding import check_batch_size, make_mesh, state_shardings
from clue_jax.train_state import compute_dtype
from finetune.data import tokenize
from finetune.evaluate import answers, evaluate
from finetune.model import load_fine_tuned
from finetune.task import Example, Task, read_examples


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
    try:
        data = Path(settings.input).read_bytes()
    except OSError as error:
        raise UserError(f"{settings.input}: cannot read ({error.strerror})") from error
    examples = read_examples(task, data, settings.input, labelled=False)
    seq_len = settings.seq_len or loaded.info["max_seq_length"]
    mesh = make_mesh(settings.mesh)
    check_batch_size(settings.batch_size, mesh)
    predict(
        settings.model, task, examples, Path(settings.output), seq_len, settings.batch_size, mesh,
        settings.dtype,
    )  # fmt: skip
    result = {"output": settings.output, "task": task.name, "rows": len(examples) // task.group}
    print(json.dumps(result, ensure_ascii=False))
    return result


def predict(
    directory: str,
    task: Task,
    examples: Sequence[Example],
    output: Path,
    seq_len: int,
    batch_size: int,
    mesh: Mesh,
    dtype: str | None,
) -> None:
    """Writes the predictions of a model directory.

    Args:
      directory: of a fine-tuned model.
      task: of the examples.
      examples: in the order of the file.
      output: JSON-lines file, an "id" and a "label" each.
      seq_len: T.
      batch_size: B, which the mesh divides.
      mesh: of the devices.
      dtype: of the computation; None for the usual one.
    """
    loaded, _ = load_fine_tuned(directory, task.name, str(output))
    rows = tokenize(examples, loaded.tokenizer, task, seq_len)
    model = ClassificationModel(
        loaded.config.without_dropout(), len(task.labels), compute_dtype(dtype)
    )
    params = {name: loaded.params[name] for name in ("bert", "classifier")}
    params = jax.device_put(params, state_shardings(params, mesh))
    pad_id = loaded.tokenizer.pad_id
    logits, _ = evaluate(model, params, rows, batch_size, seq_len, pad_id, task.kind, mesh)
    predicted = answers(task, examples, logits)
    with atomic_file(output) as file:
        for example, label in zip(examples[:: task.group], predicted, strict=True):
            line = {"id": example.id, "label": label, **task.answer}
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    run_command(main)
