"""The tokenizer files of the Hugging Face ecosystem, written from a BERT vocabulary.

Their library is close to ours but not equal: it keeps special tokens written in a text whole,
deletes private-use characters, knows older Unicode tables and no final sigma.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from clue_jax.files import write_json, write_text
from clue_jax.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer


def write_tokenizer_files(
    tokenizer: WordPieceTokenizer, directory: str | os.PathLike, max_length: int
) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      tokenizer: its vocabulary and lower-casing are written.
      directory: an existing folder.
      max_length: the longest sequence the model takes, in tokens.
    """
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    ids = {token: tokenizer.token_id(token) for token in SPECIAL_TOKENS}
    added = [
        {
            "id": ids[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in sorted(SPECIAL_TOKENS, key=ids.get)
    ]
    first = [
        {"SpecialToken": {"id": cls, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": sep, "type_id": 0}},
    ]
    second = [
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": sep, "type_id": 1}},
    ]
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": tokenizer.lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (cls, sep)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": tokenizer.max_word_length,
            "vocab": {token: i for i, token in enumerate(tokenizer.vocabulary)},
        },
    }
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lower_case,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": max_length,
        "pad_token": pad,
        "unk_token": unk,
        "cls_token": cls,
        "sep_token": sep,
        "mask_token": mask,
    }
    directory = Path(directory)
    write_text(directory / "tokenizer.json", json.dumps(fast, ensure_ascii=False) + "\n")
    write_json(directory / "tokenizer_config.json", config)
