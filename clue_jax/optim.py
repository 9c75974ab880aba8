"""The original's optimiser out of optax parts, and its learning-rate schedules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clue_jax.errors import UserError

SCHEDULES = ("linear", "original")

# Parameters without weight decay, by path; everything else decays.
NO_DECAY = re.compile(r"layer_norm/|(^|/)bias$")


def learning_rate(schedule: str, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0.

    Args:
      schedule: "linear" rises to `peak` in `warmup_steps` and falls to 0 at `steps`, without a
        jump. "original" is that of google-research/bert `optimization.py`: the fall counts from
        step 0, so the rate drops when the warm-up ends.
      peak: the largest rate.
      steps: length of the run.
      warmup_steps: length of the rise; 0 for none.

    Raises:
      UserError: for another schedule, or a warm-up longer than the run.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if not 0 <= warmup_steps <= steps:
        raise UserError(f"--warmup-steps {warmup_steps} must lie between 0 and --steps {steps}")
    fall_from = warmup_steps if schedule == "linear" else 0
    fall_length = max(1, steps - fall_from)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        left = jnp.clip((steps - step) / fall_length, 0.0, 1.0)
        return jnp.float32(peak) * jnp.where(step < warmup_steps, step / max(1, warmup_steps), left)

    return rate


def scale_by_adam_without_bias_correction(
    b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps), moments not corrected for their start at zero.

    This is AdamWeightDecayOptimizer of google-research/bert, `optimization.py`.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(
        gradients: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradients)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    max_gradient_norm: float = 1.0,
    frozen: str | None = None,
    layer_decay: float = 1.0,
    layers: int = 0,
) -> optax.GradientTransformation:
    """AdamW as the original trains: clip the global norm, no bias correction, decoupled decay.

    Args:
      schedule: learning rate by step.
      b1, b2, eps: Adam's constants; the original has b2 0.98 in pretraining, 0.999 in fine-tuning.
      weight_decay: added to the direction before the learning rate, but for LayerNorm and biases.
      max_gradient_norm: gradients of a larger global norm are scaled down to it.
      frozen: regular expression of parameter paths that get no update, no decay and no slots, as
        in the original those that the loss does not reach.
      layer_decay: the last layer and the heads learn at the full rate, every layer below at this
        share of the one above, the embeddings at that of the first layer's.
      layers: L, needed for `layer_decay`.
    """
    train = optax.chain(
        optax.clip_by_global_norm(max_gradient_norm),
        scale_by_adam_without_bias_correction(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        *([_scale_by_layer(layer_decay, layers)] if layer_decay != 1 else []),
        optax.scale_by_learning_rate(schedule),
    )
    return _but_for(frozen, train)


def lamb(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    max_gradient_norm: float = 1.0,
    frozen: str | None = None,
) -> optax.GradientTransformation:
    """LAMB (You et al. 2020, algorithm 2), for very large batches: Adam's direction, with bias
    correction and decay, scaled for each matrix to the norm of the matrix.

    LayerNorm and biases, which have no decay, are not scaled either. The arguments are those of
    `adamw`.
    """
    train = optax.chain(
        optax.clip_by_global_norm(max_gradient_norm),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.masked(optax.scale_by_trust_ratio(), decayed),
        optax.scale_by_learning_rate(schedule),
    )
    return _but_for(frozen, train)


class AverageState(NamedTuple):
    """The state of `with_average`: updates so far, and the average, a tree like the parameters."""

    count: jax.Array
    average: Any


def with_average(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """An optimiser that also keeps a moving average of the parameters; see `average_of`.

    After update t, counted from 1, the average moves towards the parameters by 1 - d, where d is
    `decay`, or t / (t + 9) while that is less, so that the start is soon forgotten (the rule of
    tensorflow's ExponentialMovingAverage with `num_updates`).

    Args:
      optimizer: what updates the parameters.
      decay: in (0, 1).
    """

    def init(params: Any) -> AverageState:
        return AverageState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        count = state.count + 1
        step = 1 - jnp.minimum(decay, count / (count + 9))
        # Where nothing changes, this adds an exact 0.
        average = jax.tree.map(
            lambda a, p, u: a + step * (p + u - a), state.average, params, updates
        )
        return updates, AverageState(count, average)

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def average_of(opt_state: Any) -> Any:
    """The average that `with_average` keeps."""
    return optax.tree_utils.tree_get(opt_state, "average")


def _but_for(
    frozen: str | None, train: optax.GradientTransformation
) -> optax.GradientTransformation:
    if frozen is None:
        return train
    return optax.multi_transform(
        {"train": train, "frozen": optax.set_to_zero()},
        lambda params: map_paths(
            lambda path, _: "frozen" if re.search(frozen, path) else "train", params
        ),
    )


def _scale_by_layer(decay: float, layers: int) -> optax.GradientTransformation:
    def factor(path: str) -> float:
        layer = re.search(r"encoder/layer_(\d+)/", path)
        if layer:
            return decay ** (layers - 1 - int(layer[1]))
        return decay**layers if "/embeddings/" in f"/{path}" else 1.0

    return optax.stateless(
        lambda updates, params: map_paths(lambda path, update: factor(path) * update, updates)
    )


def decayed(params: Any) -> Any:
    """The tree of which parameters decay, by path."""
    return map_paths(lambda path, _: NO_DECAY.search(path) is None, params)


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps `function(path, leaf)` over a tree; a path reads "bert/pooler/kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )
