"""Builds and checks the zip that CLUE's site takes: names, rows, ids and labels of every file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from clue_jax.archives import ZIP_ERRORS
from clue_jax.errors import UserError, run_command
from clue_jax.features.choices import BLANK
from clue_jax.files import atomic_file, json_text, read_object
from finetune.data import read_split
from finetune.submission_faults import (
    OTHER_BOARDS,
    expected_files,
    file_faults,
    known_files,
    nearest_name,
)
from finetune.task import Task
from finetune.tasks import TASKS

Version = Literal["1.0", "1.1"]
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
    """Every task must be there, and all of its rows; with --data-root, every test file as well.
    Without it nobody knows how many rows C3, CHID and the diagnostics have: see not_counted."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"build": Build, "check": Check},
        args=argv,
        description="Submissions for the CLUE benchmark.",
    )
    result = build(command) if isinstance(command, Build) else check(command)
    print(json_text(result))
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
    if settings.limit is not None and settings.limit < 1:
        raise UserError("--limit must be at least 1")
    found = find(directory, settings.version)
    files = {name: path for name, path in found.items() if name not in OTHER_BOARDS}
    if not files:
        raise UserError(f"{directory}: holds no prediction file of CLUE {settings.version}")
    for path in files.values():
        limit = _limit_of_run(path.parent)
        if limit and limit != settings.limit:
            raise UserError(
                f"{path}: of a run with --limit {limit}, so not of the whole test set; "
                f"--limit {limit} packs it as such"
            )
    return pack(files, settings.output, settings.version, settings.limit)


def _limit_of_run(folder: Path) -> int | None:
    path = folder / "settings.json"
    return read_object(path).get("limit") if path.exists() else None


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
        if name in others or (name not in known and not nearest_name(name, version)):
            continue
        if name in found:
            raise UserError(f"{directory}: holds {name} twice: {found[name]} and {path}")
        found[name] = path
    return found


def check(settings: Check) -> dict[str, Any]:
    """What is wrong with a submission.

    Returns:
      "faults", one line each; "files", those that were checked; "not_compared", those of them whose
      ids could not be compared with a test file; "not_counted", those whose rows were not even
      counted, since no official count is known.

    Raises:
      UserError: if the path or the data root cannot be read.
    """
    path, root = Path(settings.path), settings.data_root
    if root is not None and not Path(root).exists():
        raise UserError(f"{root}: no such file or folder")
    faults: list[str] = []
    files, not_compared, not_counted = [], [], []
    limit = _limit_of(path)
    for name, data in _contents(path, settings.version, faults):
        if name in files:
            faults.append(f"{name}: is there twice")
            continue
        files.append(name)
        task = known_files(settings.version).get(name)
        examples = _test_examples(task, settings.version, root) if task else None
        if task and examples is None:
            not_compared.append(name)
            if settings.version not in task.test_rows:
                not_counted.append(name)
            if settings.complete and root is not None and task.name != "diagnostics":
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
        "not_compared": not_compared, "not_counted": not_counted, "faults": faults,
    }  # fmt: skip


def _limit_of(path: Path) -> int | None:
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
    except ZIP_ERRORS as error:
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
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: damaged ({error})") from error


def _test_examples(task: Task, version: str, data_root: str | None) -> list[Any] | None:
    """The examples of the test set, one a row, if its file can be found.

    CHID in FewCLUE's form has other questions than the benchmark's, with ids of their own.
    """
    examples = None if data_root is None else read_split(task, data_root, "test", version)
    if examples is None or (task.name == "chid" and not BLANK.fullmatch(str(examples[0].id))):
        return None
    return examples[:: task.group]


if __name__ == "__main__":
    run_command(main)
