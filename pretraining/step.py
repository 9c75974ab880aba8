"""One update of a model in pretraining, as a pure function, and the sums that it leaves."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clue_jax import losses
from clue_jax.data.batches import Batch
from clue_jax.guard import guarded_update
from clue_jax.model import PretrainingModel
from clue_jax.train_state import TrainState, summed_gradients
from pretraining.evaluate import head_sums


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: PretrainingModel,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    next_sentence: bool,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before it.
      batch: see `clue_jax.data.batches`.
      model, optimizer: as built.
      key: of the run; the step's dropout key is folded from it.
      next_sentence: whether that loss is added to the masked-LM loss.
      accumulate: parts in which the batch is computed, whose gradients are added; B is a multiple.

    Returns:
      The state after it, and loss sums and counts, see `clue_jax.guard.guarded_update`.
    """

    heads = ("masked_lm", "next_sentence") if next_sentence else ("masked_lm",)
    weights = {f"{head}_weight_sum": jnp.sum(batch[f"{head}_weights"]) for head in heads}

    def loss_of(params: Any, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Any]:
        sums = head_sums(model, params, part, part_key)
        whole = sums | weights
        loss = sum(
            losses.mean({name: whole[f"{head}_{name}"] for name in ("loss_sum", "weight_sum")})
            for head in heads
        )
        return loss, sums

    step_key = jax.random.fold_in(key, state.step)
    gradients, sums = summed_gradients(loss_of, state.params, batch, step_key, accumulate)
    sums["tokens"] = jnp.sum(batch["document_ids"] > 0, dtype=jnp.float32)
    return guarded_update(state, gradients, sums, optimizer)


def train_steps(state: TrainState, batches: Batch, **given: Any) -> tuple[TrainState, Any]:
    """Several updates one after the other in one program, which saves a small model the time
    between the calls.

    Args:
      state: before them.
      batches: arrays [steps, B, ...].
      given: to `train_step`.

    Returns:
      The state after them, and the sums as arrays [steps].
    """
    return jax.lax.scan(functools.partial(train_step, **given), state, batches)


class Interval:
    """Sums between two entries of the log. They stay on the device until they are asked for."""

    def __init__(self, start: int):
        self.start = start
        self.started = time.monotonic()
        self.sums: list[dict[str, jax.Array]] = []

    def add(self, sums: dict[str, jax.Array]) -> None:
        """Adds a step, or several: the sums are numbers, or arrays by step."""
        self.sums.append(sums)

    def pause(self, seconds: float) -> None:
        """Leaves out time spent on something else."""
        self.started += seconds

    def numbers(self, step: int) -> dict[str, float]:
        """Means over the interval."""
        sums = jax.device_get(self.sums)
        seconds = time.monotonic() - self.started
        by_step = {name: np.hstack([s[name] for s in sums]) for name in sums[0]}
        total = {name: float(np.sum(values, dtype=np.float64)) for name, values in by_step.items()}
        steps = step - self.start
        numbers = {}
        for head in ("masked_lm", "next_sentence"):
            if weight := total[f"{head}_weight_sum"]:
                numbers[f"{head}_loss"] = total[f"{head}_loss_sum"] / weight
                numbers[f"{head}_accuracy"] = total[f"{head}_correct_sum"] / weight
        if total["skipped"]:
            numbers["skipped_steps"] = total["skipped"]
        return numbers | {
            "gradient_norm": total["gradient_norm"] / max(1.0, steps - total["skipped"]),
            "tokens_per_second": total["tokens"] / seconds,
            "ms_per_step": 1000 * seconds / steps,
        }
