"""Import and export against a plain copy of the same bytes, and their peak memory.

    python benchmarks/convert.py --gigabytes 13.5 --directory /scratch

Makes a random bfloat16 model of Llama-2-7B's layers, as many as fit the size (13.5 GB is the whole 7B), and then,
`--repeats` times in turn: copies its files, imports it, and exports the import. Every contender starts with its input
dropped from the page cache and with memory that is warm, and ends with its output synced to disk. Each conversion runs
in a process of its own, timed without the start of Python; extra memory is the growth of its peak resident set, mapped
pages included. Needs five times the size on disk. Prints Markdown; run it on an idle machine (a conversion uses two
cores where a copy uses one, so other work slows it more; CPU seconds tell how much was its own).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from job.files import fsync_directory  # noqa: E402
from parallel.safetensors_stream import INDEX_FILE, SafetensorsWriter, TensorInfo  # noqa: E402
from parallel.shape import ModelShape, shape_of  # noqa: E402
from parallel.weights import part_shapes, weights  # noqa: E402

SHARD_BYTES = 5_000_000_000

CONVERSION = """
import resource, sys, time
from pathlib import Path
import parallel.convert, parallel.from_hugging_face, parallel.to_hugging_face

function, source, destination = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
getattr(parallel.convert, function)(Path(source), Path(destination))
seconds = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(seconds, cpu, (after.ru_maxrss - before.ru_maxrss) * 1024)
"""


def llama_config(gigabytes: float) -> dict[str, object]:
    """Llama-2-7B's config with as many of its 32 layers as `gigabytes` of bfloat16 hold."""
    config: dict[str, object] = dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
    )
    for layers in range(32, 0, -1):
        config["num_hidden_layers"] = layers
        if shape_of(config, "the benchmark").parameters * 2 <= gigabytes * 1e9:
            break
    return config


def make_model(directory: Path, config: dict[str, object]) -> ModelShape:
    """Write a model of random weights in shards of at most 5 GB, as transformers lays them out."""
    shape = shape_of(config, "the benchmark")
    tensors = [
        TensorInfo(name, torch.bfloat16, part)
        for weight in weights(shape)
        for name, part in zip(weight.hugging_face, part_shapes(weight, shape), strict=True)
    ]
    shards: list[list[TensorInfo]] = [[]]
    for tensor in tensors:
        if sum(other.bytes for other in shards[-1]) + tensor.bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    directory.mkdir()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(directory / name, shard) as writer:
            for tensor in shard:
                writer.write(tensor.name, torch.randn(tensor.shape, dtype=torch.bfloat16))
                weight_map[tensor.name] = name
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config))
    return shape


def drop_from_cache(directory: Path) -> None:
    """Make the next reader of these files go to the disk."""
    for file in directory.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(source: Path, scratch: Path, size: int) -> None:
    """Give every contender the same start: input on disk only, and free memory that has been in use before.

    A virtual machine's host backs memory when it is first touched, at a fraction of memory's speed; whoever runs after
    large files were deleted would find warm pages, and the next would not.
    """
    block = bytes(1 << 24)
    with open(scratch, "wb") as handle:
        for _ in range(2 * size // len(block)):
            handle.write(block)
    drop_from_cache(source)
    scratch.unlink()


def copy(source: Path, destination: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and (no) extra memory of copying all files of a directory and syncing them."""
    cpu = time.process_time()
    start = time.perf_counter()
    destination.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, destination / file.name)
        with open(destination / file.name, "rb") as handle:
            os.fsync(handle.fileno())
    fsync_directory(destination)
    return time.perf_counter() - start, time.process_time() - cpu, 0


def convert(function: str, source: Path, destination: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and extra peak memory in bytes of one conversion, in a fresh process."""
    command = [sys.executable, "-c", CONVERSION, function, str(source), str(destination)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, extra = result.stdout.split()[-3:]
    return float(seconds), float(cpu), int(extra)


def main() -> None:
    """Make the model, run the contenders in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the model (default 6)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the system's temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        work = Path(name)
        shape = make_model(work / "model", llama_config(options.gigabytes))
        size = sum(file.stat().st_size for file in (work / "model").iterdir())
        rows: dict[str, list[tuple[float, float, int]]] = {"plain copy": [], "import": [], "export": []}
        for _ in range(options.repeats):
            prepare(work / "model", work / "scratch", size)
            rows["plain copy"].append(copy(work / "model", work / "copied"))
            shutil.rmtree(work / "copied")
            prepare(work / "model", work / "scratch", size)
            rows["import"].append(convert("import_model", work / "model", work / "checkpoint"))
            prepare(work / "checkpoint", work / "scratch", size)
            rows["export"].append(convert("export_model", work / "checkpoint", work / "exported"))
            shutil.rmtree(work / "checkpoint")
            shutil.rmtree(work / "exported")
    largest = shape.vocabulary * shape.hidden * 2
    base = statistics.median(seconds for seconds, _, _ in rows["plain copy"])
    print(
        f"\n{shape.parameters / 1e9:.2f} B parameters, {shape.layers} layers, {size / 1e9:.1f} GB of bfloat16; ", end=""
    )
    print(f"largest tensor {largest / 1e6:.0f} MB; medians of {options.repeats} rounds (all rounds in brackets).\n")
    print("| | seconds | MB/s | against plain copy | CPU seconds | extra memory, MB | bound 3 x largest + 500 MB |")
    print("|---|---|---|---|---|---|---|")
    for label, measured in rows.items():
        seconds = statistics.median(value for value, _, _ in measured)
        rounds = ", ".join(f"{value:.1f}" for value, _, _ in measured)
        cpu = statistics.median(value for _, value, _ in measured)
        extra = max(value for _, _, value in measured) / 1e6
        memory = "| - | - |" if label == "plain copy" else f"| {extra:.0f} | {3 * largest / 1e6 + 500:.0f} |"
        rate = f"{size / 1e6 / seconds:.0f} | {base / seconds:.2f} x"
        print(f"| {label} | {seconds:.1f} ({rounds}) | {rate} | {cpu:.1f} {memory}")


if __name__ == "__main__":
    main()
