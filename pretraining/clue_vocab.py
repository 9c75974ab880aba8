"""Rebuild CLUEVocab (8,021 entries) from the vocabulary of Google's Chinese BERT.

The rules are those of `bert_dict.py`, the vocabulary builder of CLUEPretrainedModels. Each entry
falls into one class; the class decides whether it stays. Where the original's choice follows from
no rule (entries it deleted by hand, characters its converter treats differently from OpenCC), the
fact stands here as a small table.

"Piece" means an entry with the prefix `##`, "body" the entry without that prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

GOOGLE_VOCAB_LINES = 21_128

# Typographic quotation marks that Google's vocabulary lacks; the original adds the two opening
# ones after the straight double quote, and not the closing ones.
ADDED_AFTER_QUOTE = ("“", "‘")

# Numbers take the place of all deleted multi-digit entries: 10 to 100, and the years current when
# the vocabulary was made. They follow "9".
ADDED_AFTER_NINE = tuple(str(n) for n in (*range(10, 101), *range(2016, 2023)))

SPECIAL_TOKENS = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "<T>"})

# Characters that OpenCC (1.4.2, t2s) converts and the original's converter leaves alone: they
# count as simplified. Mostly variants that are absent from the original's older table.
ORIGINAL_LEAVES_UNCHANGED = frozenset(
    "佔侷俬倖僱剷勳唸喫嗰嚐囉夥孃峯崑崙巖弔彫彿悽慾拚捱捲擡敎昇暐査槓"
    "樑樫歎殭氾汎洩湧溼滙燻牴璿甕痠癒癡眞祕稜箇篠籤紮絃綑羣羨脣脩舖菸"
    "蒐蓆蔘薑薹蝨蠍蠔証諡譁讚豔蹟遶醃醣釦鍊鎌鑑閒闇闢陞霑頫餵鵰麴"
)

# The reverse: the original's converter changes them (余 to 馀, 著 to 着, 覆 to 复), OpenCC does
# not. They count as traditional.
ORIGINAL_CONVERTS = frozenset("余垵幺瞭著藉衹覆阪")

# The characters of Google's vocabulary that the pattern of the `emoji` package (1.7) matches.
# Neighbours such as ★ ● ♪ ♡ are no emoji by that pattern.
EMOJI = frozenset("©®™↔↗↘▪▫▶☀☕☺♀♂♠♣♥♦✈✔✖✨❤👍🔥😂😎")

# Not Korean but a Canadian syllabic (used in emoticons); the original lists it among the jamo.
COUNTED_AS_KOREAN = frozenset("ᗜ")

# The one Bopomofo letter of the vocabulary that is absent from the original's list.
BOPOMOFO_KEPT = frozenset("ㄧ")

# Deleted by hand though they look like English word pieces.
HAND_DELETED_ENGLISH = frozenset({"##f2016", "##cm～"})

# Symbols deleted by hand as pieces only; the same symbols stay as entries of their own. They are
# the ones among the frequent pieces, which precede the plain `##` copy of the character list.
HAND_DELETED_PIECES = frozenset("℃★～°☆●㎡♪×｜▲→▼○∥◆ω■↑и＋а◎─＞²│↓＝₂я←")

# All other full-width letters are deleted by hand, alone and as pieces; these three were missed.
FULL_WIDTH_PIECES_KEPT = frozenset({"##ａ", "##ｂ", "##ｍ"})

# Symbol sequences (▲top, ～10, ★★, ￥799) are deleted by hand, except those with these bodies.
SYMBOL_SEQUENCES_KEPT = frozenset({"...", "──", "○○", "°c"})


@functools.cache
def _to_simplified() -> Callable[[str], str]:
    import opencc

    return opencc.OpenCC("t2s").convert


def _is_traditional(body: str) -> bool:
    """Whether the original's converter would change `body`, which begins with a Han character."""
    if body in ORIGINAL_LEAVES_UNCHANGED:
        return False
    return body in ORIGINAL_CONVERTS or _to_simplified()(body) != body


