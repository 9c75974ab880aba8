"""Files as records: JSON lines, one JSON document, TSV and CSV, columns with blank lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from clue_jax.errors import UserError


def json_lines(data: bytes, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers.

    Lines end at a line feed only: IFLYTEK's texts hold U+2028 and U+0085.

    Raises:
      UserError: for a line that is blank, not UTF-8, or no JSON object.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        place = f"{source}, line {number}"
        if not line.strip():
            raise UserError(f"{place}: is blank; remove it")
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield number, record


def tab_separated(
    data: bytes, source: str, columns: tuple[str, ...] | None = None, separator: str = "\t"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a TSV or CSV file as records, with their line numbers.

    Args:
      data: the file. A TSV has no quoting; a CSV has that of spreadsheets.
      source: its name, for messages.
      columns: their names; None takes the first line.
      separator: a tab, or a comma for CSV.

    Raises:
      UserError: for text that is not UTF-8, or a row with another number of columns.
    """
    text = decode(data, source)
    for number, values in _tabs(text) if separator == "\t" else _quoted(text, source, separator):
        if columns is None:
            columns = tuple(values)
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{source}, line {number}: {len(values)} columns, expected {len(columns)} "
                f"({', '.join(columns)})"
            )
        yield number, dict(zip(columns, values, strict=True))


def _tabs(text: str) -> Iterator[tuple[int, list[str]]]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r").split("\t")


def _quoted(text: str, source: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
    csv.field_size_limit(1 << 30)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: not valid CSV ({error})") from error


def json_document(data: bytes, source: str) -> Any:
    """A file that is one JSON value.

    Raises:
      UserError: if it is not, with the line of the fault.
    """
    try:
        return json.loads(decode(data, source))
    except json.JSONDecodeError as error:
        raise UserError(f"{source}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{source}: not valid JSON ({error})") from error


def conll(data: bytes, source: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """The sentences of a CoNLL-style file: a unit and, last in its line, its tag; a blank line
    behind each sentence. Columns are separated by tabs, or by blanks where there is no tab.

    Yields:
      The line where a sentence begins, its units and its tags (empty without a second column).

    Raises:
      UserError: for text that is not UTF-8, or a sentence whose lines differ in having a tag.
    """
    units: list[str] = []
    tags: list[str] = []
    start = 1
    for number, line in enumerate([*decode(data, source).split("\n"), ""], 1):
        # Other white space, such as U+3000, may be a unit.
        line = line.rstrip("\r")
        if not line.strip(" \t"):
            if units:
                yield start, units, tags
            units, tags, start = [], [], number + 1
            continue
        has_tabs = "\t" in line
        columns = line.split("\t") if has_tabs else [part for part in line.split(" ") if part]
        if units and bool(tags) != (len(columns) > 1):
            raise UserError(
                f"{source}, line {number}: {len(columns)} columns, unlike the line before; "
                "expected a unit and its tag"
            )
        units.append(columns[0])
        if len(columns) > 1:
            tags.append(columns[-1].strip(" "))


def decode(data: bytes, source: str) -> str:
    """UTF-8 text, with or without a byte-order mark.

    Raises:
      UserError: with the line of the fault.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}, line {line}: not UTF-8 text") from error
