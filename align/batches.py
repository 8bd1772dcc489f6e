"""From the order of questions to what this rank computes: micro-batches of questions of like length.

Which questions a step has is a pure function of its number; how they are dealt to ranks changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.questions import Question
from job.errors import InputError

if TYPE_CHECKING:
    from align.examples import Batch, Encoding
    from align.question_order import QuestionOrder


def pack(lengths: Sequence[int], budget: int, world: int) -> list[list[list[int]]]:
    """Deal rows of these lengths to ranks: `[rank][round]` is a list of row numbers, a micro-batch.

    Rows of like length share a micro-batch, whose padded size (rows x longest) is at most `budget` tokens; a row that
    is longer than the budget is alone. All ranks have the same, least possible number of rounds, and the micro-batches
    of a round are of like size: with the number of rounds settled, they are packed as evenly as it allows. Where there
    are fewer rows than ranks, some micro-batches are empty.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups = _fill(order, lengths, budget)
    rounds = max(1, -(-len(groups) // world))
    low, high = 1, budget
    while low < high:  # the smallest budget with which the same number of rounds suffices
        middle = (low + high) // 2
        if len(_fill(order, lengths, middle)) <= rounds * world:
            high = middle
        else:
            low = middle + 1
    groups = _fill(order, lengths, high)
    groups += [[] for _ in range(rounds * world - len(groups))]
    return [groups[rank::world] for rank in range(world)]


def _fill(order: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive rows of `order` (longest first) in as few groups as fit the budget."""
    groups: list[list[int]] = []
    for row in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@dataclass
class RankBatches:
    """One rank's share of some questions."""

    batches: list[Batch]
    """the micro-batches, as many on every rank"""
    tokens: int
    """tokens of all ranks' questions together, structures included, padding not"""
    questions: list[list[Question]] = field(default_factory=list)
    """the rows of each micro-batch"""
    skipped: list[tuple[Question, InputError]] = field(default_factory=list)
    """questions that cannot be put to this model (the same on every rank)"""
    cut: int = 0
    """this rank's answers that were cut at the model's `max_length`"""

    @property
    def answer_tokens(self) -> int:
        """Labels that this rank's micro-batches train."""
        return sum(batch.answer_tokens for batch in self.batches)


def rank_batches(questions: Sequence[Question], encoding: Encoding, budget: int, rank: int, world: int) -> RankBatches:
    """This rank's micro-batches of `questions`. Every rank measures all of them, and encodes its own."""
    kept: list[Question] = []
    lengths: list[int] = []
    skipped = []
    for question in questions:
        try:
            lengths.append(encoding.length(question))
            kept.append(question)
        except InputError as error:
            skipped.append((question, error))
    mine = [[kept[row] for row in rows] for rows in pack(lengths, budget, world)[rank]]
    examples = [[encoding.example(question) for question in rows] for rows in mine]
    cut = sum(int(example.ids[-1] != encoding.end_id) for rows in examples for example in rows)
    return RankBatches([encoding.collate(rows) for rows in examples], sum(lengths), mine, skipped, cut)


class TrainingBatches:
    """This rank's batches, step by step; those of the next step are made in a thread while this one is computed."""

    def __init__(
        self, order: QuestionOrder, encoding: Encoding, global_batch: int, budget: int, rank: int, world: int
    ) -> None:
        self._order, self._global_batch, self._budget = order, global_batch, budget
        self._rank, self._world = rank, world
        self._encoding = encoding
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: tuple[int, Future[RankBatches]] | None = None

    def take(self, step: int, last: bool = False) -> RankBatches:
        """Batches of the step after `step` steps; raises `InputError` where its questions cannot be read."""
        if self._next is None or self._next[0] != step:
            self._next = step, self._thread.submit(self._make, step)
        future = self._next[1]
        self._next = None if last else (step + 1, self._thread.submit(self._make, step + 1))
        return future.result()

    def _make(self, step: int) -> RankBatches:
        first = step * self._global_batch
        questions = [self._order.question(number)[0] for number in range(first, first + self._global_batch)]
        return rank_batches(questions, self._encoding, self._budget, self._rank, self._world)
