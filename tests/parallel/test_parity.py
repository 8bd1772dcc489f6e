"""Imported checkpoints, loaded by megatron-core at many layouts, give the logits and loss that transformers gives."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from parallel.convert import import_model
from parallel.layout import Layout
from parallel.shape import read_shape
from tests.parallel.models import MODELS, SEQUENCE, reference, save_model
from tests.ranks.fork import run_ranks

# Imported here, before ranks are forked: megatron-core takes seconds.
from parallel import checkpoint, mesh  # isort: skip
from parallel import model as build_module  # isort: skip
from parallel.model import build, transformer_config  # isort: skip
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LAYOUTS = {
    "one rank": Layout(),
    "tensor 2": Layout(tensor=2),
    "tensor 2, no sequence parallelism": Layout(tensor=2, sequence_parallel=False),
    "pipeline 2, five layers as 3 + 2": Layout(pipeline=2),
    "pipeline 2, virtual 2": Layout(pipeline=2, virtual_pipeline=2),
    "context 2": Layout(context=2),
    "tensor 2, pipeline 2": Layout(tensor=2, pipeline=2),
}


def context_slice(tensor):
    """Chunks r and 2c - 1 - r of dimension 1: what context rank r of c holds."""
    size, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    chunks = tensor.chunk(2 * size, 1)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], 1) if size > 1 else tensor


def run_schedule(chunks, tokens, micro_batches, with_loss):
    """What megatron-core's schedule collects on the last stage: logits or per-token losses of each micro-batch."""

    def forward_step(iterator, model):
        batch = next(iterator)
        inputs, labels = (context_slice(part).contiguous() for part in (batch[:, :-1], batch[:, 1:]))
        positions = torch.arange(inputs.shape[1])[None].expand_as(inputs)
        output = model(inputs, positions, None, labels=labels if with_loss else None)
        return output, lambda result, non_loss_data=False: result

    many = len(chunks) > 1
    with torch.no_grad():
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(tokens) for _ in chunks] if many else iter(tokens),
            model=chunks if many else chunks[0],
            num_microbatches=micro_batches,
            seq_length=SEQUENCE,
            micro_batch_size=tokens[0].shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )


def compare(layout, directories):
    """Largest difference of logits, and of the summed loss, for each checkpoint; None but on the last stage."""
    mesh.initialize(layout, seed=1)
    differences = {}
    for directory in directories:
        shape = read_shape(directory / "hf")
        tokens, expected, loss = torch.load(directory.parent / "reference.pt", weights_only=True)
        chunks = build(shape, transformer_config(shape, layout, torch.float32), SEQUENCE)
        checkpoint.load(directory, checkpoint.Model(chunks, None), layout)
        batches = list(tokens.split(1))
        logits = run_schedule(chunks, batches, len(batches), with_loss=False)
        losses = run_schedule(chunks, batches, len(batches), with_loss=True)
        if not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            continue
        group = parallel_state.get_tensor_model_parallel_group()
        worst = 0.0
        for part, whole in zip(logits, expected.split(1), strict=True):
            parts = [torch.empty_like(part) for _ in range(layout.tensor)]
            dist.all_gather(parts, part.contiguous(), group=group)
            found = torch.cat(parts, -1)[..., : shape.vocabulary]
            worst = max(worst, (found - context_slice(whole)).abs().max().item())
        total = torch.stack([part.sum() for part in losses]).sum()
        dist.all_reduce(total, group=parallel_state.get_context_parallel_group())
        differences[directory.parent.name] = (worst, abs(total.item() - loss.item()) / tokens[:, 1:].numel())
    return differences


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Every model of `MODELS`, imported, with its reference beside it."""
    directories = []
    for name in MODELS:
        home = tmp_path_factory.mktemp("models") / name
        model = save_model(name, home / "source")
        torch.save(reference(model), home / "reference.pt")
        import_model(home / "source", home / "checkpoint", tensor=2)
        directories.append(home / "checkpoint")
    return directories


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_and_loss_equal_transformers(name, checkpoints):
    layout = LAYOUTS[name]
    results = run_ranks(layout.tensor * layout.pipeline * layout.context, compare, layout, checkpoints)
    last_stage = [result for result in results if result]
    assert len(last_stage) == layout.tensor * layout.context
    for result in last_stage:
        assert set(result) == set(MODELS)
        for model, (logits, loss) in result.items():
            assert logits <= 1e-5, f"{model}: logits differ by {logits}"
            assert loss <= 1e-6, f"{model}: loss differs by {loss}"


def test_the_comparison_sees_a_wrong_rotation_and_an_unmasked_padding(checkpoints, monkeypatch):
    """What would be wrong without our rotary frequencies and padding mask is far above the tolerance."""
    plain = build_module._rotary_frequencies
    monkeypatch.setattr(build_module, "_rotary_frequencies", lambda shape: plain(replace(shape, rope=PLAIN_ROPE)))
    monkeypatch.setattr(build_module.DecoderModel, "mask_padding", lambda self, logits: logits)
    [result] = run_ranks(1, compare, Layout(), checkpoints)
    assert {name for name, (logits, _) in result.items() if logits > 1e-2} == {"llama3-tied"}
    padded = {name for name, (_, loss) in result.items() if loss > 1e-2}
    assert padded == {"llama-gqa", "llama3-tied", "qwen2", "mistral"}
