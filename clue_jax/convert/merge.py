"""Matches the tensors of a file with the parameters of a model, strictly and in full."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert.names import HEADS, convert_layout, rows, shapes
from clue_jax.errors import UserError

# What a source may hold beside the parameters; they are dropped, and listed.
_DROPPED = re.compile(
    r"(^|/)(adam_m|adam_v|AdamWeightDecayOptimizer.*|global_step)$"
    r"|^bert\.embeddings\.position_ids$"
    r"|^cls\.predictions\.decoder\.(weight|bias)$"
)


def from_named_tensors(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, form: str, source: str
) -> tuple[dict[str, Any], list[str]]:
    """Builds the parameter dict out of tensors under their TF-BERT or Hugging Face names.

    Every tensor must be matched or be of a kind that is dropped; every parameter of the encoder
    must be found; a head is found whole or absent whole; shapes must agree.

    Args:
      tensors: name to array.
      config: the model's.
      form: "tf" or "hf".
      source: file name for messages.

    Returns:
      The nested parameter dict, without heads that are absent, and the names that were dropped.

    Raises:
      UserError: naming all differences at once.
    """
    expected = shapes(config)
    absent = [
        head
        for head in HEADS
        if not any(
            row.ours.startswith(f"{head}/") and getattr(row, form) in tensors
            for row in rows(config)
        )
    ]
    flat: dict[str, np.ndarray] = {}
    faults: list[str] = []
    known = set()
    for row in rows(config):
        name = getattr(row, form)
        known.add(name)
        if name not in tensors:
            if row.ours.split("/")[0] not in absent:
                faults.append(f"missing {name}")
            continue
        array = convert_layout(np.asarray(tensors[name]), row.layout, form)
        if array.shape != expected[row.ours]:
            given = tensors[name].shape
            wanted = convert_layout(np.empty(expected[row.ours], bool), row.layout, form).shape
            faults.append(f"{name} has shape {list(given)}, the config needs {list(wanted)}")
        elif array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
            faults.append(f"{name} has type {array.dtype}, expected floating point")
        flat[row.ours] = array
    dropped = sorted(name for name in tensors if name not in known and _DROPPED.search(name))
    faults += [f"unknown {name}" for name in sorted(set(tensors) - known - set(dropped))]
    if faults:
        raise UserError(f"{source}: {len(faults)} differences: " + "; ".join(faults))
    return nest(flat), dropped


def to_named_tensors(
    params: Mapping[str, Any], config: ModelConfig, form: str
) -> dict[str, np.ndarray]:
    """The parameters under their TF-BERT or Hugging Face names, C-ordered.

    Raises:
      UserError: if the parameters are not those of the config.
    """
    flat = flatten(params)
    names = {row.ours: row for row in rows(config)}
    expected = shapes(config)
    faults = [f"unknown parameter {path}" for path in flat if path not in names]
    faults += [
        f"{path} has shape {list(flat[path].shape)}, the config needs {list(expected[path])}"
        for path in flat
        if path in expected and flat[path].shape != expected[path]
    ]
    if faults:
        raise UserError("; ".join(faults))
    return {
        getattr(names[path], form): np.ascontiguousarray(
            convert_layout(np.asarray(array), names[path].layout, form)
        )
        for path, array in flat.items()
    }


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A nested parameter dict as path -> array."""
    flat = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        branch = params
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = array
    return params
