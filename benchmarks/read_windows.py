"""Random training windows from token shards, against megatron-core's datasets and stock webdataset.

    python benchmarks/read_windows.py --data DIR --tokenizer DIR/llama_tokenizer

The same documents (real articles, repeated until there are enough tokens) are written as our shards, as a megatron-core
IndexedDataset and as one-document-per-sample webdataset tars. Then, in turn and per CPU second of one core:

- ours: sample n for random n, as int64 tensors of inputs and targets, documents permuted per epoch;
- ours in micro-batches: the same, 8 samples in a row from a random n, as a data-parallel rank reads them;
- megatron-core GPTDataset, indices only: its own token gathering (`_query_document_sample_shuffle_indices`), no masks;
- megatron-core GPTDataset: what its data loader calls, with loss mask and position ids, attention mask switched off;
- webdataset: shuffled shards and a 1,000-sample shuffle buffer, decoded, packed into windows.

Before timing, our reader is given megatron-core's document order and must return the very same windows.
"""

import argparse
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import corpus  # noqa: E402
import measure  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import webdataset  # noqa: E402

from data_shards import order, tokens  # noqa: E402
from data_shards.shards import STAGE, ShardManifest, ShardSet, ShardWriter, TokenizerInfo  # noqa: E402
from job import manifest  # noqa: E402

OURS, BATCHES = "token shards", "token shards, micro-batches of 8"
GATHER, GPT, STOCK = "megatron-core, tokens only", "megatron-core GPTDataset", "webdataset"


