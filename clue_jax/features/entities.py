"""Named entities: tags of tokens from spans of characters, and spans again from tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

OUTSIDE = "O"


class Entity(NamedTuple):
    """A named entity.

    Attributes:
      kind: its type.
      start, end: its first and last character or token, both inclusive.
    """

    kind: str
    start: int
    end: int


def labels_for(kinds: Sequence[str]) -> tuple[str, ...]:
    """The BIO labels of some types, "O" last."""
    return (*(f"{part}-{kind}" for kind in kinds for part in "BI"), OUTSIDE)


def split_label(label: str) -> tuple[str, str]:
    """ "B-PER" -> ("B", "PER"); a label without a type has an empty one."""
    part, _, kind = label.partition("-")
    return part, kind


def tags_of(entities: Sequence[Entity], length: int) -> list[str]:
    """The BIO tags of characters or tokens.

    Raises:
      ValueError: for an entity outside of the text, or two that overlap.
    """
    tags = [OUTSIDE] * length
    for kind, start, end in entities:
        if not 0 <= start <= end < length:
            raise ValueError(f"{kind} at {start}..{end} is outside of a text of {length}")
        if any(tag != OUTSIDE for tag in tags[start : end + 1]):
            raise ValueError(f"{kind} at {start}..{end} overlaps another entity")
        tags[start] = f"B-{kind}"
        tags[start + 1 : end + 1] = [f"I-{kind}"] * (end - start)
    return tags


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """The entities without those that overlap a longer one, or an equally long one before."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda e: (e.start - e.end, e.start)):
        if all(entity.end < other.start or other.end < entity.start for other in kept):
            kept.append(entity)
    return sorted(kept, key=lambda e: e.start)


def boundaries(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where entities begin, and where they have ended.

    The rules of conlleval: BIO, IOB1 (an I- may begin an entity), IOE and BIOES are understood, and
    a change of type ends one entity and begins another.

    Returns:
      bool [n] whether one begins with this tag; bool [n + 1] whether one ended before this tag, or
      at the very end.
    """
    begins, ended = np.zeros(len(tags), bool), np.zeros(len(tags) + 1, bool)
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        part, kind = split_label(tag)
        changes = kind != kind_before
        ended[place] = (
            before in ("E", "S", "[", "]")
            or (before in ("B", "I") and part in ("B", "S", "O"))
            or (before not in ("O", ".") and changes)
        )
        if place < len(tags):
            begins[place] = (
                part in ("B", "S", "[", "]")
                or (before in ("E", "S", "O") and part in ("E", "I"))
                or (part not in ("O", ".") and changes)
            )
        before, kind_before = part, kind
    return begins, ended


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sequence of tags, in order; see `boundaries`."""
    begins, ended = boundaries(tags)
    entities = []
    for start in np.flatnonzero(begins).tolist():
        end = start + 1 + int(np.argmax(ended[start + 1 :]))  # the first True; one there always is
        entities.append(Entity(split_label(tags[start])[1], start, end - 1))
    return entities


def baseline_entities(tags: Sequence[str], singles: bool = False) -> list[Entity]:
    """The entities as CLUENER2020's baseline reads its predictions (`get_entities`).

    Only B- begins one; an I- of another type neither ends nor lengthens it.

    Args:
      tags: BIO, or with `singles` BIOS.
      singles: entities of one unit are marked S-, and a B- without an I- is none; one that ends in
        an I- of another type has the end -1.
    """
    found: list[Entity] = []
    kind, start, end = "", -1, -1
    for place, tag in enumerate(tags):
        part, own = split_label(tag)
        if part == "I" and start >= 0:
            end = place if own == kind else end
            if place == len(tags) - 1:
                found.append(Entity(kind, start, end))
                return found
            continue
        if start >= 0 and end >= 0:
            found.append(Entity(kind, start, end))
        kind, start, end = "", -1, -1
        if part == "S" and singles:
            found.append(Entity(own, place, place))
        elif part == "B":
            kind, start, end = own, place, -1 if singles else place
    return [*found, Entity(kind, start, end)] if start >= 0 and end >= 0 else found


def constrained(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """The best sequence of BIO labels in which every I- follows a B- or I- of its own type
    (Viterbi).

    Args:
      scores: float [n, C], logits or logarithms of probabilities.
      labels: of the columns.
    """
    if not len(scores):
        return []
    parts = [split_label(label) for label in labels]
    allowed = np.array(
        [[b[0] != "I" or (a[0] in "BI" and a[1] == b[1]) for b in parts] for a in parts]
    )
    cost = np.where(allowed, 0.0, -np.inf)
    total = np.where([part == "I" for part, _ in parts], -np.inf, scores[0].astype(np.float64))
    came_from = []
    for row in scores[1:]:
        paths = total[:, None] + cost
        came_from.append(paths.argmax(axis=0))
        total = paths.max(axis=0) + row
    best = [int(total.argmax())]
    for step in reversed(came_from):
        best.append(int(step[best[-1]]))
    return best[::-1]


def as_mentions(
    units: Sequence[str], entities: Sequence[Entity]
) -> dict[str, dict[str, list[list[int]]]]:
    """CLUENER's form: {type: {mention: [[start, end], ..]}}, ends inclusive.

    Args:
      units: of the text, usually its characters; places count these.
      entities: over the units.
    """
    mentions: dict[str, dict[str, list[list[int]]]] = {}
    for kind, start, end in entities:
        of_kind = mentions.setdefault(kind, {})
        of_kind.setdefault("".join(units[start : end + 1]), []).append([start, end])
    return mentions


def from_mentions(mentions: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]) -> list[Entity]:
    """The entities of CLUENER's form, in the order of the text."""
    found = [
        Entity(kind, start, end)
        for kind, of_kind in mentions.items()
        for places in of_kind.values()
        for start, end in places
    ]
    return sorted(found, key=lambda entity: (entity.start, entity.end))
