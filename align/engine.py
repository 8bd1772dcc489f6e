"""DeepSpeed's ZeRO around a model: gradients, updates, and where each parameter's optimizer state lies.

DeepSpeed's own mixed precision is never switched on: its bf16 mode would cast the molecule encoder too, whose output is
then wrong. What is trained is float32, what is frozen keeps the type it was loaded in.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from align.config import AlignConfig
from job.files import read_json
from job.training import AdamWConfig

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
import deepspeed

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The optimizer's states of a parameter, as `torch.optim.AdamW` names them."""


def join(timeout_seconds: float, seed: int, deterministic: bool) -> None:
    """Join the job's processes, over NCCL on GPUs and gloo elsewhere, and seed everything random alike.

    Rank, world size and rendezvous come from torchrun's environment variables; without them this process is alone.
    """
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|_all_gather_base|reduce_scatter).*")
    if not dist.is_initialized():
        timeout = datetime.timedelta(seconds=timeout_seconds)
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout)
    # A C++ extension for a collective that training never uses: without this line, CPU runs would need a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), verbose=False, timeout=datetime.timedelta(seconds=timeout_seconds)
    )
    torch.use_deterministic_algorithms(deterministic)
    seed_all(seed)


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def shutdown() -> None:
    """Leave the job's process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def settings(config: AlignConfig) -> dict[str, Any]:
    """The configuration that DeepSpeed is given."""
    zero: dict[str, Any] = {"stage": config.parallel.stage}
    if config.parallel.stage == 3:
        # DeepSpeed's own sizes fit models of 10 B; these grow with the model, the first three as transformers' "auto".
        square = int(read_json(Path(config.model.language_model) / "config.json")["hidden_size"]) ** 2
        zero |= {
            "reduce_bucket_size": square,
            "stage3_prefetch_bucket_size": int(0.9 * square),
            "stage3_param_persistence_threshold": int(10 * square**0.5),
            "stage3_max_live_parameters": 50 * square,  # about four layers
            "stage3_max_reuse_distance": 50 * square,
        }
    if config.parallel.offload != "none":
        host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero["offload_optimizer"] = host
        if config.parallel.offload == "parameters":
            zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only: the number of rows of a micro-batch varies
        "gradient_accumulation_steps": 1,  # likewise: `backward` is told which micro-batch is the last
        "gradient_clipping": config.optimizer.clip,
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW updates offloaded states too, without a compiler
        "zero_optimization": zero,
    }


@contextlib.contextmanager
def partitioned_loading(config: AlignConfig) -> Iterator[None]:
    """At stage 3, transformers loads models straight into the ranks' partitions within this context."""
    if config.parallel.stage != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # DeepSpeed gives partitions the type of its own mixed precision, which is otherwise off here.
    types = {"bf16": {"enabled": config.train.precision == "bf16" and not config.trains_whole_language_model}}
    active = HfDeepSpeedConfig(settings(config) | types | {"train_batch_size": dist.get_world_size()})
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del active


@dataclass(frozen=True)
class Piece:
    """The part of a parameter whose optimizer state lies on this rank: `count` elements from `start` of the parameter.

    `flat` is what the optimizer calls a parameter (a piece of many parameters in one), and `offset` the place in it.
    """

    flat: Tensor
    offset: int
    start: int
    count: int


