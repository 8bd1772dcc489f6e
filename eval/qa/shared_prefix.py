"""Likelihoods of continuations, every token computed once: a prefix of many questions, and a question of its options.

    prefix (few-shot examples)  --->  question 1  --->  option A
                                 |                |-->  option B
                                 |->  question 2  --->  ...

The prefix is run once and its keys and values are kept. A question is one row: its own tokens, then its options one
after another as branches of a tree. Position ids let each option continue the question, and a mask of shape
(rows, 1, queries, keys) hides the options from each other ("tree attention": SpecInfer, arXiv:2305.09781, section 4.2).
Logits are computed only where a token is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

Ids = tuple[int, ...]

# Nats by which a likelihood may differ between a tree and plain rows where a model's forward supports trees.
_TOLERANCE = {torch.float32: 3e-4, torch.float64: 3e-4}
_TOLERANCE_HALF = 0.25
# Names by which configs say how far a layer looks back; masks of ours do not say so.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")


MIN_SHARED = 16
"""tokens: shorter prefixes are not shared"""
MIN_SAVED = 512
"""tokens: prefixes that save less than this in all are not shared, since they need batches of their own"""


class Likelihood(NamedTuple):
    """Of a continuation after its context."""

    nats: float
    """sum of the tokens' natural log-probabilities"""
    greedy: bool
    """whether every token is the likeliest"""


@dataclass(frozen=True)
class Question:
    """A context and what may follow it."""

    context: Ids
    """at least one token"""
    continuations: tuple[Ids, ...]
    """each of at least one token"""

    @property
    def stems(self) -> dict[Ids, None]:
        """What the model has to read of the continuations: all but the last tokens, each once, in order."""
        return dict.fromkeys(continuation[:-1] for continuation in self.continuations if len(continuation) > 1)

    @property
    def length(self) -> int:
        """Tokens of its row."""
        return len(self.context) + sum(map(len, self.stems))

    @property
    def reach(self) -> int:
        """Tokens of the longest path through the tree."""
        return len(self.context) + max(map(len, self.continuations)) - 1

    @property
    def scored(self) -> int:
        """Positions whose logits are needed."""
        return 1 + sum(map(len, self.stems))


class Prefix:
    """Keys and values of tokens that several questions begin with. Using it changes nothing in it."""

    def __init__(self, tokens: Ids, cache: DynamicCache) -> None:
        self.tokens = tokens
        layers: list[Any] = list(cache.layers)
        self._layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in layers]

    def __len__(self) -> int:
        return len(self.tokens)

    def copy_into(self, cache: DynamicCache, rows: int) -> None:
        """Begin so many rows of an empty cache with the prefix."""
        for layer, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)

    def cache(self) -> DynamicCache:
        """A cache for one forward pass over any number of rows."""
        cache = DynamicCache()
        cache.layers = [_SharedLayer(keys, values) for keys, values in self._layers]
        return cache


