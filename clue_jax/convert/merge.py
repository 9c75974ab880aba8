"""Matches the tensors of a file with the parameters of a model, strictly and in full."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert.names import HEADS, convert_layout, head_of, rows, shapes
from clue_jax.errors import UserError

# What a source may hold beside the parameters; they are dropped, and listed.
_DROPPED = re.compile(
    r"(^|/)(adam_m|adam_v|AdamWeightDecayOptimizer.*|LAMBOptimizer.*|global_step)$"
    r"|^bert\.embeddings\.(position_ids|token_type_ids)$"
)


def from_named_tensors(
    tensors: Mapping[str, np.ndarray],
    config: ModelConfig,
    form: str,
    source: str,
    faults: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Builds the parameter dict out of tensors under their TF-BERT or Hugging Face names.

    Every tensor must be matched or be of a kind that is dropped; every parameter of the encoder
    must be found; a head is found whole or absent whole; shapes agree; all tensors are of one
    floating-point type. Nothing is copied.

    Args:
      tensors: name to array.
      config: the model's.
      form: "tf" or "hf".
      source: file name for messages.
      faults: differences known already, reported with those found here.

    Returns:
      The nested parameter dict, without heads that are absent, and the names that were dropped.

    Raises:
      UserError: naming all differences at once.
    """
    table = [row for row in rows(config) if getattr(row, form)]
    names = {row.ours: getattr(row, form) for row in table}
    present = {head_of(path) for path, name in names.items() if name in tensors} - {None}
    given = tensors.get(names["classifier/bias"])
    classes = given.shape[0] if given is not None and given.ndim == 1 else 2
    expected = shapes(config, tuple(HEADS), classes)
    found = [names[path] for path in names if names[path] in tensors]
    usual = Counter(tensors[name].dtype for name in found).most_common(1)
    flat: dict[str, np.ndarray] = {}
    faults = list(faults)
    for row in table:
        name = names[row.ours]
        if name not in tensors:
            if head_of(row.ours) in {None, *present}:
                faults.append(f"missing {name}")
            continue
        tensor = tensors[name]
        array = convert_layout(tensor, row.layout, form)
        if array.shape != expected[row.ours]:
            wanted = convert_layout(np.empty(expected[row.ours], bool), row.layout, form).shape
            faults.append(f"{name} has shape {list(tensor.shape)}, the config needs {list(wanted)}")
        if not is_floating(array.dtype):
            faults.append(f"{name} has type {array.dtype}, expected floating point")
        elif array.dtype != usual[0][0]:
            faults.append(f"{name} has type {array.dtype}, the others {usual[0][0]}")
        flat[row.ours] = array
    others = set(tensors) - set(found)
    dropped = sorted(name for name in others if _DROPPED.search(name))
    faults += [f"unknown {name}" for name in sorted(others - set(dropped))]
    if faults:
        raise UserError(f"{source}: {count(faults)}: " + "; ".join(faults))
    return nest(flat), dropped


def to_named_tensors(
    params: Mapping[str, Any], config: ModelConfig, form: str
) -> dict[str, np.ndarray]:
    """The parameters under their TF-BERT or Hugging Face names.

    Kernels may be transposed views: who writes them makes one of them contiguous at a time.

    Raises:
      UserError: if the parameters are not those of the config, or the form has no place for one.
    """
    flat = flatten(params)
    names = {row.ours: row for row in rows(config)}
    classes = flat["classifier/bias"].shape[0] if "classifier/bias" in flat else 2
    expected = shapes(config, {head_of(path) for path in flat} - {None}, classes)
    faults = [f"unknown parameter {path}" for path in flat if path not in names]
    faults += [f"missing parameter {path}" for path in expected if path not in flat]
    faults += [
        f"{path} has shape {list(flat[path].shape)}, the config needs {list(expected[path])}"
        for path in flat
        if path in expected and flat[path].shape != expected[path]
    ]
    if form == "tf" and "masked_lm/decoder" in flat:
        faults.append(
            "masked_lm/decoder is not the word embedding, and TF-BERT has no place for it; "
            "--drop-heads masked_lm leaves the head out"
        )
    if faults:
        raise UserError("; ".join(faults))
    return {
        getattr(names[path], form): convert_layout(np.asarray(array), names[path].layout, form)
        for path, array in flat.items()
    }


