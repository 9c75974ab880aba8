"""Questions whose answers stand in a passage."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clue_jax.errors import UserError
from clue_jax.features import passages, spans, windows
from clue_jax.metrics import reading
from clue_jax.text import Tokenizer
from clue_jax.text.normalize import aligned
from finetune.forms.form import Form
from finetune.records import json_document, json_lines
from finetune.rows import Rows
from finetune.task import Content, Task

_log = logging.getLogger(__name__)
_SENTENCE = re.compile("[。！？；\n]")


@dataclass(frozen=True)
class Question:
    """A question about a passage.

    Attributes:
      id: of the question.
      question, context: texts.
      answers: texts and their places in the context, as given; none in a test file.
      source: the file, for messages.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    source: str = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """A question with its windows, which are some of the rows.

    Attributes:
      id, question, answers: of the question.
      passage, tokens: what the windows were cut out of.
      windows: in the order of the rows.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    passage: passages.Passage
    tokens: windows.TokenizedPassage
    windows: list[windows.Window]


def read(
    task: Task, content: Content, labelled: bool, answers: Content | None = None
) -> list[Question]:
    """The questions of a file in SQuAD's form, all articles in one object or one in each line.

    Raises:
      UserError: for an empty file, or a question that is not as it should be, with its id.
    """
    source = content[1]
    questions = []
    for paragraph in _paragraphs(content):
        context = paragraph.get("context")
        for entry in _list(paragraph.get("qas", [])):
            name = entry.get("id") if isinstance(entry, dict) else None
            if name is None and labelled:  # only an answer needs one
                name = f"{len(questions) + 1} of the file"
            place = f"{source}, question {name}"
            if not isinstance(name, str | int) or not isinstance(entry.get("question"), str):
                raise UserError(f'{place}: a question needs a text "question" and an "id"')
            if not isinstance(context, str) or (labelled and not context.strip()):
                raise UserError(f"{place}: its passage is empty")
            found = _answers_of(entry, place) if labelled else ()
            questions.append(Question(str(name).strip(), entry["question"], context, found, source))
    if not questions:
        raise UserError(f"{source}: holds no questions")
    return questions


def _paragraphs(content: Content) -> list[dict[str, Any]]:
    """All paragraphs; the articles stand under "data", or one in each line."""
    data, source = content
    if _is_lines(data):
        articles = [record for _, record in json_lines(data, source)]
    else:
        document = json_document(data, source)
        articles = document.get("data") if isinstance(document, dict) else document
    try:
        found = [paragraph for article in articles for paragraph in _list(article["paragraphs"])]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{source}: not in SQuAD\'s form ("data", "paragraphs", "qas")') from error
    if not all(isinstance(paragraph, dict) for paragraph in found):
        raise UserError(f"{source}: a paragraph is no object")
    return found


def _is_lines(data: bytes) -> bool:
    """Whether each line is an article: the first one then is one by itself."""
    try:
        first = json.loads(data.removeprefix(b"\xef\xbb\xbf").strip().split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "data" not in first


def _list(value: Any) -> list[Any]:
    """A list, or one thing in the place of a list of one."""
    return value if isinstance(value, list) else [value]


def _answers_of(entry: dict[str, Any], place: str) -> tuple[tuple[str, int], ...]:
    """Texts and places: a list of both, or two lists, as Hugging Face's datasets have them."""
    try:
        given = entry["answers"]
        if isinstance(given, dict) and isinstance(given["text"], list):
            starts = given.get("answer_start", given.get("answer_starts"))
            found = tuple(zip(given["text"], map(int, starts), strict=True))
        else:
            found = tuple((a["text"], int(a.get("answer_start", 0))) for a in _list(given))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f'{place}: "answers" need a "text" and an "answer_start"') from error
    if not found or not all(isinstance(text, str) for text, _ in found):
        raise UserError(f"{place}: has no answer")
    return found