class _SharedLayer(DynamicLayer):
    """Puts the prefix before each row's keys and values and keeps neither, so that copies live for one layer only."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._shared = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        keys, values = (kept.expand(rows, -1, -1, -1) for kept in self._shared)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass
class _Row:
    """A question as the model reads it."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    """per token: 0 in the context, else the number of its branch"""
    scored: list[tuple[list[int], Ids]]
    """per continuation: the places whose logits predict its tokens, and those tokens"""


class Scorer:
    """A causal language model that scores questions."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find out on a few tokens what the model's forward supports."""
        self.model = model
        self.device = next(model.parameters()).device
        config = model.config.get_text_config()
        windows = [getattr(config, name, None) for name in _WINDOWS]
        self._window = min((window for window in windows if isinstance(window, int) and window > 0), default=2**63)
        self.refusal = _probe(self)
        """why the model cannot share prefixes and questions; None where it can"""

    def shares(self, question: Question) -> bool:
        """Whether a question's tokens may be shared: the model supports it, and no layer looks back less far."""
        return self.refusal is None and question.reach <= self._window

    @torch.inference_mode()
    def prefix(self, tokens: Ids) -> Prefix:
        """Run what several questions begin with."""
        cache = DynamicCache()
        self._run({"input_ids": self._tensor([tokens]), "past_key_values": cache, "use_cache": True}, [(0, 0)])
        return Prefix(tokens, cache)

    @torch.inference_mode()
    def score(self, questions: Sequence[Question], prefix: Prefix | None = None) -> list[list[Likelihood]]:
        """Score a batch, all of whose contexts begin with `prefix` and are longer: per question, per continuation.

        Raises `ValueError` where the model cannot score them like this (see `shares`).
        """
        if prefix is not None and any(question.context[: len(prefix)] != prefix.tokens for question in questions):
            raise ValueError("a context does not begin with the prefix")
        if self.refusal is not None and (prefix is not None or any(len(question.stems) > 1 for question in questions)):
            raise ValueError(self.refusal)
        return self._score(questions, prefix)

    def _score(self, questions: Sequence[Question], prefix: Prefix | None) -> list[list[Likelihood]]:
        shared = len(prefix) if prefix is not None else 0
        rows = [_row(question, shared) for question in questions]
        longest = max(len(row.tokens) for row in rows)
        inputs: dict[str, Any] = {
            "input_ids": self._tensor([row.tokens for row in rows], longest),
            "use_cache": prefix is not None,
        }
        # Otherwise each row is a plain sequence with padding behind it, and needs no more in any model.
        is_tree = any(max(row.branches) > 1 for row in rows)
        if prefix is not None or is_tree:
            inputs["position_ids"] = self._tensor([row.positions for row in rows], longest)
        if prefix is not None:
            inputs["past_key_values"] = prefix.cache()
        if is_tree:
            branches = self._tensor([row.branches for row in rows], longest)
            inputs["attention_mask"] = _tree_mask(branches, shared, self.model.dtype)
        scored = [[(number, place) for places, _ in row.scored for place in places] for number, row in enumerate(rows)]
        places = dict.fromkeys(place for row in scored for place in row)
        order = {place: number for number, place in enumerate(places)}
        logits = self._run(inputs, list(places))

        picked = torch.tensor([order[place] for row in scored for place in row], device=self.device)
        targets = torch.tensor([token for row in rows for _, tokens in row.scored for token in tokens])
        nats, greedy = _of_targets(logits, picked, targets.to(self.device))
        values = zip(nats.tolist(), greedy.tolist())
        return [[_sum(values, len(tokens)) for _, tokens in row.scored] for row in rows]

    def _run(self, inputs: dict[str, Any], places: Sequence[tuple[int, int]]) -> Tensor:
        """Logits (places, vocabulary) at the given (row, column) places; no others are computed.

        The output layer is given the hidden states of these places alone, as if they were one row, so that whatever
        the model does to its logits afterwards is done to these.
        """
        row, column = torch.tensor(places, device=self.device).T
        head = self.model.get_output_embeddings()
        called = False

        def keep(module: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal called
            called = True
            return (given[0][row, column][None], *given[1:])

        hook = head.register_forward_pre_hook(keep) if head is not None else None
        try:
            logits = self.model(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[0] if called else logits[row, column]

    def _tensor(self, lists: Sequence[Sequence[int]], longest: int = 0) -> Tensor:
        """Rows padded with 0 on the right, int64. Padding comes after all that is scored, so nothing sees it."""
        padded = [[*values, *[0] * (longest - len(values))] for values in lists]
        return torch.tensor(padded, device=self.device)


def find_prefixes(contexts: Sequence[Ids]) -> Iterator[tuple[int, list[int]]]:
    """Group contexts that begin alike: tokens they share (0: nothing worth it), and their numbers.

    In the order of their tokens, a context joins the group before it where the tokens that it shares with that are more
    than those that the group would no longer share.
    """
    groups: list[tuple[int, list[int]]] = []
    for number in sorted(range(len(contexts)), key=contexts.__getitem__):
        if groups:
            length, members = groups[-1]
            shared = min(length, _common(contexts[members[-1]], contexts[number]))
            if shared > (length - shared) * (len(members) - 1):
                members.append(number)
                groups[-1] = shared, members
                continue
        groups.append((len(contexts[number]) - 1, [number]))  # a context keeps a token of its own
    alone: list[int] = []
    for length, members in groups:
        if length >= MIN_SHARED and length * (len(members) - 1) >= MIN_SAVED:
            yield length, members
        else:
            alone += members
    yield 0, alone


def _common(one: Ids, other: Ids) -> int:
    """Tokens that both begin with, at least one of each left over."""
    most = min(len(one), len(other)) - 1
    return next((place for place in range(most) if one[place] != other[place]), most)


def plain_rows(question: Question) -> Iterator[tuple[Question, list[int]]]:
    """Split a question so that each part is a plain row: parts, and which of its continuations each has."""
    for stem in dict.fromkeys(continuation[:-1] for continuation in question.continuations):
        numbers = [number for number, tokens in enumerate(question.continuations) if tokens[:-1] == stem]
        yield Question(question.context, tuple(question.continuations[number] for number in numbers)), numbers


def _row(question: Question, shared: int) -> _Row:
    tokens = list(question.context[shared:])
    positions = list(range(shared, len(question.context)))
    branches = [0] * len(tokens)
    last = len(tokens) - 1
    starts: dict[Ids, int] = {(): 0}
    for branch, stem in enumerate(question.stems, 1):
        starts[stem] = len(tokens)
        tokens += stem
        positions += range(len(question.context), len(question.context) + len(stem))
        branches += [branch] * len(stem)
    scored = [
        ([last, *range(starts[end[:-1]], starts[end[:-1]] + len(end) - 1)], end) for end in question.continuations
    ]
    return _Row(tokens, positions, branches, scored)


def _tree_mask(branches: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (rows, 1, queries, shared + queries): 0 for what a token sees.

    A token sees the prefix, and of what stands before it in its row the context and its own branch. Padding counts as
    context that comes last: it sees something, as softmax needs, and is seen by nothing.
    """
    rows, queries = branches.shape
    earlier = torch.ones(queries, queries, dtype=torch.bool, device=branches.device).tril()
    seen = earlier & ((branches[:, None, :] == branches[:, :, None]) | (branches[:, None, :] == 0))
    mask = torch.zeros(rows, 1, queries, shared + queries, dtype=dtype, device=branches.device)
    mask[:, 0, :, shared:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


def _of_targets(logits: Tensor, picked: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float64) and whether they are the highest, of `targets` by rows `picked` of `logits`."""
    totals = torch.cat([part.float().logsumexp(-1) for part in logits.split(256)])
    best = logits.argmax(-1)
    nats = logits[picked, targets].float() - totals[picked]
    return nats.double(), best[picked] == targets


def _sum(values: Iterator[tuple[float, bool]], count: int) -> Likelihood:
    taken = [next(values) for _ in range(count)]
    return Likelihood(sum(nats for nats, _ in taken), all(greedy for _, greedy in taken))


def _probe(scorer: Scorer) -> str | None:
    """Why a model's forward gives something else for a tree behind a prefix than for plain rows; None where it agrees.

    Families differ in what they do with masks of four dimensions, position ids and caches, and none of them says so.
    """
    generator = torch.Generator().manual_seed(0)
    size = int(scorer.model.config.get_text_config().vocab_size)
    tokens = tuple(torch.randint(size, (40,), generator=generator).tolist())
    tree = [
        Question(tokens[:12], (tokens[20:24], tokens[24:26], tokens[26:31])),
        Question(tokens[:5] + tokens[12:20], (tokens[31:33], tokens[33:36])),
    ]
    name = type(scorer.model).__name__
    with torch.inference_mode():
        plain = [scorer._score([part], None)[0][0] for question in tree for part, _ in plain_rows(question)]
        try:
            shared = [found for row in scorer._score(tree, scorer.prefix(tokens[:5])) for found in row]
        except Exception as error:  # whatever a forward raises that was not written for this
            return f"{name} cannot share prefixes and questions ({type(error).__name__}): plain rows are scored"
    tolerance = _TOLERANCE.get(scorer.model.dtype, _TOLERANCE_HALF)
    if all(abs(one.nats - other.nats) <= tolerance for one, other in zip(plain, shared, strict=True)):
        return None
    return f"{name} gives other likelihoods with shared prefixes and questions: plain rows are scored"
