"""The prompt of the released BioMedGPT-10B, as text pieces with structures between them.

    {system}### Human: <molecule><moleculeHere></molecule> {question} ### Assistant: {answer}

Pieces are tokenised one by one (`align.examples`), because sentencepiece puts a space in front of each; that is how the
released model was fed. `<molecule>` and its kin are plain text. A structure takes its place by its position between
the pieces, never by searching text, so that a question which contains `<moleculeHere>` is only a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from align.questions import Question
from align.settings import PromptSettings

Kind = Literal["molecule", "protein"]
PLACEHOLDERS: dict[Kind, str] = {"molecule": "<moleculeHere>", "protein": "<proteinHere>"}
"""What stands for a structure where a prompt is shown as text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of a conversation with the structures that it brings along, and its answer if it has one."""

    question: str
    answer: str | None = None
    molecules: tuple[str, ...] = ()
    proteins: tuple[str, ...] = ()
    atoms: tuple[int, ...] = ()

    @classmethod
    def asking(cls, question: Question) -> Turn:
        """The open turn of a data set's question: its answer is left out."""
        return cls(question.question, None, question.molecules, question.proteins, question.atoms)


class Structure(NamedTuple):
    """A structure's place in a prompt."""

    kind: Kind
    text: str
    """SMILES or sequence"""
    atoms: int | None = None
    """of a molecule, where they are known"""


class Prompt(NamedTuple):
    """Text pieces and what lies between them: `pieces[0] structures[0] pieces[1] ... pieces[-1]`."""

    pieces: list[str]
    structures: list[Structure]

    def text(self) -> str:
        """The whole prompt with a placeholder for each structure."""
        shown = [piece + PLACEHOLDERS[structure.kind] for piece, structure in zip(self.pieces, self.structures)]
        return "".join([*shown, self.pieces[-1]])


def build_prompt(settings: PromptSettings, turns: Sequence[Turn]) -> Prompt:
    """The prompt of a conversation whose last turn is open, or whose turns are all finished.

    A turn shows its molecules before its proteins, each as `<molecule><moleculeHere></molecule>` and a space.
    """
    pieces = [f"{settings.system}{settings.separator} "]
    structures: list[Structure] = []
    for turn in turns:
        pieces[-1] += f"{settings.human}: "
        for structure in _structures(turn):
            pieces[-1] += f"<{structure.kind}>"
            structures.append(structure)
            pieces.append(f"</{structure.kind}> ")
        pieces[-1] += f"{turn.question} {settings.separator} {settings.assistant}: "
        if turn.answer is not None:
            pieces[-1] += f"{turn.answer} {settings.separator} "
    return Prompt(pieces, structures)


def _structures(turn: Turn) -> Iterator[Structure]:
    atoms = turn.atoms or (None,) * len(turn.molecules)
    for smiles, count in zip(turn.molecules, atoms, strict=True):
        yield Structure("molecule", smiles, count)
    for sequence in turn.proteins:
        yield Structure("protein", sequence)
