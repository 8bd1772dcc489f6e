"""An alignment run's state and its verbs: build or restore, step, validate, answer, save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from align import checkpoint
from align.assemble import build, frozen_checksums
from align.batches import RankBatches, TrainingBatches, rank_batches
from align.config import AlignConfig
from align.engine import Engine, seed_all, whole_shape
from align.examples import Encoding
from align.features import FeatureCache, build_cache, encoder_checksum
from align.inputs import Inputs
from align.model import AlignedModel
from align.question_shards import QuestionSet
from align.questions import Question
from align.standardise import measure_statistics
from data_shards.order import first_difference
from job.config import as_dict
from job.directory import RunDirectory
from job.errors import InputError
from job.schedule import learning_rate
from parallel import ranks
from parallel.loop import NonFiniteStep, Progress
from parallel.meter import Meter
from parallel.run import newest_whole, publish

log = logging.getLogger("align")

_VALIDATION_BLOCK = 1024  # questions that are measured, encoded and packed at a time


class Trainer:
    """Everything that a step needs, built once."""

    def __init__(self, config: AlignConfig, inputs: Inputs, run: RunDirectory, attempt: int) -> None:
        self.config, self.run, self.attempt = config, run, attempt
        self.order, self.validation, self.steps = inputs.order, inputs.validation, inputs.steps
        self.references = inputs.references
        self.device, self.progress = ranks.device(), Progress()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        (self.frozen,) = ranks.from_first_rank(ranks.together(self._frozen_checksums))
        self.model = ranks.together(lambda: build(config))
        if config.molecule.use and not config.molecule.weights and not config.trains_encoders:
            log.warning(
                "the molecule encoder has random weights, and tune.mode %s leaves them so: name molecule.weights, or "
                "train the encoders",
                config.tune.mode,
            )
        if config.train.recompute:
            self.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.model.protein_encoder is not None and config.trains_encoders:
                self.model.protein_encoder.gradient_checkpointing = True
        if not self.model.registered:
            self.model.language_model.to(self.device)  # type: ignore[arg-type]
        self.model.encoding = self._encoding(self.model)
        self.sizes = _sizes(self.model)
        found = newest_whole(run, checkpoint.verify, self._check_continuation, log)
        seed_all(config.train.seed + 1 + self.rank)  # dropout differs between ranks
        self.engine = self._start(found)
        self._batches = TrainingBatches(
            self.order,
            self.model.encoding,
            config.train.global_batch,
            config.data.token_budget,
            self.rank,
            self.world,
        )
        self._skipped: set[str] = set()
        self.meter = Meter(self._flops_per_token(), self.progress.step, self.steps)
        self.model.train()

    def _frozen_checksums(self) -> dict[str, str]:
        return frozen_checksums(self.config) if ranks.is_logging_rank() else {}

    def _start(self, found: tuple[Path, dict[str, Any]] | None) -> Engine:
        """The engine, continuing from a checkpoint if there is one."""
        if found is None:
            log.info("starting from %s", self.config.model.language_model)
            if count := measure_statistics(self.model, self.order, self.config.data.token_budget, self.device):
                log.info("standardising by the structures of %d questions", count)
            return Engine(self.model, self.config)
        path, body = found
        checkpoint.load_weights(path, self.model)
        engine = Engine(self.model, self.config)
        checkpoint.load_optimizer(path, engine, body["step"])
        checkpoint.load_random_state(path, body["world_size"])
        self.progress = Progress(body["step"], body["consumed_samples"], body["consumed_tokens"])
        log.info("continuing from %s: step %d, %d tokens", path, self.progress.step, self.progress.tokens)
        return engine

    def _check_continuation(self, path: Path, body: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another model, other data or another batch."""
        needed = {"step", "consumed_samples", "consumed_tokens", "data", "frozen", "trained", "settings", "tuning"}
        if not needed <= body.keys():
            raise InputError(f"{path} is not a checkpoint of an alignment run; move it out of {path.parent}")
        if difference := first_difference(body["data"], self._data()):
            raise InputError(
                f"{path} was trained on other data: {difference}; restore that data, or start a new run directory"
            )
        checkpoint.check_trained(path, body, self.model)
        if difference := first_difference(body["settings"], self.model.settings.to_json()):
            raise InputError(
                f"{path} was trained with other settings: {difference}; set molecule, protein, prompt and "
                "model.max_length as they were, or start a new run directory"
            )
        if difference := first_difference(body["tuning"], self._tuning()):
            raise InputError(
                f"{path} was trained with other settings: {difference}; set it as it was, or start a new run directory"
            )
        for part in sorted(body["frozen"].keys() | self.frozen.keys()):
            if body["frozen"].get(part) != self.frozen.get(part):
                raise InputError(
                    f"{path} was trained with another {part} (checksum {str(body['frozen'].get(part))[:12]}, now "
                    f"{str(self.frozen.get(part))[:12]}); restore its files, or start a new run directory"
                )

    def _data(self) -> dict[str, Any]:
        return {"order": self.order.fingerprint(), "global_batch": self.config.train.global_batch}

    def _tuning(self) -> dict[str, Any]:
        """What decides, beside the model's settings, which function the trained weights are part of."""
        tune, molecule = self.config.tune, self.config.molecule
        lora = {"tune.lora": as_dict(tune.lora)} if tune.mode == "lora" else {}
        # Without weights to start from, batch norms are trained along; with them, they stay as they are.
        norms = {"molecule.weights are given": bool(molecule.weights)} if self.config.trains_encoders else {}
        return lora | norms

    def _encoding(self, model: AlignedModel) -> Encoding:
        """How questions become batches; with the outputs of frozen encoders where they are to be cached."""
        caches: dict[str, FeatureCache | None] = {"molecule": None, "protein": None}
        if self.config.data.cache_directory:
            sets = [*self.order.sets, *self.validation.values()]
            structures = [questions.structures() for questions in sets]
            for kind, limit in (("molecule", "max_atoms"), ("protein", "max_residues")):
                encoder = getattr(model, f"{kind}_encoder")
                unique = dict.fromkeys(text for found in structures for text in getattr(found, f"{kind}s"))
                if encoder is not None and unique:
                    directory = Path(self.config.data.cache_directory) / f"{kind}-{encoder_checksum(encoder)[:16]}"
                    log.info("caching the features of %d %ss in %s", len(unique), kind, directory)
                    caches[kind] = build_cache(
                        directory, encoder.to(self.device), unique, getattr(getattr(model.settings, kind), limit)
                    )
        return Encoding(model.tokenizer, model.settings, caches["molecule"], caches["protein"])

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics. Raises `NonFiniteStep` before such a step reaches the weights."""
        began = time.monotonic()
        config, progress = self.config, self.progress
        prepared = self._take_batches()
        answer_tokens = int(self._sum(float(prepared.answer_tokens)))
        if not answer_tokens:
            raise InputError(
                f"step {progress.step + 1}: none of its {config.train.global_batch} questions can be put to this "
                "model; see what was skipped above",
                everywhere=True,
            )
        waited = time.monotonic()
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(prepared.batches, start=1):
            loss = self.engine.loss(batch.to(self.device)) / answer_tokens
            total += loss.detach()
            self.engine.backward(loss, last=number == len(prepared.batches))
        loss_value = self._sum(total)
        computed = time.monotonic()
        rate = learning_rate(progress.step + 1, self.steps, config.optimizer.lr, config.schedule)
        norm = self.engine.step(rate) if math.isfinite(loss_value) else math.nan
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NonFiniteStep(
                f"step {progress.step + 1}: loss {loss_value} and gradient norm {norm} are not both finite; the "
                f"weights are untouched. The batch held questions {progress.samples} to "
                f"{progress.samples + config.train.global_batch - 1}",
                everywhere=True,
            )
        progress.step += 1
        progress.samples += config.train.global_batch
        progress.tokens += prepared.tokens
        ended = time.monotonic()
        parts = {
            "step": ended - began,
            "data_wait": waited - began,
            "forward_backward": computed - waited,
            "optimizer": ended - computed,
        }
        self.meter.add(parts, prepared.tokens)
        padded = self._sum(float(sum(batch.ids.numel() for batch in prepared.batches)))
        return {
            "train/loss": loss_value,
            "train/grad_norm": norm,
            "train/lr": rate,
            "train/tokens": progress.tokens,
            "train/answer_tokens": answer_tokens,
            "perf/answer_tokens_per_sec_per_device": answer_tokens / (ended - began) / self.world,
            "perf/padding": 1 - prepared.tokens / padded,
            "health/skipped": len(self._skipped),
            "health/cut_answers": self._sum(float(prepared.cut)),
        }

    def _take_batches(self) -> RankBatches:
        last = self.progress.step + 1 == self.steps
        prepared = ranks.together(lambda: self._batches.take(self.progress.step, last))
        self._tell_skipped(prepared)
        return prepared

    def _tell_skipped(self, prepared: RankBatches) -> None:
        """Name each question that cannot be put to this model, once."""
        for question, error in prepared.skipped:
            if question.id not in self._skipped:
                log.warning("skipped question %s: %s", question.id, str(error)[:200])
            self._skipped.add(question.id)

    def validate(self) -> dict[str, float]:
        """Validation loss (nats per answer token) and perplexity of every source that this model can be asked about."""
        values: dict[str, float] = {}
        for name, questions in self.validation.items():
            total = torch.zeros(2, dtype=torch.float64, device=self.device)
            for batch in self._validation_batches(questions):
                with torch.no_grad():
                    total[0] += self.engine.loss(batch.to(self.device))
                    total[1] += batch.answer_tokens
            dist.all_reduce(total)
            if not total[1]:
                log.warning("no validation question of %s can be put to this model: it has no validation loss", name)
                continue
            loss = (total[0] / total[1]).item()
            values |= {f"val/loss/{name}": loss, f"val/perplexity/{name}": math.exp(min(loss, 700.0))}
        return values

    def _validation_batches(self, questions: QuestionSet) -> Iterator[Any]:
        wanted = min(len(questions), self.config.train.validate_questions or len(questions))
        self.model.eval()
        budget = self.config.data.token_budget
        for first in range(0, wanted, _VALIDATION_BLOCK):
            chosen = [questions[number] for number in range(first, min(first + _VALIDATION_BLOCK, wanted))]
            prepared = ranks.together(_packing(chosen, self.model.encoding, budget, self.rank, self.world))
            self._tell_skipped(prepared)
            yield from prepared.batches
        self.model.train()

    def answers(self) -> list[dict[str, Any]]:
        """Answers that the model gives to the first validation questions of every source, beside the true ones.

        Collective: all ranks generate the same, since at stage 3 none can alone.
        """
        rows = []
        for name, questions in self.validation.items():
            for number in range(min(self.config.train.samples, len(questions))):
                question: Question = questions[number]
                try:
                    (answer,) = self.model.generate([question], max_new_tokens=self.config.train.sample_tokens)
                except InputError as error:  # a prompt that is too long for this model
                    answer = f"({error})"
                rows.append(
                    {
                        "step": self.progress.step,
                        "source": name,
                        "id": question.id,
                        "question": question.question,
                        "answer": answer,
                        "expected": question.answer,
                    }
                )
        return rows

    def save(self) -> dict[str, float]:
        """Write a checkpoint, point `latest` at it, drop those that retention does not keep; returns its metrics."""
        began = time.monotonic()
        path = self.run.checkpoint(self.progress.step)
        content = {
            "step": self.progress.step,
            "consumed_samples": self.progress.samples,
            "consumed_tokens": self.progress.tokens,
            "data": self._data(),
            "settings": self.model.settings.to_json(),
            "tuning": self._tuning(),
            "frozen": self.frozen,
            "inputs": self.references,
        }
        size = checkpoint.save(path, self.model, self.engine, self.config, content)
        publish(self.run, path, self.config.checkpoint)
        seconds = time.monotonic() - began
        return {"checkpoint/stall_s": seconds, "checkpoint/write_s": seconds, "checkpoint/bytes": float(size)}

    def _sum(self, value: float | torch.Tensor) -> float:
        """The sum of a number over all ranks."""
        total = torch.as_tensor(value, dtype=torch.float64, device=self.device).clone()
        dist.all_reduce(total)
        return total.item()

    def _flops_per_token(self) -> float:
        """Of the language model's matrices: a frozen one computes no gradients of its weights (a third of the work)."""
        count = sum(whole_shape(p).numel() for p in self.model.language_model.parameters())
        return (6 if self.config.trains_whole_language_model else 4) * float(count)


def _packing(
    questions: list[Question], encoding: Encoding, budget: int, rank: int, world: int
) -> Callable[[], RankBatches]:
    return lambda: rank_batches(questions, encoding, budget, rank, world)


def _sizes(model: AlignedModel) -> dict[str, tuple[int, int]]:
    """By part, how many parameters are trained and how many frozen."""
    sizes = {}
    for name in ("language_model", "molecule_encoder", "molecule_adapter", "protein_encoder", "protein_adapter"):
        part = getattr(model, name)
        if part is not None:
            counts = [(p.requires_grad, whole_shape(p).numel()) for p in part.parameters()]
            sizes[name.replace("_", " ")] = (
                sum(count for trained, count in counts if trained),
                sum(count for trained, count in counts if not trained),
            )
    return sizes
