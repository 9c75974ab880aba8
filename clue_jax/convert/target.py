"""Writes a model in the form that is asked for, and never over something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from clue_jax.convert import model_dir, tf_bert
from clue_jax.convert.loaded import INFO_FILE, LoadedModel, describe
from clue_jax.convert.weights import WEIGHTS
from clue_jax.errors import UserError
from clue_jax.files import check_local

TargetForm = Literal["model", "tf"]
_ABOUT = (
    "heads",
    "max_seq_length",
    "normalization",
    "task",
    "labels",
    "label_names",
    "license",
    "lower_case",
    "input",
    "architecture",
)
# All that either form writes.
_OWN_FILES = frozenset({
    INFO_FILE, WEIGHTS, "README.md", "config.json", "vocab.txt", "tokenizer.model",
    "tokenizer.json", "tokenizer_config.json", "bert_config.json", "checkpoint",
    f"{tf_bert.PREFIX}.index", f"{tf_bert.PREFIX}.data-00000-of-00001",
})  # fmt: skip


def write(
    loaded: LoadedModel, path: str | os.PathLike, form: TargetForm, dtype: np.dtype | None = None
) -> None:
    """Writes a model with all that is known of it.

    Args:
      loaded: the model.
      path: a folder, replaced as a whole if it exists.
      form: "model" for a model directory, "tf" for the TF-BERT files.
      dtype: of the written numbers; None as they are.

    Raises:
      UserError: if the form has no place for a parameter, or writing fails.
    """
    about = {name: loaded.info[name] for name in _ABOUT if name in loaded.info}
    about["source"] = loaded.info.get("source") or loaded.path
    model = (loaded.params, loaded.config, loaded.tokenizer)
    if form == "tf":
        tf_bert.save(path, *model, describe(*model, **about), dtype)
    else:
        model_dir.save(path, *model, dtype, **about)


def check_target(
    path: str | os.PathLike, source: str | os.PathLike | None = None, overwrite: bool = False
) -> None:
    """Refuses a target that would destroy something.

    Args:
      path: the folder to be written.
      source: what is converted; it may not lie in the target, nor the target in it.
      overwrite: whether a folder with a model of ours may be replaced.

    Raises:
      UserError: if the target is a file, or a folder that is not empty.
    """
    check_local(path)
    target = Path(os.path.realpath(path))
    if source is not None:
        origin = Path(os.path.realpath(source))
        if origin == target or target in origin.parents or origin in target.parents:
            raise UserError(f"{path}: is the source, within it or around it; choose another folder")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{path}: is a file, expected a folder")
    if not any(target.iterdir()):
        return
    if not overwrite:
        hint = "" if source is None else ", or --overwrite a converted model"
        raise UserError(f"{path}: exists and is not empty; choose another folder{hint}")
    foreign = [p.name for p in target.iterdir() if p.name not in _OWN_FILES or p.is_dir()]
    if foreign or not (target / INFO_FILE).is_file():
        raise UserError(f"{path}: holds something else than a converted model; remove it yourself")
