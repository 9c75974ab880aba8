"""Training checkpoints: params, optimizer state and JSON metadata, by Orbax.

A checkpoint takes its name only when it is complete, so one that a kill cut short is never seen.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from clue_jax.errors import UserError
from clue_jax.train_state import TrainState


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if absent; may be remote.
      keep: how many of the newest are kept.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        policy = ocp.training.preservation_policies.LatestN(keep)
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            directory.resolve(), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._pending: Any = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves in the background, after the save before this one has ended.

        Raises:
          UserError: if that one failed, or this one cannot start.
        """
        # A save still under way would make Orbax skip the next one without an error.
        self.wait()
        step = int(state.step)
        if self.latest_step == step:
            return
        if jax.default_backend() == "cpu":
            # There the arrays are read in place, while the next step may overwrite (donate) them.
            state = jax.tree.map(jnp.copy, state)
        items = {"params": state.params, "opt_state": state.opt_state}
        self._pending = self._checkpointer.save_checkpointables_async(
            step, items, force=True, custom_metadata=meta
        )
        if self._pending is None:
            raise UserError(f"{self._checkpointer.directory}: step {step} was not saved")

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          UserError: if it failed.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            saved = pending.result()
        except OSError as error:
            raise UserError(
                f"{self._checkpointer.directory}: saving failed ({error}); older checkpoints "
                "are intact"
            ) from error
        if not saved:
            raise UserError(f"{self._checkpointer.directory}: saving failed")

    def restore(self, like: TrainState) -> TrainState:
        """Reads the newest checkpoint.

        Args:
          like: a state with the wanted shapes and shardings (see `train_state.abstract`); the mesh
            may differ from the one that saved.

        Raises:
          UserError: if it is damaged, naming its folder.
        """
        step = self.latest_step
        try:
            items = self._checkpointer.load_checkpointables(
                step, {"params": like.params, "opt_state": like.opt_state}
            )
        except Exception as error:  # damage shows in many types of error
            reason = str(error).split("\n")[0][:200]
            raise UserError(
                f"{self._checkpointer.directory / str(step)}: cannot be read ({reason}); remove "
                "that folder to go on from the checkpoint before it"
            ) from error
        number = jax.device_put(jnp.int32(step), like.step.sharding)
        return dataclasses.replace(like, step=number, **items)


def load_params(directory: str | os.PathLike, step: int | None = None) -> tuple[Any, int]:
    """Reads the parameters alone out of a run's checkpoints; nothing is changed there.

    Args:
      directory: of the checkpoints.
      step: which; None for the newest.

    Returns:
      The nested dict of numpy arrays, and its step.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    directory = epath.Path(directory).resolve()
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    with ocp.training.Checkpointer(directory) as checkpointer:
        if step is None:
            if checkpointer.latest is None:
                raise UserError(f"{directory}: holds no complete checkpoint")
            step = checkpointer.latest.step
        try:
            metadata = checkpointer.checkpointables_metadata(step).metadata["params"]
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), metadata
            )
            items = checkpointer.load_checkpointables(step, {"params": like})
        except Exception as error:  # damage shows in many types of error
            reason = str(error).split("\n")[0][:200]
            raise UserError(f"{directory / str(step)}: cannot be read ({reason})") from error
    return jax.tree.map(np.asarray, items["params"]), step
