"""Text that a language model generates after many prompts: in batches of like length, over ranks, resumable."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from align.language_model import cut_at
from eval.models import EvalModel
from eval.qa.shared_prefix import Prefix, Question, Scorer, find_prefixes
from eval.work import Journal, Memory, Record, work_through
from job.errors import InputError

CPU_READ_TOKENS = 1024
"""tokens that a CPU reads at once at most: what leaves its caches is slower, not faster"""
CPU_TOKENS = 4096
"""padded tokens of a batch on a CPU at most"""


def generate(
    model: EvalModel,
    prompts: Mapping[str, str],
    journal: Journal | None,
    *,
    max_new_tokens: int,
    stops: Sequence[str] = (),
    token_budget: int = 16_384,
    what: str = "answers",
    **options: Any,
) -> dict[str, str]:
    """What the model writes after each prompt, up to an end token, the first stop string or `max_new_tokens`.

    Collective: every rank returns all texts. Prompts are encoded with the special tokens of the tokenizer's default; a
    prompt that leaves no room for `max_new_tokens` loses tokens on its left, as in lm-eval (see `too_long`). What many
    prompts begin with (few-shot examples) is computed once, where the model allows it and there are no beams.

    Args:
        model: with its tokenizer.
        prompts: by unique id.
        journal: where texts are kept so that a killed run goes on; None: nowhere.
        max_new_tokens: longest text, in tokens.
        stops: strings before which a text ends.
        token_budget: padded tokens of a batch, prompts and new tokens, beams counted; at most `CPU_TOKENS` on a CPU.
        what: for the progress bar.
        options: of transformers' `generate`, such as `num_beams`. Without any, decoding is greedy: nothing is taken
            from the model's own generation_config.json but its end tokens.

    Raises `InputError` where a prompt has no tokens or the model is too short for `max_new_tokens`.
    """
    room = _room(model, max_new_tokens)
    encoded = _encode(model, prompts)
    for name, ids in encoded.items():
        if not ids:
            raise InputError(f"the prompt of {name} is empty")
    config = _config(model, max_new_tokens, options)
    rows = {name: tuple(ids[-room:]) for name, ids in encoded.items()}
    kept = Memory() if journal is None else journal

    def write(shared: int, names: list[str], scorer: Scorer | None) -> list[Record]:
        prefix: list[Prefix] = []

        def work(batch: list[int]) -> list[Record]:
            some = [names[number] for number in batch]
            if scorer is not None and not prefix:
                prefix.append(scorer.prefix(rows[some[0]][:shared]))
            found = _generate(model, [rows[name] for name in some], config, stops, prefix[0] if prefix else None)
            decoded = model.tokenizer.batch_decode(found, skip_special_tokens=True)
            return [{"id": name, "text": cut_at(text, stops)} for name, text in zip(some, decoded, strict=True)]

        # Copies of a prefix take memory, but no computation.
        lengths = [(len(rows[name]) - shared * 3 // 4 + max_new_tokens) * (config.num_beams or 1) for name in names]
        budget = min(token_budget, CPU_TOKENS) if model.device.type == "cpu" else token_budget
        return work_through(names, lengths, work, kept, budget, what)

    texts = {record["id"]: record["text"] for group in _groups(model, rows, config) for record in write(*group)}
    return {name: texts[name] for name in prompts}


def _groups(
    model: EvalModel, rows: Mapping[str, tuple[int, ...]], config: GenerationConfig
) -> list[tuple[int, list[str], Scorer | None]]:
    """Prompts that begin alike, in how many tokens, and what runs these; 0 and None where each is read whole."""
    names = list(rows)
    groups = list(find_prefixes(list(rows.values())))
    if config.num_beams != 1 or not any(shared for shared, _ in groups):
        return [(0, names, None)]
    scorer = Scorer(model.language_model)
    if not all(scorer.shares(Question(row, ((0,) * config.max_new_tokens,))) for row in rows.values()):
        return [(0, names, None)]
    return [(shared, [names[number] for number in group], scorer if shared else None) for shared, group in groups]


def too_long(model: EvalModel, prompts: Mapping[str, str], max_new_tokens: int) -> list[str]:
    """Ids of the prompts that `generate` cuts on the left so that `max_new_tokens` have room."""
    room = _room(model, max_new_tokens)
    return [name for name, ids in _encode(model, prompts).items() if len(ids) > room]


def _room(model: EvalModel, max_new_tokens: int) -> int:
    room = model.max_length - max_new_tokens
    if room < 1:
        raise InputError(
            f"{model.directory} is made for {model.max_length:,} tokens: {max_new_tokens:,} new ones leave no room for "
            "a prompt"
        )
    return room


def _encode(model: EvalModel, prompts: Mapping[str, str]) -> dict[str, list[int]]:
    if not prompts:
        return {}
    found = model.tokenizer(list(prompts.values()), return_attention_mask=False, verbose=False)
    return dict(zip(prompts, found["input_ids"], strict=True))


def _config(model: EvalModel, max_new_tokens: int, options: Mapping[str, Any]) -> GenerationConfig:
    tokenizer = model.tokenizer
    own = getattr(model.language_model.generation_config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    ends = list(dict.fromkeys(token for token in ends if token is not None))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    chosen: dict[str, Any] = {"do_sample": False, "num_beams": 1} | dict(options)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=ends or None,
        bos_token_id=tokenizer.bos_token_id,
        **chosen,
    )


class _StopStrings(StoppingCriteria):
    """Ends a row when the text of its new tokens holds a stop string.

    transformers' own criterion compares pieces instead: it ends rows whose text never shows the stop string, and fails
    for a stop string that the tokenizer cannot write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer, self._stops, self._prompt = tokenizer, stops, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt :], skip_special_tokens=True)
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class _RoomyLayer(DynamicLayer):
    """Keys and values of all rows in tensors with room for what comes; its parent copies them for each new token."""

    def __init__(self, rows: int, room: int) -> None:
        super().__init__()
        self._rows, self._room = rows, room
        self._all: tuple[Tensor, Tensor] | None = None
        self.turn_to(slice(None), 0)

    def turn_to(self, rows: slice, length: int) -> None:
        """The next tokens are those of these rows, behind `length` tokens; what nobody wrote among those is zero."""
        self._turn, self._length = rows, length

    def get_seq_length(self) -> int:
        return self._length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._all is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = (
                states.new_zeros(self._rows, states.shape[1], self._room, states.shape[-1])
                for states in (key_states, value_states)
            )
            self._all = keys, values
        begin, self._length = self._length, self._length + key_states.shape[-2]
        keys, values = (kept[self._turn, :, : self._length] for kept in self._all)
        keys[..., begin:, :] = key_states
        values[..., begin:, :] = value_states
        self.keys, self.values = keys, values
        return keys, values


