"""What the ranks of a job do together: agree, share values, and end together with one message.

Only torch.distributed; megatron-core is not needed here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from job.errors import InputError

Result = TypeVar("Result")


def everywhere(function: Callable[[], Result]) -> Result:
    """`function()`; an `InputError` of it is one that every rank raises by itself, so that only the first prints it."""
    try:
        return function()
    except InputError as error:
        error.everywhere = True
        raise


# How gloo, NCCL and the rendezvous store say it; torch gives gloo's errors no type of their own.
_LOST_CONTACT = re.compile(r"[Tt]imed out|[Tt]imeout|[Cc]onnection (closed|reset|refused|was)|Broken pipe|pair closure")


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank ended, hangs, or cannot be reached."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or _LOST_CONTACT.search(str(error)) is not None
    )


@contextlib.contextmanager
def explain_lost_contact(timeout_seconds: float) -> Iterator[None]:
    """Turn such an error into an `InputError`: the cause is told by another rank, not by this one's traceback."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip().splitlines()[0])  # without gloo's source file and line
        reason = reason.split(". ")[0]  # nor its advice
        if "imed out" in reason or "imeout" in reason:
            what = f"waited {timeout_seconds:g} s (parallel.timeout_seconds) for another rank, which hangs"
        else:
            what = "lost another rank, which has ended; its own message says why, unless it was killed"
        raise InputError(f"{what} ({reason}). Start the same command again to continue") from error


def raise_together(problem: str | None) -> None:
    """Collective: raise `InputError` on every rank where any rank has a problem, with the first such rank's words."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for rank, text in enumerate(problems):
        if text is not None:
            raise InputError(text if rank == 0 else f"{text} (rank {rank})", everywhere=True)


def together(function: Callable[[], Result]) -> Result:
    """Collective: `function()` on every rank; where it raises `InputError` on one, it raises on all, and none waits."""
    problem, result = None, None
    try:
        result = function()
    except InputError as error:
        problem = str(error)
    raise_together(problem)
    return cast(Result, result)


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_logging_rank() -> bool:
    """True on the one rank that prints and writes metrics."""
    return dist.get_rank() == 0


def agree(*flags: bool) -> list[bool]:
    """Each flag, true on all ranks where it is true on any; collective."""
    votes = torch.tensor([float(flag) for flag in flags], device=device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def from_first_rank(*values: Any) -> Any:
    """Rank 0's values on every rank: shared file systems do not show a new file everywhere at once."""
    box = [values]
    dist.broadcast_object_list(box, src=0)
    return box[0]
