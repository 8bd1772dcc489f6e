"""The verbs `import` and `export`: a Hugging Face model directory to a checkpoint that training starts from, and back.

Arguments and everything that can be refused without reading weights come first; torch is imported after that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job import manifest, tokenizer
from job.errors import InputError
from job.files import atomic_directory, read_json, sha256_file, write_json, write_text
from job.progress import ByteProgress
from parallel.checkpoint_files import MODEL_FOLDER, STAGE, find_checkpoint, read_manifest, verify_file
from parallel.layout import Layout
from parallel.model_card import model_card, read_statement
from parallel.shape import FAMILIES, ModelShape, read_shape

# Tensors pass through fresh memory once; with huge pages (where the kernel offers them) mapping it costs a third.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

EXPORT_STAGE = "export"


def import_main(arguments: Sequence[str]) -> None:
    """`python -m parallel import`."""
    parser = argparse.ArgumentParser(
        prog="python -m parallel import",
        description="Turn a Hugging Face model directory (config.json, *.safetensors, tokenizer) into a distributed "
        "checkpoint that pretrain starts from, at any layout. Weights are streamed: memory holds a few tensors, never "
        "the model. Nothing appears under CKPT_DIR until it is whole.",
        epilog="example: python -m parallel import Llama-2-7b-chat-hf checkpoints/llama2-7b --tensor 8",
    )
    parser.add_argument("source", metavar="HF_DIR", type=Path, help=f"a model of type {', '.join(FAMILIES)}")
    parser.add_argument("destination", metavar="CKPT_DIR", type=Path, help="a directory that does not exist yet")
    parser.add_argument(
        "--tensor",
        type=int,
        default=1,
        metavar="T",
        help="cut each weight into pieces for T tensor-parallel ranks, so that a rank reads only its own (any other "
        "layout still loads; default 1)",
    )
    parser.add_argument(
        "--pipeline", type=int, default=1, metavar="P", help="check that P pipeline stages are possible (default 1)"
    )
    options = parser.parse_args(arguments)
    import_model(options.source, options.destination, options.tensor, options.pipeline)


def export_main(arguments: Sequence[str]) -> None:
    """`python -m parallel export`."""
    parser = argparse.ArgumentParser(
        prog="python -m parallel export",
        description="Turn a checkpoint, or the newest checkpoint of a run directory, into a Hugging Face model "
        "directory that transformers loads: safetensors, config, tokenizer, and a model card that says how the model "
        "was made. Every file read is checked against the checkpoint's manifest.",
        epilog="example: python -m parallel export runs/llama2-7b exported/llama2-7b-biomedical",
    )
    parser.add_argument("source", metavar="CKPT_DIR", type=Path, help="a checkpoint or a run directory")
    parser.add_argument("destination", metavar="HF_DIR", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="size of a file (default 5)")
    parser.add_argument(
        "--dtype", choices=("keep", "bfloat16", "float32"), default="keep", help="type of the weights (default keep)"
    )
    options = parser.parse_args(arguments)
    export_model(options.source, options.destination, options.max_shard_gb, options.dtype)


def import_model(source: Path, destination: Path, tensor: int = 1, pipeline: int = 1) -> None:
    """Write the checkpoint `destination` from the Hugging Face directory `source`; raises `InputError`."""
    shape = read_shape(source)
    Layout(tensor=tensor, pipeline=pipeline).check(shape, sequence_length=max(tensor, 1))
    _check_vocabulary(source, shape)

    from parallel.from_hugging_face import check_weights, write_weights
    from parallel.safetensors_stream import SafetensorsReader

    reader = SafetensorsReader(source)
    check_weights(reader, shape)
    size = sum(info.bytes for info in reader.tensors.values())
    with atomic_directory(destination) as directory:
        _check_free_space(destination, size)
        _copy_description(source, directory / MODEL_FOLDER)
        with ByteProgress() as progress:
            progress.start("import", size)
            files = write_weights(reader, shape, tensor, directory, progress.advance)
        _write_megatron_files(directory)
        manifest.write(
            directory,
            STAGE,
            config={"source": str(source), "tensor": tensor, "pipeline": pipeline},
            inputs=[_describe_model(source)],
            content={
                "step": 0,
                "optimizer": False,
                "base_model": read_statement(source),
                "files": _all_files(directory, files),
            },
        )
    print(f"{destination}: {shape.parameters:,} parameters of {source}")


def export_model(source: Path, destination: Path, max_shard_gb: float = 5.0, dtype: str = "keep") -> None:
    """Write the Hugging Face directory `destination` from a checkpoint or run directory; raises `InputError`."""
    if max_shard_gb <= 0:
        raise InputError(f"--max-shard-gb must be above 0, not {max_shard_gb}")
    checkpoint = find_checkpoint(source)
    body = read_manifest(checkpoint)
    for name, expected in body["files"].items():
        if name.startswith(f"{MODEL_FOLDER}/"):
            verify_file(checkpoint, name, expected)
    shape = read_shape(checkpoint / MODEL_FOLDER)

    import torch

    from parallel.to_hugging_face import CheckpointWeights, write_safetensors

    weights = CheckpointWeights(checkpoint, body["files"], shape)
    planned = weights.plan(None if dtype == "keep" else getattr(torch, dtype))
    size = sum(entry.bytes for entry in planned)
    with atomic_directory(destination) as directory:
        _check_free_space(destination, size)
        with ByteProgress() as progress:
            progress.start("export", size)
            files = write_safetensors(weights, planned, directory, int(max_shard_gb * 1e9), progress.advance)
        shutil.copytree(checkpoint / MODEL_FOLDER, directory, dirs_exist_ok=True)
        kinds = Counter({entry.parts[0].dtype: 0 for entry in planned})
        for entry in planned:
            kinds[entry.parts[0].dtype] += entry.bytes
        config = read_json(directory / "config.json")
        config.pop("torch_dtype", None)  # what transformers before version 5 calls it
        config |= {"architectures": [FAMILIES[shape.family]], "dtype": str(kinds.most_common(1)[0][0]).split(".")[1]}
        write_json(directory / "config.json", config)
        _limit_length(directory / "tokenizer_config.json", shape.positions)
        chain = manifest.chain(checkpoint)
        write_text(directory / "README.md", model_card(destination.name, shape, config["dtype"], chain))
        manifest.write(
            directory,
            EXPORT_STAGE,
            config={"checkpoint": str(checkpoint), "max_shard_gb": max_shard_gb, "dtype": dtype},
            inputs=[manifest.reference(checkpoint)],
            content={"step": body.get("step"), "chain": chain, "files": _all_files(directory, files)},
        )
    print(f"{destination}: {shape.parameters:,} parameters of {checkpoint}")


def _copy_description(source: Path, directory: Path) -> None:
    """Config, generation config and tokenizer: the tokenizer in a form that gives transformers the shards' ids."""
    directory.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (source / "tokenizer.model").is_file() or (source / "tokenizer.json").is_file():
        tokenizer.write_hf_tokenizer(source, directory)
    else:
        print(f"{source} has no tokenizer.model or tokenizer.json: an export will have no tokenizer", file=sys.stderr)


