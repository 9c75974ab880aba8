"""Several processes that train as one: how they find each other, what they share, who writes.

All run the same program on the same files. Arrays are global: each process holds the part on its
own devices, and `jax.jit` exchanges what is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clue_jax.errors import UserError
from clue_jax.sharding import batch_sharding, put_batch, replicated

# Seconds until a process that is silent counts as dead, and the others end.
SILENCE = 30


def start(
    coordinator: str | None = None, process_id: int | None = None, processes: int | None = None
) -> None:
    """Joins the other processes, if there are any. Comes before anything that uses a device.

    They are named by the arguments, all three; else by JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID and
    JAX_NUM_PROCESSES, of which Slurm and Open MPI make the last two unnecessary; else, on a machine
    with TPU chips, by the TPU's own metadata.

    Args:
      coordinator: HOST:PORT of process 0, the same in all processes.
      process_id: of this one, from 0.
      processes: how many there are.

    Raises:
      UserError: if only some are given, or the others cannot be reached.
    """
    given = (coordinator, process_id, processes)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError("--coordinator, --process-id and --processes are given together")
        if ":" not in coordinator:
            raise UserError(f"--coordinator {coordinator!r}: expected HOST:PORT")
        if not 0 <= process_id < processes:
            raise UserError(f"--process-id {process_id} must lie in 0..{processes - 1}")
    elif "JAX_COORDINATOR_ADDRESS" in os.environ:
        process_id, processes = map(_number, ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
    elif not _has_tpu():
        return
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id,
            heartbeat_timeout_seconds=SILENCE, shutdown_timeout_seconds=SILENCE,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"the processes of this run do not find each other ({reason})") from error


def _number(name: str) -> int | None:
    """A number in the environment, if it is there."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise UserError(f"{name} is {text!r}, expected a number")
    return None if text is None else int(text)


def _has_tpu() -> bool:
    """Whether this machine has TPU chips; asking jax would start them."""
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this is process 0, which alone writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same(what: str, digest: str) -> None:
    """Refuses to go on if the processes have different things.

    Args:
      what: for the message.
      digest: hexadecimal, of the thing.

    Raises:
      UserError: in all processes.
    """
    if jax.process_count() == 1:
        return
    value = np.frombuffer(bytes.fromhex(digest), np.uint8)
    everyone = multihost_utils.process_allgather(value)
    different = np.flatnonzero((everyone != everyone[0]).any(axis=1))
    if len(different):
        raise UserError(
            f"process {different[0]} has another {what} than process 0; all processes need the "
            "same command and the same files"
        )


def own_rows(size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a global batch that lie on this process's devices, int [rows], in order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[rows] for (rows,) in places]))


def put_rows(
    batch: dict[str, np.ndarray], size: int, mesh: Mesh, dim: int = 0
) -> dict[str, jax.Array]:
    """A global batch of `size` rows out of each process's own.

    Args:
      batch: arrays [own rows, ...], see `own_rows`; with dim=1 [steps, own rows, ...].
      size: B.
      mesh: over whose devices the batch is split.
      dim: where the rows are.
    """
    if jax.process_count() == 1:
        return put_batch(batch, mesh, dim)
    sharding, rows = batch_sharding(mesh, dim), own_rows(size, mesh)

    def place(column: np.ndarray) -> jax.Array:
        shape = (*column.shape[:dim], size, *column.shape[dim + 1 :])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return column.take(np.searchsorted(rows, np.arange(size)[index[dim]]), axis=dim)

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(column) for name, column in batch.items()}


@contextlib.contextmanager
def together() -> Iterator[None]:
    """While it lasts, a failure of what the processes do together ends this one at once, with one
    line: the others will not come to what an orderly end waits for."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).split("\n")[0]
        print(
            f"error: the processes of this run cannot go on together ({reason}); the checkpoints "
            "before are intact: start all of them again with the same command",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def to_host(tree: Any, mesh: Mesh) -> Any:
    """The whole arrays, as numpy's, in every process."""
    if jax.process_count() > 1:
        tree = _gather(mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
