"""Losses as sums and counts in float32; who calls them divides, once, over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Weighted cross entropy of class logits.

    Args:
      logits: float32 [..., C].
      labels: int [...], in 0..C-1.
      weights: float [...]; 0 leaves an element out.

    Returns:
      "loss_sum" (nats), "correct_sum" (how often the largest logit is the label) and "weight_sum",
      float32 scalars.
    """
    weights = weights.astype(jnp.float32)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - label_logits
    correct = jnp.argmax(logits, axis=-1) == labels
    return {
        "loss_sum": jnp.sum(losses * weights),
        "correct_sum": jnp.sum(correct * weights),
        "weight_sum": jnp.sum(weights),
    }


def task_loss(
    kind: str, logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> dict[str, jax.Array]:
    """The loss of a task's kind of label, summed over the rows, or over the tokens of tags.

    Args:
      kind: "single", cross entropy; "choice" and "tags" likewise, over choices and for every token;
        "spans", the mean of the cross entropies of start and end; "multi", binary cross entropy
        summed over the classes; "score", squared error.
      logits: float32 [B, C]; of "choice" [B, C choices]; of "tags" [B, T, C]; of "spans" [B, 2, T];
        of "score" [B, 1].
      labels: int [B]; of "tags" int [B, T]; of "spans" int [B, 2], start and end; of "multi" float
        [B, C]; of "score" float [B].
      weights: float, [B] or for "tags" [B, T]; 0 leaves an element out.

    Returns:
      "loss_sum", "correct_sum" (how often the largest logit is right, of spans both; 0 for "multi"
      and "score") and "weight_sum".
    """
    if kind in ("single", "choice", "tags"):
        return cross_entropy(logits, labels, weights)
    total = jnp.sum(weights.astype(jnp.float32))
    correct = jnp.zeros_like(total)
    if kind == "spans":
        of_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        losses = jnp.mean(jax.nn.logsumexp(logits, axis=-1) - of_label, axis=-1)
        both = jnp.all(jnp.argmax(logits, axis=-1) == labels, axis=-1)
        correct = jnp.sum(both * weights)
    elif kind == "multi":
        # log(1 + exp(x)) - x * label, which is the cross entropy of sigmoid(x).
        losses = jnp.sum(jax.nn.softplus(logits) - logits * labels, axis=-1)
    else:
        losses = jnp.square(logits[:, 0] - labels)
    return {"loss_sum": jnp.sum(losses * weights), "correct_sum": correct, "weight_sum": total}


def mean(sums: dict[str, jax.Array]) -> jax.Array:
    """Mean loss; the small constant is the original's guard against batches without any label."""
    return sums["loss_sum"] / (sums["weight_sum"] + 1e-5)