def _limit_length(settings: Path, positions: int) -> None:
    """Make the tokenizer know the model's positions: left unset, or as Llama-2 ships it, they are 10^30."""
    if settings.is_file():
        body = read_json(settings)
        if (body.get("model_max_length") or math.inf) > positions:
            write_json(settings, body | {"model_max_length": positions})


def _check_free_space(destination: Path, needed: int) -> None:
    free = shutil.disk_usage(destination.parent).free
    if free < needed:
        raise InputError(
            f"{destination} needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free; make room or "
            "choose another directory"
        )


def _check_vocabulary(source: Path, shape: ModelShape) -> None:
    """Refuse a tokenizer that gives ids beyond the embedding."""
    size = tokenizer.vocabulary_size(source)
    if size is not None and size > shape.vocabulary:
        raise InputError(
            f"the tokenizer of {source} has {size} ids, but config.json's vocab_size is {shape.vocabulary}: they "
            "belong to different models, or tokens were added without resizing the embeddings"
        )


def _write_megatron_files(directory: Path) -> None:
    """What megatron-core's `dist_checkpointing.load` expects beside the tensors."""
    import torch

    # one key per layer, whatever stage holds it
    torch.save({"content_metadata": {"non_homogeneous_layers": True}}, directory / "common.pt")
    backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backends |= {"common_backend": "torch", "common_backend_version": 1}
    (directory / "metadata.json").write_text(json.dumps(backends), encoding="utf-8")


def _describe_model(source: Path) -> dict[str, Any]:
    """How the manifest names the source: by its manifest where we exported it, else by config and file sizes."""
    if (source / manifest.NAME).is_file():
        return dict(manifest.reference(source))
    sizes = {file.name: file.stat().st_size for file in sorted(source.glob("*.safetensors"))}
    return {"path": str(source), "config_sha256": sha256_file(source / "config.json"), "bytes": sizes}


def _all_files(directory: Path, hashed: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file in `directory` by relative path, hashing those that are not yet."""
    result = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        result[name] = hashed.get(name) or {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    return result
