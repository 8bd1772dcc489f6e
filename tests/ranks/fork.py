"""Run a function in several ranks, forked from one process that has paid for its imports once.

The parent never joins a process group and never starts torch threads, so that forking is safe. A rank's exception or
death ends the others at once, and every rank is its own process group, killed whole, so that nothing outlives a test.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time
import traceback
from multiprocessing.connection import wait

import torch

torch.set_num_threads(1)


def free_port():
    """A port to meet at, below those that the kernel gives to outgoing connections (gloo may hold any of them)."""
    while True:
        port = random.SystemRandom().randrange(15000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RankFailed(AssertionError):
    """A rank raised or died; the message holds its traceback."""


def _child(connection, function, rank, world, port, arguments):
    os.setpgid(0, 0)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    try:
        connection.send(("result", function(*arguments)))
    except BaseException:
        connection.send(("error", traceback.format_exc()))
    connection.close()
    os._exit(0)  # skips atexit handlers and gloo's teardown, which wait for each other


def run_ranks(world, function, *arguments, timeout=120.0):
    """Results of `function(*arguments)` in `world` ranks, by rank; raises `RankFailed` as soon as one fails."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes, receivers = [], []
    for rank in range(world):
        receiver, sender = context.Pipe(False)
        process = context.Process(target=_child, args=(sender, function, rank, world, port, arguments))
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    results = [None] * world
    pending = {receiver: rank for rank, receiver in enumerate(receivers)}
    deadline = time.monotonic() + timeout
    try:
        while pending:
            ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankFailed(f"ranks {sorted(pending.values())} did not finish in {timeout} s")
            for receiver in ready:
                rank = pending.pop(receiver)
                try:
                    kind, value = receiver.recv()
                except EOFError:
                    processes[rank].join(5)
                    raise RankFailed(f"rank {rank} died, exit code {processes[rank].exitcode}") from None
                if kind == "error":
                    raise RankFailed(f"rank {rank}:\n{value}")
                results[rank] = value
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.join()
    return results
