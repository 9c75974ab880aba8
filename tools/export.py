"""Writes a model for another runtime: ONNX, TensorFlow, or jax without this project."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from clue_jax.convert.model_dir import config_values
from clue_jax.convert.target import check_target
from clue_jax.errors import UserError, run_command
from clue_jax.export.function import INPUTS, params_of
from clue_jax.files import atomic_directory, write_json
from clue_jax.predictor import Predictor
from clue_jax.text import WordPieceTokenizer, copy_vocabulary
from clue_jax.text.tokenizer_json import write_tokenizer_files


@dataclass(frozen=True)
class Settings:
    """Writes a folder for another runtime; batch and length stay free. Inputs are input_ids,
    attention_mask and token_type_ids; ends with one line of JSON."""

    model: str
    """Model directory."""
    to: Literal["onnx", "onnx-int8", "savedmodel", "stablehlo"]
    """onnx: model.onnx for onnxruntime; onnx-int8: its kernels as whole numbers, a quarter of the
    size; savedmodel: for TensorFlow; stablehlo: a program for jax on CPU, GPU and TPU."""
    output: str
    """Folder to write, with the vocabulary beside the model."""
    task: Literal[
        "classification", "multi-label", "score", "spans", "choice", "entities", "fill-mask",
        "embedding",
    ] | None = None  # fmt: skip
    """What it shall predict (default: what the model was trained for)."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    predictor = Predictor(settings.model)
    kind = settings.task or predictor.kinds[0]
    if kind not in predictor.kinds:
        raise UserError(
            f"{settings.model}: makes no {kind}; it makes {', '.join(predictor.kinds[:-1])}"
        )
    check_target(settings.output)
    with atomic_directory(settings.output) as folder:
        _write(predictor, kind, settings.to, folder)
        extra = folder / "assets.extra" if settings.to == "savedmodel" else folder
        extra.mkdir(exist_ok=True)
        _describe(predictor, kind, extra)
    size = sum(path.stat().st_size for path in Path(settings.output).rglob("*") if path.is_file())
    result = {"output": settings.output, "to": settings.to, "kind": kind, "bytes": size}
    print(json.dumps(result))
    return result


def _write(predictor: Predictor, kind: str, to: str, folder: Path) -> None:
    model = predictor.model
    if to == "savedmodel":
        _needs("tensorflow", "tensorflow", "tensorflow")
        _needs("clue_jax.export.saved_model").write(model, kind, folder)
        return
    if to == "stablehlo":
        _needs("clue_jax.export.stablehlo").write(model, kind, folder)
        return
    onnx = _needs("onnx", "onnx", ".[export]")
    graph = _needs("clue_jax.export.onnx_graph").graph(params_of(model, kind), model.config, kind)
    target = str(folder / "model.onnx")
    if to == "onnx":
        onnx.save(graph, target)
        return
    quantization = _needs("onnxruntime.quantization", "onnxruntime", ".[export]")
    # It advises preprocessing, of which nothing applies here: the shapes are known.
    logging.getLogger().addFilter(lambda record: "pre-processing" not in record.getMessage())
    # Unsigned weights: signed ones overflow 16 bits in the products of a CPU without VNNI, so that
    # the same file would be right on one machine and wrong on the next.
    quantization.quantize_dynamic(
        graph, target, weight_type=quantization.QuantType.QUInt8, per_channel=True
    )


def _needs(module: str, package: str | None = None, install: str = "") -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{package or error.name} is not installed; pip install {install or error.name}"
        ) from error


def _describe(predictor: Predictor, kind: str, folder: Path) -> None:
    """What a program needs to know beside the model: vocabulary, labels, lengths."""
    model = predictor.model
    copy_vocabulary(predictor.tokenizer, folder)
    if isinstance(predictor.tokenizer, WordPieceTokenizer):
        write_tokenizer_files(predictor.tokenizer, folder, predictor.longest(kind))
    info = model.info
    values = config_values(model.params, model.config, predictor.tokenizer, info)
    write_json(folder / "config.json", values)
    write_json(
        folder / "export.json",
        {
            "kind": kind,
            "task": info.get("task"),
            "inputs": INPUTS,
            "labels": predictor.labels,
            "max_seq_length": predictor.longest(kind),
            "max_position_embeddings": model.config.max_position_embeddings,
            "normalization": info.get("normalization", "none"),
            "lower_case": predictor.tokenizer.lower_case,
        },
    )


if __name__ == "__main__":
    run_command(main)
