"""CLUE pretrained models (Chinese RoBERTa) in JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clue_jax.config import ModelConfig

if TYPE_CHECKING:
    from clue_jax.predictor import Predictor
    from clue_jax.pretrained import Model, load

__all__ = ["Model", "ModelConfig", "Predictor", "load"]
__version__ = "0.1.0"

# Looked up when first used: conversion and the command lines need no jax to start.
_PLACES = {
    "Model": "clue_jax.pretrained",
    "load": "clue_jax.pretrained",
    "Predictor": "clue_jax.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
