"""An aligned model's answers to questions about structures, in batches of like length, going on where a run stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from align.model import AlignedModel
from align.questions import Question
from eval.models import EvalModel
from eval.work import Journal, Record, work_through
from job.errors import InputError


@dataclass(frozen=True)
class Answer:
    """What a model gave to one question."""

    text: str
    refused: str | None = None
    """why the question cannot be put to this model at all: no such encoder, no room; its answer is then empty"""


def answer(
    model: EvalModel,
    questions: Sequence[Question],
    journal: Journal,
    max_new_tokens: int,
    token_budget: int,
) -> list[Answer]:
    """Greedy answers in the order of the questions, the same on every rank.

    An answer has at most `max_new_tokens`, and fewer where the prompt leaves less room within the model's length: how
    many depends on its own prompt alone, never on which others share its batch. Raises `InputError` where the model is
    no aligned one, or none of the questions can be put to it.
    """
    aligned = aligned_model(model)
    rooms, refusals = _rooms(aligned, questions)
    asked = [place for place, refusal in enumerate(refusals) if refusal is None]
    if not asked:
        raise InputError(
            f"{model.directory}: none of the {len(questions):,} questions can be put to this model; the first: "
            f"{refusals[0]}"
        )

    def work(rows: list[int]) -> list[Record]:
        places = [asked[row] for row in rows]
        whole = [place for place in places if rooms[place] >= max_new_tokens]
        groups = [(whole, max_new_tokens)] if whole else []
        groups += [([place], rooms[place]) for place in places if rooms[place] < max_new_tokens]
        return [
            {"id": questions[place].id, "answer": text}
            for group, tokens in groups
            for place, text in zip(
                group, aligned.generate([questions[place] for place in group], max_new_tokens=tokens), strict=True
            )
        ]

    limit = aligned.settings.max_length
    records = work_through(
        [questions[place].id for place in asked],
        [limit - rooms[place] + min(rooms[place], max_new_tokens) for place in asked],
        work,
        journal,
        token_budget,
        "answering",
    )
    texts = {place: record["answer"] for place, record in zip(asked, records, strict=True)}
    return [Answer(texts.get(place, ""), refusals[place]) for place in range(len(questions))]


def aligned_model(model: EvalModel) -> AlignedModel:
    """The model with its encoders; raises `InputError` where it has none."""
    if model.aligned is None:
        raise InputError(
            f"{model.directory} is a plain language model, which cannot read structures; give an aligned model "
            "(`python -m align export`)"
        )
    return model.aligned


def _rooms(model: AlignedModel, questions: Sequence[Question]) -> tuple[list[int], list[str | None]]:
    """Tokens that each prompt leaves for an answer, and why a question is refused."""
    rooms = [0] * len(questions)
    refusals: list[str | None] = [None] * len(questions)
    for place, question in enumerate(questions):
        try:
            if not (question.molecules or question.proteins):
                raise InputError(f"question '{question.id}' is about no structure")
            prompt_and_end = model.encoding.length(replace(question, answer=""))
            rooms[place] = model.settings.max_length - prompt_and_end + 1
        except InputError as error:
            refusals[place] = str(error)
    return rooms, refusals
