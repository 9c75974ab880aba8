"""tensorflow, imported when it is first needed and quietly; everything else runs without it."""

from __future__ import annotations

import functools
import os
from typing import Any

from clue_jax.errors import UserError


@functools.cache
def _tensorflow() -> Any | None:
    # It only reads records here; its notices about CPU instructions help nobody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except Exception:  # a broken installation raises all kinds, and counts as none
        return None
    return tensorflow


def is_usable() -> bool:
    """Whether tensorflow can be imported."""
    return _tensorflow() is not None


def tensorflow(purpose: str) -> Any:
    """The tensorflow module.

    Args:
      purpose: what needs it, for the message.

    Raises:
      UserError: if it cannot be imported.
    """
    module = _tensorflow()
    if module is None:
        raise UserError(f"{purpose} needs a working tensorflow: pip install tensorflow-cpu")
    return module
