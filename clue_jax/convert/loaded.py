"""A model as it was read, from whatever form, and what is known about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert import vocabulary
from clue_jax.convert.merge import flatten, from_named_tensors, nest
from clue_jax.convert.names import HEADS, head_of, rows
from clue_jax.errors import UserError
from clue_jax.files import read_object
from clue_jax.text import Tokenizer, WordPieceTokenizer

FORMAT = 1
INFO_FILE = "clue_jax.json"


@dataclass(frozen=True)
class Source:
    """Tensors under the names of their form, before they are matched with a model.

    Attributes:
      path: the weights, for messages.
      form: "tf" or "hf".
      tensors: name -> array.
      config: as its file says.
      config_file: where it stands, for messages.
      tokenizer: None where no vocabulary was found.
      info: what `clue_jax.json` says; without one, what can be inferred.
      notes: what a user should know of how it was read.
    """

    path: str
    form: str
    tensors: Mapping[str, np.ndarray]
    config: ModelConfig
    config_file: str
    tokenizer: Tokenizer | None
    info: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedModel:
    """A model read from a file.

    Attributes:
      config: the sizes.
      params: nested dict of arrays of the type they are stored in; a missing head is absent.
      tokenizer: of its vocabulary, or None.
      info: as `clue_jax.json` has it: task, labels, heads (trained, fresh or missing), and so on.
      path: where it came from.
      dropped: names of tensors that are no parameters (optimizer slots, step).
      notes: what a user should know of how it was read.
      rows: of the word embedding in the file, before it was cut or padded; 0 if not from a file.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    info: dict[str, Any]
    path: str
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0


def assemble(
    source: Source, *, crop: bool = False, pad: int | None = None, drop_heads: Collection[str] = ()
) -> LoadedModel:
    """Matches tensors with the parameters of the config, and makes the vocabulary agree.

    Args:
      source: see there.
      crop: cut the vocabulary's dead rows off the weights.
      pad: bring weights and vocabulary to so many entries.
      drop_heads: heads to leave out.

    Raises:
      UserError: with all differences of tensors, config and vocabulary.
    """
    config, tokenizer = source.config, source.tokenizer
    if config.num_hidden_layers > len(source.tensors) > 0:
        raise UserError(
            f"{source.path}: {source.config_file} says {config.num_hidden_layers} layers, the "
            f"file holds {len(source.tensors)} tensors"
        )
    embedding = getattr(rows(config)[0], source.form)
    given = source.tensors.get(embedding)
    entries, faults = config.vocab_size, []
    if given is not None and given.ndim == 2:
        config = config.replace(vocab_size=max(1, given.shape[0]))
        lines = tokenizer.vocab_size if tokenizer else None
        entries, faults = vocabulary.agreement(
            given.shape[0], source.config.vocab_size, lines, source.config_file, crop, pad
        )
    params, dropped = from_named_tensors(source.tensors, config, source.form, source.path, faults)
    flat = flatten(params)
    flat = {path: array for path, array in flat.items() if head_of(path) not in drop_heads}
    heads = head_status(nest(flat), source.info.get("heads", {}))
    notes = list(source.notes)
    if entries != config.vocab_size:
        notes.append(f"the vocabulary rows of the weights: {config.vocab_size} -> {entries}")
        flat = vocabulary.resize(flat, entries)
        config = config.replace(vocab_size=entries)
    if tokenizer and tokenizer.vocab_size < entries:
        if not isinstance(tokenizer, WordPieceTokenizer):
            raise UserError(f"{source.path}: a SentencePiece vocabulary cannot be padded")
        notes.append(f"vocabulary lines: {tokenizer.vocab_size} -> {entries}")
        tokenizer = WordPieceTokenizer(tokenizer.vocab_file, tokenizer.lower_case, entries)
    if tokenizer and len(set(tokenizer.vocabulary)) < len(tokenizer.vocabulary):
        notes.append("the vocabulary has entries twice; Hugging Face's tokenizer keeps one of each")
    if tokenizer is None:
        notes.append("no vocabulary was found; text cannot be tokenized (--vocab FILE names one)")
    if "masked_lm/bias" not in flat:
        config = config.replace(tie_word_embeddings=True)  # it speaks of a head that is not there
    params = nest(flat)
    labels = source.info.get("labels") or []
    if "classifier" in params and labels and len(labels) != len(params["classifier"]["bias"]):
        raise UserError(
            f"{source.path}: the classifier has {len(params['classifier']['bias'])} classes, "
            f"{source.config_file} names {len(labels)}"
        )
    info = {**source.info, "heads": heads, "labels": labels if "classifier" in params else []}
    read = config.vocab_size if given is None else given.shape[0]
    return LoadedModel(config, params, tokenizer, info, source.path, dropped, notes, read)


