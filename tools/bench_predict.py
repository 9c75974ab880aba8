"""Speed of predictions against the pipeline of transformers, on texts of CLUE's lengths.

Both read the same model directory and answer the same texts in turn; the probabilities are compared
before anything is timed. The pipeline is given whichever batch size suits it better.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.predictor import Predictor
from clue_jax.pretrained import load
from finetune.data import read_split
from finetune.tasks import TASKS
from tools.ratios import ratios, seconds_in_turn
from tools.result import print_result

MIX = ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl")
_ALONE = 100  # texts that are timed one by one
_TRIED = 200  # texts with which the pipeline's batch size is chosen
_OURS = "import clue_jax; clue_jax.Predictor({model!r}).predict([{text!r}])"
_THEIRS = (
    "from transformers import pipeline; "
    "pipeline('text-classification', model={model!r}, tokenizer={model!r})({text!r})"
)


@dataclass(frozen=True)
class Settings:
    """Times a classifier against the pipeline of transformers; ends with one line of JSON."""

    model: str
    """Model directory of a classifier."""
    data_dir: str
    """Folder with CLUE's zips, or the folders in them: texts and pairs are drawn from the dev sets
    of afqmc, tnews, iflytek, cmnli, ocnli, cluewsc2020 and csl, as many of each."""
    examples: int = 1001
    """Texts in all."""
    pairs: int = 5
    """Timed rounds of each, in turn."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of our computation; the pipeline's is float32."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    predictor = Predictor(load(settings.model, dtype=jnp.dtype(settings.dtype)))
    if predictor.kinds[0] != "classification":
        raise UserError(f"{settings.model}: is no classifier, but a model for {predictor.kinds[0]}")
    inputs = mix(settings.data_dir, settings.examples)
    pipe, versions = _pipeline(settings.model, predictor.longest("classification"))
    started = time.perf_counter()
    programs = len(list(predictor.compile()))
    compile_seconds = time.perf_counter() - started
    compared = _compare(predictor, pipe, inputs)
    few = inputs[:_ALONE]
    batch = min((1, 8, 32), key=lambda size: _seconds(pipe, inputs[:_TRIED], size))
    ours, theirs = seconds_in_turn(
        lambda: predictor.predict(inputs),
        lambda: pipe(inputs, batch_size=batch),
        settings.pairs,
    )
    alone, their_alone = seconds_in_turn(
        lambda: [predictor.predict([given]) for given in few],
        lambda: [pipe(given) for given in few],
        settings.pairs,
    )
    first, their_first = seconds_in_turn(
        lambda: _start(_OURS, settings.model), lambda: _start(_THEIRS, settings.model), 3
    )
    items = predictor.prepare(inputs, "classification")
    median = statistics.median
    result = {
        "benchmark": "predict",
        "peer": versions,
        "model": Path(settings.model).name,
        "texts": len(inputs),
        "tokens": sum(len(row.ids) for item in items for row in item.rows),
        "dtype": settings.dtype,
        **compared,
        "our_texts_per_second": round(len(inputs) / median(ours), 1),
        "peer_texts_per_second": round(len(inputs) / median(theirs), 1),
        "peer_batch_size": batch,
        **ratios(theirs, ours, 2),
        "our_ms_alone": round(median(alone) / len(few) * 1000, 2),
        "peer_ms_alone": round(median(their_alone) / len(few) * 1000, 2),
        "alone": ratios(their_alone, alone, 2),
        "our_seconds_to_first_answer": round(median(first), 2),
        "peer_seconds_to_first_answer": round(median(their_first), 2),
        "programs": programs,
        "compile_seconds": round(compile_seconds, 1),
        "our_seconds": [round(s, 2) for s in ours],
        "peer_seconds": [round(s, 2) for s in theirs],
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print_result(result)
    return result


def mix(place: str, count: int) -> list[dict[str, str]]:
    """Texts and pairs of CLUE, as many of each task, in an order that mixes them."""
    share = max(1, count // len(MIX))
    tasks = []
    for name in MIX:
        examples = read_split(TASKS[name], place, "dev", limit=share) or []
        if not examples:
            raise UserError(f"{place}: holds no dev set of {name}")
        tasks.append([_input(example) for example in examples[:share]])
    shortest = min(map(len, tasks))
    return [task[i] for i in range(shortest) for task in tasks]


def _input(example: Any) -> dict[str, str]:
    pair = {"text_pair": example.text_b} if example.text_b else {}
    return {"text": example.text_a, **pair}


def _pipeline(model: str, longest: int) -> tuple[Any, str]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError("the peer needs PyTorch: pip install torch transformers") from error
    transformers.logging.set_verbosity_error()
    pipe = transformers.pipeline(
        "text-classification", model=model, tokenizer=model, device="cpu", truncation=True,
        max_length=longest,
    )  # fmt: skip
    return pipe, f"torch {torch.__version__} and transformers {transformers.__version__}"


def _compare(predictor: Predictor, pipe: Any, inputs: list[dict[str, str]]) -> dict[str, float]:
    """The largest difference of a probability, and the share of texts that get the same label.

    Raises:
      UserError: if they are not within 1e-4, in bfloat16 0.1: then the two do not compute the same.
    """
    labels = len(predictor.labels)
    worst, same = 0.0, 0
    for given, ours in zip(inputs, predictor.predict(inputs, top_k=labels), strict=True):
        found = pipe(given, top_k=labels)
        theirs = {entry["label"]: entry["score"] for entry in found}
        worst = max(worst, *(abs(x["probability"] - theirs[x["label"]]) for x in ours["labels"]))
        same += ours["label"] == found[0]["label"]
    if not worst < (1e-4 if predictor.model.dtype == jnp.float32 else 0.1):
        raise UserError(f"probabilities differ by {worst:.1e}; the two do not compute the same")
    return {"largest_difference": worst, "same_labels": round(same / len(inputs), 4)}


def _seconds(pipe: Any, inputs: list[dict[str, str]], size: int) -> float:
    started = time.perf_counter()
    pipe(inputs, batch_size=size)
    return time.perf_counter() - started


def _start(code: str, model: str) -> None:
    """A new process that answers one text."""
    subprocess.run(
        [sys.executable, "-c", code.format(model=model, text="今天天气很好")],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
