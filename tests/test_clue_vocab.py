"""The rebuild of CLUEVocab from Google's Chinese vocabulary."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from pretraining.clue_vocab import clue_vocabulary, entry_class, keep

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CLUE_JAX_SHARED") or PROJECT.parent / "shared")
GOOGLE_VOCAB = SHARED / "data" / "vocab" / "vocab_google_zh.txt"
CLUE_VOCAB = SHARED / "data" / "vocab" / "vocab_clue.txt"


@pytest.fixture(scope="module")
def google_lines() -> list[str]:
    if not GOOGLE_VOCAB.is_file():
        pytest.skip("needs data/vocab/vocab_google_zh.txt in the folder named by CLUE_JAX_SHARED")
    return GOOGLE_VOCAB.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def test_the_rebuilt_file_equals_the_original_byte_for_byte(google_lines):
    entries = clue_vocabulary(google_lines)
    if CLUE_VOCAB.is_file():  # a list difference says more than two unequal sums
        assert entries == CLUE_VOCAB.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    content = ("\n".join(entries) + "\n").encode("utf-8")
    assert len(entries) == len(set(entries)) == 8021
    assert len(content) == 35_733
    assert hashlib.md5(content).hexdigest() == "b1f18b116616d2befb3ca0144852d5ff"


def test_class_sizes_equal_the_counts_the_original_prints(google_lines):
    # 766 other and 140 numbers in the result: 2 quotes and 98 numbers are added to those kept.
    assert Counter(map(entry_class, google_lines)) == {
        "simplified": 11378,
        "traditional": 3264,
        "english": 3555,
        "japanese": 573,
        "korean": 84,
        "emoji": 56,
        "number": 1179,
        "special": 106,
        "bopomofo": 36,
        "hand-deleted": 132,
        "blank": 1,
        "other": 764,
    }
    assert Counter(entry_class(line) for line in google_lines if keep(line)) == {
        "simplified": 5689,
        "english": 1320,
        "number": 42,
        "special": 106,
        "other": 764,
    }


@pytest.mark.parametrize(
    ("entry", "name", "kept"),
    [
        ("[PAD]", "special", True),
        ("[unused99]", "special", True),
        ("国", "simplified", True),
        ("##国", "simplified", False),
        ("國", "traditional", False),
        ("##國", "traditional", False),
        ("捲", "simplified", True),  # OpenCC converts it, the original's table does not
        ("著", "traditional", False),  # and the reverse
        ("㗎", "other", True),  # outside U+4E00 to U+9FA5
        ("##㗎", "other", True),
        ("a", "english", True),
        ("hello", "english", False),
        ("##ello", "english", True),
        ("##o2", "english", True),
        ("##f2016", "hand-deleted", False),
        ("com™", "english", False),
        ("##3d", "number", False),
        ("7", "number", True),
        ("##7", "number", True),
        ("##７", "number", True),
        ("2016", "number", False),  # comes back at another place
        ("①", "other", True),
        ("の", "japanese", False),
        ("##クok", "japanese", False),
        ("ｲ", "japanese", False),
        ("ｯ", "other", True),
        ("ᄀ", "korean", False),
        ("ㆍ", "other", True),
        ("❤2017", "emoji", False),
        ("ㄅ", "bopomofo", False),
        ("ㄧ", "other", True),
        ("℃", "other", True),
        ("##℃", "hand-deleted", False),
        ("ａ", "hand-deleted", False),
        ("##ａ", "other", True),
        ("##ｃ", "hand-deleted", False),
        ("▲top", "hand-deleted", False),
        ("...", "other", True),
        ("##°c", "other", True),
        ("#", "other", True),
        ("###", "other", True),
        ("\u2028", "blank", False),
        ("##\u2028", "other", True),
    ],
)
def test_class_and_fate_of_an_entry(entry, name, kept):
    assert (entry_class(entry), keep(entry)) == (name, kept)


def test_added_entries_follow_the_double_quote_and_the_nine():
    lines = ['"', "8", "9", "##\u2028", "\u2028", "国"]
    lines += ["hello"] * (21_128 - len(lines))
    numbers = [str(n) for n in range(10, 101)] + [str(n) for n in range(2016, 2023)]
    assert clue_vocabulary(lines) == ['"', "“", "‘", "8", "9", *numbers, "##", "国"]


@pytest.mark.parametrize("count", [0, 21_127, 21_129])
def test_another_number_of_lines_is_refused(count):
    with pytest.raises(ValueError, match=rf"expected 21128 lines, got {count}\b") as error:
        clue_vocabulary(["a"] * count)
    assert "\n" not in str(error.value)
