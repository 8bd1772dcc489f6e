"""One kind of error for everything a user can mend, and the one place that prints it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from job.launch import adopt

MISTAKE = "BIOMEDGPT_MISTAKE"
"""variable that names a file for an `InputError`'s sentence: many ranks' exit code does not tell it from a crash"""
# These end all ranks as soon as one has left with an error: the first must have printed the message that all share.
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"}
_SECONDS_FOR_FIRST_RANK = 5.0


class InputError(Exception):
    """A mistake outside the program: a file, a setting, a machine.

    The message is one sentence (or two) that names the file or key, the cause and what to do about it. Commands print
    it without a traceback and exit with status 2; libraries raise it and let it pass.

    `everywhere` says that all ranks of a job raise the same error, so that only the first needs to print it.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for a sentence of ours; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main`, turn its outcome into an exit status, and never show a traceback for a user's mistake.

    Exit status: what `main` returns (None is 0), 2 for an `InputError`, 130 for Ctrl-C. Any other exception is a
    defect of ours and keeps its traceback.

    Where the variable `BIOMEDGPT_MISTAKE` names a file, the first rank to print an `InputError` keeps it there, too.
    """
    adopt()
    # transformers imports DeepSpeed, whatever is asked of it, and that warns where there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    try:
        status = main()
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or not error.everywhere:
            print(f"error{f' (rank {rank})' if rank != '0' else ''}: {error}", file=sys.stderr, flush=True)
            _keep(str(error))
        elif _LAUNCHERS & os.environ.keys():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(2))  # the launcher's: the mistake is the cause
            time.sleep(_SECONDS_FOR_FIRST_RANK)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    except BrokenPipeError:  # `... | head` closed our output: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status or 0)


def _keep(sentence: str) -> None:
    """Leave a sentence for those who ask why the job ended, unless another rank was first."""
    if not (path := os.environ.get(MISTAKE)):
        return
    with contextlib.suppress(OSError):  # it was printed; and a full disk is a mistake, too
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8", errors="replace") as handle:
            handle.write(sentence + "\n")
