"""What a path is: a TF-BERT checkpoint, a model directory, a training run, or a zip of one."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from clue_jax.archives import unpack
from clue_jax.config import ModelConfig
from clue_jax.convert import model_dir, tf_bert
from clue_jax.convert.loaded import INFO_FILE, LoadedModel, Source, assemble, read_info
from clue_jax.convert.merge import to_named_tensors
from clue_jax.convert.weights import WEIGHTS, find_weights, read_weights
from clue_jax.errors import UserError
from clue_jax.files import read_object, read_text
from clue_jax.text import load_tokenizer

Form = Literal["tf", "model", "checkpoint"]
_TF_FILE = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5}(\.tempstate\d+)?)$")
_MODEL_FILE = re.compile(r"\.(safetensors|bin|pt|pth)$|\.(safetensors|bin)\.index\.json$")


def load(
    path: str | os.PathLike,
    *,
    form: Form | None = None,
    config: str | os.PathLike | None = None,
    vocab: str | os.PathLike | None = None,
    crop: bool = False,
    pad: int | None = None,
    gelu: Literal["tanh", "erf"] | None = None,
    lower_case: bool = True,
    drop_heads: Collection[str] = (),
) -> LoadedModel:
    """Reads a model from any form.

    Args:
      path: a folder, a checkpoint prefix, a weight file or a zip.
      form: None finds out.
      config: the config file, where it does not stand beside the weights or is wrong.
      vocab: likewise the vocabulary.
      crop, pad, drop_heads: see `clue_jax.convert.loaded.assemble`.
      gelu: overrides what the config means by "gelu".
      lower_case: see `WordPieceTokenizer`.

    Raises:
      UserError: if the path is none of these, or several, or the model is not whole.
    """
    with open_source(path, form, config, vocab, lower_case) as source:
        if gelu is not None:
            config_ = source.config.replace(hidden_act=f"gelu_{gelu}")
            # What was said of the activation has been answered.
            notes = [note for note in source.notes if not note.startswith("hidden_act")]
            source = replace(source, config=config_, notes=notes)
        return assemble(source, crop=crop, pad=pad, drop_heads=drop_heads)


@contextlib.contextmanager
def open_source(
    path: str | os.PathLike,
    form: Form | None,
    config: str | os.PathLike | None,
    vocab: str | os.PathLike | None,
    lower_case: bool,
) -> Iterator[Source]:
    """Reads the tensors of a path; a zip is unpacked for as long as the block lasts."""
    if not str(path):
        raise UserError("the path is empty")
    path = Path(path)
    archives = [p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and p.is_file()]
    if not archives:
        yield _read(path, form, config, vocab, lower_case, shown=path)
        return
    archive = archives[0]  # the path may go on within it
    with tempfile.TemporaryDirectory(prefix="clue_jax_") as folder:
        unpacked = Path(folder) / "unpacked"
        unpack(archive, unpacked)
        inner = unpacked / path.relative_to(archive)
        try:
            source = _read(inner, form, config, vocab, lower_case, shown=path)
        except UserError as error:
            raise UserError(str(error).replace(str(unpacked), str(archive))) from error
        yield replace(source, path=source.path.replace(str(unpacked), str(archive)))


def tensors_alone(
    path: str | os.PathLike, form: Form | None = None
) -> tuple[str, str, Mapping[str, np.ndarray]]:
    """The tensors of a path as they are, whatever stands beside them.

    Returns:
      Where they are, "tf" or "hf" (whose names), and the tensors.

    Raises:
      UserError: if there is not one model whose tensors can be read.
    """
    candidates = [place for place in find(Path(path)) if form in (None, place[0])]
    kinds = {kind for kind, _ in candidates}
    if len(candidates) != 1 or kinds == {"checkpoint"}:
        raise UserError(f"{path}: holds {len(candidates)} models")
    ((kind, place),) = candidates
    if kind == "tf":
        return str(place), "tf", tf_bert.read_variables(place)
    weights = place if place.is_file() else find_weights(place)
    return str(weights), "hf", read_weights(weights)


def _read(
    path: Path,
    form: Form | None,
    config: str | os.PathLike | None,
    vocab: str | os.PathLike | None,
    lower_case: bool,
    shown: Path,
) -> Source:
    candidates = [place for place in find(path, form=form) if form in (None, place[0])]
    if not candidates and form != "tf" and (path / "config.json").is_file():
        raise UserError(f"{shown}: a model directory without weights (no {WEIGHTS})")
    if not candidates:
        what = {None: "model or checkpoint", "tf": "TF-BERT checkpoint", "model": "model directory"}
        if not path.exists() and not list(path.parent.glob(f"{path.name}.*")):
            raise UserError(f"{shown}: no such file or folder")
        raise UserError(f"{shown}: holds no {what.get(form, 'training checkpoint')}")
    if len(candidates) > 1:
        names = ", ".join(f"{place} ({kind})" for kind, place in candidates).replace(
            str(path), str(shown)
        )
        raise UserError(f"{shown}: holds {len(candidates)} models: {names}; name one of them")
    ((kind, place),) = candidates
    if kind == "tf":
        return tf_bert.read_source(place, config, vocab, lower_case)
    if kind == "model":
        return model_dir.read_source(place, config, vocab, lower_case)
    return _read_run(place, config, vocab, lower_case)


def find(path: Path, depth: int = 2, form: Form | None = None) -> list[tuple[Form, Path]]:
    """The models a path holds, or else the folders in it: (form, place), the place as its reader
    wants it.

    Args:
      path: where to look.
      depth: so many folders deep.
      form: if what is found first is of another, the folders are looked into as well.
    """
    if path.is_file():
        if _TF_FILE.search(path.name):
            return [("tf", Path(_TF_FILE.sub("", str(path))))]
        if _MODEL_FILE.search(path.name):
            return [("model", path)]
        return [("tf", path)]  # the older format is one file, named as its prefix
    if Path(f"{path}.index").is_file():
        return [("tf", path)]
    if not path.is_dir():
        return []
    if _is_step(path):
        return [("checkpoint", path)]
    here: list[tuple[Form, Path]] = []
    if find_weights(path):
        here.append(("model", path))
    here += [("tf", prefix) for prefix in _prefixes(path)]
    if (path / "checkpoints").is_dir() or any(map(_is_step, path.iterdir())):
        here.append(("checkpoint", path))
    if any(form in (None, kind) for kind, _ in here):
        return here
    # A zip usually holds one folder with everything in it.
    inner = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.is_symlink()]
    deeper = [found for child in inner for found in find(child, depth - 1, form)] if depth else []
    return here + deeper


def _is_step(path: Path) -> bool:
    """Whether a folder is a training checkpoint; it is named by its step."""
    return path.name.isdigit() and (path / "params").is_dir()


def _prefixes(folder: Path) -> list[Path]:
    """Checkpoint prefixes in a folder: the one that its `checkpoint` file names, else all."""
    prefixes = [index.with_suffix("") for index in sorted(folder.glob("*.index"))]
    older = [
        path
        for path in sorted(folder.glob("*.ckpt*"))
        if path.is_file() and not _TF_FILE.search(path.name) and path.suffix != ".tmp"
    ]
    prefixes += older
    state = folder / "checkpoint"
    if len(prefixes) > 1 and state.is_file():
        # Written elsewhere, it holds a path of that machine: only the name counts.
        named = re.search(r'^model_checkpoint_path: "(.*)"', read_text(state), re.MULTILINE)
        newest = [p for p in prefixes if named and p.name == re.split(r"[/\\]", named[1])[-1]]
        return newest or prefixes
    return prefixes


def _read_run(
    path: Path,
    config_file: str | os.PathLike | None,
    vocab_file: str | os.PathLike | None,
    lower_case: bool,
) -> Source:
    """A training checkpoint: the newest of a run, or the one named."""
    from clue_jax.checkpoint import load_params  # brings jax and orbax, which nothing else needs

    step = int(path.name) if _is_step(path) else None
    folder = path.parent if step is not None else path
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    run = checkpoints.parent
    if config_file is None and not (run / "config.json").exists():
        raise UserError(f"{run / 'config.json'}: no such file; --config names another")
    config_file = config_file or run / "config.json"
    config = ModelConfig.read(config_file)
    beside = run / "vocab.txt"
    vocab_file = vocab_file or (beside if beside.exists() else None)
    info = read_info(run / INFO_FILE) if (run / INFO_FILE).exists() else {}
    lower_case = lower_case and info.get("lower_case", True)
    settings = read_object(run / "settings.json") if (run / "settings.json").exists() else {}
    is_average = bool(settings.get("ema_decay"))  # as what the run evaluates and exports
    params, step = load_params(checkpoints, step, is_average)
    return Source(
        path=str(checkpoints / str(step)),
        form="hf",
        tensors={name: np.asarray(t) for name, t in to_named_tensors(params, config, "hf").items()},
        config=config,
        config_file=str(config_file),
        tokenizer=load_tokenizer(vocab_file, lower_case) if vocab_file else None,
        info=info,
        notes=[f"training checkpoint of step {step}" + ", moving average" * is_average],
    )
