"""Files that are either absent or whole, local or remote (`gs://` and the like, through etils)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from etils import epath

from clue_jax.errors import Interrupted, UserError

KEY = ".clue_jax_unfinished"  # in a folder that is being written: what is


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write that appears under `path` only when the block ends well.

    The bytes go to a neighbour named after this process; it is removed if the block raises.

    Raises:
      Interrupted: if the disk or the store refuses.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise Interrupted(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented UTF-8 JSON atomically; see `json_text`."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that every reader takes: numbers that are not finite become null, and a text
    with half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=indent)
    if _SURROGATE.search(text):
        text = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text


_SURROGATE = re.compile("[\ud800-\udfff]")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if the file is missing or is not JSON (with the line of the fault).
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise UserError(f"{path}: not valid JSON ({error})") from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: if the file is missing, is not JSON or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 text file whole.

    Raises:
      UserError: if the file is missing, or not UTF-8 (with the line of the fault).
    """
    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; convert the file first") from error


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, as lower-case hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """CRC-32C, rotated and shifted as tensorflow stores it in checkpoints and TFRecords.

    Args:
      data: bytes, or a read-only contiguous array of them.
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A new local directory to fill that takes the name `path` only when the block ends well.

    A directory already there is replaced as a whole, so a reader never sees a mix of two writes.
    """
    check_local(path)
    path = Path(os.path.realpath(path))  # behind a link, the folder is replaced and not the link
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, expected a folder")
    _clear_leftovers(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _swap_in(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is the address of a place in an object store, such as gs://bucket/name."""
    return "://" in os.fspath(path)


def check_local(path: str | os.PathLike) -> None:
    """Refuses an address in an object store for a folder that cannot lie there.

    Raises:
      UserError: which names it.
    """
    if is_remote(path):
        raise UserError(
            f"{path}: this folder must be a local or a shared one; mount the bucket (gcsfuse does "
            "it), or copy the folder there afterwards"
        )


@contextlib.contextmanager
def resumable_directory(path: str | os.PathLike, key: str) -> Iterator[epath.Path]:
    """As `atomic_directory`, but what a writer that was killed has done is there for the next.

    The block finds files that an earlier one left; it must be able to tell which of them are whole.
    In an object store, where folders have no names of their own, it writes files where they will
    stay, and the last one must make them complete.

    Args:
      path: as in `atomic_directory`, or remote.
      key: what is being written; with another key the next writer starts anew.

    Raises:
      UserError: if another process of this machine is writing there. With one raised in the block,
        which is not `Interrupted`, nothing is left.
      Interrupted: for an error of the disk or the store; what is done is kept.
    """
    if is_remote(path):
        with _resumable_remote(epath.Path(path), key) as folder:
            yield folder
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, expected a folder")
    _clear_leftovers(path)
    unfinished = path.parent / f".{path.name}.unfinished"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path}: another process is writing it") from None
            name = _begin(epath.Path(unfinished), key)
            try:
                yield epath.Path(unfinished)
                name.unlink()
                _swap_in(unfinished, path)
            except BaseException as error:
                if _is_kept(error):
                    raise
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            finally:  # last, so that no other writer comes in before the folder has its name
                Path(lock.name).unlink()
    except OSError as error:
        raise Interrupted(f"{path}: cannot write ({error.strerror or error})") from error


def _is_kept(error: BaseException) -> bool:
    """Whether what was done before an error is of use to the next writer. A file that is missing
    means that it is not as it should be."""
    kept = isinstance(error, KeyboardInterrupt | Interrupted | OSError)
    return kept and not isinstance(error, FileNotFoundError)


@contextlib.contextmanager
def _resumable_remote(path: epath.Path, key: str) -> Iterator[epath.Path]:
    path.mkdir(parents=True, exist_ok=True)
    name = _begin(path, key)
    try:
        yield path
        name.unlink()
    except BaseException as error:
        if not _is_kept(error):
            path.rmtree(missing_ok=True)
        raise


def _begin(folder: epath.Path, key: str) -> epath.Path:
    """The file that says what is being written in a folder; it is emptied if that is new."""
    name = folder / KEY
    if not name.exists() or name.read_text() != key:
        folder.rmtree(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(name, key)
    return name


def _swap_in(new: Path, path: Path) -> None:
    """Gives a folder the name of another, which goes."""
    if path.exists():
        old = path.parent / f".{path.name}.{os.getpid()}.old"
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)
    else:
        new.rename(path)


def _clear_leftovers(path: Path) -> None:
    """Removes what a writer of `path` left when it was killed; its only copy is put back."""
    if not path.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(tmp|old)")
    for left in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(left.name)
        if not match or _is_alive(int(match[1])):
            continue
        if match[2] == "old" and not path.exists():
            left.rename(path)  # killed between the two renames below
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # no two writes of one process overlap
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
