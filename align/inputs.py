"""What an alignment run reads, opened and checked before any weight is: data sets, their order, the number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from align.config import AlignConfig
from align.question_order import QuestionOrder
from align.question_shards import QuestionSet
from job import manifest
from job.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """Opened inputs of a run."""

    order: QuestionOrder
    """of the training questions"""
    validation: dict[str, QuestionSet]
    """by source, its validation split where that has questions"""
    references: list[dict[str, str]]
    """the manifests of the data sets, in the order of the config"""
    steps: int
    """optimizer steps of the run"""


def open_inputs(config: AlignConfig) -> Inputs:
    """Open what the config names; raises `InputError` for whatever is missing or does not fit. Imports no torch."""
    names = [source.name for source in config.data.sources]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two data sources are called '{doubles[0]}'; give them names that differ")
    if not (Path(config.model.language_model) / "config.json").is_file():
        raise InputError(
            f"model.language_model {config.model.language_model} has no config.json; name the Hugging Face directory "
            "of a language model"
        )
    for key, weights in (("molecule", config.molecule.weights), ("protein", config.protein.weights)):
        if getattr(config, key).use and weights and not Path(weights).exists():
            raise InputError(f"{key}.weights {weights} does not exist")
    order = QuestionOrder(config.data.sources, config.data.seed)
    validation = {source.name: QuestionSet(source.directory, "validation") for source in config.data.sources}
    validation = {name: questions for name, questions in validation.items() if len(questions)}
    references = [manifest.reference(Path(source.directory)) for source in config.data.sources]
    return Inputs(order, validation, references, config.steps(sum(len(questions) for questions in order.sets)))
