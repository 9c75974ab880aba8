"""Says what a checkpoint or model directory is, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from clue_jax import zoo
from clue_jax.convert import source
from clue_jax.convert.merge import is_floating
from clue_jax.errors import UserError, run_command
from tools.convert import summary


@dataclass(frozen=True)
class Settings:
    """Lists the tensors of a model, its heads, and whether weights, config and vocabulary agree.

    Reads whatever tools.convert reads, also what that would refuse for its tensors or sizes, and
    then says why.
    """

    path: tyro.conf.Positional[str]
    """Folder, checkpoint prefix or file, or zip."""
    json: bool = False
    """One line of JSON only, tensors included."""
    from_: Annotated[Literal["tf", "model", "checkpoint"] | None, tyro.conf.arg(name="from")] = None
    """What PATH is (default: found out)."""
    config: str | None = None
    """Config file, if it does not stand beside the weights."""
    vocab: str | None = None
    """vocab.txt, likewise."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    result = inspect(settings)
    tensors = result["tensors"]
    if settings.json:
        print(json.dumps(result, ensure_ascii=False))
        return result
    width = max((len(name) for name in tensors), default=0)
    for name, tensor in tensors.items():
        shape = " x ".join(f"{size:,}" for size in tensor["shape"]) or "scalar"
        norm = "" if tensor["norm"] is None else f"  norm {tensor['norm']:.6g}"
        print(f"{name:{width}}  {tensor['dtype']:8}  {shape}{norm}")
    print(json.dumps(result | {"tensors": len(tensors)}, ensure_ascii=False))
    return result


def inspect(settings: Settings) -> dict[str, Any]:
    """What a path holds.

    Returns:
      "form" ("tf" or "hf": whose names), "tensors" (name -> shape, dtype, Euclidean norm), the
      three sizes of the vocabulary, "agrees" and, if not, "differences"; if it does, also what
      `tools.convert` says of it.
    """
    fault = None
    try:
        with source.open_source(
            settings.path, settings.from_, settings.config, settings.vocab, True
        ) as opened:
            described = _described(opened.tensors)
        place, form, config, tokenizer = (
            opened.path, opened.form, opened.config, opened.tokenizer,
        )  # fmt: skip
    except UserError as error:
        fault = str(error)
        try:  # without a config, say, the tensors can still be listed
            place, form, tensors = source.tensors_alone(settings.path, settings.from_)
        except UserError:
            raise error from None
        described, config, tokenizer = _described(tensors), None, None
    tensors, rows = described
    result = {
        "path": settings.path,
        "source": place,
        "form": form,
        "tensors": tensors,
        "numbers": int(sum(np.prod(t["shape"], dtype=np.int64) for t in tensors.values())),
        "embedding_rows": rows,
        "config_vocab_size": config.vocab_size if config else None,
        "vocabulary_lines": tokenizer.vocab_size if tokenizer else None,
    }
    if fault:
        return result | {"agrees": False, "differences": fault}
    try:
        loaded = zoo.read(
            settings.path, form=settings.from_, config=settings.config, vocab=settings.vocab
        )
    except UserError as error:
        return result | {"agrees": False, "differences": str(error)}
    more = {k: v for k, v in summary(loaded).items() if k not in ("tensors", "source")}
    return (
        result | {"agrees": True, "gelu": loaded.config.hidden_act} | more | {"notes": loaded.notes}
    )


def _described(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int | None]:
    """Shape, type and norm of each, and the rows of the word embedding."""
    words = next(
        (array for name, array in tensors.items()
         if "word_embeddings" in name and not name.endswith(("adam_m", "adam_v"))), None
    )  # fmt: skip
    return {
        name: {"shape": list(array.shape), "dtype": str(array.dtype), "norm": _norm(array)}
        for name, array in sorted(tensors.items())
    }, None if words is None else words.shape[0]


def _norm(array: np.ndarray) -> float | None:
    if not is_floating(array.dtype):
        return None
    norm = float(np.sqrt(np.square(np.asarray(array, np.float64)).sum()))
    return norm if np.isfinite(norm) else None  # JSON has no NaN


if __name__ == "__main__":
    run_command(main)