def _cache(model: EvalModel, rows: int, room: int, prefix: Prefix | None) -> DynamicCache | None:
    """A cache of `room` tokens for each row, begun with the prefix; None where the model wants one of its own kind."""
    cache = DynamicCache(config=model.language_model.config.get_text_config(decoder=True))
    if prefix is None and not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_RoomyLayer(rows, room) for _ in cache.layers]
    if prefix is not None:
        prefix.copy_into(cache, rows)
    return cache


def _parts(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Rows, given longest first, that are read together: hardly padded, and at most `budget` padded tokens or one."""
    begin = 0
    for row, length in enumerate(lengths):
        longest = lengths[begin]
        if row > begin and (longest * (row + 1 - begin) > budget or longest - length > max(4, longest // 16)):
            yield slice(begin, row)
            begin = row
    yield slice(begin, len(lengths))


def _read(model: EvalModel, ids: Tensor, mask: Tensor, shared: int, cache: DynamicCache) -> None:
    """Fill the cache with all but the last token of each row, of which it has `shared` already."""
    language_model: Any = model.language_model
    takes_positions = "position_ids" in inspect.signature(language_model.forward).parameters
    few_logits = {"logits_to_keep": 1} if language_model._supports_logits_to_keep() else {}
    end = ids.shape[1] - 1
    budget = CPU_READ_TOKENS if ids.device.type == "cpu" else ids.numel()
    layers: list[Any] = cache.layers
    lengths = mask[:, shared:end].sum(1).tolist()
    for part in _parts(lengths, budget):
        begin = end - lengths[part.start]
        if begin == end:
            break
        for layer in layers:
            layer.turn_to(part, begin)
        positions = (mask[part, :end].cumsum(1) - 1).clamp(min=0)[:, begin:]
        language_model(
            input_ids=ids[part, begin:end],
            attention_mask=mask[part, :end],
            past_key_values=cache,
            use_cache=True,
            **({"position_ids": positions} if takes_positions else {}),
            **few_logits,
        )
    for layer in layers:
        layer.turn_to(slice(None), end)


@torch.inference_mode()
def _generate(
    model: EvalModel,
    rows: Sequence[Sequence[int]],
    config: GenerationConfig,
    stops: Sequence[str],
    prefix: Prefix | None,
) -> Tensor:
    """New tokens of each row, padded on the right: (rows, new tokens). Padding stands behind the prefix.

    Rows are given longest first: they are read a few of like length at a time, and written all together.
    """
    longest = max(map(len, rows))
    shared = len(prefix) if prefix is not None else 0
    pads = [longest - len(row) for row in rows]
    ids = torch.tensor(
        [[*row[:shared], *[config.pad_token_id] * pad, *row[shared:]] for row, pad in zip(rows, pads, strict=True)],
        device=model.device,
    )
    mask = torch.tensor(
        [[1] * shared + [0] * pad + [1] * (longest - shared - pad) for pad in pads], device=model.device
    )
    cache = _cache(model, len(rows), longest + config.max_new_tokens, prefix) if config.num_beams == 1 else None
    if cache is not None:
        _read(model, ids, mask, shared, cache)
    language_model: Any = model.language_model
    own = language_model.generation_config
    language_model.generation_config = GenerationConfig()  # transformers fills what `config` leaves open from it
    try:
        whole: Tensor = language_model.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_StopStrings(model.tokenizer, stops, longest)] if stops else []),
            past_key_values=cache,
        )
    finally:
        language_model.generation_config = own
    return whole[:, longest:]
