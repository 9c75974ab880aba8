"""The README.md of a model directory: what a person, and the Hugging Face hub, want to know."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert.merge import flatten
from clue_jax.convert.names import HEADS, head_of

_HEAD_USES = {
    "pooler": "sentence vector of the first token",
    "masked_lm": "fill-mask",
    "next_sentence": "next-sentence prediction",
    "classifier": "classification",
    "span": "answers in a passage",
}
_PIPELINES = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertModel": "feature-extraction",
}
_STATUS = {
    "trained": "trained",
    "fresh": "**fresh**: initial values, never trained",
    "missing": "missing: not in this directory",
}


def model_card(
    params: Mapping[str, Any], config: ModelConfig, info: Mapping[str, Any], architecture: str
) -> str:
    """Markdown with the hub's YAML header.

    Args:
      params: the parameters, to be counted.
      config: the sizes.
      info: see `clue_jax.convert.loaded.describe`.
      architecture: the transformers class that reads all heads.
    """
    counts = parameter_counts(params)
    rows = [
        ("layers L", f"{config.num_hidden_layers}"),
        ("hidden size D", f"{config.hidden_size:,}"),
        ("attention heads N", f"{config.num_attention_heads}"),
        ("feed-forward F", f"{config.intermediate_size:,}"),
        ("vocabulary V", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_position_embeddings}"),
        ("activation", config.hidden_act),
        ("parameters, encoder and pooler", f"{counts['encoder'] + counts.get('pooler', 0):,}"),
        ("parameters in all", f"{sum(counts.values()):,}"),
    ]
    lines = [
        "---",
        "language: zh",
        f"license: {_yaml(info['license'])}",
        "library_name: transformers",
        f"pipeline_tag: {_PIPELINES.get(architecture, 'feature-extraction')}",
        "tags:",
        "- bert",
        "- clue",
        "- jax",
        "---",
        "",
        "# Chinese BERT-layout model",
        "",
        f"Source of the weights: {_public(info['source'])}",
        "",
        f"Licence of the weights: {info['license']}",
        "",
        "| architecture | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "| head | for | state |",
        "|---|---|---|",
        *(f"| {head} | {_HEAD_USES[head]} | {_STATUS[info['heads'][head]]} |" for head in HEADS),
        "",
    ]
    if info["labels"]:
        lines += ["Labels, in order: " + ", ".join(f"`{label}`" for label in info["labels"]), ""]
    lines += [
        f"Text is {'' if info['lower_case'] else 'not '}lower-cased; normalisation: "
        f"{info['normalization']}. The layout is BERT's: load it with `{architecture}` and "
        "`AutoTokenizer` of transformers, or with `clue_jax.load`.",
        "",
    ]
    return "\n".join(lines)


def _yaml(text: str) -> str:
    """A text as YAML has it, quoted where a sign could mean something."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text, ensure_ascii=False)


def _public(source: str) -> str:
    """Words about a source, without the folders of the machine it was on."""
    return re.sub(r"(?<!\S)(?:[A-Za-z]:)?[/\\](?:[^/\\\s]+[/\\])+", "", source)


def parameter_counts(params: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of parameters: "encoder", and each head that is there."""
    counts = {"encoder": 0}
    for path, array in flatten(params).items():
        part = head_of(path) or "encoder"
        counts[part] = counts.get(part, 0) + math.prod(np.shape(array))
    return counts
