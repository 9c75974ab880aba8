"""Where arrays live: one mesh, one ordered table from parameter path to partition.

Modules know nothing of meshes; `jax.jit` inserts the communication.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clue_jax.errors import UserError
from clue_jax.optim import map_paths

# data: the batch is split; fsdp: the batch and the parameters are; model: heads, feed-forward and
# vocabulary are.
AXES = ("data", "fsdp", "model")

# First match wins. Optimizer slots end in the path of their parameter, so they match as well.
TABLE = (
    (r"word_embeddings$", P("model", "fsdp")),
    (r"(position|token_type)_embeddings$", P(None, "fsdp")),
    (r"attention/(query|key|value)/kernel$", P("fsdp", "model")),
    (r"attention/(query|key|value)/bias$", P("model")),
    (r"attention/output/kernel$", P("model", "fsdp")),
    (r"intermediate/kernel$", P("fsdp", "model")),
    (r"intermediate/bias$", P("model")),
    (r"feed_forward/output/kernel$", P("model", "fsdp")),
    (r"(pooler|transform)/kernel$", P("fsdp", None)),
    (r"masked_lm/bias$", P("model")),
    (r"", P()),
)

_log = logging.getLogger(__name__)


def make_mesh(spec: str | None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the first devices.

    Args:
      spec: such as "data=8" or "data=2,fsdp=4"; axes left out have size 1. None puts all devices on
        `data`.
      devices: those of this machine, or others to compile for.

    Raises:
      UserError: for a malformed specification or more devices than there are.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1)
    if spec is None:
        sizes["data"] = len(devices)
    else:
        for part in spec.split(","):
            match = re.fullmatch(r"(\w+)=(\d+)", part.strip())
            if not match or match[1] not in AXES or int(match[2]) < 1:
                raise UserError(
                    f"--mesh {spec!r}: expected AXIS=SIZE[,AXIS=SIZE], AXIS one of "
                    f"{', '.join(AXES)}"
                )
            sizes[match[1]] = int(match[2])
    total = math.prod(sizes.values())
    if total > len(devices):
        raise UserError(f"--mesh {spec!r} needs {total} devices, there are {len(devices)}")
    # The default axis type, Explicit, is not understood by Linen's layers.
    return jax.make_mesh(
        tuple(sizes.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:total],
    )


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree of parameters or optimizer state."""
    return map_paths(
        lambda path, leaf: NamedSharding(mesh, partition(path, leaf.shape, mesh)), tree
    )


def partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The table's partition; a dimension that its axis does not divide stays whole, and is said."""
    spec = next(spec for pattern, spec in TABLE if re.search(pattern, path))
    axes = []
    for dim, axis in enumerate(spec[: len(shape)]):
        if axis is not None and shape[dim] % mesh.shape[axis]:
            _say_replicated(path.split("/")[-1], shape, dim, axis, mesh.shape[axis])
            axis = None
        axes.append(axis)
    return P(*axes)


@functools.cache
def _say_replicated(name: str, shape: tuple[int, ...], dim: int, axis: str, size: int) -> None:
    _log.warning(
        "%s %s: dimension %d (%d) is not a multiple of %s=%d and stays whole",
        name, list(shape), dim, shape[dim], axis, size,
    )  # fmt: skip


def batch_sharding(mesh: Mesh, dim: int = 0) -> NamedSharding:
    """Batches are split over `data` and `fsdp`, by this dimension."""
    return NamedSharding(mesh, P(*[None] * dim, ("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that the mesh does not divide.

    Raises:
      UserError: naming both numbers.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % ways:
        raise UserError(
            f"--batch-size {batch_size} is not a multiple of {ways}, the devices that split the "
            f"batch (data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']})"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, dim: int = 0) -> dict[str, jax.Array]:
    """Places the arrays of a batch, split by this dimension."""
    return jax.device_put(dict(batch), batch_sharding(mesh, dim))
