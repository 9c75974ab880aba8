"""Models in files, for tests of what reads and writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from conftest import micro_config, random_params

from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.names import HEADS, shapes
from clue_jax.convert.target import write

CLASSES = 3


def all_heads(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters, every head included."""
    random = np.random.default_rng(seed)
    return merge.nest(
        {
            path: random.normal(0, 0.1, shape).astype(np.float32)
            for path, shape in shapes(config, tuple(HEADS), CLASSES).items()
        }
    )


def written(folder: Path, config: ModelConfig, params: dict, tokenizer=None, form="model") -> Path:
    write(LoadedModel(config, params, tokenizer, {}, "random numbers"), folder, form)
    return folder


def equal(a: dict, b: dict) -> bool:
    a, b = merge.flatten(a), merge.flatten(b)
    return a.keys() == b.keys() and all(
        a[path].dtype == b[path].dtype and np.asarray(a[path]).tobytes() == b[path].tobytes()
        for path in a
    )


def oversized_checkpoint(folder: Path, tokenizer) -> Path:
    """As the released large models: more embedding rows than vocabulary lines."""
    config = micro_config(tokenizer.vocab_size + 100)
    written(folder, config, random_params(config), form="tf")
    shutil.copy(tokenizer.vocab_file, folder / "vocab.txt")
    return folder


def recorded_digests(shared, name: str) -> dict:
    """Tensor -> its recorded shape, type and digest."""
    folder, _, rest = name.partition("/")
    if folder == "tf_checkpoint":
        listing = json.loads((shared / "fixtures/tf_checkpoint/listing.json").read_text())
        return listing[rest]["tensors"]
    if folder == "finetune_training":
        listing = json.loads((shared / "fixtures/finetune_training/checkpoints.json").read_text())
        return next(v for k, v in listing.items() if k.startswith(rest))
    return {}
