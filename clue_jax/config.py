"""The shape of a model, in the two JSON dialects it is published in, and the size presets.

`bert_config.json` is the original's file; `config.json` is that of the Hugging Face layout. They
differ in one word that matters: the original's "gelu" is the tanh form, which Hugging Face calls
"gelu_new", whereas the Hugging Face "gelu" is the exact (erf) form.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any

from clue_jax.errors import UserError
from clue_jax.files import read_object, write_json

# name in the file -> our name
TF_ACTIVATIONS = {
    "gelu": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_erf": "gelu_erf",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
HF_ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
_TO_TF = {"gelu_tanh": "gelu", "gelu_erf": "gelu_erf"}
_TO_HF = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}


@dataclass(frozen=True)
class ModelConfig:
    """A BERT-layout encoder. Field names are those of both JSON files.

    Args:
      vocab_size: V, rows of the word embedding.
      hidden_size: D, width of the residual stream; a multiple of `num_attention_heads`.
      num_hidden_layers: L.
      num_attention_heads: N; the head size is H = D / N.
      intermediate_size: F, width of the feed-forward layer.
      hidden_act: gelu_tanh (the original's), gelu_erf, relu, tanh or linear.
      hidden_dropout_prob: dropout of embeddings, attention and feed-forward outputs, in [0, 1).
      attention_probs_dropout_prob: dropout of the attention weights, in [0, 1).
      max_position_embeddings: the longest sequence.
      type_vocab_size: segment kinds.
      initializer_range: deviation of the truncated normal for new weights.
      layer_norm_eps: added to the variance; the original has 1e-12 built in.
      tie_word_embeddings: the masked-LM output matrix is the word embedding, as in the original.
      extra: keys of the file that mean nothing here, kept so that writing loses nothing.

    Raises:
      UserError: for an unknown activation or an impossible size.
    """

    vocab_size: int = 8021
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_tanh"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    extra: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self):
        for name in _INTEGERS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UserError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise UserError(f"{name} must be finite, got {value!r}")
        if not isinstance(self.tie_word_embeddings, bool):
            raise UserError(
                f"tie_word_embeddings must be true or false, got {self.tie_word_embeddings!r}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.initializer_range < 0 or self.layer_norm_eps <= 0:
            raise UserError(
                "initializer_range must not be negative and layer_norm_eps must be positive, got "
                f"{self.initializer_range} and {self.layer_norm_eps}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        known = sorted(set(TF_ACTIVATIONS.values()))
        if self.hidden_act not in known:
            raise UserError(f"unknown hidden_act {self.hidden_act!r}; known: {', '.join(known)}")

    @property
    def head_size(self) -> int:
        """H, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_dropout(self) -> ModelConfig:
        """A copy with both dropout rates 0."""
        return self.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    @classmethod
    def from_tf_bert(cls, path: str | os.PathLike) -> ModelConfig:
        """Reads the original's `bert_config.json`, where "gelu" is the tanh form."""
        return cls._from_json(path, TF_ACTIVATIONS)

    @classmethod
    def from_hugging_face(cls, path: str | os.PathLike) -> ModelConfig:
        """Reads a Hugging Face `config.json`, where "gelu" is the erf form."""
        return cls._from_json(path, HF_ACTIVATIONS)

    @classmethod
    def read(cls, path: str | os.PathLike) -> ModelConfig:
        """Reads either file: one with keys that only Hugging Face writes is that of the Hugging
        Face layout, any other the original's, whatever they are called."""
        hugging_face = {"model_type", "architectures", "transformers_version"}
        if hugging_face & set(read_object(path)):
            return cls.from_hugging_face(path)
        return cls.from_tf_bert(path)

    @classmethod
    def _from_json(cls, path: str | os.PathLike, activations: dict[str, str]) -> ModelConfig:
        values = read_object(path)
        missing = [name for name in _REQUIRED if name not in values]
        if missing:
            raise UserError(f"{path}: missing {', '.join(missing)}")
        act = values.get("hidden_act", "gelu")
        if not isinstance(act, str) or act not in activations:
            raise UserError(
                f"{path}: unknown hidden_act {act!r}; known: {', '.join(sorted(activations))}"
            )
        known = {name: values[name] for name in _FIELDS if name in values} | {
            "hidden_act": activations[act]
        }
        extra = {name: value for name, value in values.items() if name not in _FIELDS}
        try:
            return cls(**known, extra=extra)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def to_tf_bert(self) -> dict[str, Any]:
        """The keys of `bert_config.json`. It has no place for another LayerNorm epsilon than 1e-12.

        Unknown keys come along, but for those that only the Hugging Face dialect uses.
        """
        values = self._known() | {"hidden_act": _TO_TF.get(self.hidden_act, self.hidden_act)}
        if self.layer_norm_eps == 1e-12:
            del values["layer_norm_eps"]
        return {k: v for k, v in self.extra.items() if k not in _HF_ONLY} | values

    def to_hugging_face(self) -> dict[str, Any]:
        """The keys of a Hugging Face `config.json` of a BERT model."""
        values = self._known() | {"hidden_act": _TO_HF.get(self.hidden_act, self.hidden_act)}
        fixed = {"model_type": "bert", "pad_token_id": 0}
        return self.extra | fixed | values

    def save_tf_bert(self, path: str | os.PathLike) -> None:
        """Writes `bert_config.json`."""
        write_json(path, self.to_tf_bert())

    def _known(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _FIELDS}
        if self.tie_word_embeddings:  # the rule in both dialects, so not worth a word
            del values["tie_word_embeddings"]
        return values


_FIELDS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name != "extra")
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
_INTEGERS = (*_REQUIRED, "max_position_embeddings", "type_vocab_size")
_NUMBERS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)
_HF_ONLY = (
    "model_type", "pad_token_id", "architectures", "transformers_version", "torch_dtype", "dtype",
    "id2label", "label2id", "num_labels",
)  # fmt: skip

# The sizes that CLUE published, all with the 8,021-token CLUEVocab (base: CLUECorpus2020's own).
PRESETS = {
    "tiny": ModelConfig(hidden_size=312, num_hidden_layers=4, intermediate_size=1248),
    "tiny3l312": ModelConfig(hidden_size=312, num_hidden_layers=3, intermediate_size=1248),
    "tiny3l768": ModelConfig(hidden_size=768, num_hidden_layers=3, intermediate_size=3072),
    "base": ModelConfig(),
    "large": ModelConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}
