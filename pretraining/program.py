"""What a run computes: model, optimizer and the step, from settings and sizes alone.

The loop runs it here; compiled for a machine that is elsewhere, it tells what a step takes there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from clue_jax import optim, sharding
from clue_jax.config import ModelConfig
from clue_jax.model import PretrainingModel
from clue_jax.train_state import TrainState, compute_dtype
from pretraining import induction
from pretraining.settings import Settings
from pretraining.start import random_params
from pretraining.step import train_steps

# What the masked-LM loss does not reach. In the original these get no update and no decay.
NEXT_SENTENCE_ONLY = r"^(bert/pooler|next_sentence)/"


@dataclass(frozen=True)
class Program:
    """What a run computes.

    Attributes:
      model: as it trains; eval_model: the same without dropout.
      optimizer: of the parameters; schedule: its learning rate by step.
      key: of the run.
      initial_weights: as the settings have it.
      step: (state, batches [steps, B, ...]) -> (state, sums [steps]), see `train_steps`.
    """

    model: PretrainingModel
    eval_model: PretrainingModel
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    key: jax.Array
    initial_weights: str
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]

    def init(self) -> Any:
        """The parameters at the start."""
        params = random_params(self.eval_model, self.key)
        if self.initial_weights == "induction":
            drawing = jax.random.fold_in(self.key, 2)
            params = induction.induction_params(params, self.model.config, drawing)
        return params

    def compiled_step(self, state_shardings: Any, mesh: Mesh) -> Any:
        """The step under `jax.jit`; it takes the state's memory for the state that it gives."""
        shardings = (state_shardings, sharding.replicated(mesh))
        return jax.jit(self.step, donate_argnums=0, out_shardings=shardings)


def program(settings: Settings, config: ModelConfig, steps: int, mesh: Mesh) -> Program:
    """The program of a run.

    Args:
      settings: of the run; where its data lie plays no part.
      config: of the model.
      steps: of the whole run.
      mesh: on which it will run.

    Raises:
      UserError: for a warm-up longer than the run, or a model too small for its first weights.
    """
    if settings.initial_weights == "induction":
        induction.check(config)
    schedule = optim.learning_rate(
        settings.schedule, settings.learning_rate, steps, settings.warmup_steps
    )
    optimizer = {"adamw": optim.adamw, "lamb": optim.lamb}[settings.optimizer](
        schedule,
        b2=settings.adam_b2,
        weight_decay=settings.weight_decay,
        max_gradient_norm=settings.max_gradient_norm,
        frozen=None if settings.next_sentence else NEXT_SENTENCE_ONLY,
    )
    if settings.ema_decay:
        optimizer = optim.with_average(optimizer, settings.ema_decay)
    dtype = compute_dtype(settings.dtype)
    # Where every device has all parameters, and only there, each gets a part of the batch.
    parts = mesh.shape["data"] if mesh.shape["data"] == mesh.size else 1
    model = PretrainingModel(config, dtype, remat=settings.remat == "layers", parts=parts)
    key = jax.random.key(settings.seed, impl=settings.prng)
    step = functools.partial(
        train_steps,
        model=model,
        optimizer=optimizer,
        key=jax.random.fold_in(key, 1),
        next_sentence=settings.next_sentence,
        accumulate=settings.accumulate,
    )
    eval_model = PretrainingModel(config.without_dropout(), dtype)
    return Program(model, eval_model, optimizer, schedule, key, settings.initial_weights, step)
