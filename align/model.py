"""The aligned model: language model, molecule and protein encoder, and the adapters between them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from align.adapters import Adapter
from align.esm import ProteinBatch, ProteinEncoder
from align.examples import IGNORED, PLACES, Batch, Encoding, FeatureBatch
from align.gnn import MoleculeBatch, MoleculeEncoder
from align.language_model import add_lora, cut_at, has_lora, is_lora
from align.model_directory import load_model_directory, save_model_directory
from align.prompts import Kind, Turn
from align.questions import Question
from align.settings import (
    TRAINS_ENCODERS,
    TRAINS_WHOLE_LANGUAGE_MODEL,
    AlignedSettings,
    LoraSettings,
    Tuning,
)
from job.errors import InputError

KINDS: tuple[Kind, ...] = ("molecule", "protein")
"""Of structures, in the order in which everything goes through them."""


class AlignedModel(nn.Module):
    """A language model that reads molecules and proteins.

    Embeddings of structures, made by an encoder and an adapter, take the places that `align.examples` leaves for them
    among the embeddings of the text. All weights are frozen until `tune` says what is trained.

    The molecule encoder and the adapters are float32. The language model and the protein encoder compute in the type
    of their weights, or, where these are float32, in `compute_dtype` under autocast.

    Nothing here reads a weight outside the module that owns it, and every call runs the same modules, whatever
    structures its batch has: both are what sharded parameters (ZeRO-3) need.

    Args:
        language_model: a causal language model of transformers; see `align.language_model`.
        tokenizer: its tokenizer.
        settings: encoders, adapters and prompt; None for an encoder there goes with None here.
        molecule_encoder, protein_encoder: see `align.gnn` and `align.esm`.
        register_language_model: whether the language model is a submodule. DeepSpeed then shards, trains and saves it;
            otherwise it stays as it is, and `to`, `parameters` and `state_dict` leave it out (but see `place`).
        language_model_directory: where it was loaded from, for a model directory that refers to it.
        seed: of the adapters' initial weights.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AlignedSettings,
        molecule_encoder: MoleculeEncoder | None,
        protein_encoder: ProteinEncoder | None,
        register_language_model: bool = False,
        language_model_directory: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        limit = getattr(language_model.config, "max_position_embeddings", None)
        if limit is not None and settings.max_length > limit:
            raise InputError(f"max_length is {settings.max_length}, but the language model reads {limit} tokens")
        for kind, encoder in (("molecule", molecule_encoder), ("protein", protein_encoder)):
            if (getattr(settings, kind) is None) != (encoder is None):
                raise ValueError(f"the settings and the arguments differ on whether there is a {kind} encoder")
        self.language_model: PreTrainedModel
        if register_language_model:
            self.language_model = language_model
        else:
            object.__setattr__(self, "language_model", language_model)
        self.registered = register_language_model
        self.language_model_directory = language_model_directory
        self.tokenizer = tokenizer
        self.settings = settings
        self.encoding = Encoding(tokenizer, settings)
        self.compute_dtype = torch.float32
        self.molecule_encoder = molecule_encoder
        self.protein_encoder = protein_encoder
        hidden = language_model.config.get_text_config().hidden_size
        self.molecule_adapter: Adapter | None = None
        self.protein_adapter: Adapter | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.molecule is not None and molecule_encoder is not None:
                self.molecule_adapter = Adapter(settings.molecule.adapter, molecule_encoder.width, hidden)
            if settings.protein is not None and protein_encoder is not None:
                self.protein_adapter = Adapter(settings.protein.adapter, protein_encoder.width, hidden)
        self.requires_grad_(False)
        language_model.requires_grad_(False)
        self.tuning: Tuning | None = None
        self.eval()

    # What is trained.

    def tune(self, mode: Tuning, lora: LoraSettings | None = None) -> None:
        """Choose what is trained, and freeze the rest.

        Args:
            mode: "adapters"; "encoders": adapters and encoders; "lora": adapters and LoRA layers, which are added to a
                language model that has none; "language_model": adapters and language model; "all": all weights there
                are.
            lora: settings of the layers added.

        Raises `ValueError` where the language model is to be trained but is no submodule.
        """
        whole_language_model = mode in TRAINS_WHOLE_LANGUAGE_MODEL
        if (mode == "lora" or whole_language_model) and not self.registered:
            raise ValueError(f"tune('{mode}') trains the language model: build the model with register_language_model")
        if mode == "lora" and not has_lora(self.language_model):
            add_lora(self.language_model, lora or LoraSettings())
        for adapter in (self.molecule_adapter, self.protein_adapter):
            if adapter is not None:
                adapter.requires_grad_(True)
        for encoder in (self.molecule_encoder, self.protein_encoder):
            if encoder is not None:
                encoder.requires_grad_(mode in TRAINS_ENCODERS)
        for name, parameter in self.language_model.named_parameters():
            parameter.requires_grad_(whole_language_model or (mode == "lora" and is_lora(name)))
        self.tuning = mode
        self.train(self.training)

    def trainable_state(self) -> dict[str, Tensor]:
        """What training changes, by name in `state_dict`: parameters, and statistics.

        These are those of trained batch norms, and what the adapters standardise by.
        """
        state: dict[str, Tensor] = {
            name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad
        }
        if self.molecule_encoder is not None and _is_trained(self.molecule_encoder):
            state |= dict(self.molecule_encoder.named_buffers(prefix="molecule_encoder"))
        return state | {name: buffer for name, buffer in self.named_buffers() if "_adapter." in name}

    def train(self, mode: bool = True) -> AlignedModel:
        """As any module's, also for a language model that is no submodule; frozen encoders stay in evaluation mode."""
        super().train(mode)
        self.language_model.train(mode)
        for encoder in (self.molecule_encoder, self.protein_encoder):
            if encoder is not None and not _is_trained(encoder):
                encoder.eval()
        return self

    def place(self, device: torch.device | str) -> AlignedModel:
        """Move everything to a device, the language model included, whether it is a submodule or not."""
        self.language_model.to(device)  # type: ignore[arg-type]
        return self.to(device)

    # Loss.

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the loss over the answer tokens of all rows, float32 [] in nats.

        The caller divides by the number of answer tokens of the global batch.
        """
        losses, _ = self._token_losses(batch)
        return losses.sum()

    def row_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per row: the sum of the loss over its answer tokens, float32 [B], and their number, int64 [B]."""
        losses, rows = self._token_losses(batch)
        sums = losses.new_zeros(len(batch.ids)).index_add(0, rows, losses)
        return sums, torch.bincount(rows, minlength=len(batch.ids))

    def _token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss float32 [answer tokens] of each answer token and its row, int64."""
        with self._precision(self.language_model):
            embedded, positions = self.embed(batch), _positions(batch.attention_mask)
            start = batch.shared if self._reads_once(batch) else 0
            begun = {"past_key_values": self._read(embedded[:1, :start], len(embedded))} if start else {}
            hidden = self.language_model.get_decoder()(
                inputs_embeds=embedded[:, start:],
                attention_mask=batch.attention_mask,
                position_ids=positions[:, start:],
                use_cache=False,
                **begun,
            ).last_hidden_state
            targets = batch.labels[:, start + 1 :]
            rows, places = (targets != IGNORED).nonzero(as_tuple=True)
            # The output layer is most of a small model's work, and prompts need none of it.
            logits = self.language_model.get_output_embeddings()(hidden[rows, places])
        return functional.cross_entropy(logits.float(), targets[rows, places], reduction="none"), rows

    def _reads_once(self, batch: Batch) -> bool:
        """Whether the text that all rows begin with can go through the language model once, without gradients.

        It can where that is frozen: nothing before the first structure depends on what is trained then. Recomputation
        of activations leaves a cache out, and models with a state have none.
        """
        model = self.language_model
        if len(batch.ids) == 1 or self.registered or model._is_stateful:
            return False
        if "past_key_values" not in signature(model.get_decoder().forward).parameters:
            return False
        return not (model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules()))

    @torch.no_grad()
    def _read(self, embedded: Tensor, rows: int) -> DynamicCache:
        """Keys and values of a text [1, T, hidden], for each of some rows that begin with it."""
        cache = DynamicCache()
        self.language_model.get_decoder()(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache

    def embed(self, batch: Batch) -> Tensor:
        """Input embeddings [B, T, hidden] of a batch, those of its structures in their places."""
        embedded = self.language_model.get_input_embeddings()(batch.ids.clamp(min=0))
        for kind in KINDS:
            adapter = getattr(self, f"{kind}_adapter")
            if adapter is None:
                continue
            structures = batch.molecules if kind == "molecule" else batch.proteins
            vectors = adapter(self.features(kind, structures), structures.lengths)
            places = (batch.ids == PLACES[kind])[:, :, None]
            embedded = embedded.masked_scatter(places, vectors.to(embedded.dtype))
        return embedded

    def features(self, kind: Kind, structures: MoleculeBatch | ProteinBatch | FeatureBatch) -> Tensor:
        """What the encoder of this kind gives, [N, width]; structures from a cache have it with them."""
        if isinstance(structures, FeatureBatch):
            return structures.values
        encoder = getattr(self, f"{kind}_encoder")
        with contextlib.nullcontext() if _is_trained(encoder) else torch.no_grad(), self._precision(encoder):
            return encoder(structures)

    @contextlib.contextmanager
    def _precision(self, module: nn.Module) -> Iterator[None]:
        parameter = next(module.parameters())
        enabled = parameter.dtype == torch.float32 != self.compute_dtype
        with torch.autocast(parameter.device.type, dtype=self.compute_dtype if enabled else None, enabled=enabled):
            yield

    # Answers.

    @torch.no_grad()
    def generate(self, questions: Sequence[Question | Turn | Sequence[Turn]], **options: Any) -> list[str]:
        """Answers to questions or conversations, all in one batch.

        Greedy decoding of at most 256 tokens unless `options`, those of transformers' `generate` (`num_beams`,
        `do_sample`, `temperature`, `max_new_tokens`, `streamer`, `stop_strings`, ...), say otherwise. An answer ends
        at the end token or before the prompt's separator. Raises `InputError` where prompt and answer may exceed
        `max_length`, and the structures' errors.
        """
        prompts = [self.encoding.prompt(_turns(question)) for question in questions]
        if not prompts:
            return []
        chosen: dict[str, Any] = {"max_new_tokens": 256, "do_sample": False, "num_beams": 1} | options
        passed = {name: chosen.pop(name) for name in _NOT_IN_CONFIG & chosen.keys()}
        penalty = float(chosen.get("repetition_penalty") or 1.0)
        if penalty != 1.0:
            # transformers' own takes each row's padding for the length of a prompt that it leaves out, of an output
            # that never holds the prompt's embeddings; given this one, it uses it in that one's place.
            own = RepetitionPenaltyLogitsProcessor(penalty)
            passed["logits_processor"] = LogitsProcessorList([*passed.get("logits_processor", []), own])
        stops = chosen.pop("stop_strings", [self.settings.prompt.separator])
        stops = [stops] if isinstance(stops, str) else list(stops or [])
        longest = max(len(prompt) for prompt in prompts)
        if longest + chosen["max_new_tokens"] > self.settings.max_length:
            raise InputError(
                f"a prompt of {longest} tokens and an answer of up to {chosen['max_new_tokens']} exceed this model's "
                f"max_length of {self.settings.max_length}; ask for fewer new tokens or about smaller structures"
            )
        was_training = self.training
        self.eval()
        try:
            batch = self.encoding.collate(prompts, side="left").to(next(self.language_model.parameters()).device)
            config = GenerationConfig(
                pad_token_id=self.encoding.pad_id,
                eos_token_id=self._end_ids(),
                bos_token_id=self.tokenizer.bos_token_id,
                stop_strings=stops or None,
                **chosen,
            )
            with self._precision(self.language_model), _quiet_about_penalty(penalty):
                ids = self.language_model.generate(  # type: ignore[operator]
                    inputs_embeds=self.embed(batch),
                    attention_mask=batch.attention_mask,
                    generation_config=config,
                    tokenizer=self.tokenizer if stops else None,
                    **passed,
                )
        finally:
            self.train(was_training)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [cut_at(text, stops).strip() for text in texts]

    def _end_ids(self) -> list[int]:
        """The tokenizer's end token and those that the language model itself ends with (Llama-3 has several)."""
        own = getattr(self.language_model.generation_config, "eos_token_id", None)
        own = own if isinstance(own, list) else [own]
        return list(dict.fromkeys([self.encoding.end_id, *(token for token in own if token is not None)]))

    # A model directory.

    def save_pretrained(
        self,
        directory: Path,
        state: Mapping[str, Tensor] | None = None,
        copy_language_model: bool = False,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a model directory; see `align.model_directory.save_model_directory`."""
        save_model_directory(self, Path(directory), state, copy_language_model, training)

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> AlignedModel:
        """Load a model directory; see `align.model_directory.load_model_directory` for `options`."""
        return load_model_directory(cls, Path(directory), dtype, device, **options)


# Options of `generate` that are arguments of transformers' `generate`, not fields of its `GenerationConfig`.
_NOT_IN_CONFIG = {"streamer", "stopping_criteria", "logits_processor", "synced_gpus", "prefix_allowed_tokens_fn"}


@contextlib.contextmanager
def _quiet_about_penalty(penalty: float) -> Iterator[None]:
    """Without transformers' warnings that a penalty looks at what is written alone, and that its own was replaced."""
    if penalty == 1.0:
        yield
        return
    logger = logging.getLogger("transformers.generation.utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Passing `repetition_penalty`")
            yield
    finally:
        logger.setLevel(level)


def _turns(question: Question | Turn | Sequence[Turn]) -> Sequence[Turn]:
    if isinstance(question, Question):
        return [Turn.asking(question)]
    return [question] if isinstance(question, Turn) else question


def _positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding on either side changes nothing."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
