"""Makes a vocabulary: from text, or CLUEVocab out of Google's Chinese vocabulary."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from etils import epath

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, read_text, write_text
from clue_jax.text import MODEL_FILE
from clue_jax.text.basic import normalize_text
from clue_jax.text.wordpiece import SPECIAL_TOKENS
from pretraining.clue_vocab import clue_vocabulary
from pretraining.corpus import cut_pieces, read_documents

# BERT's places: [PAD] 0, [unused1] to [unused99], [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103.
_PAD, *_FROM_100 = SPECIAL_TOKENS
UNUSED = tuple(f"[unused{i}]" for i in range(1, 100))
FIRST = (_PAD, *UNUSED, *_FROM_100)
_LATIN_WORD = re.compile("[A-Za-z0-9]{1,100}")
_ALPHABET_SHARE = 0.85  # of the size; the rest is for pieces of Latin words (CLUEVocab: 0.16)


@dataclass(frozen=True)
class Settings:
    """Makes vocab.txt: characters, and pieces of Latin words and digits, by their frequency.

    The special tokens stand in BERT's places. A small text gives fewer entries than asked for.
    """

    output: str
    """vocab.txt to write; with sentencepiece, tokenizer.model is written beside it."""
    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """Text files, UTF-8."""
    size: int = 8000
    """Entries at most, 104 places for special and unused tokens included."""
    algorithm: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    """wordpiece: BERT's kind. sentencepiece: a unigram model over the raw text."""
    from_google: str | None = None
    """Google's 21,128-line Chinese vocab.txt: rebuild the 8,021-line CLUEVocab from it, by the
    original's rules; the other options are not used."""
    cased: bool = False
    """Keep capitals and accents."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    summary = build(tyro.cli(Settings, args=argv))
    print(json.dumps(summary))
    return summary


def build(settings: Settings) -> dict[str, Any]:
    """Writes the vocabulary that the settings ask for.

    Returns:
      "output" and "entries".

    Raises:
      UserError: for bad settings or input.
    """
    if bool(settings.input) == bool(settings.from_google):
        raise UserError("give either --input FILE... or --from-google FILE")
    if settings.from_google:
        # Not split at U+2028, which is an entry of that file.
        lines = read_text(settings.from_google).removesuffix("\n").split("\n")
        try:
            entries = clue_vocabulary(lines)
        except ValueError as error:
            raise UserError(f"{settings.from_google}: {error}") from error
    else:
        if settings.size <= len(FIRST):
            raise UserError(f"--size {settings.size} must exceed the {len(FIRST)} special places")
        model = epath.Path(settings.output).parent / MODEL_FILE
        if settings.algorithm == "wordpiece" and model.exists():
            raise UserError(f"{model}: belongs to another vocabulary; choose another folder")
        make = _wordpiece if settings.algorithm == "wordpiece" else _sentencepiece
        entries = make(settings)
    write_text(settings.output, "".join(entry + "\n" for entry in entries))
    return {"output": settings.output, "entries": len(entries)}


def _lines(settings: Settings) -> Iterator[str]:
    for piece in cut_pieces(settings.input):
        for document in read_documents(piece, paragraphs=False):
            yield from document


def _wordpiece(settings: Settings) -> list[str]:
    """Characters by frequency, and pieces of Latin words and digits."""
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for line in _lines(settings):
        if not settings.cased:
            line = line.lower()
        characters.update(line)
        words.update(_LATIN_WORD.findall(line))
    shown: Counter[str] = Counter()
    for character, count in characters.items():
        for normal in normalize_text(character, lower_case=not settings.cased):
            shown[normal] += count
    alphabet = [c for c, _ in sorted(shown.items(), key=lambda item: (-item[1], item[0]))]
    if not alphabet:
        raise UserError(f"{', '.join(settings.input)}: no text to make a vocabulary from")
    inner = [f"##{c}" for c in sorted({c for word in words for c in word[1:]})]
    room = settings.size - len(FIRST) - len(inner)
    pieces = latin_pieces(words, room - min(len(alphabet), int(room * _ALPHABET_SHARE)))
    return [*FIRST, *alphabet[: max(0, room - len(pieces))], *inner, *pieces][: settings.size]


def latin_pieces(words: Mapping[str, int], room: int) -> list[str]:
    """Pieces of words by byte-pair merging: the commonest pair of neighbours becomes one piece.

    Source: Sennrich, Haddow and Birch, 2016. Ties go to the later pair in code point order, so the
    result depends on the counts alone.

    Args:
      words: word -> count.
      room: pieces at most. Pairs seen once are not merged.

    Returns:
      The merged pieces in order, `##` before those that do not begin a word.
    """
    spelled = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in words}
    counts: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[str]] = {}

    def count(word: str, sign: int) -> None:
        for pair in itertools.pairwise(spelled[word]):
            counts[pair] += sign * words[word]
            holders.setdefault(pair, set()).add(word)

    for word in spelled:
        count(word, 1)
    pieces: dict[str, None] = {}  # in order of their making; two pairs may spell one piece
    while counts and len(pieces) < room:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if counts[best] < 2:
            break
        merged = best[0] + best[1].removeprefix("##")
        pieces[merged] = None
        for word in holders.pop(best):
            count(word, -1)
            spelled[word] = _merge(spelled[word], best, merged)
            count(word, 1)
        del counts[best]
    return list(pieces)


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] = merged
        else:
            out.append(piece)
    return out


def _sentencepiece(settings: Settings) -> list[str]:
    """A unigram model with the special tokens in BERT's places."""
    import sentencepiece

    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(settings),
            model_writer=model,
            vocab_size=settings.size,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc" if settings.cased else "nmt_nfkc_cf",
            add_dummy_prefix=False,
            control_symbols=[*UNUSED, mask],
            pad_id=FIRST.index(pad),
            pad_piece=pad,
            unk_id=FIRST.index(unk),
            unk_piece=unk,
            bos_id=FIRST.index(cls),
            bos_piece=cls,
            eos_id=FIRST.index(sep),
            eos_piece=sep,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"sentencepiece cannot train on this text: {error}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    with atomic_file(epath.Path(settings.output).parent / MODEL_FILE) as file:
        file.write(model.getvalue())
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


if __name__ == "__main__":
    run_command(main)
