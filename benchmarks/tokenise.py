"""Articles to token shards, against datatrove and one-document-at-a-time Hugging Face tokenisation.

    python benchmarks/tokenise.py --data DIR --tokenizer DIR/llama_tokenizer

Every contender reads the same JSON lines (each article once: repeats would flatter a cache), tokenises with the same
vocabulary, puts an end mark after each article and writes its own format, on one core. MB of text per CPU second:

- ours, cold: a freshly loaded tokenizer with an empty word cache; block tars with index and checksums;
- ours, warm: the same process going on to text whose words it has mostly seen (the same text again);
- datatrove's DocumentTokenizer, documents not shuffled, which writes plain ids and an index;
- Hugging Face tokenizer, one article at a time, into megatron-core's IndexedDatasetBuilder: its preprocess_data.py.

The ids of all of them must be identical (ours without the BOS that the others do not write).
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import corpus  # noqa: E402
import measure  # noqa: E402
import numpy as np  # noqa: E402

from data_shards import tokens  # noqa: E402
from data_shards.shards import Shard, ShardInfo, ShardWriter  # noqa: E402
from job.tokenizer import write_hf_tokenizer  # noqa: E402

COLD, WARM = "token shards, cold", "token shards, warm"
DATATROVE, MEGATRON = "datatrove DocumentTokenizer", "Hugging Face one by one + IndexedDatasetBuilder"
_BATCH = 1000


def batches(file: Path) -> Iterator[list[dict]]:
    """The lines of a JSON lines file, 1,000 at a time."""
    batch = []
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            batch.append(json.loads(line))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    yield batch


def ours(file: Path, path: Path, tokenizer: tokens.Tokenizer) -> ShardInfo:
    """What a build does with the articles it keeps."""
    with ShardWriter(path, tokenizer.dtype) as writer:
        for batch in batches(file):
            for record, ids in zip(batch, tokenizer.encode_batch([record.pop("text") for record in batch])):
                writer.add(ids, record)
    return writer.info


def datatrove(file: Path, output: Path, tokenizer_json: Path) -> None:
    """Datatrove's tokenizer step over its own JSON reader."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    steps = [
        JsonlReader(str(file.parent), glob_pattern=file.name),
        DocumentTokenizer(
            str(output), tokenizer_name_or_path=str(tokenizer_json), eos_token="</s>", shuffle_documents=False
        ),
    ]
    executor = LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=f"{output}-log")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        executor.run()


def megatron(file: Path, prefix: Path, hf_directory: Path) -> None:
    """The inner loop of Megatron-LM's tools/preprocess_data.py."""
    import torch
    from transformers import AutoTokenizer

    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokenizer = AutoTokenizer.from_pretrained(str(hf_directory))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
            ids.append(tokenizer.eos_token_id)
            builder.add_document(torch.IntTensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def prove_equal(shard: Shard, datatrove_output: Path, megatron_prefix: Path) -> int:
    """All ids of all contenders are the same; returns how many."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = [shard[number][1:] for number in range(len(shard))]
    ids = np.concatenate(documents)
    [written] = list(datatrove_output.glob("*.ds"))
    assert np.array_equal(np.fromfile(written, np.uint16), ids), "datatrove's ids differ"
    indexed = IndexedDataset(str(megatron_prefix))
    assert all(np.array_equal(indexed[n], document) for n, document in enumerate(documents)), "Megatron's ids differ"
    return len(ids)


def main() -> None:
    """Write the articles as JSON lines, prove equal ids, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pubmed_abstracts/, jats_fulltext/, ...")
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory or .model of a sentencepiece BPE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    parser.add_argument("--smoke", action="store_true", help="a few hundred abstracts: shows that everything runs")
    options = parser.parse_args()

    texts = corpus.abstracts(options.data, 300 if options.smoke else None)
    texts += [] if options.smoke else corpus.articles(options.data)
    texts = list(dict.fromkeys(texts))  # a text twice would be a cache hit that a corpus does not offer
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        file = work / "articles" / "articles.jsonl"
        file.parent.mkdir()
        with open(file, "w", encoding="utf-8") as handle:
            for number, text in enumerate(texts):
                handle.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
        write_hf_tokenizer(options.tokenizer, work / "hf")
        warm: list[tokens.Tokenizer] = []

        def run_cold() -> float:
            warm[:] = [tokens.load(options.tokenizer)]
            ours(file, work / "shard.tar", warm[0])
            return megabytes

        def run_warm() -> float:
            ours(file, work / "shard.tar", warm[0])
            return megabytes

        def run_datatrove() -> float:
            datatrove(file, work / f"datatrove-{os.urandom(4).hex()}", work / "hf" / "tokenizer.json")
            return megabytes

        def run_megatron() -> float:
            megatron(file, work / "megatron", work / "hf")
            return megabytes

        tokenizer = tokens.load(options.tokenizer)
        info = ours(file, work / "proof.tar", tokenizer)
        datatrove(file, work / "proof-datatrove", work / "hf" / "tokenizer.json")
        megatron(file, work / "proof-megatron", work / "hf")
        shard = Shard(work / "proof.tar", info, tokenizer.dtype)
        compared = prove_equal(shard, work / "proof-datatrove", work / "proof-megatron")
        print(
            f"{len(texts):,} real articles, {megabytes:.1f} MB of text; {compared:,} ids identical in all", flush=True
        )
        del tokenizer
        runs = {COLD: run_cold, WARM: run_warm, DATATROVE: run_datatrove, MEGATRON: run_megatron}
        rates = measure.in_turn(runs, options.repeats)
    results, rows = {}, []
    for name, values in rates.items():
        results[name] = {"cold_ratio": measure.summary(rates[COLD], values)["ratio"]}
        results[name] |= {"warm_ratio": measure.summary(rates[WARM], values)["ratio"]}
        results[name] |= {key: measure.summary(values, values)[key] for key in ("min", "median", "max")}
        cells = [f"{results[name][key]:.2f}" for key in ("min", "median", "max")]
        cells += ["" if name in (COLD, WARM) else f"{results[name][key]:.2f}" for key in ("cold_ratio", "warm_ratio")]
        rows.append([name, *cells])
    described = measure.machine("datatrove", "tokenizers", "sentencepiece", "transformers", "megatron-core")
    print(f"\n{described}; {options.repeats} repeats in turn\n")
    print(measure.markdown(["MB/s per core", "min", "median", "max", "ours cold is ×", "ours warm is ×"], rows))
    measure.save(options.output, {"machine": described, "megabytes": megabytes, "results": results})


if __name__ == "__main__":
    main()
