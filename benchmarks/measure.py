"""Measuring two or more ways of doing the same work in turn, in one process, and printing what came out."""

import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def cpu_seconds() -> float:
    """CPU time of this process and its finished children: what a rate per core is divided by."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turn(contenders: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every contender once per repeat, in turn, so that a busy machine slows all alike.

    Each contender returns how much work it did (tokens, bytes). Returns work per CPU second, one value per repeat.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = cpu_seconds()
            work = run()
            rates[name].append(work / (cpu_seconds() - start))
    return rates


def summary(rates: list[float], against: list[float]) -> dict[str, float]:
    """Minimum, median and maximum of the repeats, and the median ratio to another contender's same repeats."""
    return {
        "min": min(rates),
        "median": statistics.median(rates),
        "max": max(rates),
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(rates, against, strict=True)),
    }


def machine(*packages: str) -> str:
    """One line: processor, cores that may be used, Python and package versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"Python {platform.python_version()}"
    return f"{model}, {cores} cores; {', '.join([python, *versions])}; {time.strftime('%Y-%m-%d')}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(path: Path | None, value: dict) -> None:
    """Write a result as JSON where the user asked for it."""
    if path is not None:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
