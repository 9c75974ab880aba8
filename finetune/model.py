"""The models of fine-tuning: where they start, and how a finished one is read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from clue_jax import sharding, zoo
from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.errors import UserError
from clue_jax.model import ChoiceModel, ClassificationModel, SpanModel, TagModel
from clue_jax.text.normalize import normalizer
from clue_jax.train_state import TrainState
from finetune.task import Task
from finetune.tasks import TASKS
from finetune.tasks.generic import ENDINGS, make

TaskModel = ClassificationModel | ChoiceModel | SpanModel | TagModel


def load_start(name: str) -> LoadedModel:
    """The model to start from: a published name, or anything that can be converted.

    Raises:
      UserError: if it has no vocabulary.
    """
    is_published = zoo.find_model(name) and not Path(name).exists()
    loaded = zoo.load(name) if is_published else zoo.read(name)
    if loaded.tokenizer is None:
        raise UserError(f"{name}: has no vocabulary; convert it with --vocab first")
    return loaded


def starting_params(
    loaded: LoadedModel, task: Task, head: Literal["new", "keep"]
) -> dict[str, Any]:
    """The parameters that are taken over; what is missing starts at random.

    Args:
      loaded: the model.
      task: what it shall learn.
      head: "new" leaves the model's head behind; "keep" takes it, if its labels are the task's in
        the same order.

    Raises:
      UserError: if the classifier shall be kept and does not fit.
    """
    params = {"bert": loaded.params["bert"]}
    if head == "keep":
        name, labels = head_of(task), tuple(loaded.info.get("labels") or ())
        if name not in loaded.params:
            raise UserError(f"{loaded.path}: has no {name} to keep; --head new starts one")
        if not fits(loaded, task):
            raise UserError(
                f"{loaded.path}: its {name} has the labels {', '.join(labels) or 'unknown'}, "
                f"{task.name} has {', '.join(task.labels) or 'none'}; --head new starts another"
            )
        params[name] = loaded.params[name]
    return params


def head_of(task: Task) -> str:
    """The name of the head's parameters."""
    return "span" if task.kind == "spans" else "classifier"


def fits(loaded: LoadedModel, task: Task) -> bool:
    """Whether a model's head gives what a task needs: its labels in their order, or one number for
    each choice; starts and ends always fit."""
    if task.kind == "choice":
        known = loaded.config.extra.get("architectures") or [architecture(task)]
        is_right = loaded.info.get("architecture", known[0]) == architecture(task)
        return is_right and loaded.params["classifier"]["bias"].shape == (1,)
    return task.kind == "spans" or tuple(loaded.info.get("labels") or ()) == task.labels


def architecture(task: Task) -> str:
    """The transformers class that loads a model of this task."""
    classes = {
        "spans": "BertForQuestionAnswering",
        "choice": "BertForMultipleChoice",
        "tags": "BertForTokenClassification",
    }
    return classes.get(task.kind, "BertForSequenceClassification")


def saved_config(config: ModelConfig, task: Task) -> ModelConfig:
    """The config that a model of this task is saved with: it names the `problem_type`, by which
    transformers chooses between a softmax, sigmoids and the plain number."""
    names = {
        "single": "single_label_classification",
        "multi": "multi_label_classification",
        "score": "regression",
    }
    extra = {k: v for k, v in config.extra.items() if k != "problem_type"}
    if task.kind in names:
        extra["problem_type"] = names[task.kind]
    return config.replace(extra=extra)


def load_fine_tuned(
    directory: str, task_name: str | None, input_file: str
) -> tuple[LoadedModel, Task]:
    """A fine-tuned model directory and its task.

    Args:
      directory: with a head, and labels where it needs them.
      task_name: None takes the model's own.
      input_file: of a person's own task, whose ending says its form.

    Raises:
      UserError: if the model has no head, or it is not one for the task.
    """
    loaded = load_start(directory)
    if not {"classifier", "span"} & set(loaded.params):
        raise UserError(f"{directory}: has no head for a task; finetune.run makes one")
    labels = tuple(loaded.info["labels"])
    own_name = loaded.info.get("task")
    name = task_name or own_name
    if name is None:
        raise UserError(f"{directory}: does not say what task it was trained on; --task names one")
    if name == "generic":
        if not loaded.info.get("input"):
            raise UserError(f"{directory}: was not made by --task generic; its columns are unknown")
        task = own_task(loaded.info["input"], labels, input_file)
    elif name in TASKS:
        task = TASKS[name]
    else:
        known = ", ".join([*TASKS, "generic"])
        raise UserError(f"{directory}: is of task {name!r}; known: {known}; --task names one")
    if head_of(task) not in loaded.params:
        raise UserError(
            f"{directory}: is a model of {own_name or 'an unknown task'}, without the "
            f"{head_of(task)} head of {name}"
        )
    if not fits(loaded, task):
        raise UserError(
            f"{directory}: is a model of {own_name or 'an unknown task'} with {_shown(labels)}, "
            f"not of {name} with {_shown(task.labels)}"
        )
    return loaded, task


def _shown(labels: tuple[str, ...]) -> str:
    some = ", ".join(labels[:5]) + (", .." if len(labels) > 5 else "")
    return f"{len(labels)} labels ({some})" if labels else "no labels"


def length_of(loaded: LoadedModel, seq_len: int | None) -> int:
    """T for a fine-tuned model: as given, as trained, or the longest that it takes.

    Raises:
      UserError: if the model cannot take it.
    """
    longest = loaded.config.max_position_embeddings
    length = loaded.info.get("max_seq_length") or longest if seq_len is None else seq_len
    if not 4 <= length <= longest:
        raise UserError(f"--seq-len {length}: the model takes 4..{longest}")
    return length


def normalizer_of(task: Task, loaded: LoadedModel) -> Callable[[str], str]:
    """What is done to a text before it is tokenized, for this model and this task."""
    return normalizer("t2s" if task.simplify else loaded.info.get("normalization", "none"))


def own_task(columns: Mapping[str, Any], labels: tuple[str, ...], file: str) -> Task:
    """A person's own task, out of what the model directory keeps of its columns."""
    ending = Path(file).suffix.removeprefix(".")
    return make(ending if ending in ENDINGS else "jsonl", **columns, labels=labels)


def build_model(task: Task, config: ModelConfig, dtype: jnp.dtype) -> TaskModel:
    """The encoder with the head that the task's form needs."""
    if task.kind == "spans":
        return SpanModel(config, dtype)
    if task.kind == "choice":
        return ChoiceModel(config, dtype)
    if task.kind == "tags":
        return TagModel(config, len(task.labels), dtype)
    return ClassificationModel(config, len(task.labels), dtype)


def random_params(model: TaskModel, key: jax.Array) -> Any:
    """Initial weights, as the original draws them."""
    ids = jnp.zeros((1, 2, 8) if isinstance(model, ChoiceModel) else (1, 8), jnp.int32)
    return model.init(key, ids, ids, ids)["params"]


def overlay(drawn: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are given; the others as drawn. All float32."""
    taken = merge.flatten(given)
    params = {path: taken.get(path, array) for path, array in merge.flatten(drawn).items()}
    return merge.nest({path: array.astype(np.float32) for path, array in params.items()})


def with_params(state: TrainState, given: dict[str, Any], mesh: jax.sharding.Mesh) -> TrainState:
    """A state with the parameters that are given; the others keep their random values."""
    params = overlay(state.params, given)
    params = jax.device_put(params, sharding.state_shardings(params, mesh))
    return dataclasses.replace(state, params=params)
