"""What keeps a training run whole: updates that are not finite are left out, SIGTERM saves."""

from __future__ import annotations

import dataclasses
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from clue_jax.errors import UserError
from clue_jax.train_state import TrainState

SKIPS_IN_A_ROW = 3  # One bad batch is bad luck; three are a run that has come apart.
TERMINATED = 143  # The exit status of a program that SIGTERM ended: 128 + 15.


def guarded_update(
    state: TrainState,
    gradients: Any,
    sums: dict[str, jax.Array],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; with a gradient that is not finite, only the step is counted.

    Args:
      state: before it.
      gradients: of its parameters.
      sums: of the losses; with such a gradient they become 0.
      optimizer: as built.

    Returns:
      The state after it, and the sums with "gradient_norm", before clipping, and "skipped", 0 or 1.
    """
    norm = optax.tree.norm(gradients)
    is_finite = jnp.isfinite(norm)
    updated = state.apply_gradients(gradients, optimizer)
    kept = {"params": state.params, "opt_state": state.opt_state}
    new = {"params": updated.params, "opt_state": updated.opt_state}
    state = dataclasses.replace(
        updated, **jax.tree.map(functools.partial(jnp.where, is_finite), new, kept)
    )
    sums = {name: jnp.where(is_finite, value, 0) for name, value in sums.items()}
    sums["gradient_norm"] = jnp.where(is_finite, norm, 0)
    return state, sums | {"skipped": 1.0 - is_finite.astype(jnp.float32)}


class SkipWatch:
    """Lets a loop run one step ahead of the device, and stops it if updates are left out one after
    the other."""

    def __init__(self):
        self._in_a_row = 0
        self._newest: tuple[int, dict[str, jax.Array]] | None = None

    def see(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Takes the sums of a step that was just started, and waits for the step before it.

        Args:
          step: its number; of several steps in one call, that of the first.
          sums: "skipped" is 0 or 1, or an array of them by step.

        Raises:
          UserError: if that was the last of `SKIPS_IN_A_ROW` that were left out.
        """
        self.finish()
        self._newest = step, sums

    def finish(self) -> None:
        """Waits for the newest step that was seen, as after the last one of a run.

        Raises:
          UserError: as `see`.
        """
        if self._newest is None:
            return
        (step, sums), self._newest = self._newest, None
        for number, is_skipped in enumerate(np.atleast_1d(sums["skipped"]), step):
            self._in_a_row = self._in_a_row + 1 if is_skipped else 0
            if self._in_a_row == SKIPS_IN_A_ROW:
                raise UserError(
                    f"the gradient was not finite in steps {number + 1 - SKIPS_IN_A_ROW} to "
                    f"{number}; the checkpoints before are intact; lower --learning-rate or raise "
                    "the warm-up, and if it comes again at the same step, look at the data"
                )


@contextmanager
def terminable() -> Iterator[Callable[[int], bool]]:
    """While it lasts, SIGTERM (as TPU machines get before they are taken away) does not end the
    program, but answers a question: is this call of the step, just made, the last before the end?

    Of several processes any may get the signal; all stop at the same call, and must ask at every
    one, with its number. Outside the main thread, where Python allows no handlers, the answer is
    always no.
    """
    if jax.process_count() > 1:  # jax itself catches the signal then
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(step: int) -> None:
    """Ends the program after a SIGTERM, when the step is saved."""
    message = f"stopped by SIGTERM; step {step} is saved, and the same command goes on from there"
    print(message, file=sys.stderr)
    sys.exit(TERMINATED)
