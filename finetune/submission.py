"""Builds and checks the zip that CLUE's site takes: names, rows, ids and labels of every file."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.features.choices import BLANK
from clue_jax.files import atomic_file
from finetune.data import read_split
from finetune.task import Task
from finetune.tasks import TASKS

Version = Literal["1.0", "1.1"]
# Boards of their own: their files are checked, but belong into no zip of CLUE.
OTHER_BOARDS = {"cluener_predict.json": "cluener", "drcd_predict.json": "drcd"}
# A zip of a cut test set carries this, so that nobody takes it for a whole one.
LIMITED = b"clue_jax: first rows only, "


@dataclass(frozen=True)
class Build:
    """Packs the prediction files in and below a folder into a flat zip, after checking each."""

    directory: tyro.conf.Positional[str]
    """Folder with NAME_predict.json files, such as the output of finetune.clue."""
    output: str
    """Zip to write; the site's recommended form is submit_TEAM_DATE.zip."""
    version: Version = "1.1"
    """Of the benchmark."""
    limit: int | None = None
    """The predictions are of the first so many rows only; the zip says so."""


@dataclass(frozen=True)
class Check:
    """Checks a zip, a folder or a single file; every fault is named, and ends with status 1."""

    path: tyro.conf.Positional[str]
    """Zip, folder or prediction file."""
    version: Version = "1.1"
    """Of the benchmark."""
    data_root: str | None = None
    """Folder with the official zips or folders: ids and rows are compared with the test files."""
    complete: bool = False
    """Every task must be there, and all of its rows."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"build": Build, "check": Check},
        args=argv,
        description="Submissions for the CLUE benchmark.",
    )
    result = build(command) if isinstance(command, Build) else check(command)
    print(json.dumps(result, ensure_ascii=False))
    if isinstance(command, Check) and result["faults"]:
        first = result["faults"][0]
        raise UserError(f"{command.path}: {len(result['faults'])} faults, the first: {first}")
    return result


def build(settings: Build) -> dict[str, Any]:
    """Writes the zip.

    Raises:
      UserError: if there is nothing to pack, two files of a name, or a file has a fault.
    """
    directory = Path(settings.directory)
    names = expected_files(settings.version)
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*_predict.json")):
        if path.name not in names:
            continue
        if path.name in found:
            raise UserError(f"{directory}: holds {path.name} twice: {found[path.name]} and {path}")
        found[path.name] = path
    if not found:
        raise UserError(f"{directory}: holds no prediction file of CLUE {settings.version}")
    faults = []
    for name, path in found.items():
        faults += file_faults(name, path.read_bytes(), settings.version, None, settings.limit)
    if faults:
        raise UserError(f"{directory}: {'; '.join(faults)}")
    with atomic_file(settings.output) as file, zipfile.ZipFile(file, "w") as archive:
        for name, path in found.items():
            # A fixed date: the same predictions make the same zip.
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, path.read_bytes())
        if settings.limit:
            archive.comment = LIMITED + str(settings.limit).encode()
    return {"output": settings.output, "version": settings.version, "files": sorted(found)}


def check(settings: Check) -> dict[str, Any]:
    """What is wrong with a submission.

    Returns:
      "faults", one line each; "files", those that were checked.
    """
    faults: list[str] = []
    files = []
    limit = _limit_of(Path(settings.path))
    for name, data in _contents(Path(settings.path), faults):
        files.append(name)
        faults += file_faults(name, data, settings.version, settings.data_root, limit)
    if not files:
        faults.append("holds no prediction file")
    if settings.complete:
        faults += [
            f"{name}: is missing"
            for name, task in expected_files(settings.version).items()
            if name not in files and task.name != "diagnostics"
        ]
        if limit:
            faults.append(f"holds the first {limit} rows of each test set only")
    return {"path": settings.path, "version": settings.version, "files": files, "faults": faults}


def expected_files(version: str) -> dict[str, Task]:
    """File name -> task."""
    return {task.submission[version]: task for task in TASKS.values() if version in task.submission}


def _limit_of(path: Path) -> int | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    number = comment.removeprefix(LIMITED)
    return int(number) if comment.startswith(LIMITED) and number.isdigit() else None


def _contents(path: Path, faults: list[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a submission; what is wrong with the container is added to the faults."""
    if path.is_dir():
        for file in sorted(path.glob("*.json")):
            yield file.name, file.read_bytes()
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    if not zipfile.is_zipfile(path):
        if path.suffix == ".zip":
            raise UserError(f"{path}: damaged, or not a zip file")
        yield path.name, data
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if "/" in member.filename:
                    faults.append(f"{member.filename}: the files must lie flat in the zip")
                elif member.file_size > 64 << 20:
                    faults.append(f"{member.filename}: has {member.file_size} bytes")
                else:
                    yield member.filename, archive.read(member)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def file_faults(
    name: str, data: bytes, version: str, data_root: str | None, limit: int | None
) -> list[str]:
    """What is wrong with a prediction file.

    Args:
      name: as it would be submitted.
      data: its content.
      version: of the benchmark.
      data_root: where the test files are, to compare ids; None compares with the official counts.
      limit: rows that a cut test set has.
    """
    known = expected_files(version) | {n: TASKS[task] for n, task in OTHER_BOARDS.items()}
    task = known.get(name)
    if task is None:
        return [_wrong_name(name, version)]
    examples = _test_examples(task, version, data_root)
    count = len(examples) if examples is not None else task.test_rows.get(version)
    if limit and count:
        count = min(limit, count)
    if task.container == "mapping":
        faults = _mapping_faults(name, data, task, examples, count)
    else:
        faults = _line_faults(name, data, task, examples, count)
    return faults[:5] + ([f"{name}: and {len(faults) - 5} more"] if len(faults) > 5 else [])


