"""Fine-tunes a model on a task: one flat loop for all of them, resumable, on any mesh."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from clue_jax import losses, optim, sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.convert import merge, model_dir
from clue_jax.convert.loaded import LoadedModel
from clue_jax.data.batches import Batch, stream
from clue_jax.errors import UserError, run_command
from clue_jax.files import read_json, read_text, write_json
from clue_jax.model import ClassificationModel
from clue_jax.runlog import RunLog
from clue_jax.train_state import TrainState, abstract, compute_dtype, new_state
from finetune import evaluate as evaluation
from finetune import predict
from finetune.data import batch_of, buckets, read_split, tokenize, train_order
from finetune.model import load_start, starting_params
from finetune.presets import Recipe, recipe
from finetune.task import Task
from finetune.tasks import TASKS
from finetune.tasks.generic import ending_of, labels_of, make

# Settings that may differ when a run goes on.
CHANGEABLE = ("output", "data_dir", "mesh", "log_every")


@dataclass(frozen=True)
class Settings:
    """Fine-tunes a model on a task and predicts its test set.

    Started again with the same command, a run goes on where it was, and a finished one only prints
    its result. Options left out are those of the task's recipe (finetune/presets.py).
    """

    task: str
    """afqmc, tnews, iflytek, cmnli, ocnli, csl, cluewsc2020, xnli, lcqmc, chnsenticorp, copa, or
    generic for your own files."""
    model: str
    """Published name, model directory, TF-BERT checkpoint or zip."""
    data_dir: str
    """Folder or zip with the task's files."""
    output: str
    """Folder of the run: best/, result.json, metrics.jsonl, tensorboard/, the test prediction."""
    init_from: str | None = None
    """Start from these weights instead, such as OUT/best of another task (a -pair model starts
    from one of CMNLI)."""
    head: Literal["new", "keep"] = "new"
    """new: a new classifier, whatever the model has. keep: its own, if the labels are the same."""
    random_weights: bool = False
    """Take the model's sizes and vocabulary, but random weights."""
    recipe: Literal["default", "original"] = "default"
    """original: the original's script for this task."""
    epochs: float | None = None
    """Passes over the training set."""
    batch_size: int | None = None
    """B, examples an update over all devices."""
    learning_rate: float | None = None
    """The largest, at the end of the warm-up."""
    seq_len: int | None = None
    """T, longer texts are cut."""
    eval_every: int | None = None
    """Steps between evaluations on the dev set; 0 evaluates after each epoch."""
    seed: int = 0
    """Of the new head, the order of examples and dropout."""
    limit: int | None = None
    """Use the first so many examples of each file only."""
    version: Literal["1.0", "1.1"] = "1.1"
    """Of the CLUE benchmark: which test file is predicted, and under which name."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["linear", "original"] = "linear"
    """original: the decay counts from step 0 and jumps at the end of the warm-up."""
    weight_decay: float = 0.01
    """But for LayerNorm and biases."""
    layer_decay: float = 1.0
    """Learning rate of each layer as a share of that of the layer above it."""
    dropout: float | None = None
    """All dropout rates (default: the model's, 0.1)."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other, to save memory."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0 never stops."""
    buckets: bool = True
    """Batch texts of similar length together; --no-buckets pads everything to T."""
    mesh: str | None = None
    """Devices by axis, such as data=8 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""
    text: str = "text"
    """generic: column of the text."""
    text_pair: str | None = None
    """generic: column of the second text of a pair."""
    label: str = "label"
    """generic: column of the label."""
    kind: Literal["single", "multi", "score"] = "single"
    """generic: one label, several (a list, or separated by commas), or a number."""
    log_every: int = 50
    """Steps between entries of the log."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    result = run(tyro.cli(Settings, args=argv))
    shown = {k: v for k, v in result.items() if k not in ("dev", "settings")}
    print(json.dumps(shown, ensure_ascii=False))
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
    output = Path(settings.output)
    loaded = load_start(settings.init_from or settings.model)
    task, columns = find_task(settings)
    plan = filled(settings, loaded)
    dev_every, mesh = plan.eval_every, sharding.make_mesh(settings.mesh)
    check(settings, plan, loaded, mesh)
    splits = {}
    for split in ("train", "dev"):
        examples = read_split(task, settings.data_dir, split, settings.version, settings.limit)
        splits[split] = tokenize(examples, loaded.tokenizer, task, plan.seq_len)
    train, dev = splits["train"], splits["dev"]
    lengths = buckets(plan.seq_len) if settings.buckets else (plan.seq_len,)
    epoch_steps = -(-len(train) // plan.batch_size)
    steps = max(1, round(plan.epochs * epoch_steps))
    dev_every = dev_every or epoch_steps
    if claim(output, settings, plan, loaded, len(train)):
        return read_json(output / "result.json")

    # ---- The state: the newest checkpoint, else the model with a new head ------------------------
    config = loaded.config
    if settings.dropout is not None:
        config = config.replace(
            hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout
        )
    dtype = compute_dtype(settings.dtype)
    model = ClassificationModel(config, len(task.labels), dtype)
    plain = ClassificationModel(config.without_dropout(), len(task.labels), dtype)
    schedule = optim.learning_rate(
        settings.schedule, plan.learning_rate, steps, int(settings.warmup * steps)
    )
    optimizer = optim.adamw(
        schedule, b2=0.999, weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay, layers=config.num_hidden_layers,
    )  # fmt: skip
    key = jax.random.key(settings.seed)
    state = new_state(lambda: random_params(model, key), optimizer, mesh)
    if not settings.random_weights:
        state = with_params(state, starting_params(loaded, task, settings.head), mesh)
    shardings = sharding.state_shardings(state, mesh)
    step_function = jax.jit(
        functools.partial(
            train_step, model=model, optimizer=optimizer, key=jax.random.fold_in(key, 1),
            kind=task.kind, accumulate=settings.accumulate,
        ),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )  # fmt: skip

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        return train_order(train, plan.batch_size, settings.seed, epoch, settings.buckets)

    def batch_at(step: int) -> Batch:
        chosen = order(step // epoch_steps)[step % epoch_steps]
        return batch_of(train, chosen, plan.batch_size, lengths, loaded.tokenizer.pad_id)

    about = {
        "task": task.name,
        "labels": task.labels,
        "heads": {"classifier": "trained", "pooler": "trained"},
        "max_seq_length": plan.seq_len,
        "normalization": loaded.info.get("normalization", "none"),
        "license": loaded.info.get("license", "unknown"),
        "source": f"clue_jax finetune.run on {task.name}, from {loaded.info.get('source')}",
        "input": columns,
    }
    with Checkpoints(output / "checkpoints", keep=1) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(abstract(state))
        start = int(state.step)
        history = dev_history(output, start)

        # ---- The loop ----------------------------------------------------------------------------
        with RunLog(output, start, steps) as log:
            pending: list[dict[str, jax.Array]] = []
            interval, tokens = time.monotonic(), 0
            for step, batch in enumerate(stream(batch_at, start, steps), start + 1):
                if stopped(history, settings.patience, task):
                    break
                state, sums = step_function(state, sharding.put_batch(batch, mesh))
                if pending:
                    jax.block_until_ready(pending[-1])
                pending.append(sums)
                tokens += int(batch["input_mask"].sum())
                log.advance(step)
                is_last = step == steps
                if step % settings.log_every == 0 or is_last:
                    seconds = time.monotonic() - interval
                    numbers = means(jax.device_get(pending), task)
                    numbers["learning_rate"] = float(schedule(step - 1))
                    log.write(step, numbers | {"tokens_per_second": tokens / seconds})
                    pending, interval, tokens = [], time.monotonic(), 0
                if step % dev_every == 0 or is_last:
                    paused = time.monotonic()
                    logits, loss = evaluation.evaluate(
                        plain, state.params, dev, eval_batch_size(plan.batch_size, mesh),
                        plan.seq_len, loaded.tokenizer.pad_id, task.kind, mesh,
                    )  # fmt: skip
                    entry = {"step": step, "loss": loss}
                    entry |= evaluation.scores(task, dev, logits)
                    if best(history, task) is None or better(entry, best(history, task), task):
                        params = jax.device_get(state.params)
                        model_dir.save(
                            output / "best", params, loaded.config, loaded.tokenizer, **about
                        )
                    history.append(entry)
                    log.write(step, {f"dev/{k}": v for k, v in entry.items() if k != "step"})
                    checkpoints.save(state, dataclasses.asdict(settings))
                    interval += time.monotonic() - paused

    # ---- The result ------------------------------------------------------------------------------
    metric = evaluation.metric_name(task)
    chosen = best(history, task)
    result = {
        "task": task.name,
        "version": settings.version,
        "metric": metric,
        "best_value": chosen[metric],
        "best_step": chosen["step"],
        "steps": steps,
        "train_examples": len(train) // task.group,
        "dev": history,
        "seed": settings.seed,
        "settings": dataclasses.asdict(settings) | dataclasses.asdict(plan),
        "best": str(output / "best"),
    }
    test = read_split(task, settings.data_dir, "test", settings.version, settings.limit)
    if test is not None:
        name = task.submission.get(settings.version, f"{task.name}_predict.json")
        predict.predict(str(output / "best"), task, test, output / name, plan.seq_len, settings)
        result["prediction"] = str(output / name)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "result.json", result)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)  # the run is over
    return result


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ClassificationModel,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    kind: str,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before it.
      batch: see `finetune.data.batch_of`.
      model, optimizer: as built.
      key: of the run; the step's dropout key is folded from it.
      kind: see `clue_jax.losses.classification`.
      accumulate: parts in which the batch is computed, whose gradients are added; B is a multiple.

    Returns:
      The state after it, and loss sums and counts with the gradient norm before clipping.
    """
    step_key = jax.random.fold_in(key, state.step)
    total = jnp.maximum(jnp.sum(batch["weights"]), 1)

    def loss_of(params: Any, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Any]:
        logits = model.apply(
            {"params": params}, part["input_ids"], part["input_mask"], part["segment_ids"],
            deterministic=False, rngs={"dropout": part_key},
        )  # fmt: skip
        sums = losses.classification(kind, logits, part["labels"], part["weights"])
        return sums["loss_sum"] / total, sums

    gradient_of = jax.grad(loss_of, has_aux=True)
    if accumulate == 1:
        gradients, sums = gradient_of(state.params, batch, step_key)
    else:
        # Every accumulate-th row, so that a batch that is spread over devices stays so.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(step_key, accumulate)
        zero = jax.eval_shape(
            gradient_of, state.params, jax.tree.map(lambda x: x[0], parts), keys[0]
        )
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, gradient_of(state.params, *part)), None

        (gradients, sums), _ = jax.lax.scan(add, zero, (parts, keys))
    sums["gradient_norm"] = optax.tree.norm(gradients)
    return state.apply_gradients(gradients, optimizer), sums


def find_task(settings: Settings) -> tuple[Task, dict[str, Any] | None]:
    """The task, and for a person's own what a model directory keeps of its columns."""
    if settings.task != "generic":
        if settings.task not in TASKS:
            known = ", ".join([*TASKS, "generic"])
            raise UserError(f"--task {settings.task!r} is unknown; known: {known}")
        task = TASKS[settings.task]
        if not task.train:
            raise UserError(
                f"--task {task.name} has no training set; predict it with ocnli's model"
            )
        return task, None
    columns = {
        "text": settings.text, "pair": settings.text_pair, "label": settings.label,
        "kind": settings.kind,
    }  # fmt: skip
    if not Path(settings.data_dir).is_dir():
        raise UserError(f"{settings.data_dir}: no such folder")
    task = make(ending_of(settings.data_dir), **columns)
    if settings.kind != "score":
        path = Path(settings.data_dir) / task.train
        task = dataclasses.replace(task, labels=labels_of(task, path.read_bytes(), str(path)))
    return task, columns


def filled(settings: Settings, loaded: LoadedModel) -> Recipe:
    """The recipe of the task, with what the command line says instead."""
    base = recipe(settings.task, loaded.config, settings.recipe == "original")
    given = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(settings, field.name) is not None
    }
    plan = dataclasses.replace(base, **given)
    longest = loaded.config.max_position_embeddings
    if settings.seq_len is None and plan.seq_len > longest:
        plan = dataclasses.replace(plan, seq_len=longest)
    return plan


