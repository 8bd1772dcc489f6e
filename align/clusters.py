"""Clusters of proteins by sequence identity, so that a split can keep relatives on one side.

Two ways, the same meaning: sequences are linked where a local alignment reaches the identity (identical residues among
the alignment's columns, gaps included) over at least half of the shorter one, and clusters are the connected
components; so no linked pair is ever separated. Neither way sees every pair: both start from shared words, and
alignments of some twenty residues, as peptides have them by chance, are missed by both.

- `mmseqs2`: MMseqs2's prefilter and alignment (Steinegger & Soeding 2017), if the program is installed. Sensitive down
  to about 20 % identity and made for millions of sequences.
- `kmers`: as BLAST does it: candidates share words of five residues, found by sorting all words (time grows with the
  number of shared words, not with the square of the number of sequences); those with a good stretch without gaps along
  a shared word's diagonal are aligned by Biopython. Reliable from about 50 % identity; meant for up to some ten
  thousand sequences where MMseqs2 is not installed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from Bio import Align
from Bio.Align import substitution_matrices

from job.errors import InputError

MINIMUM_COVERAGE = 0.5
"""Share of the shorter sequence that an alignment must span."""
LOWEST_KMER_IDENTITY = 0.4
"""Below this, relatives share too few words of five residues to be found."""

_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
_WORD = 5
_WORDS_AT_ONCE = 20_000_000
_NEIGHBOURS = 64  # a word's sequences are compared with the next so many that have it: families beyond are chained
_SHORT = 100  # residues; below, one shared word makes a candidate
_SURE_SHARE = 0.3  # of the shorter one's words: about 0.3 ** (1 / 5) = 79 % identity, no alignment needed
_SEGMENT_SCORE = 50  # BLOSUM62, of the best stretch without gaps: 30 residues at 50 % identity have about 60
_DIAGONALS = 4  # those with most shared words
_MOST_CELLS = 25_000_000  # of an alignment matrix; beyond, the share of words decides
_LONG_SHARE = 0.05


class Components:
    """Connected components of numbered things (union-find with path halving); roots are the smallest members."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def find(self, item: int) -> int:
        """The smallest member of the item's component."""
        parents = self._parents
        while parents[item] != item:
            parents[item] = item = parents[parents[item]]
        return item

    def join(self, first: int, second: int) -> None:
        """Make two components one."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parents[high] = low

    def labels(self) -> list[int]:
        """For each item, the smallest member of its component."""
        return [self.find(item) for item in range(len(self._parents))]


def has_mmseqs() -> bool:
    """Whether the program `mmseqs` is installed."""
    return shutil.which("mmseqs") is not None


def cluster(sequences: Sequence[str], identity: float, method: str) -> list[int]:
    """Cluster label of each sequence: the number of its first member.

    Args:
        sequences: amino acids, any case; each once.
        identity: 0 to 1, of the aligned part.
        method: "mmseqs2" or "kmers".

    Raises `InputError` where the method is not there, cannot do that identity, or fails.
    """
    if not 0 < identity <= 1:
        raise InputError(f"--identity is {identity}, but must be above 0 and at most 1")
    if method == "mmseqs2":
        return _cluster_with_mmseqs(sequences, identity)
    if identity < LOWEST_KMER_IDENTITY:
        raise InputError(
            f"--identity {identity} needs MMseqs2 (apt install mmseqs2): the embedded clustering finds relatives down "
            f"to {LOWEST_KMER_IDENTITY}"
        )
    return _cluster_by_words(sequences, identity)


def _cluster_with_mmseqs(sequences: Sequence[str], identity: float) -> list[int]:
    if not has_mmseqs():
        raise InputError("the program 'mmseqs' is not installed; install mmseqs2, or give --clusters kmers")
    components = Components(len(sequences))
    with tempfile.TemporaryDirectory(prefix="align-mmseqs-") as directory:
        fasta, table = Path(directory) / "sequences.fasta", Path(directory) / "pairs.tsv"
        fasta.write_text("".join(f">{n}\n{sequence.upper()}\n" for n, sequence in enumerate(sequences)))
        command = [
            "mmseqs", "easy-search", str(fasta), str(fasta), str(table), str(Path(directory) / "work"),
            "--min-seq-id", str(identity), "-s", "7.5" if identity < 0.4 else "5.7", "--max-seqs", "1000",
            "--format-output", "query,target,alnlen,qlen,tlen", "-v", "1",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise InputError(f"mmseqs ended with status {done.returncode}: {last[0]}; or give --clusters kmers")
        with open(table, encoding="utf-8") as pairs:
            for line in pairs:
                first, second, columns, *lengths = map(int, line.split())
                if columns >= MINIMUM_COVERAGE * min(lengths):  # none of mmseqs's own coverage modes is of the shorter
                    components.join(first, second)
    return components.labels()


def _cluster_by_words(sequences: Sequence[str], identity: float) -> list[int]:
    components = Components(len(sequences))
    residues = [_residues(sequence) for sequence in sequences]
    words = _Words(residues)
    pairs, shared = _shared_words(words)
    first, second = pairs // len(sequences), pairs % len(sequences)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    candidates = (shared >= 2) | (np.minimum(lengths[first], lengths[second]) < _SHORT)
    first, second, shared = first[candidates], second[candidates], shared[candidates]
    share = shared / np.maximum(np.minimum(words.sizes[first], words.sizes[second]), 1)
    related = _aligner(identity)
    for place in np.argsort(-share, kind="stable").tolist():  # the likeliest first: fewer alignments in all
        one, other = int(first[place]), int(second[place])
        if components.find(one) == components.find(other):
            continue
        if share[place] < _SURE_SHARE:
            if words.best_segment(one, other) < _SEGMENT_SCORE:
                continue
            if lengths[one] * lengths[other] > _MOST_CELLS:
                if share[place] < _LONG_SHARE:
                    continue
            elif not related(sequences[one], sequences[other]):
                continue
        components.join(one, other)
    return components.labels()


def _residues(sequence: str) -> np.ndarray:
    """Residue numbers 0 to 19, 20 for any other character: uint8 [residues]."""
    codes = np.full(256, len(_RESIDUES), np.uint8)
    for number, residue in enumerate(_RESIDUES):
        codes[[ord(residue), ord(residue.lower())]] = number
    return codes[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]


def _scores() -> np.ndarray:
    """BLOSUM62 by residue number: float32 [21, 21]; anything unknown is -1 as X is."""
    matrix = substitution_matrices.load("BLOSUM62")
    letters = _RESIDUES + "X"
    return np.array([[matrix[one][other] for other in letters] for one in letters], np.float32)


class _Words:
    """The different words of all sequences, each with a place where it occurs.

    Words of fewer than three different residues, or with a residue outside the twenty, are left out: repeats of one or
    two residues say nothing of descent.

    Attributes:
        words: uint32 [W], those of one sequence after those of another, ascending within each.
        places: int32 [W], the first residue of the word in its sequence.
        sizes: int64 [N], how many each sequence has.
    """

    def __init__(self, residues: Sequence[np.ndarray]) -> None:
        self._residues = residues
        self._scores = _scores()
        powers = len(_RESIDUES) ** np.arange(_WORD, dtype=np.int64)
        words, places = [np.empty(0, np.uint32)], [np.empty(0, np.int32)]
        self.sizes = np.zeros(len(residues), np.int64)
        for number, sequence in enumerate(residues):
            if len(sequence) < _WORD:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(sequence, _WORD)
            ordered = np.sort(windows, axis=1)
            usable = (ordered[:, -1] < len(_RESIDUES)) & ((np.diff(ordered, axis=1) > 0).sum(axis=1) >= 2)
            starts = np.flatnonzero(usable)
            found, where = np.unique(windows[starts] @ powers, return_index=True)
            words.append(found.astype(np.uint32))
            places.append(starts[where].astype(np.int32))
            self.sizes[number] = len(found)
        self.words, self.places = np.concatenate(words), np.concatenate(places)
        self._ends = np.cumsum(self.sizes).tolist()

    def owners(self) -> np.ndarray:
        """Whose word each is: int32 [W]."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    def _slice(self, sequence: int) -> slice:
        return slice(self._ends[sequence] - int(self.sizes[sequence]), self._ends[sequence])

    def best_segment(self, first: int, second: int) -> float:
        """BLOSUM62 score of the best stretch without gaps along the diagonals where most shared words lie."""
        mine, theirs = self._slice(first), self._slice(second)
        words, others = self.words[mine], self.words[theirs]
        found = np.minimum(np.searchsorted(others, words), len(others) - 1)
        common = others[found] == words
        shifts = self.places[mine][common] - self.places[theirs][found[common]]
        values, often = np.unique(shifts, return_counts=True)
        best = 0.0
        for shift in values[np.argsort(-often, kind="stable")[:_DIAGONALS]].tolist():
            one, other = self._residues[first][max(shift, 0) :], self._residues[second][max(-shift, 0) :]
            length = min(len(one), len(other))
            sums = np.cumsum(self._scores[one[:length], other[:length]])
            lowest = np.minimum(np.minimum.accumulate(np.concatenate([[0], sums[:-1]])), 0)
            best = max(best, float((sums - lowest).max()))
        return best