def _line_faults(
    name: str, data: bytes, task: Task, examples: list[Any] | None, count: int | None
) -> list[str]:
    """What is wrong with a file of one object a line, in the order of the test file."""
    rows, fault = _rows(name, data)
    if fault:
        return [fault]
    faults = []
    for number, row in enumerate(rows, 1):
        example = examples[number - 1] if examples and number <= len(examples) else None
        faults += _row_faults(f"{name}, line {number}", row, task, example)
    if count and len(rows) != count:
        return [*faults, f"{name}: {len(rows)} rows, the test set has {count}"]
    for number, (row, example) in enumerate(zip(rows, examples or [], strict=False), 1):
        # The number of the row is in use as well as the id of the test file.
        if str(row.get("id")) not in (str(example.id), str(number - 1)):
            faults.append(
                f"{name}, line {number}: id {row.get('id')!r}, the test file has {example.id!r} "
                "there; rows are scored by their order"
            )
            break
    return faults


def _mapping_faults(
    name: str, data: bytes, task: Task, examples: list[Any] | None, count: int | None
) -> list[str]:
    """What is wrong with a file that is one object of ids and answers."""
    try:
        content = json.loads(data)
    except ValueError:
        return [f"{name}: is not one JSON object; expected one for the whole file"]
    if not isinstance(content, dict):
        return [f"{name}: a {type(content).__name__}; expected one object for the whole file"]
    faults = []
    for key, value in content.items():
        if task.kind == "spans" and not isinstance(value, str):
            faults.append(f"{name}: the answer to {key} is no string")
        if task.kind == "choice" and not BLANK.fullmatch(key):
            faults.append(f"{name}: key {key!r}; expected one like #idiom600168#")
        elif task.kind == "choice" and not _is_choice(value, task):
            faults.append(
                f"{name}: {key} is {value!r}; expected a number from 0 to {task.choices - 1}"
            )
    if examples is not None:
        wanted = {str(example.id) for example in examples[:count]}
        missing, unknown = sorted(wanted - set(content)), sorted(set(content) - wanted)
        faults += [f"{name}: no answer to {', '.join(missing[:3])}"] if missing else []
        faults += [f"{name}: the test file has no {', '.join(unknown[:3])}"] if unknown else []
    elif count and len(content) != count:
        faults.append(f"{name}: {len(content)} answers, the test set has {count} questions")
    return faults


def _is_choice(value: Any, task: Task) -> bool:
    return type(value) is int and 0 <= value < task.choices


def _rows(name: str, data: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """The objects of a JSON-lines file, or what keeps it from being one."""
    rows = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            row = json.loads(line)
        except ValueError:
            return [], f"{name}, line {number}: not JSON; expected one object a line"
        if not isinstance(row, dict):
            return [], f"{name}, line {number}: a {type(row).__name__}; expected one object a line"
        rows.append(row)
    return rows, None


def _row_faults(place: str, row: dict[str, Any], task: Task, example: Any) -> list[str]:
    if "label" not in row:
        return [f"{place}: no label, and nothing else is scored"]
    label = row["label"]
    if task.kind == "choice":  # numbers are in use, and the same as strings
        is_right = _is_choice(int(label) if str(label).isdecimal() else label, task)
        known = ", ".join(map(str, range(task.choices)))
        return [] if is_right else [f"{place}: label {label!r} is not one of {known}"]
    if task.kind == "tags":
        return _mention_faults(place, label, task, example)
    known = ", ".join(task.labels[:5]) + (", .." if len(task.labels) > 5 else "")
    if not isinstance(label, str):
        return [f"{place}: label {json.dumps(label)} is no string; expected one of {known}"]
    if label not in task.labels:
        hint = ""
        if task.name == "tnews" and label.isdigit() and int(label) < len(task.labels):
            hint = " (the code of the class, not its number: numbers score 0)"
        return [f"{place}: label {label!r} is not one of {known}{hint}"]
    return []


def _mention_faults(place: str, label: Any, task: Task, example: Any) -> list[str]:
    """What is wrong with entities in CLUENER's form."""
    try:
        entities = [
            (kind, mention, start, end)
            for kind, mentions in label.items()
            for mention, spans in mentions.items()
            for start, end in spans
        ]
    except (AttributeError, TypeError, ValueError):
        return [f"{place}: label is not {{type: {{mention: [[start, end], ..]}}}}"]
    for kind, mention, start, end in entities:
        if f"B-{kind}" not in task.labels:
            return [f"{place}: {kind!r} is no type of {task.name}"]
        if example is not None and "".join(example.units)[start : end + 1] != mention:
            return [
                f"{place}: {mention!r} does not stand at {start}..{end}; both ends are inclusive"
            ]
    return []


def _test_examples(task: Task, version: str, data_root: str | None) -> list[Any] | None:
    """The test set, if its file can be found."""
    if data_root is None:
        return None
    for place in (Path(data_root), Path(data_root) / task.name):
        if place.is_dir():
            examples = read_split(task, place, "test", version)
            if examples is not None:
                return examples[:: task.group]
    return None


def _wrong_name(name: str, version: str) -> str:
    """Says what a file should be called, if it can be told."""
    wanted = list(expected_files(version))
    stem = name.removesuffix("_predict.json").rstrip("0123456789")
    stem = {"wsc": "cluewsc"}.get(stem, stem)
    close = [w for w in wanted if stem and w.startswith(stem)]
    hint = f"; it must be {close[0]}" if close else f"; known: {', '.join(wanted)}"
    return f"{name}: no file of CLUE {version} has this name, and it would score 0{hint}"


if __name__ == "__main__":
    run_command(main)
