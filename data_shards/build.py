"""`python -m data_shards build CONFIG.toml`: articles -> unique, clean, tokenised shards.

    input files --extract--> documents + keys --resolve--> which to keep --pack--> train/ and validation/ shards
       (parallel, a task a file)              (one process)          (parallel, a task a shard)

Everything in between lies in OUT/intermediate and carries checksums of what it was made from: killed and started again,
a build goes on where it stopped and ends in the same bytes; with a changed input or setting it redoes what that
touches. The directory may be deleted afterwards (a later build then starts over).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import articles, clean, duplicates, extract, funnel, pack, select, shards, tokens
from data_shards.config import BuildConfig, Source
from data_shards.readers import (
    formats,
    identifiers,
    json_records,
    jsonl,
    licences,
    markup,
    pmc,
    pubmed,
    s2orc,
    s2orc_metadata,
    streams,
)
from data_shards.tasks import Done, Task, code_checksum, run_all
from job import config as job_config
from job import manifest
from job.errors import InputError
from job.files import atomic_file
from job.progress import ByteProgress

SPLITS = ("train", "validation")
_FORMAT_PRIORITY = ("pmc", "s2orc", "pubmed", "jsonl")
_BYTES_PER_TOKEN = 4  # of English text, roughly; only decides where one shard ends and the next begins
_SMALL_FILE_BYTES = 1 << 20
_SMALL_FILES_A_TASK = 500

_READING_CODE = (
    articles, clean, duplicates, extract, select, formats, identifiers, json_records, jsonl, licences, markup, pmc,
    pubmed, s2orc, s2orc_metadata, streams,
)  # fmt: skip
_PACKING_CODE = (pack, shards, tokens, tokens.tokenizer_files)


DESCRIPTION = """Turn raw articles into clean, unique, tokenised webdataset shards. Run again after a kill, or with more
input, it redoes only what is missing or changed.

  python -m data_shards build configs/corpus.toml
  python -m data_shards build configs/corpus.toml --part 3/16    only read, the fourth of 16 parts of the input: for
                                                                 jobs at once; a build without --part ends the work
