"""The record of alignment training: a question about structures, and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

FUNCTION = "What is the function of this protein?"
NAMES = "What are the official names of this protein?"
FAMILY = "What is the protein family that this protein belongs to?"
LOCATION = "What are the subcellular locations of this protein?"
PROTEIN_QUESTIONS = {"function": FUNCTION, "names": NAMES, "family": FAMILY, "location": LOCATION}
"""The four questions of UniProtQA, verbatim, with the names that ids give them."""

MOLECULE_QUESTION = "Please describe this molecule."
"""The one question of PubChemQA."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer and the structures that it is about."""

    id: str
    """Stable and unique within a data set: `chebi20:12345`, `uniprot:P12345:function`."""
    question: str
    answer: str
    molecules: tuple[str, ...] = ()
    """SMILES as given, in the order in which the prompt shows them."""
    proteins: tuple[str, ...] = ()
    """Amino-acid sequences as given; one per chain."""
    atoms: tuple[int, ...] = ()
    """Heavy-atom graph nodes of each molecule, so that a prompt's length is known without featurising."""

    def to_json(self, **more: str) -> str:
        """One line of JSON, with further keys at its end; empty fields are left out."""
        fields = {name: getattr(self, name) for name in self.__slots__} | more
        return json.dumps({name: value for name, value in fields.items() if value}, ensure_ascii=False)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Question:
        """From a row of a shard; keys that are no field of the record are left alone."""
        return cls(
            record["id"],
            record.get("question", ""),
            record.get("answer", ""),
            tuple(record.get("molecules", ())),
            tuple(record.get("proteins", ())),
            tuple(record.get("atoms", ())),
        )
