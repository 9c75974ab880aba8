"""Zips unpacked within their folder, or not at all."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clue_jax.errors import UserError
from clue_jax.files import atomic_directory

_LARGEST_RATIO = 200  # weights shrink by a tenth, text to a fifth
_ALWAYS_ALLOWED = 64 << 20
# What damage shows in, when a zip is opened or read.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError, OSError,
)  # fmt: skip
_CHUNK = 1 << 20


def unpack(
    archive: str | os.PathLike,
    directory: str | os.PathLike,
    finish: Callable[[Path, list[str]], None] | None = None,
) -> list[str]:
    """Unpacks a zip into a folder of its own, which appears complete or not at all.

    Every member is checked before anything is written: names that leave the folder, links and
    other special files, encrypted members, names that differ in case only, and sizes out of
    proportion are refused.

    Args:
      archive: the zip.
      directory: the folder, not there or empty.
      finish: adds to the unpacked files before the folder appears; gets it and their names.

    Returns:
      The names of the files.

    Raises:
      UserError: for such an archive, a damaged one, or a full disk.
    """
    archive, directory = Path(archive), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not empty; nothing was unpacked")
    try:
        with zipfile.ZipFile(archive) as file:
            members = [m for m in file.infolist() if not m.is_dir() and not _is_of_a_mac(m)]
            _check_members(archive, file.infolist())
            free = shutil.disk_usage(_existing(directory)).free
            total = sum(member.file_size for member in members)
            if total > free:
                raise UserError(
                    f"{archive}: needs {total} bytes in {directory}, which has {free} left"
                )
            with atomic_directory(directory) as folder:
                for member in members:
                    target = folder / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(member) as source, target.open("xb") as out:
                        # The library ends at the announced size and checks the CRC-32 there.
                        shutil.copyfileobj(source, out, _CHUNK)
                if finish is not None:
                    finish(folder, [member.filename for member in members])
    except OSError as error:
        raise UserError(f"{archive}: cannot unpack ({error.strerror or error})") from error
    except ZIP_ERRORS as error:
        raise UserError(f"{archive}: damaged, or not a zip file ({error})") from error
    return [member.filename for member in members]


def _is_of_a_mac(member: zipfile.ZipInfo) -> bool:
    """Whether a member holds what a Mac adds to each file, under a name that looks like it."""
    parts = PurePosixPath(member.filename).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        reason = None
        if not parts or name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
            reason = "its path leaves the folder"
        elif "\\" in member.orig_filename or "\0" in member.orig_filename:
            reason = "its path is not portable"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = "it is a link or a special file"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = "it is packed in an unusual way"
        elif member.flag_bits & 1:
            reason = "it is encrypted"
        folded = unicodedata.normalize("NFC", name).casefold().rstrip("/")
        if folded in seen:
            reason = "two members have its name"
        seen.add(folded)
        if reason:
            raise UserError(f"{archive}: {name!r} is refused: {reason}; nothing was unpacked")
    packed = archive.stat().st_size
    total = sum(member.file_size for member in members)
    if total > _ALWAYS_ALLOWED and total > _LARGEST_RATIO * packed:
        raise UserError(f"{archive}: {packed} bytes claim to hold {total}; nothing was unpacked")


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
