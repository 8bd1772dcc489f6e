"""Which questions are trained on and which are held out.

Questions about the same structure, or about related ones, form a group, and a group lies on one side:

- `random`: the same molecule (canonical SMILES) or the same sequence; as the published UniProtQA was split;
- `scaffold`: molecules of the same Bemis-Murcko scaffold (1996), chirality left out; all without rings are one group;
- `identity`: proteins of one cluster by sequence identity (`align.clusters`).

Groups of random and identity splits are dealt by a hash of (seed, group), those of scaffold splits by size, the largest
to training, as in MoleculeNet (Wu et al. 2018): then held-out scaffolds are rare ones. All are functions of the
questions, the settings and the seed alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from align.clusters import Components, cluster
from align.molecules import parse
from align.questions import Question
from job.errors import InputError

KINDS = ("random", "scaffold", "identity")


@dataclass(frozen=True)
class SplitSettings:
    """How to split; fractions are of questions."""

    kind: str = "random"
    validation: float = 0.05
    test: float = 0.1
    seed: int = 0
    identity: float = 0.5
    clusters: str = "kmers"
    """"mmseqs2" or "kmers"."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--split is '{self.kind}', but must be one of {', '.join(KINDS)}")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise InputError(
                f"validation ({self.validation}) and test ({self.test}) fractions must not be negative and must add "
                "up to less than 1"
            )


def groups(questions: Sequence[Question], settings: SplitSettings) -> list[str]:
    """The group of each question, named by the scaffold, molecule or sequence hash of its first member.

    A question about several structures joins their groups. Raises `InputError` where the kind of split does not fit
    the structures.
    """
    if settings.kind == "scaffold" and not any(question.molecules for question in questions):
        raise InputError("--split scaffold needs molecules, but these questions have none; give random or identity")
    if settings.kind == "identity" and not any(question.proteins for question in questions):
        raise InputError("--split identity needs proteins, but these questions have none; give random or scaffold")
    molecules = dict.fromkeys(smiles for question in questions for smiles in question.molecules)
    proteins = list(dict.fromkeys(sequence for question in questions for sequence in question.proteins))
    keys = {("molecule", smiles): _molecule_key(smiles, settings.kind == "scaffold") for smiles in molecules}
    if settings.kind == "identity":
        labels = cluster(proteins, settings.identity, settings.clusters)
    else:
        labels = list(range(len(proteins)))
    for sequence, label in zip(proteins, labels):
        keys["protein", sequence] = "protein " + hashlib.sha256(proteins[label].encode()).hexdigest()[:16]
    names = list(dict.fromkeys(keys.values()))
    numbers = {name: number for number, name in enumerate(names)}
    components = Components(len(names))
    first: list[int | None] = []
    for question in questions:
        mine = [numbers[keys["molecule", smiles]] for smiles in question.molecules]
        mine += [numbers[keys["protein", sequence]] for sequence in question.proteins]
        for other in mine[1:]:
            components.join(mine[0], other)
        first.append(mine[0] if mine else None)
    return [
        f"question {question.id}" if number is None else names[components.find(number)]
        for question, number in zip(questions, first)
    ]


def assign(group_of: Sequence[str], settings: SplitSettings) -> list[str]:
    """The side of each question ("train", "validation" or "test"), from its group.

    A group that would overfill what is left of a held-out side goes to training.
    """
    sizes = Counter(group_of)
    wanted = {"test": round(settings.test * len(group_of)), "validation": round(settings.validation * len(group_of))}
    chance = {group: hashlib.sha256(f"{settings.seed} {group}".encode()).digest() for group in sizes}
    # Scaffolds from the rarest on. Ties are broken by chance: sorted by name, a held-out side would be all of a kind.
    rarity = sizes if settings.kind == "scaffold" else dict.fromkeys(sizes, 0)
    order = sorted(sizes, key=lambda group: (rarity[group], chance[group]))
    side: dict[str, str] = {}
    for group in order:
        fits = (split for split, room in wanted.items() if 0 < sizes[group] <= room)
        side[group] = next(fits, "train")
        if side[group] != "train":
            wanted[side[group]] -= sizes[group]
    return [side[group] for group in group_of]


def scaffold(smiles: str) -> str:
    """The Bemis-Murcko scaffold (ring systems and what links them) as SMILES without chirality; "" without rings."""
    return MurckoScaffold.MurckoScaffoldSmiles(mol=parse(smiles), includeChirality=False)


def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES: equal for every spelling of a molecule."""
    return Chem.MolToSmiles(parse(smiles))


def _molecule_key(smiles: str, by_scaffold: bool) -> str:
    return f"scaffold {scaffold(smiles)}" if by_scaffold else f"molecule {canonical(smiles)}"
