"""What of a raw corpus is kept: rules for lines, and fingerprints by which repeats are found."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clue_jax.data.order import mix

_SPACES = re.compile(r"[\s\u200b-\u200f\u2028-\u202e\u2060\ufeff]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
# A line is dropped by the first rule that finds something in it; the report counts by name.
RULES = (
    # Characters that no reader could decode, and long runs of one character.
    ("garbled", re.compile(r"\ufffd|([^\s])\1{9,}|锟斤拷|烫烫烫")),
    # Remains of pages and programs.
    ("markup", re.compile(r"[{}]|</?[a-zA-Z][^>]*>|&[a-z]{2,6};|function\s*\(|javascript", re.I)),
    (
        "boilerplate",
        re.compile(
            r"版权所有|All Rights Reserved|ICP备|公网安备|责任编辑|转载请注明|未经授权|免责声明"
            r"|点击(?:这里|此处|查看|下载|进入)|上一篇|下一篇|返回(?:首页|顶部)|扫一扫|二维码"
            r"|(?:用户|会员)?登录\W*(?:免费)?注册|加入收藏|设为首页|关注(?:我们|微信|公众号)",
            re.I,
        ),
    ),
)
_SHINGLE = 8  # characters
BANDS, ROWS = 16, 4  # of a sketch: documents that share four fifths meet in 99.98 of 100 cases
SKETCH = BANDS * ROWS


@dataclass(frozen=True)
class Limits:
    """Which lines and documents are kept.

    Attributes:
      line_characters: a shorter line is dropped.
      chinese_share: so is one with a smaller share of Chinese among its characters.
      document_characters: a document with fewer left is dropped whole.
    """

    line_characters: int = 5
    chinese_share: float = 0.5
    document_characters: int = 20


def clean_line(line: str) -> str:
    """A line with its white space made single spaces, without invisible characters; a space between
    two Chinese characters goes."""
    line = _SPACES.sub(" ", _CONTROL.sub(" ", line)).strip()
    return re.sub(f"(?<={_CHINESE.pattern}) (?={_CHINESE.pattern})", "", line)


def fault_of(line: str, limits: Limits) -> str | None:
    """Why a cleaned line is dropped: "short", "foreign" or a rule's name; None if it is not."""
    if not line or len(line) < limits.line_characters:
        return "short"
    letters = len(line) - line.count(" ")
    is_foreign = len(_CHINESE.findall(line)) < limits.chinese_share * letters
    broken = next((name for name, pattern in RULES if pattern.search(line)), None)
    return broken or ("foreign" if is_foreign else None)


def clean_document(lines: Iterable[str], limits: Limits, dropped: Counter[str]) -> list[str]:
    """The lines of a document that are kept; none if too little is left.

    Args:
      lines: as they are in the file.
      limits: what is kept.
      dropped: counts what is not, by reason.
    """
    kept = []
    for line in map(clean_line, lines):
        fault = fault_of(line, limits)
        if fault:
            dropped[fault] += 1
        else:
            kept.append(line)
    if kept and sum(map(len, kept)) < limits.document_characters:
        dropped["short document"] += len(kept)
        return []
    return kept


# ---- Repeats -------------------------------------------------------------------------------------


def digest(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def sketch(lines: Sequence[str]) -> np.ndarray:
    """uint32 [64], of which two documents share the part that their pieces of eight characters
    have in common (MinHash; Broder 1997)."""
    text = np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(text) < _SHINGLE:
        text = np.pad(text, (0, _SHINGLE - len(text)))
    windows = np.lib.stride_tricks.sliding_window_view(text, _SHINGLE)
    pieces = np.unique(mix(*windows.T))
    least = np.full(SKETCH, 2**64 - 1, np.uint64)
    for start in range(0, len(pieces), 4096):  # bounds the memory for a book
        hashed = mix(pieces[start : start + 4096, None], np.arange(SKETCH))
        least = np.minimum(least, hashed.min(axis=0))
    return (least >> np.uint64(32)).astype(np.uint32)


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """bool, where a number stands for the first time."""
    is_first = np.zeros(len(digests), bool)
    is_first[np.unique(digests, return_index=True)[1]] = True
    return is_first


def near_repeats(sketches: np.ndarray, share: float) -> np.ndarray:
    """Which documents repeat most of an earlier one.

    Args:
      sketches: uint32 [documents, 64].
      share: of what is in either, that is in both.

    Returns:
      bool [documents]. A document is compared with the first that has the same band of its sketch,
      for each of the 16 bands.
    """
    repeats = np.zeros(len(sketches), bool)
    bands = sketches.reshape(len(sketches), BANDS, ROWS).astype(np.uint64)
    numbers = np.arange(len(sketches))
    for band in range(BANDS):
        keys = mix(*bands[:, band].T)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        earlier = first[group]
        alike = (sketches == sketches[earlier]).mean(axis=1)
        repeats |= (earlier < numbers) & (alike >= share)
    return repeats
