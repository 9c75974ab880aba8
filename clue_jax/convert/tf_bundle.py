"""Our own reader and writer of tensorflow's V2 checkpoint format, the bundle.

A bundle is `PREFIX.index`, a sorted table from tensor name to entry, and raw data files
`PREFIX.data-00000-of-00001`. The table is that of LevelDB (blocks of prefix-compressed keys, a
footer with a magic number); entries are protocol buffers (tensorflow/core/protobuf/
tensor_bundle.proto). Table blocks and tensors carry CRC-32C checksums, and both are checked.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clue_jax.convert.merge import cast
from clue_jax.errors import UserError
from clue_jax.files import atomic_file, masked_crc32c

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_RESTART_INTERVAL = 16
_MOST_SHARDS = 4096

# tensorflow/core/framework/types.proto
_TYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    9: np.dtype(np.int64),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype(np.float16),
}
_OTHER_TYPES = {4: "uint8", 7: "string", 8: "complex64", 10: "bool"}
_TYPE_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies: its type, shape, data file number, byte range and masked CRC-32C."""

    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def read_bundle(prefix: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a V2 checkpoint, checksums verified.

    The arrays are views of the mapped files: reading holds nothing twice.

    Raises:
      UserError: for a missing, truncated or damaged file, or an unsupported tensor type.
    """
    entries, shards = read_index(prefix)
    files = {i: Path(f"{prefix}.data-{i:05d}-of-{shards:05d}") for i in range(shards)}
    mapped = {i: _map(path) for i, path in files.items()}
    tensors = {}
    faults = []
    for name, entry in entries.items():
        path = files[entry.shard]
        data = mapped[entry.shard][entry.offset : entry.offset + entry.size]
        if len(data) != entry.size:
            faults.append(f"{path}: truncated; {name} needs {entry.size} bytes at {entry.offset}")
        elif masked_crc32c(data) != entry.crc:
            faults.append(f"{path}: damaged; the checksum of {name} does not match")
        else:
            tensors[name] = data.view(entry.dtype).reshape(entry.shape)
    if faults:
        raise UserError("; ".join(faults))
    return tensors


def _map(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size == 0:  # nothing to map
            return np.zeros(0, np.uint8)
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error


def read_index(prefix: str | os.PathLike) -> tuple[dict[str, Entry], int]:
    """Reads `PREFIX.index`: the entries by tensor name, and the number of data files."""
    path = Path(f"{prefix}.index")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot read ({error.strerror}); expected a tensorflow V2 checkpoint"
        ) from error
    try:
        table = dict(_read_table(data))
        header = _read_message(table.pop(b""))
        shards = header[1][0]
        if not 1 <= shards <= _MOST_SHARDS:
            raise ValueError(f"it names {shards} data files")
        faults = [fault for item in table.items() if (fault := _unsupported(*item))]
        if faults:
            raise UserError(f"{path}: {'; '.join(faults)}")
        entries = {name.decode(): _read_entry(value, shards) for name, value in table.items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path}: damaged, or no checkpoint index ({error})") from error
    return entries, shards


def write_bundle(
    prefix: str | os.PathLike, tensors: Mapping[str, np.ndarray], dtype: np.dtype | None = None
) -> None:
    """Writes a V2 checkpoint of one data file; the index, written last, makes it complete.

    Args:
      prefix: such as "folder/bert_model.ckpt".
      tensors: name to array; one at a time is made contiguous.
      dtype: of the written numbers; None as they are.
    """
    entries: list[tuple[bytes, bytes]] = [(b"", b"\x08\x01\x1a\x02\x08\x01")]  # 1 file, version 1
    offset = 0
    with atomic_file(f"{prefix}.data-00000-of-00001") as file:
        for name in sorted(tensors, key=str.encode):
            array = np.asarray(cast(tensors[name], dtype, name), order="C")
            data = array.reshape(-1).view(np.uint8)
            data.flags.writeable = False  # what the checksum's library asks for
            file.write(data)
            entry = Entry(array.dtype, array.shape, 0, offset, len(data), masked_crc32c(data))
            entries.append((name.encode(), _write_entry(entry)))
            offset += len(data)
    with atomic_file(f"{prefix}.index") as file:
        file.write(_write_table(entries))


# The table.


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("the footer is missing")
    at = len(data) - _FOOTER
    meta_offset, at = _read_varint(data, at)
    meta_size, at = _read_varint(data, at)
    for _ in _read_block(data, meta_offset, meta_size):  # empty; its checksum is verified
        pass
    index_offset, at = _read_varint(data, at)
    index_size, at = _read_varint(data, at)
    for _, handle in _read_block(data, index_offset, index_size):
        offset, at = _read_varint(handle, 0)
        size, _ = _read_varint(handle, at)
        yield from _read_block(data, offset, size)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = data[offset : offset + size]
    kind = data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if masked_crc32c(data[offset : offset + size + 1]) != crc:
        raise ValueError("the checksum of a block does not match")
    if kind != 0:
        raise ValueError("a block is compressed; tensorflow never writes that")
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * restarts
    key, at = b"", 0
    while at < end:
        shared, at = _read_varint(block, at)
        rest, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        key = key[:shared] + block[at : at + rest]
        at += rest
        yield key, block[at : at + length]
        at += length


def _write_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    out = bytearray()

    def add(block: bytes) -> bytes:
        handle = _varint(len(out)) + _varint(len(block))
        out.extend(block + b"\0" + struct.pack("<I", masked_crc32c(block + b"\0")))
        return handle

    data_handle = add(_write_block(entries))
    meta_handle = add(_write_block([]))
    index_handle = add(_write_block([(entries[-1][0], data_handle)]))
    handles = meta_handle + index_handle
    return bytes(out) + handles.ljust(_FOOTER - 8, b"\0") + struct.pack("<Q", _MAGIC)


def _write_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out = bytearray()
    restarts = [0]
    previous = b""
    for i, (key, value) in enumerate(entries):
        shared = len(os.path.commonprefix([previous, key]))  # noqa: RUF071 (bytes, not paths)
        if i % _RESTART_INTERVAL == 0 and i:
            restarts.append(len(out))
            shared = 0
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        out += key[shared:] + value
        previous = key
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


# Protocol buffers: field number -> list of values (integers, or bytes).


def _unsupported(name: bytes, value: bytes) -> str | None:
    """What keeps a sound entry from being read, in words."""
    message = _read_message(value)
    if 7 in message:
        return f"{_shown(name)} is a partitioned variable, which no BERT has"
    if name.startswith(b"\0"):
        return None  # a slice of one
    number = message.get(1, [0])[0]
    if number not in _TYPES:
        return f"{_shown(name)} has the tensor type {_OTHER_TYPES.get(number, number)}"
    return None


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _read_entry(data: bytes, shards: int) -> Entry:
    message = _read_message(data)
    number = message[1][0]
    shape = []
    for shape_message in message.get(2, []):
        for dim in _read_message(shape_message).get(2, []):
            shape.append(_read_message(dim).get(1, [0])[0])
    shard, offset, size = (message.get(field, [0])[0] for field in (3, 4, 5))
    dtype = _TYPES[number]
    if not 0 <= shard < shards:
        raise ValueError(f"data file {shard} of {shards}")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes for shape {shape} of {dtype}")
    return Entry(dtype, tuple(shape), shard, offset, size, message[6][0])


def _write_entry(entry: Entry) -> bytes:
    if entry.dtype not in _TYPE_NUMBERS:
        raise UserError(f"tensors of type {entry.dtype} have no place in a TF-BERT checkpoint")
    dims = b""
    for size in entry.shape:
        dim = b"\x08" + _varint(size) if size else b""
        dims += b"\x12" + _varint(len(dim)) + dim
    out = b"\x08" + _varint(_TYPE_NUMBERS[entry.dtype]) + b"\x12" + _varint(len(dims)) + dims
    if entry.offset:
        out += b"\x20" + _varint(entry.offset)
    if entry.size:
        out += b"\x28" + _varint(entry.size)
    return out + b"\x35" + struct.pack("<I", entry.crc)


def _read_message(data: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind == 2:
            length, at = _read_varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind == 5:
            value, at = struct.unpack_from("<I", data, at)[0], at + 4
        else:
            raise ValueError(f"unexpected wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
