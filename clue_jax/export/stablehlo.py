"""The model as a program of jax.export, for CPU, GPU and TPU, and its parameters beside it.

What reads it needs jax and safetensors, and nothing of this project. jax promises to read such a
program for six months after it was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors import numpy as safetensors

from clue_jax.convert.merge import flatten
from clue_jax.export.function import INPUTS, exported, params_of, without_paths
from clue_jax.pretrained import Model

PROGRAM, WEIGHTS = "program.stablehlo", "params.safetensors"
_PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: Model, kind: str, folder: Path) -> None:
    """Writes the program and its parameters.

    Args:
      model: to be exported.
      kind: see `clue_jax.export.function.exported`.
      folder: to be filled.
    """
    scope = export.SymbolicScope([f"t <= {model.config.max_position_embeddings}"])
    row = jax.ShapeDtypeStruct(export.symbolic_shape("b, t", scope=scope), jnp.int32)
    params = params_of(model, kind)
    function = export.export(jax.jit(exported(model, kind)), platforms=_PLATFORMS)
    with without_paths():
        program = function(jax.eval_shape(lambda: params), *[row] * len(INPUTS))
    (folder / PROGRAM).write_bytes(program.serialize())
    arrays = {path: np.asarray(array) for path, array in flatten(jax.device_get(params)).items()}
    safetensors.save_file(arrays, folder / WEIGHTS)


def read(folder: Path) -> Any:
    """The exported function: (input_ids, attention_mask, token_type_ids) -> name -> output."""
    program = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    params: dict[str, Any] = {}
    for path, array in safetensors.load_file(folder / WEIGHTS).items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    params = jax.device_put(params)
    call = jax.jit(program.call)
    return lambda *inputs: call(params, *inputs)
