"""The released form of a model: one directory that the Hugging Face ecosystem loads as well.

`config.json`, `model.safetensors` (transformers' tensor names), `vocab.txt`, tokenizer files, and
`clue_jax.json`, which says what the others cannot: which heads were trained, how text was
normalised, and the digests of the files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from clue_jax.config import ModelConfig
from clue_jax.convert.merge import from_named_tensors, to_named_tensors
from clue_jax.convert.names import HEADS
from clue_jax.errors import UserError
from clue_jax.files import atomic_directory, read_json, sha256, write_json
from clue_jax.text import Tokenizer, WordPieceTokenizer, copy_vocabulary, load_tokenizer
from clue_jax.text.tokenizer_json import write_tokenizer_files

FORMAT = 1
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ModelDirectory:
    """A model read from its directory.

    Attributes:
      config: the sizes.
      params: nested dict of arrays of the type they are stored in; a missing head is absent.
      tokenizer: of the directory's vocabulary.
      info: the content of `clue_jax.json`.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    info: dict[str, Any]


def save(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    heads: Mapping[str, str],
    source: str,
    max_seq_length: int,
    normalization: str = "none",
) -> None:
    """Writes a model directory; it appears complete or not at all.

    Args:
      directory: replaced as a whole if it exists.
      params: nested dict of arrays of one type; heads that are absent stay absent.
      config: the sizes.
      tokenizer: its files are copied byte for byte; Hugging Face tokenizer files are written
        for WordPiece only.
      heads: head name -> "trained" or "fresh"; those left out are "missing".
      source: where the weights come from, in words.
      max_seq_length: the longest sequence the model was trained on, in tokens.
      normalization: what was done to the text before tokenization.

    Raises:
      UserError: if the parameters are not those of the config, or writing fails.
    """
    tensors = to_named_tensors(params, config, "hf")
    next_sentence_trained = heads.get("next_sentence") == "trained"
    architecture = "BertForPreTraining" if next_sentence_trained else "BertForMaskedLM"
    with atomic_directory(directory) as folder:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        values = config.to_hugging_face() | {"architectures": [architecture]}
        values.pop("torch_dtype", None)
        (values["dtype"],) = {str(tensor.dtype) for tensor in tensors.values()}
        write_json(folder / "config.json", values)
        copy_vocabulary(tokenizer, folder)
        if isinstance(tokenizer, WordPieceTokenizer):
            write_tokenizer_files(tokenizer, folder, config.max_position_embeddings)
        info = {
            "format": FORMAT,
            "task": "pretraining",
            "labels": [],
            "heads": {head: heads.get(head, "missing") for head in HEADS},
            "lower_case": tokenizer.lower_case,
            "max_seq_length": max_seq_length,
            "normalization": normalization,
            "gelu": {"gelu_tanh": "tanh", "gelu_erf": "erf"}.get(config.hidden_act),
            "source": source,
            "versions": {name: metadata.version(name) for name in ("jax", "flax", "safetensors")},
            "digests": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "clue_jax.json", info)


def load(directory: str | os.PathLike) -> ModelDirectory:
    """Reads a model directory.

    Raises:
      UserError: if a file is missing or damaged (the digest of the weights or the vocabulary does
        not match), or the vocabulary, the config and the weights disagree.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists():
        raise UserError(f"{directory}: not a model directory (no config.json)")
    info = _read_info(directory)
    config = ModelConfig.from_hugging_face(directory / "config.json")
    tokenizer = load_tokenizer(directory / "vocab.txt", info["lower_case"])
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{directory}: vocab.txt has {tokenizer.vocab_size} entries, but config.json says "
            f"{config.vocab_size}"
        )
    try:
        tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / WEIGHTS}: cannot read ({error})") from error
    params, _ = from_named_tensors(tensors, config, "hf", str(directory / WEIGHTS))
    return ModelDirectory(config, params, tokenizer, info)


def _read_info(directory: Path) -> dict[str, Any]:
    path = directory / "clue_jax.json"
    if not path.exists():  # a foreign directory: what can be inferred
        tokenizer_config = directory / "tokenizer_config.json"
        known = read_json(tokenizer_config) if tokenizer_config.exists() else {}
        return {"lower_case": known.get("do_lower_case", True), "heads": {}, "digests": {}}
    info = read_json(path)
    if info.get("format") != FORMAT:
        raise UserError(f"{path}: format {info.get('format')!r}, this version reads {FORMAT}")
    for name in (WEIGHTS, "vocab.txt"):
        if (directory / name).exists() and sha256(directory / name) != info["digests"].get(name):
            raise UserError(f"{directory / name}: damaged or replaced; its digest does not match")
    return info
