"""Brings published models to this machine, resumed and verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from clue_jax import zoo
from clue_jax.errors import run_command


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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.extras.subcommand_cli_from_dict(
        {"model": _model, "list": _list},
        args=argv,
        description="Downloads published models.",
    )
    print(json.dumps(settings, ensure_ascii=False))
    return settings


def _model(settings: Annotated[ModelSettings, tyro.conf.arg(name="")]) -> dict[str, Any]:
    """Downloads a model."""
    folder, record = zoo.download(settings.name, settings.source, settings.output, settings.mirror)
    return {"output": str(folder), **record}


def _list() -> dict[str, Any]:
    """Lists the models that are known."""
    return {
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


if __name__ == "__main__":
    run_command(main)
