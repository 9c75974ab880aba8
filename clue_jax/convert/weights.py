"""Weight files of model directories: safetensors, sharded or not, and PyTorch's .bin (read only).

Files are mapped and their tensors are views, and they are written one tensor at a time, so that a
conversion never holds a model twice.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from clue_jax.convert.merge import cast, count
from clue_jax.convert.torch_file import read_torch_file
from clue_jax.errors import UserError
from clue_jax.files import atomic_file, read_json

WEIGHTS = "model.safetensors"
# In this order: transformers prefers safetensors as well.
CANDIDATES = (
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def find_weights(directory: Path) -> Path | None:
    """The weight file of a model directory (for shards, their index), or None."""
    paths = (directory / name for name in CANDIDATES)
    return next((path for path in paths if path.exists()), None)


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a weight file, or all files of an index, as name -> array (views of the mapped file).

    Raises:
      UserError: for a missing or damaged file, or one that holds more than tensors.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_torch_file(path)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], dtype: np.dtype | None = None
) -> None:
    """Writes a safetensors file, one tensor at a time (the library would hold all of them twice).

    Format: 8 bytes with the length of a JSON header, the header, the tensors back to back.

    Args:
      path: the file.
      tensors: name -> array.
      dtype: of the written numbers; None as they are.

    Raises:
      UserError: for a tensor type that the format lacks here, or if writing fails.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        kind = np.dtype(dtype or array.dtype)
        if kind not in _TYPE_NAMES:
            raise UserError(f"{path}: tensors of type {kind} cannot be written ({name})")
        size = array.size * kind.itemsize
        header[name] = {
            "dtype": _TYPE_NAMES[kind],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, array in tensors.items():
            written = np.asarray(cast(array, dtype, name), order="C")
            file.write(written.reshape(-1).view(np.uint8))


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file, whatever its name; see `read_weights`."""
    try:
        with safe_open(path, framework="numpy"):
            pass  # the library's parser is audited: what it takes has a sound header
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        if path.stat().st_size == 8 + size:
            data = np.zeros(0, np.uint8)
        else:
            data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + size))
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - set(_TYPES))
    if unknown:
        raise UserError(f"{path}: holds tensors of type {', '.join(unknown)}, which no BERT has")
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = data[start:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: holds no weight_map")
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place or place.endswith(".json"):
            raise UserError(f"{index}: {name} is said to be in {place!r}, which is no file name")
    tensors: dict[str, np.ndarray] = {}
    faults = []
    for place in sorted(set(places.values())):
        for name, array in read_weights(index.parent / place).items():
            if places.get(name) != place:
                faults.append(f"{place} holds {name}, which the index does not place there")
            tensors[name] = array
    faults += [f"{name} is not in {place}" for name, place in places.items() if name not in tensors]
    if faults:
        raise UserError(f"{index}: {count(faults)}: " + "; ".join(faults))
    return tensors
