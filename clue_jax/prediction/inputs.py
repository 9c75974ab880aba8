"""What each kind of prediction takes, and clear words for what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clue_jax.errors import UserError

# kind -> the fields that an input must have, and those that it may have.
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classification": (("text",), ("text_pair", "target")),
    "multi-label": (("text",), ("text_pair",)),
    "score": (("text",), ("text_pair",)),
    "spans": (("text", "question"), ()),
    "choice": (("text", "choices"), ("question",)),
    "entities": (("text",), ()),
    "fill-mask": (("text",), ()),
    "embedding": (("text",), ()),
    "similarity": (("text",), ()),
}


def check(kind: str, given: Any) -> dict[str, Any]:
    """An input as a dict of the fields that its kind takes.

    Args:
      kind: of `FIELDS`.
      given: a text, or a mapping. "target" is that of CLUEWSC, "choices" a list of texts;
        everything else is a text.

    Raises:
      UserError: for a field that is missing, unknown or of another type.
    """
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping):
        raise UserError(f"an input is a text or an object with texts, got {_name(given)}")
    required, optional = FIELDS[kind]
    found = {name: value for name, value in given.items() if value is not None}
    missing = [name for name in required if name not in found]
    if missing:
        raise UserError(f"{kind} needs {_quoted(missing)}, found {_quoted(found) or 'nothing'}")
    unknown = [name for name in found if name not in required + optional]
    if unknown:
        raise UserError(f"{kind} takes {_quoted(required + optional)}, not {_quoted(unknown)}")
    for name, value in found.items():
        if name == "choices":
            _check_choices(value)
        elif name == "target":
            _check_target(value)
        elif not isinstance(value, str):
            raise UserError(f'"{name}" must be a text, got {_name(value)}')
    return found


def _check_choices(value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UserError('"choices" must be a list of texts')
    if len(value) < 2:
        raise UserError(f'"choices" must be at least two, got {len(value)}')


def _check_target(value: Any) -> None:
    wanted = {"span1_text": str, "span1_index": int, "span2_text": str, "span2_index": int}
    if not isinstance(value, Mapping) or any(
        type(value.get(name)) is not kind for name, kind in wanted.items()
    ):
        raise UserError(
            '"target" must hold "span1_text", "span1_index", "span2_text" and "span2_index"'
        )


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _name(value: Any) -> str:
    names = {list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
