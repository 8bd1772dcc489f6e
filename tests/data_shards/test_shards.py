"""Shards: what stock tools see, what is on disk, what readers refuse."""

import hashlib
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset

from data_shards import tokens
from data_shards.shards import (
    STAGE,
    Shard,
    ShardInfo,
    ShardManifest,
    ShardSet,
    ShardWriter,
    TokenizerInfo,
    blocks,
    index_path,
)
from job import manifest
from job.errors import InputError
from tests.data_shards.shard_sets import abstracts, build_abstracts, text_of, write_build


@pytest.fixture(scope="module")
def documents(real_data):
    """Ids of 900 real abstracts, about 400,000 tokens."""
    tokenizer = tokens.load(real_data / "llama_tokenizer" / "tokenizer.model")
    rows = abstracts(real_data, 900)
    return tokenizer.encode_batch([text_of(row) for row in rows]), [{"id": row["pmid"], "é": "β"} for row in rows]


def write(path, ids, records, block_tokens=100_000):
    with ShardWriter(path, np.uint16, block_tokens) as writer:
        for tokens_, record in zip(ids, records, strict=True):
            writer.add(tokens_, record)
    return writer.info


@pytest.mark.real
def test_stock_webdataset_reads_what_was_written(documents, tmp_path):
    ids, records = documents
    info = write(tmp_path / "s.tar", ids, records)
    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode())
    assert len(samples) == info.blocks > 3
    read = []
    for sample in samples:
        assert sample["tokens.npy"].dtype == np.uint16
        assert sample["lengths.npy"].dtype == np.int32
        ends = np.cumsum(sample["lengths.npy"])
        assert ends[-1] == len(sample["tokens.npy"])
        lines = sample["documents.jsonl"].decode().split("\n")[:-1]
        read += [(json.loads(line), part) for line, part in zip(lines, np.split(sample["tokens.npy"], ends[:-1]))]
    assert [record for record, _ in read] == records
    assert all(np.array_equal(part, wanted) for (_, part), wanted in zip(read, ids, strict=True))
    assert (info.documents, info.tokens) == (900, sum(map(len, ids)))
    assert hashlib.sha256((tmp_path / "s.tar").read_bytes()).hexdigest() == info.sha256
    assert hashlib.sha256(index_path(tmp_path / "s.tar").read_bytes()).hexdigest() == info.index_sha256


@pytest.mark.real
def test_tar_overhead_is_below_one_percent(documents, tmp_path):
    ids, records = documents
    info = write(tmp_path / "s.tar", ids * 3, records * 3, block_tokens=1_000_000)
    payload = sum(
        member.size
        for block in blocks(tmp_path / "s.tar")
        for name, member in block.members.items()
        if name in ("tokens.npy", "lengths.npy", "documents.jsonl")
    )
    assert info.blocks == 2
    assert (info.bytes - payload) / (2 * info.tokens) < 0.01


@pytest.mark.real
def test_the_same_documents_give_the_same_bytes(documents, tmp_path):
    ids, records = documents
    first = write(tmp_path / "a" / "s.tar", ids, records)
    second = write(tmp_path / "b" / "s.tar", ids, records)
    assert first == second
    assert (tmp_path / "a" / "s.tar").read_bytes() == (tmp_path / "b" / "s.tar").read_bytes()
    with tarfile.open(tmp_path / "a" / "s.tar") as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}


@pytest.mark.real
def test_every_document_is_read_by_offset_across_shards_and_after_pickling(documents, tmp_path):
    ids, records = documents
    write_build(tmp_path, {"train": ids, "validation": []}, records={"train": records}, documents_per_shard=170)
    shards = pickle.loads(pickle.dumps(ShardSet(tmp_path)))
    assert len(shards.shards) == 6
    assert len(shards) == 900
    assert all(np.array_equal(shards[number], wanted) for number, wanted in enumerate(ids))
    assert shards.lengths().tolist() == [len(document) for document in ids]
    assert [record for _, record in shards.records()] == records
    assert shards.tokens == shards.lengths().sum()
    with pytest.raises(IndexError):
        shards[900]
    assert len(ShardSet(tmp_path, "validation")) == 0