"""


def main(arguments: list[str]) -> int:
    """Parse the config, build, and print the funnel; with `--part I/N`, only read a part of the input."""
    words, part = _take_part(arguments)
    config = job_config.parse(BuildConfig, words, prog="python -m data_shards build", description=DESCRIPTION)
    if part is not None:
        read_part(config, *part)
        return 0
    funnels = build(config)
    funnel.show(funnels)
    for sentence in (sentence for entry in funnels for sentence in entry["damaged_files"]):
        print(f"warning: {sentence}; its records before the damage are kept")
    if not any(entry["tokens"]["train"] for entry in funnels):
        raise InputError(f"{config.output} has nothing to train on: no article was kept; the table says why")
    print(f"shards, index and manifest: {config.output}")
    return 0


def build(config: BuildConfig) -> list[dict[str, Any]]:
    """Run the whole build; returns the funnel of each source. Raises `InputError` where it cannot go on."""
    tokenizer = tokens.load(config.tokenizer)
    inputs = [(source, _find(source.paths, formats.SUFFIXES[source.format], source.name)) for source in config.sources]
    with _lock(config.output), ByteProgress() as progress:
        metadata = [_index_metadata(config.output, source, progress) for source, _ in inputs]
        extract_tasks, task_sources = _extract_tasks(config, inputs, metadata)
        progress.start("reading", sum(task.work for task in extract_tasks))
        extracted = run_all(extract_tasks, config.worker_count(), *_advance(progress))
        if config.damaged_files == "stop":
            _stop_if_damaged(extracted)
        parts = [np.load(task.outputs[1], allow_pickle=False) for task in extract_tasks]
        keys = np.concatenate(parts)
        reasons = duplicates.resolve(keys, config.selection.include_retracted)
        rows = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        plan = _plan(config, extract_tasks, extracted, task_sources, keys, reasons, rows)
        pack_tasks = [
            _pack_task(config, tokenizer.sha256, split, name, segments, work) for split, name, segments, work in plan
        ]
        (config.output / manifest.NAME).unlink(missing_ok=True)  # until the shards are whole again
        progress.start("tokenising", sum(task.work for task in pack_tasks))
        packed = run_all(pack_tasks, config.worker_count(), *_advance(progress))
        _remove_stale(config.output, {path for task in pack_tasks for path in (*task.outputs, task.record)})
        _collect_rejects(config.output, extract_tasks)
        infos = [shards.ShardInfo.from_json(done.result) for done in packed]
        funnels = _funnels(config, task_sources, extracted, keys, reasons, rows, plan, infos)
        content = shards.ShardManifest(
            shards.TokenizerInfo(
                str(config.tokenizer), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
            ),
            tokenizer.dtype.name,
            {split: [info for (part, *_), info in zip(plan, infos, strict=True) if part == split] for split in SPLITS},
        )
        manifest.write(
            config.output,
            shards.STAGE,
            job_config.as_dict(config),
            [entry for done in [*filter(None, metadata), *extracted] for entry in done.inputs],
            content.to_json() | {"sources": funnels},
        )
    return funnels


def read_part(config: BuildConfig, number: int, count: int) -> None:
    """Read and clean every `count`th of the inputs, from `number` on: what several jobs may do at once.

    A `build` afterwards finds it done. Raises `InputError` where it cannot go on.
    """
    inputs = [(source, _find(source.paths, formats.SUFFIXES[source.format], source.name)) for source in config.sources]
    with _lock(config.output, fcntl.LOCK_SH), ByteProgress() as progress:
        with open(config.output / "intermediate" / "metadata.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the first part indexes, the others wait for it
            metadata = [_index_metadata(config.output, source, progress) for source, _ in inputs]
        tasks, _ = _extract_tasks(config, inputs, metadata)
        mine = tasks[number::count]
        progress.start("reading", sum(task.work for task in mine))
        run_all(mine, config.worker_count(), *_advance(progress))
    print(f"part {number} of {count}: {len(mine):,} of {len(tasks):,} inputs are read")


def _take_part(arguments: list[str]) -> tuple[list[str], tuple[int, int] | None]:
    """The words without `--part I/N`, and I and N."""
    if "--part" not in arguments:
        return arguments, None
    place = arguments.index("--part")
    value = "".join(arguments[place + 1 : place + 2])
    number, slash, count = value.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(f"--part {value}: write I/N, with I from 0 to N - 1")
    return arguments[:place] + arguments[place + 2 :], (int(number), int(count))


def _advance(progress: ByteProgress) -> tuple[Callable[[Task, Done], None], Callable[[int], None]]:
    """Count what finished tasks had left, and parts of those under way."""
    return (
        lambda task, done: progress.advance(
            task.work - done.reported, task.name + (" (already done)" if done.reused else ""), done.reused
        ),
        progress.advance,
    )


def _find(patterns: list[str], suffixes: tuple[str, ...], source_name: str) -> list[Path]:
    """The files of a source, ordered by name (PubMed's updates apply in that order) and then by path."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = [file for file in path.rglob("*") if file.is_file() and file.name.endswith(suffixes)]
        elif path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            relative = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            matches = [file for file in anchor.glob(relative) if file.is_file()]
        if not matches:
            raise InputError(
                f"source '{source_name}': no file matches '{pattern}' (looked for {', '.join(suffixes)} in directories)"
            )
        found.update(matches)
    return sorted(found, key=lambda path: (path.name, str(path)))


@contextlib.contextmanager
def _lock(output: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """One build at a time in a directory, or several that read parts (`fcntl.LOCK_SH`).

    The lock goes with the process, however it ends.
    """
    intermediate = output / "intermediate"
    if not intermediate.exists() and not (output / manifest.NAME).exists():
        for split in SPLITS:  # stale shards are removed at the end: make sure that they can only be ours
            if (output / split).exists():
                raise InputError(f"{output / split} exists but is not the work of a build; choose another output")
    try:
        intermediate.mkdir(parents=True, exist_ok=True)
        handle = open(intermediate / "lock", "w")  # noqa: SIM115 - closed by the `with` below
    except OSError as error:
        raise InputError(f"cannot write into {output}: {error.strerror or error}; choose another output") from None
    with handle:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another build is running in {output}; wait for it or choose another output") from None
        for unfinished in output.rglob(".*.tmp") if kind == fcntl.LOCK_EX else ():  # of a build that was killed
            unfinished.unlink(missing_ok=True)
        yield


def _extract_tasks(
    config: BuildConfig, inputs: list[tuple[Source, list[Path]]], metadata: list[Done | None]
) -> tuple[list[Task], list[int]]:
    """A task for each input file or batch of small ones, in order, and the number of each one's source."""
    by_rank = sorted(range(len(inputs)), key=lambda n: (_FORMAT_PRIORITY.index(inputs[n][0].format), n))
    code = code_checksum(*_READING_CODE)
    tasks: list[Task] = []
    task_sources: list[int] = []
    for number, (source, files) in enumerate(inputs):
        indexed = metadata[number]
        metadata_index = _metadata_index(config.output, source) if indexed else None
        for batch in _batches(source.format, files):
            short = hashlib.sha256("\n".join(map(str, batch)).encode()).hexdigest()[:8]
            stem = config.output / "intermediate" / source.name / f"{batch[0].name}-{short}"
            settings = {
                "source": source.name,
                "format": source.format,
                "priority": by_rank.index(number),
                "selection": dataclasses.asdict(config.selection) | {"include_retracted": None},
                "metadata": indexed.key if indexed else None,
                "code": code,
            }
            arguments = (source.name, source.format, by_rank.index(number), batch, config.selection, metadata_index)
            outputs = tuple(
                stem.with_name(stem.name + end) for end in (".documents.zst", ".keys.npy", ".rejects.jsonl")
            )
            record = stem.with_name(stem.name + ".json")
            work = sum(path.stat().st_size for path in batch)
            name = f"{source.name}: {batch[0].name}"
            tasks.append(Task(name, record, extract.extract, arguments, settings, tuple(batch), outputs, work))
            task_sources.append(number)
    return tasks, task_sources


def _batches(kind: str, files: list[Path]) -> Iterator[list[Path]]:
    """Each file by itself, but loose articles (one a file) some hundred at a time."""
    small: list[Path] = []
    for path in files:
        is_loose = kind in ("pmc", "s2orc") and ".tar" not in path.name and ".jsonl" not in path.name
        if is_loose and path.stat().st_size <= _SMALL_FILE_BYTES:
            small.append(path)
        else:
            if small:
                yield small
            small = []
            yield [path]
        if len(small) == _SMALL_FILES_A_TASK:
            yield small
            small = []
    if small:
        yield small


def _metadata_index(output: Path, source: Source) -> Path:
    return output / "intermediate" / source.name / "metadata.sqlite"


def _index_metadata(output: Path, source: Source, progress: ByteProgress) -> Done | None:
    """Index an S2ORC source's metadata tables, where it has some."""
    if not source.metadata:
        return None
    files = tuple(_find(source.metadata, formats.SUFFIXES["s2orc"], source.name))
    index = _metadata_index(output, source)
    task = Task(
        name=f"{source.name}: metadata",
        record=index.with_suffix(".json"),
        function=s2orc_metadata.build_task,
        arguments=(list(files),),
        settings={"code": code_checksum(*_READING_CODE)},
        inputs=files,
        outputs=(index,),
        work=sum(path.stat().st_size for path in files),
    )
    progress.start("indexing metadata", task.work)
    [done] = run_all([task], 1, *_advance(progress))
    return done


def _stop_if_damaged(extracted: list[Done]) -> None:
    damage = [sentence for done in extracted for sentence in done.result["damage"]]
    if damage:
        raise InputError(
            "; ".join(damage) + ". Everything else is read and kept; replace the damaged files and run again, or set "
            'damaged_files = "keep" to go on with the records before the damage'
        )


ShardPlan = tuple[str, str, list[tuple[pack.Segment, str]], int]
"""Split, shard name, segments with the key of the extraction they come from, bytes of text."""


def _plan(
    config: BuildConfig,
    tasks: list[Task],
    extracted: list[Done],
    task_sources: list[int],
    keys: np.ndarray,
    reasons: np.ndarray,
    rows: np.ndarray,
) -> list[ShardPlan]:
    """Which documents go into which shard: by source and split, in order, cut at about `shard_tokens`.

    A function of the documents alone (their bytes, not their tokens, so that shards can be tokenised in parallel).
    """
    limit = config.sharding.shard_tokens * _BYTES_PER_TOKEN
    threshold = np.uint64(min(int(config.sharding.validation_fraction * 2.0**64), 2**64 - 1))
    plan: list[ShardPlan] = []
    for split in SPLITS:
        for source_number, source in enumerate(config.sources):
            segments: dict[int, list[tuple[pack.Segment, str]]] = {}
            work: dict[int, int] = {}
            before = 0
            for number in (n for n, owner in enumerate(task_sources) if owner == source_number):
                part = keys[rows[number] : rows[number + 1]]
                stored = np.flatnonzero(part["reason"] == 0)  # documents that extraction wrote, in order
                kept = reasons[rows[number] : rows[number + 1]][stored] == 0
                in_validation = part["split"][stored] < threshold
                chosen = np.flatnonzero(kept & (in_validation if split == "validation" else ~in_validation))
                sizes = part["bytes"][stored][chosen].astype(np.int64)
                shard_numbers = (before + np.cumsum(sizes) - sizes) // limit
                before += int(sizes.sum())
                for shard in np.unique(shard_numbers).tolist():
                    mine = shard_numbers == shard
                    frames = extracted[number].result["frames"]
                    segment = pack.Segment(tasks[number].outputs[0], frames, chosen[mine].astype(np.int64))
                    segments.setdefault(shard, []).append((segment, extracted[number].key))
                    work[shard] = work.get(shard, 0) + int(sizes[mine].sum())
            # Numbers are given anew: one huge article may have jumped over a whole shard's worth of bytes.
            for shard, key in enumerate(sorted(segments)):
                plan.append((split, f"{source.name}-{shard:06d}", segments[key], work[key]))
    return plan


def _pack_task(
    config: BuildConfig,
    tokenizer_sha256: str,
    split: str,
    name: str,
    segments: list[tuple[pack.Segment, str]],
    work: int,
) -> Task:
    tar = config.output / split / f"{name}.tar"
    settings = {
        "tokenizer": tokenizer_sha256,
        "block_tokens": int(config.sharding.block_tokens),
        "segments": [[key, hashlib.sha256(segment.wanted.tobytes()).hexdigest()] for segment, key in segments],
        "code": code_checksum(*_PACKING_CODE),
    }
    record = config.output / "intermediate" / "shards" / split / f"{name}.json"
    arguments = ([segment for segment, _ in segments], config.tokenizer, int(config.sharding.block_tokens))
    outputs = (tar, shards.index_path(tar))
    return Task(f"{split}/{name}", record, pack.pack, arguments, settings, (), outputs, work)


def _remove_stale(output: Path, current: set[Path]) -> None:
    """Remove shards (and their records) that an earlier build with other inputs or settings left behind."""
    for split in SPLITS:
        for directory, endings in (
            (output / split, (".tar", ".index.npy")),
            (output / "intermediate" / "shards" / split, (".json",)),
        ):
            for path in directory.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].*"):
                if path.name.endswith(endings) and path not in current:
                    path.unlink()


def _collect_rejects(output: Path, tasks: list[Task]) -> None:
    """All rejected records in one file, in input order."""
    with atomic_file(output / "rejects.jsonl") as target:
        for task in tasks:
            target.write(task.outputs[2].read_bytes())


def _funnels(
    config: BuildConfig,
    task_sources: list[int],
    extracted: list[Done],
    keys: np.ndarray,
    reasons: np.ndarray,
    rows: np.ndarray,
    plan: list[ShardPlan],
    infos: list[shards.ShardInfo],
) -> list[dict[str, Any]]:
    """Per source: files, records read, rejected and dropped by reason, kept, documents and tokens per split."""
    funnels = []
    for number, source in enumerate(config.sources):
        mine = [n for n, owner in enumerate(task_sources) if owner == number]
        counts = np.zeros(len(duplicates.REASONS), np.int64)
        for n in mine:
            part = slice(rows[n], rows[n + 1])
            is_article = keys["status"][part] & duplicates.DELETION == 0
            counts += np.bincount(reasons[part][is_article], minlength=len(counts))
        rejected: dict[str, int] = {}
        for n in mine:
            for reason, count in extracted[n].result["rejected"].items():
                rejected[reason] = rejected.get(reason, 0) + count
        result = {
            "name": source.name,
            "format": source.format,
            "files": sum(len(extracted[n].inputs) for n in mine),
            "read": sum(extracted[n].result["read"] for n in mine),
            "rejected": dict(sorted(rejected.items())),
            "dropped": {
                reason: int(count) for reason, count in zip(duplicates.REASONS, counts, strict=True) if reason and count
            },
            "kept": int(counts[0]),
            "documents": dict.fromkeys(SPLITS, 0),
            "tokens": dict.fromkeys(SPLITS, 0),
            "damaged_files": [sentence for n in mine for sentence in extracted[n].result["damage"]],
        }
        for (split, name, *_), info in zip(plan, infos, strict=True):
            if name.rsplit("-", 1)[0] == source.name:
                result["documents"][split] += info.documents
                result["tokens"][split] += info.tokens
        funnel.check(result)
        funnels.append(result)
    return funnels
