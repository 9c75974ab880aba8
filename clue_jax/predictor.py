"""Text in, predictions out, from a model."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clue_jax.errors import UserError
from clue_jax.features.entities import OUTSIDE, split_label
from clue_jax.model import Bert, ClassificationModel, PretrainingModel, SpanModel, TagModel
from clue_jax.prediction.inputs import check
from clue_jax.prediction.kinds import KINDS, Item, Outputs, Reader
from clue_jax.prediction.programs import Function, Programs
from clue_jax.pretrained import Model, load
from clue_jax.text.normalize import normalizer

Pooling = Literal["cls", "mean", "last2"]
_OWN_LENGTH = ("fill-mask", "embedding", "similarity")  # what no fine-tuning has cut short


@functools.cache
def _warn(message: str) -> None:
    """Says something once."""
    logging.getLogger(__name__).warning(message)


class Filling(NamedTuple):
    """A token for a masked place, and its probability."""

    token: str
    probability: float


class Predictor:
    """A model ready to answer.

    Programs are compiled for a few lengths and batch sizes, when they are first needed or all at
    once by `compile`. A text gets the same answer alone and in any batch.

    Args:
      model: a `Model`, or what `clue_jax.load` takes.

    Attributes:
      kinds: of prediction that the model can make, the one that it was trained for first; see
        `clue_jax.prediction`.

    Raises:
      UserError: if it cannot be read, or has no vocabulary.
    """

    def __init__(self, model: Model | str | os.PathLike):
        self.model = model if isinstance(model, Model) else load(model)
        if self.model.tokenizer is None:
            raise UserError(f"{self.model.path}: has no vocabulary; load it with vocab=FILE")
        self.config, self.tokenizer = self.model.config, self.model.tokenizer
        self.kinds = kinds_of(self.model)
        self.labels = _labels(self.model)
        self._normalize = normalizer(self.model.info.get("normalization", "none"))
        self._params = _in_dtype(self.model.params, self.model.dtype)
        self._programs: dict[tuple[Any, ...], Programs] = {}

    def predict(
        self, inputs: Sequence[str | Mapping[str, Any]], kind: str | None = None, top_k: int = 5
    ) -> list[dict[str, Any]]:
        """Answers to some inputs, in order.

        Args:
          inputs: texts, or mappings with "text" and what the kind takes beside it: "text_pair" for
            a pair, "question" for an answer in a text, "choices" (with a "question", or blanks such
            as #idiom000001# in the text).
          kind: one of `kinds`; None for the first.
          top_k: how many labels, answers, choices or tokens are listed.

        Returns:
          By kind: "label" (with its "name", where it is a code) and "probability", and all in
          "labels"; "chosen" and "labels" of a classifier with several; "score"; "answer", "start",
          "end" and "answers"; "choice", "answer" and "choices" (for several blanks, in "blanks");
          "entities"; "masks"; "vector"; "similarities", cosines with every input.
          What had to be cut has "truncated".

        Raises:
          UserError: for a kind that the model cannot make, or an input that is not as it should be,
            with its number.
        """
        kind = self.kinds[0] if kind is None else kind
        items = self.prepare(inputs, kind, top_k)
        return self.answers(items, self.compute(items, kind), kind, top_k)

    def prepare(
        self, inputs: Sequence[str | Mapping[str, Any]], kind: str, top_k: int = 5
    ) -> list[Item]:
        """Checks and tokenizes inputs, the first step of `predict`."""
        if kind not in self.kinds:
            raise UserError(f"{self.model.path}: makes no {kind}; it makes {', '.join(self.kinds)}")
        most = self.config.vocab_size
        if type(top_k) is not int or not 1 <= top_k <= most:
            raise UserError(f"top_k {top_k} must lie between 1 and {most}")
        if isinstance(inputs, str | Mapping):
            raise UserError("inputs must be a list, got a single one")
        if kind == "entities":
            _check_tags(self.labels, self.model.path)
        if kind == "fill-mask" and self.model.info.get("heads", {}).get("masked_lm") == "fresh":
            _warn(f"{self.model.path}: its masked-LM head was never trained; its answers are noise")
        checked = []
        for number, given in enumerate(inputs, 1):
            try:
                checked.append(check(kind, given))
            except UserError as error:
                raise UserError(f"input {number}: {error}") from error
        reader, prepare = self._reader(self.longest(kind)), KINDS[kind].prepare
        try:
            return prepare(reader, checked)
        except UserError:
            for number, given in enumerate(checked, 1):  # which of them it was
                try:
                    prepare(reader, [given])
                except UserError as error:
                    raise UserError(f"input {number}: {error}") from error
            raise

    def compute(self, items: Sequence[Item], kind: str) -> list[Outputs]:
        """What the model gives for the rows of each item, the second step of `predict`."""
        outputs = iter(self._program(kind)([row for item in items for row in item.rows]))
        return [[next(outputs) for _ in item.rows] for item in items]

    def answers(
        self, items: Sequence[Item], outputs: Sequence[Outputs], kind: str, top_k: int = 5
    ) -> list[dict[str, Any]]:
        """Answers out of what the model gave, the last step of `predict`."""
        if kind == "similarity" and items:
            vectors = np.array([output[0] for output in outputs], np.float64)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            found = [{"similarities": row} for row in (vectors @ vectors.T).tolist()]
        else:
            reader, answer = self._reader(self.longest(kind)), KINDS[kind].answer
            found = [
                answer(reader, item.source, output, top_k)
                for item, output in zip(items, outputs, strict=True)
            ]
        return [
            answer | {"truncated": True} if item.truncated else answer
            for item, answer in zip(items, found, strict=True)
        ]

    def compile(self, kind: str | None = None) -> Iterator[tuple[int, int]]:
        """Compiles the programs of a kind (default: the first); yields B and T of each."""
        return self._program(self.kinds[0] if kind is None else kind).compile()

    def longest(self, kind: str) -> int:
        """T at most, special tokens included: as fine-tuned, or what the model takes."""
        most = self.config.max_position_embeddings
        trained = None if kind in _OWN_LENGTH else self.model.info.get("max_seq_length")
        return min(most, trained or most)

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Filling]]:
        """The likeliest tokens for every `[MASK]` written in a text.

        Args:
          text: with at least one `[MASK]`.
          top_k: how many for each.

        Returns:
          A list for each mask in order, the likeliest token first.

        Raises:
          UserError: for a text without a mask, one that is too long, or a model without the head.
        """
        (answer,) = self.predict([text], "fill-mask", top_k)
        return [[Filling(**found) for found in place] for place in answer["masks"]]

    def embed(
        self,
        texts: Sequence[str],
        pooling: Pooling = "mean",
        layers: Sequence[int] = (-1,),
        max_length: int | None = None,
    ) -> np.ndarray:
        """Sentence vectors.

        Args:
          texts: single texts; longer ones are cut.
          pooling: over the tokens: "cls" takes the first, "mean" averages all, special tokens
            included; "last2" is the mean over the average of the last two layers.
          layers: which are averaged; 0 is the embeddings, -1 the last. "last2" has its own.
          max_length: T at most (default: what the model takes).

        Returns:
          float32 [texts, D], in order.

        Raises:
          UserError: for an unknown pooling, or a layer that the model lacks.
        """
        if isinstance(texts, str):
            raise UserError("texts must be a list of texts, got one text")
        layers = (layers,) if isinstance(layers, int) else layers
        layers = (-2, -1) if pooling == "last2" else tuple(layers)
        count = self.config.num_hidden_layers + 1
        if pooling not in ("cls", "mean", "last2"):
            raise UserError(f"unknown pooling {pooling!r}; known: cls, mean, last2")
        wrong = [layer for layer in layers if not -count <= layer < count]
        if wrong or not layers:
            raise UserError(f"layers {list(layers)}: the model has {-count}..{count - 1}")
        longest = self.config.max_position_embeddings
        if max_length is not None:
            longest = min(longest, max_length)
        if longest < 2:
            raise UserError(f"max_length {max_length} must be at least 2")
        inputs = [check("embedding", text) for text in texts]
        items = KINDS["embedding"].prepare(self._reader(longest), inputs)
        outputs = self._program("embedding", pooling == "cls", layers)([i.rows[0] for i in items])
        return np.array(outputs, np.float32).reshape(len(items), self.config.hidden_size)

    def _reader(self, longest: int) -> Reader:
        # DRCD is the one task whose passages are cut at two more signs.
        more_signs = self.model.info.get("task") == "drcd"
        names = self.model.info.get("label_names", {})
        return Reader(self.tokenizer, self._normalize, self.labels, names, longest, more_signs)

    def _program(
        self, kind: str, first_only: bool = False, layers: tuple[int, ...] = (-1,)
    ) -> Programs:
        kind = "embedding" if kind == "similarity" else kind
        key = (kind, first_only, layers)
        if key not in self._programs:
            function = model_function(self.model, kind, first_only, layers)
            self._programs[key] = Programs(
                function, self._params, self.longest(kind), self.tokenizer.pad_id
            )
        return self._programs[key]


def _in_dtype(params: Any, dtype: jnp.dtype) -> Any:
    """Kernels in the type that they are multiplied in, so that no call has to convert them."""
    if dtype == jnp.float32:
        return params

    def convert(path: Any, array: jax.Array) -> jax.Array:
        return array.astype(dtype) if path[-1].key == "kernel" else array

    return jax.tree_util.tree_map_with_path(convert, params)


def kinds_of(model: Model) -> tuple[str, ...]:
    """What a model can predict, by its heads; what it was fine-tuned for comes first."""
    kinds = []
    if "classifier" in model.params:
        kinds.append(_classifier_kind(model))
    if "span" in model.params:
        kinds.append("spans")
    if "masked_lm" in model.params:
        kinds.append("fill-mask")
    return (*kinds, "embedding", "similarity")


def _classifier_kind(model: Model) -> str:
    extra = model.config.extra
    named = model.info.get("architecture") or (extra.get("architectures") or [""])[0]
    # A classifier without a pooler is one of tokens; see `choose_architecture`.
    if named.endswith("ForTokenClassification") or "pooler" not in model.params["bert"]:
        return "entities"
    if named.endswith("ForMultipleChoice"):
        return "choice"
    problem = extra.get("problem_type")
    if problem == "regression" or (problem is None and _classes(model) == 1):
        return "score"
    return "multi-label" if problem == "multi_label_classification" else "classification"


def _check_tags(labels: tuple[str, ...], place: str) -> None:
    wrong = [label for label in labels if split_label(label)[0] not in ("B", "I", "O")]
    if wrong or OUTSIDE not in labels:
        raise UserError(f"{place}: its tags are not BIO: {', '.join(labels)}")


def _classes(model: Model) -> int:
    return int(model.params["classifier"]["bias"].shape[0])


def _labels(model: Model) -> tuple[str, ...]:
    if "classifier" not in model.params:
        return ()
    known = tuple(model.info.get("labels") or ())
    return known or tuple(f"LABEL_{i}" for i in range(_classes(model)))


def model_function(
    model: Model, kind: str, first_only: bool = False, layers: tuple[int, ...] = (-1,)
) -> Function:
    """The pure function behind a kind of prediction, see `clue_jax.prediction.programs.Function`.

    Args:
      model: gives sizes and dtype; its parameters are an argument of the function.
      kind: see `Predictor`.
      first_only, layers: of vectors, see `Predictor.embed`.

    Returns:
      A function that gives float32: [B, C] for labels, [B, 1] for choices and scores, [B, 2, T] for
      spans, [B, T, C] for entities, [B, M, V] for masks, [B, D] for vectors.
    """
    config, dtype = model.config.without_dropout(), model.dtype

    if kind == "fill-mask":
        filler = PretrainingModel(config, dtype)

        def fill(params: Any, ids: Any, mask: Any, segments: Any, masks: Any) -> jax.Array:
            given = {name: params[name] for name in ("bert", "masked_lm")}
            method = PretrainingModel.masked_lm_only
            return filler.apply({"params": given}, ids, mask, segments, masks, method=method)

        return fill

    if kind == "embedding":
        bert = Bert(config, dtype, with_pooler=False)

        def pool(params: Any, ids: Any, mask: Any, segments: Any, masks: Any) -> jax.Array:
            output = bert.apply({"params": params["bert"]}, ids, mask, segments)
            some = [output.all_layers[i].astype(jnp.float32) for i in layers]
            hidden = sum(some[1:], some[0]) / len(some)
            if first_only:
                return hidden[:, 0]
            weights = mask[..., None].astype(jnp.float32)
            return (hidden * weights).sum(axis=1) / weights.sum(axis=1)

        return pool

    if kind == "spans":
        head, module = "span", SpanModel(config, dtype)
    elif kind == "entities":
        head, module = "classifier", TagModel(config, _classes(model), dtype)
    else:
        head, module = "classifier", ClassificationModel(config, _classes(model), dtype)

    def apply(params: Any, ids: Any, mask: Any, segments: Any, masks: Any) -> jax.Array:
        given = {name: params[name] for name in ("bert", head)}
        return module.apply({"params": given}, ids, mask, segments)

    return apply
