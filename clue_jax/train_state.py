"""The state of a training run, and how it comes to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clue_jax.sharding import state_shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a training step maps to its successor.

    Attributes:
      step: int32 scalar, steps done.
      params: nested dict of float32 arrays.
      opt_state: optax's.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    def apply_gradients(
        self, gradients: Any, optimizer: optax.GradientTransformation
    ) -> TrainState:
        """The state after one update."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return TrainState(self.step + 1, optax.apply_updates(self.params, updates), opt_state)


def new_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A state at step 0, every array created where it belongs.

    Args:
      init: returns the parameters; it is traced.
      optimizer: gives the optimizer state.
      mesh: where the arrays live.
    """

    def create() -> TrainState:
        params = init()
        return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))

    shardings = state_shardings(jax.eval_shape(create), mesh)
    return jax.jit(create, out_shardings=shardings)()


def abstract(state: TrainState) -> TrainState:
    """Shapes, types and shardings without the arrays: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def compute_dtype(name: str | None) -> jnp.dtype:
    """The type of the computation: as named, else float32 on CPU and bfloat16 elsewhere."""
    if name is None:
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
