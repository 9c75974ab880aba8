"""The files of a task, in a folder or a zip, or downloaded."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

from clue_jax.archives import ZIP_ERRORS
from clue_jax.errors import UserError
from clue_jax.fetch import cache_directory, digest_of, fetch, join
from finetune.forms import FORMS
from finetune.records import json_lines
from finetune.task import Content, Task

_log = logging.getLogger(__name__)
NAMES_FILE = "labels.json"
# CLUE's own; `NAME_public.zip` lies there for each of its tasks.
ADDRESS = "https://storage.googleapis.com/cluebenchmark/tasks"


def read_split(
    task: Task,
    place: str | os.PathLike | None,
    split: str,
    version: str = "1.1",
    limit: int | None = None,
) -> list[Any] | None:
    """The examples of a split; None if there is no such file and it is not needed.

    Args:
      task: names its files.
      place: the folder of the files, a folder that holds it or the official zip, or that zip; None
        for the official zip in the cache, downloaded if need be.
      split: "train", "dev" or "test".
      version: of the benchmark, which chooses the test file.
      limit: the first so many records only; in several files, shared evenly among them.

    Raises:
      UserError: if a file for training is missing, or a file is not as it should be.
    """
    names = task.files(split, version)
    place = download(task)[0] if place is None else Path(place)
    shares = [None] * len(names)
    if limit:  # 5 of 2 files: 3 and 2
        shares = [
            (limit + len(names) - 1 - i) // len(names) * task.group for i in range(len(names))
        ]
    examples: list[Any] = []
    for name, share in zip(names, shares, strict=True):
        options = (_read(task, place, option) for option in name.split("|"))
        found = next((option for option in options if option), None)
        if found is None and split != "test":
            shown = name.replace("|", " or ")
            raise UserError(f"{place}: holds no {shown} of {task.name}, nor {task.archive}")
        if found is None:
            return None
        if split == "dev" and Path(found[1]).name in task.test.get(version, "").split("|"):
            _log.warning("%s: chooses the best checkpoint, and is predicted as well", found[1])
        answers = None
        if split != "test" and task.answers_file:
            answers = _read(task, place, task.answers_file(Path(found[1]).name))
        read = read_examples(task, found, split != "test", answers)
        if split != "train":
            check_ids(task, read, found[1])
        examples += read[:share]
    if not names:
        if split == "test":
            return None
        raise UserError(f"{task.name} has no {split} set")
    return examples


def label_names(task: Task, place: str | os.PathLike | None) -> dict[str, str]:
    """The names of labels that are codes, where a file beside the examples has them.

    Args:
      task, place: see `read_split`.
    """
    if not task.name_field:
        return {}
    found = _read(task, download(task)[0] if place is None else Path(place), NAMES_FILE)
    names = {}
    for _, record in json_lines(*found) if found else ():
        label, name = record.get("label"), record.get(task.name_field)
        if label in task.labels and isinstance(name, str):
            names[label] = name
    return names


def read_examples(
    task: Task, content: Content, labelled: bool, answers: Content | None = None
) -> list[Any]:
    """The examples of a file, by the task's own reader or that of its form.

    Raises:
      UserError: if the file is not as it should be.
    """
    return (task.read or FORMS[task.kind].read)(task, content, labelled, answers)


def check_ids(task: Task, examples: list[Any], source: str) -> None:
    """Refuses a file to be answered by id, whose answers would fall together."""
    if task.container != "mapping" and task.kind != "spans":
        return
    seen: set[str] = set()
    for example in examples:
        if not isinstance(example.id, str | int):
            raise UserError(f"{source}: the id {example.id!r} is neither a text nor a number")
        if str(example.id) in seen:
            raise UserError(f"{source}: holds the id {example.id} twice")
        seen.add(str(example.id))


def read_file(task: Task, path: str, labelled: bool) -> list[Any]:
    """The examples of a single file, wherever it is.

    Raises:
      UserError: if it cannot be read, or is not as it should be.
    """
    answers = None
    try:
        data = Path(path).read_bytes()
        if labelled and task.answers_file:
            beside = Path(path).parent / task.answers_file(Path(path).name)
            answers = (beside.read_bytes(), str(beside)) if beside.is_file() else None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot read ({error.strerror})") from error
    examples = read_examples(task, (data, path), labelled, answers)
    check_ids(task, examples, path)
    return examples


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
    key = join(ADDRESS, task.archive)
    if not cached:
        fetch(join(mirror or ADDRESS, task.archive), path, key=key)
    record = {"task": task.name, "output": str(path), "size": path.stat().st_size}
    return path, record | {"sha256": digest_of(path, key), "cached": cached}


def _read(task: Task, place: Path, name: str) -> Content | None:
    """The content of a file and where it stood."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    if place.is_file():
        return _from_zip(place, name, task)
    archives = (task.archive, *task.other_archives)
    stems = [archive.removesuffix(".zip") for archive in archives]
    for folder in (place, place / task.name, *(place / stem for stem in stems)):
        if (folder / name).is_file():
            return (folder / name).read_bytes(), str(folder / name)
    for archive in (*archives, f"{task.name}.zip"):
        if (place / archive).is_file():
            found = _from_zip(place / archive, name, task)
            if found:
                return found
    return None


def _from_zip(path: Path, name: str, task: Task) -> Content | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m == name or m.endswith(f"/{name}")]
            members = [m for m in members if not m.startswith("__MACOSX")]
            if name in members:
                members = [name]
            if len(members) > 1:  # a zip of several tasks
                stems = {a.removesuffix(".zip") for a in (task.archive, *task.other_archives)}
                own = [m for m in members if {task.name, *stems} & set(m.split("/")[:-1])]
                if len(own) != 1:
                    raise UserError(f"{path}: holds {name} {len(members)} times; unpack it first")
                members = own
            return (archive.read(members[0]), f"{path}/{members[0]}") if members else None
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: damaged, or not a zip file ({error})") from error
