"""tensorflow, imported when it is first needed and quietly; everything else runs without it."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from clue_jax.errors import UserError


def is_installed() -> bool:
    """Whether tensorflow can be imported."""
    return importlib.util.find_spec("tensorflow") is not None


def tensorflow(purpose: str) -> Any:
    """The tensorflow module.

    Args:
      purpose: what needs it, for the message.

    Raises:
      UserError: if it is not installed.
    """
    # It only reads records here; its notices about CPU instructions help nobody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"{purpose} needs tensorflow: pip install tensorflow-cpu") from error
    return tf
