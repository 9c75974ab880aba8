"""Training checkpoints: params, optimizer state and JSON metadata, by Orbax.

A checkpoint takes its name only when it is complete, so one that a kill cut short is never seen.
Its metadata holds a checksum of every array, which is compared before the array is used.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from clue_jax import distributed
from clue_jax.errors import UserError
from clue_jax.optim import map_paths
from clue_jax.train_state import TrainState

_SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # a full disk shows in all of them
# Errors of reading that say nothing of what is read.
_OF_THE_MACHINE = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE,
    errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH,
)  # fmt: skip
_MACHINE_SAYS = re.compile(
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|"
    "[Oo]ut of memory|Cannot allocate memory|Too many open files|Permission denied|Stale file"
)
_log = logging.getLogger(__name__)
_ASIDE = "damaged-"  # before the step of a checkpoint that is not what was saved
_ODD = 2654435761  # Near 2**32 / golden ratio: weights of neighbours differ in all bits.


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if absent; may be remote.
      keep: how many of the newest are kept.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        # What fails there is raised as well, and told in one line instead of a traceback.
        logging.getLogger("absl").addFilter(_not_of_orbax)
        policy = ocp.training.preservation_policies.LatestN(keep)
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._open = lambda: ocp.training.Checkpointer(
            directory.resolve(), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._checkpointer = self._open()
        self._pending: Any = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.wait()
            self._checkpointer.close()
        except _SAVE_ERRORS as error:  # of a save that failed before, told already
            if kind is None:
                raise self._failed(error) from error

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
        shapes = _shapes(items)
        about = {"checksums": checksums(items), "shapes": shapes, "shapes_sum": _sum(shapes)}
        self._pending = self._checkpointer.save_checkpointables_async(
            step, items, force=True, custom_metadata=meta | about
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
        except _SAVE_ERRORS as error:
            raise self._failed(error) from error
        if not saved:
            raise UserError(f"{self._checkpointer.directory}: saving failed")

    def _failed(self, error: BaseException) -> UserError:
        return UserError(
            f"{self._checkpointer.directory}: saving failed ({_reason(error)}); older checkpoints "
            "are intact"
        )

    def restore(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that is whole; those that are not are put aside and said.

        Args:
          like: a state with the wanted shapes and shardings (see `train_state.abstract`); the mesh
            may differ from the one that saved.

        Returns:
          The state, or None if there is no checkpoint at all.

        Raises:
          UserError: if there are some, and all are damaged, or were found to be by an earlier run;
            if the arrays have other shapes; if they cannot be read for a reason that says nothing
            of them, such as too little memory.
        """
        wanted = {"params": like.params, "opt_state": like.opt_state}
        is_damaged = False
        while self.latest_step is not None:
            step = self.latest_step
            try:
                items = _read(self._checkpointer, step, wanted)
            except _Damaged as error:
                is_damaged = True
                _log.warning("%s", error)
                self._put_aside(step)
                continue
            if is_damaged:
                _log.warning("%s: going on from step %d", self._checkpointer.directory, step)
            number = jax.device_put(jnp.int32(step), like.step.sharding)
            return dataclasses.replace(like, step=number, **items)
        directory = epath.Path(self._checkpointer.directory)
        names = (path.name.removeprefix(_ASIDE) for path in directory.glob(f"{_ASIDE}*"))
        aside = sorted((int(name) for name in names if name.isdigit()), reverse=True)
        if aside:  # by this run, or one before: none starts anew by itself
            raise UserError(
                f"{directory}: all checkpoints are damaged (steps "
                f"{', '.join(map(str, aside))}); remove the folder to start anew"
            )
        return None

    def _put_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that the step can be saved again."""
        directory = epath.Path(self._checkpointer.directory)
        self._checkpointer.close()
        if distributed.is_first():
            aside = directory / f"{_ASIDE}{step}"
            if aside.exists():
                aside.rmtree()
            (directory / str(step)).rename(aside)
        distributed.wait_for_all("a damaged checkpoint is put aside")
        self._checkpointer = self._open()


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _Damaged(UserError):
    """Of a checkpoint that is not what was saved."""


def _read(checkpointer: ocp.training.Checkpointer, step: int, like: Any) -> Any:
    """The arrays of a checkpoint, verified.

    Raises:
      _Damaged: if they cannot be read, or are not what was saved.
      UserError: if they have other shapes, or the machine is what keeps them from being read.
    """
    place = epath.Path(checkpointer.directory) / str(step)
    try:
        known = checkpointer.checkpointables_metadata(step).custom_metadata
    except Exception as error:  # damage shows in many types of error
        raise _unreadable(place, error) from error
    if known is None:
        raise _Damaged(f"{place}: damaged; its metadata cannot be read")
    recorded, wanted = known.get("shapes"), _shapes(like)
    if recorded is not None:  # checkpoints of before there were any have none
        if _sum(recorded) != known.get("shapes_sum"):
            raise _Damaged(f"{place}: damaged; its metadata is not what was saved")
        recorded = {path: s for path, s in recorded.items() if path.split("/")[0] in like}
        for path in sorted({*recorded, *wanted}):
            if recorded.get(path) != wanted.get(path):
                raise UserError(
                    f"{place}: {path} is {_shown(recorded.get(path))} there, "
                    f"{_shown(wanted.get(path))} in this run; it is the checkpoint of another model"
                )
    try:
        items = checkpointer.load_checkpointables(step, like)
    except Exception as error:
        raise _unreadable(place, error) from error
    expected = known.get("checksums")
    if expected is not None:  # checkpoints of before there were any have none
        for path, value in checksums(items).items():
            if expected.get(path) != value:
                raise _Damaged(f"{place}: damaged; {path} is not what was saved")
    return items


def _unreadable(place: epath.Path, error: BaseException) -> UserError:
    """What to raise for an error in reading a checkpoint, which may be whole all the same."""
    said = f"{place}: cannot be read ({_reason(error)})"
    link: BaseException | None = error
    while link is not None:
        is_memory = isinstance(link, MemoryError)
        is_system = isinstance(link, OSError) and link.errno in _OF_THE_MACHINE
        if is_memory or is_system or _MACHINE_SAYS.search(str(link)):
            return UserError(f"{said}; it is left as it is, and the same command tries again")
        link = link.__cause__ or link.__context__
    return _Damaged(said)


def _reason(error: BaseException) -> str:
    """What was at the bottom of an error, in short."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "No space left" in str(error):  # behind the names of many files
        return "no space left on the disk"
    return str(error).split("\n")[0][:200]


