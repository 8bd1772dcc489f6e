"""Adapters: every structure by itself, whatever else is in the batch."""

import pytest
import torch

from align.adapters import Adapter
from align.settings import AdapterSettings

WIDTH, HIDDEN, LENGTHS = 24, 16, (5, 1, 9, 3)


def make(tokens, projection="linear"):
    torch.manual_seed(0)
    return Adapter(AdapterSettings(tokens, 4, projection), WIDTH, HIDDEN)


def features(lengths=LENGTHS):
    return torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(1))


def test_linear_adapter_is_the_released_one():
    adapter = make("each")
    assert {name: list(tensor.shape) for name, tensor in adapter.state_dict().items()} == {
        "projection.weight": [HIDDEN, WIDTH],
        "projection.bias": [HIDDEN],
    }
    rows = features()
    weight, bias = adapter.projection.weight, adapter.projection.bias
    torch.testing.assert_close(adapter(rows, LENGTHS), rows @ weight.T + bias)


def test_pooled_is_the_mean_of_each_structure():
    adapter, rows = make("pooled"), features()
    means = torch.stack([part.mean(0) for part in rows.split(LENGTHS)])
    torch.testing.assert_close(adapter(rows, LENGTHS), adapter.projection(means))


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize(("tokens", "count"), [("each", sum(LENGTHS)), ("pooled", 4), ("resampled", 16)])
def test_structures_do_not_see_each_other(tokens, count, projection):
    adapter, rows = make(tokens, projection), features()
    together = adapter(rows, LENGTHS)
    assert together.shape == (count, HIDDEN)
    alone = [adapter(part, (len(part),)) for part in rows.split(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    counts = [AdapterSettings(tokens, 4).count(length) for length in LENGTHS]
    assert [len(part) for part in alone] == counts


def test_resampler_uses_every_position_and_learns_in_all_its_parts():
    adapter, rows = make("resampled"), features().requires_grad_()
    adapter(rows, LENGTHS).square().sum().backward()
    assert (rows.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad.norm() > 0 for parameter in adapter.parameters())


@pytest.mark.parametrize("projection", ["linear", "mlp"])
@pytest.mark.parametrize("tokens", ["each", "pooled", "resampled"])
def test_no_structures_run_every_part_with_gradients_of_zero(tokens, projection):
    adapter = make(tokens, projection)
    output = adapter(torch.zeros(0, WIDTH), ())
    assert output.shape == (0, HIDDEN)
    output.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in adapter.parameters())


@pytest.mark.parametrize("tokens", ["each", "pooled", "resampled"])
def test_float32_also_for_bfloat16_features_and_under_autocast(tokens):
    adapter, rows = make(tokens), features().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = adapter(rows, LENGTHS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, adapter(rows.float(), LENGTHS))
