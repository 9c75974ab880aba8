"""Builds and checks the zip that CLUE's site takes: names, rows, ids and labels of every file."""

from __future__ import annotations

import collections
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
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
        first, *others = result["faults"]
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{command.path}: {first}{more}")
    return result


def build(settings: Build) -> dict[str, Any]:
    """Writes the zip.

    Raises:
      UserError: if there is nothing to pack, two files of a name, or a file has a fault.
    """
    directory = Path(settings.directory)
    found = find(directory, settings.version)
    files = {name: path for name, path in found.items() if name not in OTHER_BOARDS}
    if not files:
        raise UserError(f"{directory}: holds no prediction file of CLUE {settings.version}")
    return pack(files, settings.output, settings.version, settings.limit)


def pack(
    files: Mapping[str, Path], output: str, version: Version, limit: int | None
) -> dict[str, Any]:
    """Writes the zip of these files; see `build`."""
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    faults = []
    for name, data in contents.items():
        faults += file_faults(name, data, version, None, limit)
    if faults:
        raise UserError(f"{output}: not written: {'; '.join(faults)}")
    with atomic_file(output) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            # A fixed date: the same predictions make the same zip.
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
        if limit:
            archive.comment = LIMITED + str(limit).encode()
    return {"output": output, "version": version, "files": list(contents)}


def find(directory: Path, version: Version) -> dict[str, Path]:
    """The prediction files in and below a folder, by name.

    Those of the other version and of tasks that are not submitted are left out, but not names that
    are nearly right.

    Raises:
      UserError: if two have the same name.
    """
    known = {*expected_files(version), *OTHER_BOARDS}
    others = {name for task in TASKS.values() for name in task.submission.values()} - known
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*_predict.json")):
        name = path.name
        if name in others or (name not in known and not _nearest(name, version)):
            continue
        if name in found:
            raise UserError(f"{directory}: holds {name} twice: {found[name]} and {path}")
        found[name] = path
    return found


def check(settings: Check) -> dict[str, Any]:
    """What is wrong with a submission.

    Returns:
      "faults", one line each; "files", those that were checked; "not_compared", those of them whose
      ids could not be compared with a test file.

    Raises:
      UserError: if the path or the data root cannot be read.
    """
    path, root = Path(settings.path), settings.data_root
    if root is not None and not Path(root).exists():
        raise UserError(f"{root}: no such file or folder")
    faults: list[str] = []
    files, not_compared = [], []
    limit = _limit_of(path)
    for name, data in _contents(path, settings.version, faults):
        if name in files:
            faults.append(f"{name}: is there twice")
            continue
        files.append(name)
        task = _known(settings.version).get(name)
        examples = _test_examples(task, settings.version, root) if task else None
        if task and examples is None:
            not_compared.append(name)
            has_count = root is None and settings.version in task.test_rows
            if settings.complete and not has_count and task.name != "diagnostics":
                faults.append(f"{name}: no test file to compare it with; --data-root names one")
        faults += file_faults(name, data, settings.version, examples, limit)
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
    return {
        "path": settings.path, "version": settings.version, "files": files,
        "not_compared": not_compared, "faults": faults,
    }  # fmt: skip


def expected_files(version: str) -> dict[str, Task]:
    """File name -> task."""
    return {task.submission[version]: task for task in TASKS.values() if version in task.submission}


def _known(version: str) -> dict[str, Task]:
    return expected_files(version) | {n: TASKS[task] for n, task in OTHER_BOARDS.items()}


def _limit_of(path: Path) -> int | None:
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    number = comment.removeprefix(LIMITED)
    return int(number) if comment.startswith(LIMITED) and number.isdigit() else None


def _contents(path: Path, version: Version, faults: list[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a submission; what is wrong with the container is added to the faults."""
    if path.is_dir():
        for name, file in find(path, version).items():
            yield name, file.read_bytes()
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
    name: str, data: bytes, version: str, examples: list[Any] | None, limit: int | None
) -> list[str]:
    """What is wrong with a prediction file.

    Args:
      name: as it would be submitted.
      data: its content.
      version: of the benchmark.
      examples: of the test file, one a row; None compares with the official counts.
      limit: rows that a cut test set has.
    """
    task = _known(version).get(name)
    if task is None:
        return [_wrong_name(name, version)]
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
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = collections.Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError:
        return [f"{name}: not UTF-8 text"]
    except (ValueError, RecursionError):
        return [f"{name}: is not one JSON object; expected one for the whole file"]
    if not isinstance(content, dict):
        return [f"{name}: a {type(content).__name__}; expected one object for the whole file"]
    faults = [f"{name}: holds {', '.join(repeated[:3])} twice"] if repeated else []
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
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return [], f"{name}, line {number}: not UTF-8 text"
        except (ValueError, RecursionError):
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
        numbers = [str(i) for i in range(task.choices)]
        is_right = isinstance(label, int | str) and str(label) in numbers
        known = ", ".join(numbers)
        return [] if is_right else [f"{place}: label {label!r} is not one of {known}"]
    if task.kind == "tags":
        return _mention_faults(place, label, task, example)
    known = ", ".join(task.labels[:5]) + (", .." if len(task.labels) > 5 else "")
    if not isinstance(label, str):
        return [f"{place}: label {json.dumps(label)} is no string; expected one of {known}"]
    if label not in task.labels:
        hint = ""
        if task.name == "tnews" and label in map(str, range(len(task.labels))):
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
        if type(start) is not int or type(end) is not int:
            return [f"{place}: {mention!r} stands at {start!r}..{end!r}; expected whole numbers"]
        if start < 0 or end - start + 1 != len(mention):
            return [
                f"{place}: {mention!r} has {len(mention)} characters and cannot stand at "
                f"{start}..{end}; both ends are inclusive"
            ]
        if example is not None and "".join(example.units)[start : end + 1] != mention:
            return [
                f"{place}: {mention!r} does not stand at {start}..{end}; both ends are inclusive"
            ]
    return []


def _test_examples(task: Task, version: str, data_root: str | None) -> list[Any] | None:
    """The examples of the test set, one a row, if its file can be found."""
    examples = None if data_root is None else read_split(task, data_root, "test", version)
    return None if examples is None else examples[:: task.group]


def _wrong_name(name: str, version: str) -> str:
    """Says what a file should be called, if it can be told."""
    nearest = _nearest(name, version)
    known = f"known: {', '.join(expected_files(version))}"
    hint = f"; it must be {nearest}" if nearest else f"; {known}"
    return f"{name}: no file of CLUE {version} has this name, and it would score 0{hint}"


def _nearest(name: str, version: str) -> str | None:
    """The right name of a file whose name is nearly right."""
    stem = name.removesuffix("_predict.json").rstrip("0123456789")
    stem = {"wsc": "cluewsc"}.get(stem, stem)
    return next((w for w in expected_files(version) if stem and w.startswith(stem)), None)


if __name__ == "__main__":
    run_command(main)
