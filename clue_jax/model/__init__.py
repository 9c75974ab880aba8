"""The models. This folder alone knows Flax Linen; the public contract is the parameter dict."""

from clue_jax.model.encoder import Bert, EncoderOutput
from clue_jax.model.heads import (
    ChoiceModel,
    ClassificationModel,
    PretrainingModel,
    SpanModel,
    TagModel,
)

__all__ = [
    "Bert",
    "ChoiceModel",
    "ClassificationModel",
    "EncoderOutput",
    "PretrainingModel",
    "SpanModel",
    "TagModel",
]
