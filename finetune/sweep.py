"""Trains a grid of seeds and learning rates at once, inside one compiled program.

A small model leaves most of an accelerator idle; many of them side by side do not. The training
state gets an axis for the cells of the grid, which is spread over the devices. An accelerator takes
its cells side by side, the step vectorised over them. A CPU, which gains nothing by that, takes
them one after the other in the same program, so that no number differs from those of the run
alone. Each cell is the run that `finetune.run --no-buckets` makes with its settings.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clue_jax import sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.compilation import keep_compiled
from clue_jax.data.batches import Batch, stream
from clue_jax.errors import UserError, run_command
from clue_jax.files import check_local, json_text, write_json, write_text
from clue_jax.guard import leave, terminable
from clue_jax.runlog import RunLog, show_warnings
from clue_jax.train_state import TrainState, abstract
from finetune import evaluate as evaluation
from finetune import settings as run_settings
from finetune.forms import FORMS
from finetune.history import Entry, best, better, dev_history
from finetune.job import Job, dropout_key, prepare
from finetune.model import TaskModel, overlay, random_params
from finetune.rows import buckets, eval_batches
from finetune.run import predict_test, read_result, save_best
from finetune.step import means
from finetune.sweep_report import Cell, draw, summary, table
from finetune.task import Task

# The step counter is common to all cells, everything else each cell's own.
_AXES = TrainState(None, 0, 0)


@dataclass(frozen=True)
class Settings(run_settings.Settings):
    """Trains every learning rate with every seed, all of them at once.

    Ends with OUTPUT/table.md, result.json, sweep.png, the best model in best/ and its prediction.
    Texts are padded to T, so choose --seq-len as small as the texts allow. Memory: the training
    state of a run times the cells on each device; --at-once limits them.
    """

    learning_rate: tuple[float, ...] = ()
    """The largest, one or more (default: the recipe's)."""
    seed: tuple[int, ...] = (0,)
    """Of the new head, the order of examples and dropout, one or more."""
    at_once: int | None = None
    """Cells trained at a time (default: all)."""
    buckets: tyro.conf.Suppress[bool] = False
    steps_per_call: tyro.conf.Suppress[int] = 1
    patience: tyro.conf.Suppress[int] = 0


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints the table and returns the result."""
    show_warnings()
    settings = tyro.cli(Settings, args=argv)
    keep_compiled()
    result = sweep(settings)
    print(table(result))
    names = ("task", "metric", "best_value", "best_cell", "rates", "best", "seconds")
    print(json_text({name: result[name] for name in names}))
    return result


def sweep(settings: Settings) -> dict[str, Any]:
    """Trains all cells.

    Returns:
      The content of result.json: "cells" with the evaluations of each, "rates" with mean, deviation
      (of the sample, 0 for one seed) and best over the seeds, and the best of all.

    Raises:
      UserError: for bad settings or data, before anything is written.
    """
    # ---- What to train ---------------------------------------------------------------------------
    started = time.monotonic()
    check_local(settings.output)
    output = Path(settings.output)
    mesh = sharding.make_mesh(settings.mesh)
    job = prepare(_of_a_run(settings), sharding.make_mesh("data=1"))
    cells = _grid(settings, job)
    grid = {
        "learning_rate": sorted({cell.learning_rate for cell in cells}),
        "seed": sorted({cell.seed for cell in cells}),
        "at_once": settings.at_once,
    }
    if run_settings.claim(output, job.fixed | grid, job.digests):
        _drop_checkpoints(output)  # of a sweep killed at its very end
        return read_result(output)
    size = min(settings.at_once or len(cells), len(cells))
    groups = [cells[i : i + size] for i in range(0, len(cells), size)]

    # ---- Group after group; the step is compiled once --------------------------------------------
    step_function = make_step(job, mesh)
    histories: dict[Cell, list[Entry]] = {}
    for number, group in enumerate(groups):
        folder = output if len(groups) == 1 else output / f"group{number}"
        folder.mkdir(exist_ok=True)
        histories |= _train(folder, output, job, group, size, step_function, mesh, histories)

    # ---- The result ------------------------------------------------------------------------------
    result = summary(job, histories) | {"settings": job.fixed | grid}
    result |= predict_test(output, job, mesh)
    result["seconds"] = round(time.monotonic() - started, 1)
    draw(result, output / "sweep.png")
    write_text(output / "table.md", table(result) + "\n")
    write_json(output / "result.json", result)
    _drop_checkpoints(output)  # the sweep is over
    return result


def _drop_checkpoints(output: Path) -> None:
    for folder in [output, *output.glob("group*")]:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _train(
    folder: Path,
    output: Path,
    job: Job,
    cells: list[Cell],
    size: int,
    step_function: Any,
    mesh: Mesh,
    earlier: dict[Cell, list[Entry]],
) -> dict[Cell, list[Entry]]:
    """Trains some cells side by side; saves a model to OUTPUT/best whenever one is the best yet."""
    task, settings, steps = job.task, job.settings, job.steps
    count = -(-size // mesh.size) * mesh.size
    # Every device gets as many cells; those that fill up repeat the last and are not looked at.
    padded = cells + cells[-1:] * (count - len(cells))
    state = start_state(job, padded, mesh)
    seeds = np.array([cell.seed for cell in padded])
    keys = _put(jax.vmap(dropout_key)(seeds), mesh)
    rates = _put(np.array([cell.learning_rate for cell in padded], np.float32), mesh)

    def batch_at(step: int) -> Batch:
        batches = [job.batch(step, cell.seed) for cell in padded]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        saved = checkpoints.restore(abstract(_to_host(state, len(cells))))
        state = _to_devices(saved, count, mesh) if saved else state
        start = int(state.step)
        histories = {cell: dev_history(folder, start, _dev(cell)) for cell in cells}
        with RunLog(folder, start, steps) as log, terminable() as asked_to_stop:
            pending: list[dict[str, jax.Array]] = []
            interval = time.monotonic()
            for step, batch in enumerate(stream(batch_at, start, steps), start + 1):
                state, sums = step_function(state, _put(batch, mesh), keys, rates)
                if pending:
                    jax.block_until_ready(pending[-1])
                pending.append(sums)
                log.advance(step)
                is_last = step == steps
                if step % settings.log_every == 0 or is_last:
                    seconds = time.monotonic() - interval
                    numbers = _by_cell(jax.device_get(pending), cells, job)
                    losses = [numbers[f"{cell.name}/loss"] for cell in cells]
                    shown = {"mean_loss": float(np.mean(losses))}
                    shown["cell_steps_per_second"] = len(cells) * len(pending) / seconds
                    log.write(step, shown | numbers, shown)
                    pending, interval = [], time.monotonic()
                if step % job.eval_every == 0 or is_last:
                    paused = time.monotonic()
                    entries = _evaluate(job, state.params, cells, mesh, step)
                    for i, (cell, entry) in enumerate(entries.items()):
                        # The best of all so far, in the cells before this group as well.
                        rivals = [*earlier.values(), *histories.values()]
                        top = best([e for history in rivals for e in history], task)
                        if top is None or better(entry, top, task):
                            params = jax.tree.map(lambda x, i=i: x[i], state.params)
                            save_best(output, jax.device_get(params), job)
                        histories[cell].append(entry)
                    log.write(step, _flat(entries), _best_of(entries, task))
                    checkpoints.save(_to_host(state, len(cells)), dataclasses.asdict(settings))
                    interval += time.monotonic() - paused
                if asked_to_stop(step) and not is_last:
                    checkpoints.save(_to_host(state, len(cells)), dataclasses.asdict(settings))
                    checkpoints.wait()
                    leave(step)
    return histories


def make_step(job: Job, mesh: Mesh, side_by_side: bool | None = None) -> Any:
    """The step of all cells: (state, batches [cells, B, ..], keys [cells], rates [cells]) -> the
    state after it and the sums of each cell.

    Args:
      job: what is trained.
      mesh: over whose devices the cells are spread.
      side_by_side: the cells of a device at once instead of one after the other; None for whatever
        suits the device.
    """
    if side_by_side is None:
        side_by_side = mesh.devices.flat[0].platform != "cpu"
    at_once = jax.vmap(job.step, in_axes=(_AXES, 0, 0, 0), out_axes=(_AXES, 0))
    of_a_device = at_once if side_by_side else functools.partial(_in_turn, job.step)
    cells = P(sharding.AXES)
    state = TrainState(P(), cells, cells)
    every = jax.shard_map(
        of_a_device, mesh=mesh, in_specs=(state, cells, cells, cells), out_specs=(state, cells),
        check_vma=False,
    )  # fmt: skip
    return jax.jit(every, donate_argnums=0)


def _in_turn(
    step: Any, state: TrainState, batches: Batch, keys: jax.Array, rates: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step of each cell, one after the other."""

    def one(cell: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        params, opt_state, *given = cell
        after, sums = step(TrainState(state.step, params, opt_state), *given)
        return after.params, after.opt_state, sums

    cells = (state.params, state.opt_state, batches, keys, rates)
    params, opt_state, sums = jax.lax.map(one, cells)
    return TrainState(state.step + 1, params, opt_state), sums


def start_state(job: Job, cells: list[Cell], mesh: Mesh) -> TrainState:
    """The states that the cells start from, side by side."""
    model = job.model(dropout=True)

    def one(key: jax.Array, given: dict[str, Any]) -> tuple[Any, Any]:
        params = overlay(random_params(model, key), given)
        return params, job.optimizer(0.0).init(params)

    create = jax.jit(jax.vmap(one, in_axes=(0, None)), out_shardings=(_spread(mesh), _spread(mesh)))
    keys = jax.vmap(jax.random.key)(np.array([cell.seed for cell in cells]))
    step = jax.device_put(jnp.zeros([], jnp.int32), sharding.replicated(mesh))
    return TrainState(step, *create(_put(keys, mesh), job.given))


def _to_host(state: TrainState, count: int) -> TrainState:
    """The first `count` cells, the real ones, as they are saved: the same on any devices."""
    state = jax.device_get(state)
    cut = jax.tree.map(lambda x: x[:count], (state.params, state.opt_state))
    return jax.device_put(TrainState(state.step, *cut), jax.local_devices(backend="cpu")[0])


def _to_devices(state: TrainState, count: int, mesh: Mesh) -> TrainState:
    """`count` cells over the devices, of which those that fill up repeat the last."""

    def filled(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[-1:], count - len(x), axis=0)])

    state = jax.device_get(state)
    full = jax.tree.map(filled, (state.params, state.opt_state))
    step = jax.device_put(state.step, sharding.replicated(mesh))
    return TrainState(step, *_put(full, mesh))


