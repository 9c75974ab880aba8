"""Pretrains a model on shards: one flat loop, resumable, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from clue_jax import losses, optim, sharding, zoo
from clue_jax.checkpoint import Checkpoints
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import FORMAT, INFO_FILE, LoadedModel
from clue_jax.convert.target import write
from clue_jax.data.batches import Batch, stream
from clue_jax.data.records import MANIFEST
from clue_jax.errors import UserError, run_command
from clue_jax.files import read_json, sha256, write_json
from clue_jax.model import PretrainingModel
from clue_jax.runlog import RunLog
from clue_jax.text import Tokenizer, copy_vocabulary, vocabulary_digest
from clue_jax.train_state import TrainState, abstract, compute_dtype, new_state
from pretraining.build_shards import HELD_OUT
from pretraining.evaluate import check_fit, evaluate, head_sums
from pretraining.examples import Examples
from pretraining.masking import Masking

# What the masked-LM loss does not reach. In the original these get no update and no decay.
NEXT_SENTENCE_ONLY = r"^(bert/pooler|next_sentence)/"

# Settings that may differ when a run goes on.
CHANGEABLE = (
    "output", "data", "vocab", "init", "steps", "mesh", "save_every", "log_every", "eval_every"
)  # fmt: skip


LEFT_BEHIND = ("model", "tf", "checkpoints", "metrics.jsonl", "tensorboard")


@dataclass(frozen=True)
class Settings:
    """Pretrains a model. Started again with the same command, a run goes on where it was."""

    data: str
    """Folder of shards (pretraining.build_shards), or of the original's TFRecord files."""
    output: str
    """Folder of the run: model/, tf/, checkpoints/, metrics.jsonl, tensorboard/."""
    steps: int
    """Updates in all."""
    batch_size: int
    """B, rows an update over all devices."""
    learning_rate: float
    """The largest, at the end of the warm-up."""
    warmup_steps: int = 0
    """Steps of rising learning rate."""
    preset: Literal["tiny", "tiny3l312", "tiny3l768", "base", "large"] = "tiny"
    """Size of the model; not used with --init."""
    seq_len: int | None = None
    """T; if given, it must be that of the shards."""
    vocab: str | None = None
    """vocab.txt (default: the copy kept with the shards)."""
    init: str | None = None
    """Model to start from: a published name, a model directory, a TF-BERT checkpoint or a zip.
    Heads that it lacks start fresh."""
    mesh: str | None = None
    """Devices by axis, such as data=8 or data=2,fsdp=4 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere). Parameters are float32."""
    seed: int = 0
    """Of initial weights, order of rows, masks and dropout."""
    schedule: Literal["linear", "original"] = "linear"
    """original: the decay counts from step 0 and jumps at the end of the warm-up."""
    next_sentence: bool = False
    """Add the next-sentence loss (needs shards of sentence pairs)."""
    masking: Literal["whole-word", "token"] = "whole-word"
    """How masks are drawn, if the shards have none fixed."""
    masked_lm_prob: float = 0.15
    """Share of tokens to mask."""
    max_predictions: int = 20
    """M, masked slots a row."""
    adam_b2: float = 0.98
    """Decay of Adam's second moment. The original has 0.98 for RoBERTa pretraining, else 0.999."""
    weight_decay: float = 0.01
    """But for LayerNorm and biases."""
    max_gradient_norm: float = 1.0
    """Larger gradients are scaled down to this global norm."""
    dropout: float | None = None
    """Both dropout rates (default: the model's, 0.1)."""
    prng: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """rbg is faster on TPU, but ties the numbers to the mesh."""
    save_every: int = 1000
    """Steps between checkpoints; the three newest are kept."""
    log_every: int = 100
    """Steps between entries of the log."""
    eval_every: int = 0
    """Steps between evaluations on DATA/held-out; 0 for none."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    summary = run(tyro.cli(Settings, args=argv))
    print(json.dumps(summary))
    return summary


def run(settings: Settings) -> dict[str, Any]:
    """Trains, then exports the model.

    Returns:
      "steps", "masked_lm_loss", "masked_lm_accuracy" (of the last log interval; None if there was
      nothing left to do), "tokens_per_second", "seconds" and the folders "model" and "tf".

    Raises:
      UserError: for bad settings or data, before anything is written.
    """
    # ---- What to train, on what ------------------------------------------------------------------
    started = time.monotonic()
    _check(settings)
    mesh = sharding.make_mesh(settings.mesh)
    sharding.check_batch_size(settings.batch_size, mesh)
    masking = Masking(settings.masking, settings.masked_lm_prob, settings.max_predictions)
    initial = _initial(settings)
    vocab = settings.vocab or (initial.tokenizer if initial else None)
    examples = Examples(settings.data, vocab, masking, settings.seed)
    held_out = _held_out(settings, vocab, masking)
    config = _model_config(settings, initial, examples)
    schedule = optim.learning_rate(
        settings.schedule, settings.learning_rate, settings.steps, settings.warmup_steps
    )
    optimizer = optim.adamw(
        schedule,
        b2=settings.adam_b2,
        weight_decay=settings.weight_decay,
        max_gradient_norm=settings.max_gradient_norm,
        frozen=None if settings.next_sentence else NEXT_SENTENCE_ONLY,
    )
    output = Path(settings.output)
    _claim(output, settings, config, examples, initial, mesh)

    # ---- The state: the newest checkpoint, else --init, else random weights ----------------------
    dtype = compute_dtype(settings.dtype)
    model = PretrainingModel(config, dtype)
    key = jax.random.key(settings.seed, impl=settings.prng)
    state = new_state(lambda: _random_params(model, key), optimizer, mesh)
    state_shardings = sharding.state_shardings(state, mesh)
    if initial:
        drawn, given = merge.flatten(state.params), merge.flatten(initial.params)
        # A head of another task is left behind; what the model lacks keeps its random values.
        params = merge.nest({path: given.get(path, array) for path, array in drawn.items()})
        params = jax.tree.map(lambda array: np.asarray(array, np.float32), params)
        params = jax.device_put(params, state_shardings.params)
        state = dataclasses.replace(state, params=params)
    step_function = jax.jit(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            key=jax.random.fold_in(key, 1),
            next_sentence=settings.next_sentence,
        ),
        donate_argnums=0,
        out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    eval_model = PretrainingModel(config.without_dropout(), dtype)
    meta = dataclasses.asdict(settings)
    last: dict[str, float] = {}
    with Checkpoints(output / "checkpoints") as checkpoints:
        if checkpoints.latest_step is not None:
            if checkpoints.latest_step > settings.steps:
                raise UserError(
                    f"{output}: is at step {checkpoints.latest_step} already, beyond --steps "
                    f"{settings.steps}"
                )
            state = checkpoints.restore(abstract(state))
        start = int(state.step)

        # ---- The loop ----------------------------------------------------------------------------
        with RunLog(output, start, settings.steps) as log:
            interval = _Interval(start)
            batches = stream(
                lambda step: examples.step(step, settings.batch_size, settings.seed),
                start,
                settings.steps,
            )
            for step, batch in enumerate(batches, start + 1):
                state, sums = step_function(state, sharding.put_batch(batch, mesh))
                interval.add(sums, int((batch["document_ids"] > 0).sum()))
                log.advance(step)
                is_last = step == settings.steps
                if step % settings.log_every == 0 or is_last:
                    last = interval.numbers(step) | {
                        "learning_rate": float(schedule(step - 1)),
                        "epoch": step * settings.batch_size / len(examples),
                    }
                    log.write(step, last)
                    interval = _Interval(step)
                if held_out and (step % settings.eval_every == 0 or is_last):
                    paused = time.monotonic()
                    result = evaluate(eval_model, state.params, held_out, settings.batch_size, mesh)
                    log.write(step, {f"held_out/{name}": value for name, value in result.items()})
                    interval.pause(time.monotonic() - paused)
                if step % settings.save_every == 0 or is_last:
                    checkpoints.save(state, meta)

    # ---- Export ----------------------------------------------------------------------------------
    _export(output, settings, config, jax.device_get(state.params), examples, initial)
    return {
        "steps": settings.steps,
        "masked_lm_loss": last.get("masked_lm_loss"),
        "masked_lm_accuracy": last.get("masked_lm_accuracy"),
        "tokens_per_second": last.get("tokens_per_second"),
        "seconds": round(time.monotonic() - started, 1),
        "model": str(output / "model"),
        "tf": str(output / "tf"),
    }


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: PretrainingModel,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    next_sentence: bool,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before it.
      batch: see `clue_jax.data.batches`.
      model, optimizer: as built.
      key: of the run; the step's dropout key is folded from it.
      next_sentence: whether that loss is added to the masked-LM loss.

    Returns:
      The state after it, and loss sums and counts with the gradient norm before clipping.
    """

    def loss_of(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums = head_sums(model, params, batch, jax.random.fold_in(key, state.step))
        heads = ("masked_lm", "next_sentence") if next_sentence else ("masked_lm",)
        loss = sum(
            losses.mean({name: sums[f"{head}_{name}"] for name in ("loss_sum", "weight_sum")})
            for head in heads
        )
        return loss, sums

    (_, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    return state.apply_gradients(gradients, optimizer), sums


class _Interval:
    """Sums between two entries of the log. They stay on the device until they are asked for."""

    def __init__(self, start: int):
        self.start = start
        self.started = time.monotonic()
        self.tokens = 0
        self.sums: list[dict[str, jax.Array]] = []

    def add(self, sums: dict[str, jax.Array], tokens: int) -> None:
        """Adds a step; waits for the step before it, so that the loop runs one step ahead only."""
        if self.sums:
            jax.block_until_ready(self.sums[-1])
        self.sums.append(sums)
        self.tokens += tokens

    def pause(self, seconds: float) -> None:
        """Leaves out time spent on something else."""
        self.started += seconds

    def numbers(self, step: int) -> dict[str, float]:
        """Means over the interval."""
        sums = jax.device_get(self.sums)
        seconds = time.monotonic() - self.started
        total = {name: float(np.sum([s[name] for s in sums], dtype=np.float64)) for name in sums[0]}
        numbers = {}
        for head in ("masked_lm", "next_sentence"):
            if weight := total[f"{head}_weight_sum"]:
                numbers[f"{head}_loss"] = total[f"{head}_loss_sum"] / weight
                numbers[f"{head}_accuracy"] = total[f"{head}_correct_sum"] / weight
        return numbers | {
            "gradient_norm": total["gradient_norm"] / len(sums),
            "tokens_per_second": self.tokens / seconds,
            "ms_per_step": 1000 * seconds / (step - self.start),
        }


def _check(settings: Settings) -> None:
    """Refuses numbers that cannot be."""
    for name in ("steps", "batch_size", "save_every", "log_every"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("learning_rate", "max_gradient_norm"):
        if not getattr(settings, name) > 0:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(settings, name)} must be positive"
            )
    if settings.eval_every < 0 or settings.weight_decay < 0:
        raise UserError("--eval-every and --weight-decay must not be negative")
    if not 0 < settings.adam_b2 < 1:
        raise UserError(f"--adam-b2 {settings.adam_b2} must lie between 0 and 1")


def _initial(settings: Settings) -> LoadedModel | None:
    """The model of --init, with a vocabulary."""
    if settings.init is None:
        return None
    if zoo.find_model(settings.init) and not Path(settings.init).exists():
        initial = zoo.load(settings.init)
    else:
        initial = zoo.read(settings.init)
        if initial.tokenizer is None and settings.vocab:
            initial = zoo.read(settings.init, vocab=settings.vocab)
    if initial.tokenizer is None:
        raise UserError(f"{settings.init}: has no vocabulary; name it with --vocab")
    return initial


def _held_out(
    settings: Settings, vocab: Tokenizer | str | None, masking: Masking
) -> Examples | None:
    """The held-out examples, if they are asked for; their masks are those of evaluation, seed 0."""
    if not settings.eval_every:
        return None
    folder = Path(settings.data) / HELD_OUT
    if not folder.is_dir():
        raise UserError(
            f"--eval-every needs {folder}; build the shards with --held-out, such as 0.5%"
        )
    return Examples(folder, vocab, masking, 0)


def _model_config(
    settings: Settings, initial: LoadedModel | None, examples: Examples
) -> ModelConfig:
    """The size of the model: of --init, or the preset with the vocabulary in use."""
    vocab_size = examples.tokenizer.vocab_size
    config = initial.config if initial else PRESETS[settings.preset].replace(vocab_size=vocab_size)
    if settings.dropout is not None:
        config = config.replace(
            hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout
        )
    if config.vocab_size != vocab_size:
        raise UserError(
            f"{settings.init}: the model has {config.vocab_size} vocabulary entries, "
            f"{examples.tokenizer.vocab_file} has {vocab_size}"
        )
    if settings.seq_len not in (None, examples.seq_len):
        raise UserError(
            f"--seq-len {settings.seq_len}, but {settings.data} holds rows of {examples.seq_len} "
            "slots"
        )
    if settings.next_sentence and not examples.batch(np.arange(1))["next_sentence_weights"].any():
        raise UserError(f"--next-sentence needs sentence pairs; {settings.data} holds none")
    check_fit(examples, config)
    return config


def _claim(
    output: Path,
    settings: Settings,
    config: ModelConfig,
    examples: Examples,
    initial: LoadedModel | None,
    mesh: Mesh,
) -> None:
    """Marks the folder as this run's; refuses one that holds a run of other settings."""
    fixed = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in CHANGEABLE
    }
    fixed["vocab_sha256"] = vocabulary_digest(examples.tokenizer)
    fixed["rows"] = len(examples)
    if examples.manifest:
        fixed["data_sha256"] = sha256(examples.directory / MANIFEST)
    if initial:
        fixed["init_sha256"] = merge.digest(initial.params)
    fixed["dtype"] = str(compute_dtype(settings.dtype))
    if settings.prng == "rbg":  # its numbers depend on the mesh
        fixed["mesh"] = dict(mesh.shape)
    path = output / "settings.json"
    if path.exists():
        old = read_json(path)
        for name in sorted({*old, *fixed}):
            if old.get(name) != fixed.get(name):
                raise UserError(
                    f"{output}: holds a run with {name} {old.get(name)!r}, now "
                    f"{fixed.get(name)!r}; choose another --output or remove the folder"
                )
    elif any((output / name).exists() for name in LEFT_BEHIND):
        raise UserError(f"{output}: holds something else than a run; choose another --output")
    else:
        # With these an unfinished run converts as well.
        write_json(output / "config.json", config.to_hugging_face())
        copy_vocabulary(examples.tokenizer, output)
        known = {"lower_case": examples.tokenizer.lower_case, "max_seq_length": examples.seq_len}
        known |= {"normalization": examples.normalization, "heads": {"masked_lm": "trained"}}
        write_json(output / INFO_FILE, {"format": FORMAT, **known})
        write_json(path, fixed)


