"""One training step on one CPU rank: ours (megatron-core's schedule, gradient buffers, distributed optimizer) against a
plain transformers + AdamW loop over the same model, weights and batches. Both sides alternate in one process.

    python benchmarks/train_step.py --repeats 7
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from parallel import mesh, model, optimizer
from parallel.layout import Layout
from parallel.shape import ModelShape, shape_of
from parallel.weights import merge, weights
from pretrain.data import to_batch
from pretrain.step import run_schedule

RATE, DECAY, CLIP, BETAS, EPSILON = 1e-4, 0.1, 1.0, (0.9, 0.95), 1e-8


class Ours:
    """The step of `pretrain`, from the same modules."""

    def __init__(self, shape: ModelShape, reference: LlamaForCausalLM, sequence: int, batch: int, micro: int) -> None:
        config = model.transformer_config(shape, Layout(), torch.float32)
        chunks = model.build(shape, config, sequence)
        tensors = reference.state_dict()
        whole = {w.megatron: merge(w, [tensors[name] for name in w.hugging_face], shape) for w in weights(shape)}
        for entry in chunks[0].sharded_state_dict(metadata={"non_homogeneous_layers": True}).values():
            if getattr(entry, "key", None) in whole:
                entry.data.data.copy_(whole[entry.key])
        self.chunks = optimizer.wrap(config, chunks, overlap=False)
        self.adamw = optimizer.build(
            config, self.chunks, betas=BETAS, epsilon=EPSILON, weight_decay=DECAY, overlap=False
        )
        self.sequence, self.micro, self.count = sequence, micro, batch // micro

    def step(self, windows: np.ndarray) -> float:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.adamw.zero_grad()
        batches = (to_batch(part, None, torch.device("cpu")) for part in np.split(windows, self.count))
        loss, _ = run_schedule(self.chunks, batches, self.count, self.micro, self.sequence, forward_only=False)
        norm = optimizer.gradient_norm(self.adamw)
        optimizer.set_rates(self.adamw, RATE, DECAY)
        optimizer.update(self.adamw, norm, CLIP)
        return loss


class Plain:
    """What one writes with transformers and torch alone (fused AdamW: torch's fastest)."""

    def __init__(self, reference: LlamaForCausalLM, batch: int, micro: int) -> None:
        self.model, self.count = reference, batch // micro
        matrices = [p for p in reference.parameters() if p.dim() > 1]
        vectors = [p for p in reference.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON, fused=True)

    def step(self, windows: np.ndarray) -> float:
        self.adamw.zero_grad()
        total = 0.0
        for part in np.split(windows, self.count):
            tokens = torch.from_numpy(part)
            logits = self.model(tokens[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / self.count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.adamw.step()
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29571", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    values = {
        "model_type": "llama",
        "vocab_size": options.vocabulary,
        "hidden_size": options.hidden,
        "intermediate_size": options.hidden * 11 // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": options.hidden // 64,
        "max_position_embeddings": options.sequence,
        "rms_norm_eps": 1e-5,
    }
    shape = shape_of(values, "benchmark")
    torch.manual_seed(1)
    reference = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"}))
    mesh.initialize(Layout(), 1)
    ours = Ours(shape, reference, options.sequence, options.batch, options.micro)
    plain = Plain(reference, options.batch, options.micro)
    generator = np.random.default_rng(1)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(options.repeats + 1):
        windows = generator.integers(0, options.vocabulary, (options.batch, options.sequence + 1))
        found = {}
        for name, side in (("ours", ours), ("plain", plain)) if repeat % 2 else (("plain", plain), ("ours", ours)):
            began = time.perf_counter()
            found[name] = side.step(windows)
            if repeat:  # the first step of each allocates
                times[name].append(time.perf_counter() - began)
        assert abs(found["ours"] - found["plain"]) < 1e-4, found
    rows = {name: (min(t), statistics.median(t), max(t)) for name, t in times.items()}
    ratios = [a / b for a, b in zip(times["ours"], times["plain"])]
    print(f"{shape.parameters:,} parameters, batch {options.batch} x {options.sequence} tokens, fp32, one thread")
    print("| | min s | median s | max s |\n|---|---|---|---|")
    for name, (low, middle, high) in rows.items():
        print(f"| {name} | {low:.3f} | {middle:.3f} | {high:.3f} |")
    print(f"\nratio ours / plain: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if options.output:
        options.output.write_text(json.dumps({"seconds": times, "ratio": statistics.median(ratios)}, indent=2))


if __name__ == "__main__":
    main()
