"""TF-BERT checkpoints in and out: the exchange form with the original."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert.loaded import INFO_FILE, Source, read_info
from clue_jax.convert.merge import from_named_tensors, to_named_tensors
from clue_jax.convert.tf_bundle import read_bundle, write_bundle
from clue_jax.data.tf import tensorflow
from clue_jax.errors import UserError
from clue_jax.files import atomic_directory, write_json, write_text
from clue_jax.text import Tokenizer, copy_vocabulary, load_tokenizer

PREFIX = "bert_model.ckpt"
CONFIG = "bert_config.json"


def load(prefix: str | os.PathLike, config: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """Reads a TF-BERT checkpoint into parameters.

    Returns:
      The parameter dict and the names of dropped variables (optimizer slots, step).

    Raises:
      UserError: for a damaged file, or tensors that are not those of the config.
    """
    return from_named_tensors(read_variables(prefix), config, "tf", str(prefix))


def read_source(
    prefix: str | os.PathLike,
    config_file: str | os.PathLike | None = None,
    vocab_file: str | os.PathLike | None = None,
    lower_case: bool = True,
) -> Source:
    """Reads a TF-BERT checkpoint with the files that stand beside it.

    Args:
      prefix: of a V2 checkpoint, or the file of a V1 checkpoint.
      config_file: default `bert_config.json` beside it.
      vocab_file: default `vocab.txt` beside it, if there is one.
      lower_case: see `WordPieceTokenizer`.

    Raises:
      UserError: for a missing config, or a damaged file.
    """
    folder = Path(prefix).parent
    if config_file is None:
        candidates = sorted(folder.glob("*config*.json"))  # the author's own are named otherwise
        if (folder / CONFIG) in candidates:
            candidates = [folder / CONFIG]
        if len(candidates) != 1:
            found = f"found {', '.join(p.name for p in candidates)}" if candidates else "found none"
            raise UserError(f"{prefix}: expected a {CONFIG} beside it, {found}; --config names it")
        config_file = candidates[0]
    info_file = folder / INFO_FILE
    info = read_info(info_file) if info_file.exists() else {}
    beside = folder / "vocab.txt"
    vocab_file = vocab_file or (beside if beside.exists() else None)
    lower_case = lower_case and info.get("lower_case", True)
    return Source(
        path=str(prefix),
        form="tf",
        tensors=read_variables(prefix),
        config=ModelConfig.read(config_file),
        config_file=Path(config_file).name,
        tokenizer=load_tokenizer(vocab_file, lower_case) if vocab_file else None,
        info=info,
    )


def read_variables(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every variable of a checkpoint: V2 by our own code, V1 through tensorflow.

    Raises:
      UserError: for a missing or damaged file, or a V1 file where tensorflow is missing.
    """
    prefix = Path(prefix)
    if Path(f"{prefix}.index").exists() or not prefix.is_file():
        return read_bundle(prefix)
    tf = tensorflow(f"{prefix}: this older (V1) checkpoint format")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{prefix}: damaged, or no tensorflow checkpoint ({error})") from error


def save(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    info: Mapping[str, Any],
    dtype: np.dtype | None = None,
) -> None:
    """Writes `bert_model.ckpt.*`, `checkpoint`, `bert_config.json`, `vocab.txt` and
    `clue_jax.json`; the folder appears complete or not at all.

    The original restores variables by name and needs no `.meta` (that is a graph, which its code
    builds anew). `clue_jax.json` keeps what the others have no place for: labels, state of the
    heads, normalisation.

    Args:
      directory: replaced as a whole if it exists.
      params: all of them are written; heads that are absent stay absent.
      config: the model's.
      tokenizer: its files are copied byte for byte; None for none.
      info: see `clue_jax.convert.loaded.describe`.
      dtype: of the written numbers; None as they are.
    """
    tensors = to_named_tensors(params, config, "tf")
    with atomic_directory(directory) as folder:
        write_bundle(folder / PREFIX, tensors, dtype)
        write_text(
            folder / "checkpoint",
            f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n',
        )
        config.save_tf_bert(folder / CONFIG)
        if tokenizer:
            copy_vocabulary(tokenizer, folder)
        write_json(folder / INFO_FILE, dict(info))