def write_shards(directory: Path, documents: list[np.ndarray], tokenizer: tokens.Tokenizer) -> ShardSet:
    """The documents as a finished build, in shards of about 20 million tokens."""
    infos = []
    per_shard = max(1, int(20e6 / np.mean([len(document) for document in documents])))
    for shard, first in enumerate(range(0, len(documents), per_shard)):
        with ShardWriter(directory / "train" / f"shard-{shard:05d}.tar", tokenizer.dtype) as writer:
            for number, document in enumerate(documents[first : first + per_shard], first):
                writer.add(document, {"id": str(number)})
        infos.append(writer.info)
    info = TokenizerInfo(
        str(tokenizer.path), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    described = ShardManifest(info, tokenizer.dtype.name, {"train": infos, "validation": []})
    manifest.write(directory, STAGE, {}, [], described.to_json())
    return ShardSet(directory)


def write_indexed_dataset(prefix: Path, documents: list[np.ndarray]) -> None:
    """The documents as megatron-core's .bin and .idx."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(torch.from_numpy(document.astype(np.int32)), [len(document)])
    builder.finalize(f"{prefix}.idx")


def write_one_document_samples(directory: Path, documents: list[np.ndarray]) -> list[str]:
    """The documents one a sample, 5,000 a tar, as webdataset's own writer does it; returns the tars."""
    directory.mkdir()
    urls = []
    for shard, first in enumerate(range(0, len(documents), 5000)):
        urls.append(str(directory / f"{shard:05d}.tar"))
        with webdataset.TarWriter(urls[-1]) as writer:
            for number, document in enumerate(documents[first : first + 5000], first):
                writer.write({"__key__": f"{number:08d}", "tokens.npy": document})
    return urls


def open_gpt_dataset(prefix: Path, sequence_length: int, epochs: int, tokenizer: tokens.Tokenizer, cache: Path):
    """megatron-core's GPTDataset over all documents; builds its index files."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split, compile_helpers
    from megatron.core.tokenizers import MegatronTokenizer

    try:
        import megatron.core.datasets.helpers_cpp  # noqa: F401
    except ImportError:
        compile_helpers()

    null = MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=tokenizer.vocab_size)
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=sequence_length,
        split="1",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=null,
        path_to_cache=str(cache),
        mid_level_dataset_surplus=0.0,
    )
    low = IndexedDataset(str(prefix), mmap=True)
    wanted = epochs * int(low.sequence_lengths.sum(dtype=np.int64)) // sequence_length - 1
    indices = np.arange(len(low), dtype=np.int32)
    return GPTDataset(low, str(prefix), indices, wanted, Split.train, config)


def prove_equal(shards: ShardSet, gpt) -> int:
    """Our reader over megatron-core's document order returns its windows; returns how many were compared."""
    stream = order.TokenStream(shards, None)
    per_epoch = len(shards)
    places = np.asarray(gpt.document_index).reshape(-1, per_epoch)
    stream._epoch = lambda epoch: order._Epoch(places[epoch].astype(np.int64), stream._lengths)
    length = gpt.config.sequence_length
    sample = random.Random(0).sample(range(len(gpt)), min(300, len(gpt)))
    for n in sample:
        theirs, _ = gpt._query_document_sample_shuffle_indices(n)
        start = int(gpt.shuffle_index[n]) * length
        assert np.array_equal(stream.read(start, start + length + 1), theirs), f"window {n} differs"
    return len(sample)


def packed(urls: list[str], length: int) -> Iterator[torch.Tensor]:
    """What a training script around stock webdataset does: shuffle, decode, pack."""
    buffer = np.empty(0, np.int64)
    for sample in webdataset.WebDataset(urls, shardshuffle=100, seed=1).shuffle(1000, seed=1).decode():
        buffer = np.concatenate([buffer, sample["tokens.npy"]])
        while len(buffer) > length:
            yield torch.from_numpy(buffer[: length + 1].copy())
            buffer = buffer[length:]


def contenders(
    shards: ShardSet, gpt, urls: list[str], length: int, windows: int, seed: int
) -> dict[str, Callable[[], float]]:
    """One timed call each: reads `windows` windows, returns how many input tokens that is."""
    ours = order.TrainingWindows(shards, length, seed)
    available = min(len(gpt), shards.tokens // length)
    generator = random.Random(seed)
    ours[0]  # an epoch's permutation is made once, as megatron-core's index files are

    def read_ours() -> float:
        for n in [generator.randrange(available) for _ in range(windows)]:
            window = torch.from_numpy(ours[n])
            _ = window[:-1], window[1:]
        return windows * length

    def read_batches() -> float:
        for n in [generator.randrange(available - 8) for _ in range(windows // 8)]:
            batch = torch.from_numpy(ours.batch(n, 8))
            _ = batch[:, :-1], batch[:, 1:]
        return windows // 8 * 8 * length

    def gather() -> float:
        for n in [generator.randrange(available) for _ in range(windows)]:
            text, _ = gpt._query_document_sample_shuffle_indices(n)
            window = torch.from_numpy(text)
            _ = window[:-1], window[1:]
        return windows * length

    def read_gpt() -> float:
        for n in [generator.randrange(available) for _ in range(windows)]:
            _ = gpt[n]
        return windows * length

    def read_stock() -> float:
        count = 0
        for window in packed(urls, length):
            _ = window[:-1], window[1:]
            count += 1
            if count * length >= windows * length // 4:  # a quarter: it is that much slower
                break
        return count * length

    return {OURS: read_ours, BATCHES: read_batches, GATHER: gather, GPT: read_gpt, STOCK: read_stock}


def main() -> None:
    """Write the three forms, prove them equal, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pubmed_abstracts/, jats_fulltext/, ...")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face directory or sentencepiece .model")
    parser.add_argument("--tokens", type=float, default=50e6, help="repeat the articles to this many (default: 50e6)")
    parser.add_argument("--sequence-lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--windows", type=int, default=10_000, help="per repeat, of 2,048; others alike in tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    parser.add_argument("--smoke", action="store_true", help="a few hundred abstracts: shows that everything runs")
    options = parser.parse_args()
    if options.smoke:
        options.tokens, options.windows, options.repeats, options.sequence_lengths = 2e5, 40, 2, [256]
    torch.set_num_threads(1)

    tokenizer = tokens.load(options.tokenizer)
    texts = corpus.abstracts(options.data, 300 if options.smoke else None)
    texts += [] if options.smoke else corpus.articles(options.data)
    documents = tokenizer.encode_batch(texts)
    real = sum(len(document) for document in documents)
    documents = documents * -(-int(options.tokens) // real)
    total = sum(len(document) for document in documents)
    print(f"{len(texts):,} real articles, {real:,} tokens, repeated to {len(documents):,} and {total:,}", flush=True)

    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shards = write_shards(work / "build", documents, tokenizer)
        write_indexed_dataset(work / "indexed", documents)
        urls = write_one_document_samples(work / "stock", documents)
        rows = []
        for length in options.sequence_lengths:
            gpt = open_gpt_dataset(work / "indexed", length, 1, tokenizer, work / f"cache-{length}")
            compared = prove_equal(shards, gpt)
            print(f"sequence {length}: {compared} windows equal to megatron-core's in its document order", flush=True)
            windows = options.windows if options.smoke else max(1, options.windows * 2048 // length)
            runs = contenders(shards, gpt, urls, length, windows, seed=7)
            for run in runs.values():  # page cache and lazy imports
                run()
            rates = measure.in_turn(runs, options.repeats)
            results[str(length)] = {}
            for name, values in rates.items():
                entry = {key: measure.summary(values, values)[key] for key in ("min", "median", "max")}
                entry["ratio"] = measure.summary(rates[OURS], values)["ratio"]
                entry["batches_ratio"] = measure.summary(rates[BATCHES], values)["ratio"]
                results[str(length)][name] = entry
                cells = [f"{entry[key] / 1e6:.1f}" for key in ("min", "median", "max")]
                ratios = [f"{entry[key]:.2f}" for key in ("ratio", "batches_ratio")]
                rows.append([f"{length}, {name}", *cells, *(["", ""] if name in (OURS, BATCHES) else ratios)])
    described = measure.machine("megatron-core", "webdataset", "torch", "numpy")
    print(f"\n{described}; {options.repeats} repeats in turn\n")
    header = ["sequence, reader", "min Mtok/s", "median", "max", "ours is ×", "ours in micro-batches is ×"]
    print(measure.markdown(header, rows))
    measure.save(options.output, {"machine": described, "tokens": total, "results": results})


if __name__ == "__main__":
    main()
