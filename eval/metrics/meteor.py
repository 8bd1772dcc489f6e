"""METEOR (Lavie & Agarwal 2007) as `nltk.translate.meteor_score` computes it, to the last bit, but faster.

Words of the prediction are matched with words of the reference in three rounds, each over what the one before left:
equal words, equal Porter stems, synonyms by WordNet (of stems). In each round the last word of the prediction chooses
first, and takes the last free word of the reference. WordNet comes from a local folder or zip; nothing is downloaded.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nltk.data
import numpy as np
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import FileSystemPathPointer, ZipFilePathPointer
from nltk.stem.porter import PorterStemmer

from job.errors import InputError

# NLTK's defaults: weight of precision against recall, and exponent and weight of the penalty for scattered matches.
_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5


class WordNet:
    """Synonyms out of a local WordNet, as METEOR uses them."""

    def __init__(self, reader: WordNetCorpusReader) -> None:
        self.reader = reader
        self.version: str = reader.get_version()
        """Such as 3.0; scores of different versions differ."""
        self._synonyms: dict[str, frozenset[str]] = {}

    def synonyms(self, word: str) -> frozenset[str]:
        """All lemmas of all synsets of a word but itself, without those of several words."""
        found = self._synonyms.get(word)
        if found is None:
            lemmas = (lemma for synset in self.reader.synsets(word) for lemma in synset.lemma_names())
            found = self._synonyms[word] = frozenset(lemma for lemma in lemmas if "_" not in lemma) - {word}
        return found


class _EnglishReader(WordNetCorpusReader):
    """NLTK's reader without what only other languages need: a map to WordNet 3.0, which must be NLTK's own copy."""

    def map_wn(self, version: str = "wordnet") -> None:
        """No map."""


def read_wordnet(path: Path) -> WordNet:
    """WordNet from its folder, from `wordnet.zip`, or from an NLTK data folder that holds one in `corpora`.

    Raises `InputError` where it is missing or incomplete.
    """
    path = Path(path)
    places = [path, *(path / inside for inside in ("wordnet.zip", "wordnet", "corpora/wordnet.zip", "corpora/wordnet"))]
    place = next((place for place in places if place.is_file() or (place / "data.noun").is_file()), None)
    if place is None:
        raise InputError(
            f"no WordNet at {path}; METEOR needs NLTK's wordnet.zip (or its folder), which "
            "`python -m nltk.downloader -d DIR wordnet` puts into DIR/corpora"
        )
    place = place.resolve()
    if str(place.parent) not in nltk.data.path:
        nltk.data.path.append(str(place.parent))  # NLTK opens no file outside the folders on its path
    try:
        root = ZipFilePathPointer(str(place), "wordnet/") if place.is_file() else FileSystemPathPointer(str(place))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The multilingual functions")
            return WordNet(_EnglishReader(root, None))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{place} is not a whole WordNet: {error}; fetch it again") from None


class Meteor:
    """The metric, with what it has learnt about words so far: score many texts with one object."""

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet
        self._stemmer = PorterStemmer()
        self._stems: dict[str, str] = {}

    def scores(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
        """The score of each pair of texts, given their tokens: float64 [pairs], 0 to 1."""
        return np.array([self._score(*pair) for pair in zip(predictions, references, strict=True)], np.float64)

    def _score(self, prediction: Sequence[str], reference: Sequence[str]) -> float:
        places = self._align([word.lower() for word in prediction], [word.lower() for word in reference])
        matches = len(places)
        if not matches:
            return 0.0
        precision = matches / len(prediction)
        recall = matches / len(reference)
        mean = (precision * recall) / (_ALPHA * precision + (1 - _ALPHA) * recall)
        # A chunk ends where the next word of the prediction is unmatched, or matches another word than the next.
        chunks = sum(places.get(word + 1) != place + 1 for word, place in places.items())
        return (1 - _GAMMA * (chunks / matches) ** _BETA) * mean

    def _align(self, prediction: list[str], reference: list[str]) -> dict[int, int]:
        """Matched places: word of the prediction -> word of the reference."""
        free: dict[str, list[int]] = {}
        for place, word in enumerate(reference):
            free.setdefault(word, []).append(place)
        matched: dict[int, int] = {}
        rest = []
        for place in range(len(prediction) - 1, -1, -1):
            candidates = free.get(prediction[place])
            if candidates:
                matched[place] = candidates.pop()
            else:
                rest.append(place)
        if not rest or len(matched) == len(reference):
            return matched

        free_stems: dict[str, list[int]] = {}
        for place in sorted(place for candidates in free.values() for place in candidates):
            free_stems.setdefault(self._stem(reference[place]), []).append(place)
        for place in rest:
            stem = self._stem(prediction[place])
            candidates = free_stems.get(stem)
            if candidates:
                matched[place] = candidates.pop()
        if len(matched) == len(reference):
            return matched

        for place in rest:
            if place in matched:
                continue
            synonyms = self.wordnet.synonyms(self._stem(prediction[place]))
            if synonyms.isdisjoint(free_stems):
                continue
            found = [candidates for word in synonyms & free_stems.keys() if (candidates := free_stems[word])]
            if found:
                matched[place] = max(found, key=lambda candidates: candidates[-1]).pop()
        return matched

    def _stem(self, word: str) -> str:
        stem = self._stems.get(word)
        if stem is None:
            stem = self._stems[word] = self._stemmer.stem(word)
        return stem
