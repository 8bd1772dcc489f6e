"""Training step on one GPU at Llama-2-7B layer shapes: its utilisation, beside what the device's matmul sustains.

Measures, in one run: (1) the sustained bf16 rate of the matrix products of a layer, seconds long, so that power limits
count; (2) the training step of `pretrain` (schedule, gradient buffers, fused AdamW included) with as many layers as
fit, at each sequence length, compiled and not, without recomputation. MFU counts causal FLOPs against the data sheet's
peak (989.4 TFLOP/s on H100 and H200) and against the measured matmul rate.

    python benchmarks/gpu_step.py --output gpu_step.json          on a GPU
    python benchmarks/gpu_step.py --smoke                         the same code, tiny, on a CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from parallel import mesh, model, optimizer, ranks
from parallel.flops import peak_teraflops
from parallel.layout import Layout
from parallel.shape import ModelShape, shape_of
from pretrain.data import to_batch
from pretrain.step import run_schedule

LLAMA2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
SMOKE = LLAMA2_7B | {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4}
TOKENS_PER_MICRO_BATCH = 8192
# bf16 weight, fp32 gradient, fp32 main weight and two fp32 moments; then activations of one layer per token (measured
# shapes: inputs of the seven matrix products, norms, attention and SwiGLU, in bf16).
BYTES_PER_PARAMETER = 18
ACTIVATION_BYTES_PER_TOKEN_AND_LAYER = 160_000


def timed(function: Callable[[], object], seconds: float) -> float:
    """Seconds per call, over at least `seconds`."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            function()
        calls += 10
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / calls


def matmul_rate(shape: ModelShape, tokens: int, seconds: float, device: torch.device) -> float:
    """Sustained bf16 TFLOP/s of the forward products of one layer, weighted by their FLOPs, on random data."""
    query = shape.heads * shape.head_size
    sizes = [
        (query + 2 * shape.key_value_heads * shape.head_size, shape.hidden),
        (shape.hidden, query),
        (2 * shape.feed_forward, shape.hidden),
        (shape.hidden, shape.feed_forward),
    ]
    pairs = [
        (torch.randn(tokens, width, device=device).bfloat16(), torch.randn(rows, width, device=device).bfloat16())
        for rows, width in sizes
    ]
    flops = sum(2 * tokens * rows * width for rows, width in sizes)
    return flops / timed(lambda: [x @ w.t() for x, w in pairs], seconds) / 1e12


def layers_that_fit(shape: ModelShape, device: torch.device) -> int:
    """Layers whose parameters, optimizer state and activations fill at most 85 % of the device's memory."""
    if device.type == "cpu":
        return 2
    per_layer = dataclasses.replace(shape, layers=1).parameters - dataclasses.replace(shape, layers=0).parameters
    fixed = dataclasses.replace(shape, layers=0).parameters * BYTES_PER_PARAMETER
    fixed += TOKENS_PER_MICRO_BATCH * shape.vocabulary * 10  # logits: bf16, their gradient, fp32 on the way
    each = per_layer * BYTES_PER_PARAMETER + TOKENS_PER_MICRO_BATCH * ACTIVATION_BYTES_PER_TOKEN_AND_LAYER
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(shape.layers, int((0.85 * free - fixed) / each)))


def measure(shape: ModelShape, sequence: int, micro: int, accumulate: int, compiled: bool, seconds: float) -> dict:
    """Tokens/s of whole optimizer steps of `accumulate` micro-batches."""
    device = ranks.device()
    config = model.transformer_config(shape, Layout(), torch.bfloat16)
    chunks = model.build(shape, config, sequence)
    if compiled:
        for layer in chunks[0].decoder.layers:
            layer.compile(dynamic=False)
    wrapped = optimizer.wrap(config, chunks, overlap=False)
    adamw = optimizer.build(config, wrapped, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1, overlap=False)
    windows = np.random.default_rng(1).integers(0, shape.vocabulary, (micro * accumulate, sequence + 1))

    def step() -> float:
        wrapped[0].zero_grad_buffer()
        adamw.zero_grad()
        batches = (to_batch(part, None, device) for part in np.split(windows, accumulate))
        loss, _ = run_schedule(wrapped, batches, accumulate, micro, sequence, forward_only=False)
        norm = optimizer.gradient_norm(adamw)
        optimizer.set_rates(adamw, 1e-5, 0.1)
        optimizer.update(adamw, norm, 1.0)
        return loss

    losses = [step(), step()]
    torch.cuda.synchronize()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        losses.append(step())
        steps += 1
    elapsed = time.perf_counter() - began
    rate = steps * micro * accumulate * sequence / elapsed
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "sequence": sequence,
        "compiled": compiled,
        "layers": shape.layers,
        "tokens_per_s": rate,
        "tflops": rate * shape.flops_per_token(sequence) / 1e12,
        "allocated_gib": memory,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches per optimizer step")
    parser.add_argument("--layers", type=int, default=0, help="0: as many as fit")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("no GPU here: nothing is measured (--smoke runs the same code on a CPU)")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29573")
    mesh.initialize(Layout(), 1)
    device = ranks.device()
    seconds = 0.3 if options.smoke else options.seconds
    tokens = 64 if options.smoke else TOKENS_PER_MICRO_BATCH
    shape = shape_of(SMOKE if options.smoke else LLAMA2_7B, "benchmark")
    shape = dataclasses.replace(shape, layers=options.layers or layers_that_fit(shape, device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU (smoke test, no figure)"
    peak = peak_teraflops(name)
    rate = matmul_rate(shape, tokens, seconds, device)
    print(f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {shape.layers} layers")
    print(f"sustained bf16 matmul at these shapes: {rate:.1f} TFLOP/s\n")
    print("| sequence | compiled | tokens/s | TFLOP/s | MFU of peak | of measured matmul | GiB | loss |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for sequence in (16, 32) if options.smoke else (2048, 4096):
        for compiled in (False, True) if device.type == "cuda" else (False,):
            row = measure(shape, sequence, tokens // sequence, options.accumulate, compiled, seconds)
            row |= {"mfu": row["tflops"] / peak if peak else None, "of_matmul": row["tflops"] / rate}
            rows.append(row)
            share = f"{row['mfu']:.1%}" if row["mfu"] else "-"
            memory = f"{row['allocated_gib']:.1f}" if row["allocated_gib"] else "-"
            print(
                f"| {sequence} | {'yes' if compiled else 'no'} | {row['tokens_per_s']:,.0f} | {row['tflops']:.3g} | "
                f"{share} | {row['of_matmul']:.1%} | {memory} | {row['first_loss']:.2f} -> {row['last_loss']:.2f} |",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps({"device": name, "matmul_tflops": rate, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
