"""What is there before the first step: the model, the task, its examples and the plan."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from clue_jax import optim
from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.data.batches import Batch
from clue_jax.train_state import TrainState, compute_dtype
from finetune.data import label_names, read_split
from finetune.forms import FORMS
from finetune.model import (
    TaskModel,
    architecture,
    build_model,
    head_of,
    load_start,
    normalizer_of,
    starting_params,
)
from finetune.presets import Recipe
from finetune.rows import Rows, batch_of, buckets, train_order
from finetune.settings import Settings, check, filled, find_task
from finetune.step import train_step
from finetune.task import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training job, ready to start.

    Attributes:
      settings: as given.
      plan: the recipe with what the settings say instead.
      loaded: the model to start from.
      task: what is to be learned.
      columns: of a person's own files; None for a task of CLUE.
      given: parameters that are taken over; the others start at random.
      train, dev: examples as rows.
      test: examples of the test set; None if it has no file.
      examples: of the training set, as the file counts them.
      digests: SHA-256 of the model, its vocabulary and the examples of each set.
    """

    settings: Settings
    plan: Recipe
    loaded: LoadedModel
    task: Task
    columns: dict[str, Any] | None
    given: dict[str, Any]
    train: Rows
    dev: Rows
    test: list[Any] | None
    examples: int
    digests: dict[str, str]
    label_names: dict[str, str]

    @property
    def epoch_steps(self) -> int:
        """Updates in an epoch; the last batch may be smaller."""
        return -(-len(self.train) // self.plan.batch_size)

    @property
    def steps(self) -> int:
        """Updates in all."""
        return max(1, round(self.plan.epochs * self.epoch_steps))

    @property
    def eval_every(self) -> int:
        """Updates between evaluations."""
        return self.plan.eval_every or self.epoch_steps

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths T that batches are padded to."""
        return buckets(self.plan.seq_len) if self.settings.buckets else (self.plan.seq_len,)

    @property
    def config(self) -> ModelConfig:
        """The model's, with the dropout of this job."""
        rate = self.settings.dropout
        if rate is None:
            return self.loaded.config
        return self.loaded.config.replace(
            hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
        )

    def model(self, dropout: bool) -> TaskModel:
        """The model for training, or without dropout for evaluation."""
        config = self.config if dropout else self.config.without_dropout()
        return build_model(self.task, config, compute_dtype(self.settings.dtype))

    def schedule(self, peak: float | jax.Array) -> optax.Schedule:
        """The learning rate by step, `peak` the largest."""
        warmup_steps = int(self.plan.warmup * self.steps)
        return optim.learning_rate(self.plan.schedule, peak, self.steps, warmup_steps)

    def optimizer(self, peak: float | jax.Array) -> optax.GradientTransformation:
        """The original's."""
        return optim.adamw(
            self.schedule(peak), b2=self.plan.adam_b2, weight_decay=self.settings.weight_decay,
            layer_decay=self.settings.layer_decay, layers=self.config.num_hidden_layers,
        )  # fmt: skip

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, peak: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update; see `finetune.step.train_step`. Key and learning rate are arguments, so that
        one program serves all seeds and rates."""
        return train_step(
            state, batch, model=self.model(dropout=True), optimizer=self.optimizer(peak), key=key,
            kind=self.task.kind, accumulate=self.settings.accumulate,
        )  # fmt: skip

    def call(
        self, state: TrainState, batches: Batch, key: jax.Array, peak: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The updates of a call, see `calls`: batches and sums are arrays [steps, ...]."""
        return jax.lax.scan(lambda s, batch: self.step(s, batch, key, peak), state, batches)

    def calls(self, start: int) -> list[range]:
        """The steps behind step `start`, as they are done together: --steps-per-call of them, but
        fewer at the end of an epoch."""
        size, found = min(self.settings.steps_per_call, self.epoch_steps), []
        while start < self.steps:
            first, done = start - start % self.epoch_steps, start % self.epoch_steps
            stop = min(first + done - done % size + size, first + self.epoch_steps, self.steps)
            found.append(range(start, stop))
            start = stop
        return found

    def rows(self, step: int, seed: int) -> np.ndarray:
        """The numbers of the rows in the batch of a step: a pure function of its arguments."""
        return self._order(seed, step // self.epoch_steps)[step % self.epoch_steps]

    def batch(self, step: int, seed: int) -> Batch:
        """The batch of a step, counted from 0."""
        chosen, pad_id = self.rows(step, seed), self.loaded.tokenizer.pad_id
        return batch_of(self.train, chosen, self.plan.batch_size, self.lengths, pad_id)

    def batches(self, steps: range, seed: int) -> Batch:
        """The batches of a call as arrays [steps, B, ...], padded to one length."""
        chosen, pad_id = [self.rows(step, seed) for step in steps], self.loaded.tokenizer.pad_id
        longest = max(self.train.lengths[i] for rows in chosen for i in rows)
        length = [length for length in self.lengths if length >= longest][:1]
        made = [batch_of(self.train, rows, self.plan.batch_size, length, pad_id) for rows in chosen]
        return {name: np.stack([batch[name] for batch in made]) for name in made[0]}

    @functools.cached_property
    def _order(self) -> Callable[[int, int], list[np.ndarray]]:
        """(seed, epoch) -> the batches of that epoch; the latest are kept."""
        by_length, together = self.settings.buckets, self.settings.steps_per_call
        return functools.lru_cache(maxsize=64)(
            lambda seed, epoch: train_order(
                self.train, self.plan.batch_size, seed, epoch, by_length, together
            )
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """All settings, the recipe's filled in."""
        return dataclasses.asdict(self.settings) | dataclasses.asdict(self.plan)

    def about(self) -> dict[str, Any]:
        """What a model directory of this job says of itself."""
        info = self.loaded.info
        return {
            "task": self.task.name,
            "labels": self.task.labels,
            "heads": {head_of(self.task): "trained", "pooler": "trained"},
            "architecture": architecture(self.task),
            "max_seq_length": self.plan.seq_len,
            "normalization": "t2s" if self.task.simplify else info.get("normalization", "none"),
            "license": info.get("license", "unknown"),
            "source": f"clue_jax finetune.run on {self.task.name}, from {info.get('source')}",
            "input": self.columns,
            "label_names": self.label_names,
        }


def dropout_key(seed: int | jax.Array) -> jax.Array:
    """The key that every step's dropout is folded from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def prepare(settings: Settings, mesh: jax.sharding.Mesh) -> Job:
    """Reads the model and the data of a job.

    Raises:
      UserError: for settings, a model or data that are not as they should be.
    """
    loaded = load_start(settings.init_from or settings.model)
    task, columns = find_task(settings)
    plan = filled(settings, loaded)
    check(settings, plan, loaded, mesh)
    given = {} if settings.random_weights else starting_params(loaded, task, settings.head)
    normalize = normalizer_of(task, loaded)
    tokenizer = loaded.tokenizer
    digests = {
        "model_sha256": merge.digest(loaded.params),
        "config_sha256": _digest(_what_decides(loaded)),
        "vocab_sha256": _digest([tokenizer.lower_case, *tokenizer.vocabulary]),
    }
    rows: dict[str, Rows] = {}
    for split in ("train", "dev", "test"):
        examples = read_split(task, settings.data_dir, split, settings.version, settings.limit)
        digests[f"{split}_sha256"] = _digest(examples or [])
        if split == "test":
            break
        rows[split] = FORMS[task.kind].rows(examples, task, tokenizer, normalize, plan.seq_len)
        if split == "train":
            count = len(examples) // task.group
    if examples is None:
        _log.warning("%s: no test file was found, so none is predicted", task.name)
    return Job(
        settings, plan, loaded, task, columns, given, rows["train"], rows["dev"], examples, count,
        digests, label_names(task, settings.data_dir),
    )  # fmt: skip


def _what_decides(loaded: LoadedModel) -> list[Any]:
    """Of a model's config what the numbers depend on."""
    config = dataclasses.asdict(loaded.config)
    del config["extra"]
    return [*sorted(config.items()), loaded.info.get("normalization", "none")]


def _digest(values: Iterable[Any]) -> str:
    """SHA-256 of what values show of themselves; places in files are not among it."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
