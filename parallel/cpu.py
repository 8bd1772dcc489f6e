"""Run unmodified megatron-core where there is no CUDA: tests, the demo, and dry runs use the code that GPUs run.

megatron-core spells "this process's accelerator" as `torch.cuda.*` and `device="cuda"`. Where CUDA is absent, importing
this module maps exactly those spellings to PyTorch's CPU counterparts; no collective, schedule, optimizer or checkpoint
code is replaced. With CUDA present it does nothing. Import it before anything of `megatron.core`.

Covered: factories with `device="cuda"` or `pin_memory=True`, `Tensor.cuda()`, `Tensor.to("cuda")`, the names that
`Tensor.type()` returns, and the `torch.cuda` functions listed below. Limits: a TorchFunctionMode belongs to one thread
(worker threads that run megatron-core call `install_in_thread`); CPU and "CUDA" random generators are one and the
same; torch.compile stays off, because megatron-core's `jit_fuser` would compile its fusions for a CPU.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# megatron-core warns, on every import and config, of optional packages that we do without on purpose; it calls
# collectives by names that torch has since renamed, and looks at gradients of views.
warnings.filterwarnings("ignore", module="megatron")
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")


def _means_cuda(device: Any) -> bool:
    return device is not None and not isinstance(device, (bool, int)) and torch.device(device).type == "cuda"


class _CudaSpellsCpu(TorchFunctionMode):
    """Rewrites the arguments that ask for CUDA, one torch call at a time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.cuda:
            return args[0]
        if kwargs:
            if _means_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": "cpu"}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if (
            function is torch.Tensor.to
            and len(args) > 1
            and isinstance(args[1], (str, torch.device))
            and _means_cuda(args[1])
        ):
            args = (args[0], "cpu", *args[2:])
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.type and isinstance(result, str) and not result.startswith("torch.cuda."):
            return result.replace("torch.", "torch.cuda.", 1)  # megatron-core compares with 'torch.cuda.FloatTensor'
        return result


def install_in_thread() -> None:
    """Enter the mapping in the calling thread; does nothing where CUDA is present."""
    if not torch.cuda.is_available():
        _CudaSpellsCpu().__enter__()


def _install() -> None:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    cpu = torch.device("cpu")
    replacements = {
        "current_device": lambda: cpu,
        "device_count": lambda: 1,
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "stream": torch.cpu.stream,
        "current_stream": lambda *_: torch.cpu.current_stream(),
        "default_stream": lambda *_: torch.cpu.current_stream(),
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.Stream, torch.cuda.Event = torch.cpu.Stream, torch.Event  # type: ignore[misc, assignment]
    install_in_thread()
    # megatron-core keeps the CUDA generator's state through these two private accessors.
    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


if not torch.cuda.is_available():
    _install()
