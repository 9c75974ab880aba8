"""The models of fine-tuning: where they start, and how a finished one is read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from clue_jax import sharding, zoo
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.errors import UserError
from clue_jax.model import ClassificationModel
from clue_jax.train_state import TrainState
from finetune.task import Task
from finetune.tasks import TASKS
from finetune.tasks.generic import ENDINGS, make


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
      head: "new" leaves the model's classifier behind; "keep" takes it, if its labels are the
        task's in the same order.

    Raises:
      UserError: if the classifier shall be kept and does not fit.
    """
    params = {"bert": loaded.params["bert"]}
    if head == "keep":
        labels = tuple(loaded.info.get("labels") or ())
        if "classifier" not in loaded.params:
            raise UserError(f"{loaded.path}: has no classifier to keep; --head new starts one")
        if labels != task.labels:
            raise UserError(
                f"{loaded.path}: its classifier has the labels {', '.join(labels) or 'unknown'}, "
                f"{task.name} has {', '.join(task.labels)}; --head new starts another"
            )
        params["classifier"] = loaded.params["classifier"]
    return params


def load_fine_tuned(
    directory: str, task_name: str | None, input_file: str
) -> tuple[LoadedModel, Task]:
    """A fine-tuned model directory and its task.

    Args:
      directory: with a classifier and labels.
      task_name: None takes the model's own.
      input_file: of a person's own task, whose ending says its form.

    Raises:
      UserError: if the model has no classifier, or it is not one for the task.
    """
    loaded = load_start(directory)
    if "classifier" not in loaded.params:
        raise UserError(f"{directory}: has no classifier; finetune.run makes one")
    labels = tuple(loaded.info["labels"])
    name = task_name or loaded.info["task"]
    if name == "generic":
        return loaded, own_task(loaded.info.get("input") or {}, labels, input_file)
    if name not in TASKS:
        known = ", ".join([*TASKS, "generic"])
        raise UserError(f"{directory}: is of task {name!r}; known: {known}; --task names one")
    task = TASKS[name]
    if labels != task.labels:
        raise UserError(
            f"{directory}: is a model of {loaded.info['task']} with {len(labels)} labels "
            f"({', '.join(labels[:5])}..), not of {name} with {len(task.labels)} "
            f"({', '.join(task.labels[:5])}..)"
        )
    return loaded, task


def own_task(columns: Mapping[str, Any], labels: tuple[str, ...], file: str) -> Task:
    """A person's own task, out of what the model directory keeps of its columns."""
    ending = Path(file).suffix.removeprefix(".")
    return make(ending if ending in ENDINGS else "jsonl", **columns, labels=labels)


def random_params(model: ClassificationModel, key: jax.Array) -> Any:
    """Initial weights, as the original draws them."""
    ids = jnp.zeros((1, 8), jnp.int32)
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
