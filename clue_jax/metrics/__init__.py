"""Scores of predictions, exact and on the host."""

from clue_jax.metrics.classification import classification, confusion, multi_label, regression

__all__ = ["classification", "confusion", "multi_label", "regression"]
