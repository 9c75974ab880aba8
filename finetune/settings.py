"""The settings of a fine-tuning run: what they mean, what they may be, whose a folder is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from clue_jax import sharding
from clue_jax.convert.loaded import LoadedModel
from clue_jax.errors import UserError
from clue_jax.files import read_object, write_json
from finetune.presets import Recipe, recipe
from finetune.task import Task
from finetune.tasks import TASKS
from finetune.tasks.generic import ending_of, labels_of, make

# Settings that may differ when a run goes on.
CHANGEABLE = ("output", "data_dir", "mesh", "log_every")
# What runs did before there was the setting.
_BEFORE = {"steps_per_call": 1}


@dataclass(frozen=True)
class Settings:
    """Fine-tunes a model on a task and predicts its test set.

    Started again with the same command, a run goes on where it was, and a finished one only prints
    its result. Options left out are those of the task's recipe (finetune/presets.py).
    """

    task: str
    """afqmc, tnews, iflytek, cmnli, ocnli, csl, cluewsc2020, cmrc2018, chid, c3, drcd, cluener,
    msra_ner, xnli, lcqmc, chnsenticorp, copa, or generic for your own files."""
    model: str
    """Published name, model directory, TF-BERT checkpoint or zip."""
    output: str
    """Folder of the run: best/, result.json, metrics.jsonl, tensorboard/, the test prediction."""
    data_dir: str | None = None
    """Folder or zip with the task's files (default: the official zip, downloaded to the cache)."""
    init_from: str | None = None
    """Start from these weights instead, such as OUT/best of another task (a -pair model starts
    from one of CMNLI)."""
    head: Literal["new", "keep"] = "new"
    """new: a new classifier, whatever the model has. keep: its own, if the labels are the same."""
    random_weights: bool = False
    """Take the model's sizes and vocabulary, but random weights."""
    recipe: Literal["default", "original"] = "default"
    """original: length, batch, rate, epochs, schedule, warm-up and second moment of the original's
    script for the task."""
    epochs: float | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """B, examples an update over all devices."""
    learning_rate: float | None = None
    """The largest, at the end of the warm-up."""
    seq_len: int | None = None
    """T, longer texts are cut."""
    eval_every: int | None = None
    """Steps between evaluations on the dev set; 0 evaluates after each epoch."""
    seed: int = 0
    """Of the new head, the order of examples and dropout."""
    limit: int | None = None
    """Use the first so many examples of each set only, shared evenly over its files."""
    version: Literal["1.0", "1.1"] = "1.1"
    """Of the CLUE benchmark: which test file is predicted, and under which name."""
    warmup: float | None = None
    """Share of the steps in which the learning rate rises (default: the recipe's, mostly 0.1)."""
    adam_b2: float | None = None
    """Decay of Adam's second moment (default: the recipe's, mostly 0.999)."""
    schedule: Literal["linear", "original"] | None = None
    """linear: warm-up, then linear to zero. original: the decay counts from step 0 and jumps at
    the end of the warm-up (default: the recipe's)."""
    weight_decay: float = 0.01
    """But for LayerNorm and biases."""
    layer_decay: float = 1.0
    """Learning rate of each layer as a share of that of the layer above it."""
    dropout: float | None = None
    """All dropout rates (default: the model's, 0.1)."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other, to save memory."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0 never stops."""
    buckets: bool = True
    """Batch texts of similar length together; --no-buckets pads everything to T."""
    steps_per_call: int = 1
    """Updates that are compiled into one program, on batches of similar length: for small models,
    whose update takes no longer than starting it. What happens every so many steps happens after
    the last of them."""
    mesh: str | None = None
    """Devices by axis, such as data=8 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""
    text: str = "text"
    """generic: column of the text."""
    text_pair: str | None = None
    """generic: column of the second text of a pair."""
    label: str = "label"
    """generic: column of the label."""
    kind: Literal["single", "multi", "score", "tags"] = "single"
    """generic: one label, several (a list, or separated by commas), a number, or a tag for each
    character (a CoNLL-style file, train.txt)."""
    log_every: int = 50
    """Steps between entries of the log."""


def find_task(settings: Settings) -> tuple[Task, dict[str, Any] | None]:
    """The task, and for a person's own what a model directory keeps of its columns."""
    columns = {
        "text": settings.text, "pair": settings.text_pair, "label": settings.label,
        "kind": settings.kind,
    }  # fmt: skip
    if settings.task != "generic":
        if columns != {"text": "text", "pair": None, "label": "label", "kind": "single"}:
            raise UserError("--text, --text-pair, --label and --kind belong to --task generic")
        if settings.task not in TASKS:
            known = ", ".join([*TASKS, "generic"])
            raise UserError(f"--task {settings.task!r} is unknown; known: {known}")
        task = TASKS[settings.task]
        if not task.train:
            raise UserError(
                f"--task {task.name} has no training set; predict it with ocnli's model"
            )
        return task, None
    if settings.data_dir is None:
        raise UserError("--task generic needs --data-dir, the folder of your files")
    if not Path(settings.data_dir).is_dir():
        is_there = Path(settings.data_dir).exists()
        fault = "not a folder; unpack your files first" if is_there else "no such folder"
        raise UserError(f"{settings.data_dir}: {fault}")
    task = make(ending_of(settings.data_dir), **columns)
    if settings.kind != "score":
        path = Path(settings.data_dir) / task.train
        task = dataclasses.replace(task, labels=labels_of(task, path.read_bytes(), str(path)))
    return task, columns


