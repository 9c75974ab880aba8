"""Predictions for the lines of a file: JSON lines, TSV, CSV or plain text in, JSON lines out."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, json_text
from clue_jax.prediction.inputs import FIELDS
from clue_jax.predictor import Predictor
from clue_jax.pretrained import load
from clue_jax.runlog import progress
from finetune.tasks import TASKS

_CHUNK = 512  # inputs that are looked at together, and answers written together
_FORMS = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".csv": "csv"}
Task = Literal[
    "classification", "multi-label", "score", "spans", "choice", "entities", "fill-mask",
    "embedding",
]  # fmt: skip
_SHOWN = ("text", "text_pair", "question")


@dataclass(frozen=True)
class Settings:
    """Reads an input a line and writes a JSON object a line, in the same order."""

    model: str
    """Model directory."""
    input: str = "-"
    """UTF-8 file, or - for standard input. JSON lines hold "text" and what the task needs beside it
    ("text_pair", "question", "choices"), or are records of CLUE's task of labels that the model was
    trained on; TSV and CSV have a header with such names; plain text is a text a line. Blank lines
    are left out."""
    output: str = "-"
    """JSON-lines file, or - for standard output."""
    task: Task | None = None
    """What to predict (default: what the model was trained for). classification, multi-label,
    score: of the text or pair; choice: the best of "choices"; entities: those in the text; spans:
    the answer to "question" in the text; fill-mask: the likeliest tokens for every [MASK] in the
    text; embedding: a vector of the text."""
    top_k: int = 5
    """Labels, answers, choices or tokens that are listed."""
    format: Literal["auto", "jsonl", "tsv", "csv", "text"] = "auto"
    """Of the input; auto goes by the ending of the file, and takes standard input that begins with
    { for JSON lines."""
    text: str | None = None
    """Field or column of the text, if it is not "text"."""
    pair: str | None = None
    """Field or column of the second text, if it is not "text_pair"."""
    skip_bad_lines: bool = False
    """Write {"line": .., "error": ..} for a line that cannot be read or answered, and go on."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    settings = tyro.cli(Settings, args=argv)
    predictor = Predictor(load(settings.model, dtype=jnp.dtype(settings.dtype)))
    kind = settings.task or predictor.kinds[0]
    predictor.prepare([], kind, settings.top_k)  # refuses what the model cannot do
    lines, total = _lines(settings.input)
    inputs = _inputs(_records(lines, settings), settings, kind, predictor.model.info)
    answers = _answers(predictor, inputs, kind, settings, total)
    if settings.output == "-":
        for answer in answers:
            print(json_text(answer), flush=True)
        return
    started = time.monotonic()
    count = bad = 0
    with atomic_file(settings.output) as file:
        for answer in answers:
            file.write((json_text(answer) + "\n").encode())
            count += 1
            bad += "error" in answer
    rate = round(count / (time.monotonic() - started), 1)
    result = {"output": settings.output, "texts": count, "bad_lines": bad, "texts_per_second": rate}
    print(json.dumps(result))


# A line's number with an input, or with what is wrong with it.
_Read = tuple[int, Mapping[str, Any] | UserError]


def _lines(path: str) -> tuple[Iterable[bytes], int | None]:
    """The lines of a file and their number, which is not known of standard input."""
    if path == "-":
        return sys.stdin.buffer, None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    lines = data.split(b"\n")  # at line feeds only: texts may hold U+2028
    return lines, len(lines)


def _records(lines: Iterable[bytes], settings: Settings) -> Iterator[_Read]:
    """The records of the lines that are not blank."""
    form = settings.format
    if form == "auto" and settings.input != "-":
        form = _FORMS.get(Path(settings.input).suffix, "text")
    if form == "csv":
        yield from _quoted(lines, settings.input)
        return
    header: list[str] | None = None
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            if form == "tsv" and header is None:
                raise UserError(f"{settings.input}, line {number}: not UTF-8 text") from error
            yield number, UserError("not UTF-8 text")
            continue
        if not text.strip():
            continue
        if form == "auto":
            form = "jsonl" if text.lstrip().startswith("{") else "text"
        if form == "text":
            yield number, {"text": text}
        elif form == "jsonl":
            yield number, _object(text)
        else:
            values = text.split("\t")
            if header is None:
                header = values
            else:
                yield number, _row(header, values)


def _quoted(lines: Iterable[bytes], source: str) -> Iterator[_Read]:
    """The rows of a CSV; what is quoted may hold line feeds."""

    def texts() -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{source}, line {number}: not UTF-8 text") from error
            yield text if text.endswith("\n") else text + "\n"

    csv.field_size_limit(1 << 30)
    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(f"{source}, line {first}: not valid CSV ({error})") from error
            yield first, UserError(f"not valid CSV ({error})")
            continue
        if not "".join(values).strip():
            continue
        if header is None:
            header = values
        else:
            yield first, _row(header, values)


def _row(header: list[str], values: list[str]) -> Mapping[str, Any] | UserError:
    if len(values) == len(header):
        return dict(zip(header, values, strict=True))
    return UserError(f"{len(values)} columns, expected {len(header)} ({', '.join(header)})")


def _object(text: str) -> Mapping[str, Any] | UserError:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return UserError(f"not valid JSON ({error})")
    if isinstance(record, str):
        return {"text": record}
    if not isinstance(record, dict):
        return UserError(f"expected a JSON object, got {type(record).__name__}")
    return record


def _inputs(
    records: Iterator[_Read], settings: Settings, kind: str, info: Mapping[str, Any]
) -> Iterator[tuple[int, Mapping[str, Any] | UserError, Mapping[str, Any]]]:
    """Each record as an input of its kind, and what of it is shown with the answer."""
    columns = info.get("input", {})
    text = settings.text or columns.get("text", "text")
    pair = settings.pair or columns.get("pair") or "text_pair"
    task = TASKS.get(info.get("task", ""))
    fields = [name for names in FIELDS[kind] for name in names]
    for number, record in records:
        if isinstance(record, UserError):
            yield number, record, {}
            continue
        given = {name: record[name] for name in fields if record.get(name) not in (None, "")}
        if text in record:
            given["text"] = record[text]
            if "text_pair" in fields and record.get(pair):
                given["text_pair"] = record[pair]
        elif task and task.texts and "text_pair" in fields:
            try:
                given["text"], given["text_pair"] = task.texts(record)
            except (KeyError, TypeError, ValueError) as error:
                yield number, UserError(f'holds no "{text}", and is no {task.name} ({error})'), {}
                continue
        elif "text" not in given:
            found = ", ".join(f'"{name}"' for name in record) or "nothing"
            yield number, UserError(f'holds no "{text}", found {found} (--text names it)'), {}
            continue
        own = {"id": record["id"]} if "id" in record else {}
        yield number, given, own | {name: given[name] for name in _SHOWN if given.get(name)}


def _answers(
    predictor: Predictor,
    inputs: Iterator[tuple[int, Any, Mapping[str, Any]]],
    kind: str,
    settings: Settings,
    total: int | None,
) -> Iterator[dict[str, Any]]:
    """An answer to each, in order."""
    size = 1 if total is None and sys.stdin.isatty() else _CHUNK
    starts = itertools.count() if total is None else progress(range(0, total, size), "batches")
    for _ in starts:
        some = list(itertools.islice(inputs, size))
        if not some and total is None:
            return
        yield from _chunk(predictor, some, kind, settings)


def _chunk(
    predictor: Predictor, some: list[tuple[int, Any, Mapping[str, Any]]], kind: str,
    settings: Settings,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    items: list[Any] = []
    try:
        items = predictor.prepare([given for _, given, _ in some], kind, settings.top_k)
    except UserError:  # one of them is wrong
        for number, given, _ in some:
            try:
                if isinstance(given, UserError):
                    raise given
                items += predictor.prepare([given], kind, settings.top_k)
            except UserError as error:
                reason = str(error).removeprefix("input 1: ")
                if not settings.skip_bad_lines:
                    place = "standard input" if settings.input == "-" else settings.input
                    raise UserError(f"{place}, line {number}: {reason}") from error
                items.append(UserError(reason))
    good = [item for item in items if not isinstance(item, UserError)]
    outputs = predictor.compute(good, kind)
    found = iter(predictor.answers(good, outputs, kind, settings.top_k))
    for (number, _, shown), item in zip(some, items, strict=True):
        if isinstance(item, UserError):
            yield {"line": number, "error": str(item)}
        else:
            yield {**shown, **next(found)}


if __name__ == "__main__":
    run_command(main)
