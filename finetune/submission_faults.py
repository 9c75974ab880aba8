"""What can be wrong with a prediction file: its name, rows, ids and labels."""

from __future__ import annotations

import collections
import json
from typing import Any

from clue_jax.features.choices import BLANK
from finetune.task import Task
from finetune.tasks import TASKS

# Boards of their own: their files are checked, but belong into no zip of CLUE.
OTHER_BOARDS = {"cluener_predict.json": "cluener", "drcd_predict.json": "drcd"}
_ALSO_CALLED = {"cluewsc2020": {"wsc"}}
_DIGITS = "0123456789"  # a version, or a year


def expected_files(version: str) -> dict[str, Task]:
    """File name -> task."""
    return {task.submission[version]: task for task in TASKS.values() if version in task.submission}


def known_files(version: str) -> dict[str, Task]:
    """Those, and the files of other boards."""
    return expected_files(version) | {n: TASKS[task] for n, task in OTHER_BOARDS.items()}


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
    task = known_files(version).get(name)
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


def _wrong_name(name: str, version: str) -> str:
    """Says what a file should be called, if it can be told."""
    nearest = nearest_name(name, version)
    known = f"known: {', '.join(expected_files(version))}"
    hint = f"; it must be {nearest}" if nearest else f"; {known}"
    return f"{name}: no file of CLUE {version} has this name, and it would score 0{hint}"


def nearest_name(name: str, version: str) -> str | None:
    """The right name of a file whose name is nearly right."""
    stem = name.removesuffix("_predict.json").lower()
    bare = stem.rstrip(_DIGITS)
    for right, task in expected_files(version).items():
        names = {file.removesuffix("_predict.json") for file in task.submission.values()}
        names |= {task.name} | _ALSO_CALLED.get(task.name, set())
        if stem in names or (len(bare) > 2 and bare in {name.rstrip(_DIGITS) for name in names}):
            return right
    return None