def _is_korean(char: str) -> bool:
    return "\u1100" <= char <= "\u11ff" or "\uac00" <= char <= "\ud7ff" or char in COUNTED_AS_KOREAN


def _is_japanese(char: str) -> bool:
    """Kana, and half-width katakana from A to N (the smaller ones and the marks stay)."""
    return "\u3040" <= char <= "\u30ff" or "\uff71" <= char <= "\uff9d"


def _is_bopomofo(char: str) -> bool:
    return "\u3105" <= char <= "\u3129" and char not in BOPOMOFO_KEPT


def _is_deleted_by_hand(token: str, body: str) -> bool:
    """Whether the original's list of hand deletions holds this entry of no other class."""
    if len(body) > 1:
        return body not in SYMBOL_SEQUENCES_KEPT
    if "\uff41" <= body <= "\uff5a":  # full-width a to z
        return token not in FULL_WIDTH_PIECES_KEPT
    return token != body and body in HAND_DELETED_PIECES


def entry_class(entry: str) -> str:
    """Name the class of one entry of Google's vocabulary.

    The classes and their order follow `bert_dict.py`, which looks at the first character after
    `##` only: `クok` is Japanese, `com™` English, `10℃` a number. Han means U+4E00 to U+9FA5
    there, so 㗎 and 々 are "other".

    Returns one of: blank, special, simplified, traditional, korean, japanese, english, emoji,
    number, bopomofo, hand-deleted, other.
    """
    token = entry.strip()
    if not token:
        return "blank"
    if token in SPECIAL_TOKENS or token.startswith("[unused"):
        return "special"
    if token in HAND_DELETED_ENGLISH:
        return "hand-deleted"
    body = token.removeprefix("##")
    first = body[:1]
    if "\u4e00" <= first <= "\u9fa5":
        return "traditional" if _is_traditional(body) else "simplified"
    if _is_korean(first):
        return "korean"
    if _is_japanese(first):
        return "japanese"
    if "a" <= first <= "z":
        return "english"
    if first in EMOJI:
        return "emoji"
    if first.isdecimal():
        return "number"
    if _is_bopomofo(first):
        return "bopomofo"
    return "hand-deleted" if _is_deleted_by_hand(token, body) else "other"


def keep(entry: str) -> bool:
    """Whether an entry of Google's vocabulary stays in CLUEVocab, by the rules of `bert_dict.py`.

    Simplified characters stay as entries of their own, not as pieces. English keeps its letters
    and all pieces, so that a word is always spelt as letter plus pieces. Numbers keep the single
    digits of any script. Special tokens and other symbols stay; every other class goes.
    """
    token = entry.strip()
    is_piece = token.startswith("##")
    match entry_class(token):
        case "special" | "other":
            return True
        case "simplified":
            return not is_piece
        case "english":
            return is_piece or len(token) == 1
        case "number":
            return len(token.removeprefix("##")) == 1
        case _:
            return False


def clue_vocabulary(google_vocab: Sequence[str]) -> list[str]:
    """Return the 8,021 entries of CLUEVocab, in order, from the lines of Google's vocabulary.

    The lines must have been split at line feeds only: two entries hold U+2028, at which
    `str.splitlines` would split as well. Entries lose surrounding white space as in
    `bert_dict.py`; therefore U+2028 disappears and its piece becomes a bare `##`.

    Raises ValueError if there are not 21,128 lines.
    """
    if len(google_vocab) != GOOGLE_VOCAB_LINES:
        raise ValueError(
            f"Google's Chinese vocabulary: expected {GOOGLE_VOCAB_LINES} lines, "
            f"got {len(google_vocab)} (split at line feeds only, without a last empty line)"
        )
    kept: list[str] = []
    for entry in google_vocab:
        if not keep(entry):
            continue
        token = entry.strip()
        kept.append(token)
        if token == '"':
            kept.extend(ADDED_AFTER_QUOTE)
        elif token == "9":
            kept.extend(ADDED_AFTER_NINE)
    return kept
