"""The released form of a model: one directory that the Hugging Face ecosystem loads as well.

`config.json`, `model.safetensors` (transformers' tensor names), `vocab.txt`, tokenizer files, a
model card, and `clue_jax.json`, which says what the others cannot: which heads were trained, how
text was normalised, and the digests of the files. Directories by others are read too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert.loaded import (
    INFO_FILE,
    LoadedModel,
    Source,
    assemble,
    describe,
    read_info,
)
from clue_jax.convert.merge import hugging_face_names, to_named_tensors
from clue_jax.convert.model_card import model_card
from clue_jax.convert.weights import WEIGHTS, find_weights, read_weights, write_safetensors
from clue_jax.errors import UserError
from clue_jax.files import atomic_directory, read_object, sha256, write_json, write_text
from clue_jax.text import Tokenizer, WordPieceTokenizer, copy_vocabulary, load_tokenizer
from clue_jax.text.tokenizer_json import write_tokenizer_files

# Keys of a config.json under which a model computes something else than ours does.
_UNSUPPORTED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}


def save(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    dtype: np.dtype | None = None,
    **about: Any,
) -> None:
    """Writes a model directory; it appears complete or not at all.

    Args:
      directory: replaced as a whole if it exists.
      params: nested dict of arrays of one type; heads that are absent stay absent.
      config: the sizes.
      tokenizer: its files are copied byte for byte; Hugging Face tokenizer files are written
        for WordPiece only. None writes no vocabulary.
      dtype: of the written numbers; None as they are.
      about: source, heads, max_seq_length and so on, see `clue_jax.convert.loaded.describe`.

    Raises:
      UserError: if the parameters are not those of the config, or writing fails.
    """
    tensors = to_named_tensors(params, config, "hf")
    if "cls.predictions.decoder.weight" in tensors:
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    about.setdefault("architecture", (config.extra.get("architectures") or [None])[0])
    info = describe(params, config, tokenizer, **about)
    architecture = info["architecture"]
    values = config_values(params, config, tokenizer, info)
    types = sorted({str(np.dtype(dtype or tensor.dtype)) for tensor in tensors.values()})
    if len(types) > 1:
        raise UserError(f"{directory}: parameters of types {', '.join(types)}, expected one")
    values["dtype"] = types[0]
    with atomic_directory(directory) as folder:
        write_safetensors(folder / WEIGHTS, tensors, dtype)
        write_json(folder / "config.json", values)
        if tokenizer:
            copy_vocabulary(tokenizer, folder)
        if isinstance(tokenizer, WordPieceTokenizer):
            write_tokenizer_files(tokenizer, folder, config.max_position_embeddings)
        write_text(folder / "README.md", model_card(params, config, info, architecture))
        digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / INFO_FILE, info | {"digests": digests})


def config_values(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of transformers' `config.json`, but for the type of the numbers.

    Args:
      params, config, tokenizer: of the model.
      info: see `clue_jax.convert.loaded.describe`.
    """
    values = config.to_hugging_face() | {"architectures": [info["architecture"]]}
    values.pop("torch_dtype", None)
    if tokenizer:
        values["pad_token_id"] = tokenizer.pad_id
    if "classifier" in params:
        classes = params["classifier"]["bias"].shape[0]
        labels = info["labels"] or [f"LABEL_{i}" for i in range(classes)]
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    return values


def load(directory: str | os.PathLike) -> LoadedModel:
    """Reads a model directory.

    Raises:
      UserError: if a file is missing or damaged (the digest of the weights or the vocabulary does
        not match), or the vocabulary, the config and the weights disagree.
    """
    loaded = assemble(read_source(directory))
    if loaded.tokenizer is None:
        raise UserError(f"{Path(directory) / 'vocab.txt'}: no such file; the text needs it")
    return loaded


