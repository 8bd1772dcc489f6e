"""A Hugging Face causal language model as lm-eval sees it, which scores multiple-choice items without computing twice.

Requests are what lm-eval's own Hugging Face backend would be given, encoded and cut as it does, and in float32 the
answers are the same. What differs is how much is computed (`eval.qa.shared_prefix`), and that ranks share the work.

    results = lm_eval.evaluator.evaluate(SharedPrefixLM(model, journal), task_dict, bootstrap_iters=0)

Towards lm-eval every rank is alone, so that each sees all requests and all answers. (`simple_evaluate` gives its
results to the process with LOCAL_RANK 0 only; `evaluate` to all.)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.generate import generate, too_long
from eval.models import EvalModel
from eval.qa.shared_prefix import Ids, Likelihood, Prefix, Question, Scorer, find_prefixes, plain_rows
from eval.work import Journal, Memory, Record, work_through
from job.errors import InputError

TOKEN_BUDGET = 16_384
"""padded tokens of a batch"""
CPU_TOKENS = 2048
"""the most on a CPU: what leaves its caches is slower, not faster"""

_log = logging.getLogger(__name__)


class SharedPrefixLM(TemplateLM):
    """lm-eval's interface to a model; pass an instance to `lm_eval.evaluator.evaluate`."""

    backend = "causal"

    def __init__(
        self, model: EvalModel, journal: Journal | None = None, token_budget: int = TOKEN_BUDGET, share: bool = True
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: with its tokenizer.
            journal: where scores are kept so that a killed run goes on; None: nowhere.
            token_budget: padded tokens of a batch, in the memory of a token that passes through a layer; at most
                `CPU_TOKENS` on a CPU.
            share: False scores plain rows, as a check.
        """
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_length = model.max_length
        self._device = model.device
        self._journal = journal
        self._token_budget = token_budget
        self._share = share
        self._scorer = Scorer(model.language_model)
        self.notes: list[str] = [self._scorer.refusal] if share and self._scorer.refusal is not None else []
        for note in self.notes:
            _log.warning(note)
        self.truncated_prompts: dict[str, None] = {}
        """prompts that were cut on the left, as lm-eval does, because the model is shorter"""

    @property
    def truncated(self) -> int:
        """How many different prompts were cut on the left because the model is shorter."""
        return len(self.truncated_prompts)

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context consists of: the begin token, or the end token where the tokenizer has none."""
        begin = self.tokenizer.bos_token_id
        return int(begin if begin is not None else self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's records."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; special tokens as the tokenizer's default, none where the text begins with one already."""
        if add_special_tokens is None:
            return self._encode([string])[string]
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False))

    def _encode(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Ids of each text with the tokenizer's default special tokens, in one call of the tokenizer."""
        begin = self.tokenizer.decode(self.prefix_token_id)
        found: dict[str, list[int]] = {}
        for begun in (False, True):  # a text that begins with the begin token gets no second one
            some = [text for text in dict.fromkeys(texts) if has_bos_prefix(text, begin) is begun]
            if some:
                options: dict[str, Any] = {"add_special_tokens": False} if begun else {}
                encoded = self.tokenizer(some, return_attention_mask=False, verbose=False, **options)
                found |= dict(zip(some, encoded["input_ids"], strict=True))
        return found

    # Log-likelihoods.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether greedy decoding would give it.

        Raises `InputError` where a continuation is empty or longer than the model.
        """
        pairs = [_boundary(*request.args) for request in requests]
        ids = self._encode([text for context, end in pairs if context for text in (context, context + end)])
        encoded = []
        for request, (context, end) in zip(requests, pairs, strict=True):
            if context:
                before = ids[context]
                after = ids[context + end][len(before) :]
            else:
                before, after = [self.prefix_token_id], self.tok_encode(end, add_special_tokens=False)
                if after[:1] == before:
                    after = after[1:]
            encoded.append((request.args, before, after))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._cut(*request) for request in requests]
        contexts: dict[Ids, dict[Ids, None]] = defaultdict(dict)
        for context, end in asked:
            contexts[context][end] = None
        questions = [Question(context, tuple(ends)) for context, ends in contexts.items()]
        answers: dict[tuple[Ids, Ids], Likelihood] = {}
        shared, plain = [], []
        for question in questions:
            if self._share and self._scorer.shares(question):
                shared.append(question)
            else:
                plain += [part for part, _ in plain_rows(question)]
        groups = [
            (length, [shared[number] for number in numbers])
            for length, numbers in find_prefixes([question.context for question in shared])
        ]
        for length, members in (*groups, (0, plain)):
            found = self._score(members, members[0].context[:length] if length else ())
            for question, likelihoods in zip(members, found, strict=True):
                for end, likelihood in zip(question.continuations, likelihoods, strict=True):
                    answers[question.context, end] = likelihood
        results: list[tuple[float, bool]] = [(*answers[pair],) for pair in asked]
        for (text, _, _), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def _cut(self, text: tuple[str, str] | None, before: list[int], after: list[int]) -> tuple[Ids, Ids]:
        """Context and continuation with as much of the context as the model has room for, as lm-eval cuts it."""
        if not after:
            raise InputError(f"an answer is empty, after ...{(text or ('', ''))[0][-60:]!r}")
        if len(after) > self.max_length:
            raise InputError(f"an answer has {len(after):,} tokens; the model is made for {self.max_length:,}")
        excess = len(before) + len(after) - (self.max_length + 1)
        if excess > 0 and text is not None:
            self.truncated_prompts[text[0]] = None
        return tuple(before[max(excess, 0) :]), tuple(after)

    def _score(self, questions: Sequence[Question], begin: Ids) -> list[list[Likelihood]]:
        """Likelihoods of questions that all begin with `begin`, over all ranks, batch by batch."""
        if not questions:
            return []
        prefix: list[Prefix] = []

        def work(rows: list[int]) -> list[Record]:
            if begin and not prefix:
                prefix.append(self._scorer.prefix(begin))
            found = self._scorer.score([questions[row] for row in rows], prefix[0] if prefix else None)
            return [
                {"id": names[row], "likelihoods": likelihoods} for row, likelihoods in zip(rows, found, strict=True)
            ]

        names = [_name(question) for question in questions]
        lengths = [question.length - len(begin) for question in questions]
        journal = self._journal if self._journal is not None else Memory()
        records = work_through(names, lengths, work, journal, self._budget(questions, len(begin)), "choices")
        return [[Likelihood(*pair) for pair in record["likelihoods"]] for record in records]

    def _budget(self, questions: Sequence[Question], shared: int) -> int:
        """Tokens of a batch that take the memory of `token_budget` tokens that share nothing and are not scored.

        The unit is what a token takes in a layer, about eight times the hidden size. To that a question adds logits,
        its rows of the mask, and a copy of the prefix's keys and values for one layer at a time.
        """
        config = self.model.language_model.config.get_text_config()
        unit = 8 * config.hidden_size
        rows = int(config.vocab_size)
        most = 1.0
        for question in questions:
            length = question.length - shared
            extra = question.scored * rows + length * question.length + shared * 2 * config.hidden_size
            most = max(most, 1 + extra / (unit * length))
        budget = min(self._token_budget, CPU_TOKENS) if self.model.device.type == "cpu" else self._token_budget
        return max(1, int(budget / most))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the model, every token once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            found = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(window)) for window in found]
            counts.append(len(windows) - before)
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    # Generation.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text generated after each prompt up to the first of its stop strings."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        texts = [""] * len(requests)
        for key, numbers in groups.items():
            options: dict[str, Any] = dict(normalize_gen_kwargs(json.loads(key), 256))
            stops = options.pop("until", None) or []
            count = int(options.pop("max_gen_toks"))
            if not options.get("do_sample"):
                options.pop("temperature", None)
            prompts = {_digest([requests[number].args[0], key]): requests[number].args[0] for number in numbers}
            cut = too_long(self.model, prompts, count)
            self.truncated_prompts |= dict.fromkeys(prompts[name] for name in cut)
            found = generate(
                self.model,
                prompts,
                self._journal,
                max_new_tokens=count,
                stops=stops,
                token_budget=self._token_budget,
                what="answers",
                **options,
            )
            for number in numbers:
                texts[number] = found[_digest([requests[number].args[0], key])]
        return texts


def _boundary(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to what follows: tokenizers join them with the next word."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _name(question: Question) -> str:
    return "choices-" + _digest([question.context, question.continuations])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
