"""Steps that survive being killed: each leaves its outputs and, last, a record of what they were made from.

A task whose record names the same settings and input checksums, and whose outputs are still there, is not run again.
Records and outputs are renamed into place when whole, so a kill at any instant costs only the tasks under way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any

from data_shards import advance
from job.errors import InputError
from job.files import sha256_file, write_json

_SECONDS_BETWEEN_PARTS = 0.5


@dataclasses.dataclass(frozen=True)
class Task:
    """One unit of work.

    `function(outputs, *arguments)` writes exactly the files `outputs` (each atomically) and returns a JSON-ready
    result. It runs in another process: function and arguments must be picklable.
    """

    name: str
    record: Path
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    settings: dict[str, Any]
    """Everything besides the inputs' content that the outputs depend on (JSON-ready)."""
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    work: int
    """How much there is to do, in bytes, for the progress display."""


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished task: `key` identifies settings and inputs, `result` is what its function returned."""

    key: str
    inputs: list[dict[str, Any]]
    result: dict[str, Any]
    outputs: list[dict[str, Any]]
    reused: bool
    reported: int = 0
    """How much of the task's work `on_part` has been told of."""


def run_all(
    tasks: Sequence[Task], workers: int, on_done: Callable[[Task, Done], None], on_part: Callable[[int], None]
) -> list[Done]:
    """Run the tasks in up to `workers` processes; returns their outcomes in the tasks' order.

    Raises `InputError` from the first task that fails with one; what finished before stays recorded.
    """
    done: dict[int, Done] = {}
    for number, outcome in _outcomes(tasks, min(workers, len(tasks)), on_part):
        done[number] = outcome
        on_done(tasks[number], outcome)
    return [done[number] for number in range(len(tasks))]


def _outcomes(tasks: Sequence[Task], workers: int, on_part: Callable[[int], None]) -> Iterator[tuple[int, Done]]:
    if workers <= 1:
        advance.listen(on_part)
        try:
            for number, task in enumerate(tasks):
                yield number, run(task)
        finally:
            advance.listen(None)
        return
    # Spawned, not forked: tokenizers and lxml keep threads and locks that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter,))
    others = set(multiprocessing.active_children())
    running: dict[Future[Done], int] = {}
    try:
        for number, task in enumerate(tasks):
            running[_submit(pool, task)] = number
            if len(running) < 2 * workers:
                continue
            for future in _next_done(running, counter, on_part):
                yield running.pop(future), future.result()
        while running:
            for future in _next_done(running, counter, on_part):
                yield running.pop(future), future.result()
    except BaseException as error:
        # Whatever is under way can be cut off: nothing gets its name before it is whole.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise InputError(
            "a worker process was killed, most likely for want of memory; run the same command again to go on, with "
            "fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _next_done(running: Iterable[Future[Done]], counter: Any, on_part: Callable[[int], None]) -> set[Future[Done]]:
    """Wait until a task is finished, passing on meanwhile what the workers have counted."""
    done: set[Future[Done]] = set()
    while not done:
        done = wait(running, timeout=_SECONDS_BETWEEN_PARTS, return_when=FIRST_COMPLETED).done
        with counter.get_lock():
            count, counter.value = counter.value, 0
        if count:
            on_part(count)
    return done


def run(task: Task) -> Done:
    """Run one task unless its record shows that it is done already."""
    inputs = [{"path": str(path), "sha256": _checksum(path)} for path in task.inputs]
    content = json.dumps([task.settings, [entry["sha256"] for entry in inputs]], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    if (record := read_record(task.record)) and record["key"] == key and _outputs_present(task, record["outputs"]):
        return Done(key, inputs, record["result"], record["outputs"], reused=True)
    task.record.unlink(missing_ok=True)  # from here on the outputs may be of either kind
    before = advance.total()
    result = task.function(task.outputs, *task.arguments)
    reported = advance.total() - before
    outputs = [{"name": path.name, "bytes": path.stat().st_size} for path in task.outputs]
    write_json(task.record, {"key": key, "outputs": outputs, "result": result})
    return Done(key, inputs, result, outputs, reused=False, reported=reported)


def read_record(path: Path) -> dict[str, Any] | None:
    """A task's record; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"key", "outputs", "result"} <= record.keys() else None


def code_checksum(*modules: Any) -> str:
    """Checksum of the modules' source, so that outputs of older code are made anew."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()


def _checksum(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _outputs_present(task: Task, recorded: list[dict[str, Any]]) -> bool:
    sizes = {entry["name"]: entry["bytes"] for entry in recorded}
    return all(path.is_file() and path.stat().st_size == sizes.get(path.name) for path in task.outputs)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Done]:
    """Submit a task. This may start a worker, which inherits the blocked SIGINT: Ctrl-C is the parent's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(run, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(counter: Any) -> None:
    """In a new worker: count into the parent's counter, and end with the parent."""

    def add(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    advance.listen(add)
    _end_with_parent()


def _end_with_parent() -> None:
    """Make this worker end when its parent is gone, even by SIGKILL: no process outlives a build."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
