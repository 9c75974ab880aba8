"""Compiles the real step for a TPU that is not there: whether it fits, what it takes.

libtpu, the TPU's compiler (pip install 'jax[tpu]', or libtpu alone), needs no TPU. It refuses a
program that does not fit into the memory of a device, and writes beside each operation how many
cycles it expects of it. Their sum is a lower bound: exchanges between devices and rows picked from
tables have no cycles beside them.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh

from clue_jax import sharding
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.data.batches import PRETRAINING_BATCH
from clue_jax.errors import UserError, run_command
from clue_jax.files import write_text
from clue_jax.model import ClassificationModel
from clue_jax.train_state import abstract_arrays, abstract_state, compute_dtype
from finetune.evaluate import eval_step as predict_step
from pretraining import evaluate
from pretraining.masking import Masking
from pretraining.program import program
from pretraining.settings import Settings as RunSettings
from pretraining.settings import check_batch
from tools import hlo
from tools.chips import TPUS, Chip, flops_per_token
from tools.result import print_result

_CLASSES = 15  # of --job predict; TNEWS has as many


@dataclass(frozen=True)
class Settings:
    """Compiles a step for a TPU topology without that TPU; ends with one line of JSON."""

    topology: str
    """Such as v3:2x2 (a v3-8), v3:4x4 (a v3-32), v4:2x2x1, v5e:2x4, v6e:2x4."""
    batch_size: int
    """B, rows an update over all devices."""
    preset: Literal["tiny", "tiny3l312", "tiny3l768", "base", "large"] = "tiny"
    """Size of the model."""
    seq_len: int = 128
    """T."""
    job: Literal["train", "eval", "predict"] = "train"
    """train: an update in pretraining; eval: masked-LM evaluation; predict: classes of texts."""
    largest_batch: bool = False
    """Double or halve the batch until it just fits, and report that."""
    vocab_size: int = 8021
    """V."""
    mesh: str | None = None
    """Devices by axis, such as data=8 or data=2,fsdp=4 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the computation."""
    max_predictions: int | None = None
    """M, masked slots a row (default: 15 % of T, 20 at T=128)."""
    dropout: float | None = None
    """Both dropout rates (default: the model's, 0.1)."""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """Of the update."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other."""
    remat: Literal["none", "layers"] = "none"
    """layers: compute every layer anew in the backward pass."""
    prng: Literal["threefry2x32", "rbg"] = "rbg"
    """Of the dropout; training takes threefry2x32 unless told otherwise."""
    dollars_per_hour: float | None = None
    """Price of a chip (default: a list price of 2025, on demand)."""
    top: int = 10
    """Operations to list, the most expensive ones."""
    save_program: str | None = None
    """Write the compiled program's text to this file."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    jax.config.update("jax_platforms", "cpu")  # with libtpu there, jax would look for a TPU
    devices = topology_devices(settings.topology)
    result = largest(settings, devices) if settings.largest_batch else measure(settings, devices)
    print_result(result)
    return result


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology that is not there.

    Raises:
      UserError: without libtpu, or if it does not know the topology or the chip.
    """
    # Else it asks the network what TPU this machine belongs to, and wants to be the only one.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v3-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    # The two cores of these chips work as one device.
    kind = {"chip_config_name": "megacore"} if name.startswith(("v4:", "v5p:")) else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **kind).devices
    except Exception as error:  # jax raises several kinds, by its version
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"--topology {name}: {lines[0]} (it takes libtpu, pip install 'jax[tpu]', and a name "
            "such as v3:2x2)"
        ) from None
    if devices[0].device_kind not in TPUS:
        raise UserError(f"--topology {name}: nothing is known of {devices[0].device_kind}")
    return devices