def test_an_article_longer_than_a_block_stays_whole(tmp_path):
    long = np.arange(5000, dtype=np.uint16)
    info = write(tmp_path / "s.tar", [long[:10], long, long[:7]], [{"id": str(n)} for n in range(3)], 100)
    assert info.blocks == 2
    shard = Shard(tmp_path / "s.tar", info, np.uint16)
    assert [len(shard[n]) for n in range(3)] == [10, 5000, 7]
    assert np.array_equal(shard[1], long)


def test_loss_masks_travel_with_their_tokens(tmp_path):
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, 9, length, dtype=np.uint16) for length in (5, 9, 1, 30)]
    masks = [generator.integers(0, 2, len(document)).astype(bool) for document in ids]
    with ShardWriter(tmp_path / "s.tar", np.uint16, 12) as writer:
        for number, (document, mask) in enumerate(zip(ids, masks)):
            writer.add(document, {"id": str(number)}, mask)
    shard = Shard(tmp_path / "s.tar", writer.info, np.uint16)
    for number in range(4):
        assert np.array_equal(shard[number], ids[number])
        assert np.array_equal(shard.loss_mask(number), masks[number].astype(np.uint8))
    with ShardWriter(tmp_path / "t.tar", np.uint16) as writer:
        writer.add(ids[0], {"id": "0"}, masks[0])
        with pytest.raises(ValueError, match="all documents of a shard have a loss mask or none"):
            writer.add(ids[1], {"id": "1"})


def test_wrong_dtype_is_refused(tmp_path):
    with ShardWriter(tmp_path / "s.tar", np.uint16) as writer, pytest.raises(TypeError, match="uint16"):
        writer.add(np.arange(4), {"id": "0"})


def test_nothing_appears_under_the_final_name_before_it_is_whole(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path / "s.tar", np.uint16, 10) as writer:
        writer.add(np.arange(40, dtype=np.uint16), {"id": "0"})
        assert not (tmp_path / "s.tar").exists()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    """A real write error: the process may write no file above 200 kB (EFBIG, as ENOSPC, at the same place)."""
    program = f"""
import resource, signal, numpy as np
from data_shards.shards import ShardWriter
from job.errors import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
def main():
    with ShardWriter({str(tmp_path / "s.tar")!r}, np.uint16, 50_000) as writer:
        for number in range(100):
            writer.add(np.zeros(10_000, np.uint16), {{"id": str(number)}})
run_command(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot write {tmp_path / 's.tar'}: ")
    assert "free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_manifest_round_trip_and_missing_keys():
    info = ShardInfo("a.tar", 1, 2, 3, 4, "x", "y")
    described = ShardManifest(TokenizerInfo("t", "z", 32000, None, 2), "uint32", {"train": [info], "validation": []})
    value = json.loads(json.dumps(described.to_json()))
    assert ShardManifest.from_json(value) == described
    del value["splits"]["train"][0]["index_sha256"]
    with pytest.raises(InputError, match="index_sha256"):
        ShardManifest.from_json(value)


@pytest.mark.real
@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda tar, index: tar.write_bytes(tar.read_bytes()[:-512]), "cut short"),
        (lambda tar, index: tar.unlink(), "is missing"),
        (lambda tar, index: index.unlink(), "is missing"),
        (lambda tar, index: index.write_bytes(index.read_bytes()[:-1] + b"\7"), "not the index that the manifest"),
        (lambda tar, index: tar.write_bytes(b"\xff" * 512 + tar.read_bytes()[512:]), "damaged at byte 0"),
    ],
)
def test_a_shard_that_does_not_match_its_manifest_is_refused(real_data, tmp_path, harm, sentence):
    build_abstracts(tmp_path, real_data, count=30)
    tar = tmp_path / "train" / "shard-00000.tar"
    harm(tar, index_path(tar))
    with pytest.raises(InputError, match=sentence) as caught:
        ShardSet(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_directories_that_are_no_build_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json does not exist"):
        ShardSet(tmp_path)
    manifest.write(tmp_path, STAGE, {}, [], {"dtype": "uint16", "splits": {}})
    with pytest.raises(InputError, match="lacks 'tokenizer'"):
        ShardSet(tmp_path)
    manifest.write(tmp_path, "pretrain", {}, [], {})
    with pytest.raises(InputError, match="made by stage 'pretrain'"):
        ShardSet(tmp_path)
