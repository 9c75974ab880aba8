"""Shards in an object store, copied to this machine: rows are read in any order, by memory map."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path

from etils import epath

from clue_jax.data.records import MANIFEST
from clue_jax.errors import UserError
from clue_jax.fetch import cache_directory
from clue_jax.files import atomic_file, resumable_directory
from clue_jax.runlog import progress


def local_copy(address: str) -> Path:
    """The folder in the cache folder with the files of a data folder elsewhere.

    They are copied if they are not there, or if the manifest has changed since; a copy that was cut
    goes on with the files that are left. Of several processes of a machine one copies.

    Args:
      address: such as gs://bucket/shards.

    Raises:
      UserError: if there is no manifest, or something cannot be read or written.
    """
    source = epath.Path(address)
    try:
        manifest = (source / MANIFEST).read_bytes()
        files = sorted(path for path in source.iterdir() if not path.is_dir())
    except OSError as error:
        raise UserError(
            f"{address}: holds no {MANIFEST} that can be read ({error.strerror or error})"
        ) from error
    name = hashlib.sha256(str(source).encode()).hexdigest()[:12]
    folder = cache_directory() / "data" / f"{source.name}-{name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".wait").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = folder / MANIFEST
        if here.exists() and here.read_bytes() == manifest:
            return folder
        with resumable_directory(folder, hashlib.sha256(manifest).hexdigest()) as unfinished:
            for path in progress(files, "files"):
                copy = unfinished / path.name
                if not copy.exists():
                    with path.open("rb") as reader, atomic_file(copy) as writer:
                        shutil.copyfileobj(reader, writer, 1 << 20)
    return folder
