"""The longest run of words that a text shares with any of a corpus, word by word."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def longest_shared(texts: Sequence[str], corpus: Sequence[str]) -> NDArray[np.int64]:
    """Words of the longest span [T] that each text has in common with some text of the corpus; 0 where there is none.

    Spans of every length are compared by 64-bit hashes, one length after another, until no text has a longer one.
    """
    numbers: dict[str, int] = {}
    asked, owner = _numbered(texts, numbers)
    known, _ = _numbered(corpus, numbers)
    longest = np.zeros(len(texts), dtype=np.int64)
    hash_A, hash_K = np.zeros_like(asked), np.zeros_like(known)
    for length in range(1, max(len(asked), 1)):
        # Windows that run over the end of a text hold the separator there, which no other text has.
        hash_A = hash_A[: len(asked) - length + 1] * _BASE + asked[length - 1 :]
        hash_K = hash_K[: len(known) - length + 1] * _BASE + known[length - 1 :]
        found = np.unique(owner[: len(hash_A)][np.isin(hash_A, hash_K)])
        if not len(found):
            break
        longest[found] = length
    return longest


def _numbered(texts: Sequence[str], numbers: dict[str, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Words as numbers, each text followed by a number of its own; and which text each is of."""
    words: list[int] = []
    owner: list[int] = []
    for place, text in enumerate(texts):
        row = [numbers.setdefault(word, len(numbers) + 1) for word in _WORD.findall(text.lower())]
        row.append(numbers.setdefault(f"end of {len(numbers)}", len(numbers) + 1))
        words += row
        owner += [place] * len(row)
    return np.array(words, dtype=np.uint64), np.array(owner, dtype=np.int64)