def check(settings: Settings, plan: Recipe, loaded: LoadedModel, mesh: jax.sharding.Mesh) -> None:
    """Refuses numbers that cannot be."""
    longest = loaded.config.max_position_embeddings
    if not 4 <= plan.seq_len <= longest:
        raise UserError(f"--seq-len {plan.seq_len}: the model takes 4..{longest}")
    for name in ("epochs", "learning_rate"):
        if not getattr(plan, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(plan, name)} must be positive")
    for name, low in (("accumulate", 1), ("log_every", 1), ("patience", 0)):
        if getattr(settings, name) < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}")
    if plan.eval_every < 0 or (settings.limit is not None and settings.limit < 1):
        raise UserError("--eval-every must not be negative, and --limit at least 1")
    if not 0 <= settings.warmup <= 1 or not 0 < settings.layer_decay <= 1:
        raise UserError("--warmup must lie in 0..1 and --layer-decay in (0, 1]")
    sharding.check_batch_size(plan.batch_size, mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if plan.batch_size % (settings.accumulate * ways):
        raise UserError(
            f"--batch-size {plan.batch_size} is not a multiple of --accumulate "
            f"{settings.accumulate} times {ways} devices"
        )


def claim(
    output: Path, settings: Settings, plan: Recipe, loaded: LoadedModel, examples: int
) -> bool:
    """Marks the folder as this run's, refuses one of another; says whether it is finished."""
    fixed = dataclasses.asdict(settings) | dataclasses.asdict(plan)
    fixed = {name: value for name, value in fixed.items() if name not in CHANGEABLE}
    fixed |= {"model_sha256": merge.digest(loaded.params), "examples": examples}
    path = output / "settings.json"
    if path.exists():
        old = read_json(path)
        for name in sorted({*old, *fixed}):
            if old.get(name) != fixed.get(name):
                raise UserError(
                    f"{output}: holds a run with {name} {old.get(name)!r}, now "
                    f"{fixed.get(name)!r}; choose another --output or remove the folder"
                )
    elif output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: holds something else than a run; choose another --output")
    else:
        write_json(path, fixed)
    return (output / "result.json").exists()


def random_params(model: ClassificationModel, key: jax.Array) -> Any:
    """Initial weights, as the original draws them."""
    ids = jnp.zeros((1, 8), jnp.int32)
    return model.init(key, ids, ids, ids)["params"]


def with_params(state: TrainState, given: dict[str, Any], mesh: jax.sharding.Mesh) -> TrainState:
    """The state with the parameters that are given; the others keep their random values."""
    drawn, taken = merge.flatten(state.params), merge.flatten(given)
    params = {path: np.asarray(taken.get(path, array)) for path, array in drawn.items()}
    params = merge.nest({path: array.astype(np.float32) for path, array in params.items()})
    params = jax.device_put(params, sharding.state_shardings(params, mesh))
    return dataclasses.replace(state, params=params)


def eval_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """A batch for evaluation: at least 64 rows, divided by the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-max(64, batch_size) // ways) * ways


def means(sums: list[dict[str, Any]], task: Task) -> dict[str, float]:
    """Means over the steps since the last entry of the log."""
    total = {name: float(np.sum([s[name] for s in sums], dtype=np.float64)) for name in sums[0]}
    numbers = {
        "loss": total["loss_sum"] / max(1.0, total["weight_sum"]),
        "gradient_norm": total["gradient_norm"] / len(sums),
    }
    if task.kind == "single":
        numbers["accuracy"] = total["correct_sum"] / max(1.0, total["weight_sum"])
    return numbers


def better(a: dict[str, Any], b: dict[str, Any], task: Task) -> bool:
    """Whether evaluation `a` beats the earlier `b`: a higher score, or the same with less loss."""
    metric = evaluation.metric_name(task)
    return (a[metric], -a["loss"]) > (b[metric], -b["loss"])


def best(history: list[dict[str, Any]], task: Task) -> dict[str, Any] | None:
    """The best evaluation; of equal ones the earliest."""
    chosen = None
    for entry in history:
        if chosen is None or better(entry, chosen, task):
            chosen = entry
    return chosen


def stopped(history: list[dict[str, Any]], patience: int, task: Task) -> bool:
    """Whether the last `patience` evaluations brought nothing better."""
    if not patience or not history:
        return False
    return len(history) - 1 - history.index(best(history, task)) >= patience


def dev_history(output: Path, step: int) -> list[dict[str, Any]]:
    """The evaluations up to a step, out of the metrics of a run that was cut."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return []
    history = []
    for line in read_text(path).split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if "dev/loss" in record and record["step"] <= step:
            dev = {k.removeprefix("dev/"): v for k, v in record.items() if k.startswith("dev/")}
            history.append({"step": record["step"], **dev})
    return history


if __name__ == "__main__":
    run_command(main)
