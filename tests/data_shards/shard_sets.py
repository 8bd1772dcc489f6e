"""Small finished builds for tests, made of real abstracts with the real writer and the real Llama tokenizer."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import tokens
from data_shards.shards import STAGE, ShardInfo, ShardManifest, ShardSet, ShardWriter, TokenizerInfo
from job import manifest

LLAMA = TokenizerInfo("llama", "0" * 64, 32000, 1, 2)


def abstracts(real_data: Path, count: int, first: int = 0) -> list[dict[str, Any]]:
    """PubMed records with at least `pmid`, `title`, `abstract`."""
    file = real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for number, line in enumerate(lines) if first <= number < first + count]


def text_of(record: dict[str, Any]) -> str:
    return f"{record['title']}\n\n{record['abstract']}"


def write_build(
    directory: Path,
    splits: dict[str, Sequence[np.ndarray]],
    *,
    records: dict[str, Sequence[dict[str, Any]]] | None = None,
    masks: dict[str, Sequence[np.ndarray]] | None = None,
    tokenizer: TokenizerInfo = LLAMA,
    dtype: type[np.integer] = np.uint16,
    documents_per_shard: int = 50,
    block_tokens: int = 4000,
) -> Path:
    """Write documents' ids (and loss masks) as a finished build."""
    infos: dict[str, list[ShardInfo]] = {}
    for split, documents in splits.items():
        infos[split] = []
        for shard, first in enumerate(range(0, len(documents), documents_per_shard)):
            with ShardWriter(directory / split / f"shard-{shard:05d}.tar", dtype, block_tokens) as writer:
                for number in range(first, min(first + documents_per_shard, len(documents))):
                    record = records[split][number] if records else {"id": f"{split}:{number}"}
                    writer.add(documents[number], record, masks[split][number] if masks else None)
            infos[split].append(writer.info)
    content = ShardManifest(tokenizer, np.dtype(dtype).name, infos).to_json()
    manifest.write(directory, STAGE, {}, [], content)
    return directory


def build_questions(
    directory: Path, real_data: Path, tokenizer_path: Path, count: int, *, loss: str = "answers"
) -> ShardSet:
    """A build of real MedMCQA questions, one in eight for validation.

    `loss` "answers": of the answer and EOS alone; "all ones": masks that leave out nothing; "unmasked": no masks.
    """
    tokenizer = tokens.load(tokenizer_path)
    with open(real_data / "medmcqa" / "dev_sample_open.json", encoding="utf-8") as lines:
        rows = [json.loads(line) for number, line in enumerate(lines) if number < count]
    prompts = [f"{row['question']} {row['opa']}, {row['opb']}, {row['opc']} or {row['opd']}? Answer:" for row in rows]
    answers = [f" {row['op' + 'abcd'[row['cop'] - 1]]}" for row in rows]
    ids = tokenizer.encode_batch([prompt + answer for prompt, answer in zip(prompts, answers)])
    masks = []
    for document, prompt in zip(ids, tokenizer.encode_batch(prompts)):
        mask = np.zeros(len(document), np.uint8)
        mask[len(prompt) - 1 if loss == "answers" else 0 :] = 1  # the prompt's ids are BOS, its text and EOS
        masks.append(mask)
    parts = {"train": [n for n in range(len(rows)) if n % 8], "validation": list(range(0, len(rows), 8))}
    info = TokenizerInfo(
        str(tokenizer.path), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    write_build(
        directory,
        {split: [ids[n] for n in numbers] for split, numbers in parts.items()},
        masks={split: [masks[n] for n in numbers] for split, numbers in parts.items()} if loss != "unmasked" else None,
        tokenizer=info,
    )
    return ShardSet(directory)


def build_abstracts(directory: Path, real_data: Path, count: int = 260, first: int = 0) -> ShardSet:
    """A build of real abstracts, one in thirteen of them in the validation split."""
    tokenizer = tokens.load(real_data / "llama_tokenizer" / "tokenizer.model")
    rows = abstracts(real_data, count, first)
    ids = tokenizer.encode_batch([text_of(row) for row in rows])
    provenance = [
        {"id": f"pmid:{row['pmid']}", "pmid": row["pmid"], "doi": row["doi"], "licence": "none",
         "source_file": "pubmed21n1298_abstracts.open.jsonl.gz", "source_position": f"line {number + 1}"}
        for number, row in enumerate(rows, first)
    ]  # fmt: skip
    parts = {"train": [n for n in range(len(rows)) if n % 13], "validation": list(range(0, len(rows), 13))}
    info = TokenizerInfo(
        str(tokenizer.path), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    write_build(
        directory,
        {split: [ids[n] for n in numbers] for split, numbers in parts.items()},
        records={split: [provenance[n] for n in numbers] for split, numbers in parts.items()},
        tokenizer=info,
    )
    return ShardSet(directory)