def _shared_words(found: _Words) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of sequences (first * N + second, int64) and how many words each shares."""
    words, owners, count = found.words, found.owners(), len(found.sizes)
    parts = max(1, -(-len(words) // _WORDS_AT_ONCE))
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for part in range(parts):
        chosen = np.flatnonzero(words % parts == part) if parts > 1 else slice(None)
        order = np.argsort(words[chosen], kind="stable")  # owners stay ascending within a word
        some_words, some_owners = words[chosen][order], owners[chosen][order].astype(np.int64)
        for distance in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(some_words[distance:] == some_words[:-distance])
            if not len(same):
                break
            more, often = np.unique(some_owners[same] * count + some_owners[same + distance], return_counts=True)
            pairs, places = np.unique(np.concatenate([pairs, more]), return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, often]), len(pairs)).astype(np.int64)
    return pairs, counts


def _aligner(identity: float) -> Callable[[str, str], bool]:
    """A test of two sequences: local alignment with BLOSUM62 and gaps of 11 + 1 per residue, as BLAST's defaults."""
    aligner = Align.PairwiseAligner(mode="local")
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    aligner.open_gap_score, aligner.extend_gap_score = -12, -1
    known = str.maketrans({letter: "X" for letter in "UOJuoj"} | {letter: "" for letter in "-. "})

    def related(first: str, second: str) -> bool:
        first, second = (sequence.upper().translate(known) for sequence in (first, second))
        if not first or not second:
            return False
        alignments = aligner.align(first, second)
        if not alignments.score:
            return False
        counts = alignments[0].counts()
        columns = counts.identities + counts.mismatches + counts.gaps
        return counts.identities >= identity * columns and columns >= MINIMUM_COVERAGE * min(len(first), len(second))

    return related
