"""The body of a request, checked; and the schema that describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from clue_jax.errors import UserError
from clue_jax.prediction.inputs import FIELDS

TOP_K = 200  # the largest
_HALVES = re.compile("[\ud800-\udfff]")


class Limits(NamedTuple):
    """What a request may be.

    Attributes:
      inputs: how many.
      characters: of a text.
      rows: of the model, where an input makes several: one for each choice of each blank.
      masks: in all inputs.
      body: in bytes.
      timeout: in seconds, what a request may ask for at most.
    """

    inputs: int = 512
    characters: int = 20_000
    rows: int = 1024
    masks: int = 256
    body: int = 4 << 20
    timeout: float = 30.0


class Request(NamedTuple):
    """A request that was read."""

    inputs: list[Any]
    top_k: int
    timeout: float

    def size(self, longest: int) -> int:
        """About how many tokens it has: in Chinese, a character is one.

        Args:
          longest: of a text; what is longer is cut.
        """
        texts = (text for given in self.inputs for text in _texts(given))
        return sum(min(len(text) + 3, longest) for text in texts)


def read(body: bytes, limits: Limits) -> Request:
    """A request out of its body.

    Raises:
      UserError: for what is not as it should be, with the number of the input.
    """
    try:
        given = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UserError(f"the body is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not valid JSON ({error})") from error
    if not isinstance(given, dict):
        raise UserError('the body must be a JSON object such as {"inputs": [{"text": ".."}]}')
    unknown = sorted(set(given) - {"inputs", "top_k", "timeout"})
    if unknown:
        raise UserError(f'unknown field "{unknown[0]}"; known: inputs, top_k, timeout')
    inputs = given.get("inputs")
    if not isinstance(inputs, list):
        raise UserError('"inputs" must be a list')
    if not inputs:
        raise UserError('"inputs" is empty')
    if len(inputs) > limits.inputs:
        raise UserError(f"{len(inputs)} inputs; a request takes {limits.inputs}")
    rows = masks = 0
    for number, item in enumerate(inputs, 1):
        texts, choices = _texts(item), _choices(item)
        rows += max(1, len(choices)) * max(1, sum(text.count("#idiom") for text in texts))
        masks += sum(text.count("[MASK]") for text in texts)
        if rows > limits.rows:
            raise UserError(f"input {number}: {rows} choices so far; a request takes {limits.rows}")
        if masks > limits.masks:
            raise UserError(
                f"input {number}: {masks} [MASK] so far; a request takes {limits.masks}"
            )
        for text in texts:
            if len(text) > limits.characters:
                raise UserError(
                    f"input {number}: a text of {len(text)} characters; a request takes "
                    f"{limits.characters}"
                )
            half = _HALVES.search(text)
            if half:
                raise UserError(
                    f"input {number}: U+{ord(half[0]):04X} at place {half.start()} is half a "
                    "surrogate pair, and no character"
                )
    timeout = given.get("timeout", limits.timeout)
    if type(timeout) not in (int, float) or not 0 < timeout <= limits.timeout:
        raise UserError(f'"timeout" must be seconds above 0 and up to {limits.timeout:g}')
    top_k = given.get("top_k", 5)
    if type(top_k) is not int or not 1 <= top_k <= TOP_K:
        raise UserError(f'"top_k" must be a whole number between 1 and {TOP_K}')
    return Request(inputs, top_k, float(timeout))


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _texts(given: Any) -> list[str]:
    """The texts of an input, as deep as there may be some."""
    values = list(given.values()) if isinstance(given, Mapping) else [given]
    values += _choices(given)
    values += [text for value in values if isinstance(value, Mapping) for text in value.values()]
    return [value for value in values if isinstance(value, str)]


def _choices(given: Any) -> list[Any]:
    found = given.get("choices") if isinstance(given, Mapping) else None
    return found if isinstance(found, list) else []


# ---- the description -----------------------------------------------------------------------------

_TEXT = {"type": "string"}
_EXAMPLES: dict[str, list[Any]] = {
    "classification": [{"text": "今天股市大涨"}],
    "multi-label": [{"text": "今天股市大涨"}],
    "score": [{"text": "天气很好", "text_pair": "天气不错"}],
    "spans": [{"text": "北京是中国的首都。", "question": "中国的首都是哪里？"}],
    "choice": [{"text": "清晨五点。", "question": "几点？", "choices": ["五点", "六点"]}],
    "entities": [{"text": "马云出生在杭州。"}],
    "fill-mask": [{"text": "今天天[MASK]很好"}],
    "embedding": [{"text": "今天天气很好"}],
    "similarity": [{"text": "今天天气很好"}, {"text": "天气不错"}],
}
ANSWERS = {
    "classification": '"label", "probability", and the likeliest ones in "labels"',
    "multi-label": '"chosen" labels, and the likeliest ones in "labels"',
    "score": '"score"',
    "spans": '"answer", "probability", "start", "end" (exclusive), and more in "answers"',
    "choice": '"choice" (its number from 0), "answer", "probability", and all in "choices"; of '
    'several blanks a list "blanks" of these',
    "entities": '"entities": "type", "text", "start", "end" (exclusive), "probability" of each',
    "fill-mask": '"masks": for each [MASK] the likeliest tokens and their probabilities',
    "embedding": '"vector": the mean over the tokens',
    "similarity": '"similarities": the cosine with every input of the request',
}


def schema(kind: str | None, limits: Limits) -> dict[str, Any]:
    """The JSON schema of a request, as OpenAPI wants it; None for any kind."""
    known = {
        "text": _TEXT,
        "text_pair": _TEXT,
        "question": _TEXT,
        "choices": {"type": "array", "items": _TEXT, "minItems": 2},
        "target": {"type": "object"},
    }
    required, optional = FIELDS[kind] if kind else (("text",), tuple(known)[1:])
    item = {
        "type": "object",
        "required": list(required),
        "properties": {name: known[name] for name in required + optional},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "array", "items": item, "minItems": 1, "maxItems": limits.inputs},
            "top_k": {"type": "integer", "minimum": 1, "maximum": TOP_K, "default": 5},
            "timeout": {
                "type": "number",
                "description": "seconds after which it is given up",
                "maximum": limits.timeout,
            },
        },
        "example": {"inputs": _EXAMPLES[kind or "classification"], "top_k": 3},
    }
