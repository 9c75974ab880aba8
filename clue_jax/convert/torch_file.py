"""Tensors out of PyTorch's `.bin` files, without torch and without running what they say.

A `.bin` is a pickle, a program for a small stack machine that may call any function it names.
Here the program is read first: only the operations that torch.save writes for a dict of tensors
are allowed, and the only names it can reach are a few stand-ins below that build records. Two
layouts exist: a zip (since torch 1.6) and a plain sequence of pickles with the raw numbers behind
them, in which the CLUE models were published.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clue_jax.errors import UserError

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_OPERATIONS = frozenset({
    "PROTO", "GLOBAL", "MARK", "STOP", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE", "BINUNICODE", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET", "BINPERSID", "REDUCE", "BUILD",
})  # fmt: skip
_MOST_OPERATIONS = 5_000_000
_MOST_DIMENSIONS = 8  # a BERT has two; the product of very many sizes takes for ever
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage(NamedTuple):
    """Where the numbers of one or more tensors are: element type, key, number of elements."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor as the file describes it; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StandIn:
    """What a name in the file stands for. No attribute of it can be set, so no file changes it."""

    __slots__ = ()


class _StorageType(_StandIn):
    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name}")


class _OrderedDict(_StandIn):
    __slots__ = ()

    def __call__(self) -> OrderedDict:
        return OrderedDict()


class _RebuildTensor(_StandIn):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor without a storage")
        if len(shape) > _MOST_DIMENSIONS:
            raise pickle.UnpicklingError(f"a tensor of {len(shape)} dimensions")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor with impossible sizes")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter(_StandIn):
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


