"""The model as a TensorFlow SavedModel, by jax2tf: one XLA program, and variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from clue_jax.export.function import INPUTS, exported, params_of, without_paths
from clue_jax.pretrained import Model


def write(model: Model, kind: str, folder: Path) -> None:
    """Writes a SavedModel with the signature `serving_default`, for CPU, GPU and TPU.

    Args:
      model: to be exported.
      kind: see `clue_jax.export.function.exported`.
      folder: to be filled.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    function = jax2tf.convert(
        exported(model, kind),
        polymorphic_shapes=[None, *["b, t"] * len(INPUTS)],
        polymorphic_constraints=[f"t <= {model.config.max_position_embeddings}"],
        with_gradient=False,
        native_serialization_platforms=("cpu", "cuda", "tpu"),
    )
    params = jax.device_get(params_of(model, kind))
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    module = tf.Module()
    module.weights = [
        tf.Variable(np.asarray(array), name="/".join(key.key for key in path), trainable=False)
        for path, array in leaves
    ]
    spec = [tf.TensorSpec([None, None], tf.int32, name=name) for name in INPUTS]

    @tf.function(autograph=False, input_signature=spec)
    def serve(*inputs: Any) -> Any:
        weights = jax.tree_util.tree_unflatten(structure, module.weights)
        return function(weights, *inputs)

    module.serve = serve
    options = tf.saved_model.SaveOptions(save_debug_info=False)
    with without_paths():
        tf.saved_model.save(module, str(folder), {"serving_default": serve}, options)
