"""One update of a model that is fine-tuned, as a pure function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clue_jax import losses
from clue_jax.data.batches import Batch
from clue_jax.guard import guarded_update
from clue_jax.train_state import TrainState, summed_gradients
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
      The state after it, and loss sums and counts, see `clue_jax.guard.guarded_update`.
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

    gradients, sums = summed_gradients(loss_of, state.params, batch, step_key, accumulate)
    return guarded_update(state, gradients, sums, optimizer)


def means(sums: list[dict[str, Any]], task: Task) -> dict[str, float]:
    """Means over the steps since the last entry of the log; sums are numbers, or arrays by step."""
    by_step = {name: np.hstack([s[name] for s in sums]) for name in sums[0]}
    total = {name: float(np.sum(values, dtype=np.float64)) for name, values in by_step.items()}
    steps = len(by_step["skipped"])
    numbers = {
        "loss": total["loss_sum"] / max(1.0, total["weight_sum"]),
        "gradient_norm": total["gradient_norm"] / max(1.0, steps - total["skipped"]),
    }
    if total["skipped"]:
        numbers["skipped_steps"] = total["skipped"]
    if task.kind not in ("multi", "score"):
        numbers["accuracy"] = total["correct_sum"] / max(1.0, total["weight_sum"])
    return numbers