def _spread(mesh: Mesh) -> NamedSharding:
    """The cells are split over all devices."""
    return NamedSharding(mesh, P(sharding.AXES))


def _put(tree: Any, mesh: Mesh) -> Any:
    return jax.device_put(tree, _spread(mesh))


@functools.partial(jax.jit, static_argnames=("model", "kind"))
def _eval_step(
    params: Any, batch: Batch, *, model: TaskModel, kind: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    step = functools.partial(evaluation.eval_step, model=model, kind=kind)
    return jax.vmap(step, in_axes=(0, None))(params, batch)


def _evaluate(job: Job, params: Any, cells: list[Cell], mesh: Mesh, step: int) -> dict[Cell, Entry]:
    """The evaluation of each cell on the whole dev set."""
    task, rows = job.task, job.dev
    model, form = job.model(dropout=False), FORMS[job.task.kind]
    logits: list[list[Any]] = [[None] * len(rows) for _ in cells]
    loss, weight = np.zeros(len(cells)), np.zeros(len(cells))
    pad_id = job.loaded.tokenizer.pad_id
    lengths = buckets(job.plan.seq_len)
    for chosen, batch in eval_batches(rows, max(64, job.plan.batch_size), lengths, pad_id):
        placed = jax.device_put(batch, sharding.replicated(mesh))
        some, sums = _eval_step(params, placed, model=model, kind=task.kind)
        for i, of_cell in enumerate(np.asarray(some)[: len(cells)]):
            evaluation.store(logits[i], rows, chosen, of_cell, task.kind)
        loss += np.asarray(sums["loss_sum"], np.float64)[: len(cells)]
        weight += np.asarray(sums["weight_sum"], np.float64)[: len(cells)]
    loss /= np.maximum(1, weight)
    return {
        cell: {"step": step, "loss": float(loss[i])}
        | form.scores(task, rows, evaluation.together(logits[i], task.kind))
        for i, cell in enumerate(cells)
    }


def _of_a_run(settings: Settings) -> run_settings.Settings:
    """The settings that all cells share, as those of a run with the least rate and seed."""
    values = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(run_settings.Settings)
    }
    rate = min(settings.learning_rate) if settings.learning_rate else None
    seed = min(settings.seed) if settings.seed else 0
    return run_settings.Settings(**values | {"learning_rate": rate, "seed": seed})


