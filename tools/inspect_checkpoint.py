"""Says what a checkpoint or model directory is, and what is in it."""

from __future__ import annotations

import json
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
    with source.open_source(
        settings.path, settings.from_, settings.config, settings.vocab, True
    ) as opened:
        tensors = {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "norm": _norm(array),
            }
            for name, array in sorted(opened.tensors.items())
        }
        words = next((a for n, a in opened.tensors.items() if "word_embeddings" in n
                      and not n.endswith(("adam_m", "adam_v"))), None)  # fmt: skip
        result = {
            "path": settings.path,
            "source": opened.path,
            "form": opened.form,
            "tensors": tensors,
            "numbers": int(sum(np.prod(t["shape"], dtype=np.int64) for t in tensors.values())),
            "embedding_rows": None if words is None else words.shape[0],
            "config_vocab_size": opened.config.vocab_size,
            "vocabulary_lines": opened.tokenizer.vocab_size if opened.tokenizer else None,
        }
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


def _norm(array: np.ndarray) -> float | None:
    if not is_floating(array.dtype):
        return None
    return float(np.sqrt(np.square(np.asarray(array, np.float64)).sum()))


if __name__ == "__main__":
    run_command(main)
