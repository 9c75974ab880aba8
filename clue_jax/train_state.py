"""The state of a training run, and how it comes to be."""

from __future__ import annotations

import functools
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
    create = functools.partial(_create, init, optimizer)
    shardings = state_shardings(jax.eval_shape(create), mesh)
    return jax.jit(create, out_shardings=shardings)()


def abstract_state(
    init: Callable[[], Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of `new_state` without the arrays; the devices of the mesh need
    not be there."""
    return abstract_arrays(functools.partial(_create, init, optimizer), mesh)


def abstract_arrays(create: Callable[[], Any], mesh: Mesh) -> Any:
    """The same for any tree of parameters or state that a function returns."""
    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def _create(init: Callable[[], Any], optimizer: optax.GradientTransformation) -> TrainState:
    params = init()
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def summed_gradients(
    loss_of: Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    batch: Any,
    key: jax.Array,
    accumulate: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients and sums of a batch, computed in parts one after the other to save memory.

    Args:
      loss_of: (params, part of the batch, dropout key) -> the part's share of the loss, and sums.
        What it divides by must be of the whole batch, so that the parts' gradients add up.
      params: where the gradient is taken.
      batch: arrays [B, ...].
      key: of the dropout of this step.
      accumulate: parts; B is a multiple.
    """
    gradient_of = jax.grad(loss_of, has_aux=True)
    if accumulate == 1:
        return gradient_of(params, batch, key)
    # Every accumulate-th row, so that a batch that is spread over devices stays so.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, accumulate)
    shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], parts), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient_of(params, *part)), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]


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
