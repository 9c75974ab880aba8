"""One update of a model that is fine-tuned, as a pure function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clue_jax import losses
from clue_jax.data.batches import Batch
from clue_jax.train_state import TrainState
from finetune.task import Task


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    kind: str,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before it.
      batch: see `finetune.rows.batch_of`.
      model, optimizer: as built.
      key: of the run; the step's dropout key is folded from it.
      kind: see `clue_jax.losses.task_loss`.
      accumulate: parts in which the batch is computed, whose gradients are added; B is a multiple.

    Returns:
      The state after it, and loss sums and counts with the gradient norm before clipping.
    """
    step_key = jax.random.fold_in(key, state.step)
    total = jnp.maximum(jnp.sum(batch["weights"]), 1)

    def loss_of(params: Any, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Any]:
        logits = model.apply(
            {"params": params}, part["input_ids"], part["input_mask"], part["segment_ids"],
            deterministic=False, rngs={"dropout": part_key},
        )  # fmt: skip
        sums = losses.task_loss(kind, logits, part["labels"], part["weights"])
        return sums["loss_sum"] / total, sums

    gradient_of = jax.grad(loss_of, has_aux=True)
    if accumulate == 1:
        gradients, sums = gradient_of(state.params, batch, step_key)
    else:
        # Every accumulate-th row, so that a batch that is spread over devices stays so.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(step_key, accumulate)
        zero = jax.eval_shape(
            gradient_of, state.params, jax.tree.map(lambda x: x[0], parts), keys[0]
        )
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, gradient_of(state.params, *part)), None

        (gradients, sums), _ = jax.lax.scan(add, zero, (parts, keys))
    sums["gradient_norm"] = optax.tree.norm(gradients)
    return state.apply_gradients(gradients, optimizer), sums


def means(sums: list[dict[str, Any]], task: Task) -> dict[str, float]:
    """Means over the steps since the last entry of the log."""
    total = {name: float(np.sum([s[name] for s in sums], dtype=np.float64)) for name in sums[0]}
    numbers = {
        "loss": total["loss_sum"] / max(1.0, total["weight_sum"]),
        "gradient_norm": total["gradient_norm"] / len(sums),
    }
    if task.kind not in ("multi", "score"):
        numbers["accuracy"] = total["correct_sum"] / max(1.0, total["weight_sum"])
    return numbers
