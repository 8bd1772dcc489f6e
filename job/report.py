"""What a person sees of a run: one console line a step, a plot of the loss, and the dry run's summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.directory import RunDirectory
from job.track import read_rows


def console_line(step: int, steps: int, values: dict[str, Any], seconds_left: float) -> str:
    """One line about a step; metrics that a device does not have are left out."""
    parts = [
        f"step {step:,}/{steps:,}",
        f"loss {values['train/loss']:.4f}",
        f"grad norm {values['train/grad_norm']:.3f}",
        f"lr {values['train/lr']:.2e}",
        f"{values['perf/tokens_per_sec_per_device']:,.0f} tok/s/device",
    ]
    if "perf/mfu" in values:
        parts.append(f"mfu {values['perf/mfu']:.1%}")
    if "mem/allocated_gib" in values:
        parts.append(f"{values['mem/allocated_gib']:.1f} GiB")
    waiting = values["perf/data_wait_s"] / max(values["perf/step_s"], 1e-9)
    return " | ".join([*parts, f"data {waiting:.1%}", f"{duration(seconds_left)} left"])


def duration(seconds: float) -> str:
    """`3d04h`, `2h07m`, `5m12s` or `9s`."""
    seconds = int(seconds)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def plot_loss(run: RunDirectory) -> Path:
    """Draw training and validation loss, learning rate and gradient norm over tokens into `loss.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    rows = read_rows(run.metrics)
    training = [row for row in rows if "train/loss" in row]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, height_ratios=[3, 1])
    tokens = [row["train/tokens"] for row in training]
    top.plot(tokens, [row["train/loss"] for row in training], linewidth=1, alpha=0.8, label="train")
    for key in sorted({key for row in rows for key in row if key.startswith("val/loss/")}):
        points = [(row["train/tokens"], row[key]) for row in rows if key in row]
        top.plot(*zip(*points), marker="o", markersize=4, label=f"validation: {key.removeprefix('val/loss/')}")
    top.set_ylabel("loss (nats per token)")
    top.legend()
    top.grid(alpha=0.3)
    bottom.plot(tokens, [row["train/grad_norm"] for row in training], linewidth=0.8, color="tab:gray")
    bottom.set_ylabel("gradient norm")
    bottom.set_xlabel("tokens")
    bottom.xaxis.set_major_formatter(EngFormatter())  # 400 k, 26 G
    rates = bottom.twinx()
    rates.plot(tokens, [row["train/lr"] for row in training], linewidth=1, color="tab:green")
    rates.set_ylabel("learning rate", color="tab:green")
    top.set_title(run.path.resolve().name)
    figure.tight_layout()
    path = run.path / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
