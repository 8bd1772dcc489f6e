"""The learning rate equals megatron-core's own scheduler, and the ends are where they should be."""

import pytest

from job.schedule import learning_rate
from job.training import ScheduleConfig

STYLES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "warmup-stable-decay": "WSD"}


@pytest.mark.parametrize("style", STYLES)
def test_equals_megatron_core(style):
    import parallel.cpu  # noqa: F401

    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    class Optimizer:
        param_groups = ({"lr": 0.0, "weight_decay": 0.0, "max_lr": 2e-5, "min_lr": 2e-6},)

    steps, warmup, decay = 200, 10, 40
    oracle = OptimizerParamScheduler(
        Optimizer(),
        init_lr=0.0,
        max_lr=2e-5,
        min_lr=2e-6,
        lr_warmup_steps=warmup,
        lr_decay_steps=steps,
        lr_decay_style=STYLES[style],
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=steps,
        wd_incr_style="constant",
        wsd_decay_steps=decay,
        lr_wsd_decay_style="linear",
    )
    schedule = ScheduleConfig(style, warmup=warmup, minimum=0.1, decay=decay)
    for step in range(1, steps + 1):
        oracle.step(increment=1)
        expected = oracle.get_lr(Optimizer.param_groups[0])
        assert learning_rate(step, steps, 2e-5, schedule) == pytest.approx(expected, rel=1e-9), step


def test_shares_are_of_the_whole_run():
    schedule = ScheduleConfig("cosine", warmup=0.03, minimum=0.1)
    assert learning_rate(30, 1000, 1.0, schedule) == 1.0
    assert learning_rate(15, 1000, 1.0, schedule) == 0.5
    assert learning_rate(1000, 1000, 1.0, schedule) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(1, 10, 1.0, ScheduleConfig("constant", warmup=0)) == 1.0
