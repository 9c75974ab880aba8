"""Speed of a pretraining step, alone or against PyTorch + transformers on the same masked batches.

The two train the same weights on the same rows, a document a row, in turn; their losses without
dropout are compared before anything is timed. Batches are made beforehand.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from clue_jax import sharding
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import model_dir
from clue_jax.data.batches import Batch
from clue_jax.errors import UserError, run_command
from clue_jax.train_state import new_state
from pretraining import build_shards, build_vocab
from pretraining.evaluate import head_sums
from pretraining.examples import Examples
from pretraining.masking import Masking
from pretraining.program import Program, program
from pretraining.settings import Settings as RunSettings
from pretraining.settings import check_batch
from tools.chips import flops_per_token, peak_teraflops
from tools.ratios import ratios
from tools.result import print_result

_SAMPLE = Path(build_shards.__file__).with_name("sample_zh.txt")
_COMPARED = 2  # batches
_LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the losses, relative


@dataclass(frozen=True)
class Settings:
    """Times a training step; ends with one line of JSON."""

    preset: Literal["tiny", "tiny3l312", "tiny3l768", "base", "large"] = "tiny"
    """Size of the model."""
    batch_size: int = 32
    """B, rows an update over all devices."""
    seq_len: int = 128
    """T."""
    vs: Literal["transformers"] | None = None
    """transformers: time PyTorch's BertForMaskedLM as well, in turn."""
    data: str | None = None
    """Folder of shards (default: built from the sample text, a document a row)."""
    vocab_size: int = 8021
    """V, if the shards have fewer."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""
    dropout: float = 0.1
    """Both rates, of both contenders."""
    accumulate: int = 1
    """Parts of a batch, of ours."""
    remat: Literal["none", "layers"] = "none"
    """layers: compute every layer anew in the backward pass, in ours."""
    prng: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Of the dropout, in ours."""
    mesh: str | None = None
    """Devices by axis (default: all on data)."""
    steps: int = 5
    """Steps of a window."""
    windows: int = 5
    """Timed windows of each, in turn, after one that is not counted."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory too
    mesh = sharding.make_mesh(settings.mesh)
    check_batch(settings.batch_size, settings.accumulate, mesh)
    with tempfile.TemporaryDirectory() as folder:
        examples = _examples(settings, Path(folder))
        batches = [examples.step(step, settings.batch_size, 0) for step in range(settings.steps)]
        vocab_size = max(settings.vocab_size, examples.tokenizer.vocab_size)
        config = PRESETS[settings.preset].replace(
            vocab_size=vocab_size,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
        )
        job = program(_run_settings(settings), config, steps=10_000, mesh=mesh)
        state = new_state(job.init, job.optimizer, mesh)
        peer = difference = None
        if settings.vs:
            if max(batch["document_ids"].max() for batch in batches) > 1:
                raise UserError(f"{settings.data}: the peer needs shards of --packing padded")
            peer = _Peer(settings, config, jax.device_get(state.params), examples, Path(folder))
            difference = _compare(job, state.params, peer, batches)
    ours = _Ours(job, state, batches, mesh)
    result = _times(settings, config, ours, peer, batches, mesh)
    if peer:
        result |= {"peer": peer.name, "loss_difference": difference}
    print_result(result)
    return result


def _examples(settings: Settings, folder: Path) -> Examples:
    """Rows of one document each, with masks; so a peer without packing can have them."""
    masking = Masking("whole-word", 0.15, None)
    if settings.data:
        examples = Examples(settings.data, None, masking, 0)
        if examples.seq_len != settings.seq_len:
            raise UserError(f"{settings.data}: holds rows of {examples.seq_len} slots")
        return examples
    build_vocab.build(build_vocab.Settings(str(folder / "vocab.txt"), (str(_SAMPLE),)))
    build_shards.build(
        build_shards.Settings(
            input=(str(_SAMPLE),), vocab=str(folder / "vocab.txt"), output=str(folder / "shards"),
            seq_len=settings.seq_len, packing="padded", workers=1,
        )
    )  # fmt: skip
    return Examples(folder / "shards", None, masking, 0)


def _run_settings(settings: Settings) -> RunSettings:
    return RunSettings(
        output="", batch_size=settings.batch_size, learning_rate=1e-4, warmup_steps=100,
        dtype=settings.dtype, accumulate=settings.accumulate, remat=settings.remat,
        prng=settings.prng,
    )  # fmt: skip


class _Ours:
    """The step of pretraining.run."""

    def __init__(self, job: Program, state: Any, batches: list[Batch], mesh: jax.sharding.Mesh):
        self._step = job.compiled_step(sharding.state_shardings(state, mesh), mesh)
        self._state, self._mesh = state, mesh
        self._batches = [{name: array[None] for name, array in b.items()} for b in batches]

    def window(self) -> None:
        """A step with every batch."""
        for batch in self._batches:
            placed = sharding.put_batch(batch, self._mesh, dim=1)
            self._state, sums = self._step(self._state, placed)
        jax.block_until_ready(sums)


class _Peer:
    """The same model in PyTorch, trained as a script of transformers does."""

    def __init__(
        self, settings: Settings, config: ModelConfig, params: Any, examples: Examples, folder: Path
    ):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError("the peer needs PyTorch: pip install torch transformers") from error
        self._torch = torch
        self.name = f"torch {torch.__version__} and transformers {transformers.__version__}"
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        about = {"heads": {"masked_lm": "trained"}, "source": "benchmark", "max_seq_length": 0}
        model_dir.save(folder / "model", params, config, examples.tokenizer, **about)
        model = transformers.BertForMaskedLM.from_pretrained(
            folder / "model", attn_implementation="sdpa"
        ).to(self._device)
        self._optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01)
        self._plain = model
        self._model = torch.compile(model) if self._device == "cuda" else model

    def loss(self, batch: Batch, model: Any = None) -> Any:
        """The mean masked-LM loss."""
        torch = self._torch
        labels = np.full_like(batch["input_ids"], -100)
        used = batch["masked_lm_weights"] > 0
        rows = np.nonzero(used)[0]
        labels[rows, batch["masked_lm_positions"][used]] = batch["masked_lm_ids"][used]
        arrays = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["document_ids"] > 0,
            "token_type_ids": batch["segment_ids"],
            "labels": labels,
        }
        tensors = {
            name: torch.from_numpy(np.asarray(array, np.int64)).to(self._device)
            for name, array in arrays.items()
        }
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device == "cuda"):
            return (model or self._model)(**tensors).loss

    def window(self, batches: list[Batch]) -> None:
        """A step with every batch."""
        self._model.train()
        for batch in batches:
            self._optimizer.zero_grad()
            self.loss(batch).backward()
            self._torch.nn.utils.clip_grad_norm_(self._plain.parameters(), 1.0)
            self._optimizer.step()
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def evaluate(self, batch: Batch) -> float:
        """The loss without dropout."""
        self._plain.eval()
        with self._torch.no_grad():
            return float(self.loss(batch, self._plain))


def _compare(job: Program, params: Any, peer: _Peer, batches: list[Batch]) -> float:
    """The largest relative difference of the losses, without dropout.

    Raises:
      UserError: if the two do not compute the same.
    """
    worst = 0.0
    for batch in batches[:_COMPARED]:
        sums = jax.jit(head_sums, static_argnums=0)(job.eval_model, params, batch)
        ours = float(sums["masked_lm_loss_sum"] / sums["masked_lm_weight_sum"])
        theirs = peer.evaluate(batch)
        worst = max(worst, abs(ours - theirs) / abs(theirs))
    if not worst < _LARGEST_DIFFERENCE[str(job.model.dtype)]:
        raise UserError(f"the losses differ by {worst:.1e}; the two do not train the same model")
    return worst


def _times(
    settings: Settings,
    config: ModelConfig,
    ours: _Ours,
    peer: _Peer | None,
    batches: list[Batch],
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    def seconds(run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    contenders = [ours.window]
    if peer:
        contenders.append(lambda: peer.window(batches))
    first = [seconds(run) for run in contenders]
    taken: list[list[float]] = [[] for _ in contenders]
    for _ in range(settings.windows):
        for run, times in zip(contenders, taken, strict=True):
            times.append(seconds(run))
    ms = [[1000 * s / settings.steps for s in times] for times in taken]
    slots = settings.batch_size * settings.seq_len
    masked = batches[0]["masked_lm_ids"].shape[1]
    flops = slots * flops_per_token(config, settings.seq_len, masked)
    device = mesh.devices.flat[0]
    peak = peak_teraflops(device.device_kind)
    median = statistics.median(ms[0])
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result = {
        "benchmark": "step",
        "preset": settings.preset,
        "batch_size": settings.batch_size,
        "seq_len": settings.seq_len,
        "max_predictions": masked,
        "dtype": settings.dtype or ("float32" if device.platform == "cpu" else "bfloat16"),
        "dropout": settings.dropout,
        "prng": settings.prng,
        "accumulate": settings.accumulate,
        "remat": settings.remat,
        "ms_per_step": round(median, 2),
        "ms_per_step_min": round(min(ms[0]), 2),
        "ms_per_step_max": round(max(ms[0]), 2),
        "seconds_per_1000_steps": round(median, 1),
        "slots_per_second": round(1000 * slots / median),
        "real_tokens_per_second": round(
            1000 * statistics.mean(np.count_nonzero(b["document_ids"]) for b in batches) / median
        ),
        "teraflops_per_second": round(flops / median / 1e9, 3),
        "mfu": round(flops / median / 1e9 / (peak * mesh.size), 4) if peak else None,
        "first_window_seconds": round(first[0], 1),
        "peak_memory_bytes": memory,
        "devices": mesh.size,
        "device": device.device_kind,
        "jax": jax.__version__,
    }
    if peer:
        result["peer_ms_per_step"] = round(statistics.median(ms[1]), 2)
        result["ratio"] = round(statistics.median(ms[1]) / median, 2)
        result |= ratios(ms[1], ms[0], 2)
    return result


if __name__ == "__main__":
    run_command(main)