def _shapes(tree: Any) -> dict[str, list[int]]:
    shapes = {}
    map_paths(lambda path, leaf: shapes.update({path: list(leaf.shape)}), tree)
    return shapes


def _sum(shapes: dict[str, list[int]]) -> int:
    return zlib.crc32(json.dumps(shapes, sort_keys=True).encode())


def _shown(shape: list[int] | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"


def checksums(tree: Any) -> dict[str, int]:
    """A number below 2**32 of every array, by path; the same on every mesh.

    It is the sum of the array's words, each times an odd weight of its place, modulo 2**32: a
    change of one word always shows, others all but once in 2**32 times. The devices compute it
    where the parts lie.

    Args:
      tree: of arrays whose elements have at most 32 bits.
    """
    sums = {}
    map_paths(lambda path, leaf: sums.update({path: leaf}), tree)
    return {path: int(value) for path, value in jax.device_get(_checksums(sums)).items()}


@jax.jit
def _checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(array: jax.Array) -> jax.Array:
        if array.dtype == bool:
            words = array.astype(jnp.uint32)
        else:
            kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
            words = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        place = jnp.zeros(array.shape, jnp.uint32)
        for dim in range(array.ndim):
            stride = math.prod(array.shape[dim + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim) * jnp.uint32(stride)
        return jnp.sum(words * (place * jnp.uint32(_ODD) | 1), dtype=jnp.uint32)

    return jax.tree.map(one, arrays)


def load_params(
    directory: str | os.PathLike, step: int | None = None, average: bool = False
) -> tuple[Any, int]:
    """Reads the parameters alone out of a run's checkpoints; nothing is changed there.

    Args:
      directory: of the checkpoints.
      step: which; None for the newest.
      average: read the moving average of them instead, which a run with --ema-decay keeps; see
        `clue_jax.optim.with_average`.

    Returns:
      The nested dict of numpy arrays, and its step.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    item = "opt_state" if average else "params"
    directory = epath.Path(directory).resolve()
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    with ocp.training.Checkpointer(directory) as checkpointer:
        if step is None:
            if checkpointer.latest is None:
                raise UserError(f"{directory}: holds no complete checkpoint")
            step = checkpointer.latest.step
        try:
            metadata = checkpointer.checkpointables_metadata(step).metadata[item]
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), metadata
            )
        except Exception as error:  # damage shows in many types of error
            raise UserError(
                f"{directory / str(step)}: cannot be read ({_reason(error)})"
            ) from error
        found = _read(checkpointer, step, {item: like})[item]
    params = found[-1]["average"] if average else found  # it stands behind the optimiser's own
    return jax.tree.map(np.asarray, params), step
