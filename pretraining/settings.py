"""The settings of a pretraining run: what they mean, what they may be, whose a folder is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from clue_jax import distributed, sharding
from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import FORMAT, INFO_FILE, LoadedModel
from clue_jax.errors import UserError
from clue_jax.files import check_local, read_json, write_json
from clue_jax.text import copy_vocabulary, vocabulary_digest
from clue_jax.train_state import compute_dtype
from pretraining.examples import Examples

# Settings that may differ when a run goes on.
CHANGEABLE = (
    "output", "data", "stages", "vocab", "init", "steps", "mesh", "save_every", "log_every",
    "eval_every", "eval_data", "profile", "remat", "steps_per_call", "coordinator", "process_id",
    "processes",
)  # fmt: skip


LEFT_BEHIND = ("model", "tf", "checkpoints", "metrics.jsonl", "tensorboard")


@dataclass(frozen=True)
class Settings:
    """Pretrains a model. Started again with the same command, a run goes on where it was.

    SIGTERM saves and ends with status 143. A checkpoint that is damaged is put aside, and the run
    goes on from the one before it.
    """

    output: str
    """Folder of the run: model/, tf/, checkpoints/, metrics.jsonl, tensorboard/."""
    batch_size: int
    """B, rows an update over all devices."""
    learning_rate: float
    """The largest, at the end of the warm-up."""
    data: str | None = None
    """Folder of shards (pretraining.build_shards), or of the original's TFRecord files. From an
    object store (gs://bucket/shards) it is copied to this machine first."""
    steps: int | None = None
    """Updates in all."""
    stages: str | None = None
    """In the place of --data and --steps: DATA:STEPS[:BATCH] of each stage, apart by commas, such
    as shards128:90000,shards512:10000:64. The learning rate runs over all of them."""
    warmup_steps: int = 0
    """Steps of rising learning rate."""
    preset: Literal["tiny", "tiny3l312", "tiny3l768", "base", "large"] = "tiny"
    """Size of the model; not used with --init."""
    seq_len: int | None = None
    """T; if given, it must be that of the shards."""
    vocab: str | None = None
    """vocab.txt (default: the copy kept with the shards). It may go on behind the last entry of the
    model of --init, which then learns the new ones."""
    init: str | None = None
    """Model to start from: a published name, a model directory, a TF-BERT checkpoint or a zip.
    Heads that it lacks start fresh."""
    initial_weights: Literal["random", "induction"] = "random"
    """Of a model without --init. random: as the original draws them. induction: attention that
    looks words up by their neighbours from the start, which a model else learns late or never: for
    small models and little time."""
    mesh: str | None = None
    """Devices by axis, such as data=8 or data=2,fsdp=4 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere). Parameters are float32."""
    seed: int = 0
    """Of initial weights, order of rows, masks and dropout."""
    schedule: Literal["linear", "original"] = "linear"
    """original: the decay counts from step 0 and jumps at the end of the warm-up."""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """lamb: each matrix learns in proportion to its own size, for very large batches."""
    next_sentence: bool = False
    """Add the next-sentence loss (needs shards of sentence pairs)."""
    masking: str = "whole-word"
    """How masks are drawn, if the shards have none fixed: whole-word, token or ngram (one to four
    words), or shares of the rows, such as whole-word=0.6,ngram=0.4."""
    masked_lm_prob: float = 0.15
    """Share of tokens to mask."""
    max_predictions: int | None = None
    """M, masked slots a row (default: as many as that share of T needs, 20 at T=128)."""
    adam_b2: float = 0.98
    """Decay of Adam's second moment. The original has 0.98 for RoBERTa pretraining, else 0.999."""
    weight_decay: float = 0.01
    """But for LayerNorm and biases."""
    max_gradient_norm: float = 1.0
    """Larger gradients are scaled down to this global norm."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay as well, such as 0.999; it is what is
    evaluated and exported."""
    dropout: float | None = None
    """Both dropout rates (default: the model's, 0.1)."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other, to save memory."""
    remat: Literal["none", "layers"] = "none"
    """layers: compute every layer anew in the backward pass instead of keeping what it made, which
    saves memory and costs up to a third more computation."""
    steps_per_call: int = 1
    """Updates that are compiled into one program: for small models, whose update takes no longer
    than starting it. SIGTERM is obeyed after the last of them."""
    prng: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """rbg is faster on TPU, but ties the numbers to the mesh."""
    save_every: int = 1000
    """Steps between checkpoints; the three newest are kept."""
    log_every: int = 100
    """Steps between entries of the log."""
    eval_every: int = 0
    """Steps between evaluations on held-out rows; 0 for none."""
    eval_data: str | None = None
    """Folder of the held-out shards (default: DATA/held-out)."""
    profile: str | None = None
    """Write a profiler trace of five steps to this folder, for TensorBoard or Perfetto."""
    coordinator: str | None = None
    """HOST:PORT of process 0, when several processes train as one. On TPU VMs, with Slurm and with
    Open MPI they find each other without it."""
    process_id: int | None = None
    """Number of this process, from 0."""
    processes: int | None = None
    """How many there are."""


def check(settings: Settings) -> None:
    """Refuses numbers that cannot be.

    Raises:
      UserError: naming the option.
    """
    check_local(settings.output)
    for name in ("steps", "batch_size", "save_every", "log_every", "accumulate", "steps_per_call"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("learning_rate", "max_gradient_norm"):
        if not getattr(settings, name) > 0:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} must be positive"
            )
    for name in ("save_every", "log_every", "eval_every"):
        if getattr(settings, name) % settings.steps_per_call:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} is not a multiple of "
                f"--steps-per-call {settings.steps_per_call}"
            )
    if settings.init is not None and settings.initial_weights != "random":
        raise UserError("--initial-weights is for a model without --init")
    if settings.eval_every < 0 or settings.weight_decay < 0:
        raise UserError("--eval-every and --weight-decay must not be negative")
    if not 0 < settings.adam_b2 < 1:
        raise UserError(f"--adam-b2 {settings.adam_b2} must lie between 0 and 1")
    if settings.ema_decay is not None and not 0 < settings.ema_decay < 1:
        raise UserError(f"--ema-decay {settings.ema_decay} must lie between 0 and 1")
    if settings.eval_data is not None and not settings.eval_every:
        raise UserError("--eval-data needs --eval-every")


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Refuses a batch that mesh and accumulation do not divide.

    Raises:
      UserError: with the numbers.
    """
    sharding.check_batch_size(batch_size, mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (accumulate * ways):
        raise UserError(
            f"--batch-size {batch_size} is not a multiple of --accumulate "
            f"{accumulate} times the {ways} devices that split the batch"
        )


def claim(
    output: Path,
    settings: Settings,
    config: ModelConfig,
    examples: Examples,
    data: Mapping[str, Any],
    initial: LoadedModel | None,
    mesh: Mesh,
) -> None:
    """Marks the folder as this run's.

    Args:
      output: the folder.
      settings: as given.
      config: of the model.
      examples: of the last stage.
      data: what is known of the data of all stages, which may not change.
      initial: the model of --init.
      mesh: the devices.

    Raises:
      UserError: if it holds a run of other settings, with the setting and both values.
    """
    fixed = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in CHANGEABLE
    }
    fixed["vocab_sha256"] = vocabulary_digest(examples.tokenizer)
    fixed |= data
    if initial:
        fixed["init_sha256"] = merge.digest(initial.params)
    fixed["dtype"] = str(compute_dtype(settings.dtype))
    text = json.dumps(fixed, sort_keys=True, default=str)
    distributed.check_same("command or data", hashlib.sha256(text.encode()).hexdigest())
    if settings.prng == "rbg":  # its numbers depend on the mesh
        fixed["mesh"] = dict(mesh.shape)
    path = output / "settings.json"
    if path.exists():
        # A run of before a setting came to be had what is now its default.
        defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
        old = {name: defaults[name] for name in fixed if name in defaults} | read_json(path)
        for name in sorted({*old, *fixed}):
            if old.get(name) != fixed.get(name):
                raise UserError(
                    f"{output}: holds a run with {name} {old.get(name)!r}, now "
                    f"{fixed.get(name)!r}; choose another --output or remove the folder"
                )
    elif any((output / name).exists() for name in LEFT_BEHIND):
        raise UserError(f"{output}: holds something else than a run; choose another --output")
    elif distributed.is_first():
        # With these an unfinished run converts as well.
        write_json(output / "config.json", config.to_hugging_face())
        copy_vocabulary(examples.tokenizer, output)
        known = {"lower_case": examples.tokenizer.lower_case, "max_seq_length": examples.seq_len}
        known |= {"normalization": examples.normalization, "heads": {"masked_lm": "trained"}}
        write_json(output / INFO_FILE, {"format": FORMAT, **known})
        write_json(path, fixed)
    distributed.wait_for_all("the folder is claimed")
