"""What is exported: a function of three inputs, as transformers names them, and named outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from clue_jax.errors import UserError
from clue_jax.predictor import model_function
from clue_jax.pretrained import Model

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# (params, input_ids [B, T], attention_mask [B, T], token_type_ids [B, T]) -> name -> output
Exported = Callable[..., dict[str, jax.Array]]


def exported(model: Model, kind: str) -> Exported:
    """The function of a kind of prediction.

    Args:
      model: its sizes and dtype.
      kind: see `clue_jax.predictor.kinds_of`; rows of choices are scored one by one.

    Returns:
      A function that gives float32 outputs, under the names that optimum gives them: "logits"
      [B, C], for entities [B, T, C], for masks [B, T, V]; "start_logits" and "end_logits" [B, T];
      "sentence_embedding" [B, D], the mean over the tokens.

    Raises:
      UserError: for similarity, which is no function of single texts.
    """
    if kind == "similarity":
        raise UserError("similarity compares vectors; export --task embedding")
    function = model_function(model, kind)

    def run(params: Any, ids: jax.Array, mask: jax.Array, segments: jax.Array) -> Any:
        masks = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        output = function(params, ids, mask, segments, masks)
        if kind == "spans":
            return {"start_logits": output[:, 0], "end_logits": output[:, 1]}
        return {"sentence_embedding" if kind == "embedding" else "logits": output}

    return run


def params_of(model: Model, kind: str) -> dict[str, Any]:
    """The parameters that the function of a kind needs."""
    heads = {"spans": "span", "fill-mask": "masked_lm", "embedding": ""}
    head = heads.get(kind, "classifier")
    bert = dict(model.params["bert"])
    if kind in ("spans", "entities", "fill-mask", "embedding"):
        bert.pop("pooler", None)
    return {"bert": bert, **({head: model.params[head]} if head else {})}


@contextlib.contextmanager
def without_paths() -> Iterator[None]:
    """Programs traced in the block name the files of their sources, but not where these lie."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, ".*/")
    try:
        yield
    finally:
        jax.config.update(name, before)
