"""The kinds of prediction: how inputs become rows, and what rows give becomes answers.

Each has a function `prepare`, which tokenizes many inputs at once, and a function `answer`, which
turns the outputs of the rows of one input into a dict of JSON's values. Places are code points of
the text given, ends exclusive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clue_jax.errors import UserError
from clue_jax.features import choices, passages, spans, tokens, windows
from clue_jax.features.entities import constrained, entities_of
from clue_jax.features.marks import mark_spans
from clue_jax.features.sequences import build_row
from clue_jax.prediction.programs import MASKS, Row
from clue_jax.text import Tokenizer
from clue_jax.text.normalize import aligned


@dataclass(frozen=True)
class Reader:
    """What it takes to read an input, and to name an answer.

    Attributes:
      tokenizer, normalize: of the model.
      labels: of the classifier, in order.
      names: what labels mean, of those that are codes.
      longest: T at most, special tokens included.
      more_signs: see `clue_jax.features.passages.cut`.
    """

    tokenizer: Tokenizer
    normalize: Callable[[str], str]
    labels: tuple[str, ...]
    names: Mapping[str, str]
    longest: int
    more_signs: bool = False

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        encoded = self.tokenizer.encode_batch([self.normalize(text) for text in texts])
        return [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.row_splits)]


class Item(NamedTuple):
    """An input that was read.

    Attributes:
      rows: what the model sees of it.
      source: what its answer is made of, beside the outputs.
      truncated: whether the end of it was cut off.
    """

    rows: list[Row]
    source: Any
    truncated: bool = False


Inputs = Sequence[Mapping[str, Any]]
Outputs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Kind:
    """How a kind of prediction is made.

    Attributes:
      prepare: (reader, inputs as `inputs.check` gives them) -> items.
      answer: (reader, source, outputs of the item's rows, top_k) -> answer.
    """

    prepare: Callable[[Reader, Inputs], list[Item]]
    answer: Callable[[Reader, Any, Outputs, int], dict[str, Any]]


# ---- texts and pairs -----------------------------------------------------------------------------


def _texts(reader: Reader, inputs: Inputs) -> list[Item]:
    firsts = reader.encode([_marked(given) for given in inputs])
    seconds = reader.encode([given.get("text_pair", "") for given in inputs])
    items = []
    for a, b in zip(firsts, seconds, strict=True):
        row = Row(*build_row(reader.tokenizer, a, b, reader.longest))
        cut = len(a) + len(b) + (3 if b else 2) > len(row.ids)
        items.append(Item([row], None, cut))
    return items


def _marked(given: Mapping[str, Any]) -> str:
    target = given.get("target")
    if target is None:
        return given["text"]
    names = ("span1_text", "span1_index", "span2_text", "span2_index")
    try:
        return mark_spans(given["text"], *(target[name] for name in names))
    except ValueError as error:
        raise UserError(f'"target": {error}') from error


def _label(reader: Reader, source: Any, outputs: Outputs, top_k: int) -> dict[str, Any]:
    probabilities = softmax(outputs[0])
    ranked = _ranked(probabilities, top_k, lambda i: _named(reader, i))
    return {**ranked[0], "labels": ranked}


def _named(reader: Reader, i: int) -> dict[str, Any]:
    label = reader.labels[i]
    return (
        {"label": label, "name": reader.names[label]} if label in reader.names else {"label": label}
    )


def _several_labels(reader: Reader, source: Any, outputs: Outputs, top_k: int) -> dict[str, Any]:
    probabilities = 1 / (1 + np.exp(-outputs[0].astype(np.float64)))
    ranked = _ranked(probabilities, top_k, lambda i: {"label": reader.labels[i]})
    chosen = [reader.labels[i] for i in np.flatnonzero(outputs[0] > 0)]
    return {"chosen": chosen, "labels": ranked}


def _score(reader: Reader, source: Any, outputs: Outputs, top_k: int) -> dict[str, Any]:
    return {"score": float(outputs[0][0])}


# ---- answers in a passage ------------------------------------------------------------------------


class _Asked(NamedTuple):
    text: str
    passage: passages.Passage
    tokens: windows.TokenizedPassage
    windows: list[windows.Window]


def _questions(reader: Reader, inputs: Inputs) -> list[Item]:
    items = []
    questions = reader.encode([given["question"] for given in inputs])
    for given, question in zip(inputs, questions, strict=True):
        text = given["text"]
        shown = aligned(text, reader.normalize)
        passage = passages.cut(text, shown, more_signs=reader.more_signs)
        tokenized = windows.tokenize_passage(passage, reader.tokenizer)
        try:
            made = windows.make_windows(reader.tokenizer, question, tokenized, None, reader.longest)
        except ValueError as error:
            raise UserError(str(error)) from error
        rows = [Row(window.ids, window.segments) for window in made]
        asked = _Asked(text, passage, tokenized, made)
        items.append(Item(rows, asked, len(question) > windows.MAX_QUESTION))
    return items


def _span(reader: Reader, asked: _Asked, outputs: Outputs, top_k: int) -> dict[str, Any]:
    def text_of(first: int, last: int) -> str:
        return spans.slice_of(asked.passage, asked.tokens, first, last)

    _, candidates = spans.n_best(asked.windows, outputs, text_of)
    found = []
    for candidate in candidates[:top_k]:
        if candidate.first < 0:
            continue
        start = int(asked.tokens.spans[candidate.first][0])
        start = asked.text.index(candidate.text, start)  # behind blanks that were stripped
        found.append(
            {
                "answer": candidate.text,
                "probability": candidate.probability,
                "start": start,
                "end": start + len(candidate.text),
            }
        )
    if not found:
        return {"answer": "", "probability": 0.0, "start": 0, "end": 0, "answers": []}
    return {**found[0], "answers": found}


# ---- choices -------------------------------------------------------------------------------------


class _Choices(NamedTuple):
    texts: tuple[str, ...]
    blanks: list[str]  # [""] for a question


def _choices(reader: Reader, inputs: Inputs) -> list[Item]:
    items = []
    for given in inputs:
        texts = tuple(given["choices"])
        known = reader.encode(texts)
        if "question" in given:
            passage, question = reader.encode([given["text"], given["question"]])
            made = [
                choices.question_row(reader.tokenizer, passage, question, choice, reader.longest)
                for choice in known
            ]
            cut = any(
                len(passage) + len(question) + len(choice) + 4 > len(row.ids)
                for choice, row in zip(known, made, strict=True)
            )
            items.append(Item([Row(*row) for row in made], _Choices(texts, [""]), cut))
            continue
        words = choices.cut_blanks(given["text"])
        blanks = [word for word in words if choices.BLANK.fullmatch(word)]
        if not blanks:
            raise UserError('without a "question" the text needs a blank such as #idiom000001#')
        if len(set(blanks)) < len(blanks):
            raise UserError("a blank stands twice in the text")
        shown = [w if choices.BLANK.fullmatch(w) else reader.normalize(w) for w in words]
        blanked = choices.tokenize_blanked(shown, reader.tokenizer)
        rows = [
            Row(*row)
            for blank in blanks
            for row in choices.blank_rows(reader.tokenizer, blanked, blank, known, reader.longest)
        ]
        others = 3 * (len(blanks) - 1)  # blanks that are not asked for become four tokens
        whole = len(blanked.ids) + others + max(map(len, known)) + 3
        cut = whole > max(len(row.ids) for row in rows)
        items.append(Item(rows, _Choices(texts, blanks), cut))
    return items


def _choice(reader: Reader, source: _Choices, outputs: Outputs, top_k: int) -> dict[str, Any]:
    """Of several blanks none gets a choice that another has, as long as there are enough."""
    scores = np.array([output[0] for output in outputs]).reshape(-1, len(source.texts))
    assigned = choices.assign(scores) if len(scores) > 1 else [None]
    found = []
    for blank, row, given in zip(source.blanks, scores, assigned, strict=True):
        chosen = int(row.argmax()) if given is None else given
        probabilities = softmax(row)
        best = {
            "choice": chosen,
            "answer": source.texts[chosen],
            "probability": float(probabilities[chosen]),
        }
        ranked = _ranked(probabilities, top_k, lambda i: {"choice": i, "answer": source.texts[i]})
        named = {"blank": blank} if blank else {}
        found.append({**named, **best, "choices": ranked})
    return found[0] if len(found) == 1 else {"blanks": found}


# ---- entities ------------------------------------------------------------------------------------


class _Tagged(NamedTuple):
    text: str
    pieces: tokens.Characters
    cuts: list[slice]


def _characters(reader: Reader, inputs: Inputs) -> list[Item]:
    items = []
    for given in inputs:
        units = list(given["text"])
        shown = [reader.normalize(unit) for unit in units]
        pieces = tokens.tokenize_characters(reader.tokenizer, shown)
        cuts = tokens.parts(pieces, units, reader.longest - 2)
        rows = [
            Row(*build_row(reader.tokenizer, pieces.ids[cut].tolist(), None, reader.longest))
            for cut in cuts
        ]
        items.append(Item(rows, _Tagged(given["text"], pieces, cuts)))
    return items


def _entities(reader: Reader, source: _Tagged, outputs: Outputs, top_k: int) -> dict[str, Any]:
    scores = np.concatenate(
        [
            output[1 : 1 + cut.stop - cut.start][source.pieces.first[cut]]
            for output, cut in zip(outputs, source.cuts, strict=True)
        ]
    )
    places = source.pieces.places[source.pieces.first]
    path = constrained(scores, reader.labels)
    probabilities = softmax(scores)[np.arange(len(path)), path]
    found = []
    for kind, first, last in entities_of([reader.labels[i] for i in path]):
        start, end = int(places[first]), int(places[last]) + 1
        found.append(
            {
                "type": kind,
                "text": source.text[start:end],
                "start": start,
                "end": end,
                "probability": float(probabilities[first : last + 1].mean()),
            }
        )
    return {"entities": found}


# ---- masked places -------------------------------------------------------------------------------


def _masks(reader: Reader, inputs: Inputs) -> list[Item]:
    tokenizer = reader.tokenizer
    items = []
    for given in inputs:
        parts = given["text"].split("[MASK]")
        if len(parts) == 1:
            raise UserError("the text holds no [MASK]")
        ids: list[int] = []
        for i, part in enumerate(reader.encode(parts)):
            ids += [tokenizer.mask_id] * (i > 0) + part
        row, segments = build_row(tokenizer, ids, None, len(ids) + 2)
        if len(row) > reader.longest:
            raise UserError(f"the text has {len(row)} tokens, the model takes {reader.longest}")
        places = [i for i, token in enumerate(row) if token == tokenizer.mask_id]
        rows = [Row(row, segments, places[i : i + MASKS]) for i in range(0, len(places), MASKS)]
        items.append(Item(rows, len(places)))
    return items


def _fillings(reader: Reader, count: int, outputs: Outputs, top_k: int) -> dict[str, Any]:
    vocabulary = reader.tokenizer.vocabulary
    logits = np.concatenate(outputs)[:count]
    return {
        "masks": [
            _ranked(softmax(row), top_k, lambda i: {"token": vocabulary[i]}) for row in logits
        ]
    }


# ---- vectors -------------------------------------------------------------------------------------


def _singles(reader: Reader, inputs: Inputs) -> list[Item]:
    items = []
    for ids in reader.encode([given["text"] for given in inputs]):
        row = Row(*build_row(reader.tokenizer, ids, None, reader.longest))
        items.append(Item([row], None, len(ids) + 2 > len(row.ids)))
    return items


def _vector(reader: Reader, source: Any, outputs: Outputs, top_k: int) -> dict[str, Any]:
    return {"vector": outputs[0].astype(float).tolist()}


# ---- the table -----------------------------------------------------------------------------------

KINDS = {
    "classification": Kind(_texts, _label),
    "multi-label": Kind(_texts, _several_labels),
    "score": Kind(_texts, _score),
    "spans": Kind(_questions, _span),
    "choice": Kind(_choices, _choice),
    "entities": Kind(_characters, _entities),
    "fill-mask": Kind(_masks, _fillings),
    "embedding": Kind(_singles, _vector),
    "similarity": Kind(_singles, _vector),  # of all inputs together, see `Predictor.answers`
}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shares = np.exp(shifted)
    return shares / shares.sum(axis=-1, keepdims=True)


def _ranked(
    probabilities: np.ndarray, top_k: int, names: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The likeliest ones with their probabilities, the first of equals first."""
    top_k = min(top_k, len(probabilities))
    if top_k < len(probabilities):  # a vocabulary is not sorted for five of its entries
        least = np.partition(probabilities, -top_k)[-top_k]
        some = np.flatnonzero(probabilities >= least)
    else:
        some = np.arange(len(probabilities))
    order = some[np.argsort(-probabilities[some], kind="stable")][:top_k].tolist()
    return [names(i) | {"probability": float(probabilities[i])} for i in order]
