"""Short passages of plain text, drawn at random."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from pretraining.corpus import cut_pieces, read_documents

CLAUSE = re.compile(r"(?:[^。！？；，：,]|(?<=\d),(?=\d))+")  # 1,200 is one number


def cut_passages(
    paths: Sequence[str], shortest: int, longest: int, chance: random.Random
) -> Iterator[str]:
    """Neighbouring sentences of a document, together at most as many characters as the passage's
    limit, and at least half of that."""
    limit = chance.randint(shortest, longest)
    for piece in cut_pieces(paths):
        for document in read_documents(piece, paragraphs=True):
            passage = ""
            for sentence in [*document, " " * longest]:
                if len(passage) + len(sentence) > limit:
                    if limit <= 2 * len(passage) <= 2 * limit:
                        yield passage
                    passage = ""
                    limit = chance.randint(shortest, longest)
                passage += sentence


def sample(passages: Iterator[str], count: int, chance: random.Random) -> list[str]:
    """So many of them in random order, all equally likely, those that come twice once; memory does
    not grow with the text."""
    chosen: list[str] = []
    for number, passage in enumerate(passages):
        if number < count:
            chosen.append(passage)
        elif (place := chance.randrange(number + 1)) < count:
            chosen[place] = passage
    chance.shuffle(chosen)
    return list(dict.fromkeys(chosen))
