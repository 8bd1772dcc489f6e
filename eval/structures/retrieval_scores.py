"""How well an aligned model finds that texts and structures go together: by likelihood, or by embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from align.batches import pack
from align.examples import PLACES
from align.model import AlignedModel
from align.prompts import Turn
from align.questions import Question
from eval.qa.shared_prefix import Prefix
from eval.work import Journal, Memory, Record, work_through
from job.errors import InputError


def readable(model: AlignedModel, questions: Sequence[Question]) -> tuple[list[int], str | None]:
    """Numbers of the questions that can be put to the model, and why the first of the others cannot."""
    places, reason = [], None
    for place, question in enumerate(questions):
        try:
            model.encoding.length(replace(question, answer=""))
            places.append(place)
        except InputError as error:
            reason = reason or str(error)
    return places, reason


# By likelihood.


def answer_ids(model: AlignedModel, questions: Sequence[Question]) -> tuple[list[np.ndarray], int]:
    """The ids of each text with its end token, cut to what every structure's prompt leaves room for; how many are cut.

    All structures are asked for the very same tokens, so that likelihoods compare. Raises `InputError` where the
    longest prompt leaves no room.
    """
    lengths = [model.encoding.length(replace(question, answer="")) - 1 for question in questions]
    room = model.settings.max_length - max(lengths)
    whole = [model.encoding.answer_ids(question.answer) for question in questions]
    return [ids[:room] for ids in whole], sum(len(ids) > room for ids in whole)


def log_likelihoods(
    model: AlignedModel,
    questions: Sequence[Question],
    texts: Sequence[np.ndarray],
    journal: Journal,
    token_budget: int,
) -> np.ndarray:
    """Ln p(text | prompt with structure) of every pair: float64 [structures, texts], summed over the text's tokens.

    The texts take the place of the answers; a structure's prompt is run once, and all texts follow its keys and values.
    One record of the journal is one structure with all texts. Collective over ranks.

    Args:
        model: reads the structures.
        questions: one per structure.
        texts: ids of each text, see `answer_ids`.
        journal: what has been scored already.
        token_budget: padded tokens of a batch, those of the prompt counted for each row.
    """

    def work(rows: list[int]) -> list[Record]:
        return [
            {"id": questions[row].id, "nats": _follow(model, questions[row], texts, token_budget).tolist()}
            for row in rows
        ]

    names = [question.id for question in questions]
    alone = [token_budget] * len(names)  # each structure is a batch of its own, and journalled when it is done
    records = work_through(names, alone, work, journal, token_budget, "scoring pairs")
    return np.array([record["nats"] for record in records])


@torch.inference_mode()
def _follow(model: AlignedModel, question: Question, texts: Sequence[np.ndarray], token_budget: int) -> np.ndarray:
    """Ln p of each text after one question's prompt: float64 [texts]."""
    language_model = model.language_model
    decoder, output = language_model.get_decoder(), language_model.get_output_embeddings()
    device = next(language_model.parameters()).device
    prompt = model.encoding.collate([model.encoding.prompt([Turn.asking(question)])]).to(device)
    length = prompt.ids.shape[1]
    cache = DynamicCache()
    places = torch.arange(length, device=device)[None]
    hidden = decoder(
        inputs_embeds=model.embed(prompt), position_ids=places, past_key_values=cache, use_cache=True
    ).last_hidden_state
    first = functional.log_softmax(output(hidden[:, -1]).float(), dim=-1)[0]
    prefix = Prefix((), cache)
    found = np.zeros(len(texts))
    embed_tokens = language_model.get_input_embeddings()
    for rows in pack([length + len(ids) for ids in texts], token_budget, 1)[0]:
        longest = max(len(texts[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        counted = torch.zeros(len(rows), longest, dtype=torch.bool)
        for line, row in enumerate(rows):
            ids[line, : len(texts[row])] = torch.from_numpy(texts[row])
            counted[line, : len(texts[row])] = True
        ids, counted = ids.to(device), counted.to(device)
        nats = first[ids[:, 0]].double()
        if longest > 1:
            # Padding stands behind every token that counts, where no causal model looks: it needs no mask.
            places = torch.arange(length, length + longest - 1, device=device)[None].expand(len(rows), -1)
            hidden = decoder(
                inputs_embeds=embed_tokens(ids[:, :-1]),
                position_ids=places,
                past_key_values=prefix.cache(),
                use_cache=True,
            ).last_hidden_state
            lines, columns = counted[:, 1:].nonzero(as_tuple=True)
            losses = functional.cross_entropy(
                output(hidden[lines, columns]).float(), ids[:, 1:][lines, columns], reduction="none"
            )
            nats = nats.index_add(0, lines, -losses.double())
        found[rows] = nats.cpu().numpy()
    return found


def log_mean(nats: np.ndarray) -> np.ndarray:
    """Logarithm of the mean over structures of p(text | structure): float64 [texts], of ln p [structures, texts]."""
    highest = nats.max(axis=0)
    return highest + np.log(np.exp(nats - highest).mean(axis=0))


# By embeddings.


def embeddings(
    model: AlignedModel, questions: Sequence[Question], token_budget: int, hidden: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the structures and of the texts (the answers): float32 [rows, hidden size] each. Collective.

    Without `hidden`: a structure's is the mean of what its adapter gives the language model, a text's the mean of the
    input embeddings of its tokens. With it: means of the language model's last hidden states, of a structure over its
    places in its question's prompt, of a text over its tokens behind the start token alone.
    """
    device = next(model.language_model.parameters()).device
    start = model.encoding.start_ids

    def structures(rows: list[int]) -> list[Record]:
        prompts = [model.encoding.prompt([Turn.asking(questions[row])]) for row in rows]
        batch = model.encoding.collate(prompts).to(device)
        states = model.embed(batch)
        if hidden:
            states = _last_hidden(model, states, batch.attention_mask)
        inside = torch.zeros_like(batch.ids, dtype=torch.bool)
        for place in PLACES.values():
            inside |= batch.ids == place
        return _records(rows, states, inside)

    def texts(rows: list[int]) -> list[Record]:
        pieces = [np.concatenate([start, tokens[row]]) for row in rows]
        longest = max(map(len, pieces))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for line, piece in enumerate(pieces):
            ids[line, : len(piece)], mask[line, : len(piece)] = torch.from_numpy(piece), 1
        ids, mask = ids.to(device), mask.to(device)
        states = model.language_model.get_input_embeddings()(ids)
        if hidden:
            states = _last_hidden(model, states, mask)
        inside = mask.bool()
        inside[:, : len(start)] = False
        return _records(rows, states, inside)

    names = [str(row) for row in range(len(questions))]
    room = model.settings.max_length - len(start)
    tokens = [model.encoding.answer_ids(question.answer)[:-1][:room] for question in questions]
    lengths = [model.encoding.length(replace(question, answer="")) for question in questions]
    with torch.inference_mode():
        left = work_through(names, lengths, structures, Memory(), token_budget, "embedding structures")
        right = work_through(
            names, [len(piece) + len(start) for piece in tokens], texts, Memory(), token_budget, "embedding texts"
        )
    return np.stack([record["vector"] for record in left]), np.stack([record["vector"] for record in right])


def _last_hidden(model: AlignedModel, states: Tensor, mask: Tensor) -> Tensor:
    decoder = model.language_model.get_decoder()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return decoder(inputs_embeds=states, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state


def _records(rows: list[int], states: Tensor, inside: Tensor) -> list[Record]:
    """The mean state of each row over its places `inside` (zero where it has none)."""
    weights = inside.float()[:, :, None]
    means = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return [{"id": str(row), "vector": mean} for row, mean in zip(rows, means.cpu().numpy(), strict=True)]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of every pair, float64 [left rows, right rows], after each side's mean over its rows is taken off.

    (Vectors of one kind have a large part in common, which says nothing about any of them and would outweigh the rest.)
    """
    sides = []
    for vectors in (left, right):
        centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
        sides.append(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))
    return sides[0] @ sides[1].T
