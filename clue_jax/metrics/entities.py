"""Scores of named entities: conlleval's, CLUENER's official one, and exact spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clue_jax.features.entities import OUTSIDE, Entity, boundaries, split_label

Mentions = Mapping[str, Mapping[str, Any]]


def precision_recall(right: int, predicted: int, true: int) -> dict[str, float]:
    """Scores "precision", "recall" and "f1" from counts; 0 where there is nothing to divide by."""
    precision = right / predicted if predicted else 0.0
    recall = right / true if true else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def conlleval(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], breaks: bool = True
) -> dict[str, Any]:
    """The numbers of CoNLL-2000's conlleval, which the original uses.

    Args:
      gold, predicted: tags of each sentence.
      breaks: whether entities end with the sentence. The original's script passes everything as
        one stream, in which an entity may go on into the next sentence.

    Returns:
      "tokens", "correct_tags", "accuracy"; "gold", "predicted", "right" (entities); "precision",
      "recall", "f1"; "by_type", the same for each type that occurs.

    Raises:
      ValueError: if the two do not have equally many tags.
    """
    true: list[str] = []
    guessed: list[str] = []
    tokens = right_tags = 0
    for a, b in zip(gold, predicted, strict=True):
        if len(a) != len(b):
            raise ValueError(f"a sentence of {len(a)} tags was given {len(b)}")
        tokens += len(a)
        right_tags += sum(x == y for x, y in zip(a, b, strict=True))
        true += [*a, OUTSIDE] if breaks else a
        guessed += [*b, OUTSIDE] if breaks else b
    counts = _chunks(true, guessed)
    kinds = sorted(set(counts["gold"]) | set(counts["predicted"]))
    by_type = {kind: _numbers({name: c[kind] for name, c in counts.items()}) for kind in kinds}
    total = _numbers({name: sum(c.values()) for name, c in counts.items()})
    accuracy = right_tags / tokens if tokens else 0.0
    result = {"tokens": tokens, "correct_tags": right_tags, "accuracy": accuracy}
    return result | total | {"by_type": by_type}


def _numbers(counts: Mapping[str, int]) -> dict[str, Any]:
    scores = precision_recall(counts["right"], counts["predicted"], counts["gold"])
    return {**counts, **scores}


def _chunks(true: Sequence[str], guessed: Sequence[str]) -> dict[str, Counter[str]]:
    """How many entities of each type there are, were predicted, and agree."""
    counts: dict[str, Counter[str]] = {n: Counter() for n in ("gold", "predicted", "right")}
    true_begins, true_ended = boundaries(true)
    guessed_begins, guessed_ended = boundaries(guessed)
    agreeing = None  # the type of an entity that has agreed so far
    for i in range(len(true)):
        kinds = split_label(true[i])[1], split_label(guessed[i])[1]
        if agreeing is not None:
            if true_ended[i] and guessed_ended[i]:
                counts["right"][agreeing] += 1
                agreeing = None
            elif true_ended[i] != guessed_ended[i] or kinds[0] != kinds[1]:
                agreeing = None
        if true_begins[i] and guessed_begins[i] and kinds[0] == kinds[1]:
            agreeing = kinds[0]
        counts["gold"][kinds[0]] += int(true_begins[i])
        counts["predicted"][kinds[1]] += int(guessed_begins[i])
    if agreeing is not None:
        counts["right"][agreeing] += 1
    return {name: +counter for name, counter in counts.items()}


def cluener(gold: Sequence[Mentions], predicted: Sequence[Mentions], kinds: Sequence[str]) -> Any:
    """CLUENER2020's official score: F1 of each type over the texts of the mentions, and their mean.

    Positions are not compared, and a text that is mentioned twice in a line counts once. Source:
    `score.py` of CLUENER2020; where that divides by zero, a type scores 0 here, and files of
    unequal length are refused.

    Args:
      gold, predicted: of each line {type: {mention: ..}}.
      kinds: the types that count.

    Returns:
      "macro_f1" and "f1_by_type".
    """
    scores = {}
    for kind in kinds:
        right = predictions = true = 0
        for a, b in zip(gold, predicted, strict=True):
            texts, found = set(a.get(kind, ())), set(b.get(kind, ()))
            right += len(texts & found)
            predictions += len(found)
            true += len(texts)
        scores[kind] = precision_recall(right, predictions, true)["f1"]
    return {"macro_f1": sum(scores.values()) / max(1, len(scores)), "f1_by_type": scores}


def exact_spans(
    gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]
) -> dict[str, float]:
    """Precision, recall and F1 over all entities, type and both ends equal (an entity that is given
    twice counts twice, as in CLUENER2020's `SpanEntityScore`)."""
    right = sum(sum(entity in set(a) for entity in b) for a, b in zip(gold, predicted, strict=True))
    return precision_recall(right, sum(map(len, predicted)), sum(map(len, gold)))
