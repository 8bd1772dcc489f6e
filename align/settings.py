"""What an aligned model is, apart from its weights: the settings that its `config.json` holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from align.molecules import MAX_ATOMS
from align.proteins import MAX_RESIDUES
from job.config import as_dict
from job.errors import InputError
from job.files import read_json

MODEL_TYPE = "biomedgpt-aligned"
FORMAT_VERSION = 1

CHEMISTRY = (
    "You are working as an excellent assistant in chemistry and molecule discovery. Below a human expert gives the "
    "representation of a molecule or a protein. Answer questions about it. "
)
"""The system text of the released model's notebook."""

BIOLOGY = (
    "You are working as an excellent assistant in biology. Below a human gives the representation of a molecule or a "
    "protein. Answer some questions about it. "
)
"""The system text of the released model's chat program."""

Tokens = Literal["each", "pooled", "resampled"]
Tuning = Literal["adapters", "encoders", "lora", "language_model", "all"]
"""What is trained: the adapters; adapters and encoders; adapters and LoRA on the language model; adapters and language
model; everything."""

TRAINS_ENCODERS = frozenset[Tuning]({"encoders", "all"})
TRAINS_WHOLE_LANGUAGE_MODEL = frozenset[Tuning]({"language_model", "all"})


@dataclass(frozen=True)
class AdapterSettings:
    """How representations of atoms or residues become input embeddings of the language model."""

    tokens: Tokens = "each"
    """"each": one per atom or residue, as released; "pooled": one per structure, the mean; "resampled": a fixed
    number per structure, from learned queries that attend to its atoms or residues"""
    number: int = 32
    """embeddings per structure when "resampled" (ignored otherwise)"""
    projection: Literal["linear", "mlp"] = "linear"
    """"linear", as released, or "mlp": two layers"""
    standardise: bool = False
    """subtract the mean of the training structures from what goes in and divide by the standard deviation, both
    measured before the first step: most of a pooled vector is what all structures have in common"""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number of resampled tokens must be at least 1, not {self.number}")

    def count(self, positions: int) -> int:
        """Embeddings that a structure of so many atoms or residues becomes."""
        return {"each": positions, "pooled": 1, "resampled": self.number}[self.tokens]


@dataclass(frozen=True)
class MoleculeSettings:
    """The molecule encoder and its adapter."""

    kind: Literal["gin", "gcn"] = "gin"
    """how messages of neighbours are gathered; GraphMVP is a "gin\""""
    layers: int = 5
    """message-passing steps"""
    width: int = 300
    """of an atom's representation"""
    dropout: float = 0.0
    """after each layer, when the encoder is trained"""
    max_atoms: int = MAX_ATOMS
    """larger molecules are refused"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """to the language model"""


@dataclass(frozen=True)
class ProteinSettings:
    """The protein encoder's limit and its adapter; layers and width are in the encoder's own config.json."""

    max_residues: int = MAX_RESIDUES
    """of longer chains only the first so many are read"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """to the language model"""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank updates of the language model's linear layers (Hu et al. 2021)."""

    rank: int = 8
    """of each update"""
    alpha: float = 32.0
    """an update is scaled by alpha / rank"""
    dropout: float = 0.1
    """on an update's input, in training"""
    modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """names of the layers that get one"""


@dataclass(frozen=True)
class PromptSettings:
    """The words around structures and questions; the defaults are those of the released BioMedGPT-10B."""

    system: str = CHEMISTRY
    """comes first; mind the space at its end"""
    human: str = "Human"
    """who asks"""
    assistant: str = "Assistant"
    """who answers"""
    separator: str = "###"
    """between turns; also ends a generated answer"""

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("the prompt's separator must not be empty: it ends a generated answer")


@dataclass(frozen=True)
class AlignedSettings:
    """Encoders, adapters and prompt of an aligned model."""

    molecule: MoleculeSettings | None = field(default_factory=MoleculeSettings)
    """None: a model that reads no molecules"""
    protein: ProteinSettings | None = field(default_factory=ProteinSettings)
    """None: a model that reads no proteins"""
    prompt: PromptSettings = field(default_factory=PromptSettings)
    """the words around them"""
    max_length: int = 2048
    """tokens of a prompt with its structures and its answer; at most the language model's own limit"""

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back equal."""
        return as_dict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> AlignedSettings:
        """Check and read; raises `InputError` that begins with `where` for an unknown key or a wrong value."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, "settings")
        try:
            return parser.instantiate(parser.parse_object({"settings": content})).settings
        except Exception as error:  # jsonargparse raises several kinds
            message = " ".join(str(getattr(error, "message", None) or error).split()).replace("settings.", "")
            raise InputError(f"{where}: {message}") from None


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a model directory; raises `InputError` where it is another kind of directory."""
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; give the directory of an aligned model")
    content = read_json(directory / "config.json")
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{directory} is not an aligned model: its config.json has no model_type '{MODEL_TYPE}'; `python -m align "
            "export` makes one"
        )
    if content.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(f"{directory} has format version {content['format_version']}, newer than this code")
    reference = content.get("language_model")
    if not isinstance(reference, dict) or {"path", "sha256"} - reference.keys():
        raise InputError(f"{directory}/config.json does not say which language model this is: it is damaged")
    if not isinstance(content.get("files"), dict):
        raise InputError(f"{directory}/config.json has no checksums of its files: it is damaged")
    return content