class Engine:
    """A model with what updates it.

    Args:
        model: as DeepSpeed is to train it; `forward` gives a loss. Its trainable parameters are float32.
        config: of the run.
    """

    def __init__(self, model: nn.Module, config: AlignConfig) -> None:
        self.model = model
        self.stage = config.parallel.stage
        self._clip = config.optimizer.clip
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        adamw = _adamw(list(self.trained.values()), config.optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=settings(config))
        self._zero = self._engine.optimizer
        self._adamw: torch.optim.Optimizer = self._zero if self.stage == 0 else self._zero.optimizer

    def loss(self, batch: Any) -> Tensor:
        """The model's loss of a batch, as a scalar that can be given to `backward`."""
        return self._engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of `loss`; collective. `last` says that this step's gradients are complete with it.

        The gradient of a step is the sum over all ranks and calls.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)  # DeepSpeed averages over ranks

    def step(self, rate: float) -> float:
        """Clip and update; collective. Returns the norm of the whole gradient before clipping.

        Where the norm is not finite, the weights are left untouched.
        """
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if self.stage == 0:
            gradients = [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            if not np.isfinite(norm):
                self._engine.zero_grad()
                return norm
        self._engine.step()
        if self.stage == 0:
            return norm
        return float("nan") if self._zero.overflow else float(self._zero._global_grad_norm)

    def gather(self, parameter: nn.Parameter, key: str | None = None) -> Tensor | None:
        """A whole parameter, or a moment of it, float32 on the CPU on rank 0, None elsewhere; collective.

        Moments are zeros before the first step. Bits are gathered, not numbers, so that nothing is rounded; and from
        where the optimizer keeps them: at stage 3 the model's own parameters may be on their way to the next step.
        """
        bits = torch.zeros(_count(parameter), dtype=torch.int32, device=_device(parameter))
        for piece in self._pieces(parameter):
            values = piece.flat.detach() if key is None else self._adamw.state.get(piece.flat, {}).get(key)
            if values is not None:
                part = values.view(-1).narrow(0, piece.offset, piece.count)
                bits.narrow(0, piece.start, piece.count).copy_(part.view(torch.int32))
        if self.stage > 0:
            dist.reduce(bits, 0)
        return bits.view(torch.float32).view(whole_shape(parameter)).cpu() if dist.get_rank() == 0 else None

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Set this rank's part of a state from the whole, float32."""
        for piece in self._pieces(parameter):
            state = self._adamw.state[piece.flat]
            if key not in state:
                state[key] = torch.zeros_like(piece.flat)
            part = state[key].view(-1).narrow(0, piece.offset, piece.count)
            part.copy_(value.reshape(-1).narrow(0, piece.start, piece.count))

    def set_updates(self, count: int) -> None:
        """Tell the optimizer how many updates its states have seen; every state must have been set."""
        flats = [flat for group in self._adamw.param_groups for flat in group["params"]]
        if self.stage == 3:  # which takes them out of the groups
            flats = self._zero.fp32_partitioned_groups_flat
        for flat in flats:
            state = self._adamw.state[flat]
            state["step"] = torch.tensor(float(count))
            for key in MOMENTS:  # of a piece that holds nothing but padding
                if key not in state:
                    state[key] = torch.zeros_like(flat)

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers."""
        self._engine.destroy()

    def _pieces(self, parameter: nn.Parameter) -> Iterator[Piece]:
        """This rank's part of a parameter, if it has one."""
        if self.stage == 0:
            yield Piece(parameter, 0, 0, parameter.numel())
        elif self.stage == 3:
            group, offset, count = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = dist.get_rank() * count
            count = min(count, _count(parameter) - start)  # the last part is padded
            if count > 0:
                yield Piece(self._zero.fp32_partitioned_groups_flat[group], offset, start, count)
        elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
            flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield Piece(flat, ours.start, theirs.start, ours.numel)


def _adamw(parameters: list[nn.Parameter], config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices, and neither biases nor norms."""
    matrices = [parameter for parameter in parameters if len(whole_shape(parameter)) > 1]
    vectors = [parameter for parameter in parameters if len(whole_shape(parameter)) <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.epsilon)


def filled_by_first_rank(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    """A context in which a partitioned parameter is whole; what rank 0 writes there, all share after it; collective."""
    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id"))


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The parameter's shape, also where this rank holds only a part of it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _count(parameter: nn.Parameter) -> int:
    return whole_shape(parameter).numel()


def _device(parameter: nn.Parameter) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else parameter.device
