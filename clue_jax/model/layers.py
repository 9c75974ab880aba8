"""The parts of an encoder layer.

Dimension letters, here and everywhere: B batch, T sequence length (S where keys differ from
queries), N heads, H head size, D hidden, F feed-forward, V vocabulary, L layers, M masked slots,
C classes. Kernels are 2-D, [in, out], as in the original's checkpoints; heads are split in the
forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clue_jax.config import ModelConfig

# The original adds this to masked scores; its softmax in float32 is then exactly 0.
MASK_BIAS = -10000.0

ACTIVATIONS = {
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu_erf": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


def dense(
    config: ModelConfig, features: int, dtype: jnp.dtype, name: str | None = None
) -> nn.Dense:
    """A fully connected layer with the original's initialisation (normal cut at two deviations)."""
    return nn.Dense(
        features,
        dtype=dtype,
        precision=precision(dtype),
        kernel_init=initializer(config),
        dot_general=_dot_general,
        name=name,
    )


def _dot_general(
    x: jax.Array, kernel: jax.Array, _: Any, precision: Any, **given: Any
) -> jax.Array:
    """What Flax asks of a dense layer: the last dimension of x with the first of the kernel."""
    return _product(x, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """[..., D] and [D, F] -> [..., F].

    On a CPU the gradient of the kernel is one product of two matrices, [D, F] as the kernel. That
    of `jnp.matmul` comes as [F, D] and is turned round, for which XLA copies its larger factor. On
    a TPU flat matrices would cost 2 % of a small model's step.
    """
    product = functools.partial(jnp.matmul, precision=precision)
    if x.dtype != jnp.bfloat16:
        return product(x, kernel)

    def through_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)

    # The same numbers: every device sums in float32. A CPU is 3x faster when it is told so.
    return jax.lax.platform_dependent(x, kernel, cpu=through_float32, default=product)


def _product_forward(
    x: jax.Array, kernel: jax.Array, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, precision), (x, kernel)


def _product_backward(
    precision: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved

    def sum_over_rows(x: jax.Array, gradient: jax.Array) -> jax.Array:
        outer = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, gradient, ((outer, outer), ((), ())), precision=precision)

    def flat(x: jax.Array, gradient: jax.Array) -> jax.Array:
        rows, of_rows = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
        return sum_over_rows(rows, of_rows)

    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=flat, default=sum_over_rows)
    return jnp.matmul(gradient, kernel.T, precision=precision), of_kernel


_product.defvjp(_product_forward, _product_backward)


def initializer(config: ModelConfig) -> nn.initializers.Initializer:
    """Truncated normal, as tensorflow's: cut at two deviations, not rescaled."""
    return nn.initializers.truncated_normal(config.initializer_range)


def precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """float32 means float32 everywhere: GPUs and TPUs would otherwise round the inputs."""
    is_float32 = jnp.dtype(dtype) == jnp.float32
    return jax.lax.Precision.HIGHEST if is_float32 else jax.lax.Precision.DEFAULT


def layer_norm(
    config: ModelConfig, dtype: jnp.dtype, name: str | None = "layer_norm"
) -> nn.LayerNorm:
    """Normalisation over D, statistics in float32."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name
    )


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes elements with probability `rate`, rounded to 1/256, and rescales the rest exactly.

    One random byte an element instead of four: drawing them is a large part of a small model's
    step. With a threefry key the numbers depend on the key and the shape alone, not on the mesh.

    Args:
      x: [..., W].
      rate: in [0, 1).
      key: a jax.random key.
    """
    dropped = min(255, round(rate * 256))
    keep = _random_bytes(x.shape, key) >= dropped
    return jnp.where(keep, x * jnp.asarray(256 / (256 - dropped), x.dtype), 0)


def _random_bytes(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """uint8 [*shape], by the cheapest way for the kind of key."""
    if jax.random.key_impl(key) == "rbg":  # the device's own generator, which gives bytes
        if len(shape) < 4:
            return jax.random.bits(key, shape, jnp.uint8)
        # Attention weights lie in a TPU with the queries innermost; these then need no transposing.
        *outer, queries, keys = shape
        return jax.random.bits(key, (*outer, keys, queries), jnp.uint8).swapaxes(-2, -1)
    words = -(-shape[-1] // 4)
    random = jax.random.bits(key, (*shape[:-1], words), jnp.uint32)
    random = jax.lax.bitcast_convert_type(random, jnp.uint8).reshape(*shape[:-1], 4 * words)
    return random[..., : shape[-1]]


def by_parts(
    function: Callable[[jax.Array, jax.Array], jax.Array], tables: jax.Array, rows: jax.Array
) -> jax.Array:
    """A function of a table and rows, for each part of the rows with a table of its own.

    Args:
      function: (one of the tables, [B / P, ...]) -> [B / P, ...].
      tables: [P, V, D]; P divides B.
      rows: [B, ...].
    """
    if len(tables) == 1:
        return function(tables[0], rows)
    given = jax.vmap(function)(tables, rows.reshape(len(tables), -1, *rows.shape[1:]))
    return given.reshape(-1, *given.shape[2:])


class Dropout(nn.Module):
    """Dropout that draws its key from the "dropout" stream; the identity when deterministic."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


class SelfAttention(nn.Module):
    """Multi-head attention, output projection, residual and LayerNorm. [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        """`bias` [B, 1, T or 1, S] is added to the scores, in float32."""
        config = self.config

        def heads(name: str) -> jax.Array:
            y = dense(config, config.hidden_size, self.dtype, name)(x)
            y = y.reshape(*y.shape[:-1], config.num_attention_heads, config.head_size)
            return y.swapaxes(1, 2)  # [B, N, T, H]: batch dimensions first is 3x faster on a CPU

        query, key, value = heads("query"), heads("key"), heads("value")
        query = query * jnp.asarray(config.head_size**-0.5, self.dtype)
        einsum = functools.partial(jnp.einsum, precision=precision(self.dtype))
        scores = einsum("BNTH,BNSH->BNTS", query, key).astype(jnp.float32) + bias
        weights = nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(config.attention_probs_dropout_prob)(weights, deterministic)
        context = einsum("BNTS,BNSH->BNTH", weights, value).swapaxes(1, 2).reshape(x.shape)
        y = dense(config, config.hidden_size, self.dtype, "output")(context)
        y = Dropout(config.hidden_dropout_prob)(y, deterministic)
        return layer_norm(config, self.dtype)(x + y)


class FeedForward(nn.Module):
    """Two dense layers, residual and LayerNorm. [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        y = dense(config, config.intermediate_size, self.dtype, "intermediate")(x)
        y = ACTIVATIONS[config.hidden_act](y)
        y = dense(config, config.hidden_size, self.dtype, "output")(y)
        y = Dropout(config.hidden_dropout_prob)(y, deterministic)
        return layer_norm(config, self.dtype)(x + y)
