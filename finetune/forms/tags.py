"""Texts whose characters carry tags: named entities."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clue_jax.errors import UserError
from clue_jax.features import tokens
from clue_jax.features.entities import (
    OUTSIDE,
    Entity,
    as_mentions,
    baseline_entities,
    constrained,
    entities_of,
    tags_of,
)
from clue_jax.metrics import entities as metrics
from clue_jax.text import Tokenizer
from finetune.forms.form import Form
from finetune.records import conll
from finetune.rows import Rows
from finetune.task import Content, Task

_TAG = re.compile("O|[BIMES]-.+")


@dataclass(frozen=True)
class Tagged:
    """A text in units, usually characters.

    Attributes:
      units: of the text.
      tags: BIO, of each unit; none in a test file.
      id: as in the file, or the number of the text.
    """

    units: tuple[str, ...]
    tags: tuple[str, ...]
    id: Any


@dataclass(frozen=True)
class Parts:
    """A text and the rows that it was cut into, see `clue_jax.features.tokens`."""

    example: Tagged
    pieces: tokens.Characters
    cuts: list[slice]


def read(
    task: Task, content: Content, labelled: bool, answers: Content | None = None
) -> list[Tagged]:
    """The sentences of a CoNLL-style file; tags may be BIO, IOB1 or BMES/BIOES.

    Raises:
      UserError: for an empty file, a tag that the task has not, or tags that are missing.
    """
    data, source = content
    examples = []
    for number, (line, units, tags) in enumerate(conll(data, source)):
        place = f"{source}, line {line}"
        if labelled and not tags:
            raise UserError(f"{place}: the units have no tags")
        bio = to_bio(tags, place) if labelled else ()
        check_tags(task, bio, place)
        examples.append(Tagged(tuple(units), bio, number))
    if not examples:
        raise UserError(f"{source}: holds no sentences")
    return examples


def to_bio(tags: Sequence[str], place: str) -> tuple[str, ...]:
    """Tags of any of these schemes as BIO.

    Raises:
      UserError: for what is a tag in none of them, with the place.
    """
    wrong = next((tag for tag in tags if not _TAG.fullmatch(tag)), None)
    if wrong is not None:
        raise UserError(
            f"{place}: tag {wrong!r}; expected O, or B, I, M, E or S, a hyphen and a type"
        )
    begun = [tag.replace("M-", "I-", 1) if tag.startswith("M-") else tag for tag in tags]
    return tuple(tags_of(entities_of(begun), len(begun)))


def check_tags(task: Task, tags: Sequence[str], place: str) -> None:
    """Refuses tags that are not the task's.

    Raises:
      UserError: with the tag and the place.
    """
    unknown = next((tag for tag in tags if tag not in task.labels), None)
    if unknown is not None:
        raise UserError(
            f"{place}: tag {unknown!r} is not one of {task.name}'s: {', '.join(task.labels)}"
        )


def rows(
    examples: Sequence[Tagged],
    task: Task,
    tokenizer: Tokenizer,
    normalize: Callable[[str], str],
    max_length: int,
) -> Rows:
    """`[CLS] characters [SEP]`; a long text is cut into several rows, in which no character is lost
    or doubled."""
    index = {label: i for i, label in enumerate(task.labels)}
    ids, segments, labels, sources = [], [], [], []
    for example in examples:
        shown = [normalize(unit) for unit in example.units]
        pieces = tokens.tokenize_characters(tokenizer, shown)
        cuts = tokens.parts(pieces, example.units, max_length - 2)
        sources.append(Parts(example, pieces, cuts))
        for cut in cuts:
            row = [tokenizer.cls_id, *pieces.ids[cut].tolist(), tokenizer.sep_id]
            own = [-1] * len(row)
            if example.tags:
                for at, (place, first) in enumerate(
                    zip(pieces.places[cut].tolist(), pieces.first[cut].tolist(), strict=True), 1
                ):
                    if first:
                        own[at] = index[example.tags[place]]
            ids.append(row)
            segments.append([0] * len(row))
            labels.append(own)
    return Rows(ids, segments, labels, sources=sources)


def decode(
    task: Task, rows: Rows, logits: Sequence[np.ndarray], obey: bool = True
) -> list[tuple[np.ndarray, list[str]]]:
    """For each text the units that carry a tag, and their predicted tags.

    Args:
      task, rows, logits: of the texts.
      obey: the best sequence that obeys BIO, where an I- follows a B- or I- of its own type;
        otherwise the likeliest tag of each unit.
    """
    found = []
    at = 0
    for source in rows.sources:
        pieces = source.pieces
        scores = [
            logits[at + i][1 : 1 + cut.stop - cut.start][pieces.first[cut]]
            for i, cut in enumerate(source.cuts)
        ]
        at += len(source.cuts)
        together = np.concatenate(scores)
        path = constrained(together, task.labels) if obey else together.argmax(axis=1)
        found.append((pieces.places[pieces.first], [task.labels[i] for i in path]))
    return found


def entities(places: np.ndarray, tags: Sequence[str]) -> list[Entity]:
    """Entities over the units of a text; units without a tag between two of an entity belong to
    it."""
    return [
        Entity(kind, int(places[start]), int(places[end])) for kind, start, end in entities_of(tags)
    ]


def _scores(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> dict[str, float]:
    found = decode(task, rows, logits)
    predicted = [tags for _, tags in found]
    gold = [
        [source.example.tags[place] for place in places]
        for source, (places, _) in zip(rows.sources, found, strict=True)
    ]
    result = metrics.conlleval(gold, predicted)
    stream = metrics.conlleval(gold, predicted, breaks=False)
    numbers = {name: result[name] for name in ("f1", "precision", "recall", "accuracy")}
    return (
        numbers | {"f1_without_sentence_breaks": stream["f1"]} | _mentions_score(task, rows, found)
    )


def _mentions_score(task: Task, rows: Rows, found: Any) -> dict[str, float]:
    """CLUENER's own score: the texts of the mentions, averaged over the types."""
    gold, predicted = [], []
    for source, (places, tags) in zip(rows.sources, found, strict=True):
        units = source.example.units
        gold.append(as_mentions(units, entities_of(source.example.tags)))
        predicted.append(as_mentions(units, entities(places, tags)))
    kinds = kinds_of(task)
    return {"mentions_macro_f1": metrics.cluener(gold, predicted, kinds)["macro_f1"]}


def kinds_of(task: Task) -> list[str]:
    """The types of entities."""
    return list(dict.fromkeys(label[2:] for label in task.labels if label != OUTSIDE))


def _answers(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> list[tuple[Any, Any]]:
    answers = []
    for source, (places, tags) in zip(rows.sources, decode(task, rows, logits), strict=True):
        mentions = as_mentions(source.example.units, entities(places, tags))
        answers.append((source.example.id, mentions))
    return answers


def _details(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> dict[str, Any]:
    found = decode(task, rows, logits)
    gold = [
        [source.example.tags[place] for place in places]
        for source, (places, _) in zip(rows.sources, found, strict=True)
    ]
    result = metrics.conlleval(gold, [tags for _, tags in found])
    names = ("gold", "predicted", "precision", "recall", "f1")
    freely = [baseline_entities(tags) for _, tags in decode(task, rows, logits, obey=False)]
    baseline = metrics.exact_spans([baseline_entities(tags) for tags in gold], freely)
    return {
        "by_type": {k: {n: v[n] for n in names} for k, v in result["by_type"].items()},
        "without_constraints": baseline,
    }


TAGS = Form(read, rows, _scores, _answers, "f1", _details, per_token=True)
