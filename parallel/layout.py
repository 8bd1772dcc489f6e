"""How a run is cut over devices, and which cuts are legal. No torch: dry runs and planning import this alone."""

from __future__ import annotations

from dataclasses import dataclass

from job.errors import InputError
from parallel.shape import ModelShape


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions; data parallelism takes the devices that are left."""

    tensor: int = 1
    """tensor-parallel size: each weight matrix is cut over this many devices (best within one node)"""
    pipeline: int = 1
    """pipeline-parallel size: the layers are cut into this many stages"""
    virtual_pipeline: int = 1
    """interleaved chunks of layers on each pipeline stage (1: plain 1F1B schedule)"""
    context: int = 1
    """context-parallel size: each sequence is cut over this many devices"""
    sequence_parallel: bool | None = None
    """cut norms and residuals along the sequence too; unset: on where tensor > 1"""
    timeout_seconds: float = 600.0
    """a collective that waits longer than this ends the job with a message (both the world's and the mesh's groups)"""

    @property
    def sequence_parallel_resolved(self) -> bool:
        """`sequence_parallel` with its default filled in; never on without tensor parallelism."""
        return self.tensor > 1 and (self.sequence_parallel is None or self.sequence_parallel)

    def describe(self, world_size: int) -> str:
        """One phrase, such as `tensor 2 (sequence parallel) x pipeline 2 x data 4`."""
        parts = [f"tensor {self.tensor}" + (" (sequence parallel)" if self.sequence_parallel_resolved else "")]
        virtual = f" ({self.virtual_pipeline} virtual)" if self.virtual_pipeline > 1 else ""
        parts.append(f"pipeline {self.pipeline}{virtual}")
        if self.context > 1:
            parts.append(f"context {self.context}")
        return " x ".join([*parts, f"data {self.data_parallel(world_size)}"])

    def data_parallel(self, world_size: int) -> int:
        """Data-parallel size on `world_size` devices; raises `InputError` where they do not divide."""
        self._check_sizes()
        model = self.tensor * self.pipeline * self.context
        if world_size % model:
            raise InputError(
                f"parallel: tensor {self.tensor} x pipeline {self.pipeline} x context {self.context} = {model} does "
                f"not divide the {world_size} processes of this job; start a multiple of {model}"
            )
        return world_size // model

    def _check_sizes(self) -> None:
        for name in ("tensor", "pipeline", "virtual_pipeline", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"parallel.{name} must be at least 1, not {getattr(self, name)}")
        if self.timeout_seconds <= 0:
            raise InputError(f"parallel.timeout_seconds must be above 0, not {self.timeout_seconds}")

    def check(self, shape: ModelShape, sequence_length: int) -> None:
        """Raise `InputError` naming the number that does not divide where the model cannot be cut this way."""
        self._check_sizes()
        for what, number in (
            ("attention heads", shape.heads),
            ("key/value heads", shape.key_value_heads),
            ("feed-forward width", shape.feed_forward),
            ("padded vocabulary", shape.padded_vocabulary),
        ):
            if number % self.tensor:
                raise InputError(f"parallel.tensor {self.tensor} does not divide the model's {number} {what}")
        chunks = self.pipeline * self.virtual_pipeline
        if self.virtual_pipeline > 1 and self.pipeline < 2:
            raise InputError("parallel.virtual_pipeline needs parallel.pipeline of at least 2")
        if chunks > shape.layers:
            raise InputError(
                f"parallel: pipeline {self.pipeline} x virtual_pipeline {self.virtual_pipeline} = {chunks} stages, "
                f"but the model has only {shape.layers} layers"
            )
        if self.context > 1 and sequence_length % (2 * self.context):
            raise InputError(
                f"parallel.context {self.context}: twice that does not divide the sequence length {sequence_length}"
            )
        if self.sequence_parallel_resolved and sequence_length % (self.tensor * self.context):
            raise InputError(
                f"parallel.tensor {self.tensor} with sequence parallelism does not divide the sequence length "
                f"{sequence_length // self.context} of a context rank"
            )

    def micro_batches(self, global_batch: int, micro_batch: int, world_size: int) -> int:
        """Micro-batches of one step on each data-parallel rank; raises `InputError` where the sizes do not divide."""
        data = self.data_parallel(world_size)
        if global_batch % (micro_batch * data):
            raise InputError(
                f"train.global_batch {global_batch} is not a multiple of train.micro_batch {micro_batch} x data "
                f"parallel {data} = {micro_batch * data}"
            )
        count = global_batch // (micro_batch * data)
        if self.virtual_pipeline > 1 and count % self.pipeline:
            raise InputError(
                f"parallel.pipeline {self.pipeline} does not divide the {count} micro-batches of a step, which the "
                f"interleaved schedule (virtual_pipeline {self.virtual_pipeline}) needs"
            )
        return count

    def stages(self, layers: int) -> list[int]:
        """Layers of each stage in model order (pipeline x virtual_pipeline entries), as even as can be.

        Where they do not divide, earlier stages hold one more: the last one also computes the output head.
        """
        chunks = self.pipeline * self.virtual_pipeline
        return [layers // chunks + (1 if index < layers % chunks else 0) for index in range(chunks)]
