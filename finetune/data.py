"""The files of a task, in a folder or a zip, and their examples as padded rows."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.data.batches import Batch
from clue_jax.errors import UserError
from clue_jax.features.sequences import build_row, pad_rows
from clue_jax.fetch import cache_directory, fetch, join
from clue_jax.files import sha256
from clue_jax.text import Tokenizer
from finetune.task import Example, Task, read_examples

# CLUE's own; `NAME_public.zip` lies there for each of its tasks.
ADDRESS = "https://storage.googleapis.com/cluebenchmark/tasks"
SHORTEST = 32  # the smallest bucket, in slots
_WINDOW = 50  # batches whose rows are sorted by length together


def read_split(
    task: Task,
    place: str | os.PathLike | None,
    split: str,
    version: str = "1.1",
    limit: int | None = None,
) -> list[Example] | None:
    """The examples of a split; None if there is no such file and it is not needed.

    Args:
      task: names its files.
      place: the folder of the files, a folder that holds it or the official zip, or that zip; None
        for the official zip in the cache, downloaded if need be.
      split: "train", "dev" or "test".
      version: of the benchmark, which chooses the test file.
      limit: the first so many only.

    Raises:
      UserError: if a file for training is missing, or a file is not as it should be.
    """
    name = {"train": task.train, "dev": task.dev}.get(split, task.test.get(version))
    place = download(task)[0] if place is None else Path(place)
    found = _read(task, place, name) if name else None
    if found is None:
        if split == "test":
            return None
        raise UserError(f"{place}: holds no {name or split} of {task.name}, nor {task.archive}")
    data, source = found
    examples = read_examples(task, data, source, labelled=split != "test")
    return examples[: limit * task.group] if limit else examples


def is_published(task: Task) -> bool:
    """Whether CLUE has a zip of the task."""
    return task.archive.endswith("_public.zip")


def download(
    task: Task, folder: str | os.PathLike | None = None, mirror: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Brings the official zip of a task to this machine, unless it is there.

    Args:
      task: of CLUE.
      folder: default `tasks` in the cache folder.
      mirror: a folder or URL that holds the zip (default: CLUE's own address).

    Returns:
      The zip, and what is known of it: "task", "output", "size", "sha256" and "cached", whether it
      was there.

    Raises:
      UserError: if CLUE publishes no zip of it, or the download fails or is not what it should be.
    """
    if not is_published(task):
        raise UserError(f"CLUE publishes no zip of {task.name}; name your own with --data-dir")
    path = (Path(folder) if folder else cache_directory() / "tasks") / task.archive
    cached = path.is_file()
    if not cached:
        fetch(join(mirror or ADDRESS, task.archive), path, key=join(ADDRESS, task.archive))
    record = {"task": task.name, "output": str(path), "size": path.stat().st_size}
    return path, record | {"sha256": sha256(path), "cached": cached}


def _read(task: Task, place: Path, name: str) -> tuple[bytes, str] | None:
    """The content of a file and where it stood."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    if place.is_file():
        return _from_zip(place, name)
    stem = task.archive.removesuffix(".zip")
    for folder in (place, place / task.name, place / stem):
        if (folder / name).is_file():
            return (folder / name).read_bytes(), str(folder / name)
    for archive in (place / task.archive, place / f"{task.name}.zip"):
        if archive.is_file():
            return _from_zip(archive, name)
    return None


def _from_zip(path: Path, name: str) -> tuple[bytes, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m == name or m.endswith(f"/{name}")]
            members = [m for m in members if not m.startswith("__MACOSX")]
            return (archive.read(members[0]), f"{path}/{members[0]}") if members else None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a zip file ({error})") from error


@dataclass(frozen=True)
class Rows:
    """Tokenized examples.

    Attributes:
      ids, segments: of each example, special tokens included, cut to the longest length.
      labels: int [n], float [n] for scores, float [n, C] for several labels; zeros without labels.
    """

    ids: list[list[int]]
    segments: list[list[int]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(
    examples: Sequence[Example], tokenizer: Tokenizer, task: Task, max_length: int
) -> Rows:
    """The rows of examples, in order.

    Args:
      examples: with or without labels.
      tokenizer: of the model.
      task: gives the order of the labels.
      max_length: T at most.
    """
    firsts = tokenizer.encode_batch([example.text_a for example in examples])
    seconds = tokenizer.encode_batch([example.text_b or "" for example in examples])
    ids, segments = [], []
    for i in range(len(examples)):
        a = firsts.ids[firsts.row_splits[i] : firsts.row_splits[i + 1]].tolist()
        b = seconds.ids[seconds.row_splits[i] : seconds.row_splits[i + 1]].tolist()
        row, row_segments = build_row(tokenizer, a, b, max_length)
        ids.append(row)
        segments.append(row_segments)
    return Rows(ids, segments, _labels(examples, task))


def _labels(examples: Sequence[Example], task: Task) -> np.ndarray:
    index = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "score":
        return np.array([example.label or 0.0 for example in examples], np.float32)
    if task.kind == "multi":
        labels = np.zeros((len(examples), len(task.labels)), np.float32)
        for i, example in enumerate(examples):
            labels[i, [index[name] for name in example.label or ()]] = 1
        return labels
    return np.array([index.get(example.label, 0) for example in examples], np.int32)


def buckets(max_length: int) -> tuple[int, ...]:
    """The lengths that programs are compiled for: powers of two from 32, and the longest."""
    lengths = [SHORTEST]
    while lengths[-1] * 2 < max_length:
        lengths.append(lengths[-1] * 2)
    return (*(length for length in lengths if length < max_length), max_length)


def train_order(
    rows: Rows, batch_size: int, seed: int, epoch: int, by_length: bool
) -> list[np.ndarray]:
    """The batches of an epoch as row numbers: a pure function of its arguments.

    A permutation of all rows, in which neighbouring batches are sorted by length so that each pads
    little; which batch comes when is random again. The last batch may be smaller.

    Args:
      rows: the training set.
      batch_size: B.
      seed, epoch: of the permutation.
      by_length: False keeps the plain permutation.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    if by_length:
        lengths = np.array([len(row) for row in rows.ids])
        window = _WINDOW * batch_size
        parts = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def batch_of(
    rows: Rows, chosen: np.ndarray, batch_size: int, lengths: Sequence[int], pad_id: int
) -> Batch:
    """Rows as arrays.

    Returns:
      "input_ids", "input_mask", "segment_ids" int32 [B, T], T the first of `lengths` that holds
      all; "labels" [B] or [B, C]; "weights" float32 [B], 0 for the rows that fill up.
    """
    longest = max(len(rows.ids[i]) for i in chosen)
    length = next(length for length in lengths if length >= longest)
    picked = [(rows.ids[i], rows.segments[i]) for i in chosen]
    padded = pad_rows(picked, length, pad_id, batch_size)
    labels = np.zeros((batch_size, *rows.labels.shape[1:]), rows.labels.dtype)
    labels[: len(chosen)] = rows.labels[chosen]
    weights = (np.arange(batch_size) < len(chosen)).astype(np.float32)
    return {**padded._asdict(), "labels": labels, "weights": weights}


def eval_batches(
    rows: Rows, batch_size: int, lengths: Sequence[int], pad_id: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, neighbours in length together: row numbers and their batch."""
    order = np.argsort([len(row) for row in rows.ids], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, batch_of(rows, chosen, batch_size, lengths, pad_id)