def filled(settings: Settings, loaded: LoadedModel) -> Recipe:
    """The recipe of the task, with what the command line says instead."""
    base = recipe(settings.task, loaded.config, settings.recipe == "original")
    given = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(settings, field.name) is not None
    }
    plan = dataclasses.replace(base, **given)
    longest = loaded.config.max_position_embeddings
    if settings.seq_len is None and plan.seq_len > longest:
        plan = dataclasses.replace(plan, seq_len=longest)
    return plan


def check(settings: Settings, plan: Recipe, loaded: LoadedModel, mesh: jax.sharding.Mesh) -> None:
    """Refuses numbers that cannot be."""
    longest = loaded.config.max_position_embeddings
    if not 4 <= plan.seq_len <= longest:
        raise UserError(f"--seq-len {plan.seq_len}: the model takes 4..{longest}")
    for name in ("epochs", "learning_rate"):
        if not 0 < getattr(plan, name) < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(plan, name)} must be positive and finite"
            )
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"--seed {settings.seed} must lie in 0..{2**32 - 1}")
    if settings.dropout is not None and not 0 <= settings.dropout < 1:
        raise UserError(f"--dropout {settings.dropout} must lie in [0, 1)")
    if not 0 <= settings.weight_decay < math.inf:
        raise UserError(f"--weight-decay {settings.weight_decay} must be finite, 0 or more")
    if settings.random_weights and (settings.head == "keep" or settings.init_from):
        raise UserError("--random-weights leaves nothing to keep: no --head keep, no --init-from")
    for name, low in (
        ("accumulate", 1), ("log_every", 1), ("steps_per_call", 1), ("patience", 0),
    ):  # fmt: skip
        if getattr(settings, name) < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}")
    if plan.eval_every < 0 or (settings.limit is not None and settings.limit < 1):
        raise UserError("--eval-every must not be negative, and --limit at least 1")
    if not 0 < plan.adam_b2 < 1:
        raise UserError(f"--adam-b2 {plan.adam_b2} must lie between 0 and 1")
    if not 0 <= plan.warmup <= 1 or not 0 < settings.layer_decay <= 1:
        raise UserError("--warmup must lie in 0..1 and --layer-decay in (0, 1]")
    sharding.check_batch_size(plan.batch_size, mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if plan.batch_size % (settings.accumulate * ways):
        raise UserError(
            f"--batch-size {plan.batch_size} is not a multiple of --accumulate "
            f"{settings.accumulate} times {ways} devices"
        )


def claim(output: Path, settings: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Marks the folder as this run's, refuses one of another; says whether it is finished.

    Args:
      output: the folder.
      settings: everything that the run depends on, as JSON has it.
      digests: of the model and the data.
    """
    fixed = _fixed(settings, digests)
    check_claim(output, settings, digests)
    if not (output / "settings.json").exists():
        write_json(output / "settings.json", fixed)
    return (output / "result.json").exists()


def check_claim(output: Path, settings: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """Refuses a folder that `claim` would refuse; writes nothing."""
    path = output / "settings.json"
    if not path.exists():
        if output.exists() and any(output.iterdir()):
            raise UserError(f"{output}: holds something else than a run; choose another --output")
        return
    old = read_object(path)
    for name, value in sorted(_fixed(settings, digests).items()):
        # Another setting that an earlier version did not have is no reason.
        kept = old.get(name, _BEFORE.get(name, value))
        if kept != value:
            raise UserError(
                f"{output}: holds a run with {name} {kept!r}, now {value!r}; choose another "
                "--output or remove the folder"
            )


def _fixed(settings: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """What may not change, as JSON gives it back."""
    fixed = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    return json.loads(json.dumps(fixed | digests))
