"""The words around a question: the same for scoring by lm-eval, for examples, and for fine-tuning.

Layout: that of lm-eval's own MedMCQA, MedQA and PubMedQA tasks, which is MMLU's (Hendrycks et al., ICLR 2021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from eval.qa.files import LETTERS, Question
from eval.qa.pubmedqa import LABELS

BETWEEN_EXAMPLES = "\n\n"
BEFORE_ANSWER = " "
STOPS = ("\n\n", "\nQuestion:")
"""generation ends there: a model that goes on with another question has given its answer"""
MAX_NEW_TOKENS = 64
"""of a generated answer; a constant, since a limit taken from the right answers' lengths would give them away"""

SCORINGS = ("letters", "options", "words", "generate")
"""`letters`: options are listed, the likeliest letter is the answer. `options`: they are not, the likeliest option is.
`words`: yes, no or maybe, the likeliest word. `generate`: the answer is written, then parsed."""


def prompt(question: Question, scoring: str) -> str:
    """The question as it is asked, up to where the answer begins."""
    context = f"Abstract: {question.context}\n" if question.context else ""
    asked = f"{context}Question: {question.question}\n"
    if is_decision(question):
        return asked + (f"Answer ({', '.join(question.options)}):" if scoring == "generate" else "Answer:")
    if scoring in ("letters", "generate"):
        asked += "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.options, strict=False))
    return asked + "Answer:"


def answers(question: Question, scoring: str) -> list[str]:
    """What each option is answered by; `BEFORE_ANSWER` goes between prompt and answer."""
    if scoring in ("letters", "generate") and not is_decision(question):
        return list(LETTERS[: len(question.options)])
    return list(question.options)


def is_decision(question: Question) -> bool:
    """Whether the answers are words of their own, such as yes, no and maybe, that need no letters."""
    return all(option in LABELS for option in question.options)


def examples(shown: Sequence[Question], scoring: str) -> str:
    """Questions with their right answers, as they stand before the one that is asked; empty where there are none."""
    return "".join(
        prompt(question, scoring) + BEFORE_ANSWER + answers(question, scoring)[question.gold] + BETWEEN_EXAMPLES
        for question in shown
    )


def digest(prompts: Iterable[str]) -> str:
    """SHA-256 over prompts in their order."""
    total = hashlib.sha256()
    for text in prompts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()
