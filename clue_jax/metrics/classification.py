"""Scores of labels."""

from __future__ import annotations

from typing import Any

import numpy as np


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was taken for each: int64 [C, C], rows are the true ones.

    Args:
      labels, predictions: int [n], in 0..C-1.
      classes: C.
    """
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def classification(matrix: np.ndarray) -> dict[str, float]:
    """Scores of a confusion matrix.

    Returns:
      "accuracy"; "macro_f1", the mean of F1 over the classes that occur or were predicted;
      "majority", the accuracy of always answering the commonest class.
    """
    total = max(1, int(matrix.sum()))
    hits = np.diag(matrix).astype(np.float64)
    both = matrix.sum(axis=0) + matrix.sum(axis=1)
    f1 = 2 * hits[both > 0] / both[both > 0]
    return {
        "accuracy": float(hits.sum() / total),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
        "majority": float(matrix.sum(axis=1).max(initial=0) / total),
    }


def multi_label(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Scores of sets of labels.

    Args:
      labels, predictions: bool [n, C].

    Returns:
      "accuracy", the share of examples whose set is right; "micro_f1" over all decisions;
      "macro_f1" over the classes that occur or were predicted.
    """
    hits = (labels & predictions).sum(axis=0).astype(np.float64)
    both = labels.sum(axis=0) + predictions.sum(axis=0)
    f1 = 2 * hits[both > 0] / both[both > 0]
    return {
        "accuracy": float((labels == predictions).all(axis=1).mean()),
        "micro_f1": float(2 * hits.sum() / max(1, both.sum())),
        "macro_f1": float(f1.mean()) if len(f1) else 0.0,
    }


def regression(scores: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation (ties share their mean rank), and mean squared error.

    Args:
      scores, predictions: float [n]. Correlations of a constant are 0.
    """
    return {
        "pearson": _correlation(scores, predictions),
        "spearman": _correlation(_ranks(scores), _ranks(predictions)),
        "mse": float(np.mean(np.square(np.asarray(scores) - np.asarray(predictions)))),
    }


def _correlation(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def _ranks(values: Any) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[which]
