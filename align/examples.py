"""Questions as ids with places for structures, and batches of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.esm import ProteinBatch, collate_proteins
from align.gnn import MoleculeBatch, collate_graphs
from align.molecules import MoleculeError, MoleculeGraph, count_atoms, featurise
from align.prompts import Kind, Structure, Turn, build_prompt
from align.proteins import count_tokens, tokenise
from align.questions import Question
from align.settings import AlignedSettings
from job.errors import InputError

IGNORED = -100
"""The label of a position that is not trained; torch's cross entropy leaves it out."""

PLACES: dict[Kind, int] = {"molecule": -1, "protein": -2}
"""The id at a place that an embedding of a structure takes."""

_CACHED_TEXTS = 4096  # prompts repeat few texts: the system text and, in most data sets, a handful of questions


class StructureCache(Protocol):
    """Stored encoder outputs (`align.features.FeatureCache`)."""

    width: int

    def lookup(self, structure: str) -> np.ndarray:
        """[positions, width] of a SMILES or a sequence; uint16 holds the bits of bfloat16."""


class ExampleError(InputError):
    """A question that cannot be put to this model. `reason` is one of a few short texts, for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Example:
    """One prompt, with or without its answer."""

    ids: np.ndarray
    """int64 [T]; -1 (molecule) and -2 (protein) at places that embeddings of structures take"""
    labels: np.ndarray
    """int64 [T]: the ids of the answer and the end token, -100 elsewhere; not shifted"""
    graphs: list[MoleculeGraph] = field(default_factory=list)
    """in prompt order; empty where features are cached"""
    proteins: list[np.ndarray] = field(default_factory=list)
    """ids int64 [residues + 2] of each chain; likewise"""
    molecule_features: list[np.ndarray] = field(default_factory=list)
    """[atoms, width] of each molecule, where they are cached"""
    protein_features: list[np.ndarray] = field(default_factory=list)
    """[residues + 2, width] of each chain, where they are cached"""

    def __len__(self) -> int:
        return len(self.ids)


class FeatureBatch(NamedTuple):
    """Cached encoder outputs of several structures, in place of what the encoder would read."""

    values: Tensor
    """[N, width]"""
    lengths: tuple[int, ...]
    """positions of each structure; their sum is N"""

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The same batch on another device."""
        return FeatureBatch(self.values.to(device, non_blocking=True), self.lengths)


@dataclass(frozen=True)
class Batch:
    """Rows of equal length, and the structures of all rows in row order."""

    ids: Tensor
    """int64 [B, T]; see `Example`"""
    attention_mask: Tensor
    """int64 [B, T]: 0 at padding"""
    labels: Tensor
    """int64 [B, T]; see `Example`"""
    molecules: MoleculeBatch | FeatureBatch
    proteins: ProteinBatch | FeatureBatch
    answer_tokens: int
    """labels that are trained"""
    shared: int = 0
    """leading columns of text that all rows have alike, before any answer: most of the system's words"""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device, non_blocking=True) for name in ("ids", "attention_mask", "labels")
        }
        return replace(self, **moved, molecules=self.molecules.to(device), proteins=self.proteins.to(device))


