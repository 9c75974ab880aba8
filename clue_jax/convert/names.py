"""THE table: every parameter under its three names.

Read in both directions by the readers and writers of checkpoints. `{i}` is the layer number.

Layouts, against our [in, out] kernels:
  same      equal in both
  kernel    [in, out] in TF-BERT, [out, in] in the Hugging Face layout
  head      [out, in] in both (the original multiplies its output layers transposed)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from clue_jax.config import ModelConfig


class Row(NamedTuple):
    """One parameter: our path, its TF-BERT name ("" for none), Hugging Face name, and layout."""

    ours: str
    tf: str
    hf: str
    layout: str


_LAYER = "bert/encoder/layer_{i}"
_HF_LAYER = "bert.encoder.layer.{i}"


def _dense(ours: str, tf: str, hf: str) -> tuple[Row, Row]:
    return (
        Row(f"{ours}/kernel", f"{tf}/kernel", f"{hf}.weight", "kernel"),
        Row(f"{ours}/bias", f"{tf}/bias", f"{hf}.bias", "same"),
    )


def _norm(ours: str, tf: str, hf: str) -> tuple[Row, Row]:
    return (
        Row(f"{ours}/layer_norm/scale", f"{tf}/LayerNorm/gamma", f"{hf}.LayerNorm.weight", "same"),
        Row(f"{ours}/layer_norm/bias", f"{tf}/LayerNorm/beta", f"{hf}.LayerNorm.bias", "same"),
    )


def _head(ours: str, tf_prefix: str, hf: str) -> tuple[Row, Row]:
    return (
        Row(f"{ours}/kernel", f"{tf_prefix}output_weights", f"{hf}.weight", "head"),
        Row(f"{ours}/bias", f"{tf_prefix}output_bias", f"{hf}.bias", "same"),
    )


def _embedding(kind: str) -> Row:
    return Row(
        f"bert/embeddings/{kind}_embeddings",
        f"bert/embeddings/{kind}_embeddings",
        f"bert.embeddings.{kind}_embeddings.weight",
        "same",
    )


TABLE: tuple[Row, ...] = (
    _embedding("word"),
    _embedding("position"),
    _embedding("token_type"),
    *_norm("bert/embeddings", "bert/embeddings", "bert.embeddings"),
    *_dense(
        f"{_LAYER}/attention/query",
        f"{_LAYER}/attention/self/query",
        f"{_HF_LAYER}.attention.self.query",
    ),
    *_dense(
        f"{_LAYER}/attention/key",
        f"{_LAYER}/attention/self/key",
        f"{_HF_LAYER}.attention.self.key",
    ),
    *_dense(
        f"{_LAYER}/attention/value",
        f"{_LAYER}/attention/self/value",
        f"{_HF_LAYER}.attention.self.value",
    ),
    *_dense(
        f"{_LAYER}/attention/output",
        f"{_LAYER}/attention/output/dense",
        f"{_HF_LAYER}.attention.output.dense",
    ),
    *_norm(f"{_LAYER}/attention", f"{_LAYER}/attention/output", f"{_HF_LAYER}.attention.output"),
    *_dense(
        f"{_LAYER}/feed_forward/intermediate",
        f"{_LAYER}/intermediate/dense",
        f"{_HF_LAYER}.intermediate.dense",
    ),
    *_dense(f"{_LAYER}/feed_forward/output", f"{_LAYER}/output/dense", f"{_HF_LAYER}.output.dense"),
    *_norm(f"{_LAYER}/feed_forward", f"{_LAYER}/output", f"{_HF_LAYER}.output"),
    *_dense("bert/pooler", "bert/pooler/dense", "bert.pooler.dense"),
    *_dense(
        "masked_lm/transform",
        "cls/predictions/transform/dense",
        "cls.predictions.transform.dense",
    ),
    *_norm("masked_lm", "cls/predictions/transform", "cls.predictions.transform"),
    Row("masked_lm/bias", "cls/predictions/output_bias", "cls.predictions.bias", "same"),
    Row("masked_lm/decoder", "", "cls.predictions.decoder.weight", "same"),
    *_head("next_sentence", "cls/seq_relationship/", "cls.seq_relationship"),
    *_head("classifier", "", "classifier"),
    *_head("span", "cls/squad/", "qa_outputs"),
)

# What a source may lack, each whole: name -> where its parameters stand. transformers' own
# BertForMaskedLM saves no pooler, so the pooler counts as one.
HEADS = {
    "pooler": "bert/pooler/",
    "masked_lm": "masked_lm/",
    "next_sentence": "next_sentence/",
    "classifier": "classifier/",
    "span": "span/",
}
PRETRAINING_HEADS = ("pooler", "masked_lm", "next_sentence")


def rows(config: ModelConfig) -> list[Row]:
    """The table with a row for every layer of the model."""
    expanded = []
    for row in TABLE:
        if row.ours == "masked_lm/decoder" and config.tie_word_embeddings:
            continue
        if "{i}" not in row.ours:
            expanded.append(row)
            continue
        for i in range(config.num_hidden_layers):
            expanded.append(Row(*(field.replace("{i}", str(i)) for field in row)))
    return expanded


def head_of(path: str) -> str | None:
    """The head a parameter belongs to, or None for the encoder."""
    return next((head for head, prefix in HEADS.items() if path.startswith(prefix)), None)


def shapes(
    config: ModelConfig, heads: Collection[str] = PRETRAINING_HEADS, classes: int = 2
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the encoder and the given heads, by our path.

    Args:
      config: the sizes.
      heads: names out of `HEADS`.
      classes: C, of the classifier.
    """
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    special = {
        "bert/embeddings/word_embeddings": (v, d),
        "bert/embeddings/position_embeddings": (config.max_position_embeddings, d),
        "bert/embeddings/token_type_embeddings": (config.type_vocab_size, d),
        "masked_lm/bias": (v,),
        "masked_lm/decoder": (v, d),
        "next_sentence/kernel": (d, 2),
        "next_sentence/bias": (2,),
        "classifier/kernel": (d, classes),
        "classifier/bias": (classes,),
        "span/kernel": (d, 2),
        "span/bias": (2,),
    }

    def shape(path: str) -> tuple[int, ...]:
        if path in special:
            return special[path]
        if path.endswith("intermediate/kernel"):
            return d, f
        if path.endswith("intermediate/bias"):
            return (f,)
        if path.endswith("feed_forward/output/kernel"):
            return f, d
        return (d, d) if path.endswith("kernel") else (d,)

    wanted = {None, *heads}
    return {row.ours: shape(row.ours) for row in rows(config) if head_of(row.ours) in wanted}


def convert_layout(array: np.ndarray, layout: str, form: str) -> np.ndarray:
    """Our array in the other form's layout, or the reverse: each layout is its own inverse.

    Args:
      array: a parameter.
      layout: the table row's.
      form: "tf" or "hf".
    """
    if layout == "head" or (layout == "kernel" and form == "hf"):
        return array.T
    return array
