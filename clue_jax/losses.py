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


def mean(sums: dict[str, jax.Array]) -> jax.Array:
    """Mean loss; the small constant is the original's guard against batches without any label."""
    return sums["loss_sum"] / (sums["weight_sum"] + 1e-5)