def hugging_face_names(
    tensors: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, np.ndarray], ModelConfig, list[str]]:
    """Brings the names that Hugging Face directories have had over the years to today's.

    `LayerNorm.gamma` and `beta`, the encoder without its `bert.` prefix, and the masked-LM output
    layer, which is often stored although it is the word embedding.

    Returns:
      The tensors under today's names, the config (`tie_word_embeddings` as the tensors are), and
      what was done, in words.
    """
    notes = []
    renamed = {}
    has_prefix = any(name.startswith("bert.") for name in tensors)
    for name, array in tensors.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        if not has_prefix and re.match(r"(embeddings|encoder|pooler)\.", new):
            new = f"bert.{new}"
        if new in renamed:
            raise UserError(f"{name} and another tensor are both {new}")
        renamed[new] = array
    if any(name.endswith(("LayerNorm.gamma", "LayerNorm.beta")) for name in tensors):
        notes.append("LayerNorm.gamma and beta were read as weight and bias")
    words = renamed.get("bert.embeddings.word_embeddings.weight")
    decoder = renamed.get("cls.predictions.decoder.weight")
    is_own = decoder is not None and not (words is not None and _same(decoder, words))
    bias = renamed.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        other = renamed.setdefault("cls.predictions.bias", bias)
        if not _same(bias, other) and is_own:
            # transformers 5 adds the decoder's own there, and leaves the other as it once was.
            renamed["cls.predictions.bias"] = bias
            notes.append("cls.predictions.decoder.bias was taken; cls.predictions.bias is another")
        elif not _same(bias, other):
            renamed["cls.predictions.decoder.bias"] = bias  # unknown: two different biases
    if decoder is None:
        if not config.tie_word_embeddings and "cls.predictions.bias" in renamed:
            notes.append("config.json says the output layer is not tied, but holds none: tied")
        return renamed, config.replace(tie_word_embeddings=True), notes
    if not is_own:
        del renamed["cls.predictions.decoder.weight"]
        notes.append("cls.predictions.decoder.weight is the word embedding and was not kept twice")
        return renamed, config.replace(tie_word_embeddings=True), notes
    if config.tie_word_embeddings:
        notes.append(
            "cls.predictions.decoder.weight differs from the word embedding, although config.json "
            "does not say so; it is kept"
        )
    return renamed, config.replace(tie_word_embeddings=False), notes


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # Bit for bit, so that a NaN equals itself; row by row, so that nothing is copied whole.
    pairs = zip(np.atleast_1d(a), np.atleast_1d(b), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


def cast(array: np.ndarray, dtype: np.dtype | None, name: str) -> np.ndarray:
    """A tensor in another floating-point type, made when it is written, so that a conversion never
    holds a model twice.

    Args:
      array: as it is.
      dtype: None leaves it.
      name: for the message.

    Raises:
      UserError: if a finite number becomes infinite.
    """
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if (np.isinf(made) & np.isfinite(array)).any():
        raise UserError(f"{name} holds numbers too large for {dtype}; choose bfloat16")
    return made


def digest(params: Mapping[str, Any]) -> str:
    """A SHA-256 of names, types and values, whatever file they came from."""
    total = hashlib.sha256()
    for path, array in sorted(flatten(params).items()):
        total.update(f"{path} {array.dtype} {list(array.shape)}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def count(faults: Sequence[str]) -> str:
    """Such as "1 difference" or "2 differences"."""
    return f"{len(faults)} difference{'' if len(faults) == 1 else 's'}"


def is_floating(dtype: np.dtype) -> bool:
    """Whether a tensor type holds weights."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


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