def _random_params(model: PretrainingModel, key: jax.Array) -> Any:
    """Initial weights, as the original draws them."""
    ids = jnp.zeros((1, 8), jnp.int32)
    return model.init(key, ids, ids, ids, ids[:, :1])["params"]


def _export(
    output: Path,
    settings: Settings,
    config: ModelConfig,
    params: Any,
    examples: Examples,
    initial: LoadedModel | None,
) -> None:
    """Writes the model directory and the TF-BERT files, both with the heads."""
    # Of what the loss does not reach, the state is as it was; of a fresh start, the values tell.
    heads = dict(initial.info["heads"]) if initial else {}
    heads["masked_lm"] = "trained"
    if settings.next_sentence:
        heads |= {"pooler": "trained", "next_sentence": "trained"}
    info = {
        "heads": heads,
        "source": f"clue_jax pretraining.run, {settings.steps} steps",
        "max_seq_length": examples.seq_len,
        "normalization": examples.normalization,
        "license": initial.info.get("license", "unknown") if initial else "unknown",
    }
    loaded = LoadedModel(config, params, examples.tokenizer, info, str(output))
    write(loaded, output / "model", "model")
    if config.tie_word_embeddings:  # TF-BERT has no place for another output matrix
        write(loaded, output / "tf", "tf")


if __name__ == "__main__":
    run_command(main)
