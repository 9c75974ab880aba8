"""A raw corpus made fit for pretraining: bad lines out, repeats out, a sentence a line."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from etils import epath

from clue_jax import __version__
from clue_jax.errors import UserError, run_command
from clue_jax.files import KEY, is_remote, read_object, resumable_directory, write_json
from clue_jax.text.normalize import normalizer
from pretraining.cleaning import (
    SKETCH,
    Limits,
    clean_document,
    digest,
    first_of_each,
    near_repeats,
    sketch,
)
from pretraining.corpus import Piece, cut_pieces, read_documents, split_sentences, stamps
from pretraining.pieces import DONE, Engine, EngineName, map_pieces, split_options

REPORT = "report.json"
_NEAR = 0.8  # documents that share so much are the same
_KEPT, _PRINTS = ".kept", ".npz"  # of a piece: what the rules leave, and its fingerprints
_UNSAID = ("input", "output", "workers", "engine")  # what does not decide what comes out


@dataclass(frozen=True)
class Settings:
    """Cleans text files: a paragraph a line, a blank line between documents, UTF-8.

    Dropped are lines that are too short, not Chinese, garbled, or what is left of pages; paragraphs
    that were there before; documents of which too little is left. The output is for
    pretraining.build_shards, the same bytes for any number of workers; report.json counts what was
    dropped and why.
    """

    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]
    """Text files, here or in an object store (gs://bucket/name)."""
    output: str
    """Folder to write, here or in an object store: clean-*.txt, a sentence a line, and
    report.json."""
    to_simplified: bool = False
    """Convert traditional to simplified characters (OpenCC)."""
    dedup: Literal["none", "exact", "near"] = "exact"
    """exact: drop paragraphs that were there before. near: also documents of which an earlier one
    has nearly everything; takes some 400 bytes of memory a document."""
    line_characters: int = 5
    """Drop shorter lines."""
    chinese_share: float = 0.5
    """Drop lines with a smaller share of Chinese characters."""
    document_characters: int = 20
    """Drop documents of which fewer characters are left."""
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    """Processes."""
    engine: EngineName = "local"
    """beam: let Apache Beam do the work. Options behind -- are Beam's, such as
    -- --runner=DataflowRunner --project=NAME. The text is the same."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    own, options = split_options(argv)
    summary = clean(tyro.cli(Settings, args=own), options)
    print(json.dumps(summary, ensure_ascii=False))
    return summary


def clean(settings: Settings, options: Sequence[str] = ()) -> dict[str, Any]:
    """Cleans as the settings say. What was cut goes on with the pieces that are left.

    Args:
      settings: what to do.
      options: of Apache Beam.

    Returns:
      What report.json holds: "documents", "lines", "characters" and "sentences" that are kept,
      "dropped" lines by reason, "seconds", "megabytes_per_second".

    Raises:
      UserError: for bad settings or input; nothing is left behind then.
    """
    started = time.monotonic()
    limits = _check(settings)
    engine = Engine(settings.engine, settings.workers, options)
    pieces = cut_pieces(settings.input)
    about = dataclasses.asdict(settings) | {"inputs": [epath.Path(p).name for p in settings.input]}
    about = {name: value for name, value in about.items() if name not in _UNSAID}
    key = json.dumps([about, stamps(settings.input), len(pieces), __version__])
    _check_output(epath.Path(settings.output))
    with resumable_directory(settings.output, key) as folder:
        paths = [folder / f"clean-{i:05d}-of-{len(pieces):05d}" for i in range(len(pieces))]
        if not (folder / REPORT).exists():  # else all is written, and a clearing up was cut
            counts = _write_clean(settings, limits, pieces, paths, engine, folder)
            write_json(folder / REPORT, counts | {"settings": about})
        report = read_object(folder / REPORT)
        for path in paths:
            for suffix in (_KEPT, _PRINTS):
                path.with_suffix(suffix).unlink(missing_ok=True)
        (folder / DONE).rmtree(missing_ok=True)
    del report["settings"]
    seconds = time.monotonic() - started
    size = sum(piece.stop - piece.start for piece in pieces)
    return report | {
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(size / 1e6 / seconds, 2),
        "output": settings.output,
    }


def _write_clean(
    settings: Settings,
    limits: Limits,
    pieces: list[Piece],
    paths: list[epath.Path],
    engine: Engine,
    folder: epath.Path,
) -> dict[str, Any]:
    """Writes the clean text of all pieces; returns what it holds and what was dropped."""
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    # ---- Each piece on its own: rules, and a fingerprint of what they leave ----------------------
    jobs = [(settings, limits, *both) for both in zip(pieces, paths, strict=True)]
    for counts in map_pieces(_clean_piece, jobs, folder, pieces, engine, "cleaning"):
        dropped.update(counts)

    # ---- All together: what was there before; then each piece is written without it --------------
    fresh = _first_ones(settings, paths)
    jobs = [(limits, *both) for both in zip(paths, fresh, strict=True)]
    for kept, repeats in map_pieces(_write_piece, jobs, folder, pieces, engine, "writing"):
        totals.update(kept)
        dropped.update(repeats)
    if not totals["documents"]:
        reasons = ", ".join(f"{name} {count}" for name, count in dropped.most_common())
        raise UserError(f"{', '.join(settings.input)}: nothing is left (lines: {reasons})")
    names = ("documents", "lines", "sentences", "characters")
    return {name: totals[name] for name in names} | {"dropped": dict(sorted(dropped.items()))}


def _check(settings: Settings) -> Limits:
    if not 0 <= settings.chinese_share <= 1:
        raise UserError(f"--chinese-share {settings.chinese_share} must lie between 0 and 1")
    return Limits(settings.line_characters, settings.chinese_share, settings.document_characters)


def _check_output(output: epath.Path) -> None:
    """Refuses a folder with anything else, and in an object store one with clean text."""
    if not output.is_dir() or not any(output.iterdir()):
        return
    if is_remote(output) and (output / KEY).exists():  # of work that was cut
        return
    if not (output / REPORT).exists():
        raise UserError(f"{output}: holds something else than clean text; choose another --output")
    if is_remote(output):  # where there is no way to put a new one in its place at once
        raise UserError(f"{output}: holds clean text already; remove the folder to make it anew")


def _clean_piece(job: tuple[Settings, Limits, Piece, epath.Path]) -> Counter[str]:
    """Writes what the rules leave of a piece, and its fingerprints; returns what they drop."""
    settings, limits, piece, path = job
    simplify = normalizer("t2s" if settings.to_simplified else "none")
    dropped: Counter[str] = Counter()
    lines: list[int] = []
    sketches: list[np.ndarray] = []
    with path.with_suffix(_KEPT).open("wb") as file:
        for raw in read_documents(piece, paragraphs=False):
            document = clean_document(map(simplify, raw), limits, dropped)
            if not document:
                continue
            file.write(("\n".join(document) + "\n\n").encode("utf-8"))
            lines += map(digest, document)
            if settings.dedup == "near":
                sketches.append(sketch(document))
    with path.with_suffix(_PRINTS).open("wb") as file:
        np.savez(
            file,
            lines=np.array(lines, np.uint64),
            sketches=np.array(sketches, np.uint32).reshape(len(sketches), SKETCH),
        )
    return dropped


@dataclass(frozen=True)
class _Fresh:
    """Of a piece: which lines and which documents were not there before; None for all."""

    lines: np.ndarray | None = None
    documents: np.ndarray | None = None


def _first_ones(settings: Settings, paths: list[epath.Path]) -> list[_Fresh]:
    if settings.dedup == "none":
        return [_Fresh() for _ in paths]
    lines, sketches = [], []
    for path in paths:
        with (
            path.with_suffix(_PRINTS).open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            lines.append(arrays["lines"])
            sketches.append(arrays["sketches"])
    fresh = _split(first_of_each(np.concatenate(lines)), lines)
    if settings.dedup == "exact":
        return [_Fresh(flags) for flags in fresh]
    documents = _split(~near_repeats(np.concatenate(sketches), _NEAR), sketches)
    return [_Fresh(*flags) for flags in zip(fresh, documents, strict=True)]


def _split(flags: np.ndarray, parts: list[np.ndarray]) -> list[np.ndarray]:
    return np.split(flags, np.cumsum([len(part) for part in parts])[:-1])


def _write_piece(job: tuple[Limits, epath.Path, _Fresh]) -> tuple[Counter[str], Counter[str]]:
    """Writes a piece a sentence a line; returns what it holds, and the lines it lost."""
    limits, path, fresh = job
    kept: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    source = path.with_suffix(_KEPT)
    at = 0
    with path.with_suffix(".txt").open("wb") as file:
        piece = Piece(str(source), 0, source.stat().length)
        for number, document in enumerate(read_documents(piece, paragraphs=False)):
            lines = document
            if fresh.lines is not None:
                flags = fresh.lines[at : at + len(document)]
                lines = [line for line, is_fresh in zip(document, flags, strict=True) if is_fresh]
            at += len(document)
            lost["repeat"] += len(document) - len(lines)
            if fresh.documents is not None and not fresh.documents[number]:
                lost["near repeat"] += len(lines)
                continue
            size = sum(map(len, lines))
            if size < limits.document_characters:
                lost["short document"] += len(lines)
                continue
            sentences = [sentence for line in lines for sentence in split_sentences(line)]
            file.write(("\n".join(sentences) + "\n\n").encode("utf-8"))
            kept.update(documents=1, lines=len(lines), sentences=len(sentences), characters=size)
    return kept, +lost


if __name__ == "__main__":
    # Under the name by which the workers find its functions.
    from pretraining import clean_text

    run_command(clean_text.main)