_NAMES: dict[tuple[str, str], _StandIn] = {
    ("collections", "OrderedDict"): _OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
} | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, place: Any) -> _Storage:
        kind, storage_type, key, _, size, *view = place
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if view not in ([], [None]):  # the older layout's way to share a part of a storage
            raise pickle.UnpicklingError("a view of a storage")
        if type(key) is not str or type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a storage with impossible values")
        return _Storage(storage_type.dtype, key, size)


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of torch.save that holds a dict of tensors.

    Args:
      path: in the zip layout or the older one.

    Returns:
      Name to array, views of the mapped file.

    Raises:
      UserError: if the file is damaged, or asks for anything but tensors.
    """
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            return _read_zip(path, data) if is_zip else _read_legacy(file, data)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from error
    except _FAULTS as error:
        raise UserError(
            f"{path}: not a plain file of tensors, or damaged ({error}); nothing in it was run"
        ) from error


_FAULTS = (
    pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ArithmeticError,
    AttributeError, EOFError, LookupError, MemoryError, TypeError, ValueError, struct.error,
)  # fmt: skip


def _read_zip(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        (pickled,) = [name for name in members if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("its members are compressed, which torch.save never does")
        order = members.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        content = _unpickle(io.BytesIO(archive.read(pickled)))
    places = {}
    for storage in _storages(content):
        member = members[f"{folder}data/{storage.key}"]
        name_size, extra_size = struct.unpack_from("<HH", data, member.header_offset + 26)
        start = member.header_offset + 30 + name_size + extra_size
        numbers = data[start : start + member.file_size]
        if len(numbers) != member.file_size or zlib.crc32(numbers) != member.CRC:
            raise ValueError(f"the checksum of {member.filename} does not match")
        places[storage.key] = numbers
    return _tensors(content, places)


def _read_legacy(file: io.BufferedReader, data: np.ndarray) -> dict[str, np.ndarray]:
    file.seek(0)
    if _unpickle(file) != _LEGACY_MAGIC or _unpickle(file) != _LEGACY_PROTOCOL:
        raise ValueError("the first bytes are not those of torch.save")
    if _unpickle(file).get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    content = _unpickle(file)
    keys = _unpickle(file)
    storages = {storage.key: storage for storage in _storages(content)}
    places = {}
    at = file.tell()
    for key in keys:
        storage = storages[key]  # torch.save lists those that tensors use
        (size,) = struct.unpack_from("<q", data, at)
        if size != storage.size:
            raise ValueError(f"storage {key} has {size} elements, expected {storage.size}")
        end = at + 8 + size * storage.dtype.itemsize
        if end > len(data):
            raise ValueError(f"truncated in storage {key}")
        places[key] = data[at + 8 : end]
        at = end
    return _tensors(content, places)


def _unpickle(file: io.BufferedIOBase) -> Any:
    """Runs one pickle, after its operations were read and found harmless; stops behind it."""
    start = file.tell()
    _check_operations(file)
    end = file.tell()
    file.seek(start)
    content = _Unpickler(io.BytesIO(file.read(end - start))).load()
    file.seek(end)
    return content


# How many items an operation takes off the stack for the one it leaves.
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "BUILD": 2, "APPEND": 2,
          "BINPERSID": 1}  # fmt: skip


def _check_operations(file: io.BufferedIOBase) -> None:
    """Reads the operations of a pickle without running them, and refuses what could do harm.

    The stack is followed as far as it matters: whether an item is a plain string. Only strings may
    be keys, for to hash nested tuples can take for ever, or the whole of the C stack.
    """
    with warnings.catch_warnings():
        # Of odd escapes in strings of a kind that is refused as soon as it is read.
        warnings.simplefilter("ignore", DeprecationWarning)
        _follow(file)


def _follow(file: io.BufferedIOBase) -> None:
    is_string: list[bool] = []  # of each item on the stack
    marks: list[int] = []
    memo: dict[int, bool] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(file), 1):
        name = operation.name
        if name not in _OPERATIONS or count > _MOST_OPERATIONS:
            raise pickle.UnpicklingError(f"it uses the operation {name}")
        if name in ("BINPUT", "LONG_BINPUT"):
            if argument > count:  # the memo is an array: a high index would fill the memory
                raise pickle.UnpicklingError(f"memo index {argument} after {count} operations")
            memo[argument] = is_string[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            is_string.append(memo[argument])
        elif name == "MARK":
            marks.append(len(is_string))
        elif name in ("TUPLE", "APPENDS", "SETITEMS", "SETITEM"):
            start = len(is_string) - 2 if name == "SETITEM" else marks.pop()
            if name.startswith("SETITEM") and not all(is_string[start::2]):
                raise pickle.UnpicklingError("it has keys that are no strings")
            del is_string[start:]
            if name == "TUPLE":
                is_string.append(False)
        elif name in _TAKES:
            del is_string[-_TAKES[name] :]
            is_string.append(False)
        elif name not in ("PROTO", "STOP"):
            is_string.append(name == "BINUNICODE")


def _named(content: Any) -> dict[str, _Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected a dict of tensors")
    for name, tensor in dict.items(content):  # an attribute of the file's may hide .items
        if type(name) is not str or not isinstance(tensor, _Tensor):
            raise ValueError(f"entry {str(name)[:80]!r} is not a tensor")
    return dict(dict.items(content))


def _storages(content: Any) -> set[_Storage]:
    storages = {tensor.storage for tensor in _named(content).values()}
    if len({storage.key for storage in storages}) != len(storages):
        raise ValueError("a storage is described in two ways")
    return storages


def _tensors(content: Any, places: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {}
    for name, tensor in _named(content).items():
        storage = tensor.storage
        numbers = places[storage.key]
        if len(numbers) != storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has {len(numbers)} bytes")
        last = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        count = math.prod(tensor.shape)
        if count and (last >= storage.size or count > storage.size):
            raise ValueError(f"{name} reaches beyond its storage")
        flat = numbers.view(storage.dtype)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        tensors[name] = np.lib.stride_tricks.as_strided(
            flat[tensor.offset :] if count else flat[:0], tensor.shape, strides, writeable=False
        )
    return tensors
