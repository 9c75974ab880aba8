"""Fine-tunes a model on a task: one flat loop for all of them, resumable, on any mesh."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from clue_jax import sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.compilation import keep_compiled
from clue_jax.convert import model_dir
from clue_jax.data.batches import stream
from clue_jax.errors import run_command
from clue_jax.files import check_local, json_text, read_json, write_json
from clue_jax.guard import SkipWatch, leave, terminable
from clue_jax.runlog import RunLog, show_warnings
from clue_jax.train_state import abstract, new_state
from finetune import evaluate as evaluation
from finetune import predict
from finetune.forms import FORMS
from finetune.history import Entry, best, better, dev_history, stopped
from finetune.job import Job, dropout_key, prepare
from finetune.model import random_params, saved_config, with_params
from finetune.settings import Settings, claim
from finetune.step import means

_log = logging.getLogger(__name__)
BLIND = (
    "%s, step %d: the model answers the same whatever it reads; if that stays, the training has "
    "undone it: lower --learning-rate, or lengthen the warm-up"
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    show_warnings()
    settings = tyro.cli(Settings, args=argv)
    keep_compiled()
    result = run(settings)
    print(json_text({k: v for k, v in result.items() if k not in ("dev", "settings")}))
    return result


def run(settings: Settings) -> dict[str, Any]:
    """Trains, keeps the best on dev, predicts the test set.

    Returns:
      The content of result.json.

    Raises:
      UserError: for bad settings or data, before anything is written.
    """
    # ---- What to train, on what ------------------------------------------------------------------
    started = time.monotonic()
    check_local(settings.output)
    output = Path(settings.output)
    mesh = sharding.make_mesh(settings.mesh)
    job = prepare(settings, mesh)
    if claim(output, job.fixed, job.digests):
        shutil.rmtree(output / "checkpoints", ignore_errors=True)  # of a run killed at its very end
        return read_result(output)
    task, steps, pad_id = job.task, job.steps, job.loaded.tokenizer.pad_id

    # ---- The state: the newest checkpoint, else the model with a new head ------------------------
    model, plain = job.model(dropout=True), job.model(dropout=False)
    peak = np.float32(job.plan.learning_rate)
    schedule = job.schedule(peak)
    drawing = jax.random.key(settings.seed)
    state = new_state(lambda: random_params(model, drawing), job.optimizer(peak), mesh)
    state = with_params(state, job.given, mesh)
    shardings = sharding.state_shardings(state, mesh)
    whole = sharding.replicated(mesh)
    call_function = jax.jit(job.call, donate_argnums=0, out_shardings=(shardings, whole))
    key = jax.device_put(dropout_key(settings.seed), whole)
    with Checkpoints(output / "checkpoints", keep=2) as checkpoints:
        state = checkpoints.restore(abstract(state)) or state
        start = int(state.step)
        history = dev_history(output, start)

        # ---- The loop ----------------------------------------------------------------------------
        with RunLog(output, start, steps) as log, terminable() as asked_to_stop:
            pending: list[dict[str, jax.Array]] = []
            watch = SkipWatch()
            interval, tokens = time.monotonic(), 0
            calls = job.calls(start)
            made = stream(lambda i: job.batches(calls[i], settings.seed), 0, len(calls))
            for call, batches in zip(calls, made, strict=True):
                if stopped(history, settings.patience, task):
                    break
                placed = sharding.put_batch(batches, mesh, dim=1)
                state, sums = call_function(state, placed, key, peak)
                watch.see(call.start + 1, sums)
                pending.append(sums)
                tokens += int(batches["input_mask"].sum())
                step = call.stop
                log.advance(step)
                is_last = step == steps
                if is_last:
                    watch.finish()
                if is_due(call, settings.log_every) or is_last:
                    seconds = time.monotonic() - interval
                    numbers = means(jax.device_get(pending), task)
                    numbers["learning_rate"] = float(schedule(step - 1))
                    log.write(step, numbers | {"tokens_per_second": tokens / seconds})
                    pending, interval, tokens = [], time.monotonic(), 0
                if is_due(call, job.eval_every) or is_last:
                    paused = time.monotonic()
                    logits, loss = evaluation.evaluate(
                        plain, state.params, job.dev,
                        evaluation.eval_batch_size(job.plan.batch_size, mesh),
                        job.plan.seq_len, pad_id, task.kind, mesh,
                    )  # fmt: skip
                    entry = {"step": step, "loss": loss}
                    entry |= FORMS[task.kind].scores(task, job.dev, logits)
                    if evaluation.is_blind(logits, task.kind):
                        _log.warning(BLIND, output, step)
                    if best(history, task) is None or better(entry, best(history, task), task):
                        params = jax.device_get(state.params)
                        save_best(output, params, job)
                    history.append(entry)
                    log.write(step, {f"dev/{k}": v for k, v in entry.items() if k != "step"})
                    checkpoints.save(state, dataclasses.asdict(settings))
                    interval += time.monotonic() - paused
                if asked_to_stop(step) and not is_last:
                    checkpoints.save(state, dataclasses.asdict(settings))
                    checkpoints.wait()
                    leave(step)

    # ---- The result ------------------------------------------------------------------------------
    result = summary(job, history) | predict_test(output, job, mesh)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "result.json", result)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)  # the run is over
    return result


def is_due(steps: range, every: int) -> bool:
    """Whether a multiple of `every` is reached by the steps of a call."""
    return steps.stop // every > steps.start // every


def read_result(output: Path) -> dict[str, Any]:
    """The result of a finished run, whose folder may have been moved."""
    result = read_json(output / "result.json") | {"best": str(output / "best")}
    if "prediction" in result:
        result["prediction"] = str(output / Path(result["prediction"]).name)
    return result


def save_best(output: Path, params: Any, job: Job) -> None:
    """Writes the model directory OUTPUT/best, in the place of an earlier one."""
    loaded = job.loaded
    config = saved_config(loaded.config, job.task)
    model_dir.save(output / "best", params, config, loaded.tokenizer, **job.about())


def summary(job: Job, history: list[Entry]) -> dict[str, Any]:
    """What a run reached."""
    metric = FORMS[job.task.kind].metric
    chosen = best(history, job.task)
    settings = job.settings
    return {
        "task": job.task.name,
        "version": settings.version,
        "metric": metric,
        "best_value": chosen[metric],
        "best_step": chosen["step"],
        "last_step": history[-1]["step"],
        "steps": job.steps,
        "train_examples": job.examples,
        "dev": history,
        "seed": settings.seed,
        "settings": job.fixed,
        "best": str(Path(settings.output) / "best"),
    }


def predict_test(output: Path, job: Job, mesh: Mesh) -> dict[str, str]:
    """Predicts the test set with OUTPUT/best, if there is one, under its submission name."""
    task, settings = job.task, job.settings
    if job.test is None:
        return {}
    path = output / task.submission.get(settings.version, f"{task.name}_predict.json")
    batch_size = evaluation.eval_batch_size(job.plan.batch_size, mesh)
    predict.predict(
        str(output / "best"),
        task,
        job.test,
        path,
        job.plan.seq_len,
        batch_size,
        mesh,
        settings.dtype,
    )
    return {"prediction": str(path)}


if __name__ == "__main__":
    run_command(main)