def _grid(settings: Settings, job: Job) -> list[Cell]:
    rates = settings.learning_rate or (job.plan.learning_rate,)
    seeds = sorted(set(settings.seed))
    if not seeds or len(seeds) < len(settings.seed) or seeds[-1] >= 2**32:
        raise UserError(f"--seed needs one or more different numbers from 0 to {2**32 - 1}")
    if len(set(rates)) < len(rates) or not all(0 < rate < math.inf for rate in rates):
        raise UserError("--learning-rate needs different positive numbers")
    if settings.at_once is not None and settings.at_once < 1:
        raise UserError(f"--at-once {settings.at_once} must be at least 1")
    # In one order, however they were named, so that a sweep that was cut goes on with its cells.
    return [Cell(*point) for point in itertools.product(sorted(rates), seeds)]


def _dev(cell: Cell) -> str:
    return f"dev/{cell.name}/"


def _by_cell(sums: list[dict[str, Any]], cells: list[Cell], job: Job) -> dict[str, float]:
    """Means of each cell since the last entry of the log."""
    numbers = {}
    for i, cell in enumerate(cells):
        of_cell = means([{k: v[i] for k, v in step.items()} for step in sums], job.task)
        numbers |= {f"{cell.name}/{name}": value for name, value in of_cell.items()}
    return numbers


def _flat(entries: dict[Cell, Entry]) -> dict[str, float]:
    return {
        f"{_dev(cell)}{name}": value
        for cell, entry in entries.items()
        for name, value in entry.items()
        if name != "step"
    }


def _best_of(entries: dict[Cell, Entry], task: Task) -> dict[str, float]:
    """What is shown of an evaluation."""
    top = best(list(entries.values()), task)
    return {f"dev/best_{name}": value for name, value in top.items() if name != "step"}


if __name__ == "__main__":
    run_command(main)
