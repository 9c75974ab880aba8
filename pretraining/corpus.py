"""Text files as documents of sentences, in pieces that can be worked on apart."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from etils import epath

from clue_jax.errors import UserError
from clue_jax.files import is_remote

PIECE_BYTES = 16 << 20  # text of one shard; bounds the memory of a worker
_CLOSING = "。！？；”’」』）"
_SENTENCE_END = re.compile(
    rf"(?<=[。！？；])(?![{_CLOSING}])|(?<=[。！？；][”’」』）])(?![{_CLOSING}])"
)


@dataclass(frozen=True)
class Piece:
    """A byte range of a file, whole documents of it."""

    path: str
    start: int
    stop: int


def cut_pieces(paths: Sequence[str | os.PathLike], size: int = PIECE_BYTES) -> list[Piece]:
    """Cuts files at document borders (blank lines) into pieces of about `size` bytes.

    The pieces depend on the files alone, so shards come out the same for any number of workers.

    Raises:
      UserError: for a file that is missing, a folder or empty.
    """
    pieces = []
    for path in map(epath.Path, paths):
        try:
            total = path.stat().length
            file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path}: cannot read ({error.strerror or error})") from error
        with file:
            if total == 0:
                raise UserError(f"{path}: empty file")
            start = 0
            while start < total:
                stop = _next_border(file, start + size, total)
                pieces.append(Piece(str(path), start, stop))
                start = stop
    return pieces


def _next_border(file: BinaryIO, at: int, total: int) -> int:
    if at >= total:
        return total
    file.seek(at)
    file.readline()  # the line cut by `at`
    for line in iter(file.readline, b""):
        if not line.strip():
            return file.tell()
    return total


def stamps(paths: Sequence[str | os.PathLike]) -> list[list[int]]:
    """Size and time of files, by which a change is seen."""
    found = []
    for path in map(os.fspath, paths):
        if is_remote(path):
            about = epath.Path(path).stat()
            found.append([about.length, about.mtime])
        else:  # to the nanosecond
            here = Path(path).stat()
            found.append([here.st_size, here.st_mtime_ns])
    return found


def read_documents(piece: Piece, paragraphs: bool, removed: str = "") -> Iterator[list[str]]:
    """The documents of a piece: lists of sentences, stripped and not empty.

    Lines end with a line feed only; a line without anything but white space ends a document.

    Args:
      piece: where to read.
      paragraphs: lines are paragraphs, to be split after 。！？；.
      removed: deleted from every line first.

    Raises:
      UserError: naming the line that is not UTF-8.
    """
    document: list[str] = []
    with epath.Path(piece.path).open("rb") as file:
        file.seek(piece.start)
        stop = piece.start
        while (at := stop) < piece.stop and (raw := file.readline()):
            stop = at + len(raw)
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                number = _line_number(piece.path, at)
                raise UserError(
                    f"{piece.path}, line {number}: not UTF-8 text; convert the file first"
                ) from error
            line = line.lstrip("\ufeff") if at == 0 else line
            if removed:
                line = line.replace(removed, "").strip()
            if line:
                document.extend(split_sentences(line) if paragraphs else [line])
            elif document:
                yield document
                document = []
    if document:
        yield document


def split_sentences(paragraph: str) -> list[str]:
    """Splits after 。！？；, closing quotation marks staying with their sentence."""
    return [part for part in map(str.strip, _SENTENCE_END.split(paragraph)) if part]


def is_held_out(document: Iterable[str], share: float) -> bool:
    """Whether a document is held out: decided by its hash, so the same text always is."""
    if not share:
        return False
    digest = 0
    for sentence in document:
        digest = zlib.crc32(sentence.encode("utf-8"), digest)
    return digest < share * 2**32


def _line_number(path: str, at: int) -> int:
    lines = 1
    with epath.Path(path).open("rb") as file:
        while at > 0:
            block = file.read(min(at, 1 << 20))
            lines += block.count(b"\n")
            at -= len(block)
    return lines