def read_source(
    directory: str | os.PathLike,
    config_file: str | os.PathLike | None = None,
    vocab_file: str | os.PathLike | None = None,
    lower_case: bool = True,
) -> Source:
    """Reads the tensors and files of a model directory, ours or a foreign one.

    Args:
      directory: the folder, or a weight file in it.
      config_file: default `config.json` in it.
      vocab_file: default `vocab.txt` in it, if there is one.
      lower_case: see `WordPieceTokenizer`; a directory that says otherwise is believed.

    Raises:
      UserError: for a missing config or weight file, or a damaged file.
    """
    directory = Path(directory)
    weights = directory if directory.is_file() else find_weights(directory)
    directory = directory.parent if directory.is_file() else directory
    if config_file is None and not (directory / "config.json").exists():
        raise UserError(f"{directory}: not a model directory (no config.json)")
    if weights is None:
        raise UserError(f"{directory / WEIGHTS}: no such file, nor another kind of weights")
    info, notes = _read_info(directory, weights.name)
    if config_file is None:
        config_file = directory / "config.json"
        config = ModelConfig.from_hugging_face(config_file)
    else:
        is_usual = Path(config_file).name == "config.json"  # that is the name of this layout
        read = ModelConfig.from_hugging_face if is_usual else ModelConfig.read
        config = read(config_file)
    names = config.extra.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{config_file}: architectures is {names!r}, expected a list of names")
    for key, allowed in _UNSUPPORTED.items():
        if config.extra.get(key) not in allowed:
            raise UserError(f"{config_file}: {key} {config.extra[key]!r} is not supported")
    beside = directory / "vocab.txt"
    vocab_file = vocab_file or (beside if beside.exists() else None)
    lower_case = lower_case and info.get("lower_case", True)
    tensors = read_weights(weights)
    if any(name.startswith("roberta.") for name in tensors):
        raise UserError(
            f"{weights}: has the layout of RoBERTa itself (positions count from 2), not BERT's"
        )
    tensors, config, renamed = hugging_face_names(tensors, config)
    if config.extra.get("model_type", "bert") != "bert":
        notes.append(f"model_type {config.extra['model_type']!r} in config.json; layout is BERT's")
    if not info.get("versions") and config.hidden_act == "gelu_erf":
        notes.append('hidden_act "gelu" was read as the exact form (erf); --gelu tanh overrides')
    return Source(
        path=str(weights),
        form="hf",
        tensors=tensors,
        config=config,
        config_file=Path(config_file).name,
        tokenizer=load_tokenizer(vocab_file, lower_case) if vocab_file else None,
        info=info | ({} if info.get("labels") else {"labels": _labels(config, notes)}),
        notes=notes + renamed,
    )


def _labels(config: ModelConfig, notes: list[str]) -> list[str]:
    """The labels that a config.json names, in order; what cannot be kept is noted."""
    names = config.extra.get("id2label")
    if not isinstance(names, dict) or not names:
        return []
    if sorted(names) != sorted(str(i) for i in range(len(names))):
        notes.append(f"id2label in config.json does not count from 0: {names}; it was left out")
        return []
    labels = [str(names[str(i)]) for i in range(len(names))]
    if len(set(labels)) < len(labels):
        notes.append("id2label in config.json names a label twice")
    return labels


def _read_info(directory: Path, weights: str) -> tuple[dict[str, Any], list[str]]:
    path = directory / INFO_FILE
    info = read_info(path) if path.exists() else {}
    if weights not in info.get("digests", {}):
        # A foreign directory, or other weights than those it speaks of: what can be inferred.
        tokenizer_config = directory / "tokenizer_config.json"
        known = read_object(tokenizer_config) if tokenizer_config.exists() else {}
        lower_case = known.get("do_lower_case", True) is not False
        why = f"{INFO_FILE} is not about {weights}" if path.exists() else f"no {INFO_FILE}"
        return {"lower_case": lower_case}, [f"{why}: what it would say was inferred"]
    notes = []
    for name, digest in info["digests"].items():
        file = directory / name
        if name in (WEIGHTS, "vocab.txt", "tokenizer.model"):
            if file.exists() and sha256(file) != digest:
                raise UserError(f"{file}: damaged or replaced; its digest does not match")
        elif file.exists() and name.endswith(".json") and sha256(file) != digest:
            notes.append(f"{name} was edited after it was written")
    return info, notes
