"""Which texts share runs of words: the n-grams of some texts, looked for in any number of others.

Words are compared as `duplicates` compares texts: without regard to case, punctuation, white space and compatibility
forms of letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case; punctuation separates them."""
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text)


class NgramIndex:
    """The n-grams of some texts, to be looked for in others.

    Args:
        texts: whose n-grams are looked for; a text of fewer than `n` words has none.
        n: words of an n-gram.

    Attributes:
        count: how many different n-grams there are.
        of_text: for each text the numbers of its n-grams, int64, each once.

    An n-gram is found by a 64-bit hash over its words: among 10^12 compared pairs the chance of any false find is below
    one in ten million. Memory is that of the texts' n-grams (8 bytes each) and words, whatever is searched.
    """

    def __init__(self, texts: Sequence[str], n: int) -> None:
        if n < 1:
            raise ValueError(f"an n-gram has one or more words, not {n}")
        self.n = n
        self._numbers: dict[str, int] = {}  # word -> number from 1; 0 is any word that no text has
        numbered = [
            np.array([self._numbers.setdefault(word, len(self._numbers) + 1) for word in words(text)], np.int64)
            for text in texts
        ]
        random = np.random.default_rng(0)  # the same hashes in every process
        limits = np.iinfo(np.uint64)
        self._hashes = random.integers(0, limits.max, len(self._numbers) + 1, np.uint64, endpoint=True)
        self._factors = random.integers(0, limits.max, n, np.uint64, endpoint=True) | np.uint64(1)
        hashed = [self._ngrams(numbers) for numbers in numbered]
        self._wanted = np.unique(np.concatenate(hashed)) if hashed else np.empty(0, np.uint64)
        self.count = len(self._wanted)
        self.of_text = [np.unique(np.searchsorted(self._wanted, some)) for some in hashed]

    def find(self, text: str) -> np.ndarray:
        """The numbers of the wanted n-grams that occur in a text: int64, each once."""
        found = words(text)
        if len(found) < self.n or self.count == 0:
            return np.empty(0, np.int64)
        number = self._numbers.get
        hashes = self._ngrams(np.array([number(word, 0) for word in found], np.int64))
        places = np.searchsorted(self._wanted, hashes)
        places[places == self.count] = 0
        return np.unique(places[self._wanted[places] == hashes])

    def _ngrams(self, numbers: np.ndarray) -> np.ndarray:
        """Hashes of the n-grams of a text whose words have these numbers, uint64, but those with an unknown word."""
        if len(numbers) < self.n:
            return np.empty(0, np.uint64)
        known = np.concatenate([[0], np.cumsum(numbers > 0)])
        starts = np.flatnonzero(known[self.n :] - known[: -self.n] == self.n)
        hashes = np.zeros(len(starts), np.uint64)
        for offset, factor in enumerate(self._factors):  # unsigned arithmetic wraps, as it should
            hashes += self._hashes[numbers[starts + offset]] * factor
        return hashes
