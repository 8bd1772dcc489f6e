"""The small run that the tests of this folder disturb: eight steps, a checkpoint every second one."""

from job.directory import RunDirectory
from job.training import CheckpointConfig
from parallel.layout import Layout
from tests.training import BATCH, make_config

STEPS = 8
LAYOUTS = {
    "one": (1, Layout()),
    "data2": (2, Layout()),
    "tensor2": (2, Layout(tensor=2)),
    "pipeline2": (2, Layout(pipeline=2)),
    "tensor2-pipeline2": (4, Layout(tensor=2, pipeline=2)),
}
IN_ORDER = [(step * BATCH, (step + 1) * BATCH - 1) for step in range(STEPS)]


def config_of(directory, inputs, layout, steps=STEPS, keep=3, **changes):
    """Its config at a layout."""
    checkpoints = CheckpointConfig(every_steps=2, keep=keep)
    return make_config(directory, inputs, layout, steps=steps, checkpoint=checkpoints, **changes)


def final(directory):
    """The last checkpoint of a run that came to its end."""
    return RunDirectory(directory).checkpoint(STEPS)
