"""Chinese text to pretraining shards: tokenized, words marked, packed into rows of T slots."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from etils import epath

from clue_jax import __version__
from clue_jax.data import records, tfrecords
from clue_jax.errors import UserError, run_command
from clue_jax.files import KEY, is_remote, resumable_directory, sha256, write_json
from clue_jax.text import Tokenizer, copy_vocabulary, load_tokenizer
from clue_jax.text.normalize import normalizer
from clue_jax.text.words import segmented_word_starts
from pretraining import packing
from pretraining.columns import fix_masks, original_columns, rows_to_columns
from pretraining.corpus import Piece, cut_pieces, is_held_out, read_documents, stamps
from pretraining.masking import Masking
from pretraining.pieces import DONE, Engine, EngineName, map_pieces, split_options

HELD_OUT = "held-out"
_GROUP_CHARACTERS = 1 << 18  # documents are tokenized together up to this size


@dataclass(frozen=True)
class Settings:
    """Builds pretraining shards and their manifest from text files.

    Text is UTF-8, one sentence a line, a blank line between documents.
    """

    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]
    """Text files, here or in an object store (gs://bucket/name)."""
    vocab: str
    """vocab.txt; a copy is kept beside the shards."""
    output: str
    """Folder for the shards, here or in an object store. It must not hold shards of other
    settings."""
    seq_len: int = 128
    """T, slots a row, special tokens included."""
    paragraphs: bool = False
    """Lines are paragraphs: split them after 。！？；."""
    packing: Literal["lossless", "padded", "original", "pairs"] = "lossless"
    """lossless: whole documents, long sentences split, nothing dropped, short documents share rows.
    padded: the same, but every document begins a row of its own. original: the original's
    DOC-SENTENCES packing, which drops long sentences and short tails. pairs: sentence pairs with a
    random second half, for next-sentence prediction."""
    masking: Literal["none", "whole-word", "token"] = "none"
    """none: masks are drawn while training. Otherwise they are fixed in the shards."""
    format: Literal["rows", "original"] = "rows"
    """rows: our shards. original: TFRecords in the original's schema (needs tensorflow and fixed
    masks)."""
    dupe_factor: int = 5
    """Copies of every row with other masks (fixed masks), or passes over the documents (pairs)."""
    masked_lm_prob: float = 0.15
    """Share of tokens to mask, for fixed masks."""
    max_predictions: int = 20
    """M, masked slots a row, for fixed masks."""
    held_out: str = "0"
    """Share of documents set apart in OUTPUT/held-out, such as 0.5% or 0.005; chosen by the hash of
    the document."""
    normalization: Literal["none", "t2s"] = "none"
    """t2s: convert traditional to simplified characters first."""
    cased: bool = False
    """Keep capitals and accents (most Chinese vocabularies have none)."""
    seed: int = 12345
    """Of masks and pairs."""
    workers: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    """Processes. The shards are the same for any number."""
    engine: EngineName = "local"
    """beam: let Apache Beam do the work. Options behind -- are Beam's, such as
    -- --runner=DataflowRunner --project=NAME. The shards are the same."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    own, options = split_options(argv)
    summary = build(tyro.cli(Settings, args=own), options)
    print(json.dumps(summary))
    return summary


def build(settings: Settings, options: Sequence[str] = ()) -> dict[str, Any]:
    """Builds shards as the settings say.

    Args:
      settings: what to build.
      options: of Apache Beam.

    Returns:
      Counts and rates: "rows", "documents", "sentences", "tokens", "unknown_tokens",
      "dropped_tokens", "padding_share", "held_out_rows", "seconds", "megabytes_per_second".

    Raises:
      UserError: for bad settings or input; nothing is left behind then.
    """
    started = time.monotonic()
    share = _check(settings)
    engine = Engine(settings.engine, settings.workers, options)
    tokenizer = load_tokenizer(settings.vocab, not settings.cased)
    if tokenizer.vocab_size > 1 << 16:
        raise UserError(
            f"{settings.vocab}: {tokenizer.vocab_size} entries; rows hold ids below 65,536"
        )
    pieces = cut_pieces(settings.input)
    output = epath.Path(settings.output)
    described = _describe(settings, pieces)
    _check_output(output, described)

    totals = [Counter() for _ in range(2 if share else 1)]
    shards: list[list[dict[str, Any]]] = [[] for _ in totals]
    # Shards that are there already stay whole until the new ones are complete.
    key = json.dumps([described, stamps(settings.input), len(pieces), __version__])
    with resumable_directory(output, key) as folder:
        folders = [folder, folder / HELD_OUT][: len(totals)]
        folders[-1].mkdir(exist_ok=True)
        jobs = [
            (settings, folders, share, piece, number, len(pieces))
            for number, piece in enumerate(pieces)
        ]
        for parts in map_pieces(_build_piece, jobs, folder, pieces, engine, "building shards"):
            for counts, shard_list, part in zip(totals, shards, parts, strict=True):
                counts.update(part["counts"])
                shard_list.append(
                    {"name": part["name"]} | {key: part["counts"][key] for key in ("rows", "bytes")}
                )
        if not totals[0]["rows"]:
            raise UserError(
                f"{', '.join(settings.input)}: no text to train on (only blank lines, or all of it "
                "held out)"
            )
        (folder / DONE).rmtree(missing_ok=True)
        # That of the folder itself comes last, and makes it complete.
        for part_folder, counts, shard_list in reversed(
            list(zip(folders, totals, shards, strict=True))
        ):
            copy_vocabulary(tokenizer, part_folder)
            _write_manifest(part_folder, described, counts, shard_list, tokenizer)

    seconds = time.monotonic() - started
    size = sum(piece.stop - piece.start for piece in pieces)
    return _summary(totals[0], settings.seq_len) | {
        "held_out_rows": totals[1]["rows"] if share else 0,
        "seconds": round(seconds, 2),
        "megabytes_per_second": round(size / 1e6 / seconds, 2),
    }


def _check(settings: Settings) -> float:
    if not 8 <= settings.seq_len < 1 << 16:
        raise UserError(f"--seq-len {settings.seq_len} must be at least 8 and below 65,536")
    if settings.dupe_factor < 1:
        raise UserError("--dupe-factor must be at least 1")
    if settings.format == "original" and settings.masking == "none":
        raise UserError("--format original needs fixed masks: add --masking whole-word or token")
    if settings.masking != "none":
        Masking(settings.masking, settings.masked_lm_prob, settings.max_predictions)
    text = settings.held_out.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"--held-out {settings.held_out!r}: expected a share such as 0.5% or 0.005")
    return share


def _describe(settings: Settings, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The settings that decide what the shards hold, as the manifest keeps them."""
    masks = ("masked_lm_prob", "max_predictions") if settings.masking != "none" else ()
    repeats = ("dupe_factor",) if settings.masking != "none" or settings.packing == "pairs" else ()
    names = ("seq_len", "paragraphs", "packing", "masking", "held_out", "normalization", "seed")
    sizes: Counter[str] = Counter()
    for piece in pieces:
        sizes[piece.path] += piece.stop - piece.start
    kept = {name: getattr(settings, name) for name in (*names, *masks, *repeats)}
    return {
        "format": records.FORMAT if settings.format == "rows" else records.FORMAT_ORIGINAL,
        **kept,
        "pairs": settings.packing == "pairs",
        "lower_case": not settings.cased,
        "vocab_sha256": sha256(settings.vocab),
        "inputs": [
            {"name": Path(path).name, "bytes": sizes[str(epath.Path(path))]}
            for path in settings.input
        ],
    }


def _check_output(output: epath.Path, described: dict[str, Any]) -> None:
    """Refuses a folder with other shards, or with anything else."""
    if not output.is_dir() or not any(output.iterdir()):
        return
    if is_remote(output) and (output / KEY).exists():  # of a build that was cut
        return
    if not (output / records.MANIFEST).exists():
        raise UserError(f"{output}: is not empty and holds no shards; choose another --output")
    old = records.read_manifest(output)
    for key, value in described.items():
        if old.get(key) != value:
            raise UserError(
                f"{output}: holds shards built with {key} {old.get(key)!r}, now {value!r}; "
                "choose another --output or remove the folder"
            )
    if is_remote(output):  # where there is no way to put new ones in their place at once
        raise UserError(f"{output}: holds these shards already; remove the folder to build anew")


def _build_piece(
    job: tuple[Settings, list[epath.Path], float, Piece, int, int],
) -> list[dict[str, Any]]:
    """Builds the shard of one piece, and its held-out shard: a pure function of the piece."""
    settings, folders, share, piece, number, count = job
    tokenizer = load_tokenizer(settings.vocab, not settings.cased)
    suffix = "rows" if settings.format == "rows" else "tfrecord"
    name = f"shard-{number:05d}-of-{count:05d}.{suffix}"
    parts: list[list[list[str]]] = [[] for _ in folders]
    # The original deletes its mark for the end of a paragraph before it packs.
    removed = "<eop>" if settings.packing == "original" else ""
    for document in read_documents(piece, settings.paragraphs, removed):
        parts[-1 if is_held_out(document, share) else 0].append(document)
    results = []
    masked = settings.max_predictions if settings.masking != "none" else 0
    for folder, documents in zip(folders, parts, strict=True):
        counts: Counter[str] = Counter()
        tokenized = _tokenize(documents, settings, tokenizer, counts)
        rows = _pack(tokenized, settings, tokenizer, number)
        columns = rows_to_columns(rows, settings.seq_len, tokenizer.pad_id, masked)
        if masked and settings.packing != "pairs":  # pairs come with theirs
            masking = Masking(settings.masking, settings.masked_lm_prob, masked)
            columns = fix_masks(
                columns, masking, tokenizer, settings.seed, settings.dupe_factor, number
            )
        _count_rows(columns, tokenizer, settings, counts)
        path = folder / name
        if settings.format == "rows":
            layout = records.RowLayout(settings.seq_len, settings.packing == "pairs", masked)
            records.write_shard(path, records.pack_rows(layout, columns))
        else:
            tfrecords.write_tfrecords(path, original_columns(columns, masked))
        counts["bytes"] = path.stat().length
        results.append({"name": name, "counts": dict(counts)})
    return results


def _tokenize(
    documents: list[list[str]],
    settings: Settings,
    tokenizer: Tokenizer,
    counts: Counter[str],
) -> Iterator[packing.Document]:
    normalize = normalizer(settings.normalization)
    group: list[list[str]] = []
    size = 0
    for document in documents:
        group.append([normalize(sentence) for sentence in document])
        size += sum(map(len, document))
        if size >= _GROUP_CHARACTERS:
            yield from _tokenize_group(group, tokenizer, counts)
            group, size = [], 0
    yield from _tokenize_group(group, tokenizer, counts)


def _tokenize_group(
    documents: list[list[str]], tokenizer: Tokenizer, counts: Counter[str]
) -> Iterator[packing.Document]:
    sentences = [sentence for document in documents for sentence in document]
    batch = tokenizer.encode_batch(sentences)
    starts = segmented_word_starts(sentences, batch)
    splits = batch.row_splits.tolist()
    at = 0
    for document in documents:
        tokens = [
            (batch.ids[a:b], starts[a:b])
            for a, b in zip(
                splits[at : at + len(document)],
                splits[at + 1 : at + len(document) + 1],
                strict=True,
            )
            if b > a
        ]
        at += len(document)
        if tokens:
            counts["documents"] += 1
            counts["sentences"] += len(tokens)
            counts["text_tokens"] += sum(len(ids) for ids, _ in tokens)
            yield tokens


def _pack(
    documents: Iterator[packing.Document],
    settings: Settings,
    tokenizer: Tokenizer,
    number: int,
) -> Iterable[packing.Row]:
    ids = settings.seq_len, tokenizer.cls_id, tokenizer.sep_id
    if settings.packing == "original":
        return packing.pack_original(documents, *ids)
    if settings.packing in ("lossless", "padded"):
        # The original's schema has no place for the borders of documents within a row.
        share_rows = settings.packing == "lossless" and settings.format == "rows"
        return packing.pack_lossless(documents, *ids, share_rows=share_rows)
    pairs = packing.PairSettings(
        settings.seq_len,
        settings.dupe_factor,
        settings.seed + number,
        tokenizer.cls_id,
        tokenizer.sep_id,
        settings.masking,
        settings.masked_lm_prob,
        settings.max_predictions,
        tokenizer.mask_id,
        tokenizer.vocab_size,
    )
    return packing.pack_pairs(list(documents), pairs)


def _count_rows(
    columns: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    settings: Settings,
    counts: Counter[str],
) -> None:
    ids = columns["token_ids"]
    used = np.arange(ids.shape[1]) < columns["length"][:, None]
    counts["rows"] = len(ids)
    counts["tokens"] = int(columns["length"].sum())
    counts["unknown_tokens"] = int(((ids == tokenizer.unk_id) & used).sum())
    if settings.packing != "pairs":
        copies = settings.dupe_factor if settings.masking != "none" else 1
        frame = used & np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id))
        kept = (counts["tokens"] - int(frame.sum())) // copies
        counts["dropped_tokens"] = counts["text_tokens"] - kept


def _write_manifest(
    folder: epath.Path,
    described: dict[str, Any],
    counts: Counter[str],
    shards: list[dict[str, Any]],
    tokenizer: Tokenizer,
) -> None:
    summary = _summary(counts, described["seq_len"])
    write_json(
        folder / records.MANIFEST,
        {**described, "vocab_size": tokenizer.vocab_size, **summary, "shards": shards},
    )


def _summary(counts: Counter[str], seq_len: int) -> dict[str, Any]:
    slots = max(1, counts["rows"] * seq_len)
    names = ("rows", "documents", "sentences", "tokens", "unknown_tokens", "dropped_tokens")
    summary: dict[str, Any] = {name: counts[name] for name in names}
    return summary | {"padding_share": round(1 - counts["tokens"] / slots, 4)}


if __name__ == "__main__":
    # Under the name by which the workers find its functions.
    from pretraining import build_shards

    run_command(build_shards.main)
