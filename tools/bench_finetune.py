"""Speed of fine-tuning with length buckets against PyTorch + transformers padded to T.

The two train in turn on the same examples, from the same weights; the losses of the first batches
are compared before anything is timed.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from clue_jax import sharding
from clue_jax.convert import model_dir
from clue_jax.errors import UserError, run_command
from clue_jax.train_state import new_state
from finetune.evaluate import eval_step
from finetune.job import Job, dropout_key, prepare
from finetune.model import random_params, with_params
from finetune.rows import Rows, batch_of
from finetune.settings import Settings as RunSettings
from tools.ratios import ratios
from tools.result import print_result

_COMPARED = 5  # batches


@dataclass(frozen=True)
class Settings:
    """Times fine-tuning on real examples against PyTorch; ends with one line of JSON."""

    model: str
    """Model directory."""
    data_dir: str
    """Folder or zip with the task's files."""
    task: str = "tnews"
    """A task of single labels."""
    examples: int = 2000
    """Drawn at random from the training set, the same ones every time."""
    batch_size: int = 32
    """B."""
    seq_len: int = 128
    """T, to which the peer pads."""
    learning_rate: float = 1e-4
    """Of both."""
    pairs: int = 5
    """Timed epochs of each, in turn, after the programs of all lengths were compiled."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    job = _job(settings)
    key = jax.random.key(0)
    mesh = sharding.make_mesh("data=1")
    peak = np.float32(settings.learning_rate)
    state = new_state(lambda: random_params(job.model(True), key), job.optimizer(peak), mesh)
    state = with_params(state, job.given, mesh)
    peer = _Peer(job, jax.device_get(state.params), settings)
    difference = _compare(job, state.params, peer)

    step = jax.jit(job.step, donate_argnums=0)
    started = time.perf_counter()
    for length in job.lengths:  # every program, before the clock runs
        first = batch_of(job.train, np.arange(1), settings.batch_size, (length,), 0)
        state, sums = step(state, sharding.put_batch(first, mesh), dropout_key(0), peak)
    jax.block_until_ready(sums)
    compile_seconds = time.perf_counter() - started

    slots = 0
    ours_seconds, peer_seconds = [], []
    for pair in range(settings.pairs):
        started = time.perf_counter()
        for i in range(pair * job.epoch_steps, (pair + 1) * job.epoch_steps):
            batch = job.batch(i, seed=0)
            slots += batch["input_ids"].size
            state, sums = step(state, sharding.put_batch(batch, mesh), dropout_key(0), peak)
            jax.block_until_ready(sums)
        ours_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        peer.epoch()
        peer_seconds.append(time.perf_counter() - started)
    result = {
        "benchmark": "finetune",
        "peer": f"torch {peer.torch.__version__} and transformers {peer.transformers.__version__}",
        "task": settings.task,
        "examples": len(job.train),
        "real_tokens": sum(map(len, job.train.ids)),
        "batch_size": settings.batch_size,
        "seq_len": settings.seq_len,
        "our_slots_an_epoch": slots // settings.pairs,
        "peer_slots_an_epoch": job.epoch_steps * settings.batch_size * settings.seq_len,
        "loss_difference": difference,
        "dropout": job.config.hidden_dropout_prob,
        "dtype": str(job.model(True).dtype),
        "compile_seconds": round(compile_seconds, 1),
        "our_seconds": [round(s, 2) for s in ours_seconds],
        "peer_seconds": [round(s, 2) for s in peer_seconds],
        "our_examples_per_second": round(len(job.train) / statistics.median(ours_seconds), 1),
        "peer_examples_per_second": round(len(job.train) / statistics.median(peer_seconds), 1),
        **ratios(peer_seconds, ours_seconds, 2),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print_result(result)
    return result


def _job(settings: Settings) -> Job:
    given = RunSettings(
        task=settings.task, model=settings.model, data_dir=settings.data_dir, output="",
        batch_size=settings.batch_size, seq_len=settings.seq_len,
        learning_rate=settings.learning_rate, epochs=settings.pairs,
    )  # fmt: skip
    job = prepare(given, sharding.make_mesh("data=1"))
    if job.task.kind != "single":
        raise UserError(f"--task {settings.task}: is no task of single labels")
    count = min(settings.examples, len(job.train))
    chosen = np.random.default_rng(0).permutation(len(job.train))[:count]
    rows = job.train
    part = Rows(
        [rows.ids[i] for i in chosen], [rows.segments[i] for i in chosen], rows.labels[chosen]
    )
    return dataclasses.replace(job, train=part)


class _Peer:
    """The same model in PyTorch, trained as a script of transformers does."""

    def __init__(self, job: Job, params: Any, settings: Settings):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError("the peer needs PyTorch: pip install torch transformers") from error
        self.torch, self.transformers = torch, transformers
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            about = {**job.about(), "source": "benchmark"}
            model_dir.save(path, params, job.loaded.config, job.loaded.tokenizer, **about)
            self.model = transformers.BertForSequenceClassification.from_pretrained(path)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, weight_decay=0.01
        )
        self._job, self._settings = job, settings
        self._random = np.random.default_rng(0)

    def loss(self, chosen: np.ndarray) -> Any:
        """The mean loss of some rows, padded to T."""
        length = (self._settings.seq_len,)
        batch = batch_of(self._job.train, chosen, len(chosen), length, 0)
        tensors = {name: self.torch.from_numpy(array) for name, array in batch.items()}
        return self.model(
            input_ids=tensors["input_ids"].long(),
            attention_mask=tensors["input_mask"].long(),
            token_type_ids=tensors["segment_ids"].long(),
            labels=tensors["labels"].long(),
        ).loss

    def epoch(self) -> None:
        """One pass over the examples in random order."""
        self.model.train()
        order = self._random.permutation(len(self._job.train))
        for start in range(0, len(order), self._settings.batch_size):
            self._optimizer.zero_grad()
            self.loss(order[start : start + self._settings.batch_size]).backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()


def _compare(job: Job, params: Any, peer: _Peer) -> float:
    """The largest relative difference of the first losses, without dropout.

    Raises:
      UserError: if it is not within 1e-4: then the two do not do the same.
    """
    peer.model.eval()
    worst = 0.0
    for i in range(min(_COMPARED, job.epoch_steps)):
        chosen = job.rows(i, seed=0)
        batch = batch_of(job.train, chosen, job.plan.batch_size, job.lengths, 0)
        _, sums = eval_step(params, batch, model=job.model(False), kind="single")
        ours = float(sums["loss_sum"] / sums["weight_sum"])
        with peer.torch.no_grad():
            theirs = float(peer.loss(chosen))
        worst = max(worst, abs(ours - theirs) / abs(theirs))
    if not worst < 1e-4:
        raise UserError(f"the losses differ by {worst:.1e}; the two do not train the same model")
    return worst


if __name__ == "__main__":
    run_command(main)
