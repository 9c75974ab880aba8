"""Pretrains a model on shards: one flat loop, resumable, on any mesh."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from clue_jax import distributed, optim, sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.compilation import keep_compiled
from clue_jax.config import ModelConfig
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.target import write
from clue_jax.errors import UserError, run_command
from clue_jax.guard import SkipWatch, leave, terminable
from clue_jax.runlog import RunLog, show_warnings
from clue_jax.train_state import TrainState, abstract, new_state
from pretraining.evaluate import evaluate
from pretraining.examples import Examples
from pretraining.masking import Masking
from pretraining.program import program
from pretraining.settings import Settings, check, check_batch, claim
from pretraining.stages import batches, described, open_stages, planned
from pretraining.start import initial_model, model_config, starting_params
from pretraining.step import Interval

PROFILED = range(3, 8)  # Calls after the start that --profile shows; the first ones compile.


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    show_warnings()
    settings = tyro.cli(Settings, args=argv)
    distributed.start(settings.coordinator, settings.process_id, settings.processes)
    keep_compiled()
    summary = run(settings)
    if distributed.is_first():
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
    check(settings)
    mesh = sharding.make_mesh(settings.mesh)
    for _, _, batch_size in planned(settings):
        check_batch(batch_size, settings.accumulate, mesh)
    masking = Masking(settings.masking, settings.masked_lm_prob, settings.max_predictions)
    initial = initial_model(settings)
    vocab = settings.vocab or (initial.tokenizer if initial else None)
    stages = open_stages(settings, vocab, masking)
    examples, steps = stages[-1].examples, stages[-1].stop
    for stage in stages:
        config = model_config(settings, initial, stage.examples)
    job = program(settings, config, steps, mesh)
    output = Path(settings.output)
    claim(output, settings, config, examples, described(stages, masking), initial, mesh)

    # ---- The state: the newest checkpoint, else --init, else random weights ----------------------
    state = new_state(job.init, job.optimizer, mesh)
    state_shardings = sharding.state_shardings(state, mesh)
    if initial:
        params = starting_params(state.params, initial.params, mesh)
        params = jax.device_put(params, state_shardings.params)
        opt_state = jax.jit(job.optimizer.init, out_shardings=state_shardings.opt_state)(params)
        state = dataclasses.replace(state, params=params, opt_state=opt_state)
    step_function = job.compiled_step(state_shardings, mesh)
    meta = dataclasses.asdict(settings)

    def trained(state: TrainState) -> Any:
        return optim.average_of(state.opt_state) if settings.ema_decay else state.params

    last: dict[str, float] = {}
    with Checkpoints(output / "checkpoints") as checkpoints:
        state = checkpoints.restore(abstract(state)) or state
        start = int(state.step)
        if start > steps:
            raise UserError(f"{output}: is at step {start} already, beyond --steps {steps}")
        per_call = settings.steps_per_call
        if settings.profile and steps - start < PROFILED.stop * per_call:
            raise UserError(f"--profile needs at least {PROFILED.stop * per_call} steps to do")

        # ---- The loop ----------------------------------------------------------------------------
        is_first = distributed.is_first()
        log = RunLog(output, start, steps, silent=not is_first)
        with log, distributed.together(), terminable() as asked_to_stop:
            interval, watch = Interval(start), SkipWatch()
            ahead = batches(stages, start, settings.seed, mesh, per_call)
            for call, (stage, numbers, batch) in enumerate(ahead, 1):
                step = numbers.stop
                if settings.profile and is_first and call == PROFILED.start:
                    jax.profiler.start_trace(settings.profile)
                placed = distributed.put_rows(batch, stage.batch_size, mesh, dim=1)
                state, sums = step_function(state, placed)
                watch.see(numbers.start + 1, sums)
                interval.add(sums)
                log.advance(step)
                is_last = step == steps
                if is_last:
                    watch.finish()
                if settings.profile and is_first and call == PROFILED.stop:
                    jax.profiler.stop_trace()
                if step % settings.log_every == 0 or is_last:
                    last = interval.numbers(step) | {
                        "learning_rate": float(job.schedule(step - 1)),
                        "epoch": stage.epoch(step),
                    }
                    log.write(step, last)
                    interval = Interval(step)
                is_stage_end = step == stage.stop
                if stage.held_out and (step % settings.eval_every == 0 or is_stage_end):
                    paused = time.monotonic()
                    result = evaluate(
                        job.eval_model, trained(state), stage.held_out, stage.batch_size, mesh
                    )
                    log.write(step, {f"held_out/{name}": value for name, value in result.items()})
                    interval.pause(time.monotonic() - paused)
                stop = asked_to_stop(call) and not is_last
                if step % settings.save_every == 0 or is_last or stop:
                    checkpoints.save(state, meta)
                if stop:
                    checkpoints.wait()
                    leave(step)

    # ---- Export ----------------------------------------------------------------------------------
    params = distributed.to_host(trained(state), mesh)
    if is_first:
        _export(output, settings, steps, config, params, examples, initial)
    distributed.wait_for_all("the model is written")
    return {
        "steps": steps,
        "masked_lm_loss": last.get("masked_lm_loss"),
        "masked_lm_accuracy": last.get("masked_lm_accuracy"),
        "tokens_per_second": last.get("tokens_per_second"),
        "seconds": round(time.monotonic() - started, 1),
        "model": str(output / "model"),
        "tf": str(output / "tf"),
    }


def _export(
    output: Path,
    settings: Settings,
    steps: int,
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
        "source": f"clue_jax pretraining.run, {steps} steps",
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