def rows(
    examples: Sequence[Question],
    task: Task,
    tokenizer: Tokenizer,
    normalize: Callable[[str], str],
    max_length: int,
) -> Rows:
    """The windows of every question, one after the other.

    An answer that does not stand where it should is looked for in its passage. The first that is
    there is trained on; a question none of whose answers is there has windows without an answer.
    How many answers were moved or are not there is said.
    """
    asked: list[Asked] = []
    known: dict[str, tuple[passages.Passage, windows.TokenizedPassage]] = {}
    questions = tokenizer.encode_batch([normalize(example.question) for example in examples])
    moved = lost = 0
    for i, example in enumerate(examples):
        if example.context not in known:
            shown = aligned(example.context, normalize)
            passage = passages.cut(example.context, shown, more_signs=task.simplify)
            known[example.context] = passage, windows.tokenize_passage(passage, tokenizer)
        passage, tokens = known[example.context]
        answer = None
        for text, start in example.answers:
            text = normalize(text)
            at = passages.find(passage, text, start)
            place = None if at is None else passages.locate(passage, text, at, repair=0)
            moved += at not in (None, start)
            lost += place is None
            if answer is None and place is not None:
                answer = windows.answer_tokens(tokens, place, tokenizer.encode(text).ids)
        ids = questions.ids[questions.row_splits[i] : questions.row_splits[i + 1]].tolist()
        try:
            made = windows.make_windows(
                tokenizer, ids, tokens, answer, max_length, task.stride, task.max_question
            )
        except ValueError as error:
            raise UserError(f"{example.source}, question {example.id}: {error}") from error
        texts = tuple(text for text, _ in example.answers)
        asked.append(Asked(example.id, example.question, texts, passage, tokens, made))
    if moved or lost:
        _log.warning(
            "%s: %d answers stood elsewhere in their passage and were found, %d are not in it",
            examples[0].source, moved, lost,
        )  # fmt: skip
    made = [window for question in asked for window in question.windows]
    labels = np.array([(w.start, w.end) for w in made], np.int32).reshape(-1, 2)
    ids, segments = [w.ids for w in made], [w.segments for w in made]
    return Rows(ids, segments, labels, sources=asked)


def predict(
    task: Task, rows: Rows, logits: Sequence[np.ndarray]
) -> dict[str, list[spans.Candidate]]:
    """Question id -> the candidates for its answer, the best first."""
    found = {}
    at = 0
    for asked in rows.sources:
        some = logits[at : at + len(asked.windows)]
        at += len(asked.windows)

        def text_of(first: int, last: int, asked: Asked = asked) -> str:
            return spans.slice_of(asked.passage, asked.tokens, first, last)

        _, candidates = spans.n_best(asked.windows, some, text_of, max_tokens=task.max_answer)
        found[asked.id] = candidates
    return found


def _best(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> dict[str, str]:
    answers = {}
    for name, candidates in predict(task, rows, logits).items():
        text = candidates[0].text
        is_none = text == spans.NOTHING and candidates[0].probability == 1 and not any(
            (candidates[0].start_logit, candidates[0].end_logit)
        )  # fmt: skip
        answers[name] = "" if is_none else text
    return answers


def _scores(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> dict[str, float]:
    gold = {asked.id: asked.answers for asked in rows.sources}
    score = reading.score(gold, _best(task, rows, logits))
    return {name: score[name] / 100 for name in ("f1", "em", "average")}


def _answers(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> list[tuple[Any, Any]]:
    return list(_best(task, rows, logits).items())


def _details(task: Task, rows: Rows, logits: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a question is answered with without any model: the sentence most like it."""
    gold = {asked.id: asked.answers for asked in rows.sources}
    likest = {
        asked.id: likest_sentence(asked.question, asked.passage.text) for asked in rows.sources
    }
    score = reading.score(gold, likest)
    return {"likest_sentence": {"f1": score["f1"] / 100, "em": score["em"] / 100}}


def likest_sentence(question: str, context: str) -> str:
    """The sentence that shares most characters with the question, the first of equals."""
    characters = set(question)
    sentences = [part for part in _SENTENCE.split(context) if part.strip()]
    return max(sentences, key=lambda part: len(characters & set(part)), default="")


SPANS = Form(read, rows, _scores, _answers, "average", _details, per_token=True)
