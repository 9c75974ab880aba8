"""MSRA: persons, places and organisations; a character and its tag a line, or a sentence a line."""

from __future__ import annotations

from clue_jax.errors import UserError
from clue_jax.features.entities import labels_for
from finetune.forms import tags
from finetune.records import tab_separated
from finetune.task import Content, Task


def _read(
    task: Task, content: Content, labelled: bool, answers: Content | None
) -> list[tags.Tagged]:
    """A CoNLL-style file, or a TSV with the columns text_a and label, units and tags in each
    separated by blanks or U+0002."""
    data, source = content
    if not data.startswith(b"text_a\t"):
        return tags.read(task, content, labelled, answers)
    examples = []
    for line, record in tab_separated(data, source):
        place = f"{source}, line {line}"
        units = _parts(record["text_a"])
        given = _parts(record["label"]) if labelled else []
        if labelled and len(units) != len(given):
            raise UserError(f"{place}: {len(units)} units, but {len(given)} tags")
        bio = tags.to_bio(given, place)
        tags.check_tags(task, bio, place)
        examples.append(tags.Tagged(tuple(units), bio, line - 2))
    if not examples:
        raise UserError(f"{source}: holds no sentences")
    return examples


def _parts(text: str) -> list[str]:
    """Between U+0002 a unit may be a blank."""
    return text.split("\x02" if "\x02" in text else " ")


TASK = Task(
    name="msra_ner",
    kind="tags",
    labels=labels_for(("PER", "LOC", "ORG")),
    train="train.txt|train.tsv",
    # Where there is no third set, the test set chooses, as it does in the original.
    dev="dev.txt|dev.tsv|test.tsv|test.txt",
    test={"1.1": "test.tsv|test.txt"},
    archive="msra_ner.zip",
    read=_read,
)
