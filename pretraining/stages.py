"""The stages of a run: short rows first, long ones later, each stage with its own shards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from clue_jax import distributed
from clue_jax.data.batches import Batch, stream
from clue_jax.data.records import MANIFEST
from clue_jax.errors import UserError
from clue_jax.files import sha256
from clue_jax.text import Tokenizer
from pretraining.build_shards import HELD_OUT
from pretraining.examples import Examples
from pretraining.masking import Masking
from pretraining.settings import Settings


@dataclass(frozen=True)
class Stage:
    """Steps start+1 .. stop of a run.

    Attributes:
      start, stop: steps done before and after it.
      batch_size: B.
      examples: its rows.
      held_out: rows for evaluation; None if there is none.
    """

    start: int
    stop: int
    batch_size: int
    examples: Examples
    held_out: Examples | None

    def epoch(self, step: int) -> float:
        """Passes over the rows when a step is done."""
        return (step - self.start) * self.batch_size / len(self.examples)


def planned(settings: Settings) -> list[tuple[str, int, int]]:
    """Folder, steps and batch size of each stage; of --data and --steps if there are no stages.

    Raises:
      UserError: for a malformed --stages, or too few or too many options beside it.
    """
    if settings.stages is None:
        if settings.data is None or settings.steps is None:
            raise UserError("--data and --steps are needed, or --stages in their place")
        return [(settings.data, settings.steps, settings.batch_size)]
    if settings.data is not None or settings.steps is not None:
        raise UserError("--stages says what --data and --steps would; leave those out")
    plan = []
    for part in settings.stages.split(","):
        match = re.fullmatch(r"(.+?):([1-9]\d*)(?::([1-9]\d*))?", part.strip())
        if not match:
            raise UserError(f"--stages: {part!r} is not of the form DATA:STEPS or DATA:STEPS:BATCH")
        plan.append((match[1], int(match[2]), int(match[3] or settings.batch_size)))
    return plan


def open_stages(settings: Settings, vocab: Tokenizer | str | None, masking: Masking) -> list[Stage]:
    """The stages with their data; masks are drawn with the run's seed, held-out ones with seed 0.

    Raises:
      UserError: if data are missing, or not of one kind in all stages.
    """
    stages: list[Stage] = []
    for folder, steps, batch_size in planned(settings):
        start = stages[-1].stop if stages else 0
        examples = Examples(folder, vocab, masking, settings.seed)
        held_out = _held_out(settings, folder, vocab, masking)
        stages.append(Stage(start, start + steps, batch_size, examples, held_out))
        first = stages[0].examples
        for what in ("normalization", "vocabulary_sha256"):
            if getattr(examples, what) != getattr(first, what):
                raise UserError(f"{folder}: has another {what} than {first.directory}")
    return stages


def _held_out(
    settings: Settings, folder: str, vocab: Tokenizer | str | None, masking: Masking
) -> Examples | None:
    if not settings.eval_every:
        return None
    place = epath.Path(settings.eval_data or epath.Path(folder) / HELD_OUT)
    if not place.is_dir():
        raise UserError(
            f"--eval-every needs {place}; build the shards with --held-out, such as 0.5%, or name "
            "other shards with --eval-data"
        )
    return Examples(place, vocab, masking, 0)


def batches(
    stages: Sequence[Stage], done: int, seed: int, mesh: Mesh, steps_per_call: int
) -> Iterator[tuple[Stage, range, Batch]]:
    """The batches behind step `done`: this process's rows of each.

    Yields:
      The stage, the steps (done before each of them), and their batches as arrays [steps, rows of
      this process, ...]. The calls end at multiples of `steps_per_call` and at a stage's end.
    """
    for stage in stages:
        if done < stage.stop:
            yield from _batches_of(stage, max(done, stage.start), seed, mesh, steps_per_call)


def _batches_of(
    stage: Stage, start: int, seed: int, mesh: Mesh, steps_per_call: int
) -> Iterator[tuple[Stage, range, Batch]]:
    places = distributed.own_rows(stage.batch_size, mesh)

    def steps_of(call: int) -> range:
        at = call * steps_per_call
        return range(max(start, at), min(stage.stop, at + steps_per_call))

    def make(call: int) -> Batch:
        made = [
            stage.examples.step(step - stage.start, stage.batch_size, seed, places)
            for step in steps_of(call)
        ]
        return {name: np.stack([batch[name] for batch in made]) for name in made[0]}

    first, last = start // steps_per_call, -(-stage.stop // steps_per_call)
    for call, batch in enumerate(stream(make, first, last), first):
        yield stage, steps_of(call), batch


def described(stages: Sequence[Stage], masking: Masking) -> dict[str, Any]:
    """What of the stages may not change when a run goes on; the last may become longer."""
    about = []
    for stage in stages:
        examples = stage.examples
        numbers = {"rows": len(examples), "batch_size": stage.batch_size}
        numbers["max_predictions"] = masking.slots(examples.seq_len)
        if examples.manifest:
            numbers["data_sha256"] = sha256(examples.directory / MANIFEST)
        if stage is not stages[-1]:
            numbers["steps"] = stage.stop - stage.start
        about.append(numbers)
    return about[0] if len(about) == 1 else {"stages": about}
