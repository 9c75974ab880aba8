"""The original's pretraining files: TFRecords of tf.train.Example, masks fixed, T slots each.

Reading and writing the Examples needs tensorflow, imported when first used. Records are found by
their framing (tensorflow/core/lib/io/record_writer.h), so that rows can be read in any order.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.data.records import FORMAT_ORIGINAL, MANIFEST, check_size, read_manifest
from clue_jax.data.tf import tensorflow
from clue_jax.errors import UserError
from clue_jax.files import atomic_file, masked_crc32c


def is_tfrecord_folder(directory: str | os.PathLike) -> bool:
    """Whether a data folder holds the original's files, ours or made by the original."""
    directory = Path(directory)
    if (directory / MANIFEST).exists():
        return read_manifest(directory)["format"] == FORMAT_ORIGINAL
    return bool(_record_files(directory))


def _record_files(directory: Path) -> list[Path]:
    return sorted([*directory.glob("*.tfrecord"), *directory.glob("*.tf_record")])


def write_tfrecords(path: str | os.PathLike, columns: Mapping[str, np.ndarray]) -> None:
    """Writes a TFRecord file in the original's schema, absent or complete.

    Args:
      columns: "input_ids", "input_mask", "segment_ids" [R, T]; "masked_lm_positions",
        "masked_lm_ids", "masked_lm_weights" [R, M]; "next_sentence_labels" [R].
    """
    tf = tensorflow("writing the original's TFRecords")
    with atomic_file(path) as file:
        for row in range(len(columns["input_ids"])):
            features = {}
            for name, column in columns.items():
                values = np.atleast_1d(column[row])
                if name == "masked_lm_weights":
                    feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
                else:
                    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
                features[name] = feature
            example = tf.train.Example(features=tf.train.Features(feature=features))
            file.write(_frame(example.SerializeToString(deterministic=True)))


class TFRecordShards:
    """A folder of the original's TFRecord files, uncompressed, with or without a manifest.

    Args:
      directory: every `*.tfrecord` and `*.tf_record` in it is read.

    Raises:
      UserError: for damaged or empty files.
    """

    def __init__(self, directory: str | os.PathLike):
        self._tf = tensorflow("reading the original's TFRecords")
        directory = Path(directory)
        if (directory / MANIFEST).exists():
            self.manifest = read_manifest(directory)
            for shard in self.manifest["shards"]:
                check_size(directory / shard["name"], shard["bytes"])
            self._paths = [directory / shard["name"] for shard in self.manifest["shards"]]
        else:
            self.manifest = None
            self._paths = _record_files(directory)
        self._index = [_record_index(path) for path in self._paths]
        self._starts = np.concatenate(
            [[0], np.cumsum([len(index) for index in self._index], dtype=np.int64)]
        )
        if not len(self):
            raise UserError(f"{directory}: the TFRecord files hold no record")
        features = self._features(self._record(0))
        self.seq_len = len(features["input_ids"].int64_list.value)
        self.max_predictions = len(features["masked_lm_positions"].int64_list.value)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The records of these numbers, checksums verified: the columns of `write_tfrecords`."""
        tf = self._tf
        t, m = self.seq_len, self.max_predictions
        spec = {name: tf.io.FixedLenFeature([t], tf.int64) for name in _PER_SLOT}
        spec |= {name: tf.io.FixedLenFeature([m], tf.int64) for name in _PER_MASK}
        spec["masked_lm_weights"] = tf.io.FixedLenFeature([m], tf.float32)
        spec["next_sentence_labels"] = tf.io.FixedLenFeature([1], tf.int64)
        try:
            parsed = tf.io.parse_example([self._record(row) for row in rows], spec)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(
                f"{self._paths[0].parent}: not the original's schema ({error})"
            ) from error
        columns = {name: value.numpy() for name, value in parsed.items()}
        columns["next_sentence_labels"] = columns["next_sentence_labels"][:, 0]
        return {
            name: column if name == "masked_lm_weights" else column.astype(np.int32)
            for name, column in columns.items()
        }

    def _record(self, row: int) -> bytes:
        shard = int(np.searchsorted(self._starts, row, side="right") - 1)
        offset, length = self._index[shard][row - self._starts[shard]]
        with self._paths[shard].open("rb") as file:
            file.seek(offset)
            data = file.read(length + 4)
        if struct.unpack("<I", data[length:])[0] != masked_crc32c(data[:length]):
            raise UserError(f"{self._paths[shard]}: record {row - self._starts[shard]} is damaged")
        return data[:length]

    def _features(self, record: bytes) -> Mapping[str, Any]:
        example = self._tf.train.Example.FromString(record)
        missing = [
            name for name in (*_PER_SLOT, *_PER_MASK) if name not in example.features.feature
        ]
        if missing:
            raise UserError(f"{self._paths[0]}: records without {', '.join(missing)}")
        return example.features.feature


_PER_SLOT = ("input_ids", "input_mask", "segment_ids")
_PER_MASK = ("masked_lm_positions", "masked_lm_ids")


def _record_index(path: Path) -> np.ndarray:
    """Offset and length of every record's data, int64 [R, 2], by walking the framing."""
    index = []
    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(12)
            if len(header) < 12 or struct.unpack("<I", header[8:])[0] != masked_crc32c(header[:8]):
                raise UserError(f"{path}: damaged at byte {at}, or no uncompressed TFRecord file")
            (length,) = struct.unpack("<Q", header[:8])
            if at + length + 16 > size:
                raise UserError(f"{path}: truncated in record {len(index)}")
            index.append((at + 12, length))
            at += length + 16
    return np.array(index, np.int64).reshape(-1, 2)


def _frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    crcs = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(crcs) + data + next(crcs)