def largest(settings: Settings, devices: list[Any]) -> dict[str, Any]:
    """The result for the largest batch that fits, of the given one times a power of two."""

    def at(batch_size: int) -> dict[str, Any]:
        return measure(dataclasses.replace(settings, batch_size=batch_size), devices)

    result = at(settings.batch_size)
    least = len(devices) * settings.accumulate
    while not result["fits"]:
        if result["batch_size"] % (2 * least):
            return result
        result = at(result["batch_size"] // 2)
        if result["fits"]:
            return result
    while (larger := at(2 * result["batch_size"]))["fits"]:
        result = larger
    return result


def measure(settings: Settings, devices: list[Any]) -> dict[str, Any]:
    """Compiles one step and reads what came of it.

    Returns:
      The settings that matter; "fits"; if it does, "hbm_bytes_per_device", "estimated_ms_per_step",
      "tokens_per_second" (slots), "mfu", "collectives" (bytes and number a step, by kind),
      "rows_picked_or_added" (operations of which nothing is estimated),
      "hours_per_billion_tokens", "dollars_per_billion_tokens" and "most_expensive" (milliseconds).
    """
    mesh = sharding.make_mesh(settings.mesh, devices)
    chip = TPUS[devices[0].device_kind]
    config = PRESETS[settings.preset].replace(vocab_size=settings.vocab_size)
    if settings.dropout is not None:
        config = config.replace(
            hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout
        )
    known = ("topology", "job", "preset", "batch_size", "seq_len", "dtype", "accumulate", "remat")
    result = {name: getattr(settings, name) for name in known}
    result |= {
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "dropout": config.hidden_dropout_prob,
        "prng": settings.prng,
        "device": devices[0].device_kind,
        "devices": mesh.size,
        "hbm_limit_per_device": chip.hbm,
    }
    started = time.monotonic()
    lowered = lower(settings, config, mesh)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "hbm" not in str(error).lower():
            raise
        return result | {"fits": False, "reason": " ".join(str(error).split())[:300]}
    text = compiled.as_text()
    if settings.save_program:
        write_text(settings.save_program, text)
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    result |= {
        "fits": True,
        "hbm_bytes_per_device": used
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        **_speed(settings, config, hlo.read(text), chip, mesh.size),
        "compile_seconds": round(time.monotonic() - started, 1),
        "jax": jax.__version__,
    }
    return result


def lower(settings: Settings, config: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The job's program before it is compiled, for the devices of a mesh."""
    check_batch(settings.batch_size, settings.accumulate, mesh)
    if settings.job == "predict":
        return _lowered_predict(settings, config, mesh)
    run = RunSettings(
        output="", batch_size=settings.batch_size, learning_rate=1e-3, warmup_steps=1000,
        dtype=settings.dtype, optimizer=settings.optimizer, accumulate=settings.accumulate,
        remat=settings.remat, prng=settings.prng,
    )  # fmt: skip
    job = program(run, config, steps=100_000, mesh=mesh)
    masked = Masking("whole-word", 0.15, settings.max_predictions).slots(settings.seq_len)
    letters = {"B": settings.batch_size, "T": settings.seq_len, "M": masked}
    state = abstract_state(job.init, job.optimizer, mesh)
    shapes = {
        name: (tuple(letters[letter] for letter in dims), dtype)
        for name, (dims, dtype) in PRETRAINING_BATCH.items()
    }
    if settings.job == "eval":
        batch = {name: _rows(shape, dtype, mesh) for name, (shape, dtype) in shapes.items()}
        return evaluate.eval_step.lower(state.params, batch, model=job.eval_model, mesh=mesh)
    # One update a call: arrays [1, B, ...].
    batch = {name: _rows((1, *shape), dtype, mesh, 1) for name, (shape, dtype) in shapes.items()}
    step = job.compiled_step(sharding.state_shardings(state, mesh), mesh)
    return step.lower(state, batch)


def _lowered_predict(settings: Settings, config: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    model = ClassificationModel(config, _CLASSES, compute_dtype(settings.dtype))
    ids = np.zeros((1, 8), np.int32)
    params = abstract_arrays(lambda: model.init(jax.random.key(0), ids, ids, ids)["params"], mesh)
    rows = (settings.batch_size, settings.seq_len)
    batch = {
        name: _rows(rows, np.int32, mesh) for name in ("input_ids", "input_mask", "segment_ids")
    }
    batch["labels"] = _rows(rows[:1], np.int32, mesh)
    batch["weights"] = _rows(rows[:1], np.float32, mesh)
    return predict_step.lower(params, batch, model=model, kind="single")


def _rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh, dim: int = 0) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, dim))


def _speed(
    settings: Settings, config: ModelConfig, operations: hlo.Operations, chip: Chip, devices: int
) -> dict[str, Any]:
    cycles_per_ms = 1000 * chip.megahertz
    ms = operations.total_cycles / cycles_per_ms
    tokens = settings.batch_size * settings.seq_len
    masked = Masking("whole-word", 0.15, settings.max_predictions).slots(settings.seq_len)
    predictions = 0 if settings.job == "predict" else masked
    flops = tokens * flops_per_token(config, settings.seq_len, predictions, settings.job == "train")
    peak = chip.teraflops * 1e12 * devices / chip.devices
    hours = 1e9 / tokens * ms / 3.6e6
    price = chip.dollars_per_hour
    if settings.dollars_per_hour is not None:
        price = settings.dollars_per_hour
    expensive = operations.cycles.most_common(settings.top)
    return {
        "estimated_ms_per_step": round(ms, 2),
        "tokens_per_second": round(1000 * tokens / ms),
        "mfu": round(flops / (ms / 1000) / peak, 4),
        "collectives": {
            kind: {"bytes": operations.collectives[kind], "number": number}
            for kind, number in sorted(operations.counts.items())
        },
        "rows_picked_or_added": sum(operations.without_estimate.values()),
        "hours_per_billion_tokens": round(hours, 3),
        "dollars_per_billion_tokens": round(hours * price * devices / chip.devices, 2),
        "most_expensive": {name: round(cycles / cycles_per_ms, 3) for name, cycles in expensive},
    }


if __name__ == "__main__":
    run_command(main)
