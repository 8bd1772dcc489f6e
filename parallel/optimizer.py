"""AdamW over the mesh: megatron-core's DistributedDataParallel and distributed optimizer, and what torch's AdamW needs.

Gradients accumulate in fp32, the optimizer's state and fp32 main weights are cut over data-parallel ranks (ZeRO-1).
Without Apex, megatron-core falls back to `torch.optim.AdamW`, which its checkpoint code does not quite know; `prime`
and `load_state` are the way around (megatron-core 0.16.1 and 0.19.2 behave the same).
"""

from __future__ import annotations

from typing import Any

import torch

import parallel.cpu  # noqa: F401  (must come before megatron.core)

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


def wrap(config: TransformerConfig, chunks: list[Any], overlap: bool) -> list[DistributedDataParallel]:
    """Put model chunks under gradient reduction; `overlap` hides communication behind computation."""
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
        check_for_nan_in_grad=False,  # `step` checks the norm of all gradients instead, before the weights change
    )
    modules = [Float16Module(config, chunk) for chunk in chunks] if config.bf16 else chunks
    wrapped = [
        DistributedDataParallel(config, settings, module, disable_bucketing=index > 0)
        for index, module in enumerate(modules)
    ]
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]
    return wrapped


def unwrap(chunk: Any) -> MegatronModule:
    """The bare model inside DistributedDataParallel and Float16Module (their wrapping would change checkpoint keys)."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def build(
    config: TransformerConfig,
    chunks: list[DistributedDataParallel],
    *,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    overlap: bool,
) -> MegatronOptimizer:
    """AdamW over `chunks`; norms and biases are not decayed. The learning rate is set by `set_rates` each step."""
    settings = OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        min_lr=0.0,
        weight_decay=weight_decay,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        adam_eps=epsilon,
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
        clip_grad=0.0,
        overlap_param_gather=overlap,
    )
    optimizer = get_megatron_optimizer(settings, chunks)
    for group in optimizer.param_groups:  # one pass over memory instead of one per operation of the update
        group["fused"], group["foreach"] = True, False
    config.grad_scale_func = optimizer.scale_loss
    return optimizer


def set_rates(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Set this step's learning rate and decay, times each group's own multiplier.

    megatron-core leaves this to its scheduler; without it, torch's AdamW would decay norms too.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


@torch.no_grad()
def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Hand reduced gradients to the optimizer; the global L2 norm, equal on all ranks, before clipping."""
    for part in _parts(optimizer):
        part.prepare_grads()
    return float(optimizer.get_grad_norm())


@torch.no_grad()
def update(optimizer: MegatronOptimizer, norm: float, clip: float) -> None:
    """Clip to `clip` (0: never) by the already known `norm`, and update the weights."""
    for part in _parts(optimizer):
        if clip > 0:
            clip_grad_by_total_norm_fp32(part.get_parameters(), clip, norm)
        part.step_with_ready_grads()


def gather_weights(chunks: list[DistributedDataParallel]) -> None:
    """Bring updated weights from the ranks that updated them to all; collective.

    With `overlap` that waits for the next forward pass otherwise, so that a checkpoint would hold a mixture of new
    weights and those of the step before. Without it, there is nothing to do.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def prime(optimizer: MegatronOptimizer) -> None:
    """Give a fresh AdamW its (zero) state, which `sharded_state_dict` asserts to be there."""
    for part in _parts(optimizer):
        inner = part.optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter] = {
                        "step": torch.tensor(0.0, device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


@torch.no_grad()
def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` for torch's AdamW inside the distributed optimizer.

    Upstream copies every key of torch's state, `step` too, which the checkpoint holds elsewhere (KeyError); and then
    shares one `step` tensor between all parameters, so that the next update counts one step per parameter, silently.
    """
    parts = _parts(optimizer)
    for part, part_state in zip(parts, [state] if len(parts) == 1 else [state[key] for key in sorted(state)]):
        scalars = dict(part_state)
        tensors = scalars.pop("param_state")
        part.load_state_dict(scalars)
        steps = {parameter: entry.pop("step") for parameter, entry in part.optimizer.state.items()}
        part.load_parameter_state_from_fully_reshardable(tensors)
        for parameter, step in steps.items():
            part.optimizer.state[parameter]["step"] = step.clone()