class Encoding:
    """From questions to examples and batches, for one tokenizer and one model's settings.

    A model without a pad token (Llama-2) is padded with its end token: padding is known by the mask, never by the id,
    so the end token of an answer is always trained.

    Policy for long questions: no question, prompt or structure is cut (but for chains beyond `max_residues`, see
    `align.proteins`). An answer that would exceed `max_length` is cut at its end and then has no end token; a prompt
    that leaves no room for an answer is refused.

    Args:
        tokenizer: the language model's.
        settings: the model's.
        molecule_cache, protein_cache: stored encoder outputs to use in place of the structures.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: AlignedSettings,
        molecule_cache: StructureCache | None = None,
        protein_cache: StructureCache | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("the language model's tokenizer has no end-of-text token, which ends an answer")
        self.tokenizer = tokenizer
        self.settings = settings
        self.end_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._caches: dict[Kind, StructureCache | None] = {"molecule": molecule_cache, "protein": protein_cache}
        self.start_ids = _start_ids(tokenizer)
        self._backend = _backend(tokenizer)
        self._tokenise = functools.lru_cache(_CACHED_TEXTS)(self._tokenise_text)

    def length(self, question: Question) -> int:
        """Tokens of the question's example; raises `ExampleError` or the structures' errors as `example` does."""
        prompt = build_prompt(self.settings.prompt, [Turn.asking(question)])
        tokens = len(self.start_ids) + sum(len(self._tokenise(piece)) for piece in prompt.pieces)
        tokens += sum(self._places(structure) for structure in prompt.structures)
        self._check_room(tokens, question.id)
        return min(tokens + len(self._tokenise_text(question.answer)) + 1, self.settings.max_length)

    def example(self, question: Question) -> Example:
        """The training example of a question: prompt, answer, end token.

        Raises `ExampleError` where the prompt leaves no room for an answer or the model cannot read such a structure,
        and `MoleculeError` or `ProteinError` where a structure cannot be read at all.
        """
        prompt = self.prompt([Turn.asking(question)])
        self._check_room(len(prompt), question.id)
        answer = self.answer_ids(question.answer)[: self.settings.max_length - len(prompt)]
        ids, labels = np.concatenate([prompt.ids, answer]), np.concatenate([prompt.labels, answer])
        return replace(prompt, ids=ids, labels=labels)

    def answer_ids(self, text: str) -> np.ndarray:
        """The ids of an answer and the end token, int64."""
        return np.array([*self._tokenise_text(text), self.end_id], dtype=np.int64)

    def prompt(self, turns: Sequence[Turn]) -> Example:
        """The prompt of a conversation, without labels, for generation; raises as `example`, but for the room."""
        prompt = build_prompt(self.settings.prompt, turns)
        example = Example(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        parts = [np.array([*self.start_ids, *self._tokenise(prompt.pieces[0])], dtype=np.int64)]
        for structure, piece in zip(prompt.structures, prompt.pieces[1:]):
            positions = self._add(structure, example)
            places = getattr(self.settings, structure.kind).adapter.count(positions)
            parts.append(np.full(places, PLACES[structure.kind], dtype=np.int64))
            parts.append(np.array(self._tokenise(piece), dtype=np.int64))
        example.ids = np.concatenate(parts)
        example.labels = np.full(len(example.ids), IGNORED, dtype=np.int64)
        return example

    def collate(self, examples: Sequence[Example], side: Literal["right", "left"] = "right") -> Batch:
        """A batch of examples that this encoding made; see `collate`."""
        widths = {kind: cache.width if cache is not None else None for kind, cache in self._caches.items()}
        return collate(examples, self.pad_id, side, widths["molecule"], widths["protein"])

    def _tokenise_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _places(self, structure: Structure) -> int:
        """Places that a structure takes, without featurising it where its atoms are known."""
        self._check_readable(structure.kind)
        if structure.kind == "molecule":
            assert self.settings.molecule is not None
            atoms = structure.atoms if structure.atoms is not None else count_atoms(structure.text)
            if atoms > self.settings.molecule.max_atoms:
                raise MoleculeError(
                    f"molecule {structure.text!r} has {atoms} atoms, more than the limit of "
                    f"{self.settings.molecule.max_atoms}",
                    "too many atoms",
                )
            return self.settings.molecule.adapter.count(atoms)
        assert self.settings.protein is not None
        return self.settings.protein.adapter.count(count_tokens(structure.text, self.settings.protein.max_residues))

    def _add(self, structure: Structure, example: Example) -> int:
        """Put what the model reads of a structure into the example; returns its positions."""
        self._check_readable(structure.kind)
        cache = self._caches[structure.kind]
        features = cache.lookup(structure.text) if cache is not None else None
        if structure.kind == "molecule":
            assert self.settings.molecule is not None
            if features is not None:
                example.molecule_features.append(features)
                return len(features)
            example.graphs.append(featurise(structure.text, self.settings.molecule.max_atoms))
            return len(example.graphs[-1].atoms)
        assert self.settings.protein is not None
        if features is not None:
            example.protein_features.append(features)
            return len(features)
        example.proteins.append(tokenise(structure.text, self.settings.protein.max_residues))
        return len(example.proteins[-1])

    def _check_readable(self, kind: Kind) -> None:
        if getattr(self.settings, kind) is None:
            raise ExampleError(f"this model has no {kind} encoder: ask it without a {kind}", f"no {kind} encoder")

    def _check_room(self, tokens: int, name: str) -> None:
        if tokens >= self.settings.max_length:
            raise ExampleError(
                f"the prompt of question '{name}' has {tokens} tokens, which leaves no room for an answer within "
                f"max_length = {self.settings.max_length}; raise it or leave the question out",
                "prompt too long",
            )


def collate(
    examples: Sequence[Example],
    pad_id: int,
    side: Literal["right", "left"] = "right",
    molecule_width: int | None = None,
    protein_width: int | None = None,
) -> Batch:
    """Pad examples to one length and gather their structures in row order.

    No examples at all give one row of padding without labels: its loss is 0 and so is every gradient, but it runs
    every module, which ranks that share a model need.

    Args:
        examples: rows, in order.
        pad_id: any id of the vocabulary; the mask tells it from text.
        side: "left" for generation.
        molecule_width: of cached molecule features where the examples have these; None where they have graphs. All
            batches of a run must agree, whatever structures they have, hence no guess from the examples.
        protein_width: likewise, of cached protein features in place of ids.
    """
    length = max((len(example) for example in examples), default=1)
    rows = max(len(examples), 1)
    ids = np.full((rows, length), pad_id, dtype=np.int64)
    labels = np.full((rows, length), IGNORED, dtype=np.int64)
    mask = np.zeros((rows, length), dtype=np.int64)
    if not examples:
        mask[:] = 1  # a row that attends to nothing would be NaN in some kernels
    for row, example in enumerate(examples):
        span = slice(length - len(example), length) if side == "left" else slice(len(example))
        ids[row, span], labels[row, span], mask[row, span] = example.ids, example.labels, 1
    molecules: MoleculeBatch | FeatureBatch
    proteins: ProteinBatch | FeatureBatch
    if molecule_width is None:
        molecules = collate_graphs([graph for example in examples for graph in example.graphs])
    else:
        stored = [features for example in examples for features in example.molecule_features]
        molecules = collate_features(stored, molecule_width)
    if protein_width is None:
        proteins = collate_proteins([chain for example in examples for chain in example.proteins])
    else:
        stored = [features for example in examples for features in example.protein_features]
        proteins = collate_features(stored, protein_width)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(labels),
        molecules,
        proteins,
        int((labels[:, 1:] != IGNORED).sum()),
        _shared_columns(ids, mask, labels),
    )


def _shared_columns(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> int:
    """How many leading columns hold the same text in all rows; the one that predicts a first answer token is none."""
    alike = (ids == ids[0]).all(0) & (ids[0] >= 0) & (mask == 1).all(0)
    alike[:-1] &= (labels[:, 1:] == IGNORED).all(0)
    alike[-1] = False
    return int(alike.argmin())


def collate_features(structures: Sequence[np.ndarray], width: int) -> FeatureBatch:
    """Stored outputs of several structures, one after another; none at all are [0, width]."""
    lengths = tuple(len(features) for features in structures)
    if not structures:
        return FeatureBatch(torch.zeros(0, width), lengths)
    joined = np.concatenate(structures)  # also makes a writable copy of mapped memory
    values = torch.from_numpy(joined)
    return FeatureBatch(values.view(torch.bfloat16) if joined.dtype == np.uint16 else values, lengths)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer of our own, to which a special token that is spelt out in a question is text.

    (transformers switches that per call by changing the tokenizer, which two threads must not do.)
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError("the language model's tokenizer has no tokenizer.json; see `job.tokenizer.write_hf_tokenizer`")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts in front of a text: BOS for Llama, nothing for Qwen2."""
    ids: list[int] = tokenizer("x")["input_ids"]  # type: ignore[assignment]
    return [tokenizer.bos_token_id] if ids and ids[0] == tokenizer.bos_token_id else []
