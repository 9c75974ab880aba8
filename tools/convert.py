"""Converts a model between TF-BERT checkpoints, model directories and training checkpoints."""

from __future__ import annotations

import functools
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import tyro

from clue_jax import zoo
from clue_jax.convert.compare import compare
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.merge import flatten
from clue_jax.convert.names import HEADS
from clue_jax.convert.target import check_target, write
from clue_jax.errors import UserError, run_command

_TYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclass(frozen=True)
class Settings:
    """Converts a model without losing anything, and says what was in it.

    In: a TF-BERT checkpoint (folder, prefix or file; V1 needs tensorflow), a model directory
    (safetensors or pytorch_model.bin, sharded or not), a training run, or a zip of one of them.
    """

    src: tyro.conf.Positional[str]
    """Folder, checkpoint prefix or file, or zip."""
    dst: tyro.conf.Positional[str]
    """Folder to write; it appears complete or not at all."""
    to: Literal["tf", "model"]
    """tf: bert_model.ckpt.* as the original has it. model: a directory that transformers loads."""
    from_: Annotated[Literal["tf", "model", "checkpoint"] | None, tyro.conf.arg(name="from")] = None
    """What SRC is (default: found out)."""
    config: str | None = None
    """bert_config.json or config.json, if it does not stand beside the weights."""
    vocab: str | None = None
    """vocab.txt, likewise. Without one the weights are converted and the lack is said."""
    crop_vocab: bool = False
    """Cut embedding rows beyond the vocabulary's lines. No output changes: no text reaches them."""
    pad_vocab: int | None = None
    """Pad rows and vocabulary to this many entries; the new ones are never predicted."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the written numbers (default: as they are)."""
    gelu: Literal["tanh", "erf"] | None = None
    """Which form the model was trained with, if its config says otherwise."""
    cased: bool = False
    """The vocabulary has capitals: do not lower-case."""
    drop_heads: tuple[str, ...] = ()
    """Heads to leave out: pooler, masked_lm, next_sentence, classifier, span."""
    license: str | None = None
    """Licence of the weights for the model card, as the hub names it, such as apache-2.0."""
    check: bool = False
    """Read both sides again and print the largest differences of tensors and outputs."""
    overwrite: bool = False
    """Replace DST if it holds a converted model."""
    push_to_hub: str | None = None
    """Upload the written directory to this repository, such as someone/my-model (HF_TOKEN)."""
    private: bool = False
    """The repository, if --push-to-hub makes it, is seen by you alone."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    started = time.monotonic()
    if settings.crop_vocab and settings.pad_vocab is not None:
        raise UserError("--crop-vocab and --pad-vocab exclude each other")
    if settings.push_to_hub and settings.to != "model":
        raise UserError("--push-to-hub needs --to model")
    unknown = sorted(set(settings.drop_heads) - set(HEADS))
    if unknown:
        raise UserError(f"--drop-heads {' '.join(unknown)}: known are {', '.join(HEADS)}")
    check_target(settings.dst, settings.src, settings.overwrite)
    read = functools.partial(
        zoo.read,
        settings.src,
        form=settings.from_,
        config=settings.config,
        vocab=settings.vocab,
        gelu=settings.gelu,
        lower_case=not settings.cased,
        drop_heads=settings.drop_heads,
    )
    before = read(crop=settings.crop_vocab, pad=settings.pad_vocab)
    kinds = Counter(name.split("/")[-1] for name in before.dropped)
    dropped = [f"dropped {n} x {kind}" for kind, n in kinds.items()]
    for note in [*before.notes, *dropped]:
        print(f"note: {note}", file=sys.stderr)
    loaded = before
    if settings.license:
        loaded = replace(loaded, info={**loaded.info, "license": settings.license})
    write(loaded, settings.dst, settings.to, _TYPES.get(settings.dtype))
    result = (
        summary(loaded)
        | ({"dtype": settings.dtype} if settings.dtype else {})
        | {
            "to": settings.to,
            "output": settings.dst,
            "notes": loaded.notes,
            "seconds": round(time.monotonic() - started, 2),
        }
    )
    print(json.dumps(result, ensure_ascii=False))
    checked = {}
    if settings.check:
        if settings.crop_vocab or settings.pad_vocab is not None:
            before = read(pad=before.rows)  # with the rows it came with
        form: Literal["tf", "model"] = settings.to
        checked = compare(before, zoo.read(settings.dst, form=form))
    if settings.push_to_hub:
        from clue_jax.convert.hub import push

        address = push(settings.dst, settings.push_to_hub, settings.private)
        print(json.dumps({"uploaded": address}))
        result["uploaded"] = address
    if settings.check:
        print(json.dumps({"check": settings.dst} | checked))
    return result | checked


def summary(loaded: LoadedModel) -> dict[str, Any]:
    """What a model is, in the words of the command lines."""
    flat = flatten(loaded.params)
    return {
        "source": loaded.path,
        "tensors": len(flat),
        "parameters": sum(math.prod(np.shape(array)) for array in flat.values()),
        "dtype": ", ".join(sorted({str(array.dtype) for array in flat.values()})),
        "vocabulary": loaded.tokenizer.vocab_size if loaded.tokenizer else None,
        "heads": loaded.info["heads"],
        "dropped": loaded.dropped,
    }


if __name__ == "__main__":
    run_command(main)
