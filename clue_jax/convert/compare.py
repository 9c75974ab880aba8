"""How far two forms of one model are apart: its tensors, and what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.merge import flatten

_BATCH = (4, 32)  # B, T of the test batch


def compare(a: LoadedModel, b: LoadedModel) -> dict[str, Any]:
    """Differences of two models, over the vocabulary entries that both have.

    Args:
      a, b: the models. Both are held in memory while they compute.

    Returns:
      "tensors": how many were compared; "tensors_equal": whether all of those are equal bit for
      bit; "largest_tensor_difference" and "largest_output_difference", absolute, the latter over
      the encoder's output and each head on a batch of random ids, None where one of the two is not
      a finite number and the other another; "only_in_one": parameters that one of them lacks.
    """
    flat_a, flat_b = flatten(a.params), flatten(b.params)
    entries = min(a.config.vocab_size, b.config.vocab_size)
    differences, equal = [0.0], True
    for path in flat_a.keys() & flat_b.keys():
        x, y = flat_a[path], flat_b[path]
        if x.shape != y.shape:  # only the vocabulary may have been cut or padded
            x, y = x[:entries], y[:entries]
        if x.dtype == y.dtype and np.array_equal(_bits(x), _bits(y)):
            continue
        equal = False
        differences.append(_distance(x, y))
    outputs_a, outputs_b = _outputs(a, entries), _outputs(b, entries)
    of_outputs = [
        _distance(outputs_a[name], outputs_b[name]) for name in outputs_a.keys() & outputs_b.keys()
    ]
    return {
        "tensors": len(flat_a.keys() & flat_b.keys()),
        "tensors_equal": equal,
        "largest_tensor_difference": _largest(differences),
        "largest_output_difference": _largest(of_outputs),
        "outputs": sorted(outputs_a.keys() & outputs_b.keys()),
        "only_in_one": sorted(flat_a.keys() ^ flat_b.keys()),
    }


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """The largest absolute difference; infinite where one is NaN or infinite and not the other."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    with np.errstate(invalid="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        difference = np.where(same, 0.0, np.abs(x - y))
    return float(np.max(np.nan_to_num(difference, nan=np.inf, posinf=np.inf), initial=0.0))


def _largest(differences: list[float]) -> float | None:
    largest = max(differences, default=0.0)
    return largest if np.isfinite(largest) else None  # JSON has no infinity


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _outputs(model: LoadedModel, entries: int) -> dict[str, np.ndarray]:
    import jax  # conversion alone does without it

    from clue_jax.model import Bert, PretrainingModel

    random = np.random.default_rng(0)
    config = model.config.without_dropout()
    length = min(_BATCH[1], config.max_position_embeddings)
    ids = random.integers(0, entries, (_BATCH[0], length), dtype=np.int32)
    mask = (np.arange(length) < random.integers(2, length + 1, (_BATCH[0], 1))).astype(np.int32)
    segments = random.integers(0, config.type_vocab_size, ids.shape, dtype=np.int32)
    params = jax.tree.map(lambda array: np.asarray(array, np.float32), model.params)
    encoded = jax.jit(Bert(config).apply)({"params": params["bert"]}, ids, mask, segments)
    outputs = {"sequence_output": np.asarray(encoded.sequence_output)}
    if encoded.pooled_output is not None:
        outputs["pooled_output"] = np.asarray(encoded.pooled_output)
        for head in ("next_sentence", "classifier"):
            if head in params:
                outputs[head] = outputs["pooled_output"] @ params[head]["kernel"]
                outputs[head] += params[head]["bias"]
    if "masked_lm" in params:
        positions = np.broadcast_to(np.arange(4, dtype=np.int32), (_BATCH[0], 4))
        apply = jax.jit(PretrainingModel(config).apply, static_argnames="method")
        outputs["masked_lm"] = np.asarray(
            apply({"params": params}, ids, mask, segments, positions, method="masked_lm_only")
        )[..., :entries]
    return outputs
