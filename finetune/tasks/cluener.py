"""CLUENER2020: names of ten types in sentences of the news."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from clue_jax.errors import UserError
from clue_jax.features.entities import from_mentions, labels_for, tags_of, without_overlaps
from finetune.forms.tags import Tagged, check_tags
from finetune.records import json_lines
from finetune.task import Content, Task


def _read(task: Task, content: Content, labelled: bool, answers: Content | None) -> list[Tagged]:
    """The sentences of a file: texts with {type: {mention: [[start, end], ..]}}, ends inclusive."""
    data, source = content
    examples = []
    overlapping = 0
    for line, record in json_lines(data, source):
        place = f"{source}, line {line}"
        text = record.get("text")
        if not isinstance(text, str):
            raise UserError(f'{place}: no "text"')
        tags: tuple[str, ...] = ()
        if labelled:
            if not isinstance(record.get("label"), dict):
                raise UserError(f'{place}: no "label" with entities')
            try:
                entities = from_mentions(record["label"])
                _check_places(text, record["label"])
                apart = without_overlaps(entities)
                overlapping += len(entities) - len(apart)
                tags = tuple(tags_of(apart, len(text)))
            except (TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{place}: {error}") from error
            check_tags(task, tags, place)
        examples.append(Tagged(tuple(text), tags, record.get("id", line - 1)))
    if not examples:
        raise UserError(f"{source}: holds no sentences")
    if overlapping:
        logging.getLogger(__name__).warning(
            "%s: %d entities overlap a longer one and carry no tags", source, overlapping
        )
    return examples


def _check_places(text: str, mentions: Mapping[str, Mapping[str, list[list[int]]]]) -> None:
    """Raises ValueError for a place where the text has something else than the mention: such ends
    are exclusive, or count bytes."""
    for of_kind in mentions.values():
        for mention, places in of_kind.items():
            for start, end in places:
                if text[start : end + 1] != mention:
                    raise ValueError(
                        f"{mention!r} is not at [{start}, {end}], where {text[start : end + 1]!r} "
                        "stands; places count characters from 0, and ends are inclusive"
                    )


TASK = Task(
    name="cluener",
    kind="tags",
    labels=labels_for(
        (
            "address", "book", "company", "game", "government", "movie", "name", "organization",
            "position", "scene",
        )
    ),
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="cluener_public.zip",
    read=_read,
)  # fmt: skip
