"""Brings published models and the data of CLUE's tasks to this machine, resumed and verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from clue_jax import zoo
from clue_jax.errors import UserError, run_command
from clue_jax.fetch import join
from finetune.data import ADDRESS, download, is_published
from finetune.tasks import TASKS


@dataclass(frozen=True)
class ModelSettings:
    """Downloads one of the six published models, unless it is there.

    A cut download goes on where it ended. Every file is compared with the SHA-256 that its first
    download left in downloads.json in the cache folder (CLUE_JAX_HOME moves it), also when it comes
    from a mirror. Proxies are those of the environment; HF_ENDPOINT names another address of the
    Hugging Face hub.
    """

    name: tyro.conf.Positional[str]
    """Such as RoBERTa-tiny-clue, or its id on the hub."""
    source: Literal["tf", "hf"] = "tf"
    """tf: the original's zip. hf: the files on the Hugging Face hub."""
    output: str | None = None
    """Folder for the files (default: models/NAME-SOURCE in the cache folder)."""
    mirror: str | None = None
    """Folder or URL that holds NAME.zip, or the hub's files."""


@dataclass(frozen=True)
class TaskSettings:
    """Downloads the official zip of a task, or of all, unless it is there.

    finetune.run and finetune.clue find the zips in the cache by themselves; with --output, name the
    folder to them with --data-dir or --data-root. Resumed and verified as the models are.
    """

    name: tyro.conf.Positional[str]
    """Such as tnews, or all."""
    output: str | None = None
    """Folder for the zips (default: tasks in the cache folder)."""
    mirror: str | None = None
    """Folder or URL that holds NAME_public.zip."""


@dataclass(frozen=True)
class ListSettings:
    """Lists the models and tasks that are known, with their addresses."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.extras.subcommand_cli_from_dict(
        {"model": ModelSettings, "task": TaskSettings, "list": ListSettings},
        args=argv,
        description="Downloads published models and the data of CLUE's tasks.",
    )
    if isinstance(settings, ModelSettings):
        result = _model(settings)
    elif isinstance(settings, TaskSettings):
        result = _tasks(settings)
    else:
        result = _list()
    print(json.dumps(result, ensure_ascii=False))
    return result


def _model(settings: ModelSettings) -> dict[str, Any]:
    folder, record = zoo.download(settings.name, settings.source, settings.output, settings.mirror)
    return {"output": str(folder), **record}


def _tasks(settings: TaskSettings) -> dict[str, Any]:
    names = published_tasks() if settings.name == "all" else [settings.name]
    if names[0] not in TASKS:
        raise UserError(f"unknown task {names[0]!r}; known: all, {', '.join(published_tasks())}")
    records, failed = [], []
    for name in names:
        try:
            records.append(download(TASKS[name], settings.output, settings.mirror)[1])
        except UserError as error:
            if len(names) == 1:
                raise
            failed.append(f"{name}: {error}")  # the others are worth having
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} tasks failed: {'; '.join(failed)}")
    return records[0] if len(names) == 1 else {"tasks": records}


def _list() -> dict[str, Any]:
    models = {
        name: {
            "tf": model.tf_address,
            "hf": model.hf_id,
            "layers": model.config.num_hidden_layers,
            "hidden": model.config.hidden_size,
            "parameters": model.parameters,
            "vocabulary_rows": model.rows,
        }
        for name, model in zoo.ZOO.items()
    }
    tasks = {name: join(ADDRESS, TASKS[name].archive) for name in published_tasks()}
    return {"models": models, "tasks": tasks}


def published_tasks() -> list[str]:
    """The tasks whose zips CLUE publishes."""
    return [name for name, task in TASKS.items() if is_published(task)]


if __name__ == "__main__":
    run_command(main)
