"""What a shard is: rows of a fixed number of bytes, so that any row is found by arithmetic.

A row of T slots holds, little-endian:

  token_ids             uint16 [T]
  length                uint16, slots in use
  word_starts           1 bit a slot: the token begins a word (for whole-word masking)
  document_starts       1 bit a slot: the token begins a document (a row may hold several)
  segment_ids           1 bit a slot            only for sentence pairs
  next_sentence_label   uint8, 1 = random next  only for sentence pairs
  masked                1 bit a slot            only for fixed masks, as is
  masked_lm_ids         uint16 [M], the tokens behind the masks in order
  checksum              uint32, CRC-32C of the bytes before it

Without fixed masks that is 2.3 bytes a slot at T=128. The manifest, written last, makes a folder of
shards complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from clue_jax.errors import UserError
from clue_jax.files import atomic_file, read_json

MANIFEST = "manifest.json"
FORMAT = "clue_jax rows 1"
FORMAT_ORIGINAL = "original tfrecord"
FORMATS = (FORMAT, FORMAT_ORIGINAL)


@dataclass(frozen=True)
class RowLayout:
    """What the rows of a shard hold.

    Attributes:
      seq_len: T.
      pairs: segment ids and a next-sentence label are stored.
      max_predictions: M, the slots for fixed masks; 0 when masks are drawn while training.
    """

    seq_len: int
    pairs: bool = False
    max_predictions: int = 0

    @property
    def dtype(self) -> np.dtype:
        """One row as a numpy record."""
        bits = (np.uint8, (-(-self.seq_len // 8),))
        fields: list[Any] = [
            ("token_ids", "<u2", (self.seq_len,)),
            ("length", "<u2"),
            ("word_starts", *bits),
            ("document_starts", *bits),
        ]
        if self.pairs:
            fields += [("segment_ids", *bits), ("next_sentence_label", np.uint8)]
        if self.max_predictions:
            fields += [("masked", *bits), ("masked_lm_ids", "<u2", (self.max_predictions,))]
        return np.dtype([*fields, ("checksum", "<u4")])


def pack_rows(layout: RowLayout, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Packs arrays into records.

    Args:
      layout: what the rows hold.
      columns: "token_ids" [R, T], "length" [R], "word_starts" and "document_starts" bool [R, T];
        for pairs "segment_ids" [R, T] and "next_sentence_label" [R]; for fixed masks "masked" bool
        [R, T] and "masked_lm_ids" [R, M].

    Returns:
      [R] records of `layout.dtype`, checksums filled in.
    """
    records = np.zeros(len(columns["length"]), layout.dtype)
    for name in layout.dtype.names:
        if name == "checksum":
            continue
        column = columns[name]
        if name in _BITS:
            column = np.packbits(column.astype(bool), axis=1)
        records[name] = column
    records["checksum"] = _checksums(records)
    return records


_BITS = ("word_starts", "document_starts", "segment_ids", "masked")


def unpack_rows(layout: RowLayout, records: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `pack_rows`: int32 and bool arrays by field name."""
    columns = {}
    for name in layout.dtype.names:
        if name == "checksum":
            continue
        column = records[name]
        if name in _BITS:
            columns[name] = np.unpackbits(column, axis=1, count=layout.seq_len).astype(bool)
        else:
            columns[name] = column.astype(np.int32)
    return columns


def _checksums(records: np.ndarray) -> np.ndarray:
    size = records.dtype.itemsize
    data = records.tobytes()
    end = size - records.dtype["checksum"].itemsize
    return np.array(
        [google_crc32c.value(data[start : start + end]) for start in range(0, len(data), size)],
        np.uint32,
    )


def write_shard(path: str | os.PathLike, records: np.ndarray) -> None:
    """Writes a shard file, absent or complete."""
    with atomic_file(path) as file:
        file.write(records.tobytes())


class RowShards:
    """A folder of row shards, read by memory map.

    Args:
      directory: with its manifest.

    Raises:
      UserError: if the manifest or a shard is missing, or a shard has not its size.
    """

    def __init__(self, directory: str | os.PathLike):
        directory = Path(directory)
        self.manifest = read_manifest(directory)
        self.layout = RowLayout(
            self.manifest["seq_len"],
            self.manifest["pairs"],
            self.manifest["max_predictions"] if self.manifest["masking"] != "none" else 0,
        )
        self._paths = [directory / shard["name"] for shard in self.manifest["shards"]]
        counts = [shard["rows"] for shard in self.manifest["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        for path, count in zip(self._paths, counts, strict=True):
            check_size(path, count * self.layout.dtype.itemsize)
        self._maps = [
            np.memmap(path, self.layout.dtype, "r") if count else np.empty(0, self.layout.dtype)
            for path, count in zip(self._paths, counts, strict=True)
        ]

    @property
    def seq_len(self) -> int:
        """T."""
        return self.layout.seq_len

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, checksums verified.

        Returns:
          The columns of `unpack_rows`.

        Raises:
          UserError: naming the file and the row that is damaged.
        """
        records = np.empty(len(rows), self.layout.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            records[here] = self._maps[shard][rows[here] - self._starts[shard]]
        wrong = np.flatnonzero(_checksums(records) != records["checksum"])
        if len(wrong):
            shard = shards[wrong[0]]
            raise UserError(
                f"{self._paths[shard]}: row {rows[wrong[0]] - self._starts[shard]} is damaged; "
                "build the shards again"
            )
        return unpack_rows(self.layout, records)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads the manifest of a data folder.

    Raises:
      UserError: if there is none, or none of ours.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise UserError(
            f"{directory}: no {MANIFEST}; build shards there with pretraining.build_shards "
            "(an unfinished build has none either: run it again)"
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") not in FORMATS:
        raise UserError(f"{path}: not a manifest of pretraining shards ({' or '.join(FORMATS)})")
    return manifest


def check_size(path: Path, expected: int) -> None:
    """Refuses a shard that is missing, truncated or too long.

    Raises:
      UserError: with both sizes.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: missing shard; build the shards again") from error
    if size != expected:
        raise UserError(
            f"{path}: {size} bytes, the manifest says {expected}; build the shards again"
        )