def head_status(params: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """Head name -> "trained", "fresh" or "missing".

    Where it is not known, the values tell: a head whose biases are all exactly 0 and whose
    LayerNorm is the identity was never updated, however random its matrices are.
    """
    flat = flatten(params)
    status = {}
    for head in HEADS:
        own = {path: array for path, array in flat.items() if head_of(path) == head}
        if not own:
            status[head] = "missing"
        elif known.get(head) in ("trained", "fresh"):
            status[head] = known[head]
        else:
            status[head] = "fresh" if _untouched(own) else "trained"
    return status


def _untouched(own: Mapping[str, np.ndarray]) -> bool:
    return all(
        (np.asarray(array) == (1 if path.endswith("scale") else 0)).all()
        for path, array in own.items()
        if np.ndim(array) == 1
    )


def describe(
    params: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    source: str,
    heads: Mapping[str, str] | None = None,
    max_seq_length: int | None = None,
    normalization: str = "none",
    task: str | None = None,
    labels: Sequence[str] = (),
    label_names: Mapping[str, str] | None = None,
    license: str = "unknown",
    lower_case: bool = True,
    input: Mapping[str, Any] | None = None,
    architecture: str | None = None,
) -> dict[str, Any]:
    """The content of `clue_jax.json`, but for the digests of the files beside it.

    Args:
      params, config, tokenizer: the model.
      source: where the weights come from, in words.
      heads: head name -> "trained" or "fresh"; of those left out the values tell.
      max_seq_length: the longest sequence it was trained on, in tokens; None if unknown.
      normalization: what was done to the text before tokenization.
      task: None for "classification" where there is a classifier, else "pretraining".
      labels: of the classifier, in order.
      label_names: what they mean, where they are codes.
      license: of the weights, as the Hugging Face hub names licences.
      lower_case: whether text is lower-cased, for a model without a tokenizer.
      input: columns and kind of label of a person's own task.
      architecture: the transformers class, where the parameters alone do not tell.

    Raises:
      UserError: if the labels are not as many as the classifier has columns.
    """
    if "classifier" in params and labels and len(labels) != len(params["classifier"]["bias"]):
        raise UserError(
            f"the classifier has {len(params['classifier']['bias'])} classes, but there are "
            f"{len(labels)} labels"
        )
    own = {"input": dict(input)} if input else {}
    own |= {"label_names": dict(label_names)} if label_names else {}
    return own | {
        "format": FORMAT,
        "task": task or ("classification" if "classifier" in params else "pretraining"),
        "labels": list(labels),
        "heads": head_status(params, heads or {}),
        "lower_case": tokenizer.lower_case if tokenizer else lower_case,
        "max_seq_length": max_seq_length or config.max_position_embeddings,
        "normalization": normalization,
        "gelu": {"gelu_tanh": "tanh", "gelu_erf": "erf"}.get(config.hidden_act),
        "source": source,
        "license": license,
        "architecture": choose_architecture(head_status(params, heads or {}), architecture),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "safetensors")},
    }


_CLASSIFIERS = (
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
)


def choose_architecture(heads: Mapping[str, str], known: str | None) -> str:
    """The transformers class that has the heads; of several, the one for the end task.

    Args:
      heads: their states.
      known: what it was called before; it counts among classes that the heads fit.
    """
    if heads["classifier"] != "missing":
        if heads["pooler"] == "missing":  # the other classes would draw one at random
            return "BertForTokenClassification"
        return known if known in _CLASSIFIERS else _CLASSIFIERS[0]
    if heads["span"] != "missing":
        return "BertForQuestionAnswering"
    if heads["masked_lm"] != "missing":
        return "BertForPreTraining" if heads["next_sentence"] == "trained" else "BertForMaskedLM"
    return "BertModel"


def read_info(path: Path) -> dict[str, Any]:
    """Reads `clue_jax.json`, every field checked.

    Raises:
      UserError: if it is of another format, or a field is not of its type.
    """
    info = read_object(path)
    if info.get("format") != FORMAT:
        raise UserError(f"{path}: not of format {FORMAT}, which this version reads")
    types = {
        "heads": dict, "digests": dict, "labels": list, "lower_case": bool, "normalization": str,
        "license": str, "input": dict, "versions": dict, "architecture": str,
        "label_names": dict,
    }  # fmt: skip
    for name, kind in types.items():
        if name in info and not isinstance(info[name], kind):
            raise UserError(f"{path}: {name} is {info[name]!r}, expected a {kind.__name__}")
    if not all(isinstance(label, str) for label in info.get("labels", [])):
        raise UserError(f"{path}: labels must be strings")
    length = info.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise UserError(f"{path}: max_seq_length is {length!r}, expected a whole number")
    return info
