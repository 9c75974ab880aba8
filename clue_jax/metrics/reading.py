"""F1 and exact match of answers, as CMRC 2018 and DRCD are scored.

An answer is cut into Chinese characters, signs and words of anything else; F1 comes from the
longest common run of these. Source: `cmrc2018_evaluate.py` of CMRC 2018, which the original uses;
its sentence splitter for English is left out, as it changes next to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

_SIGNS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# The original's list also has "……", which no single character can equal: "…" is no sign in it.


def segment(text: Any, signs: bool = False) -> list[str]:
    """The units that F1 counts.

    Args:
      text: an answer; lower-cased, and anything but a string is written as one.
      signs: whether signs are kept.
    """
    units: list[str] = []
    run = ""
    for character in str(text).lower().strip():
        if not signs and character in _SIGNS:
            continue  # which does not end a run: "3:2" is read as "32"
        if "\u4e00" <= character <= "\u9fa5" or character in _SIGNS:
            units += _words(run)
            units.append(character)
            run = ""
        else:
            run += character
    return units + _words(run)


def _words(run: str) -> list[str]:
    return _tokenizer().tokenize(run) if run else []


@functools.cache
def _tokenizer() -> Any:
    # Only the regular expressions: sentence splitting would need a model of English.
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def without_signs(text: Any) -> str:
    """What exact match compares."""
    return "".join(c for c in str(text).lower().strip() if c not in _SIGNS)


def common_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of units that stands in both."""
    longest = 0
    before = [0] * (len(b) + 1)
    for unit in a:
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if unit == other:
                row[j + 1] = before[j] + 1
                longest = max(longest, row[j + 1])
        before = row
    return longest


def f1(answers: Sequence[Any], prediction: Any) -> float:
    """F1 against the closest of the answers; 0 for an empty prediction, even if it is right."""
    predicted = segment(prediction)
    best = 0.0
    for answer in answers:
        units = segment(answer)
        run = common_run(units, predicted)
        if run:
            precision, recall = run / len(predicted), run / len(units)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def exact_match(answers: Sequence[Any], prediction: Any) -> int:
    """1 if the prediction is one of the answers, but for signs and capitals."""
    predicted = without_signs(prediction)
    return int(any(without_signs(answer) == predicted for answer in answers))


def score(answers: Mapping[str, Sequence[Any]], predictions: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a set of questions.

    Args:
      answers: question id -> its answers.
      predictions: question id -> answer; those that are missing count as wrong.

    Returns:
      "f1" and "em" in percent, their mean "average", "total" and "skip", how many are missing.
    """
    sums = [0.0, 0.0]
    skipped = 0
    for name, of_question in answers.items():
        if name not in predictions:
            skipped += 1
            continue
        sums[0] += f1(of_question, predictions[name])
        sums[1] += exact_match(of_question, predictions[name])
    total = len(answers)
    f1_mean, em_mean = (100 * value / max(1, total) for value in sums)
    average = (f1_mean + em_mean) / 2
    return {"f1": f1_mean, "em": em_mean, "average": average, "total": total, "skip": skipped}
